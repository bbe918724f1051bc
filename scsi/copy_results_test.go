package scsi_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/synctest"

	"blockgate/backing"
	"blockgate/scsi"
)

// copyStatus is RECEIVE COPY STATUS(LID1): status, segments and bytes.
func (h *host) copyStatus(id byte) (status byte, segments uint16, n uint32) {
	h.t.Helper()
	b := h.good(copyIn(0x00, uint32(id), 4096))
	if len(b) != 12 || b[3] != 8 || b[7] != 0 {
		h.t.Fatalf("copy status % x", b)
	}
	return b[4], binary.BigEndian.Uint16(b[5:]), binary.BigEndian.Uint32(b[8:])
}

func (h *host) wantCopyStatus(what string, id, status byte, segments uint16, n uint32) {
	h.t.Helper()
	if s, k, m := h.copyStatus(id); s != status || k != segments || m != n {
		h.t.Errorf("%s: status %d, %d segments, %d bytes; want %d, %d, %d", what, s, k, m, status, segments, n)
	}
}

// Progress can be asked for while a copy runs, its result once afterwards, each
// by the nexus that sent it and by no other.
func TestCopyResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newGatedStore(1 << 20)
		r := newCopyRig(t, store)
		h, other := r.login("a"), r.login("b")
		h.expect("before", h.do(copyIn(0x00, 9, 64)), "5/24/00")

		release := store.hold(20 * 512)
		p := h.startCopy(copyList(9, nil, [][]byte{b2b(ownUnit, ownUnit, 4, 0, 100), b2b(ownUnit, ownUnit, 4, 20, 200)}))
		synctest.Wait()
		h.wantCopyStatus("running", 9, 0x00, 2, 4*512)
		h.wantCopyStatus("running, again", 9, 0x00, 2, 4*512)
		if b := h.good(copyIn(0x05, 9, 64)); b[5] != 0x11 || binary.BigEndian.Uint64(b[16:]) != 4*512 {
			t.Errorf("LID4 status % x", b)
		}
		h.expect("failure details of a running one", h.do(copyIn(0x04, 9, 64)), "5/24/00")
		other.expect("another's", other.do(copyIn(0x00, 9, 64)), "5/24/00")
		h.expect("the identifier is in use", h.copy(copyList(9, nil, nil)), "5/00/16")
		other.expect("not by another nexus", other.copy(copyList(9, nil, nil)), "good")
		none := copyList(0, nil, nil)
		none[1] = 0x18
		h.expect("without an identifier", h.copy(none), "good")

		release()
		<-p.done
		h.expect("", p, "good")
		if b := h.good(copyIn(0x04, 9, 64)); !bytes.Equal(b, make([]byte, 4)) {
			t.Errorf("failure details of success: % x", b)
		}
		h.wantCopyStatus("done", 9, 0x01, 2, 8*512)
		h.expect("told already", h.do(copyIn(0x00, 9, 64)), "5/24/00")
		if b := h.good(copyIn(0x05, 9, 64)); b[5] != 0x01 || len(b) != 32 || b[12] != 0 {
			t.Errorf("LID4 status % x", b)
		}
		h.expect("nothing of a copy without an identifier", h.do(copyIn(0x05, 0, 64)), "5/24/00")
		r.close()
	})
}

// A failed copy leaves its sense data.
func TestCopyFailureDetails(t *testing.T) {
	m := newMemDisk(1<<20, 0)
	r := newCopyRig(t, m)
	defer r.close()
	h := r.login("a")
	p := h.expect("", h.copy(copyList(3, nil, [][]byte{b2b(ownUnit, ownUnit, 1, 0, 1), b2b(ownUnit, 0, 1, 0, 0)})), "a/08/04")
	h.wantCopyStatus("failed", 3, 0x02, 2, 512)
	b := h.good(copyIn(0x05, 3, 4096))
	if b[5] != 0x02 || b[12] != 0x02 || !bytes.Equal(b[32:][:b[14]], p.Sense) || int(b[3])+4 != len(b) {
		t.Errorf("LID4 status % x", b)
	}
	b = h.good(copyIn(0x04, 3, 4096))
	if int(b[3])+4 != len(b) || b[56] != 0x02 || int(b[59]) != len(p.Sense) || !bytes.Equal(b[60:], p.Sense) {
		t.Errorf("failure details % x, sense % x", b, p.Sense)
	}
	h.expect("told already", h.do(copyIn(0x04, 3, 4096)), "5/24/00")
	if b := h.good(copyIn(0x05, 3, 16)); len(b) != 16 {
		t.Errorf("%d bytes for an allocation length of 16", len(b))
	}
}

