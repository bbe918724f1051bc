package pr

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write what happened into testdata/dialogue instead of comparing")

// TestDialogue runs the files in testdata/dialogue. A file is a series of blocks
// with an empty line between: commands, "----", and what must come of them. The
// state goes on from block to block. Commands (keys are hexadecimal; a nexus is
// A, B, … by target port 1 or A2, B2, … by port 2):
//
//	A register RK SARK [aptpl] [alltgpt] [spec=B,C] [scopetype=HEX] [len=N]
//	A ignore RK SARK …        REGISTER AND IGNORE EXISTING KEY
//	A reserve RK TYPE         TYPE is WE EA WR ER WA or EX, or two hex digits: scope and type
//	A release RK TYPE
//	A clear RK
//	A preempt RK SARK TYPE
//	A abort RK SARK TYPE      PREEMPT AND ABORT
//	A move RK SARK to=B|node:B [port=N] [unreg] [aptpl] [len=N]
//	A raw SA SCOPETYPE HEX
//	in keys|reservation|capabilities|full|N
//	state, access, compatible
//	restart                   the program dies and New reads the store
//	store works|fails|torn|none
func TestDialogue(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no dialogues", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d := &dialogue{t: t, store: &memStore{}}
			d.restart()
			var out []string
			for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
				input, want, _ := strings.Cut(block, "\n----")
				var got []string
				for line := range strings.SplitSeq(input, "\n") {
					if line != "" && line[0] != '#' {
						got = append(got, d.command(line)...)
					}
				}
				if len(got) == 0 { // only comment
					out = append(out, input)
					continue
				}
				g := strings.Join(got, "\n")
				if g != strings.Trim(want, "\n") && !*rewrite {
					t.Fatalf("%s:\n%s\n---- got\n%s\n---- want\n%s", file, input, g, want)
				}
				out = append(out, input+"\n----\n"+g)
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(strings.Join(out, "\n\n")+"\n"), 0o666); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

type dialogue struct {
	t       *testing.T
	store   *memStore
	noStore bool
	r       *Reservations
}

func (d *dialogue) restart() {
	topo := Topology{
		TargetPorts: twoPorts,
		// Node D is logged in by two sessions, node E by one.
		InitiatorPorts: func(name string) []Port {
			switch name {
			case port('D').Name:
				other := port('D')
				other.ISID[5]++
				return []Port{port('D'), other}
			case port('E').Name:
				return []Port{port('E')}
			}
			return nil
		},
	}
	var store Store = d.store
	if d.noStore {
		store = nil
	}
	r, err := New(context.Background(), store, topo)
	if err != nil {
		d.t.Fatal(err)
	}
	d.r = r
}

var typeNames = map[string]Type{"WE": 1, "EA": 3, "WR": 5, "ER": 6, "WA": 7, "EX": 8}

func typeName(t Type) string {
	for name, v := range typeNames {
		if v == t {
			return name
		}
	}
	return fmt.Sprintf("%02x", uint8(t))
}

func nexusName(n Nexus) string {
	s := string(rune(n.Initiator.Name[len(n.Initiator.Name)-1] &^ 0x20))
	if d := n.Initiator.ISID[5] - s[0]; d != 0 {
		s += fmt.Sprintf("+%d", d)
	}
	if n.RelPort != 1 {
		s += strconv.Itoa(int(n.RelPort))
	}
	return s
}

func (d *dialogue) command(line string) []string {
	f := strings.Fields(line)
	switch f[0] {
	case "in":
		return d.in(f[1])
	case "state":
		return d.state()
	case "access":
		return d.access()
	case "compatible":
		var s []string
		for _, n := range []string{"A", "B", "C"} {
			s = append(s, n+" "+[]string{"proceed", "ignore", "conflict"}[d.r.Compatible(nexus(n))])
		}
		return []string{strings.Join(s, ", ")}
	case "restart":
		d.restart()
		return d.state()
	case "store":
		d.store.fail, d.store.torn, d.noStore = f[1] == "fails", f[1] == "torn", f[1] == "none"
		return []string{"store " + f[1]}
	}
	return d.out(line, f)
}

func (d *dialogue) key(s string) uint64 {
	k, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		d.t.Fatalf("key %q: %v", s, err)
	}
	return k
}

func (d *dialogue) scopeType(s string) byte {
	if t, ok := typeNames[s]; ok {
		return byte(t)
	}
	return byte(d.key(s))
}

