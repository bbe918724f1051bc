package scsi_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
)

// The tests of this file are about what other targets get wrong, where no test
// of a single command asks for it.

// DPO and FUA are announced (MODE SENSE), described (REPORT SUPPORTED OPERATION
// CODES) and taken, all three or none.
func TestDPOAndFUAAsAnnounced(t *testing.T) {
	r := newSBCRig(t, newMemDisk(1<<20, backing.CapsAll), nil)
	if b := r.good("MODE SENSE", r.do([]byte{0x1a, 0, 0x3f, 0, 255, 0}, nil)).in; b[2]&0x10 == 0 {
		t.Fatal("DPOFUA is not announced")
	}
	for _, op := range []byte{0x28, 0x2a, 0x88, 0x8a, 0x8b, 0xa8, 0xaa} {
		b := r.good("", r.do([]byte{0xa3, 0x0c, 1, op, 0, 0, 0, 0, 0, 64, 0, 0}, nil)).in
		if usage := b[4:]; usage[1]&0x18 != 0x18 {
			t.Errorf("opcode %02x: usage map %02x in byte 1", op, usage[1])
		}
		var out []byte
		if op != 0x28 && op != 0x88 && op != 0xa8 {
			out = make([]byte, 512)
		}
		r.good(fmt.Sprintf("opcode %02x with DPO and FUA", op), r.do(cdbOf(op, 0x18, 0, 1), out))
	}
}

// What the Block Limits page says can be done can be done, and no more.
func TestBlockLimitsAsClaimed(t *testing.T) {
	r := newSBCRig(t, newMemDisk(64<<20, backing.CapsAll&^backing.CapWriteAtomic), func(c *scsi.UnitConfig) { c.MaxTransfer = 1 << 20 })
	b := r.good("VPD B0h", r.do([]byte{0x12, 1, 0xb0, 0, 255, 0}, nil)).in
	if binary.BigEndian.Uint16(b[2:]) != 60 || len(b) != 64 {
		t.Fatalf("page length: % x", b[:4])
	}
	caw, transfer := b[5], binary.BigEndian.Uint32(b[8:])
	unmap, descs := binary.BigEndian.Uint32(b[20:]), binary.BigEndian.Uint32(b[24:])
	same := binary.BigEndian.Uint64(b[36:])
	if caw == 0 || transfer == 0 || unmap == 0 || descs == 0 || same == 0 {
		t.Fatalf("limits % x", b)
	}
	r.good("COMPARE AND WRITE", r.do(cawCDB(0, 0, caw), make([]byte, 2*512*int(caw))))
	r.good("READ", r.do(cdbOf(0x88, 0, 0, transfer), nil))
	if got := r.do(cdbOf(0x88, 0, 0, transfer+1), nil); got.status == scsi.Good {
		t.Error("READ of more than the limit")
	}
	r.good("WRITE SAME", r.do(cdbOf(0x93, 0, 0, uint32(min(same, 64<<11))), make([]byte, 512)))
	if got := r.do(cdbOf(0x93, 0, 0, uint32(same)+1), make([]byte, 512)); got.status == scsi.Good {
		t.Error("WRITE SAME of more than the limit")
	}
	p := unmapParams([2]uint64{0, uint64(min(unmap, 64<<11))})
	r.good("UNMAP", r.do(unmapCDB(len(p)), p))
	many := make([][2]uint64, descs+1)
	if p := unmapParams(many...); r.do(unmapCDB(len(p)), p).status == scsi.Good {
		t.Error("UNMAP with more descriptors than the limit")
	}
}

// RESERVE(6) ends with its nexus and with every reset, and holds against the
// MODE SENSE of others as long as it is there.
func TestReserve6EndsWithNexusAndResets(t *testing.T) {
	reserve := []byte{0x16, 0, 0, 0, 0, 0}
	for name, end := range map[string]func(h *host){
		"logout":     func(h *host) { h.nx.Detach(nil) },
		"LUN reset":  func(h *host) { <-h.manage(scsi.LUNReset, 0) },
		"warm reset": func(h *host) { <-h.manage(scsi.TargetWarmReset, 0) },
		"cold reset": func(h *host) { <-h.manage(scsi.TargetColdReset, 0) },
	} {
		r := newRig(t, nil)
		a, b := r.login("a"), r.login("b")
		a.good(reserve)
		b.expect(name+": MODE SENSE of another", b.do([]byte{0x1a, 0, 0x3f, 0, 255, 0}), "conflict")
		end(a)
		for range 4 { // the attention of the reset
			if b.do(tur).outcome() == "good" {
				break
			}
		}
		b.expect(name, b.do(reserve), "good")
	}
}