// Results do not outlive the nexus or a reset, and there is an end to how many
// are kept.
func TestCopyResultsAreForgotten(t *testing.T) {
	r := newCopyRig(t, newMemDisk(1<<20, 0))
	defer r.close()
	h := r.login("a")
	for id := range byte(20) {
		h.expect("", h.copy(copyList(id, nil, nil)), "good")
	}
	h.expect("the oldest", h.do(copyIn(0x00, 3, 64)), "5/24/00")
	h.wantCopyStatus("the newest", 19, 0x01, 0, 0)
	h.wantCopyStatus("one of sixteen", 4, 0x01, 0, 0)
	for _, f := range []scsi.TMF{scsi.LUNReset, scsi.NexusReset, scsi.TargetWarmReset} {
		h.expect("", h.copy(copyList(7, nil, nil)), "good")
		<-h.manage(f, 0)
		for h.do(tur).Status != scsi.Good { // attentions
		}
		h.expect("after a reset", h.do(copyIn(0x00, 7, 64)), "5/24/00")
	}
	h.expect("", h.copy(copyList(7, nil, nil)), "good")
	h.nx.Detach(nil)
	again := r.login("a")
	again.expect("after a new login", again.do(copyIn(0x00, 7, 64)), "5/24/00")
}

// The limits that RECEIVE COPY OPERATING PARAMETERS and the Third-party Copy VPD
// page tell are the ones that hold, and both lists agree.
func TestCopyLimitsAreTold(t *testing.T) {
	r := newCopyRig(t)
	r.add(newMemDisk(1<<20, 0), func(c *scsi.UnitConfig) { c.BlockSize = 4096 })
	defer r.close()
	h := r.login("a")
	be := binary.BigEndian

	op := h.good(copyIn(0x03, 0, 4096))
	if int(be.Uint32(op))+4 != len(op) || int(op[43]) != len(op)-44 || op[4]&1 == 0 {
		t.Fatalf("operating parameters % x", op)
	}
	cscds, segs, bytesN := be.Uint16(op[8:]), be.Uint16(op[10:]), be.Uint32(op[12:])
	d := map[uint16][]byte{}
	page := h.good([]byte{0x12, 1, 0x8f, 16, 0, 0})
	if int(be.Uint16(page[2:]))+4 != len(page) {
		t.Fatalf("page length %d of %d", be.Uint16(page[2:]), len(page))
	}
	last := -1
	for p := page[4:]; len(p) > 0; {
		kind, n := be.Uint16(p), int(be.Uint16(p[2:]))
		if int(kind) <= last || n%4 != 0 {
			t.Errorf("descriptor %04x of %d bytes after %04x", kind, n, last)
		}
		last = int(kind)
		d[kind], p = p[4:4+n], p[4+n:]
	}
	if p := d[0x0004]; be.Uint16(p[4:]) != cscds || be.Uint16(p[6:]) != segs || be.Uint32(p[8:]) != bytesN {
		t.Errorf("parameter data % x, operating parameters % x", p, op)
	}
	if p := d[0x0008]; !bytes.Equal(p[1:][:p[0]], op[44:]) {
		t.Errorf("descriptor types % x, operating parameters % x", p, op[44:])
	}
	// Each command that is listed exists, as REPORT SUPPORTED OPERATION CODES says.
	commands := 0
	for p := d[0x0001][1:][:d[0x0001][0]]; len(p) > 0; p = p[2+p[1]:] {
		for _, sa := range p[2:][:p[1]] {
			commands++
			if b := h.good(rsoc(2, p[0], uint16(sa))); b[1]&7 != 3 {
				t.Errorf("%02x/%02x is listed and not supported", p[0], sa)
			}
		}
	}
	if commands < 9 {
		t.Errorf("%d commands", commands)
	}
	// Most blocks of a token and the ranges in a list.
	limit, n := be.Uint64(d[0x0000][16:]), int(be.Uint16(d[0x0000][6:]))
	if limit != 65536 || n < 8 {
		t.Errorf("block device ROD limits % x", d[0x0000])
	}
	many := ranges()
	for i := range n + 1 {
		many = append(many, ranges(uint64(i), 1)...)
	}
	h.expect("", h.populate(1, populateList(0, many[:n*16])), "good")
	h.expect("", h.populate(1, populateList(0, many)), "5/26/08")
	idle := be.Uint32(d[0x0000][8:])
	h.expect("", h.populate(1, populateList(idle, ranges(0, 1))), "good")
	h.expect("", h.populate(1, populateList(idle+1, ranges(0, 1))), "5/26/00")
}

// Without a copy manager a unit has nothing of it.
func TestNoCopyManager(t *testing.T) {
	r := newCopyRig(t)
	r.add(newMemDisk(1<<20, 0), func(c *scsi.UnitConfig) { c.Copies = nil })
	defer r.close()
	h := r.login("a")
	if b := h.good([]byte{0x12, 0, 0, 0, 96, 0}); b[5]&0x08 != 0 {
		t.Error("3PC is set")
	}
	if b := h.good(vpd(0)); bytes.IndexByte(b[4:], 0x8f) >= 0 {
		t.Errorf("pages % x", b[4:])
	}
	h.expect("", h.do(vpd(0x8f)), "5/24/00")
	h.expect("", h.copy(copyList(1, nil, nil)), "5/20/00")
	h.expect("", h.do(copyIn(0x03, 0, 64)), "5/20/00")

	with := newCopyRig(t, newMemDisk(1<<20, 0))
	defer with.close()
	h = with.login("a")
	if b := h.good([]byte{0x12, 0, 0, 0, 96, 0}); b[5]&0x08 == 0 {
		t.Error("3PC is not set")
	}
	h.expect("RECEIVE COPY DATA", h.do(copyIn(0x01, 0, 64)), "5/24/00")
}

var _ backing.CopyRanger = (*memDisk)(nil)
