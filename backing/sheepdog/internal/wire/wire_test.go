package wire

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.ReplaceAll(s, " ", ""), "\n", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// The bytes are written out from the offsets that the daemon's structures have,
// so that a mistake here is not made twice.
func TestRequestBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Request
		want string
	}{
		{"read", Request{Op: OpRead, ID: 7, Length: 4096, OID: DataOID(0xabcdef, 3), Offset: 0x10203},
			"02 02 0000 00000000 07000000 00100000  03000000efcdab00 0000000000000000 00 00 00 00 00000000 03020100 00000000"},
		{"cow", Request{Op: OpCreateAndWrite, Flags: FlagWrite | FlagCOW, ID: 0x01020304, Length: 512, OID: DataOID(2, 1), COWOID: DataOID(1, 1), Copies: 3, CopyPolicy: 0x22},
			"02 01 0300 00000000 04030201 00020000  0100000002000000 0100000001000000 03 22 00 00 00000000 00000000 00000000"},
		{"inode", Request{Op: OpRead, Length: RefreshSize, OID: InodeOID(1)},
			"02 02 0000 00000000 00000000 38124000  0000000001000080 0000000000000000 00000000 00000000 00000000 00000000"},
		{"new", Request{Op: OpNewVDI, Flags: FlagWrite, Length: 256, VDISize: 1 << 30, BaseVID: 5, Copies: 2, CopyPolicy: 0x11, BlockShift: 22, SnapID: 1},
			"02 11 0100 00000000 00000000 00010000  0000004000000000 05000000 02 11 00 16 01000000 00000000 0000000000000000"},
		{"lock", Request{Op: OpLockVDI, Flags: FlagWrite, Length: 512, SnapID: 9, LockType: LockShared},
			"02 12 0100 00000000 00000000 00020000  0000000000000000 00000000 00 00 00 00 09000000 01000000 0000000000000000"},
		{"states", Request{Op: OpVDIStates, Length: 1},
			"0a ab 0000 00000000 00000000 01000000  0000000000000000 0000000000000000 00000000 00000000 00000000 00000000"},
	} {
		var b [HeaderSize]byte
		c.r.Put(&b)
		if want := unhex(c.want); !bytes.Equal(b[:], want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, b, want)
		}
		back := ParseRequest(&b)
		back.Proto = 0
		if back != c.r {
			t.Errorf("%s: read back %+v, want %+v", c.name, back, c.r)
		}
	}
}

func TestResponseBytes(t *testing.T) {
	for _, c := range []struct {
		want string
		r    Response
	}{
		{"00 02 0000 05000000 07000000 00100000 1a000000 02 000000 0000000000000000 0000000000000000 00000000 00000000",
			Response{Op: OpRead, Epoch: 5, ID: 7, Length: 4096, Result: ReadOnly, Copies: 2}},
		{"00 14 0000 05000000 07000000 00000000 00000000 00000000 efcdab00 00000000 03 16 0000 00000000 00000000 00000000",
			Response{Op: OpGetVDIInfo, Epoch: 5, ID: 7, VID: 0xabcdef, Copies: 3, BlockShift: 22}},
		{"00 18 0000 00000000 01000000 00000000 00000000 02 22 16 00 0000000000000000 0000000000000000 00000000 00000000",
			Response{Op: OpClusterDefault, ID: 1, Copies: 2, CopyPolicy: 0x22, BlockShift: 22}},
	} {
		var b [HeaderSize]byte
		c.r.Put(&b)
		if want := unhex(c.want); !bytes.Equal(b[:], want) {
			t.Errorf("op %#x:\n got %x\nwant %x", c.r.Op, b, want)
		}
		if back := ParseResponse(&b); back != c.r {
			t.Errorf("read back %+v, want %+v", back, c.r)
		}
	}
}

