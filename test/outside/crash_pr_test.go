package outside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"

	"blockgate/iscsi/initiator"
	"blockgate/scsi"
)

// Service actions of PERSISTENT RESERVE OUT (SPC-4 §6.14) and reservation types
// that have one holder (§6.13.3).
const (
	prRegister       = 0x00
	prReserve        = 0x01
	prRelease        = 0x02
	prClear          = 0x03
	prPreempt        = 0x04
	prRegisterIgnore = 0x06

	writeExclusive     = 1
	exclusiveAccess    = 3
	writeExclusiveRegs = 5
	exclusiveRegs      = 6
)

// node is an initiator port that stays the same over restarts of either side.
func node(cfg initiator.Config, i int) initiator.Config {
	cfg.InitiatorName = nodeName(i)
	cfg.ISID = [6]byte{0x80, 0, 0, 0, 0, byte(i + 1)}
	return cfg
}

func nodeName(i int) string { return fmt.Sprintf("iqn.2025-01.io.blockgate.test:node%d", i) }

// execute runs a command, again while unit attentions are reported.
func execute(ctx context.Context, s *initiator.Session, c *initiator.Command) error {
	for {
		if err := s.Execute(ctx, c); err != nil {
			return err
		}
		if err := c.Failure(); !initiator.IsUnitAttention(err) {
			return err
		}
	}
}

func isConflict(err error) bool {
	var e *initiator.StatusError
	return errors.As(err, &e) && e.Status == scsi.ReservationConflict
}

// reserveOut sends PERSISTENT RESERVE OUT; a registration asks to outlive a loss
// of power (APTPL).
func reserveOut(ctx context.Context, s *initiator.Session, lun uint64, action, typ byte, key, actionKey uint64) error {
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], actionKey)
	if action == prRegister || action == prRegisterIgnore {
		list[20] = 1
	}
	return execute(ctx, s, &initiator.Command{LUN: initiator.LUN(lun), Out: list,
		CDB: []byte{0x5f, action, typ, 0, 0, 0, 0, 0, byte(len(list)), 0}})
}

// reservations are what a unit must know: who registered which key, and who
// holds a reservation of which type.
type reservations struct {
	keys   map[string]uint64 // by initiator name
	holder string            // "": nobody
	typ    byte
}

func (r reservations) clone() reservations {
	r.keys = maps.Clone(r.keys)
	return r
}

func (r reservations) equal(o reservations) bool {
	return maps.Equal(r.keys, o.keys) && r.holder == o.holder && r.typ == o.typ
}

// readReservations is what READ FULL STATUS says (SPC-4 §6.13.5).
func readReservations(ctx context.Context, s *initiator.Session, lun uint64) (reservations, error) {
	c := &initiator.Command{LUN: initiator.LUN(lun), In: make([]byte, 8192), CDB: []byte{0x5e, 3, 0, 0, 0, 0, 0, 0x20, 0, 0}}
	if err := execute(ctx, s, c); err != nil {
		return reservations{}, err
	}
	r := reservations{keys: map[string]uint64{}}
	b := c.In[:c.Received]
	if len(b) < 8 || int(binary.BigEndian.Uint32(b[4:])) != len(b)-8 {
		return r, fmt.Errorf("READ FULL STATUS of %d bytes: % x", len(b), b)
	}
	for b = b[8:]; len(b) > 0; {
		if len(b) < 24 || len(b)-24 < int(binary.BigEndian.Uint32(b[20:])) {
			return r, fmt.Errorf("a status descriptor is cut: % x", b)
		}
		end := 24 + int(binary.BigEndian.Uint32(b[20:]))
		// TransportID of iSCSI: 4 bytes, the name, ",i,0x" and the ISID.
		name, _, _ := strings.Cut(strings.TrimRight(string(b[28:end]), "\x00"), ",")
		r.keys[name] = binary.BigEndian.Uint64(b)
		if b[12]&1 != 0 {
			r.holder, r.typ = name, b[13]
		}
		b = b[end:]
	}
	return r, nil
}

// perform does what the standard says, and reports whether the answer is GOOD
// and not RESERVATION CONFLICT.
func (r *reservations) perform(action, typ byte, who string, actionKey uint64) bool {
	_, registered := r.keys[who]
	if action != prRegisterIgnore && !registered {
		return false
	}
	switch action {
	case prRegisterIgnore:
		if actionKey != 0 {
			r.keys[who] = actionKey
		} else {
			r.remove(who)
		}
	case prReserve:
		if r.holder != "" {
			return r.holder == who && r.typ == typ
		}
		r.holder, r.typ = who, typ
	case prRelease:
		if r.holder == who {
			r.holder, r.typ = "", 0
		}
	case prClear:
		*r = reservations{keys: map[string]uint64{}}
	case prPreempt:
		found := ""
		for name, key := range r.keys {
			if key == actionKey {
				found = name
			}
		}
		if found == "" {
			return false
		}
		held := r.holder == found
		r.remove(found)
		if held {
			r.holder, r.typ = who, typ
		}
	}
	return true
}

