package iscsi

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the expected responses of testdata/login")

// TestLoginDialogues runs the files of testdata/login through a TargetLogin.
//
// "== name" starts a dialogue. Lines before its first request set the target up:
//
//	incoming USER SECRET     an account; outgoing USER SECRET for mutual CHAP
//	discovery-incoming USER SECRET
//	status 0xNNNN [ADDRESS]  what the directory says of every target
//	admit 0xNNNN             what the session rules say
//	offer KEY=VALUE          a value of the target's offer
//	alias TEXT
//
// "> CSG NSG FLAGS WORD…" is a request; flags are T, C or -. A word is key=value
// (value may be quoted as in Go), or changes the header: @itt= @isid= @tsih= @cid=
// @cmdsn= @min= @op= @ahs. @raw="…" is literal text; @keys=N adds N unknown keys;
// @times=N sends the request N times. In values, $R(secret) is the right CHAP
// response (hexadecimal; $B(secret) the same in base64) and $C the target's own
// challenge.
//
// What comes after "----" is expected, one line for each response.
func TestLoginDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/login/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			want := string(b)
			got := runDialogues(t, want)
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
			name := ""
			for i := range max(len(w), len(g)) {
				if i >= len(w) || i >= len(g) || w[i] != g[i] {
					t.Fatalf("%s:%d: in %q\nwant %s\n got %s", f, i+1, name, at(w, i), at(g, i))
				}
				if n, ok := strings.CutPrefix(w[i], "== "); ok {
					name = n
				}
			}
		})
	}
}

func at(l []string, i int) string {
	if i < len(l) {
		return l[i]
	}
	return "(end)"
}

// runDialogues gives the text back with the responses that really came.
func runDialogues(t *testing.T, text string) string {
	var out strings.Builder
	var d *dialogue
	skip := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "== "):
			d = newDialogue()
			out.WriteString(line + "\n")
		case line == "----":
			skip = true
		case strings.HasPrefix(line, "< ") && skip:
		case strings.HasPrefix(line, "> "):
			skip = false
			out.WriteString(line + "\n----\n")
			for _, r := range d.request(t, strings.Fields(line[2:]), line) {
				out.WriteString(r + "\n")
			}
		default:
			if skip = false; line != "" && line[0] != '#' {
				d.setup(t, line)
			}
			out.WriteString(line + "\n")
		}
	}
	return out.String()
}

const (
	testTarget    = "iqn.2026-01.example:disk"
	testInitiator = "iqn.1994-05.example:host"
)

// testDirectory has one target, which answers to every name but "…:nowhere".
type testDirectory struct {
	access    *Access
	status    LoginStatus
	discovery AuthPolicy
}

func (d *testDirectory) Target(name string, _ Peer) (*Access, LoginStatus) {
	if strings.HasSuffix(name, ":nowhere") {
		return nil, LoginNotFound
	}
	return d.access, d.status
}
func (d *testDirectory) DiscoveryAuth(Peer) AuthPolicy       { return d.discovery }
func (d *testDirectory) Targets(string, Peer) []TargetRecord { return nil }

// counter is a reader that gives 1, 2, 3, …
type counter byte

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		*c++
		p[i] = byte(*c)
	}
	return len(p), nil
}

type dialogue struct {
	dir      *testDirectory
	admit    LoginStatus
	login    *TargetLogin
	rand     io.Reader
	keys     int
	chapID   byte
	chapAlg  CHAPAlgorithm
	chapChal []byte
}

func newDialogue() *dialogue {
	return &dialogue{
		dir:  &testDirectory{access: &Access{Target: testTarget, RelPort: 1, Offer: DefaultOffer()}},
		rand: new(counter),
	}
}

