package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"blockgate/internal/compat/tgtconf"
	"blockgate/internal/declare"
	"blockgate/internal/state"
)

// tgtImporter reads tgt-admin's targets.conf.
type tgtImporter struct{}

func (tgtImporter) Format() string { return "targets.conf" }

func (tgtImporter) Recognizes(path string) bool {
	return filepath.Ext(path) == ".conf" && (strings.Contains(filepath.Base(path), "targets") || strings.Contains(path, "/tgt/"))
}

func (tgtImporter) Import(path string) (declare.Imported, error) {
	conf, err := tgtconf.Load(tgtconf.OS(), path)
	if err != nil {
		e := &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: path, Reason: err.Error(), Err: err}
		if errors.Is(err, fs.ErrNotExist) {
			e.Class = state.NotFound
		}
		return declare.Imported{}, e
	}
	t := tgtImport{volumes: map[string]*state.Volume{}, secrets: map[string]string{}, ids: map[int]string{}}
	t.out.Files = conf.Files
	for _, w := range conf.Warnings {
		t.out.Warnings = append(t.out.Warnings, w.Error())
	}
	t.config(conf)
	if len(t.problems) > 0 {
		return declare.Imported{}, importError(path, t.problems)
	}
	return t.out, nil
}

// tgtImport is one import under way.
type tgtImport struct {
	out      declare.Imported
	problems []string
	volumes  map[string]*state.Volume // by store
	secrets  map[string]string        // by user
	ids      map[int]string           // targets that have their number already
	last     int                      // highest number so far
}

func (t *tgtImport) wrong(at tgtconf.Position, format string, a ...any) {
	t.problems = append(t.problems, at.String()+": "+fmt.Sprintf(format, a...))
}

func (t *tgtImport) warn(at tgtconf.Position, format string, a ...any) {
	t.out.Warnings = append(t.out.Warnings, at.String()+": "+fmt.Sprintf(format, a...))
}

func (t *tgtImport) config(conf *tgtconf.Config) {
	c := &t.out.Config
	sys := state.System{Params: map[string]string{}}
	for _, p := range conf.ISNS {
		sys.Params[p.Name] = p.Value
		t.warn(p.Pos, "%s is kept, but there is no iSNS client", p.Name)
	}
	if conf.DiscoveryIncoming != nil {
		sys.DiscoveryAccounts = []string{t.account(*conf.DiscoveryIncoming)}
	}
	if conf.DiscoveryOutgoing != nil {
		sys.DiscoveryOutgoingAccount = t.account(*conf.DiscoveryOutgoing)
	}
	if len(sys.Params)+len(sys.DiscoveryAccounts) > 0 || sys.DiscoveryOutgoingAccount != "" {
		c.System = &sys
	}
	for _, g := range conf.Targets {
		if g.TID != 0 {
			t.ids[g.TID] = g.Name
		}
	}
	for _, g := range conf.Targets {
		if g.Err != nil {
			t.problems = append(t.problems, g.Err.Error())
			continue
		}
		t.target(g)
	}
}

// account takes an account and gives its user.
func (t *tgtImport) account(a tgtconf.Account) string {
	was, known := t.secrets[a.User]
	switch {
	case !known:
		t.secrets[a.User] = a.Password
		t.out.Config.Accounts = append(t.out.Config.Accounts, state.Account{User: a.User, Secret: a.Password})
	case was != a.Password:
		t.wrong(a.Pos, "account %q has another password here; an account is the same for all targets", a.User)
	}
	return a.User
}

func (t *tgtImport) target(g *tgtconf.Target) {
	if g.Driver != "" && g.Driver != "iscsi" {
		t.wrong(g.Pos, "target %s: driver %s is not served, only iscsi", g.Name, g.Driver)
		return
	}
	out := state.Target{Name: g.Name, ID: g.TID, ControllerLUN0: true, Params: map[string]string{}}
	if out.ID == 0 {
		// As tgt-admin numbers them for a tgtd without targets.
		for out.ID = t.last + 1; t.ids[out.ID] != ""; {
			out.ID++
		}
		t.ids[out.ID] = g.Name
	}
	t.last = max(t.last, out.ID)
	t.rules(g, &out)
	for _, a := range g.Incoming {
		if user := t.account(a); !slices.Contains(out.Accounts, user) {
			out.Accounts = append(out.Accounts, user)
		}
	}
	if g.Outgoing != nil {
		out.OutgoingAccount = t.account(*g.Outgoing)
	}
	for _, p := range g.Params {
		if p.Name == "state" {
			out.Offline = p.Value == "offline"
			continue
		}
		name, value, err := state.CanonicalParam(p.Name, p.Value)
		switch {
		case err != nil:
			t.wrong(p.Pos, "%v", err)
		case name == "":
			t.warn(p.Pos, "%s has no counterpart", p.Name)
		default:
			out.Params[name] = value
		}
	}
	for _, s := range g.Stores {
		if s.LUN == 0 {
			t.wrong(s.Pos, "LUN 0 is the target's controller")
			continue
		}
		if v := t.store(out.ID, s); v != "" {
			out.LUNs = append(out.LUNs, state.LUN{Number: s.LUN, Volume: v})
		}
	}
	slices.SortFunc(out.LUNs, func(a, b state.LUN) int { return cmp.Compare(a.Number, b.Number) })
	t.out.Config.Targets = append(t.out.Config.Targets, out)
}

