package iscsi

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestParseText(t *testing.T) {
	long := strings.Repeat("v", 256)
	for _, c := range []struct {
		name, in string
		limit    int
		want     []KV
		err      error
	}{
		{name: "nothing", in: ""},
		{name: "only padding", in: "\x00\x00"},
		{name: "pairs", in: "A=1\x00B=\x00C=x=y\x00", want: []KV{{"A", "1"}, {"B", ""}, {"C", "x=y"}}},
		{name: "lower case key", in: "iSCSIProtocolLevel=1\x00", want: []KV{{"iSCSIProtocolLevel", "1"}}},
		{name: "UTF-8 value", in: "InitiatorAlias=Bücher, 2. Stock\x00", want: []KV{{"InitiatorAlias", "Bücher, 2. Stock"}}},
		{name: "records repeat", in: "TargetName=a\x00TargetAddress=x\x00TargetAddress=y\x00TargetName=b\x00",
			want: []KV{{"TargetName", "a"}, {"TargetAddress", "x"}, {"TargetAddress", "y"}, {"TargetName", "b"}}},
		{name: "repeated", in: "A=1\x00B=1\x00A=1\x00", err: ErrTextDuplicate},
		{name: "not closed", in: "A=1\x00B=2", err: ErrTextSyntax},
		{name: "no equals", in: "A\x00", err: ErrTextSyntax},
		{name: "no key", in: "=A\x00", err: ErrTextSyntax},
		{name: "digit first", in: "1A=2\x00", err: ErrTextSyntax},
		{name: "blank in key", in: "A B=2\x00", err: ErrTextSyntax},
		{name: "key of 63", in: strings.Repeat("K", 63) + "=1\x00", want: []KV{{strings.Repeat("K", 63), "1"}}},
		{name: "key of 64", in: strings.Repeat("K", 64) + "=1\x00", err: ErrTextSyntax},
		{name: "value of 255", in: "A=" + long[1:] + "\x00", want: []KV{{"A", long[1:]}}},
		{name: "value of 256", in: "A=" + long + "\x00", err: ErrTextTooLong},
		{name: "long list", in: "A=" + long[1:] + "," + long[1:] + "\x00", want: []KV{{"A", long[1:] + "," + long[1:]}}},
		{name: "long element", in: "A=x," + long + "\x00", err: ErrTextTooLong},
		{name: "binary of 256", in: "CHAP_C=" + long + "\x00", want: []KV{{"CHAP_C", long}}},
		{name: "name of 256", in: "CHAP_N=" + long + "\x00", err: ErrTextTooLong},
		{name: "binary of 8193", in: "CHAP_C=" + strings.Repeat("v", 8193) + "\x00", err: ErrTextTooLong},
		{name: "limit", in: "A=123\x00", limit: 6, want: []KV{{"A", "123"}}},
		{name: "above limit", in: "A=1234\x00", limit: 6, err: ErrTextTooLong},
	} {
		got, err := ParseText([]byte(c.in), c.limit)
		if !errors.Is(err, c.err) || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v; want %v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

func TestBinaryValues(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []byte
	}{
		{"0x00ff", []byte{0, 0xff}},
		{"0XaBcD", []byte{0xab, 0xcd}},
		{"0xf", []byte{0xf}},
		{"0x123", []byte{1, 0x23}},
		{"0bAP8=", []byte{0, 0xff}},
		{"0bAP8", []byte{0, 0xff}},
		{"0BAAEC", []byte{0, 1, 2}},
		{in: ""}, {in: "0x"}, {in: "0b"}, {in: "0b===="}, {in: "1234"}, {in: "0xfg"}, {in: "0b*"}, {in: "0bAP\n8="},
		{in: "0x" + strings.Repeat("0", 8192)},
	} {
		got, err := DecodeBinary(c.in)
		if !bytes.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("DecodeBinary(%.40q) = % x, %v; want % x", c.in, got, err, c.want)
		}
	}
	for n := 1; n < 40; n++ {
		b := bytes.Repeat([]byte{0xa5}, n)
		for _, enc := range []BinaryEncoding{HexBinary, Base64Binary} {
			if got, err := DecodeBinary(EncodeBinary(b, enc)); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes in encoding %d come back as % x, %v", n, enc, got, err)
			}
		}
	}
}

