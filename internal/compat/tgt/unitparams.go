package tgt

import (
	"fmt"
	"math"
	"slices"
	"strings"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// idLength is where tgt cuts a SCSI id and a serial number.
const idLength = 36

// setUnitParams does one "logicalunit update": all of the list or, with an
// error, nothing. refresh asks for the size to be read again afterwards.
func setUnitParams(v *v1.Volume, dir, list string) (refresh bool, err error) {
	pairs, err := splitParams(list)
	if err != nil {
		return false, err
	}
	for _, p := range pairs {
		again, err := setUnitParam(v, dir, p.key, p.value)
		if err != nil {
			return false, err
		}
		refresh = refresh || again
	}
	return refresh, nil
}

type pair struct{ key, value string }

// splitParams cuts "k=v,k=v". What follows a comma and is no pair belongs to a
// path before it, which may have commas in it.
func splitParams(list string) ([]pair, error) {
	var out []pair
	for _, part := range strings.Split(list, ",") {
		if part == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok && k != "" && v != "":
			out = append(out, pair{k, v})
		case !ok && len(out) > 0 && out[len(out)-1].key == "path":
			out[len(out)-1].value += "," + part
		case ok && k != "":
			return nil, refuse("parameter %s has no value", k)
		default:
			return nil, refuse("parameter %q is not KEY=VALUE", part)
		}
	}
	return out, nil
}

func setUnitParam(v *v1.Volume, dir, key, value string) (refresh bool, err error) {
	u := &v.Unit
	switch key {
	case "vendor_id":
		u.Vendor = cut(value, 8)
	case "product_id":
		u.Product = cut(value, 16)
	case "product_rev":
		u.Revision = cut(value, 4)
	case "scsi_sn":
		u.Serial = cut(value, idLength)
	case "scsi_id":
		u.SCSIID = cut(value, idLength)
		u.NAA = naaOf(u.SCSIID)
	case "removable":
		u.Removable = truth(value)
	case "readonly":
		u.ReadOnly = truth(value)
	case "thin_provisioning":
		thin := truth(value)
		u.Thin = &thin
	case "sense_format":
		u.SenseFormat = integer(value)
	case "rotation_rate":
		u.RotationRate = integer(value)
	case "lbppbe":
		exp := integer(value)
		u.PhysicalExp = &exp
	case "la_lba":
		u.LowestAligned = integer(value)
	case "optimal_xfer_gran":
		u.OptimalGranularity = integer(value)
	case "optimal_xfer_len":
		u.OptimalLength = integer(value)
	case "mode_page":
		return false, setModePage(u, value)
	case "online":
		return false, setOnline(v, truth(value))
	case "path":
		return setPath(v, dir, value)
	case "disksize": // Curve's: the volume grew
		if value != "auto" {
			return false, refuse("disksize=%s: only auto, which reads the size again, is known", value)
		}
		return true, nil
	default:
		return false, refuse("there is no logical unit parameter %q", key)
	}
	return false, nil
}

func setOnline(v *v1.Volume, online bool) error {
	if online && v.URL == "" {
		return refuse("the unit has no medium; give it one with path=")
	}
	if !online && v.Status.PreventRemoval {
		return fail(msgPreventsRemoval)
	}
	v.Unit.Offline = !online
	return nil
}

// setPath changes the medium of a unit that is offline, has none or has lost its
// own, and puts it online. The same path again reads the size anew.
func setPath(v *v1.Volume, dir, path string) (refresh bool, err error) {
	if v.URL != "" && !v.Unit.Offline && v.Status.State != v1.Failed {
		return false, refuse("the unit is online; set online=0 before path=")
	}
	b, ok := findBstype(v.Bstype)
	if !ok {
		return false, refuse("volume %q was not made by tgtadm; change it where it was made", v.Name)
	}
	url, err := b.url(dir, path)
	if err != nil {
		return false, err
	}
	refresh = url == v.URL
	v.URL, v.BackingStore, v.Size = url, path, 0
	v.Unit.Offline = false
	return refresh, nil
}

// setModePage takes "page:subpage:length:byte:…". Two pages have bytes that can
// be given a start value: caching (WCE) and control (D_SENSE).
func setModePage(u *state.UnitParams, value string) error {
	var n []byte
	fields := strings.Split(value, ":")
	for _, f := range fields {
		x, rest, ok := leadingNumber(f)
		if !ok || rest == f || x > math.MaxUint8 {
			return refuse("mode_page=%s: %q is not a byte", value, f)
		}
		n = append(n, byte(x))
	}
	if len(n) < 3 || int(n[2]) != len(n)-3 {
		return refuse("mode_page=%s: want page:subpage:length and as many bytes as the length says", value)
	}
	page, subpage, data := n[0], n[1], n[3:]
	switch {
	case page == 0x08 && subpage == 0 && len(data) > 0:
		wce := data[0]&0x04 != 0
		u.WriteCache = &wce
	case page == 0x0a && subpage == 0 && len(data) > 2:
		if data[2]&0x08 != 0 {
			return refuse("mode_page=%s: SWP is set by initiators; set readonly=1", value)
		}
		u.SenseFormat = int(data[0] >> 2 & 1)
	default:
		return refuse("mode_page=%s: only the caching page (8) and the control page (0x0a) can be set", value)
	}
	prefix := fmt.Sprintf("%d:%d:", page, subpage)
	u.ModePages = slices.DeleteFunc(u.ModePages, func(s string) bool { return strings.HasPrefix(s, prefix) })
	text := fmt.Sprintf("%s%d", prefix, len(data))
	for _, b := range data {
		text += fmt.Sprintf(":%#x", b)
	}
	u.ModePages = append(u.ModePages, text)
	return nil
}

// naaOf makes the NAA identifier that tgt derives from a SCSI id, so that an
// initiator finds the disk under its old name: each character that is a hex
// digit gives its value, any other 0, the last 32 count, and the first is
// made 6 (NAA IEEE Registered Extended).
func naaOf(id string) string {
	naa := []byte(strings.Repeat("0", 32))
	for i := range len(id) {
		c := id[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		case c >= 'A' && c <= 'F':
			c |= 0x20
		default:
			c = '0'
		}
		naa = append(naa[1:], c)
	}
	naa[0] = '6'
	return string(naa)
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
