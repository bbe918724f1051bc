package iscsi

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// pair is an initiator and a target that talk to each other, with someone
// between them who may change what the target says.
type pair struct {
	config InitiatorConfig
	access Access
	status LoginStatus
	disc   AuthPolicy
	tamper func(n int, p *LoginPDU) // the n-th response, from 0
	tsih   uint16
}

func newPair() *pair {
	seed := counter(100) // another than the target's: challenges must differ
	return &pair{
		config: InitiatorConfig{
			InitiatorName: testInitiator, TargetName: testTarget,
			ISID: [6]byte{0x80, 1}, ITT: 5, CmdSN: 77, CID: 3,
			Offer: DefaultOffer(), Rand: &seed,
		},
		access: Access{Target: testTarget, Alias: "disk", Offer: DefaultOffer()},
		tsih:   0x1234,
	}
}

func (p *pair) run(t *testing.T) (*InitiatorResult, *LoginResult, error) {
	t.Helper()
	i, err := NewInitiatorLogin(p.config)
	if err != nil {
		t.Fatal(err)
	}
	target := NewTargetLogin(LoginConfig{
		Directory: &testDirectory{access: &p.access, status: p.status, discovery: p.disc},
		Peer:      Peer{Group: 9}, Rand: new(counter), StatSN: 0xffffffff,
		Admit: func(r *LoginResult) LoginStatus { r.TSIH = p.tsih; return LoginOK },
	})
	req := i.Start()
	for n := 0; n < 1000; n++ {
		out, tdone, terr := target.Step(&req.BHS, req.Data)
		if len(out) != 1 {
			t.Fatalf("%d responses, %v", len(out), terr)
		}
		if p.tamper != nil {
			p.tamper(n, &out[0])
			out[0].BHS.SetDataLen(len(out[0].Data))
		}
		var idone bool
		req, idone, err = i.Step(&out[0].BHS, out[0].Data)
		if err != nil {
			if i.Result() != nil {
				t.Error("a result beside an error")
			}
			return nil, target.Result(), err
		}
		if idone {
			if !tdone && p.tamper == nil {
				t.Fatalf("the initiator is done and the target is not")
			}
			return i.Result(), target.Result(), nil
		}
		if tdone && p.tamper == nil {
			t.Fatalf("the target is done and the initiator is not: %v", terr)
		}
	}
	t.Fatal("no end")
	return nil, nil, nil
}

// agree checks that both ends came out with the same values.
func agree(t *testing.T, i, target Params) {
	t.Helper()
	i.MaxRecvDataSegment, i.MaxXmitDataSegment = i.MaxXmitDataSegment, i.MaxRecvDataSegment
	if i != target {
		t.Errorf("initiator %+v\n   target %+v", i, target)
	}
}

func TestPairAgrees(t *testing.T) {
	p := newPair()
	p.config.Offer.MaxRecvDataSegment = 65536
	p.config.InitiatorAlias = "host"
	i, target, err := p.run(t)
	if err != nil {
		t.Fatal(err)
	}
	agree(t, i.Params, target.Params)
	if i.Params.MaxXmitDataSegment != 262144 || i.Params.MaxRecvDataSegment != 65536 || i.Params.InitialR2T || i.Params.MaxBurst != 1<<20 {
		t.Errorf("%+v", i.Params)
	}
	if i.TSIH != 0x1234 || i.TargetAlias != "disk" || i.PortalGroup != 9 || i.ExpStatSN != 1 || i.Authenticated {
		t.Errorf("%+v", i)
	}
	if i.ExpCmdSN != 77 || i.MaxCmdSN != 77+127 {
		t.Errorf("window %d to %d", i.ExpCmdSN, i.MaxCmdSN)
	}
	if r := target; r.Peer.Name != testInitiator || r.Peer.Alias != "host" || r.Peer.ISID != p.config.ISID ||
		r.CID != 3 || r.ITT != 5 || r.CmdSN != 77 || r.ReqTSIH != 0 || r.Access == nil || r.ExpStatSN != 0 {
		t.Errorf("%+v", r)
	}
}

func TestPairDiscovery(t *testing.T) {
	p := newPair()
	p.config.Discovery, p.config.TargetName = true, ""
	i, target, err := p.run(t)
	if err != nil || !target.Discovery || target.Access != nil {
		t.Fatalf("%v, %+v", err, target)
	}
	agree(t, i.Params, target.Params)
}

