package gateway

import (
	"blockgate/scsi"
	"blockgate/scsi/sense"
)

// announceLUNs tells the sessions of a target that its LUNs are others now
// (3F/0E), beside the unit attention that waits for their next command. It
// names LUN 0, which every initiator knows of, and not one that some may not
// see. Gateway.mu must not be held.
func (g *Gateway) announceLUNs(target string) {
	g.srv.Announce(target, scsi.FormatLUN(0), sense.ReportedLUNsChanged())
}

// announceSize tells the sessions of the targets that have the volume as a LUN
// that its capacity has changed (2A/09). Gateway.mu must not be held.
func (g *Gateway) announceSize(volume string) {
	g.mu.RLock()
	var maps []mapping
	if v := g.volumes[volume]; v != nil {
		maps = append(maps, v.maps...)
	}
	g.mu.RUnlock()
	for _, m := range maps {
		g.srv.Announce(m.target.name, scsi.FormatLUN(m.lun), sense.CapacityChanged())
	}
}

// announceUnit tells the sessions of the targets that have the volume as a LUN that
// there is another unit now. Gateway.mu must not be held.
func (g *Gateway) announceUnit(volume string) {
	g.mu.RLock()
	var maps []mapping
	if v := g.volumes[volume]; v != nil {
		maps = append(maps, v.maps...)
	}
	g.mu.RUnlock()
	for _, m := range maps {
		g.announceLUNs(m.target.name)
	}
}
