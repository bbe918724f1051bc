package initiator

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"blockgate/iscsi"
)

// Async is an asynchronous message of the target (RFC 7143 §11.9).
type Async struct {
	Event      byte
	VCode      byte
	LUN        uint64 // the eight bytes of the LUN field, for event 0
	Parameters [3]uint16
	Data       []byte // sense data of event 0, with its length, or vendor's
}

// Asynchronous events.
const (
	AsyncSCSI          = 0 // sense data is in Data
	AsyncLogoutRequest = 1
	AsyncDropConn      = 2
	AsyncDropSession   = 3
	AsyncNegotiate     = 4
	AsyncVendor        = 255
)

func (c *conn) async(h *iscsi.BHS) error {
	data, err := c.in.data(h.DataLen())
	if err != nil {
		return err
	}
	s := c.s
	s.mu.Lock()
	err = c.noteLocked(h, true)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	a := Async{Event: h[36], VCode: h[37], LUN: h.LUN(), Data: bytes.Clone(data)}
	for i := range a.Parameters {
		a.Parameters[i] = binary.BigEndian.Uint16(h[38+2*i:])
	}
	s.log.Info("asynchronous message", "target", s.cfg.TargetName, "event", a.Event)
	if s.cfg.OnAsync != nil {
		s.cfg.OnAsync(a)
	}
	switch a.Event {
	case AsyncLogoutRequest:
		s.later(func(ctx context.Context) { s.Logout(ctx) })
	case AsyncDropConn, AsyncDropSession:
		// Without connection recovery the loss of one is the loss of all.
		return fmt.Errorf("%w (asynchronous event %d)", ErrDropped, a.Event)
	case AsyncNegotiate:
		keys := fmt.Sprintf("MaxRecvDataSegmentLength=%d\x00", c.params.MaxRecvDataSegment)
		s.later(func(ctx context.Context) { s.Text(ctx, []byte(keys)) })
	}
	return nil
}

// later runs what the target asked for, beside the reader.
func (s *Session) later(f func(context.Context)) {
	go func() {
		ctx, stop := context.WithTimeout(context.Background(), s.cfg.AbortTimeout)
		defer stop()
		f(ctx)
	}()
}

// reject ends the task whose PDU the target did not like.
func (c *conn) reject(h *iscsi.BHS) error {
	data, err := c.in.data(h.DataLen())
	if err != nil {
		return err
	}
	r := &RejectError{Reason: h.Response()}
	if len(data) >= iscsi.BHSLen {
		copy(r.Header[:], data)
	}
	s := c.s
	s.mu.Lock()
	if err := c.noteLocked(h, true); err != nil {
		s.mu.Unlock()
		return err
	}
	s.log.Warn("PDU rejected", "target", s.cfg.TargetName, "err", r)
	// A rejected Data-Out does not end its command: the target answers that.
	var done *Command
	if len(data) >= iscsi.BHSLen && r.Header.Opcode() != iscsi.OpDataOut {
		if sl, _ := s.findLocked(c, r.Header.ITT()); sl != nil {
			if k := sl.ctrl; k != nil {
				k.err = r
				s.freeSlotLocked(k.itt)
				close(k.done)
			} else {
				sl.cmd.cause = r
				done = s.abortLocked(sl.cmd, nil)
			}
		}
	}
	s.mu.Unlock()
	completeAll(done)
	return nil
}
