package gateway

import (
	"fmt"
	"slices"
	"strings"

	"blockgate/backing"
	"blockgate/scsi"
)

// VolumeInfo describes a volume in use.
type VolumeInfo struct {
	Name, URL                                             string
	Store                                                 backing.Info
	Size                                                  int64 // bytes; 0 without medium
	BlockSize                                             int   // bytes
	ReadOnly, Offline, Thin, Busy, WriteProtected, Locked bool  // Locked: an initiator prevents removal
	Pending                                               bool  // its store is still to come; see AddPending
	Snapshots                                             bool  // the store can have snapshots
	Health                                                scsi.Health
	Stats                                                 scsi.UnitStats
}

// Volume describes one volume.
func (g *Gateway) Volume(name string) (VolumeInfo, error) {
	g.mu.RLock()
	v := g.volumes[name]
	var cur volume
	if v != nil {
		cur = *v
	}
	g.mu.RUnlock()
	if cur.unit == nil {
		return VolumeInfo{}, fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	return cur.info(), nil
}

// Volumes describes all volumes by name.
func (g *Gateway) Volumes() []VolumeInfo {
	g.mu.RLock()
	list := make([]volume, 0, len(g.volumes))
	for _, v := range g.volumes {
		if v.unit != nil {
			list = append(list, *v)
		}
	}
	g.mu.RUnlock()
	out := make([]VolumeInfo, len(list))
	for i := range list {
		out[i] = list[i].info()
	}
	slices.SortFunc(out, func(a, b VolumeInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (v *volume) info() VolumeInfo {
	c := v.unit.Config()
	i := VolumeInfo{
		Name: v.cfg.Name, URL: v.cfg.URL, Store: backing.InfoOf(v.store), Size: v.store.Size(), BlockSize: v.unit.BlockSize(),
		Offline: c.Offline, Busy: v.unit.Busy(), WriteProtected: v.unit.SoftwareWriteProtected(), Locked: v.unit.RemovalPrevented(),
		Health: v.unit.Health(), Stats: v.unit.Stats(),
	}
	if v.cfg.IgnorePartialBlock {
		i.Size -= i.Size % int64(i.BlockSize)
	}
	i.ReadOnly = c.ReadOnly || i.Store.ReadOnly
	_, discards := backing.As[backing.Discarder](v.store)
	i.Thin = discards && c.Provisioning != scsi.ProvisioningFull
	i.Pending = v.pending()
	_, i.Snapshots = backing.As[backing.Snapshotter](v.store)
	if _, none := v.store.(noMedium); none || i.Pending {
		i.Size, i.ReadOnly, i.Store = 0, c.ReadOnly, backing.Info{}
	}
	return i
}

// Portals describes the portals by address.
func (g *Gateway) Portals() []PortalInfo {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]PortalInfo, 0, len(g.portals))
	for _, p := range g.portals {
		out = append(out, PortalInfo{PortalConfig: p.cfg, Bound: p.addr, Err: p.err})
	}
	slices.SortFunc(out, func(a, b PortalInfo) int { return strings.Compare(a.Address, b.Address) })
	return out
}
