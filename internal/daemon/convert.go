package daemon

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"blockgate/backing"
	"blockgate/gateway"
	"blockgate/internal/state"
	"blockgate/iscsi"
	"blockgate/scsi"
)

// volumeConfig is a volume in the gateway's words. create makes the store if it
// is missing; that is asked for only when the volume itself is created: at a
// restart, a missing store is a fault and not something to be made anew.
func (d *Daemon) volumeConfig(v state.Volume, create bool) (gateway.VolumeConfig, error) {
	if d.isState(v.URL) {
		return gateway.VolumeConfig{}, &state.Error{Class: state.Refused, Code: state.CodeOpenFailed, Object: fmt.Sprintf("volume %q", v.Name),
			Reason: "is the daemon's own state, which initiators would overwrite", Hint: "name another file"}
	}
	u := v.Unit
	c := gateway.VolumeConfig{
		Name: v.Name, URL: v.URL, ReadOnly: v.ReadOnly, Direct: v.Direct, NoAIO: v.NoAIO, Sync: v.Sync,
		IgnorePartialBlock: v.PartialBlock == "ignore",
		Unit: scsi.UnitConfig{
			BlockSize: v.BlockSize, LowestAligned: u.LowestAligned,
			Vendor: u.Vendor, Product: u.Product, Revision: u.Revision, Serial: u.Serial, T10ID: u.SCSIID,
			ReadOnly: u.ReadOnly || v.ReadOnly, Removable: u.Removable, Offline: u.Offline,
			WriteCache:   u.WriteCache == nil || *u.WriteCache,
			RotationRate: u.RotationRate, OptimalGranularity: u.OptimalGranularity, OptimalLength: u.OptimalLength,
			DescriptorSense: u.SenseFormat == 1,
		},
	}
	var err error
	if c.Unit.Stall, err = scsi.ParseStallPolicy(v.Stall); err != nil {
		return c, err
	}
	if create && v.Size > 0 && !v.ReadOnly {
		c.Create, c.Size = true, v.Size
	}
	switch u.Type {
	case "cd":
		c.Unit.Type = scsi.TypeMultimedia
	case "controller":
		c.Unit.Type = scsi.TypeStorageController
	default:
		c.Unit.Type = scsi.TypeDirectAccess
	}
	if u.PhysicalExp != nil {
		c.Unit.PhysicalBlock = cmp.Or(v.BlockSize, scsi.DefaultBlockSize(c.Unit.Type)) << *u.PhysicalExp
	}
	if u.Thin != nil && !*u.Thin {
		c.Unit.Provisioning = scsi.ProvisioningFull
	}
	if _, err := hex.Decode(c.Unit.NAA[:], []byte(u.NAA)); err != nil {
		return c, fmt.Errorf("NAA identifier %q: %w", u.NAA, err)
	}
	for _, l := range v.Layers {
		c.Layers = append(c.Layers, gateway.Layer{Kind: l.Kind, Params: l.Params})
	}
	c.Unit.Reservations, c.Unit.Sanitize = d.st.Reservations(v.Name), d.st.Sanitize(v.Name)
	return c, nil
}

// isState tells whether a store is the state file. The path is compared and the
// file not looked at: a file system that hangs must not hold up a change.
func (d *Daemon) isState(url string) bool {
	scheme, path := backing.SplitURL(url)
	if scheme != "file" || d.cfg.StateDir == "" {
		return false
	}
	path, err := filepath.Abs(path)
	return err == nil && path == filepath.Join(d.cfg.StateDir, state.FileName)
}

