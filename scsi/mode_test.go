package scsi_test

import (
	"bytes"
	"testing"

	"blockgate/scsi"
)

// page6 reads one page by MODE SENSE(6) without block descriptors.
func (h *host) page6(pc, code, sub byte) []byte {
	h.t.Helper()
	b := h.good([]byte{0x1a, 0x08, pc<<6 | code, sub, 255, 0})
	if int(b[0]) != len(b)-1 || b[3] != 0 {
		h.t.Errorf("MODE SENSE(6) header % x of %d bytes", b[:4], len(b))
	}
	return b[4:]
}

func (h *host) select6(list ...byte) *pending {
	return h.do([]byte{0x15, 0x10, 0, 0, byte(len(list)), 0}, list...)
}

func TestModeSenseForms(t *testing.T) {
	n := newRig(t, nil).login("a")
	all, every := n.page6(0, 0x3f, 0), n.page6(0, 0x3f, 0xff)
	var codes []byte
	for b := every; len(b) > 0; {
		codes = append(codes, b[0])
		if b[0]&0x40 != 0 {
			b = b[4+int(b[2])<<8+int(b[3]):]
		} else {
			b = b[2+b[1]:]
		}
	}
	if want := []byte{0x01, 0x02, 0x08, 0x0a, 0x4a, 0x1c, 0x5c}; !bytes.Equal(codes, want) {
		t.Errorf("pages % x, want % x", codes, want)
	}
	if len(every) != len(all)+32+16 {
		t.Errorf("%d bytes with subpages, %d without", len(every), len(all))
	}
	b := n.good([]byte{0x5a, 0x10, 0x0a, 0, 0, 0, 0, 0, 255, 0})
	if len(b) != 8+16+12 || b[1] != byte(len(b)-2) || b[3] != 0x10 || b[4] != 1 || b[7] != 16 || b[14] != 0x08 || b[22] != 2 {
		t.Errorf("MODE SENSE(10) with long LBAs: % x", b)
	}
	b = n.good([]byte{0x1a, 0, 0x0a, 0, 255, 0})
	if len(b) != 4+8+12 || b[3] != 8 || b[6] != 0x08 || b[10] != 2 {
		t.Errorf("MODE SENSE(6) with a block descriptor: % x", b)
	}
	if b := n.good([]byte{0x1a, 0, 0x3f, 0, 4, 0}); len(b) != 4 || b[0] < 40 {
		t.Errorf("cut to 4 bytes: % x", b)
	}
	n.expect("saved values", n.do([]byte{0x1a, 0, 0xff, 0, 255, 0}), "5/39/00")
	n.expect("page", n.do([]byte{0x1a, 0, 0x05, 0, 255, 0}), "5/24/00")
	n.expect("subpage", n.do([]byte{0x1a, 0, 0x08, 1, 255, 0}), "5/24/00")
	n.expect("subpage of all", n.do([]byte{0x1a, 0, 0x3f, 1, 255, 0}), "5/24/00")
}

// What MODE SENSE gives MODE SELECT takes, and each changeable bit changes.
func TestModeSelectRoundTrip(t *testing.T) {
	r := newRig(t, nil)
	a, b := r.login("a"), r.login("b")
	a.expect("unchanged", a.select6(append(make([]byte, 4), a.page6(0, 0x3f, 0xff)...)...), "good")
	b.expect("nothing changed", b.do(tur), "good")
	for _, code := range []byte{0x01, 0x02, 0x08, 0x0a, 0x1c} {
		mask, before := a.page6(1, code, 0), a.page6(2, code, 0)
		for i := 2; i < len(mask); i++ {
			for bit := range 8 {
				page := bytes.Clone(before)
				page[i] ^= 1 << bit
				if mask[i]&(1<<bit) == 0 {
					p := a.expect("fixed bit", a.select6(append(make([]byte, 4), page...)...), "5/26/00")
					if want := byte(i + 4); p.Sense[17] != want || p.Sense[15] != 0x88|byte(bit) {
						t.Errorf("page %02x byte %d bit %d: sense-key-specific % x", code, i, bit, p.Sense[15:18])
					}
					continue
				}
				a.expect("changeable bit", a.select6(append(make([]byte, 4), page...)...), "good")
				if got := a.page6(0, code, 0); !bytes.Equal(got, page) {
					t.Errorf("page %02x: set % x, got % x", code, page, got)
				}
				if got := a.page6(2, code, 0); !bytes.Equal(got, before) {
					t.Errorf("page %02x: the default became % x", code, got)
				}
				p := b.do(tur)
				if got := senseText(p.Sense); got != "6/2a/01" {
					t.Errorf("page %02x byte %d bit %d: the other nexus gets %s", code, i, bit, got)
				}
				a.expect("back", a.select6(append(make([]byte, 4), before...)...), "good")
				b.expect("back", b.do(tur), "6/2a/01")
			}
		}
	}
}

