package scsi

import (
	"cmp"
	"encoding/binary"
	"slices"

	"blockgate/scsi/sense"
)

// reportTargetPortGroups is REPORT TARGET PORT GROUPS (SPC-4 §6.37). Every group
// is active/optimized; the ports are those by which the unit is reached now.
func reportTargetPortGroups(t *Task) {
	b := make([]byte, 4)
	switch t.CDB[1] >> 5 {
	case 0:
	case 1: // extended header; the implicit transition time is not bounded
		b = append(b, 0x10, 0, 0, 0)
	default:
		t.Fail(sense.InvalidFieldInCDB(1, 7))
		return
	}
	ports := t.unit.ports()
	for len(ports) > 0 {
		g := ports[0].Group
		n := slices.IndexFunc(ports, func(p TargetPort) bool { return p.Group != g })
		if n < 0 {
			n = len(ports)
		}
		n = min(n, 255)
		// Active/optimized, and no other state (AO_SUP).
		b = append(b, 0x00, 0x01, byte(g>>8), byte(g), 0, 0, 0, byte(n))
		for _, p := range ports[:n] {
			b = append(b, 0, 0, byte(p.RelID>>8), byte(p.RelID))
		}
		ports = slices.DeleteFunc(ports[n:], func(p TargetPort) bool { return p.Group == g })
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	t.Respond(b, int64(binary.BigEndian.Uint32(t.CDB[6:])))
}

// ports lists the target ports by group and relative identifier, names left out.
func (u *Unit) ports() []TargetPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	seen := make(map[TargetPort]bool)
	var ps []TargetPort
	for i := range u.itls {
		p := TargetPort{RelID: i.nexus.cfg.Port.RelID, Group: i.nexus.cfg.Port.Group}
		if !seen[p] {
			seen[p] = true
			ps = append(ps, p)
		}
	}
	slices.SortFunc(ps, func(a, b TargetPort) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.RelID, b.RelID))
	})
	return ps
}
