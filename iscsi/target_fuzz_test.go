package iscsi_test

import (
	"testing"

	"blockgate/iscsi"
)

// FuzzTargetConn feeds a connection in full feature phase with PDUs made from
// the input, cut into pieces in a way that the input decides too: nothing may
// panic, hang or keep memory.
func FuzzTargetConn(f *testing.F) {
	seed := func(pdus ...[]byte) {
		var b []byte
		for _, p := range pdus {
			b = append(b, p...)
		}
		f.Add(b, uint16(77), false)
		f.Add(b, uint16(48), true)
	}
	l := &link{rig: &rig{t: f}}
	cmd := l.wire(cmdPDU(1, 1, 0, rw10(0x2a, 0, 2), 1024, w), nil)
	seed(cmd, l.wire(dataOut(1, iscsi.ReservedTag, 0, 0, true), make([]byte, 1024)))
	seed(l.wire(cmdPDU(1, 1, 0, rw10(0x28, 0, 8), 4096, fR), nil), l.wire(tmf(2, 2, 5, 0, 0, 0), nil))
	seed(l.wire(cmdPDU(3, 1, 0, rw10(0x2a, 0, 64), 32768, fW), make([]byte, 20000)))
	var text iscsi.BHS
	text.SetOpcode(iscsi.OpTextReq, true)
	text.SetFlags(0x80)
	text.SetTTT(iscsi.ReservedTag)
	seed(l.wire(text, []byte("SendTargets=All\x00MaxRecvDataSegmentLength=512\x00")))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16, dataDigest bool) {
		r := newRig(t, rigOptions{memory: 2 << 20, params: func(p *iscsi.Params) { p.DataDigest = dataDigest }})
		l := r.conns[0]
		step := int(piece)%5000 + 1
		var left []byte
		for len(b) > 0 {
			n := min(step, len(b))
			left = append(left, b[:n]...)
			b = b[n:]
			for {
				if d := l.c.Direct(); d != nil && len(left) > 0 {
					k := copy(d, left)
					l.c.Filled(k)
					left = left[k:]
				}
				k, err := l.c.Feed(left)
				left = left[k:]
				if l.c.EndFeed() {
					l.drain()
				} else {
					l.flush()
				}
				if err != nil {
					b = nil
					break
				}
				if k == 0 {
					break
				}
			}
			l.mu.Lock()
			l.out = l.out[:0]
			l.mu.Unlock()
		}
		l.close()
		if u := r.budget.Used(); u != 0 {
			t.Fatalf("%d bytes of the budget are not given back", u)
		}
	})
}