func TestModePagesTakeEffect(t *testing.T) {
	r := newRig(t, nil)
	n := r.login("a")
	set := func(code byte, i int, bit byte) {
		p := n.page6(0, code, 0)
		p[i] ^= bit
		n.expect("MODE SELECT", n.select6(append(make([]byte, 4), p...)...), "good")
	}
	flushes := r.store.flushes
	n.good(write10(0, 1), block(1)...)
	if r.store.flushes != flushes {
		t.Error("a write is flushed although the write cache is on")
	}
	set(0x08, 2, 0x04)
	if r.store.flushes != flushes+1 {
		t.Error("switching the write cache off does not write it back")
	}
	n.good(write10(0, 1), block(1)...)
	if r.store.flushes != flushes+2 {
		t.Error("GOOD without the write cache is not durable")
	}
	set(0x0a, 4, 0x08)
	n.expect("SWP", n.do(write10(0, 1), block(1)...), "7/27/02")
	if b := n.good([]byte{0x1a, 8, 0x0a, 0, 255, 0}); b[2]&0x80 == 0 || !r.unit.SoftwareWriteProtected() {
		t.Error("SWP does not show")
	}
	set(0x0a, 4, 0x08)
	set(0x0a, 2, 0x04)
	if p := n.do(read10(1<<30, 1)); p.Sense[0] != 0x72 || senseText(p.Sense) != "5/21/00" {
		t.Errorf("D_SENSE: % x", p.Sense)
	}
	<-n.manage(scsi.LUNReset, 0)
	n.do(tur)
	if got, want := n.page6(0, 0x3f, 0), n.page6(2, 0x3f, 0); !bytes.Equal(got, want) {
		t.Errorf("after a reset\n got % x\nwant % x", got, want)
	}
}

func TestModeSelectRefusals(t *testing.T) {
	n := newRig(t, nil).login("a")
	caching := n.page6(0, 0x08, 0)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	head := make([]byte, 4)
	for _, c := range []struct {
		name        string
		list        []byte
		want, field string
	}{
		{"nothing", nil, "good", ""},
		{"header alone", head, "good", ""},
		{"cut header", head[:3], "5/1a/00", ""},
		{"cut page", join(head, caching[:10]), "5/1a/00", ""},
		{"cut page header", join(head, caching[:1]), "5/1a/00", ""},
		{"medium type", []byte{0, 1, 0, 0}, "5/26/00", "list 1"},
		{"descriptor length", []byte{0, 0, 0, 4, 0, 0, 0, 0}, "5/26/00", "list 3"},
		{"cut descriptor", []byte{0, 0, 0, 8, 0, 0}, "5/1a/00", ""},
		{"same geometry", []byte{0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 2, 0}, "good", ""},
		{"other block length", []byte{0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 16, 0}, "5/26/00", "list 9"},
		{"other capacity", []byte{0, 0, 0, 8, 0, 0, 8, 1, 0, 0, 2, 0}, "5/26/00", "list 4"},
		{"unknown page", join(head, []byte{0x05, 0}), "5/26/00", "list 4.5"},
		{"page length", join(head, []byte{0x08, 3}, caching[2:]), "5/26/00", "list 5"},
		{"second page bad", join(head, caching, []byte{0x3f, 0}), "5/26/00", "list 24.5"},
	} {
		p := n.expect(c.name, n.select6(c.list...), c.want)
		if p.Status != scsi.Good && p.field() != c.field {
			t.Errorf("%s: sense points at %q, want %q", c.name, p.field(), c.field)
		}
	}
	n.expect("SP", n.do([]byte{0x15, 0x11, 0, 0, 4, 0}, head...), "5/24/00")
	n.expect("PF", n.do([]byte{0x15, 0x00, 0, 0, 4, 0}, head...), "5/24/00")
	n.expect("less data than announced", n.do([]byte{0x15, 0x10, 0, 0, 24, 0}, head...), "5/1a/00")
}