func (d *dialogue) out(line string, f []string) []string {
	actions := map[string]byte{"register": Register, "reserve": Reserve, "release": Release, "clear": Clear,
		"preempt": Preempt, "abort": PreemptAndAbort, "ignore": RegisterAndIgnoreExistingKey, "move": RegisterAndMove}
	var (
		sa, scopeType, flags byte
		rk, sark             uint64
		ids                  []Port
		relPort              = uint16(1)
		listLen              = -1
	)
	if f[1] == "raw" {
		list, err := hex.DecodeString(f[4])
		if err != nil {
			d.t.Fatal(err)
		}
		return d.show(d.r.Out(context.Background(), byte(d.key(f[2])), byte(d.key(f[3])), nexus(f[0]), list))
	}
	sa, ok := actions[f[1]]
	if !ok || len(f) < 3 {
		d.t.Fatalf("unknown command %q", line)
	}
	rk = d.key(f[2])
	rest := f[3:]
	switch f[1] {
	case "register", "ignore", "move", "preempt", "abort":
		sark, rest = d.key(rest[0]), rest[1:]
	}
	switch f[1] {
	case "reserve", "release", "preempt", "abort":
		scopeType, rest = d.scopeType(rest[0]), rest[1:]
	}
	for _, o := range rest {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "aptpl":
			flags |= aptpl
		case "alltgpt":
			flags |= allTgPt
		case "unreg":
			flags |= 0x02
		case "scopetype":
			scopeType = byte(d.key(value))
		case "port":
			relPort = uint16(d.key(value))
		case "len":
			listLen, _ = strconv.Atoi(value)
		case "spec", "to":
			for id := range strings.SplitSeq(value, ",") {
				id, node := strings.CutPrefix(id, "node:")
				p := port(id[0])
				if node {
					p = Port{Name: p.Name}
				}
				ids = append(ids, p)
			}
		default:
			d.t.Fatalf("option %q in %q", o, line)
		}
	}
	var list []byte
	if sa == RegisterAndMove {
		list = moveList(rk, sark, flags, relPort, ids[0])
	} else {
		list = basicList(rk, sark, flags, ids...)
	}
	if listLen >= 0 {
		list = slices.Grow(list, listLen)[:listLen]
	}
	return d.show(d.r.Out(context.Background(), sa, scopeType, nexus(f[0]), list))
}

func (d *dialogue) show(res Result) []string {
	var s string
	switch {
	case res.Conflict:
		s = "conflict"
	case res.Sense != nil:
		s = fmt.Sprintf("check %x/%02x/%02x", uint8(res.Sense.Key), res.Sense.ASC, res.Sense.ASCQ)
		if k := res.Sense.SKS; res.Sense.SKSV {
			s += map[bool]string{true: " cdb byte ", false: " list byte "}[k[0]&0x40 != 0] + strconv.Itoa(int(binary.BigEndian.Uint16(k[1:])))
			if k[0]&0x08 != 0 {
				s += fmt.Sprintf(" bit %d", k[0]&7)
			}
		}
	default:
		s = "good"
	}
	for _, a := range res.Attentions {
		s += fmt.Sprintf(", %s %02x/%02x", nexusName(a.Nexus), a.Sense.ASC, a.Sense.ASCQ)
	}
	for _, n := range res.Abort {
		s += ", abort " + nexusName(n)
	}
	return []string{s}
}

func (d *dialogue) state() []string {
	st := d.r.Status()
	s := fmt.Sprintf("gen %d", st.Generation)
	if st.APTPL {
		s += " aptpl"
	}
	if st.Type != None {
		s += " " + typeName(st.Type)
	}
	for _, r := range st.Registrations {
		s += fmt.Sprintf(", %s=%x", nexusName(r.Nexus), r.Key)
		if r.Holder {
			s += "*"
		}
	}
	return []string{s}
}

// access shows what A, B and C may do: read, write, or only what is allowed always.
func (d *dialogue) access() []string {
	var s []string
	for _, n := range []string{"A", "B", "C"} {
		a := "a"
		if d.r.Conflict(nexus(n), Allowed) {
			a = "-"
		}
		if !d.r.Conflict(nexus(n), Read) {
			a += "r"
		}
		if !d.r.Conflict(nexus(n), Write) {
			a += "w"
		}
		s = append(s, n+" "+a)
	}
	return []string{strings.Join(s, ", ")}
}

func (d *dialogue) in(what string) []string {
	sa, known := map[string]byte{"keys": ReadKeys, "reservation": ReadReservation, "capabilities": ReportCapabilities, "full": ReadFullStatus}[what]
	if !known {
		sa = byte(d.key(what))
	}
	b, e := d.r.In(sa)
	if e != nil {
		return d.show(Result{Sense: e})
	}
	if sa == ReportCapabilities {
		return []string{hex.EncodeToString(b)}
	}
	s := fmt.Sprintf("gen %d, %d bytes", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]))
	if n := int(binary.BigEndian.Uint32(b[4:])); n != len(b)-8 {
		d.t.Fatalf("ADDITIONAL LENGTH %d with %d bytes", n, len(b)-8)
	}
	switch b = b[8:]; sa {
	case ReadKeys:
		for ; len(b) > 0; b = b[8:] {
			s += fmt.Sprintf(", %x", binary.BigEndian.Uint64(b))
		}
	case ReadReservation:
		if len(b) > 0 {
			s += fmt.Sprintf(", key %x scope and type %02x", binary.BigEndian.Uint64(b), b[13])
		}
	case ReadFullStatus:
		for len(b) > 0 {
			p, n, err := ParseTransportID(b[24:])
			if err != nil || n != int(binary.BigEndian.Uint32(b[20:])) {
				d.t.Fatalf("descriptor % x: %v", b, err)
			}
			s += fmt.Sprintf(", %x %s flags %02x type %02x", binary.BigEndian.Uint64(b),
				nexusName(Nexus{p, binary.BigEndian.Uint16(b[18:])}), b[12], b[13])
			b = b[24+n:]
		}
	}
	return []string{s}
}
