package scsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

// tokenStatus is RECEIVE ROD TOKEN INFORMATION: status, blocks and the token.
func (h *host) tokenStatus(id uint32) (status byte, blocks uint64, token []byte) {
	h.t.Helper()
	b := h.good(copyIn(0x07, id, 4096))
	if int(binary.BigEndian.Uint32(b))+4 != len(b) || b[15] != 0xf1 {
		h.t.Fatalf("token information % x", b[:32])
	}
	return b[5], binary.BigEndian.Uint64(b[16:]), tokenOf(b)
}

// A token carries the data of its ranges, in their order, to any unit, for
// whoever has it.
func TestToken(t *testing.T) {
	for _, caps := range []backing.Caps{0, backing.CapsAll} {
		a, b, c := filledDisk(1, 1<<20, caps), newMemDisk(1<<20, caps), newMemDisk(1<<20, caps)
		r := newCopyRig(t, a, b)
		r.add(c, func(u *scsi.UnitConfig) { u.BlockSize = 4096 })
		h, other := r.login("a"), r.login("b")

		h.expect("", h.populate(5, populateList(30, ranges(10, 6, 0, 0, 100, 4))), "good")
		other.expect("another's", other.do(copyIn(0x07, 5, 4096)), "5/24/00")
		if b := h.good(copyIn(0x07, 5, 100)); len(b) != 100 {
			t.Errorf("%d bytes for an allocation length of 100", len(b))
		}
		status, blocks, token := h.tokenStatus(5)
		if status != 0x01 || blocks != 10 || len(token) != 512 {
			t.Fatalf("status %d, %d blocks, a token of %d bytes", status, blocks, len(token))
		}
		be := binary.BigEndian
		if be.Uint32(token) != 0x00800001 || be.Uint16(token[6:]) != 504 || be.Uint64(token[56:]) != 10*512 ||
			!bytes.Equal(token[24:40], naaOf(0)) || be.Uint32(token[96:]) != 512 {
			t.Errorf("token % x", token[:128])
		}
		if _, _, again := h.tokenStatus(5); again != nil {
			t.Error("the token is told twice")
		}
		data := slices.Concat(a.data[10*512:16*512], a.data[100*512:104*512])

		other.on(1).expect("whole", other.on(1).useToken(1, useList(token, 0, ranges(0, 3, 50, 7))), "good")
		if !bytes.Equal(b.data[:3*512], data[:3*512]) || !bytes.Equal(b.data[50*512:57*512], data[3*512:]) {
			t.Error("LUN 1 does not hold the data")
		}
		if s, n, _ := other.on(1).tokenStatus(1); s != 0x01 || n != 10 {
			t.Errorf("status %d, %d blocks", s, n)
		}
		h.on(1).expect("a part", h.on(1).useToken(1, useList(token, 4, ranges(200, 4))), "good")
		if !bytes.Equal(b.data[200*512:204*512], data[4*512:8*512]) {
			t.Error("not the part from block 4 on")
		}
		// In larger blocks the rest of the last one is zeroes.
		copy(c.data, pattern(7, 8192))
		h.on(2).expect("larger blocks", h.on(2).useToken(1, useList(token, 0, ranges(0, 2))), "good")
		if !bytes.Equal(c.data[:8192], append(bytes.Clone(data), make([]byte, 8192-len(data))...)) {
			t.Error("LUN 2 does not hold the data and zeroes")
		}
		// On the unit itself, beside the token's blocks.
		h.expect("same unit", h.useToken(1, useList(token, 0, ranges(300, 10))), "good")
		if !bytes.Equal(a.data[300*512:310*512], data) {
			t.Error("LUN 0 does not hold the data")
		}
		if n := a.count("CopyRange"); (n > 0) != (caps == backing.CapsAll) {
			t.Errorf("the store copied %d times by itself", n)
		}
		// More than there is: what there is, and where it ended.
		p := h.on(1).useToken(9, useList(token, 8, ranges(400, 5)))
		h.expect("underrun", p, "a/0d/04")
		if n := be.Uint32(p.Sense[3:]); n != 2 || p.Sense[0]&0x80 == 0 {
			t.Errorf("INFORMATION %d", n)
		}
		if s, n, _ := h.on(1).tokenStatus(9); s != 0x03 || n != 2 {
			t.Errorf("status %d, %d blocks", s, n)
		}
		h.expect("beyond its end", h.on(1).useToken(9, useList(token, 10, ranges(0, 1))), "5/26/00")
		r.close()
	}
}

