package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"blockgate/scsi"
)

// aluaRig is a rig whose device has two target port groups: 1 with ports 1 and 5,
// 2 with port 2.
type aluaRig struct {
	*rig
	groups *scsi.PortGroups
	saved  []scsi.PortGroup
	refuse error // what SaveALUA answers
}

func newALUARig(t testing.TB, change func(*scsi.PortGroupsConfig)) *aluaRig {
	t.Helper()
	r := &aluaRig{rig: newRig(t, nil)}
	cfg := scsi.PortGroupsConfig{
		Groups: []scsi.PortGroup{{Tag: 2, Ports: []uint16{2}}, {Tag: 1, Preferred: true, Ports: []uint16{5, 1}}},
		SaveALUA: func(_ context.Context, g []scsi.PortGroup) error {
			r.saved = g
			return r.refuse
		},
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if r.groups, err = scsi.NewPortGroups(cfg); err != nil {
		t.Fatal(err)
	}
	r.dev.SetPortGroups(r.groups)
	return r
}

// through logs a host in by a port of a group.
func (r *aluaRig) through(name string, group, port uint16) *host {
	r.t.Helper()
	h := &host{t: r.t, nx: r.dev.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:" + name},
		Port:      scsi.TargetPort{Name: "iqn.2026-01.test:disk", RelID: port, Group: group},
	})}
	h.expect("login", h.do(tur), "6/29/00")
	return h
}

func (r *aluaRig) set(tag uint16, s scsi.AccessState) {
	r.t.Helper()
	if err := r.groups.SetState(r.t.Context(), tag, s, tag == 1); err != nil {
		r.t.Fatal(err)
	}
}

func rtpg(flags byte, length uint32) []byte {
	c := binary.BigEndian.AppendUint32([]byte{0xa3, flags | 0x0a, 0, 0, 0, 0}, length)
	return append(c, 0, 0)
}

// stpg makes SET TARGET PORT GROUPS; list is state, tag, state, tag, ….
func stpg(list ...byte) (cdb, out []byte) {
	out = make([]byte, 4)
	for i := 0; i < len(list); i += 2 {
		out = append(out, list[i], 0, 0, list[i+1])
	}
	return append(binary.BigEndian.AppendUint32([]byte{0xa4, 0x0a, 0, 0, 0, 0}, uint32(len(out))), 0, 0), out
}

var twoGroups = []byte{
	0x80, 0xcf, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 5,
	0x00, 0xcf, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2,
}

func TestALUAReport(t *testing.T) {
	r := newALUARig(t, func(c *scsi.PortGroupsConfig) { c.TransitionTime = 7 })
	h := r.through("a", 1, 1) // the other ports have no session
	want := append([]byte{0, 0, 0, 28}, twoGroups...)
	if b := h.good(rtpg(0, 255)); !bytes.Equal(b, want) {
		t.Errorf("\n got % x\nwant % x", b, want)
	}
	want = append([]byte{0, 0, 0, 32, 0x10, 7, 0, 0}, twoGroups...)
	if b := h.good(rtpg(0x20, 255)); !bytes.Equal(b, want) {
		t.Errorf("extended header\n got % x\nwant % x", b, want)
	}
	for _, n := range []uint32{0, 4, 11, 16, 31} { // counts are whole however it is cut
		if b := h.good(rtpg(0x20, n)); !bytes.Equal(b, want[:n]) {
			t.Errorf("cut to %d: % x", n, b)
		}
	}
	h.expect("unknown format", h.do(rtpg(0x40, 255)), "5/24/00")
	if inq := h.good([]byte{0x12, 0, 0, 0, 96, 0}); inq[5]&0x30 != 0x30 {
		t.Errorf("TPGS in byte 5: %02x", inq[5])
	}
	// The designators of VPD page 83h name the port and its group.
	b2 := r.through("b", 2, 2)
	vpd := b2.good([]byte{0x12, 1, 0x83, 1, 0, 0})
	for _, d := range [][]byte{{0x94, 0, 4, 0, 0, 0, 2}, {0x95, 0, 4, 0, 0, 0, 2}} {
		if !bytes.Contains(vpd, d) {
			t.Errorf("VPD 83h lacks % x: % x", d, vpd)
		}
	}
}