func TestPairAnotherConnection(t *testing.T) {
	p := newPair()
	p.config.TSIH = 0x1234
	p.access.RedirectTo = func() (string, bool, error) { return "", false, errors.New("a session that is there is not sent away") }
	p.config.Offer.HeaderDigests = []string{"CRC32C"}
	i, target, err := p.run(t)
	if err != nil || target.ReqTSIH != 0x1234 || !i.Params.HeaderDigest {
		t.Fatalf("%v, %+v", err, target)
	}
	agree(t, i.Params, target.Params)
}

func TestPairCHAP(t *testing.T) {
	joe, disk := Account{"joe", "secret-of-joe"}, Account{"0xdisk", "secret-of-disk"}
	algs := []CHAPAlgorithm{CHAPMD5, CHAPSHA1, CHAPSHA256, CHAPSHA3_256}
	for _, a := range algs {
		for _, mutual := range []*Account{nil, &disk} {
			p := newPair()
			p.access.Auth = AuthPolicy{Incoming: []Account{{"other", "x"}, joe}, Outgoing: &disk}
			p.config.Account, p.config.Mutual, p.config.Algorithms = &joe, mutual, []CHAPAlgorithm{a}
			i, target, err := p.run(t)
			if err != nil || !i.Authenticated || target.User != "joe" {
				t.Errorf("%s, mutual %v: %v", a, mutual != nil, err)
				continue
			}
			chosen, _ := Lookup(i.Answers, "CHAP_A")
			if chosen != fmt.Sprint(int(a)) {
				t.Errorf("CHAP_A=%s for %s", chosen, a)
			}
			agree(t, i.Params, target.Params)
		}
	}
}

func TestPairCHAPNotNeeded(t *testing.T) {
	p := newPair()
	p.config.Account = &Account{"joe", "secret"}
	i, target, err := p.run(t)
	if err != nil || i.Authenticated || target.User != "" {
		t.Errorf("%v, %+v", err, target)
	}
}

func TestPairRefused(t *testing.T) {
	joe, disk := Account{"joe", "secret-of-joe"}, Account{"disk", "secret-of-disk"}
	for _, c := range []struct {
		name string
		set  func(*pair)
		want LoginStatus
		addr string
	}{
		{"no account", func(p *pair) { p.access.Auth.Incoming = []Account{joe} }, LoginAuthFailed, ""},
		{"wrong secret", func(p *pair) {
			p.access.Auth.Incoming = []Account{joe}
			p.config.Account = &Account{"joe", "other"}
		}, LoginAuthFailed, ""},
		{"the target has another secret", func(p *pair) {
			p.access.Auth = AuthPolicy{Incoming: []Account{joe}, Outgoing: &Account{"disk", "other"}}
			p.config.Account, p.config.Mutual = &joe, &disk
		}, LoginAuthFailed, ""},
		{"the target has another name", func(p *pair) {
			p.access.Auth = AuthPolicy{Incoming: []Account{joe}, Outgoing: &Account{"disc", disk.Secret}}
			p.config.Account, p.config.Mutual = &joe, &disk
		}, LoginAuthFailed, ""},
		{"the target cannot prove itself", func(p *pair) {
			p.access.Auth.Incoming = []Account{joe}
			p.config.Account, p.config.Mutual = &joe, &disk
		}, LoginAuthFailed, ""},
		{"the target wants no authentication and should prove itself", func(p *pair) {
			p.config.Account, p.config.Mutual = &joe, &disk
		}, LoginAuthFailed, ""},
		{"both challenges are equal", func(p *pair) {
			p.access.Auth = AuthPolicy{Incoming: []Account{joe}, Outgoing: &disk}
			p.config.Account, p.config.Mutual, p.config.Rand = &joe, &disk, new(counter)
		}, LoginAuthFailed, ""},
		{"not found", func(p *pair) { p.status = LoginNotFound }, LoginNotFound, ""},
		{"moved", func(p *pair) {
			p.status, p.access.Redirect = LoginMovedTemporarily, "192.0.2.9:3261,4"
		}, LoginMovedTemporarily, "192.0.2.9:3261,4"},
		{"sent elsewhere", func(p *pair) {
			p.access.RedirectTo = func() (string, bool, error) { return "[2001:db8::9]:3261", false, nil }
		}, LoginMovedTemporarily, "[2001:db8::9]:3261"},
		{"sent elsewhere for good, before it authenticates", func(p *pair) {
			p.access.Auth.Incoming = []Account{joe}
			p.access.RedirectTo = func() (string, bool, error) { return "192.0.2.9:3261", true, nil }
		}, LoginMovedPermanently, "192.0.2.9:3261"},
		{"where it is cannot be found out", func(p *pair) {
			p.access.RedirectTo = func() (string, bool, error) { return "", false, errors.New("no answer") }
		}, LoginTargetError, ""},
		{"discovery", func(p *pair) { p.config.Discovery, p.disc.Incoming = true, []Account{joe} }, LoginAuthFailed, ""},
	} {
		p := newPair()
		c.set(p)
		_, _, err := p.run(t)
		var le *LoginError
		if !errors.As(err, &le) || le.Status != c.want || le.TargetAddress != c.addr {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, secret := range []string{joe.Secret, disk.Secret} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error tells a secret: %v", c.name, err)
			}
		}
	}
}

