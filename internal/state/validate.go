package state

import (
	"slices"
	"strings"

	"blockgate/backing"
	"blockgate/scsi"
)

// Bounds on what a single resource may hold; they keep one request from
// growing the state without limit.
const (
	maxLUNs   = 16384 // flat addressing (SAM-5 §4.7.7.5)
	maxRules  = 4096
	maxLayers = 16
	maxParams = 64

	maxLayerKind = 64 // bytes
	maxSize      = int64(1) << 62
)

func (v *Volume) normalize(old *Volume) error {
	if err := CheckVolumeName(v.Name); err != nil {
		return err
	}
	if err := checkOwner(KindVolume, v.Name, v.Scope); err != nil {
		return err
	}
	bad := func(hint, format string, a ...any) error {
		return invalid(CodeInvalidValue, KindVolume, v.Name, hint, format, a...)
	}
	if v.URL != "" {
		scheme, rest := backing.SplitURL(v.URL)
		if rest == "" || len(v.URL) > 4096 || strings.ContainsRune(v.URL, 0) {
			return bad("for example file:/srv/disk.img or ram:1G", "%q does not name a store", v.URL)
		}
		if scheme == "file" && !strings.HasPrefix(rest, "/") {
			return bad("give an absolute path: the daemon has another working directory", "the path %q is relative", rest)
		}
	}
	switch v.BlockSize {
	case 0:
		v.BlockSize = 512
		if v.Unit.Type == "cd" {
			v.BlockSize = 2048
		}
	case 512, 1024, 2048, 4096:
	default:
		return bad("use 512 or 4096", "a block size of %d bytes is not possible", v.BlockSize)
	}
	if v.Size < 0 || v.Size > maxSize {
		return bad("", "a size of %d bytes is not possible", v.Size)
	}
	if rest := v.Size % int64(v.BlockSize); rest != 0 {
		return bad("", "the size of %d bytes is not a multiple of the block size, %d", v.Size, v.BlockSize)
	}
	switch v.PartialBlock {
	case "", "ignore":
	case "refuse":
		v.PartialBlock = ""
	default:
		return bad("use refuse or ignore", "a partial block cannot be treated as %q", v.PartialBlock)
	}
	switch p, err := scsi.ParseStallPolicy(v.Stall); {
	case err != nil:
		return bad("use hold, fail=30s or busy=10s", "%v", err)
	case p.Action == scsi.StallHold:
		v.Stall = ""
	default:
		v.Stall = p.String()
	}
	if len(v.Layers) > maxLayers {
		return bad("", "more than %d layers", maxLayers)
	}
	for _, l := range v.Layers {
		if len(l.Kind) > maxLayerKind {
			return bad("see what there is: blockgate engine list", "there is no layer %q", l.Kind)
		}
	}
	var oldUnit *UnitParams
	if old != nil {
		oldUnit = &old.Unit
	}
	v.Unit.identify(oldUnit)
	return v.Unit.check(bad)
}

func (u *UnitParams) check(bad func(hint, format string, a ...any) error) error {
	switch u.Type {
	case "":
		u.Type = "disk"
	case "disk", "cd", "controller":
	default:
		return bad("use disk", "there is no unit type %q", u.Type)
	}
	u.NAA = strings.ToLower(u.NAA)
	if len(u.NAA) != 32 || !hexDigits(u.NAA) || u.NAA[0] != '6' {
		return bad("", "the NAA identifier %q is not 32 hex digits beginning with 6", u.NAA)
	}
	for _, f := range []struct {
		what, text string
		max        int
	}{
		{"vendor", u.Vendor, 8}, {"product", u.Product, 16}, {"revision", u.Revision, 4},
		{"serial number", u.Serial, 36}, {"SCSI id", u.SCSIID, 36},
	} {
		if len(f.text) > f.max {
			return bad("", "the %s %q is longer than %d characters", f.what, f.text, f.max)
		}
		for _, c := range []byte(f.text) { // SPC-4 §4.4.1: ASCII data fields
			if c < 0x20 || c > 0x7e {
				return bad("", "the %s has the byte %#02x, which is not printable ASCII", f.what, c)
			}
		}
	}
	for _, f := range []struct {
		what     string
		value    int
		min, max int
	}{
		{"sense format", u.SenseFormat, 0, 1}, {"rotation rate", u.RotationRate, 0, 0xfffe},
		{"lowest aligned LBA", u.LowestAligned, 0, 0x3fff},
		{"optimal transfer granularity", u.OptimalGranularity, 0, 0xffff},
		{"optimal transfer length", u.OptimalLength, 0, 0x7fffffff},
	} {
		if f.value < f.min || f.value > f.max {
			return bad("", "the %s %d is not in %d to %d", f.what, f.value, f.min, f.max)
		}
	}
	if u.PhysicalExp != nil && (*u.PhysicalExp < 0 || *u.PhysicalExp > 15) {
		return bad("", "the physical block exponent %d is not in 0 to 15", *u.PhysicalExp)
	}
	if len(u.ModePages) > maxParams {
		return bad("", "more than %d mode pages", maxParams)
	}
	return nil
}