func (r *reservations) remove(who string) {
	delete(r.keys, who)
	if r.holder == who {
		r.holder, r.typ = "", 0
	}
}

// allows reports whether a node may read or write.
func (r *reservations) allows(who string, write bool) bool {
	_, registered := r.keys[who]
	switch r.typ {
	case writeExclusive:
		return !write || who == r.holder
	case exclusiveAccess:
		return who == r.holder
	case writeExclusiveRegs:
		return !write || registered
	case exclusiveRegs:
		return registered
	}
	return true
}

// quarrel is a cluster whose nodes register, reserve, preempt and leave on one
// unit. What the unit knows is before, or after if the last command was not
// answered.
type quarrel struct {
	cfg           initiator.Config
	lun           uint64
	nodes         int
	before, after reservations
	changes       int
}

func newQuarrel(cfg initiator.Config, lun uint64, nodes int) *quarrel {
	q := &quarrel{cfg: cfg, lun: lun, nodes: nodes, before: reservations{keys: map[string]uint64{}}}
	q.after = q.before.clone()
	return q
}

// dial logs all nodes in.
func (q *quarrel) dial(ctx context.Context) ([]*initiator.Session, error) {
	var all []*initiator.Session
	for i := range q.nodes {
		s, err := initiator.Dial(ctx, node(q.cfg, i))
		if err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func closeAll(all []*initiator.Session) {
	for _, s := range all {
		s.Close()
	}
}

// run quarrels over the nodes' sessions until the target goes away; an error is
// an answer that should have been another.
func (q *quarrel) run(ctx context.Context, all []*initiator.Session, rng *rand.Rand) error {
	defer closeAll(all)
	for {
		i := rng.IntN(q.nodes)
		who := nodeName(i)
		typ := [...]byte{writeExclusive, exclusiveAccess, writeExclusiveRegs, exclusiveRegs}[rng.IntN(4)]
		var action byte
		var actionKey uint64
		switch rng.IntN(10) {
		case 0, 1, 2:
			action, actionKey = prRegisterIgnore, rng.Uint64()|1
		case 3:
			action = prRegisterIgnore
		case 4, 5:
			action = prReserve
		case 6:
			action = prRelease
			if q.before.holder == who {
				typ = q.before.typ // another one is an error
			}
		case 7, 8:
			action, actionKey = prPreempt, q.before.keys[nodeName((i+1+rng.IntN(q.nodes-1))%q.nodes)]
			if actionKey == 0 {
				continue // nobody there: an error with a code of its own
			}
		default:
			action = prClear
		}
		q.after = q.before.clone()
		good := q.after.perform(action, typ, who, actionKey)
		err := reserveOut(ctx, all[i], q.lun, action, typ, q.before.keys[who], actionKey)
		var status *initiator.StatusError
		switch {
		case err != nil && !errors.As(err, &status):
			return nil // the target went away
		case err == nil != good || err != nil && !isConflict(err):
			return fmt.Errorf("%s: service action %d, type %d, key %#x in %+v: %v, want success: %v", who, action, typ, actionKey, q.before, err, good)
		}
		q.before = q.after
		q.changes++
	}
}

// check compares what the unit knows after a restart, and whether it acts so.
func (q *quarrel) check(ctx context.Context) error {
	all, err := q.dial(ctx)
	if err != nil {
		return err
	}
	defer closeAll(all)
	got, err := readReservations(ctx, all[0], q.lun)
	if err != nil {
		return err
	}
	if !got.equal(q.before) && !got.equal(q.after) {
		return fmt.Errorf("reservations are %+v, were %+v, perhaps already %+v", got, q.before, q.after)
	}
	q.before, q.after = got, got.clone()
	block := make([]byte, sectorSize)
	for i, s := range all {
		for _, write := range []bool{false, true} {
			c := &initiator.Command{LUN: initiator.LUN(q.lun), CDB: []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, In: block}
			if write {
				c.CDB[0], c.In, c.Out = 0x2a, nil, block
			}
			err := execute(ctx, s, c)
			if allowed := got.allows(nodeName(i), write); allowed != (err == nil) || err != nil && !isConflict(err) {
				return fmt.Errorf("node %d, write %v: %v, want success: %v under %+v", i, write, err, allowed, got)
			}
		}
	}
	return nil
}