func TestALUAAccessByState(t *testing.T) {
	inquiry, luns := []byte{0x12, 0, 0, 0, 96, 0}, cdb12(0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64)
	modeSense, keys := []byte{0x1a, 0, 0x3f, 0, 255, 0}, []byte{0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0}
	for _, c := range []struct {
		state  scsi.AccessState
		medium string // what commands to the medium end with
		setup  string // what MODE SENSE, PERSISTENT RESERVE IN and READ CAPACITY do
	}{
		{scsi.ActiveOptimized, "good", "good"},
		{scsi.ActiveNonOptimized, "good", "good"},
		{scsi.Standby, "2/04/0b", "good"},
		{scsi.Unavailable, "2/04/0c", "2/04/0c"},
		{scsi.Offline, "2/04/12", "2/04/12"},
		{scsi.Transitioning, "2/04/0a", "2/04/0a"},
	} {
		t.Run(c.state.String(), func(t *testing.T) {
			r := newALUARig(t, nil)
			r.t = t
			one, two := r.through("a", 1, 1), r.through("b", 2, 2)
			r.set(2, scsi.ActiveNonOptimized)
			for _, h := range []*host{one, two} {
				h.expect("told of the change", h.do(tur), "6/2a/06")
			}
			r.set(2, c.state)
			if c.state != scsi.ActiveNonOptimized {
				one.expect("told of the change", one.do(tur), "6/2a/06")
				two.expect("told of the change", two.do(tur), "6/2a/06")
			}
			for _, cdb := range [][]byte{inquiry, luns, rtpg(0, 255), {0x03, 0, 0, 0, 252, 0}} {
				two.expect("always", two.do(cdb), "good")
			}
			for _, cdb := range [][]byte{tur, read10(0, 1), write10(0, 1), make10(0x35)} {
				two.expect("medium", two.do(cdb, block(1)...), c.medium)
			}
			for _, cdb := range [][]byte{modeSense, keys, make10(0x25)} {
				two.expect("setup", two.do(cdb), c.setup)
			}
			one.expect("through the other group", one.do(read10(0, 1)), "good")
			b := one.good(rtpg(0, 255))
			if last := b[len(b)-12:]; last[0] != byte(c.state) || last[5] != 2 {
				t.Errorf("reported % x, want state %x by implicit change", last, byte(c.state))
			}
		})
	}
}

func TestALUASetByInitiator(t *testing.T) {
	r := newALUARig(t, nil)
	a, b, c := r.through("a", 1, 1), r.through("b", 2, 2), r.through("c", 1, 5)
	set := func(h *host, list ...byte) *pending {
		cdb, out := stpg(list...)
		return h.do(cdb, out...)
	}
	a.expect("", set(a, 0x02, 1, 0x00, 2), "good")
	if len(r.saved) != 2 || r.saved[0].State != scsi.Standby || !r.saved[0].Preferred || r.saved[1].State != scsi.ActiveOptimized {
		t.Errorf("saved before GOOD: %+v", r.saved)
	}
	a.expect("the sender is not told, and is in standby", a.do(tur), "2/04/0b")
	b.expect("others are", b.do(tur), "6/2a/06")
	b.expect("once", b.do(tur), "good")
	c.expect("the same group's too", c.do(tur), "6/2a/06")
	want := append([]byte{0, 0, 0, 28}, twoGroups...)
	want[4], want[9] = 0x82, 1
	if got := b.good(rtpg(0, 255)); got[4] != 0x82 || got[9] != 1 {
		t.Errorf("reported % x", got)
	}
	a.expect("from standby", set(a, 0x00, 1), "good")
	a.expect("", a.do(tur), "good")
	b.expect("", b.do(tur), "6/2a/06")
	c.expect("", c.do(tur), "6/2a/06")

	for name, x := range map[string]struct {
		list        []byte
		want, field string
	}{
		"nothing":           {nil, "good", ""},
		"offline":           {[]byte{0x0e, 1}, "5/26/00", "list 4"},
		"transitioning":     {[]byte{0x00, 1, 0x0f, 2}, "5/26/00", "list 8"},
		"no such state":     {[]byte{0x05, 1}, "5/26/00", "list 4"},
		"unknown group":     {[]byte{0x01, 9}, "5/26/00", "list 6"},
		"twice":             {[]byte{0x01, 1, 0x01, 1}, "5/26/00", "list 10"},
		"all or nothing":    {[]byte{0x01, 1, 0x01, 9}, "5/26/00", "list 10"},
		"as it is: no news": {[]byte{0x00, 1, 0x00, 2}, "good", ""},
	} {
		p := a.expect(name, set(a, x.list...), x.want)
		if x.field != "" && p.field() != x.field {
			t.Errorf("%s: sense points at %q, want %q", name, p.field(), x.field)
		}
	}
	cdb, out := stpg(0x01, 1)
	a.expect("cut list", a.do(cdb, out[:6]...), "5/1a/00")
	cdb[9] = 6
	a.expect("odd length", a.do(cdb, out[:6]...), "5/1a/00")
	cdb[6] = 1
	a.expect("length beyond any list", a.do(cdb), "5/24/00")
	b.expect("nothing has changed", b.do(tur), "good")

	r.refuse = errors.New("the state cannot be kept")
	a.expect("", set(a, 0x02, 2), "4/67/0a")
	b.expect("nothing has changed", b.do(tur), "good")
	if err := r.groups.SetState(t.Context(), 2, scsi.Standby, false); !errors.Is(err, r.refuse) {
		t.Errorf("SetState: %v", err)
	}
	b.expect("nothing has changed", b.do(tur), "good")
}