// A token stands for the data of the moment it was made: when a block of it is
// changed, in whichever way, it is cancelled. Changes elsewhere do not matter.
func TestTokenIsCancelledByChanges(t *testing.T) {
	zeroes := make([]byte, 4*512)
	for _, c := range []struct {
		name   string
		change func(r *copyRig, h *host) *pending
		want   string
	}{
		{"write before", func(_ *copyRig, h *host) *pending { return h.do(write10(8, 2), zeroes[:1024]...) }, "good"},
		{"write between", func(_ *copyRig, h *host) *pending { return h.do(write10(14, 2), zeroes[:1024]...) }, "good"},
		{"write after", func(_ *copyRig, h *host) *pending { return h.do(write10(24, 1), zeroes[:512]...) }, "good"},
		{"read", func(_ *copyRig, h *host) *pending { return h.do(read10(0, 100)) }, "good"},
		{"first block", func(_ *copyRig, h *host) *pending { return h.do(write10(9, 2), zeroes[:1024]...) }, "5/23/08"},
		{"last block", func(_ *copyRig, h *host) *pending { return h.do(write10(23, 1), zeroes[:512]...) }, "5/23/08"},
		{"another host", func(r *copyRig, _ *host) *pending { return r.login("b").do(write10(11, 1), zeroes[:512]...) }, "5/23/08"},
		{"UNMAP", func(_ *copyRig, h *host) *pending {
			p := unmapParams([2]uint64{0, 11})
			return h.do(unmapCDB(len(p)), p...)
		}, "5/23/08"},
		{"UNMAP elsewhere", func(_ *copyRig, h *host) *pending {
			p := unmapParams([2]uint64{0, 10})
			return h.do(unmapCDB(len(p)), p...)
		}, "good"},
		{"WRITE SAME", func(_ *copyRig, h *host) *pending { return h.do(cdbOf(0x93, 0, 0, 11), zeroes[:512]...) }, "5/23/08"},
		{"COMPARE AND WRITE", func(_ *copyRig, h *host) *pending {
			return h.do(cawCDB(0, 12, 1), slices.Concat(pattern(1, 1<<20)[12*512:13*512], zeroes[:512])...)
		}, "5/23/08"},
		{"a copy", func(_ *copyRig, h *host) *pending {
			return h.copy(copyList(1, nil, [][]byte{b2b(ownUnit, ownUnit, 1, 0, 20)}))
		}, "5/23/08"},
		{"a token", func(_ *copyRig, h *host) *pending {
			return h.useToken(1, useList(zeroToken(), 0, ranges(20, 1)))
		}, "5/23/08"},
		{"a new size", func(r *copyRig, h *host) *pending { r.units[0].Resized(); return h.do(read10(0, 1)) }, "good"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newCopyRig(t, filledDisk(1, 1<<20, backing.CapsAll), newMemDisk(1<<20, 0))
			defer r.close()
			h := r.login("a")
			token := h.token(10, 4, 20, 4)
			h.expect("the change", c.change(r, h), "good")
			h.expect("", h.on(1).useToken(2, useList(token, 0, ranges(0, 8))), c.want)
		})
	}
}

func zeroToken() []byte {
	k := make([]byte, 512)
	copy(k, []byte{0xff, 0xff, 0, 1, 0, 0, 0x01, 0xf8})
	return k
}