func (d *dialogue) setup(t *testing.T, line string) {
	f := strings.Fields(line)
	auth := &d.dir.access.Auth
	status := func() LoginStatus {
		n, err := strconv.ParseUint(f[1], 0, 16)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return LoginStatus(n)
	}
	switch f[0] {
	case "incoming":
		auth.Incoming = append(auth.Incoming, Account{f[1], f[2]})
	case "outgoing":
		auth.Outgoing = &Account{f[1], f[2]}
	case "discovery-incoming":
		d.dir.discovery.Incoming = append(d.dir.discovery.Incoming, Account{f[1], f[2]})
	case "alias":
		d.dir.access.Alias = strings.Join(f[1:], " ")
	case "admit":
		d.admit = status()
	case "status":
		if d.dir.status = status(); len(f) > 2 {
			d.dir.access.Redirect = f[2]
		} else {
			d.dir.access = nil
		}
	case "offer":
		key, value, _ := strings.Cut(f[1], "=")
		o := &d.dir.access.Offer
		n, _ := strconv.Atoi(value)
		switch def := lookupKey(key); {
		case key == "HeaderDigest":
			o.HeaderDigests = strings.Split(value, ",")
		case key == "DataDigest":
			o.DataDigests = strings.Split(value, ",")
		case key == "MaxRecvDataSegmentLength":
			o.MaxRecvDataSegment = n
		case key == "MaxXmitCap":
			o.MaxXmitCap = n
		case def != nil && def.num != nil:
			*def.num(&o.Params) = n
		case def != nil && def.flag != nil:
			*def.flag(&o.Params) = value == ValueYes
		default:
			t.Fatalf("what is %q?", line)
		}
	default:
		t.Fatalf("what is %q?", line)
	}
}

func (d *dialogue) request(t *testing.T, words []string, line string) (out []string) {
	if d.login == nil {
		d.login = NewTargetLogin(LoginConfig{
			Directory: d.dir, Rand: d.rand, StatSN: 100,
			Peer: Peer{Group: 7, Local: netip.MustParseAddrPort("192.0.2.1:3260")},
			Admit: func(r *LoginResult) LoginStatus {
				if r.TSIH == 0 {
					r.TSIH = 0x51
				}
				return d.admit
			},
		})
	}
	var h BHS
	h.SetOpcode(OpLoginReq, true)
	h.SetISID([6]byte{0x80, 1, 2, 3, 4, 5})
	h.SetITT(0x11)
	h.SetCmdSN(42)
	csg, nsg := words[0][0]-'0', words[1][0]-'0'
	flags := csg<<2 | nsg
	for _, c := range words[2] {
		switch c {
		case 'T':
			flags |= FlagTransit
		case 'C':
			flags |= FlagContinue
		}
	}
	h.SetFlags(flags)
	var data []byte
	times := 1
	for _, w := range words[3:] {
		key, value, _ := strings.Cut(w, "=")
		if strings.HasPrefix(value, `"`) {
			v, err := strconv.Unquote(value)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			value = v
		}
		n, _ := strconv.ParseUint(value, 0, 32)
		switch key {
		case "@itt":
			h.SetITT(uint32(n))
		case "@isid":
			h.SetISID([6]byte{byte(n)})
		case "@tsih":
			h.SetTSIH(uint16(n))
		case "@cid":
			h.SetCID(uint16(n))
		case "@cmdsn":
			h.SetCmdSN(uint32(n))
		case "@min":
			h[2], h[3] = byte(n), byte(n)
		case "@op":
			h.SetOpcode(Opcode(n), false)
		case "@ahs":
			h[4] = 1
		case "@raw":
			data = append(data, value...)
		case "@times":
			times = int(n)
		case "@keys":
			for range n {
				d.keys++
				data = AppendText(data, fmt.Sprintf("X-key.%d", d.keys), "1")
			}
		default:
			data = AppendText(data, key, d.expand(value))
		}
	}
	h[5], h[6], h[7] = byte(len(data)>>16), byte(len(data)>>8), byte(len(data))
	for range times {
		pdus, done, err := d.login.Step(&h, data)
		out = out[:0]
		for i := range pdus {
			out = append(out, d.show(t, &pdus[i]))
		}
		var le *LoginError
		switch {
		case errors.Is(err, ErrLoginOver):
			out = append(out, "< over")
		case err != nil && (!errors.As(err, &le) || !done):
			t.Fatalf("%s: done %v, error %v", line, done, err)
		case err == nil && done:
			out = append(out, showResult(d.login.Result()))
		}
		if done {
			break
		}
	}
	return out
}