func TestALUAImplicitOnly(t *testing.T) {
	r := newALUARig(t, func(c *scsi.PortGroupsConfig) { c.ImplicitOnly = true })
	h := r.through("a", 1, 1)
	if inq := h.good([]byte{0x12, 0, 0, 0, 96, 0}); inq[5]&0x30 != 0x10 {
		t.Errorf("TPGS in byte 5: %02x", inq[5])
	}
	cdb, out := stpg(0x02, 2)
	h.expect("", h.do(cdb, out...), "5/20/00")
	if b := h.good([]byte{0xa3, 0x0c, 0x02, 0xa4, 0, 0x0a, 0, 0, 0, 64, 0, 0}); b[1]&7 != 1 {
		t.Errorf("REPORT SUPPORTED OPERATION CODES: % x", b)
	}
}

// A unit with groups of its own, as in a cluster where each unit has an owner,
// does not follow its device; its neighbour does.
func TestALUAOfOneUnit(t *testing.T) {
	r := newALUARig(t, nil)
	other := r.newUnit(func(c *scsi.UnitConfig) { c.Store, c.Serial = newGatedStore(1<<20), "serial-2" })
	if err := r.dev.SetUnit(1, other); err != nil {
		t.Fatal(err)
	}
	own, err := scsi.NewPortGroups(scsi.PortGroupsConfig{Groups: []scsi.PortGroup{{Tag: 1, State: scsi.Standby, Ports: []uint16{1}}}})
	if err != nil {
		t.Fatal(err)
	}
	other.SetPortGroups(own)
	h := r.through("a", 1, 1)
	n := &host{t: t, nx: h.nx, lun: 1 << 48}
	n.expect("login", n.do(tur), "6/29/00")
	n.expect("", n.do(tur), "2/04/0b")
	h.expect("", h.do(tur), "good")
	// The cluster has moved the unit here.
	if err := own.Replace([]scsi.PortGroup{{Tag: 1, Ports: []uint16{1}}}); err != nil {
		t.Fatal(err)
	}
	n.expect("", n.do(tur), "6/2a/06")
	n.expect("", n.do(read10(0, 1)), "good")
	h.expect("the neighbour has no part in it", h.do(tur), "good")
	r.set(1, scsi.Unavailable)
	n.expect("nor the other way round", n.do(tur), "good")
	h.expect("", h.do(tur), "6/2a/06")
	other.SetPortGroups(nil)
	n.expect("", n.do(tur), "6/2a/06")
	n.expect("it follows its device now", n.do(tur), "2/04/0c")
}