// rules are who may log in. tgt-admin opens a target without addresses to
// everyone, also if it names initiators; here the names are all there is.
func (t *tgtImport) rules(g *tgtconf.Target, out *state.Target) {
	add := func(r state.ACLRule) {
		if !slices.ContainsFunc(out.ACL, r.Equal) {
			out.ACL = append(out.ACL, r)
		}
	}
	for _, a := range g.Addresses {
		if a.Text == "ALL" {
			add(state.ACLRule{All: true})
			continue
		}
		addr := a.Text
		if _, err := state.ParseACLAddress(addr); err != nil {
			p, perr := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(addr))
			if perr != nil {
				t.wrong(a.Pos, "initiator-address %s: %v", addr, err)
				continue
			}
			addr = p.Masked().String()
		}
		add(state.ACLRule{Address: addr})
	}
	for _, n := range g.Names {
		add(state.ACLRule{Name: n.Text})
	}
	switch {
	case len(g.Names) == 0 && g.OpenToAll():
		add(state.ACLRule{All: true})
	case g.OpenToAll():
		t.warn(g.Pos, "target %s: tgt lets every initiator in where names and no address are given; here only those named may log in", g.Name)
	}
}

// store makes the volume of a store, or finds the one that another LUN has made
// of it, and gives its name.
func (t *tgtImport) store(tid int, s *tgtconf.Store) string {
	if s.Direct {
		t.warn(s.Pos, "%s: direct-store takes the identity of the SCSI device, which is not read; set scsi_id, scsi_sn and vendor_id if initiators depend on them", s.Path)
	}
	if s.DeviceType != "" && s.DeviceType != "disk" {
		t.wrong(s.Pos, "device-type %s is not imported, only disk", s.DeviceType)
		return ""
	}
	no := false
	v := &state.Volume{
		Name: fmt.Sprintf("tgt-%d-%d", tid, s.LUN), BlockSize: 512, BackingStore: s.Path,
		PartialBlock: "ignore", // as tgt does
		Unit: state.UnitParams{
			Type: "disk", Vendor: "IET", Product: "VIRTUAL-DISK", Revision: "0001", Thin: &no,
			SCSIID: fmt.Sprintf("IET     %04x%04x", tid, s.LUN), Serial: fmt.Sprintf("beaf%d%d", tid, s.LUN),
		},
	}
	if s.BlockSize != "" {
		n, err := strconv.Atoi(s.BlockSize)
		if err != nil {
			t.wrong(s.Pos, "block-size %q is not a number", s.BlockSize)
			return ""
		}
		v.BlockSize = n
	}
	if !t.engine(v, s) {
		return ""
	}
	if s.NoMedium {
		v.URL, v.BackingStore = "", ""
		v.Unit.Removable, v.Unit.Offline = true, true
	}
	if !s.WriteCache {
		v.Unit.WriteCache = &no
	}
	for _, p := range s.Params {
		t.unitParam(v, p)
	}
	if v.URL == "" || v.Bstype == "null" {
		t.out.Config.Volumes = append(t.out.Config.Volumes, *v)
		return v.Name
	}
	if was := t.volumes[v.URL]; was != nil {
		a, b := *was, *v
		for _, c := range []*state.Volume{&a, &b} {
			c.Name, c.Unit.SCSIID, c.Unit.Serial, c.Unit.NAA = "", "", "", ""
		}
		if !reflect.DeepEqual(a, b) {
			t.wrong(s.Pos, "%s is used twice with different settings; here it is one disk with several LUNs", s.Path)
		} else {
			t.warn(s.Pos, "%s is used twice: both LUNs are paths to one disk, with serial number %s", s.Path, was.Unit.Serial)
		}
		return was.Name
	}
	t.volumes[v.URL] = v
	t.out.Config.Volumes = append(t.out.Config.Volumes, *v)
	return v.Name
}