func TestInodeBytes(t *testing.T) {
	n := Inode{Name: "disk", Tag: "t", CreateTime: 1, SnapCtime: 2, Size: 10 << 30, CopyPolicy: 0x11,
		Copies: 3, BlockShift: 22, SnapID: 4, VID: 0x123456, Parent: 0x123455}
	b := make([]byte, InodeHeaderSize)
	n.Put(b)
	for _, c := range []struct {
		off  int
		want string
	}{
		{0, "6469736b00"}, {256, "7400"}, {512, "0100000000000000 0200000000000000"}, {536, "0000008002000000"},
		{552, "11 00 03 16 04000000 56341200 55341200"},
	} {
		if want := unhex(c.want); !bytes.Equal(b[c.off:][:len(want)], want) {
			t.Errorf("at %d: %x, want %x", c.off, b[c.off:][:len(want)], want)
		}
	}
	if back, err := ParseInode(b); err != nil || back != n {
		t.Errorf("read back %+v, %v", back, err)
	}
	if n.Objects() != 2560 || n.ObjectSize() != 4<<20 || !n.Snapshot() {
		t.Errorf("%d objects of %d bytes, snapshot %v", n.Objects(), n.ObjectSize(), n.Snapshot())
	}
	if InodeSize != 12587576 || RefreshSize != 4198968 || IndexOffset(2) != 4672 {
		t.Error("inode has another layout")
	}
	for name, change := range map[string]func(*Inode){
		"shift too small": func(n *Inode) { n.BlockShift = 19 },
		"shift too large": func(n *Inode) { n.BlockShift = 32 },
		"too large":       func(n *Inode) { n.Size = 5 << 40 },
		"no id":           func(n *Inode) { n.VID = 0 },
		"id too large":    func(n *Inode) { n.VID = 1 << 24 },
	} {
		bad := n
		change(&bad)
		bad.Put(b)
		if _, err := ParseInode(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestStates(t *testing.T) {
	a, b := netip.MustParseAddrPort("127.0.0.1:7000"), netip.MustParseAddrPort("[2001:db8::1]:7001")
	states := []VDIState{{VID: 1, LockState: Unlocked}, {VID: 9, Snapshot: true, LockState: Locked, Owner: a}, {VID: 10, LockState: Locked, Owner: b}}
	p := PutVDIStates(states)
	// A record has its lock's state at 16 and its owner's address at 20.
	if got, want := p[VDIStateSize+16:][:22], unhex("02000000 000000000000000000000000 7f000001 581b"); !bytes.Equal(got, want) {
		t.Errorf("record %x, want %x", got, want)
	}
	for _, want := range states {
		if got, ok, err := FindVDIState(p, want.VID); got != want || !ok || err != nil {
			t.Errorf("VDI %d: %+v, %v, %v", want.VID, got, ok, err)
		}
	}
	if _, ok, err := FindVDIState(p, 2); ok || err != nil {
		t.Errorf("VDI 2: %v, %v", ok, err)
	}
	nodes, err := ParseNodes(PutNodes([]NodeID{a, b}))
	if err != nil || len(nodes) != 2 || nodes[0] != a || nodes[1] != b {
		t.Errorf("nodes %v, %v", nodes, err)
	}
}

func TestNames(t *testing.T) {
	name, tag, err := ParseNames(PutNames("disk", "today"))
	if name != "disk" || tag != "today" || err != nil {
		t.Errorf("%q, %q, %v", name, tag, err)
	}
	for _, s := range []string{strings.Repeat("x", 256), "a\x00b"} {
		if CheckName(s) == nil {
			t.Errorf("%q is a name", s)
		}
	}
	if HashVDI("") != 0x222325 {
		t.Errorf("hash of nothing %#x", HashVDI(""))
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(unhex("02 02 0000 00000000 07000000 00100000  03000000efcdab00 0000000000000000 00 00 00 00 00000000 03020100 00000000"))
	f.Add(unhex("02 11 0100 00000000 00000000 00010000  0000004000000000 05000000 02 11 00 16 01000000 00000000 0000000000000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		r := ParseRequest((*[HeaderSize]byte)(b))
		var out [HeaderSize]byte
		r.Put(&out)
		if r.Proto != 0 && ParseRequest(&out) != r {
			t.Errorf("%+v is read back as %+v", r, ParseRequest(&out))
		}
	})
}

func FuzzResponse(f *testing.F) {
	f.Add(unhex("00 02 0000 05000000 07000000 00100000 1a000000 02 000000 0000000000000000 0000000000000000 00000000"))
	f.Add(unhex("00 18 0000 00000000 01000000 00000000 00000000 02 22 16 00 0000000000000000 0000000000000000 00000000 00000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		r := ParseResponse((*[HeaderSize]byte)(b))
		var out [HeaderSize]byte
		r.Put(&out)
		if ParseResponse(&out) != r {
			t.Errorf("%+v is read back as %+v", r, ParseResponse(&out))
		}
		_ = r.Result.Error()
	})
}

func FuzzInode(f *testing.F) {
	b := make([]byte, InodeHeaderSize)
	(&Inode{Name: "disk", Size: 1 << 30, Copies: 2, BlockShift: 22, SnapID: 1, VID: 5}).Put(b)
	f.Add(b[:600])
	f.Fuzz(func(t *testing.T, head []byte) {
		b := make([]byte, InodeHeaderSize)
		copy(b, head)
		n, err := ParseInode(b)
		if err != nil {
			return
		}
		if n.StorePolicy == 0 && n.Objects() > MaxObjects {
			t.Errorf("%d objects", n.Objects())
		}
		out := make([]byte, InodeHeaderSize)
		n.Put(out)
		if back, err := ParseInode(out); err != nil || back != n {
			t.Errorf("%+v is read back as %+v, %v", n, back, err)
		}
	})
}

func FuzzStates(f *testing.F) {
	f.Add(PutVDIStates([]VDIState{{VID: 1, LockState: Locked, Owner: netip.MustParseAddrPort("10.0.0.1:7000")}}), uint32(1))
	f.Add(PutNodes([]NodeID{netip.MustParseAddrPort("10.0.0.1:7000")}), uint32(1))
	f.Add(PutNames("a", "b"), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, vid uint32) {
		if nodes, err := ParseNodes(b); err == nil && len(nodes) != len(b)/NodeSize {
			t.Errorf("%d nodes in %d bytes", len(nodes), len(b))
		}
		if s, ok, err := FindVDIState(b, vid); ok && (err != nil || s.VID != vid) {
			t.Errorf("VDI %d: %+v, %v", vid, s, err)
		}
		if name, tag, err := ParseNames(b); err == nil && (strings.IndexByte(name, 0) >= 0 || strings.IndexByte(tag, 0) >= 0) {
			t.Errorf("names %q, %q", name, tag)
		}
	})
}