// Portals come and go; a group without ports keeps its state and is not listed.
func TestALUAPorts(t *testing.T) {
	r := newALUARig(t, nil)
	h := r.through("a", 1, 1)
	r.set(2, scsi.Standby)
	h.expect("", h.do(tur), "6/2a/06")
	if err := r.groups.SetPorts(map[uint16][]uint16{1: {1}}); err != nil {
		t.Fatal(err)
	}
	if b := h.good(rtpg(0, 255)); len(b) != 4+12 || b[7] != 1 || b[11] != 1 {
		t.Errorf("without the second portal: % x", b)
	}
	if err := r.groups.SetPorts(map[uint16][]uint16{1: {1}, 2: {2}, 3: {3}}); err != nil {
		t.Fatal(err)
	}
	b := h.good(rtpg(0, 255))
	if len(b) != 4+3*12 || b[16] != 0x02 || b[28] != 0 {
		t.Errorf("with it, and a third: % x", b)
	}
	h.expect("ports alone are no news", h.do(tur), "good")
	for name, bad := range map[string][]scsi.PortGroup{
		"twice":    {{Tag: 1}, {Tag: 1}},
		"no state": {{Tag: 1, State: 9}},
		"too many": {{Tag: 1, Ports: manyPorts(256)}},
	} {
		if err := r.groups.Replace(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func manyPorts(n int) (ids []uint16) {
	for i := range n {
		ids = append(ids, uint16(i+1))
	}
	return ids
}

// Whatever the list, the command ends, and only states that can be asked for
// are entered.
func FuzzSetTargetPortGroups(f *testing.F) {
	_, list := stpg(0x02, 1, 0x00, 2)
	f.Add(list)
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 0x0e, 0, 0, 1})
	f.Fuzz(func(t *testing.T, list []byte) {
		r := newALUARig(t, nil)
		h := r.through("a", 1, 1)
		cdb := append(binary.BigEndian.AppendUint32([]byte{0xa4, 0x0a, 0, 0, 0, 0}, uint32(len(list))), 0, 0)
		out := h.do(cdb, list...).outcome()
		for _, g := range r.groups.List() {
			if g.State > scsi.Unavailable || g.Tag > 2 {
				t.Errorf("%s and %+v", out, g)
			}
			if out != "good" && g.State != scsi.ActiveOptimized {
				t.Errorf("failed by %s and group %d is %v", out, g.Tag, g.State)
			}
		}
	})
}

func TestAccessStateNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range 16 {
		name := fmt.Sprint(scsi.AccessState(s))
		if got, err := scsi.ParseAccessState(name); err == nil && got != scsi.AccessState(s) {
			t.Errorf("%q is read as %x, want %x", name, got, s)
		}
		if seen[name] || name == "" {
			t.Errorf("state %x: name %q", s, name)
		}
		seen[name] = true
	}
}

// A state disk that hangs holds up changes of states, and nothing else.
func TestALUAWhileSavingHangs(t *testing.T) {
	entered, release := make(chan struct{}), make(chan error)
	r := newALUARig(t, func(c *scsi.PortGroupsConfig) {
		c.SaveALUA = func(context.Context, []scsi.PortGroup) error {
			entered <- struct{}{}
			return <-release
		}
	})
	h := r.through("a", 1, 1)
	first, second := make(chan error), make(chan error)
	go func() { first <- r.groups.SetState(context.Background(), 2, scsi.Standby, false) }()
	<-entered
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.groups.SetState(gone, 1, scsi.Offline, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a change whose caller has gone: %v", err)
	}
	go func() { second <- r.groups.SetState(context.Background(), 2, scsi.ActiveNonOptimized, false) }()

	// Portals come, targets follow and are let go, initiators log in and ask.
	if err := r.groups.SetPorts(map[uint16][]uint16{1: {1, 5}, 2: {2}, 3: {3}}); err != nil {
		t.Fatal(err)
	}
	other := scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:other"})
	other.SetPortGroups(r.groups)
	other.SetPortGroups(nil)
	r.through("b", 3, 3)
	h.good(rtpg(0, 255))
	stateOf := func(tag uint16) scsi.PortGroup {
		for _, p := range r.groups.List() {
			if p.Tag == tag {
				return p
			}
		}
		return scsi.PortGroup{}
	}
	if p := stateOf(2); p.State != scsi.ActiveOptimized {
		t.Errorf("a state that is not saved yet shows: %+v", p)
	}

	release <- nil
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	h.expect("told", h.do(tur), "6/2a/06")
	if p := stateOf(2); p.State != scsi.Standby {
		t.Errorf("after the first change: %+v", p)
	}
	if p := stateOf(3); len(p.Ports) != 1 {
		t.Errorf("the portal that came meanwhile is lost: %+v", p)
	}
	<-entered // the second is saved after the first has been
	release <- errors.New("the disk is full")
	if err := <-second; err == nil {
		t.Error("a change that could not be saved took effect")
	}
	if p := stateOf(2); p.State != scsi.Standby {
		t.Errorf("after the change that failed: %+v", p)
	}
}
