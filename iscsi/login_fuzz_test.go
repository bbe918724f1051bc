package iscsi

import (
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzTargetLogin sends a sequence of PDUs: each is a BHS, of which the data
// length is made true, and as much data as it says.
func FuzzTargetLogin(f *testing.F) {
	request := func(b []byte, csg, nsg, flags byte, pairs ...string) []byte {
		var text []byte
		for i := 0; i < len(pairs); i += 2 {
			text = AppendText(text, pairs[i], pairs[i+1])
		}
		var h BHS
		h.SetOpcode(OpLoginReq, true)
		h.SetFlags(flags | csg<<2 | nsg)
		h.SetISID([6]byte{1})
		h.SetDataLen(len(text))
		return append(append(b, h[:]...), text...)
	}
	f.Add(request(nil, 1, 3, FlagTransit, "InitiatorName", "a", "TargetName", "b"), false)
	seed := request(nil, 0, 0, 0, "InitiatorName", "a", "TargetName", "b", "AuthMethod", "CHAP")
	seed = request(seed, 0, 0, 0, "CHAP_A", "5")
	seed = request(seed, 0, 1, FlagTransit, "CHAP_N", "joe", "CHAP_R", "0x00", "CHAP_I", "1", "CHAP_C", "0bAAAA")
	f.Add(seed, true)
	seed = request(nil, 0, 0, FlagContinue, "InitiatorName", "a")
	seed = request(seed, 0, 1, FlagTransit, "SessionType", "Discovery")
	seed = request(seed, 1, 3, FlagTransit, "MaxRecvDataSegmentLength", "0x10000", "HeaderDigest", "CRC32C,None")
	f.Add(seed, false)
	f.Fuzz(func(t *testing.T, in []byte, auth bool) {
		acc := &Access{Offer: DefaultOffer()}
		if auth {
			acc.Auth = AuthPolicy{Incoming: []Account{{"joe", "unguessable secret"}}, Outgoing: &Account{"disk", "another"}}
		}
		l := NewTargetLogin(LoginConfig{Directory: &testDirectory{access: acc}, Rand: new(counter)})
		over := false
		for len(in) >= BHSLen {
			var h BHS
			copy(h[:], in)
			in = in[BHSLen:]
			n := min(int(binary.BigEndian.Uint16(h[6:])), len(in))
			h[5], h[6], h[7] = 0, byte(n>>8), byte(n)
			out, done, err := l.Step(&h, in[:n])
			in = in[n:]
			if over {
				if !errors.Is(err, ErrLoginOver) || len(out) > 0 {
					t.Fatalf("after the end: %v, %v", out, err)
				}
				continue
			}
			if over = done; len(out) != 1 || len(out[0].Data) > loginSegment || out[0].BHS.DataLen() != len(out[0].Data) {
				t.Fatalf("%d responses, %v", len(out), err)
			}
			r := out[0].BHS
			if ok := r.StatusClass() == 0; ok != (err == nil) {
				t.Fatalf("status %#x with error %v", r.StatusClass(), err)
			}
			if full := r.Flags()&FlagTransit != 0 && r.NSG() == StageFullFeature; full != (l.Result() != nil) {
				t.Fatalf("flags %#x and result %v", r.Flags(), l.Result())
			}
		}
		r := l.Result()
		if r == nil {
			return
		}
		if auth && !r.Discovery {
			t.Fatalf("logged in without the secret as %q", r.User)
		}
		p := r.Params
		for i := range keyDefs {
			if d := &keyDefs[i]; d.num != nil && (*d.num(&p) < d.lo || *d.num(&p) > d.hi) {
				t.Errorf("%s=%d", d.name, *d.num(&p))
			}
		}
		if p.FirstBurst > p.MaxBurst {
			t.Errorf("FirstBurst %d, MaxBurst %d", p.FirstBurst, p.MaxBurst)
		}
	})
}

// FuzzLoginPair makes offers of both ends from bytes: whatever they are, both
// ends agree.
func FuzzLoginPair(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
	lists := [][]string{{"None"}, {"CRC32C", "None"}, {"None", "CRC32C"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		next := func() int {
			var v [4]byte
			b = b[copy(v[:], b):]
			return int(int32(binary.BigEndian.Uint32(v[:])))
		}
		p := newPair()
		for _, o := range []*Offer{&p.config.Offer, &p.access.Offer} {
			for i := range keyDefs {
				d := &keyDefs[i]
				switch {
				case d.rule == ruleDeclare:
					o.MaxRecvDataSegment = next()
				case d.num != nil:
					*d.num(&o.Params) = next()
				case d.flag != nil:
					*d.flag(&o.Params) = next()&1 != 0
				}
			}
			o.HeaderDigests, o.DataDigests = lists[next()&0xffff%3], lists[next()&0xffff%3]
		}
		p.config.Discovery = next()&1 != 0
		i, target, err := p.run(t)
		if err != nil {
			t.Fatal(err)
		}
		agree(t, i.Params, target.Params)
	})
}

// FuzzInitiatorLogin answers an initiator with whatever.
func FuzzInitiatorLogin(f *testing.F) {
	f.Add([]byte("\x87AuthMethod=None\x00"), []byte("\x87MaxBurstLength=512\x00"))
	f.Add([]byte("\x00AuthMethod=CHAP\x00"), []byte("\x00CHAP_A=5\x00CHAP_I=1\x00CHAP_C=0x00\x00"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c := newPair().config
		c.Account, c.Mutual = &Account{"joe", "one"}, &Account{"disk", "two"}
		l, err := NewInitiatorLogin(c)
		if err != nil {
			t.Fatal(err)
		}
		req := l.Start()
		for n, b := range [][]byte{first, second, first} {
			if len(b) == 0 {
				return
			}
			var h BHS
			h.SetOpcode(OpLoginResp, false)
			h.SetITT(5)
			h.SetStatSN(uint32(n))
			h.SetTSIH(1)
			h.SetFlags(b[0])
			next, done, err := l.Step(&h, b[1:])
			if err != nil || done {
				if done && err == nil {
					t.Fatal("logged in without a proof of the target")
				}
				return
			}
			if len(next.Data) > loginSegment || next.BHS.Opcode() != OpLoginReq {
				t.Fatalf("%+v after %+v", next, req)
			}
		}
	})
}