// Writes that have begun when a token is made are part of it; those that begin
// afterwards cancel it, also when they were sent before.
func TestTokenAndWritesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newGatedStore(1 << 20)
		r := newCopyRig(t, a, newGatedStore(1<<20))
		h := r.login("a")
		release := a.hold(10 * 512)
		w := h.start(scsi.Simple, write10(10, 1), block(5))
		synctest.Wait()
		p := h.startPopulate(1, populateList(0, ranges(8, 8)))
		synctest.Wait()
		if s, _, k := h.tokenStatus(1); p.finished() || s != 0x11 || k != nil {
			t.Errorf("finished %v, status %#x with a write under way", p.finished(), s)
		}
		release()
		<-w.done
		<-p.done
		_, _, token := h.tokenStatus(1)
		h.expect("", h.on(1).useToken(2, useList(token, 0, ranges(0, 8))), "good")
		if b := h.on(1).good(read10(2, 1)); b[0] != 5 {
			t.Error("the token does not have what was being written")
		}
		r.close()
	})
}

// A token populated past an ORDERED task, by HEAD OF QUEUE, does not see the
// write that waits for that task, and is cancelled by it.
func TestTokenAndWritesThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newGatedStore(1 << 20)
		r := newCopyRig(t, a, newGatedStore(1<<20))
		h := r.login("a")
		release := a.hold(100 * 512)
		ordered := h.start(scsi.Ordered, read10(100, 1), nil)
		waiting := h.start(scsi.Simple, write10(10, 1), block(6))
		synctest.Wait()
		list := populateList(0, ranges(8, 8))
		p := h.start(scsi.HeadOfQueue, copyOut(0x10, 1, len(list)), list)
		<-p.done
		h.expect("", p, "good")
		info := h.start(scsi.HeadOfQueue, copyIn(0x07, 1, 4096), nil)
		<-info.done
		token := tokenOf(info.In)
		h.expect("before the write", h.on(1).useToken(2, useList(token, 0, ranges(0, 8))), "good")
		release()
		<-ordered.done
		<-waiting.done
		h.expect("", waiting, "good")
		h.expect("after the write", h.on(1).useToken(2, useList(token, 0, ranges(0, 8))), "5/23/08")
		r.close()
	})
}

// A change while the token is being used stops the use, which says so: the blocks
// after it are not of the moment the token was made.
func TestTokenCancelledWhileInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newGatedStore(8<<20), newGatedStore(8<<20)
		r := newCopyRig(t, a, b)
		h := r.login("a")
		token := h.token(0, 16384)
		release := a.hold(3 << 20)
		list := useList(token, 0, ranges(0, 16384))
		p := h.on(1).start(scsi.Simple, copyOut(0x11, 1, len(list)), list)
		synctest.Wait()
		h.good(write10(16000, 1), block(5)...)
		release()
		<-p.done
		h.expect("", p, "5/23/08")
		if s, n, _ := h.on(1).tokenStatus(1); s != 0x03 || n != 3<<11 {
			t.Errorf("status %d, %d blocks", s, n)
		}
		if b.data[16000*512] != 0 {
			t.Error("the new data has been copied")
		}
		r.close()
	})
}

// Tokens end by not being used, by age, when asked to and with their unit.
func TestTokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newCopyRig(t, filledDisk(1, 1<<20, 0), newMemDisk(1<<20, 0))
		h := r.login("a")
		use := func(k []byte) *pending { return h.on(1).useToken(2, useList(k, 0, ranges(0, 1))) }
		token := h.token(0, 8)
		time.Sleep(59 * time.Second)
		h.expect("in time", use(token), "good")
		time.Sleep(59 * time.Second)
		h.expect("in time again", use(token), "good")
		time.Sleep(61 * time.Second)
		h.expect("not used", use(token), "5/23/07")

		h.expect("", h.populate(1, populateList(600, ranges(0, 8))), "good")
		_, _, token = h.tokenStatus(1)
		for range 6 {
			time.Sleep(599 * time.Second)
			h.expect("used", use(token), "good")
		}
		time.Sleep(10 * time.Second)
		h.expect("too old", use(token), "5/23/07")

		token = h.token(0, 8)
		list := useList(token, 0, ranges(0, 1))
		list[2] = 0x02 // DEL_TKN
		h.expect("", h.on(1).useToken(2, list), "good")
		h.expect("deleted", use(token), "5/23/09")

		token = h.token(0, 8)
		if err := r.units[0].Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.expect("its unit is gone", use(token), "5/23/04")
		h.expect("no new one", h.populate(1, populateList(0, ranges(0, 8))), "5/25/00")
		r.close()
	})
}

