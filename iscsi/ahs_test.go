package iscsi

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func TestCommandAHS(t *testing.T) {
	for _, c := range []struct {
		name, in string
		ext      string
		bidi     bool
		n        uint32
		bad      bool
	}{
		{name: "none"},
		{name: "extended CDB", in: "0011 0100 00112233445566778899aabbccddeeff", ext: "00112233445566778899aabbccddeeff"},
		{name: "extended CDB with padding", in: "0006 0100 1122334455 000000", ext: "1122334455"},
		{name: "bidirectional", in: "0005 0200 00010000", bidi: true, n: 65536},
		{name: "both", in: "0005 0100 11223344 0005 0200 00000008", ext: "11223344", bidi: true, n: 8},
		{name: "reserved bits of the type", in: "0005 c200 00000008", bidi: true, n: 8},
		{name: "three bytes", in: "000501", bad: true},
		{name: "length zero", in: "00000100", bad: true},
		{name: "only the reserved byte", in: "00010100", bad: true},
		{name: "length beyond the end", in: "0006 0100 11223344", bad: true},
		{name: "length far beyond the end", in: "ffff 0100 11223344", bad: true},
		{name: "type unknown", in: "0005 0300 11223344", bad: true},
		{name: "type twice", in: "0005 0200 00000008 0005 0200 00000008", bad: true},
		{name: "bidirectional of 3 bytes", in: "0004 0200 00010000", bad: true},
	} {
		b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(c.in), []byte(" "), nil)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseCommandAHS(b)
		if c.bad {
			if !errors.Is(err, ErrAHS) {
				t.Errorf("%s: %+v, %v", c.name, got, err)
			}
			continue
		}
		if err != nil || hex.EncodeToString(got.ExtendedCDB) != c.ext || got.Bidi != c.bidi || got.BidiReadLen != c.n {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
	if _, err := ParseCommandAHS(make([]byte, MaxAHSLen+4)); !errors.Is(err, ErrAHS) {
		t.Error("more than a BHS can announce was taken")
	}
}

func TestAppendAHS(t *testing.T) {
	for n := 1; n <= MaxCDBLen-16; n++ {
		rest := bytes.Repeat([]byte{0x5a}, n)
		b := AppendBidiRead(AppendExtendedCDB(nil, rest), uint32(n))
		got, err := ParseCommandAHS(b)
		if err != nil || len(b)%4 != 0 || !bytes.Equal(got.ExtendedCDB, rest) || got.BidiReadLen != uint32(n) {
			t.Fatalf("CDB of 16+%d bytes: %+v, %v", n, got, err)
		}
	}
	if _, err := ParseCommandAHS(AppendExtendedCDB(nil, make([]byte, MaxCDBLen-15))); err == nil {
		t.Error("a CDB of 261 bytes was taken")
	}
}

func FuzzAHS(f *testing.F) {
	f.Add([]byte{0, 5, 2, 0, 0, 0, 0, 8})
	f.Add(AppendExtendedCDB(nil, make([]byte, 16)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest := b; len(rest) > 0; {
			a, r, err := NextAHS(rest)
			if err != nil {
				break
			}
			if len(a.Data) == 0 || len(r) >= len(rest) {
				t.Fatalf("%+v, %d of %d bytes left", a, len(r), len(rest))
			}
			rest = r
		}
		c, err := ParseCommandAHS(b)
		if err == nil && 16+len(c.ExtendedCDB) > MaxCDBLen {
			t.Errorf("%+v", c)
		}
	})
}

func FuzzBHS(f *testing.F) {
	f.Add(make([]byte, BHSLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h BHS
		copy(h[:], b)
		if n := h.DataLen(); n < 0 || n >= 1<<24 || (n+PadLen(n))%4 != 0 {
			t.Errorf("data length %d, padding %d", n, PadLen(n))
		}
		if n := h.AHSLen(); n < 0 || n > MaxAHSLen {
			t.Errorf("AHS length %d", n)
		}
		// Writing what was read changes nothing.
		g := h
		g.SetOpcode(h.Opcode(), h.Immediate())
		g[0] |= h[0] & 0x80
		g.SetFlags(h.Flags())
		g.SetISID(h.ISID())
		g.SetTSIH(h.TSIH())
		g.SetITT(h.ITT())
		g.SetTTT(h.TTT())
		g.SetCID(h.CID())
		g.SetCmdSN(h.CmdSN())
		g.SetExpStatSN(h.ExpStatSN())
		g.SetMaxCmdSN(h.MaxCmdSN())
		g.SetLoginStatus(h.StatusClass(), h.StatusDetail())
		g.SetDataSN(h.DataSN())
		g.SetBufferOffset(h.BufferOffset())
		g.SetResidual(h.Residual())
		if g != h {
			t.Errorf("% x\nbecame % x", h, g)
		}
	})
}