// engine sets which store a volume has, by tgt's bs-type.
func (t *tgtImport) engine(v *state.Volume, s *tgtconf.Store) bool {
	v.Bstype = s.Bstype
	if v.Bstype == "" {
		v.Bstype = "rdwr"
	}
	if s.Bsopts != "" && v.Bstype != "rbd" && v.Bstype != "glfs" {
		t.warn(s.Pos, "bsopts %q has no counterpart", s.Bsopts)
	}
	for f := range strings.SplitSeq(s.Bsoflags, ":") {
		switch f {
		case "":
		case "sync":
			v.Sync = true
		case "direct":
			v.Direct = true
		default:
			t.wrong(s.Pos, "bsoflags are sync and direct, not %q", f)
			return false
		}
	}
	switch v.Bstype {
	case "rdwr", "aio":
		if !filepath.IsAbs(s.Path) && !s.NoMedium {
			t.wrong(s.Pos, "%q: the path is relative", s.Path)
			return false
		}
		v.URL = "file:" + filepath.Clean(s.Path)
		v.Direct = v.Direct || v.Bstype == "aio"
	case "null":
		v.URL = "null:1T"
	case "sheepdog", "curve":
		v.URL = v.Bstype + ":" + s.Path
	case "rbd":
		v.URL = "rbd:" + s.Path
		if !strings.Contains(s.Path, "/") {
			v.URL = "rbd:rbd/" + s.Path
		}
		url, err := tgtconf.RBDOptions(v.URL, s.Bsopts)
		if err != nil {
			t.wrong(s.Pos, "%v", err)
			return false
		}
		v.URL = url
	case "glfs": // volume@host:file
		volume, rest, ok := strings.Cut(s.Path, "@")
		host, file, ok2 := strings.Cut(rest, ":")
		if !ok || !ok2 {
			t.wrong(s.Pos, "glfs wants volume@host:file, not %q", s.Path)
			return false
		}
		url, err := tgtconf.GlusterOptions("gluster:"+volume+"@"+host+"/"+strings.TrimPrefix(file, "/"), s.Bsopts)
		if err != nil {
			t.wrong(s.Pos, "%v", err)
			return false
		}
		v.URL = url
	default:
		t.wrong(s.Pos, "bs-type %s is not served", v.Bstype)
		return false
	}
	return true
}

func (t *tgtImport) unitParam(v *state.Volume, p tgtconf.Param) {
	if p.Name == "" {
		for kv := range strings.SplitSeq(p.Value, ",") {
			k, val, ok := strings.Cut(kv, "=")
			if !ok {
				t.wrong(p.Pos, "params %q is not a list of NAME=VALUE", p.Value)
				return
			}
			t.unitParam(v, tgtconf.Param{Pos: p.Pos, Name: strings.TrimSpace(k), Value: val})
		}
		return
	}
	u := &v.Unit
	number := func(into *int) {
		n, err := strconv.ParseInt(p.Value, 0, 32)
		if err != nil {
			t.wrong(p.Pos, "%s %q is not a number", p.Name, p.Value)
		}
		*into = int(n)
	}
	on := p.Value != "0"
	switch p.Name {
	case "vendor_id":
		u.Vendor = clip(p.Value, 8)
	case "product_id":
		u.Product = clip(p.Value, 16)
	case "product_rev":
		u.Revision = clip(p.Value, 4)
	case "scsi_sn":
		u.Serial = clip(p.Value, 36)
	case "scsi_id":
		u.SCSIID = clip(p.Value, 36)
		u.NAA = tgtNAA(u.SCSIID)
	case "removable":
		u.Removable = on
	case "readonly":
		u.ReadOnly = on
	case "thin_provisioning":
		u.Thin = &on
	case "online":
		u.Offline = !on
	case "sense_format":
		number(&u.SenseFormat)
	case "rotation_rate":
		number(&u.RotationRate)
	case "la_lba":
		number(&u.LowestAligned)
	case "optimal_xfer_gran":
		number(&u.OptimalGranularity)
	case "optimal_xfer_len":
		number(&u.OptimalLength)
	case "lbppbe":
		u.PhysicalExp = new(int)
		number(u.PhysicalExp)
	case "mode_page":
		if p.Value == tgtconf.CacheOffPage {
			off := false
			u.WriteCache = &off
			return
		}
		t.warn(p.Pos, "mode_page %s is not imported; set it with tgtadm", p.Value)
	default:
		t.warn(p.Pos, "%s has no counterpart in a unit", p.Name)
	}
}

func clip(s string, n int) string { return s[:min(len(s), n)] }

// tgtNAA makes the NAA identifier that tgt derives from a SCSI id: of its last
// 32 characters each hex digit is itself and any other 0, and the first is 6.
func tgtNAA(id string) string {
	digits := strings.Map(func(r rune) rune {
		if strings.ContainsRune("0123456789abcdef", r) {
			return r
		}
		if strings.ContainsRune("ABCDEF", r) {
			return r + 'a' - 'A'
		}
		return '0'
	}, id)
	digits = strings.Repeat("0", 32) + digits
	return "6" + digits[len(digits)-31:]
}