// Long texts in both directions.
func TestPairLongTexts(t *testing.T) {
	p := newPair()
	for n := range 1500 {
		p.config.Extra = append(p.config.Extra, KV{fmt.Sprintf("X-example.%d", n), "value"})
	}
	i, target, err := p.run(t)
	if err != nil {
		t.Fatal(err)
	}
	agree(t, i.Params, target.Params)
	n := 0
	for _, kv := range i.Answers {
		if kv.Value == ValueNotUnderstood {
			n++
		}
	}
	if n != 1500 {
		t.Errorf("%d answers of 1500", n)
	}
}

func TestPairExtraReplaces(t *testing.T) {
	p := newPair()
	p.config.Extra = []KV{{"MaxBurstLength", "65536"}, {"MaxRecvDataSegmentLength", "4096"}, {"IFMarker", "Yes"}}
	i, target, err := p.run(t)
	if err != nil || i.Params.MaxBurst != 65536 || target.Params.MaxXmitDataSegment != 4096 {
		t.Fatalf("%v, %+v", err, target)
	}
	agree(t, i.Params, target.Params)
	if v, _ := Lookup(i.Answers, "IFMarker"); v != ValueNo {
		t.Errorf("IFMarker=%s", v)
	}
}

// What a target must not do.
func TestInitiatorRefuses(t *testing.T) {
	set := func(key, value string) func(int, *LoginPDU) {
		return func(n int, p *LoginPDU) {
			kvs, _ := ParseText(p.Data, 0)
			for i := range kvs {
				if kvs[i].Key == key {
					kvs[i].Value = value
				}
			}
			p.Data = AppendPairs(nil, kvs)
		}
	}
	last := func(f func(*LoginPDU)) func(int, *LoginPDU) {
		return func(n int, p *LoginPDU) {
			if n == 1 {
				f(p)
			}
		}
	}
	for name, tamper := range map[string]func(int, *LoginPDU){
		"larger MaxBurstLength":           set("MaxBurstLength", "2097152"),
		"MaxBurstLength out of range":     set("MaxBurstLength", "1"),
		"smaller DefaultTime2Wait":        set("DefaultTime2Wait", "0"),
		"not a number":                    set("MaxConnections", "many"),
		"not a boolean":                   set("InitialR2T", "Maybe"),
		"No to a Yes that OR keeps":       set("DataPDUInOrder", "No"),
		"digest that was not offered":     set("HeaderDigest", "CRC64"),
		"MaxRecvDataSegmentLength of 1":   set("MaxRecvDataSegmentLength", "1"),
		"AuthMethod that was not offered": set("AuthMethod", "CHAP"),
		"AuthMethod=Reject":               set("AuthMethod", "Reject"),
		"portal group above 65535":        set("TargetPortalGroupTag", "65536"),
		"a key twice":                     last(func(p *LoginPDU) { p.Data = append(p.Data, p.Data...) }),
		"a key in two texts":              last(func(p *LoginPDU) { p.Data = AppendText(p.Data, "TargetPortalGroupTag", "1") }),
		"AuthMethod in the wrong stage":   last(func(p *LoginPDU) { p.Data = AppendText(nil, "CHAP_A", "5") }),
		"a proposal with the last word":   last(func(p *LoginPDU) { p.Data = AppendText(p.Data, "TaskReporting", "RFC3720") }),
		"text that is none":               last(func(p *LoginPDU) { p.Data = []byte("x") }),
		"StatSN jumps":                    last(func(p *LoginPDU) { p.BHS.SetStatSN(9) }),
		"another task tag":                last(func(p *LoginPDU) { p.BHS.SetITT(9) }),
		"another version":                 last(func(p *LoginPDU) { p.BHS[3] = 1 }),
		"another opcode":                  last(func(p *LoginPDU) { p.BHS.SetOpcode(OpTextResp, false) }),
		"no TSIH":                         last(func(p *LoginPDU) { p.BHS.SetTSIH(0) }),
		"an earlier stage":                last(func(p *LoginPDU) { p.BHS.SetFlags(FlagTransit | 1) }),
		"transit and continue":            last(func(p *LoginPDU) { p.BHS[1] |= FlagContinue }),
		"full feature ahead of time":      func(n int, p *LoginPDU) { p.BHS[1] |= 3 },
	} {
		p := newPair()
		p.tamper = tamper
		if i, _, err := p.run(t); err == nil {
			t.Errorf("%s: logged in with %+v", name, i.Params)
		}
	}
}