// expand fills in CHAP values.
func (d *dialogue) expand(v string) string {
	if v == "$C" {
		return EncodeBinary(d.chapChal, HexBinary)
	}
	for prefix, enc := range map[string]BinaryEncoding{"$R(": HexBinary, "$B(": Base64Binary} {
		if s, ok := strings.CutPrefix(v, prefix); ok {
			return EncodeBinary(CHAPResponse(d.chapAlg, d.chapID, strings.TrimSuffix(s, ")"), d.chapChal), enc)
		}
	}
	return v
}

func (d *dialogue) show(t *testing.T, p *LoginPDU) string {
	h := &p.BHS
	if h.Opcode() != OpLoginResp || h.DataLen() != len(p.Data) || h.ISID()[0] != d.login.first[8] && h.StatusClass() == 0 {
		t.Errorf("malformed response header % x", h[:])
	}
	if h.StatSN()+1 != d.login.NextStatSN() {
		t.Errorf("StatSN %d, next is %d", h.StatSN(), d.login.NextStatSN())
	}
	if len(p.Data) > loginSegment {
		t.Errorf("response of %d bytes", len(p.Data))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "< sn %d", h.StatSN())
	if h.StatusClass() != 0 {
		fmt.Fprintf(&b, " status %02x%02x", h.StatusClass(), h.StatusDetail())
	} else {
		fmt.Fprintf(&b, " stage %d", h.CSG())
	}
	if h.Flags()&FlagTransit != 0 {
		fmt.Fprintf(&b, " to %d", h.NSG())
	}
	if h.TSIH() != 0 {
		fmt.Fprintf(&b, " tsih %#x", h.TSIH())
	}
	if h.Flags()&FlagContinue != 0 {
		fmt.Fprintf(&b, " more after %d bytes", len(p.Data))
		return b.String()
	}
	if len(p.Data) > 1000 {
		fmt.Fprintf(&b, " %d bytes", len(p.Data))
		return b.String()
	}
	kvs, err := ParseText(p.Data, 0)
	if err != nil {
		t.Errorf("response %q: %v", p.Data, err)
	}
	for _, kv := range kvs {
		n, _ := parseNumber(kv.Value)
		switch kv.Key {
		case "CHAP_A":
			d.chapAlg = CHAPAlgorithm(n)
		case "CHAP_I":
			d.chapID = byte(n)
		case "CHAP_C":
			if d.chapChal, err = DecodeBinary(kv.Value); err != nil {
				t.Error(err)
			}
		}
		if strings.ContainsAny(kv.Value, " \"") {
			kv.Value = strconv.Quote(kv.Value)
		}
		fmt.Fprintf(&b, " %s", kv)
	}
	return b.String()
}

// showResult prints what differs from the defaults of the RFC.
func showResult(r *LoginResult) string {
	var b strings.Builder
	b.WriteString("< logged in")
	if r.Discovery {
		b.WriteString(" for discovery")
	}
	if r.User != "" {
		fmt.Fprintf(&b, " as %s", r.User)
	}
	p, def := r.Params, DefaultParams()
	for i := range keyDefs {
		d := &keyDefs[i]
		if d.num != nil && *d.num(&p) != *d.num(&def) {
			name := d.name
			if d.rule == ruleDeclare {
				name = "MaxXmit"
			}
			fmt.Fprintf(&b, " %s=%d", name, *d.num(&p))
		}
		if d.flag != nil && *d.flag(&p) != *d.flag(&def) {
			fmt.Fprintf(&b, " %s=%s", d.name, formatBool(*d.flag(&p)))
		}
	}
	if p.MaxRecvDataSegment != def.MaxRecvDataSegment {
		fmt.Fprintf(&b, " MaxRecv=%d", p.MaxRecvDataSegment)
	}
	fmt.Fprintf(&b, " window %d-%d", r.ExpCmdSN, r.MaxCmdSN)
	return b.String()
}
