package iscsi

import (
	"errors"
	"reflect"
	"testing"
)

func TestFullFeatureNegotiation(t *testing.T) {
	offer := DefaultOffer()
	offer.MaxXmitCap = 131072
	for _, c := range []struct {
		name     string
		in, want []KV
		xmit     int
		err      error
	}{
		{name: "nothing", xmit: 8192},
		{name: "declared", in: []KV{{"MaxRecvDataSegmentLength", "65536"}}, xmit: 65536},
		{name: "capped", in: []KV{{"MaxRecvDataSegmentLength", "1048576"}}, xmit: 131072},
		{name: "out of range", in: []KV{{"MaxRecvDataSegmentLength", "511"}},
			want: []KV{{"MaxRecvDataSegmentLength", "Reject"}}, xmit: 8192},
		{name: "the rest is fixed", in: []KV{{"MaxBurstLength", "512"}, {"HeaderDigest", "CRC32C"}, {"InitiatorName", "x"}, {"SendTargets", ""}},
			want: []KV{{"MaxBurstLength", "Reject"}, {"HeaderDigest", "Reject"}, {"InitiatorName", "Reject"}, {"SendTargets", "Reject"}}, xmit: 8192},
		{name: "unknown", in: []KV{{"X-a", "1"}, {"Colour", "blue"}, {"X-b", "NotUnderstood"}},
			want: []KV{{"X-a", "NotUnderstood"}, {"Colour", "NotUnderstood"}}, xmit: 8192},
		{name: "an alias is told, not asked", in: []KV{{"InitiatorAlias", "host"}}, xmit: 8192},
		{name: "twice", in: []KV{{"MaxRecvDataSegmentLength", "65536"}, {"MaxRecvDataSegmentLength", "4096"}}, xmit: 8192, err: ErrTextDuplicate},
		{name: "security", in: []KV{{"MaxRecvDataSegmentLength", "65536"}, {"CHAP_A", "5"}}, xmit: 8192, err: ErrNegotiation},
	} {
		p := DefaultParams()
		got, err := NegotiateFullFeature(&p, &offer, c.in)
		if !errors.Is(err, c.err) || !reflect.DeepEqual(got, c.want) || p.MaxXmitDataSegment != c.xmit {
			t.Errorf("%s: %v, %v, segments of %d", c.name, got, err, p.MaxXmitDataSegment)
		}
		want := DefaultParams()
		want.MaxXmitDataSegment = c.xmit
		if p != want {
			t.Errorf("%s changed %+v", c.name, p)
		}
	}
}

// CHAP responses, from an implementation other than this one.
func TestCHAPResponse(t *testing.T) {
	for _, c := range []struct {
		alg  CHAPAlgorithm
		want string
	}{
		{CHAPMD5, "8cf0cc69c16fd9c218223571876c437a"},
		{CHAPSHA1, "49ac44c775a5f09e186bc1f6ac0855e277c25f72"},
		{CHAPSHA256, "2eeae7ac27296b190f8cf9a6f146d609fac10b45132684231e7c730af1856113"},
		{CHAPSHA3_256, "f0a8810469ec8939fdbbfe79acf090a7e36c54d62e1f5e4630ea74aec5e6207e"},
	} {
		got := EncodeBinary(CHAPResponse(c.alg, 0x2a, "a secret, 16 byt", []byte("\x00\x01\x02\x03challenge\xff")), HexBinary)
		if got != "0x"+c.want {
			t.Errorf("%s: %s, want %s", c.alg, got, c.want)
		}
	}
	if CHAPResponse(4, 0, "", nil) != nil {
		t.Error("an algorithm that is none has a response")
	}
}
