package scsi_test

import (
	"bytes"
	"testing"

	"blockgate/scsi"
)

// forwarded says how a copy source or destination ended its part, as pending's
// outcome does: "conflict", "7/27/00", …
func (p *pending) forwarded() string {
	at := p.Sense[8] | p.Sense[9]
	if at == 0 {
		return ""
	}
	q := &pending{Task: &scsi.Task{Status: scsi.Status(p.Sense[at]), Sense: p.Sense[at+1:]}}
	return q.outcome()
}

// Reservations and write protection of each unit hold for a copy as they do for
// the host's own commands.
func TestExtendedCopyObeysTheUnits(t *testing.T) {
	const writeExclusive, exclusiveAccess = 0x01, 0x03
	list := copyList(1, [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)}, [][]byte{b2b(0, 1, 4, 0, 0)})
	for _, c := range []struct {
		name         string
		lun          int // that is reserved, by another host
		kind         byte
		want, answer string
	}{
		{"destination, write exclusive", 1, writeExclusive, "a/0d/01", "conflict"},
		{"destination, exclusive access", 1, exclusiveAccess, "a/0d/01", "conflict"},
		{"source, write exclusive", 0, writeExclusive, "good", ""},
		{"source, exclusive access", 0, exclusiveAccess, "a/0d/01", "conflict"},
		{"the unit of the command", 2, writeExclusive, "conflict", ""},
	} {
		src, dst := filledDisk(1, 1<<20, 0), newMemDisk(1<<20, 0)
		r := newCopyRig(t, src, dst, newMemDisk(1<<20, 0))
		h, other := r.login("a").on(2), r.login("b").on(c.lun)
		other.expect("REGISTER", other.prOut(0, 0, 0, 5, 0), "good")
		other.expect("RESERVE", other.prOut(1, c.kind, 5, 0, 0), "good")
		p := h.expect(c.name, h.copy(list), c.want)
		if c.answer != "" && p.forwarded() != c.answer {
			t.Errorf("%s: forwarded %q, want %q", c.name, p.forwarded(), c.answer)
		}
		if copied := bytes.Equal(src.contents()[:2048], dst.contents()[:2048]); copied != (c.want == "good") {
			t.Errorf("%s: copied %v", c.name, copied)
		}
		r.close()
	}
	for _, c := range []struct {
		name   string
		change func(*scsi.UnitConfig)
		src    int
		want   string
	}{
		{"read-only destination", func(u *scsi.UnitConfig) { u.ReadOnly = true }, 0, "7/27/00"},
		{"destination offline", func(u *scsi.UnitConfig) { u.Offline = true }, 0, "2/04/00"},
		{"source offline", func(u *scsi.UnitConfig) { u.Offline = true }, 1, "2/04/00"},
	} {
		r := newCopyRig(t, newMemDisk(1<<20, 0), newMemDisk(1<<20, 0))
		h := r.login("a")
		if err := r.units[1].Update(c.change); err != nil {
			t.Fatal(err)
		}
		list := copyList(1, [][]byte{cscdNAA(0, 512), cscdNAA(1, 512)}, [][]byte{b2b(c.src, 1-c.src, 4, 0, 0)})
		if p := h.expect(c.name, h.copy(list), "a/0d/01"); p.forwarded() != c.want {
			t.Errorf("%s: forwarded %q, want %q", c.name, p.forwarded(), c.want)
		}
		r.close()
	}
	r := newCopyRig(t, newMemDisk(1<<20, 0), newMemDisk(1<<20, 0))
	defer r.close()
	h := r.login("a")
	if err := r.units[0].Update(func(u *scsi.UnitConfig) { u.ReadOnly = true }); err != nil {
		t.Fatal(err)
	}
	h.expect("a read-only unit as source", h.copy(list[:16+64+28]), "good")
}

// A host copies from and to what it sees, and by nobody else's rights.
func TestExtendedCopyReachesWhatTheHostSees(t *testing.T) {
	r := newCopyRig(t, newMemDisk(1<<20, 0), filledDisk(1, 1<<20, 0))
	defer r.close()
	list := copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(0, ownUnit, 4, 0, 0)})
	public := scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:public"})
	if err := public.SetUnit(0, r.units[0]); err != nil {
		t.Fatal(err)
	}
	h := r.loginBy(public, "a", "192.0.2.1")
	h.expect("not seen", h.copy(list), "a/0d/02")
	r.loginBy(r.dev, "a", "192.0.2.9 authenticated")
	h.expect("seen by a host of that name elsewhere", h.copy(list), "a/0d/02")
	mine := r.loginBy(r.dev, "a", "192.0.2.1")
	h.expect("seen through another target", h.copy(list), "good")
	mine.nx.Detach(nil)
	h.expect("no longer seen", h.copy(list), "a/0d/02")

	masked := r.dev.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:b"},
		Port:      scsi.TargetPort{Name: r.dev.Name(), RelID: 1, Group: 1},
		LUNs:      func(lun uint64) bool { return lun == 0 },
	})
	b := &host{t: t, nx: masked}
	for b.do(tur).Status != scsi.Good { // attentions
	}
	b.expect("masked", b.copy(list), "a/0d/02")
}

// A path that is not active cannot be copied by, one of several that is can.
func TestExtendedCopyOverActivePaths(t *testing.T) {
	r := newCopyRig(t, newMemDisk(1<<20, 0), filledDisk(1, 1<<20, 0))
	defer r.close()
	groups, err := scsi.NewPortGroups(scsi.PortGroupsConfig{
		Groups: []scsi.PortGroup{{Tag: 1, Ports: []uint16{1}}, {Tag: 2, Ports: []uint16{2}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.dev.SetPortGroups(groups)
	own := scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:own"})
	if err := own.SetUnit(0, r.units[0]); err != nil {
		t.Fatal(err)
	}
	h := r.loginBy(own, "a", "")
	r.login("a") // by group 1
	list := copyList(1, [][]byte{cscdNAA(1, 512)}, [][]byte{b2b(0, ownUnit, 4, 0, 0)})
	h.expect("an active path", h.copy(list), "good")
	if err := groups.SetState(t.Context(), 1, scsi.Standby, false); err != nil {
		t.Fatal(err)
	}
	if p := h.expect("a standby path", h.copy(list), "a/0d/01"); p.forwarded() != "2/04/0b" {
		t.Errorf("forwarded %q", p.forwarded())
	}
	r.dev.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:a", ISID: [6]byte{1}},
		Port:      scsi.TargetPort{Name: r.dev.Name(), RelID: 2, Group: 2},
	})
	h.expect("a second path", h.copy(list), "good")
}
