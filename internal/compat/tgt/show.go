package tgt

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// showTargets lists all targets in tgt's layout, which many programs read: the
// daemon is asked three times, however many targets there are.
func (a *admin) showTargets() error {
	targets, err := a.api.Targets(a.ctx)
	if err != nil || len(targets) == 0 {
		return err
	}
	list, err := a.api.Volumes(a.ctx)
	if err != nil {
		return err
	}
	sessions, err := a.sessions("")
	if err != nil {
		return err
	}
	volumes := make(map[string]*v1.Volume, len(list))
	for i := range list {
		volumes[list[i].Name] = &list[i]
	}
	byTarget := map[string][]v1.Session{}
	for _, s := range sessions {
		byTarget[s.Target] = append(byTarget[s.Target], s)
	}
	slices.SortFunc(targets, func(x, y v1.Target) int { return cmp.Compare(x.ID, y.ID) })
	for i := range targets {
		t := &targets[i]
		writeTarget(a.out, t, byTarget[t.Name], volumes)
		for _, l := range t.LUNs {
			if v := volumes[l.Volume]; v != nil && v.Status.State == v1.Failed {
				a.note(fmt.Sprintf("LUN %d of target %d does not run: %s", l.Number, t.ID, v.Status.Error))
			}
		}
	}
	return nil
}

func writeTarget(w io.Writer, t *v1.Target, sessions []v1.Session, volumes map[string]*v1.Volume) {
	st := "ready"
	if t.Offline {
		st = "offline"
	}
	fmt.Fprintf(w, "Target %d: %s\n    System information:\n        Driver: iscsi\n        State: %s\n", t.ID, t.Name, st)
	if v := t.Params["nop_interval"]; v != "" && v != "0" {
		count := t.Params["nop_count"]
		if count == "" {
			count = "0"
		}
		fmt.Fprintf(w, "        Nop interval: %s\n        Nop count: %s\n", v, count)
	}
	fmt.Fprintln(w, "    I_T nexus information:")
	for _, s := range sessions {
		writeNexus(w, &s)
	}
	fmt.Fprintln(w, "    LUN information:")
	if t.ControllerLUN0 {
		writeUnit(w, 0, controller(t.ID))
	}
	for _, l := range t.LUNs {
		if v := volumes[l.Volume]; v != nil {
			writeUnit(w, l.Number, describe(t.ID, l.Number, v))
		}
	}
	fmt.Fprintln(w, "    Account information:")
	for _, u := range t.Accounts {
		fmt.Fprintf(w, "        %s\n", u)
	}
	if t.OutgoingAccount != "" {
		fmt.Fprintf(w, "        %s (outgoing)\n", t.OutgoingAccount)
	}
	fmt.Fprintln(w, "    ACL information:")
	for _, r := range t.ACL {
		switch {
		case r.All:
			fmt.Fprintln(w, "        ALL")
		case r.Address != "":
			fmt.Fprintf(w, "        %s\n", r.Address)
		}
	}
	for _, r := range t.ACL {
		if r.Name != "" {
			fmt.Fprintf(w, "        %s\n", r.Name)
		}
	}
}

// writeNexus shows one session with its first connection.
func writeNexus(w io.Writer, s *v1.Session) {
	alias := s.Alias
	if alias == "" {
		alias = "none"
	}
	fmt.Fprintf(w, "        I_T nexus: %d\n            Initiator: %s alias: %s\n", s.ID, s.Initiator, alias)
	if len(s.Conns) > 0 {
		fmt.Fprintf(w, "            Connection: %d\n                IP Address: %s\n", s.Conns[0].CID, host(s.Conns[0].Remote))
	}
}

// unitView is what the listing says of a logical unit.
type unitView struct {
	kind, id, serial                                  string
	size                                              int64 // bytes
	blockSize                                         int
	online, removable, prevented, readOnly, swp, thin bool
	bstype, path, flags                               string
}

func defaultID(tid int, lun uint64) string     { return fmt.Sprintf("IET     %04x%04x", tid, lun) }
func defaultSerial(tid int, lun uint64) string { return fmt.Sprintf("beaf%d%d", tid, lun) }

