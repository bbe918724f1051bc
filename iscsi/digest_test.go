package iscsi

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The examples of RFC 7143 appendix A.4: bytes as they stand on the wire.
func TestDigestExamples(t *testing.T) {
	up, down := make([]byte, 32), make([]byte, 32)
	for i := range up {
		up[i], down[i] = byte(i), byte(31-i)
	}
	read, err := hex.DecodeString("01c00000" + "00000000" + "00000000" + "00000000" +
		"14000000" + "00000400" + "00000014" + "00000018" +
		"28000000" + "00000000" + "02000000" + "00000000")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		wire string
	}{
		{"32 bytes of zeroes", make([]byte, 32), "aa36918a"},
		{"32 bytes of ones", bytes.Repeat([]byte{0xff}, 32), "43aba862"},
		{"32 bytes going up", up, "4e79dd46"},
		{"32 bytes going down", down, "5cdb3f11"},
		{"a READ command", read, "563a96d9"},
	} {
		crc := Digest(c.data)
		wire := AppendDigest(nil, crc)
		if hex.EncodeToString(wire) != c.wire {
			t.Errorf("%s: %x, want %s", c.name, wire, c.wire)
		}
		if WireDigest(wire) != crc {
			t.Errorf("%s: read back as %x", c.name, WireDigest(wire))
		}
		if got := Digest(c.data[:7], nil, c.data[7:]); got != crc {
			t.Errorf("%s: %x in two parts, %x in one", c.name, got, crc)
		}
		if got := UpdateDigest(UpdateDigest(0, c.data[:9]), c.data[9:]); got != crc {
			t.Errorf("%s: %x in two steps, %x in one", c.name, got, crc)
		}
		put := make([]byte, DigestLen)
		if PutDigest(put, crc); !bytes.Equal(put, wire) {
			t.Errorf("%s: PutDigest %x", c.name, put)
		}
	}
}

func TestDigestDoesNotAllocate(t *testing.T) {
	bhs, data := make([]byte, BHSLen), make([]byte, 4096)
	var wire [DigestLen]byte
	if n := testing.AllocsPerRun(100, func() { PutDigest(wire[:], Digest(bhs, data)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