func (d *Daemon) targetConfig(s *state.Snapshot, t state.Target) gateway.TargetConfig {
	c := gateway.TargetConfig{
		Name: t.Name, Alias: t.Alias, Offline: t.Offline, Controller: t.ControllerLUN0,
		Auth:    authPolicy(s, t.Accounts, t.OutgoingAccount),
		Offer:   offer(t.Params),
		PortIDs: map[uint16]uint16{},
	}
	for g, id := range t.PortIDs {
		c.PortIDs[uint16(g)] = id
	}
	for _, g := range t.PortalGroups {
		c.Groups = append(c.Groups, uint16(g))
	}
	c.ACL = gatewayRules(t.ACL)
	if addr := t.Params["RedirectAddress"]; addr != "" {
		c.Redirect = joinRedirect(addr, cmp.Or(t.Params["RedirectPort"], defaultRedirectPort))
		c.RedirectPermanent = t.Params["RedirectReason"] == "Permanent"
	} else if command := t.Params[state.RedirectCallback]; command != "" {
		c.RedirectTo = func(p iscsi.Peer) (string, bool, error) { return d.redirects.ask(command, t.Name, p) }
	}
	return c
}

func authPolicy(s *state.Snapshot, users []string, outgoing string) iscsi.AuthPolicy {
	var p iscsi.AuthPolicy
	for _, u := range users {
		a, _ := s.Account(u)
		// An account that is missing has no secret, which no response matches: the
		// target stays closed.
		p.Incoming = append(p.Incoming, iscsi.Account{User: u, Secret: a.Value.Secret})
	}
	if outgoing != "" {
		a, _ := s.Account(outgoing)
		p.Outgoing = &iscsi.Account{User: outgoing, Secret: a.Value.Secret}
	}
	return p
}

func discoveryPolicy(s *state.Snapshot) iscsi.AuthPolicy {
	sys := s.System().Value
	return authPolicy(s, sys.DiscoveryAccounts, sys.DiscoveryOutgoingAccount)
}

// offer is what a target negotiates: the defaults, changed by its parameters.
func offer(params map[string]string) iscsi.Offer {
	o := iscsi.DefaultOffer()
	for name, value := range params {
		n, _ := strconv.Atoi(value)
		yes := value == "Yes"
		switch name {
		case "nop_interval":
			o.NopInterval = n
		case "nop_count":
			o.NopCount = n
		case "MaxRecvDataSegmentLength":
			o.MaxRecvDataSegment = n
		case "HeaderDigest":
			o.HeaderDigests = digests(value)
		case "DataDigest":
			o.DataDigests = digests(value)
		case "InitialR2T":
			o.InitialR2T = yes
		case "MaxOutstandingR2T":
			o.MaxOutstandingR2T = n
		case "ImmediateData":
			o.ImmediateData = yes
		case "FirstBurstLength":
			o.FirstBurst = n
		case "MaxBurstLength":
			o.MaxBurst = n
		case "DataPDUInOrder":
			o.DataPDUInOrder = yes
		case "DataSequenceInOrder":
			o.DataSequenceInOrder = yes
		case "ErrorRecoveryLevel":
			o.ErrorRecoveryLevel = n
		case "DefaultTime2Wait":
			o.DefaultTime2Wait = n
		case "DefaultTime2Retain":
			o.DefaultTime2Retain = n
		case "MaxConnections":
			o.MaxConnections = n
		case "MaxXmitDataSegmentLength":
			o.MaxXmitCap = n
		case "MaxQueueCmd":
			o.MaxQueue = n
		}
	}
	o.FirstBurst = min(o.FirstBurst, o.MaxBurst) // RFC 7143 §13.14
	return o
}

// digests: tgt's "CRC32C" means that digests are possible, not that they are
// demanded.
func digests(value string) []string {
	l := strings.Split(value, ",")
	if !slices.Contains(l, "None") {
		l = append(l, "None")
	}
	return l
}

func portalConfig(p state.Portal) gateway.PortalConfig {
	return gateway.PortalConfig{Address: p.Address, Group: uint16(p.Group), Advertise: p.Advertise, Congestion: p.Congestion}
}

func gatewayRules(acl []state.ACLRule) []gateway.Rule {
	var out []gateway.Rule
	for _, r := range acl {
		rule := gateway.Rule{All: r.All, Initiator: r.Name, LUNs: r.LUNs}
		if r.Address != "" {
			p, err := state.ParseACLAddress(r.Address)
			if err != nil {
				continue // it matched nothing; the state checks rules before it takes them
			}
			rule.Network = p
		}
		out = append(out, rule)
	}
	return out
}
