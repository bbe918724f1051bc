package tgtconf

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Config gives the meaning of the directives.
func (t *Tree) Config() (*Config, error) {
	c := &Config{ControlPort: -1, Files: t.Files, Warnings: slices.Clone(t.Warnings)}
	var blocks []*Node
	seen := map[string]*Node{}
	for _, n := range t.Nodes {
		switch {
		case n.Block && n.Key == "target" && n.Value != "":
			blocks = append(blocks, n)
			continue
		case n.Block:
			c.warn(n.Pos, "<%s> is not known and has no effect; targets are in <target NAME>", n.title())
			continue
		}
		if first, twice := seen[n.Key]; twice && slices.Contains(globals, n.Key) {
			return nil, failf(n.Pos, "%s is there twice, first at %s", n.Key, first.Pos)
		}
		seen[n.Key] = n
		if err := c.global(n); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(c.ISNS, func(a, b Param) int {
		return cmp.Compare(slices.Index(globals, a.Name), slices.Index(globals, b.Name))
	})
	c.targets(blocks)
	return c, nil
}

// globals each may be given once. The first four are in the order in which
// they are set.
var globals = []string{
	"iSNSAccessControl", "iSNSServerIP", "iSNSServerPort", "iSNS",
	"default-driver", "ignore-errors", "control-port", "incomingdiscoveryuser", "outgoingdiscoveryuser",
}

func (c *Config) warn(at Position, format string, a ...any) {
	c.Warnings = append(c.Warnings, failf(at, format, a...))
}

func (c *Config) global(n *Node) error {
	switch n.Key {
	case "default-driver":
		c.DefaultDriver = n.Value
	case "ignore-errors":
		c.IgnoreErrors = n.Value == "yes"
	case "control-port":
		port, err := strconv.ParseUint(n.Value, 0, 15)
		if err != nil {
			return failf(n.Pos, "control-port %q is not a number from 0 to 32767", n.Value)
		}
		c.ControlPort = int(port)
	case "iSNSAccessControl", "iSNSServerIP", "iSNSServerPort", "iSNS":
		if n.Value == "" {
			return failf(n.Pos, "%s has no value", n.Key)
		}
		c.ISNS = append(c.ISNS, Param{n.Pos, n.Key, n.Value})
	case "incomingdiscoveryuser", "outgoingdiscoveryuser":
		a, err := c.account(n)
		if err != nil {
			return err
		}
		if n.Key == "incomingdiscoveryuser" {
			c.DiscoveryIncoming = a
		} else {
			c.DiscoveryOutgoing = a
		}
	default:
		c.warn(n.Pos, "%s is not known here and has no effect", n.Key)
	}
	return nil
}

// account reads "user password". What follows the password is dropped, as
// tgt-admin does.
func (c *Config) account(n *Node) (*Account, error) {
	f := strings.Fields(n.Value)
	if len(f) < 2 {
		return nil, failf(n.Pos, "%s wants a user and a password", n.Key)
	}
	if len(f) > 2 {
		c.warn(n.Pos, "%s: what follows the password is dropped; a password has no blanks", n.Key)
	}
	return &Account{n.Pos, f[0], f[1]}, nil
}

func (c *Config) targets(blocks []*Node) {
	byName := map[string][]*Node{}
	for _, b := range blocks {
		if byName[b.Value] == nil {
			c.Targets = append(c.Targets, &Target{Pos: b.Pos, Name: b.Value})
		}
		byName[b.Value] = append(byName[b.Value], b.Nodes...)
	}
	slices.SortFunc(c.Targets, func(a, b *Target) int { return cmp.Compare(a.Name, b.Name) })
	for _, t := range c.Targets {
		r := &reader{Config: c, target: t}
		if err := r.read(byName[t.Name]); err != nil {
			t.Err = asError(t.Pos, err)
		}
	}
}

// IsTargetParam tells whether a directive of that name is an iSCSI key that
// tgt-admin passes on to the target.
func IsTargetParam(name string) bool {
	switch name {
	case "MaxRecvDataSegmentLength", "MaxXmitDataSegmentLength", "HeaderDigest", "DataDigest", "InitialR2T",
		"MaxOutstandingR2T", "ImmediateData", "FirstBurstLength", "MaxBurstLength", "DataPDUInOrder",
		"DataSequenceInOrder", "ErrorRecoveryLevel", "IFMarker", "OFMarker", "DefaultTime2Wait",
		"DefaultTime2Retain", "OFMarkInt", "IFMarkInt", "MaxConnections":
		return true
	}
	return strings.HasPrefix(name, "state")
}
