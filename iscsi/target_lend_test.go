package iscsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"

	"blockgate/backing"
	"blockgate/iscsi"
)

// batchOf feeds PDUs as if they had come together.
func (l *link) batchOf(pdus ...[]byte) {
	l.rig.t.Helper()
	if err := l.feed(bytes.Join(pdus, nil)); err != nil {
		l.rig.t.Fatal(err)
	}
}

// wantRead takes the answer of a READ.
func (l *link) wantRead(itt uint32, want []byte) {
	l.rig.t.Helper()
	var got []byte
	for {
		p := l.next()
		if p.Opcode() != iscsi.OpDataIn || p.ITT() != itt {
			l.rig.t.Fatalf("PDU 0x%02x of task %d, want the data of %d", byte(p.Opcode()), p.ITT(), itt)
		}
		got = append(got, p.data...)
		if p.Flags()&iscsi.FlagStatus != 0 {
			break
		}
	}
	if !bytes.Equal(got, want) {
		l.rig.t.Errorf("task %d: %d bytes that are not what was there", itt, len(got))
	}
}

func (l *link) wantStatus(itt uint32, status byte) {
	l.rig.t.Helper()
	if p := l.next(); p.Opcode() != iscsi.OpSCSIResp || p.ITT() != itt || p.Status() != status {
		l.rig.t.Fatalf("PDU 0x%02x of task %d with status 0x%02x, want 0x%02x of %d", byte(p.Opcode()), p.ITT(), p.Status(), status, itt)
	}
}

// TestLoansShowTheMomentOfTheRead: a read and changes of the same blocks that
// come in one piece do not wait for each other, and the read sees none of those
// that follow it, whatever these look like.
func TestLoansShowTheMomentOfTheRead(t *testing.T) {
	old, fresh := pattern(4096, 1), pattern(4096, 2)
	writeSame := make([]byte, 16) // of zeroes that need no data-out (NDOB)
	writeSame[0], writeSame[1], writeSame[13] = 0x93, 1, 8
	for _, tc := range []struct {
		name  string
		flags byte
		cdb   []byte
		edtl  uint32
		data  []byte
		after []byte
	}{
		{"write", fW, rw10(0x2a, 0, 8), 4096, fresh, fresh},
		{"write same", 0x80, writeSame, 0, nil, make([]byte, 4096)},
		{"write same that claims to read", fR, writeSame, 512, nil, make([]byte, 4096)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := openStore(t, "ram:4M")
			if err := store.WriteAt(t.Context(), old, 0); err != nil {
				t.Fatal(err)
			}
			l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: store},
				params: func(p *iscsi.Params) { p.HeaderDigest, p.DataDigest = true, true }}).conns[0]
			l.batchOf(
				l.wire(cmdPDU(1, 1, 0, rw10(0x28, 0, 8), 4096, fR), nil),
				l.wire(cmdPDU(2, 2, 0, tc.cdb, tc.edtl, tc.flags), tc.data),
				l.wire(cmdPDU(3, 3, 0, rw10(0x28, 0, 8), 4096, fR), nil))
			l.wantRead(1, old)
			l.wantStatus(2, 0)
			l.wantRead(3, tc.after)
		})
	}
}

// TestLoansEndBeforeAWait: when the peer does not take all at once, what is left
// is copied, and the store can be written to.
func TestLoansEndBeforeAWait(t *testing.T) {
	const n = 16 // a round: what comes behind it has not run yet when the transport waits
	for _, takes := range []int{1, 47, 48, 49, 2000, 4096 + 48, 4096 + 52, 10000, n * 4096} {
		for _, digests := range []bool{false, true} {
			store := openStore(t, "ram:4M")
			old := pattern(n*4096, 3)
			if err := store.WriteAt(t.Context(), old, 0); err != nil {
				t.Fatal(err)
			}
			l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: store}, queue: n,
				params: func(p *iscsi.Params) { p.HeaderDigest, p.DataDigest, p.MaxXmitDataSegment = digests, digests, 3000 }}).conns[0]
			l.takes = takes
			written := 0
			l.meanwhile = func() {
				written++
				// It would wait forever for a loan.
				if err := store.WriteAt(context.Background(), make([]byte, n*4096), 0); err != nil {
					t.Error(err)
				}
			}
			var pdus [][]byte
			for i := range uint32(n) {
				pdus = append(pdus, l.wire(cmdPDU(i, 1+i, 0, rw10(0x28, i*8, 8), 4096, fR), nil))
			}
			l.batchOf(pdus...)
			for i := range uint32(n) {
				l.wantRead(i, old[i*4096:][:4096])
			}
			if written == 0 {
				t.Error("the transport never waited")
			}
		}
	}
}

// TestLoansAreBounded: long reads are sent before more is taken on loan, and one
// that is sent in several batches stays whole.
func TestLoansAreBounded(t *testing.T) {
	store := openStore(t, "ram:32M")
	old := pattern(3<<20, 4)
	for off := int64(0); off < 24<<20; off += 3 << 20 {
		if err := store.WriteAt(t.Context(), old, off); err != nil {
			t.Fatal(err)
		}
	}
	l := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: store}}).conns[0]
	var pdus [][]byte
	for i := range uint32(8) {
		cdb := make([]byte, 16)
		cdb[0] = 0x88
		binary.BigEndian.PutUint64(cdb[2:], uint64(i)*(3<<20)/512)
		binary.BigEndian.PutUint32(cdb[10:], 3<<20/512)
		pdus = append(pdus, l.wire(cmdPDU(i, 1+i, 0, cdb, 3<<20, fR), nil))
	}
	p := bytes.Join(pdus, nil)
	n, err := l.c.Feed(p)
	if err != nil || n >= len(p) || !l.c.Again() {
		t.Fatalf("Feed took %d of %d bytes (%v) and does not want to send first", n, len(p), err)
	}
	if !l.c.EndFeed() {
		t.Fatal("there is nothing to send")
	}
	l.drain()
	l.batchOf(p[n:])
	for i := range uint32(8) {
		l.wantRead(i, old)
	}
}

// TestLoansGoWithTheConnection: a transport that breaks leaves nothing on loan.
func TestLoansGoWithTheConnection(t *testing.T) {
	store := openStore(t, "ram:4M")
	if err := store.WriteAt(t.Context(), pattern(4096, 1), 0); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, rigOptions{stores: map[uint64]backing.Store{0: store}})
	l := r.conns[0]
	if _, err := l.c.Feed(l.wire(cmdPDU(1, 1, 0, rw10(0x28, 0, 8), 4096, fR), nil)); err != nil {
		t.Fatal(err)
	}
	if !l.c.EndFeed() || l.c.Gather() == nil {
		t.Fatal("nothing to send")
	}
	l.c.SendFailed(io.ErrClosedPipe)
	if err := store.WriteAt(t.Context(), pattern(4096, 2), 0); err != nil {
		t.Fatal(err)
	}
	l.close()
	if r.budget.Used() != 0 {
		t.Errorf("%d bytes of the budget are not given back", r.budget.Used())
	}
}