// A unit keeps no more than a bounded number of tokens; the oldest goes first.
func TestTooManyTokens(t *testing.T) {
	r := newCopyRig(t, filledDisk(1, 1<<20, 0), newMemDisk(1<<20, 0))
	defer r.close()
	h := r.login("a")
	var tokens [][]byte
	for i := range 65 {
		tokens = append(tokens, h.token(uint64(i), 1))
	}
	use := func(k []byte) *pending { return h.on(1).useToken(2, useList(k, 0, ranges(0, 1))) }
	h.expect("the oldest", use(tokens[0]), "5/23/08")
	h.expect("the second", use(tokens[1]), "good")
	h.expect("the newest", use(tokens[64]), "good")
}

// Without the bytes of a token nobody reaches its data.
func TestForgedTokens(t *testing.T) {
	r := newCopyRig(t, filledDisk(1, 1<<20, 0), newMemDisk(1<<20, 0))
	defer r.close()
	h := r.login("a")
	token := h.token(0, 8)
	if other := h.token(0, 8); bytes.Equal(other[8:16], token[8:16]) || bytes.Equal(other[300:], token[300:]) {
		t.Error("two tokens are alike")
	}
	for _, c := range []struct {
		name string
		at   int
		want string
	}{
		{"type", 3, "5/23/01"}, {"length", 7, "5/23/0a"}, {"identifier", 8, "5/23/04"},
		{"creator", 30, "5/23/05"}, {"size", 63, "5/23/05"}, {"secret", 256, "5/23/05"}, {"its end", 511, "5/23/05"},
	} {
		forged := bytes.Clone(token)
		forged[c.at] ^= 1
		h.expect(c.name, h.on(1).useToken(2, useList(forged, 0, ranges(0, 1))), c.want)
	}
	h.expect("nothing", h.on(1).useToken(2, useList(nil, 0, ranges(0, 1))), "5/23/0a")
	h.expect("the token still is good", h.on(1).useToken(2, useList(token, 0, ranges(0, 1))), "good")
}

// Reservations and write protection hold for tokens: on the destination for who
// uses it, on the source for who made it.
func TestTokensObeyTheUnits(t *testing.T) {
	r := newCopyRig(t, filledDisk(1, 1<<20, 0), newMemDisk(1<<20, 0))
	defer r.close()
	h, other := r.login("a"), r.login("b")
	token := h.token(0, 8)
	other.expect("REGISTER", other.prOut(0, 0, 0, 5, 0), "good")
	other.expect("RESERVE", other.prOut(1, 0x03, 5, 0, 0), "good")
	p := h.on(1).useToken(2, useList(token, 0, ranges(0, 1)))
	h.expect("source reserved", p, "a/0d/01")
	if p.forwarded() != "conflict" {
		t.Errorf("forwarded %q", p.forwarded())
	}
	h.expect("populate", h.populate(1, populateList(0, ranges(0, 8))), "conflict")
	other.expect("RELEASE", other.prOut(2, 0x03, 5, 0, 0), "good")
	if err := r.units[1].Update(func(c *scsi.UnitConfig) { c.ReadOnly = true }); err != nil {
		t.Fatal(err)
	}
	h.expect("read-only", h.on(1).useToken(2, useList(token, 0, ranges(0, 1))), "7/27/00")
	h.on(1).token(0, 8) // a read-only unit may be copied from
}