var prTypes = []byte{0x1, 0x3, 0x5, 0x6, 0x7, 0x8}

// A host that has no part in a reservation can still find out what the disk is:
// one that is refused READ CAPACITY takes it for empty.
func TestQuestionsPassEveryReservation(t *testing.T) {
	for _, typ := range prTypes {
		r := newRig(t, nil)
		holder, other := r.login("a"), r.login("b")
		holder.expect("REGISTER", holder.prOut(0, 0, 0, 1, 0), "good")
		holder.expect("RESERVE", holder.prOut(1, typ, 1, 0, 0), "good")
		for _, cdb := range [][]byte{
			tur, {0x12, 0, 0, 0, 96, 0}, reportLUNs(0), {0x03, 0, 0, 0, 18, 0},
			make10(0x25), {0: 0x9e, 1: 0x10, 13: 32, 15: 0}, rtpg(0, 64), {0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0},
		} {
			other.expect(fmt.Sprintf("type %x", typ), other.do(cdb), "good")
		}
		other.expect("but not write", other.do(write10(0, 1), block(1)...), "conflict")
	}
}

// The holder is an initiator port: it may log out and in and goes on.
func TestHolderIsAnInitiatorPort(t *testing.T) {
	for _, typ := range prTypes {
		r := newRig(t, nil)
		holder, other := r.login("a"), r.login("b")
		holder.expect("REGISTER", holder.prOut(0, 0, 0, 1, 0), "good")
		holder.expect("RESERVE", holder.prOut(1, typ, 1, 0, 0), "good")
		holder.nx.Detach(nil)
		other.expect(fmt.Sprintf("type %x: while it is away", typ), other.do(write10(0, 1), block(1)...), "conflict")
		again := r.login("a")
		again.expect(fmt.Sprintf("type %x: it is back", typ), again.do(write10(0, 1), block(1)...), "good")
		again.expect(fmt.Sprintf("type %x: it releases", typ), again.prOut(2, typ, 1, 0, 0), "good")
		other.expect("", other.do(write10(0, 1), block(1)...), "good")
	}
}

// READ KEYS that is cut keeps the whole length; PRGENERATION counts; PREEMPT
// removes the key; all registrants hold with key 0.
func TestWhatReservationsReport(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.login("a"), r.login("b")
	in := func(sa byte, n byte) []byte { return a.good([]byte{0x5e, sa, 0, 0, 0, 0, 0, 0, n, 0}) }
	a.expect("REGISTER", a.prOut(0, 0, 0, 0xa, 0), "good")
	b.expect("REGISTER", b.prOut(0, 0, 0, 0xb, 0), "good")
	if got, want := in(0, 12), append([]byte{0, 0, 0, 2, 0, 0, 0, 16}, make([]byte, 4)...); !bytes.Equal(got, want) {
		t.Errorf("READ KEYS cut to 12 bytes: % x", got)
	}
	a.expect("RESERVE", a.prOut(1, 0x7, 0xa, 0, 0), "good")
	if got := in(1, 64); len(got) != 24 || binary.BigEndian.Uint64(got[8:]) != 0 || got[21] != 0x07 || got[3] != 2 {
		t.Errorf("READ RESERVATION of all registrants: % x", got)
	}
	a.expect("PREEMPT", a.prOut(4, 0x7, 0xa, 0xb, 0), "good")
	if got := in(0, 64); got[3] != 3 || got[7] != 8 || got[15] != 0x0a {
		t.Errorf("READ KEYS after PREEMPT: % x", got)
	}
	a.expect("CLEAR", a.prOut(3, 0, 0xa, 0, 0), "good")
	if got := in(0, 64); got[3] != 4 || got[7] != 0 {
		t.Errorf("READ KEYS after CLEAR: % x", got)
	}
}