func controller(tid int) unitView {
	return unitView{kind: "controller", id: defaultID(tid, 0), serial: defaultSerial(tid, 0), blockSize: 1, online: true, bstype: "null", path: "None"}
}

func describe(tid int, lun uint64, v *v1.Volume) unitView {
	u := unitView{
		kind: "disk", id: v.Unit.SCSIID, serial: v.Unit.Serial, size: v.Status.Size, blockSize: v.BlockSize,
		online: v.Status.State != v1.Offline && v.Status.State != v1.Failed, removable: v.Unit.Removable, prevented: v.Status.PreventRemoval,
		readOnly: v.Status.ReadOnly || v.Unit.ReadOnly || v.ReadOnly, swp: v.Status.SWP,
		thin: v.Status.Thin, flags: flagsShown(&v.Volume),
	}
	if b, ok := findBstype(v.Bstype); ok && b.kind != "" {
		u.kind, u.blockSize = b.kind, 1
	} else if v.Unit.Type == "cd" {
		u.kind, u.blockSize = "cd/dvd", 1
	}
	if u.id == "" {
		u.id = defaultID(tid, lun)
	}
	if u.serial == "" {
		u.serial = defaultSerial(tid, lun)
	}
	u.bstype, u.path = shown(&v.Volume)
	return u
}

func writeUnit(w io.Writer, lun uint64, u unitView) {
	fmt.Fprintf(w, `        LUN: %d
            Type: %s
            SCSI ID: %s
            SCSI SN: %s
            Size: %d MB, Block size: %d
            Online: %s
            Removable media: %s
            Prevent removal: %s
            Readonly: %s
            SWP: %s
            Thin-provisioning: %s
            Backing store type: %s
            Backing store path: %s
            Backing store flags: %s
`, lun, u.kind, u.id, u.serial, megabytes(u.size), u.blockSize, yesNo(u.online), yesNo(u.removable), yesNo(u.prevented),
		yesNo(u.readOnly), yesNo(u.swp), yesNo(u.thin), u.bstype, u.path, u.flags)
}

// megabytes are decimal and rounded to the nearest.
func megabytes(n int64) int64 {
	const mb = 1000 * 1000
	m := n / mb
	if n%mb >= mb/2 {
		m++
	}
	return m
}

func yesNo(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

// showSystem lists settings and what there is.
func (a *admin) showSystem() error {
	sys, err := a.api.System(a.ctx)
	if err != nil {
		return err
	}
	engines, err := a.api.Engines(a.ctx)
	if err != nil {
		return err
	}
	writeSystem(a.out, &sys.System, engines)
	return nil
}

func driverState(s *state.System) string {
	if s.Stopped() {
		return "stopped"
	}
	return "ready"
}

func writeSystem(w io.Writer, s *state.System, engines []v1.Engine) {
	st, debug := "ready", "off"
	if s.Offline {
		st = "offline"
	}
	if s.Debug {
		debug = "on"
	}
	fmt.Fprintf(w, "System:\n    State: %s\n    debug: %s\nLLDs:\n    iscsi: %s\n    iser: error\nBacking stores:\n", st, debug, driverState(s))
	for _, b := range bstypes() {
		if !slices.ContainsFunc(engines, func(e v1.Engine) bool { return e.Scheme == b.scheme }) {
			continue
		}
		fmt.Fprintf(w, "    %s", b.name)
		if b.flags {
			fmt.Fprint(w, " (bsoflags sync:direct)")
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "Device types:\n    disk\n    cd/dvd\n    controller")
	if len(s.DiscoveryAccounts) > 0 || s.DiscoveryOutgoingAccount != "" {
		fmt.Fprint(w, "    Account information:\n\n")
		for _, u := range s.DiscoveryAccounts {
			fmt.Fprintf(w, "    %s\n", u)
		}
		if s.DiscoveryOutgoingAccount != "" {
			fmt.Fprintf(w, "    %s (outgoing)\n", s.DiscoveryOutgoingAccount)
		}
	}
	port := s.Params["iSNSServerPort"]
	if port == "" {
		port = "3205"
	}
	fmt.Fprintf(w, "iSNS:\n    iSNS=Off\n    iSNSServerIP=%s\n    iSNSServerPort=%s\n    iSNSAccessControl=Off\n", s.Params["iSNSServerIP"], port)
}
