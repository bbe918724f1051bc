package initiator

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"blockgate/iscsi"
)

// control is a request of ours that is not a SCSI command: a ping, a task
// management function, a text request, a logout. Guarded by the session's mutex
// until done is closed.
type control struct {
	conn *conn
	itt  uint32
	want iscsi.Opcode
	seq  uint64
	done chan struct{}

	fn  Function
	lun uint64
	cmd *Command // of ABORT TASK

	h    iscsi.BHS
	data []byte
	err  error
}

// ask sends a request for immediate delivery and waits for its answer. fill
// sets the header's own fields.
func (s *Session) ask(ctx context.Context, k *control, data []byte, fill func(h *iscsi.BHS)) error {
	k.done = make(chan struct{})
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return s.err
	}
	if !s.slotLocked() {
		s.mu.Unlock()
		return fmt.Errorf("%w: no free initiator task tag", ErrCommand)
	}
	sl, itt := s.takeSlotLocked()
	sl.ctrl, k.itt = k, itt
	s.seq++
	k.seq = s.seq
	c := k.conn
	h := c.out.header()
	h.SetFlags(iscsi.FlagFinal)
	h.SetITT(itt)
	h.SetTTT(iscsi.ReservedTag)
	h.SetCmdSN(s.cmdSN)
	h.SetExpStatSN(c.expStatSN)
	fill(h)
	c.out.seal(data, nil, c.params.HeaderDigest, c.params.DataDigest)
	s.mu.Unlock()
	c.flush()
	select {
	case <-k.done:
		return k.err
	case <-ctx.Done():
		// The slot stays taken until the answer comes, if it ever does: its tag
		// must not be used for something else before.
		return context.Cause(ctx)
	}
}

// answer takes the answer to a control request.
func (c *conn) answer(h *iscsi.BHS) error {
	data, err := c.in.data(h.DataLen())
	if err != nil {
		return err
	}
	s := c.s
	s.mu.Lock()
	err = c.noteLocked(h, true)
	var sl *slot
	if err == nil {
		sl, err = s.findLocked(c, h.ITT())
	}
	if err != nil || sl == nil {
		s.mu.Unlock()
		return err
	}
	k := sl.ctrl
	if k == nil || k.want != h.Opcode() {
		s.mu.Unlock()
		return protocolErrorf("opcode %02xh does not answer what was asked with tag %08xh", uint8(h.Opcode()), h.ITT())
	}
	k.h, k.data = *h, bytes.Clone(data)
	var done *Command
	switch h.Opcode() {
	case iscsi.OpTaskResp:
		done = s.managedLocked(k)
	case iscsi.OpLogoutResp:
		s.loggedOut = h.Response() == 0
	}
	s.freeSlotLocked(h.ITT())
	close(k.done)
	s.mu.Unlock()
	completeAll(done)
	return nil
}

// nopIn takes the answer to a ping, or answers the target's.
func (c *conn) nopIn(h *iscsi.BHS) error {
	if h.ITT() != iscsi.ReservedTag {
		return c.answer(h)
	}
	if err := c.in.skip(h.DataLen()); err != nil {
		return err
	}
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.noteLocked(h, false); err != nil {
		return err
	}
	if h.TTT() == iscsi.ReservedTag {
		return nil // only tells the window
	}
	o := c.out.header()
	o.SetOpcode(iscsi.OpNopOut, true)
	o.SetFlags(iscsi.FlagFinal)
	o.SetLUN(h.LUN())
	o.SetITT(iscsi.ReservedTag)
	o.SetTTT(h.TTT())
	o.SetCmdSN(s.cmdSN)
	o.SetExpStatSN(c.expStatSN)
	c.out.seal(nil, nil, c.params.HeaderDigest, c.params.DataDigest)
	return c.boundLocked()
}

// Ping sends a NOP-Out with data on every connection, one after the other, and
// checks that the data comes back. It is at most MaxXmitDataSegment and
// MaxRecvDataSegment bytes.
func (s *Session) Ping(ctx context.Context, data []byte) error {
	for _, c := range s.conns {
		if limit := min(c.params.MaxXmitDataSegment, c.params.MaxRecvDataSegment); len(data) > limit {
			return fmt.Errorf("%w: ping of %d bytes, at most %d", ErrCommand, len(data), limit)
		}
		k := &control{conn: c, want: iscsi.OpNopIn}
		err := s.ask(ctx, k, data, func(h *iscsi.BHS) { h.SetOpcode(iscsi.OpNopOut, true) })
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		if !bytes.Equal(k.data, data) {
			return protocolErrorf("ping with %d bytes came back with %d others", len(data), len(k.data))
		}
	}
	return nil
}

// maxText bounds the answer to a text request, in bytes.
const maxText = 16 << 20

// Text sends key=value pairs, each ended by a NUL, in a text request and returns
// the whole answer. keys must fit one PDU of the target's.
func (s *Session) Text(ctx context.Context, keys []byte) ([]byte, error) {
	s.texts.Lock()
	defer s.texts.Unlock()
	c := s.conns[0]
	if len(keys) > c.params.MaxXmitDataSegment {
		return nil, fmt.Errorf("%w: text of %d bytes, the target takes %d", ErrCommand, len(keys), c.params.MaxXmitDataSegment)
	}
	var all []byte
	ttt, lun := uint32(iscsi.ReservedTag), uint64(0)
	for {
		k := &control{conn: c, want: iscsi.OpTextResp}
		err := s.ask(ctx, k, keys, func(h *iscsi.BHS) {
			h.SetOpcode(iscsi.OpTextReq, true)
			h.SetLUN(lun)
			h.SetTTT(ttt)
		})
		if err != nil {
			return nil, fmt.Errorf("text request: %w", err)
		}
		if all = append(all, k.data...); len(all) > maxText {
			return nil, protocolErrorf("text answer longer than %d bytes", maxText)
		}
		if k.h.Flags()&iscsi.FlagFinal != 0 {
			return all, nil
		}
		if k.h.TTT() == iscsi.ReservedTag {
			return nil, protocolErrorf("text answer goes on without a target transfer tag")
		}
		keys, ttt, lun = nil, k.h.TTT(), k.h.LUN()
	}
}

// Logout ends the session in order (RFC 7143 §11.14): commands that are still
// out end with ErrClosed. The session is gone when it returns, also on an error.
func (s *Session) Logout(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	k := &control{conn: s.conns[0], want: iscsi.OpLogoutResp}
	err := s.ask(ctx, k, nil, func(h *iscsi.BHS) {
		h.SetOpcode(iscsi.OpLogoutReq, true)
		h.SetFlags(iscsi.FlagFinal) // reason 0: close the session
		binary.BigEndian.PutUint32(h[20:], 0)
	})
	s.Close()
	if err != nil {
		return fmt.Errorf("logout: %w", err)
	}
	if r := k.h.Response(); r != 0 {
		return fmt.Errorf("logout: response %d", r)
	}
	return nil
}

// leaving reports whether a logout is under way.
func (s *Session) leaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}