// The token that stands for zeroes needs nobody to make it.
func TestZeroToken(t *testing.T) {
	for _, caps := range []backing.Caps{0, backing.CapsAll} {
		m := filledDisk(1, 18<<20, caps)
		r := newCopyRig(t, m)
		h := r.login("a")
		want := m.contents()
		clear(want[512 : 34001*512])
		clear(want[35000*512 : 35003*512])
		h.expect("", h.useToken(1, useList(zeroToken(), 1<<40, ranges(1, 34000, 35000, 3))), "good")
		if !bytes.Equal(m.contents(), want) {
			t.Errorf("caps %x: wrong content", caps)
		}
		if s, n, _ := h.tokenStatus(1); s != 0x01 || n != 34003 {
			t.Errorf("status %d, %d blocks", s, n)
		}
		r.close()
	}
}

func TestTokenListRefusals(t *testing.T) {
	a, b := filledDisk(1, 1<<20, 0), newMemDisk(1<<20, 0)
	r := newCopyRig(t, a, b)
	defer r.close()
	h := r.login("a")
	token := h.token(0, 8)
	one := ranges(0, 4)
	set := func(l []byte, at int, b ...byte) []byte { copy(l[at:], b); return l }
	for _, c := range []struct {
		name  string
		sa    byte
		list  []byte
		want  string
		field string
	}{
		{"populate: no header", 0x10, populateList(0, nil)[:8], "5/1a/00", ""},
		{"populate: no ranges", 0x10, populateList(0, nil), "5/26/00", "list 0"},
		{"populate: range list length", 0x10, set(populateList(0, one), 14, 0, 15), "5/26/00", "list 14"},
		{"populate: nothing", 0x10, populateList(0, ranges(0, 0)), "5/0d/04", ""},
		{"populate: out of range", 0x10, populateList(0, ranges(0, 1, 2047, 2)), "5/21/00", ""},
		{"populate: far out of range", 0x10, populateList(0, ranges(1<<64-1, 2)), "5/21/00", ""},
		{"populate: overlap", 0x10, populateList(0, ranges(5, 4, 0, 6)), "5/26/00", "list 14"},
		{"populate: unknown type", 0x10, set(populateList(0, one), 2, 0x02, 0, 0, 0, 0, 0, 0, 0x80, 0, 2), "5/26/00", "list 8"},
		{"populate: access upon reference", 0x10, set(populateList(0, one), 2, 0x02, 0, 0, 0, 0, 0, 0, 0x01, 0, 0), "5/26/00", "list 8"},
		{"write: no header", 0x11, useList(token, 0, nil)[:500], "5/1a/00", ""},
		{"write: no ranges", 0x11, useList(token, 0, nil), "5/26/00", "list 0"},
		{"write: out of range", 0x11, useList(token, 0, ranges(2048, 1)), "5/21/00", ""},
		{"write: overlap", 0x11, useList(token, 0, ranges(0, 4, 3, 1)), "5/26/00", "list 534"},
		{"write: too much", 0x11, useList(token, 0, ranges(0, 1, 0, 1<<32-1)), "5/26/00", "list 560"},
		{"write: beyond the token", 0x11, useList(token, 8, one), "5/26/00", "list 8"},
		{"write: far beyond the token", 0x11, useList(token, 1<<64-1, one), "5/26/00", "list 8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := h.on(1).do(copyOut(c.sa, 1, len(c.list)), c.list...)
			h.expect("", p, c.want)
			if f := p.field(); c.field != f {
				t.Errorf("points at %q, want %q", f, c.field)
			}
			if b.count("WriteAt") != 0 {
				t.Error("something was written")
			}
		})
	}
	for _, kind := range [][]byte{{0, 0x80, 0, 1}, {0, 0x80, 0xff, 0xff}} {
		l := set(populateList(0, one), 8, kind...)
		l[2] = 0x02 // RTV
		h.expect("", h.populate(1, l), "good")
	}
	h.expect("no list", h.do(copyOut(0x10, 1, 0)), "good")
	h.expect("no list", h.do(copyOut(0x11, 1, 0)), "good")
}