// The target may propose keys, and answers may be Irrelevant or NotUnderstood.
func TestInitiatorGoesAlong(t *testing.T) {
	p := newPair()
	p.config.Offer.MaxOutstandingR2T = 8
	var proposed string
	p.tamper = func(n int, r *LoginPDU) {
		switch n {
		case 1:
			r.BHS.SetFlags(StageOperational << 2) // not yet
			r.BHS.SetTSIH(0)
			kvs, _ := ParseText(r.Data, 0)
			kvs = slices.DeleteFunc(kvs, func(kv KV) bool { return kv.Key == "MaxOutstandingR2T" || kv.Key == "FirstBurstLength" })
			kvs = append(kvs, KV{"MaxOutstandingR2T", ValueNotUnderstood}, KV{"FirstBurstLength", ValueIrrelevant},
				KV{"TaskReporting", "FastAbort,RFC3720"}, KV{"X-a", "1"})
			r.Data = AppendPairs(nil, kvs)
		}
	}
	i, err := NewInitiatorLogin(p.config)
	if err != nil {
		t.Fatal(err)
	}
	target := NewTargetLogin(LoginConfig{Directory: &testDirectory{access: &p.access}})
	req := i.Start()
	for n := range 2 {
		out, _, err := target.Step(&req.BHS, req.Data)
		if err != nil {
			t.Fatal(err)
		}
		p.tamper(n, &out[0])
		if req, _, err = i.Step(&out[0].BHS, out[0].Data); err != nil {
			t.Fatal(err)
		}
	}
	proposed = string(req.Data)
	if want := "TaskReporting=RFC3720\x00X-a=NotUnderstood\x00"; proposed != want || req.BHS.Flags() != FlagTransit|StageOperational<<2|StageFullFeature {
		t.Fatalf("%q, flags %#x", proposed, req.BHS.Flags())
	}
	var h BHS
	h.SetOpcode(OpLoginResp, false)
	h.SetFlags(req.BHS.Flags())
	h.SetITT(5)
	h.SetStatSN(2)
	h.SetTSIH(4)
	if _, done, err := i.Step(&h, nil); !done || err != nil {
		t.Fatal(done, err)
	}
	if got := i.Result().Params; got.MaxOutstandingR2T != 1 || got.FirstBurst != 65536 {
		t.Errorf("defaults are in force: %+v", got)
	}
	if _, done, err := i.Step(&h, nil); !done || !errors.Is(err, ErrLoginOver) {
		t.Error(done, err)
	}
}

func TestInitiatorInsistsOnDigests(t *testing.T) {
	p := newPair()
	p.config.Offer.DataDigests = []string{"CRC32C"}
	p.access.Offer.DataDigests = []string{"None"}
	if _, _, err := p.run(t); !errors.Is(err, ErrNegotiation) {
		t.Error(err)
	}
}

func TestInitiatorEndsAnEndlessLogin(t *testing.T) {
	i, err := NewInitiatorLogin(newPair().config)
	if err != nil {
		t.Fatal(err)
	}
	req := i.Start()
	for n := range 2 * maxLoginPDUs {
		var h BHS
		h.SetOpcode(OpLoginResp, false)
		h.SetITT(5)
		h.SetStatSN(uint32(n))
		if req, _, err = i.Step(&h, nil); err != nil {
			return
		}
	}
	t.Errorf("still asking: % x", req.BHS)
}

func TestInitiatorConfigIsChecked(t *testing.T) {
	joe := Account{"joe", "s"}
	for name, set := range map[string]func(*InitiatorConfig){
		"no name":              func(c *InitiatorConfig) { c.InitiatorName = "" },
		"a name with a zero":   func(c *InitiatorConfig) { c.InitiatorName = "a\x00b" },
		"no target":            func(c *InitiatorConfig) { c.TargetName = "" },
		"mutual alone":         func(c *InitiatorConfig) { c.Mutual = &joe },
		"one secret for both":  func(c *InitiatorConfig) { c.Account, c.Mutual = &joe, &joe },
		"an algorithm unknown": func(c *InitiatorConfig) { c.Algorithms = []CHAPAlgorithm{4} },
	} {
		c := newPair().config
		set(&c)
		if _, err := NewInitiatorLogin(c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