func (t *Target) normalize() error {
	if err := CheckTargetName(t.Name); err != nil {
		return err
	}
	if err := checkOwner(KindTarget, t.Name, t.Scope); err != nil {
		return err
	}
	bad := func(hint, format string, a ...any) error {
		return invalid(CodeInvalidValue, KindTarget, t.Name, hint, format, a...)
	}
	if t.ID < 0 || t.ID > 0x7fffffff {
		return bad("", "the target id %d is not possible", t.ID)
	}
	if len(t.Alias) > 255 || !printable(t.Alias) {
		return bad("", "an alias has at most 255 printable bytes")
	}
	if len(t.LUNs) > maxLUNs || len(t.ACL) > maxRules || len(t.Accounts) > maxRules || len(t.Params) > maxParams {
		return bad("", "too many LUNs, access rules, accounts or parameters")
	}
	slices.SortFunc(t.LUNs, func(a, b LUN) int {
		return lunRefCompare(LUNRef{Number: a.Number}, LUNRef{Number: b.Number})
	})
	for i, l := range t.LUNs {
		if err := checkOwner(KindTarget, t.Name, l.Scope); err != nil {
			return err
		}
		if l.Number >= maxLUNs {
			return bad("use 0 to 16383", "LUN %d is not possible", l.Number)
		}
		if i > 0 && t.LUNs[i-1].Number == l.Number {
			return bad("", "LUN %d is there twice", l.Number)
		}
		if l.Number == 0 && t.ControllerLUN0 {
			return conflict(CodeLUNExists, KindTarget, t.Name, "use LUN 1 or above", "LUN 0 is its controller")
		}
	}
	for i, r := range t.ACL {
		if err := checkRule(KindTarget, t.Name, r); err != nil {
			return err
		}
		if err := checkOwner(KindTarget, t.Name, r.Scope); err != nil {
			return err
		}
		if slices.ContainsFunc(t.ACL[:i], r.same) {
			return conflict(CodeACLExists, KindTarget, t.Name, "", "the access rule %s is there already", r)
		}
	}
	for _, g := range t.PortalGroups {
		if g < 1 || g > 65535 {
			return bad("", "the portal group tag %d is not in 1 to 65535", g)
		}
	}
	for g, id := range t.PortIDs {
		if g < 1 || g > 65535 || id == 0 {
			return bad("", "relative target port ids and portal group tags are 1 to 65535")
		}
	}
	return checkParams(t)
}

func (p *Portal) normalize() error {
	addr, err := ParsePortal(p.Address)
	if err != nil {
		return err
	}
	p.Address = addr
	if err := checkOwner(KindPortal, addr, p.Scope); err != nil {
		return err
	}
	if strings.HasSuffix(addr, ":0") {
		return invalid(CodeInvalidValue, KindPortal, addr, "", "a portal that is kept needs a port other than 0")
	}
	if p.Group == 0 {
		p.Group = 1
	}
	if p.Group < 1 || p.Group > 65535 {
		return invalid(CodeInvalidValue, KindPortal, addr, "", "the portal group tag %d is not in 1 to 65535", p.Group)
	}
	if p.Advertise != "" {
		if len(p.Advertise) > 255 || !printable(p.Advertise) || strings.ContainsAny(p.Advertise, " ,") || !strings.Contains(p.Advertise, ":") {
			return invalid(CodeInvalidValue, KindPortal, addr, "write it as host:port", "%q cannot be advertised", p.Advertise)
		}
	}
	if c := p.Congestion; c != "" && c != "-" && (len(c) > 15 || strings.Trim(c, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "") {
		return invalid(CodeInvalidValue, KindPortal, addr, "", "%q is no name of a TCP congestion control", c)
	}
	return nil
}