// What TextReply cuts TextGather puts together, in pieces no longer than allowed.
func TestTextInPieces(t *testing.T) {
	for _, n := range []int{0, 1, 511, 512, 513, 8192, 20000} {
		var want []KV
		var text []byte
		for len(text) < n {
			want = append(want, KV{fmt.Sprintf("X-%d", len(text)), "value"})
			text = AppendPairs(nil, want)
		}
		r := NewTextReply(text, 512)
		var g TextGather
		for pieces := 0; ; pieces++ {
			if pieces > len(text)/512+1 {
				t.Fatal("no end")
			}
			if !r.Pending() {
				t.Fatalf("%d bytes: nothing is pending before the last piece", n)
			}
			p, more := r.Next()
			if len(p) > 512 || more != r.Pending() {
				t.Fatalf("piece of %d bytes, more %v, pending %v", len(p), more, r.Pending())
			}
			kvs, done, err := g.Add(p, more)
			if err != nil || done == more || g.Open() != more {
				t.Fatalf("done %v with more %v, %v", done, more, err)
			}
			if done {
				if !reflect.DeepEqual(kvs, want) {
					t.Errorf("%d bytes came back different", n)
				}
				break
			}
		}
	}
	if new(TextReply).Pending() {
		t.Error("a reply without text is pending")
	}
}

func TestTextGatherIsBounded(t *testing.T) {
	g := TextGather{Limit: 1000}
	if _, _, err := g.Add(make([]byte, 1000), true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.Add([]byte{0}, false); !errors.Is(err, ErrTextTooLong) || g.Open() {
		t.Errorf("1001 bytes: %v, open %v", err, g.Open())
	}
}

func TestSendTargets(t *testing.T) {
	recs := []TargetRecord{
		{Name: "iqn.a", Portals: []string{"192.0.2.1:3260,1", "[2001:db8::1]:3260,1"}},
		{Name: "iqn.b"},
	}
	text := SendTargetsText(recs)
	if want := "TargetName=iqn.a\x00TargetAddress=192.0.2.1:3260,1\x00TargetAddress=[2001:db8::1]:3260,1\x00TargetName=iqn.b\x00"; string(text) != want {
		t.Errorf("%q", text)
	}
	kvs, err := ParseText(text, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseTargets(kvs); err != nil || !reflect.DeepEqual(got, recs) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := ParseTargets([]KV{{"TargetAddress", "x"}}); err == nil {
		t.Errorf("an address without a target gave %v", got)
	}
	if got, err := ParseTargets([]KV{{"TargetName", "a"}, {"TargetAlias", "b"}, {"X-c", "d"}}); err != nil || got[0].Alias != "b" {
		t.Errorf("%v, %v", got, err)
	}
	if SendTargetsText(nil) != nil {
		t.Error("no targets are not an empty text")
	}
}

func FuzzParseText(f *testing.F) {
	f.Add([]byte("A=1\x00B=\x00"))
	f.Add([]byte("\x00=\x00"))
	f.Add([]byte("CHAP_C=0x0011\x00CHAP_N=0xabc\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		kvs, err := ParseText(data, 0)
		if err != nil {
			return
		}
		again, err := ParseText(AppendPairs(nil, kvs), 0)
		if err != nil || !reflect.DeepEqual(again, kvs) {
			t.Errorf("%q became %q, %v", kvs, again, err)
		}
		for _, kv := range kvs {
			if b, err := DecodeBinary(kv.Value); err == nil && len(b) > len(kv.Value) {
				t.Errorf("%q decodes to %d bytes", kv, len(b))
			}
			if n, ok := parseNumber(kv.Value); ok && n < 0 {
				t.Errorf("%q is the number %d", kv, n)
			}
		}
	})
}
