package tgt

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/compat/tgtconf"
	"blockgate/internal/state"
)

// dump prints the running targets in the form of targets.conf, complete but for
// the passwords, which the daemon never gives away. What has its default is left
// out.
func (m *manager) dump() error {
	sys, err := m.api.System(m.ctx)
	if err != nil {
		return m.failed(m.adm()+" --op show --mode sys", err)
	}
	names := m.names()
	if len(names) == 0 && len(sys.DiscoveryAccounts) == 0 && sys.DiscoveryOutgoingAccount == "" {
		return nil
	}
	fmt.Fprint(m.out, "default-driver iscsi\n\n")
	for _, u := range sys.DiscoveryAccounts {
		fmt.Fprintf(m.out, "incomingdiscoveryuser %s %s\n", u, hidden)
	}
	if u := sys.DiscoveryOutgoingAccount; u != "" {
		fmt.Fprintf(m.out, "outgoingdiscoveryuser %s %s\n", u, hidden)
	}
	for _, name := range names {
		m.dumpTarget(m.running[name])
	}
	return nil
}

func (m *manager) dumpTarget(t *v1.Target) {
	fmt.Fprintf(m.out, "<target %s>\n", t.Name)
	line := func(key, value string) {
		if strings.Contains(value, "\n") {
			fmt.Fprintf(m.out, "\t# %s has a value with several lines and is left out\n", key)
			return
		}
		fmt.Fprintf(m.out, "\t%s %s\n", key, quote(value))
	}
	m.dumpStores(t)
	for _, k := range targetKeys() {
		v, set := t.Params[k.name]
		switch {
		case !set || v == k.value:
		case tgtconf.IsTargetParam(k.name):
			line(k.name, v)
		default:
			fmt.Fprintf(m.out, "\t# %s is %s; targets.conf has no directive for it\n", k.name, v)
		}
	}
	if addr := t.Params["RedirectAddress"]; addr != "" {
		fmt.Fprintf(m.out, "\t# logins are redirected to %s; targets.conf has no directive for it\n", addr)
	}
	for _, u := range t.Accounts {
		line("incominguser", u+" "+hidden)
	}
	if t.OutgoingAccount != "" {
		line("outgoinguser", t.OutgoingAccount+" "+hidden)
	}
	onlyAll := len(t.ACL) == 1 && t.ACL[0].All
	for _, r := range t.ACL {
		switch {
		case onlyAll:
		case r.All:
			line("initiator-address", "ALL")
		case r.Address != "":
			line("initiator-address", r.Address)
		default:
			line("initiator-name", r.Name)
		}
	}
	if len(t.ACL) == 0 {
		fmt.Fprint(m.out, "\t# nobody may log in; without an initiator-address this file lets ALL in\n")
	}
	if t.Offline {
		line("state", "offline")
	}
	// Default identities are made of the number.
	line("controller_tid", strconv.Itoa(t.ID))
	fmt.Fprint(m.out, "</target>\n\n")
}

// dumpStores prints the stores: as plain lines if the file would give them the
// same numbers and nothing else is to say, as blocks otherwise.
func (m *manager) dumpStores(t *v1.Target) {
	type store struct {
		lun    state.LUN
		volume *v1.Volume
		lines  []string
	}
	var all []store
	for _, l := range t.LUNs {
		v := m.volumes[l.Volume]
		if v == nil {
			continue
		}
		if _, known := findBstype(first(v.Bstype, bstypeOf(v.URL))); !known {
			fmt.Fprintf(m.out, "\t# LUN %d is the volume %s (%s), which targets.conf cannot say\n", l.Number, v.Name, v.URL)
			continue
		}
		all = append(all, store{l, v, unitLines(t.ID, l.Number, v)})
	}
	plain := true
	paths := make([]string, len(all))
	for i, s := range all {
		_, paths[i] = shown(&s.volume.Volume)
		plain = plain && len(s.lines) == 0 && s.lun.Number == uint64(i+1) && paths[i] != "None"
	}
	if plain && slices.IsSorted(paths) {
		for _, p := range paths {
			fmt.Fprintf(m.out, "\tbacking-store %s\n", quote(p))
		}
		return
	}
	for i, s := range all {
		path := paths[i]
		if path == "None" {
			path = fmt.Sprintf("NONE:%d", s.lun.Number)
		}
		fmt.Fprintf(m.out, "\t<backing-store %s>\n\t\tlun %d\n", quote(path), s.lun.Number)
		for _, l := range s.lines {
			fmt.Fprintf(m.out, "\t\t%s\n", l)
		}
		fmt.Fprint(m.out, "\t</backing-store>\n")
	}
}

func bstypeOf(url string) string {
	kind, _ := shown(&state.Volume{URL: url})
	return kind
}

// unitLines are the directives for what a unit has beside its store.
func unitLines(tid int, lun uint64, v *v1.Volume) []string {
	var out []string
	text := func(key, value, usual string) {
		if value != "" && value != usual {
			out = append(out, key+" "+quote(value))
		}
	}
	number := func(key string, value, usual int) {
		if value != usual {
			out = append(out, fmt.Sprintf("%s %d", key, value))
		}
	}
	flag := func(key string, value bool) {
		if value {
			out = append(out, key+" 1")
		}
	}
	u := &v.Unit
	text("bs-type", first(v.Bstype, bstypeOf(v.URL)), "rdwr")
	text("bsoflags", flagsShown(&v.Volume), "")
	number("block-size", v.BlockSize, 512)
	if u.Type == "cd" {
		out = append(out, "device-type cd")
	}
	text("scsi_id", u.SCSIID, defaultID(tid, lun))
	text("scsi_sn", u.Serial, defaultSerial(tid, lun))
	text("vendor_id", u.Vendor, "IET")
	text("product_id", u.Product, "VIRTUAL-DISK")
	text("product_rev", u.Revision, "0001")
	number("sense_format", u.SenseFormat, 0)
	flag("removable", u.Removable && v.URL != "")
	flag("readonly", u.ReadOnly)
	if u.PhysicalExp != nil {
		number("lbppbe", *u.PhysicalExp, -1)
	}
	number("la_lba", u.LowestAligned, 0)
	number("optimal_xfer_gran", u.OptimalGranularity, 0)
	number("optimal_xfer_len", u.OptimalLength, 0)
	if u.RotationRate != 0 {
		out = append(out, fmt.Sprintf("params rotation_rate=%d", u.RotationRate))
	}
	if u.Thin != nil && *u.Thin {
		out = append(out, "params thin_provisioning=1")
	}
	for _, p := range u.ModePages {
		out = append(out, "mode_page "+p)
	}
	if u.WriteCache != nil && !*u.WriteCache && len(u.ModePages) == 0 {
		out = append(out, "write-cache off")
	}
	if u.Offline && v.URL != "" {
		out = append(out, "online 0")
	}
	return out
}

// quote writes a value so that the file's grammar gives it back.
func quote(v string) string {
	v = strings.NewReplacer(`\`, `\\`, "#", `\#`, `"`, `\"`, "$", `\$`).Replace(v)
	if v == "" || strings.Trim(v, " \t") != v || strings.Contains(v, "  ") || strings.HasSuffix(v, `\`) {
		return `"` + v + `"`
	}
	return v
}
