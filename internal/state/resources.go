// Package state holds what should exist: resources, their validation, the plan
// that leads from one state to another, and the store that keeps them. It runs
// nothing; package daemon reconciles the running gateway with it.
package state

// The resources below have one shape for the API, for declared files, for the
// store and for the docs. Names are unique within a kind. Fields marked
// "identity" are made once from random bits when the resource is created and
// never change or depend on the order of creation.

// Volume is a named backing store.
type Volume struct {
	Name string `json:"name"`
	// URL names the store: "file:/srv/a.img", "ram:1G", "null:1T".
	URL string `json:"url"`
	// Size is wanted at creation, in bytes; 0 takes the store as it is.
	Size      int64 `json:"size,omitempty"`
	BlockSize int   `json:"blockSize,omitempty"` // 512 (default) or 4096
	ReadOnly  bool  `json:"readOnly,omitempty"`
	Direct    bool  `json:"direct,omitempty"`
	Sync      bool  `json:"sync,omitempty"`
	// NoAIO has a thread wait for each call of a direct volume, and uses no Linux AIO.
	NoAIO bool `json:"noAIO,omitempty"`
	// PartialBlock is what becomes of a store whose size is no multiple of the block
	// size: it is refused (""), or with "ignore" its whole blocks are served, as tgt
	// does. What is over is never written.
	PartialBlock string `json:"partialBlock,omitempty"`
	// Stall is what becomes of commands while the store does not answer: "hold"
	// (they wait; the same as ""), "fail=30s", "busy" or "busy=10s".
	Stall        string  `json:"stall,omitempty"`
	Bstype       string  `json:"bstype,omitempty"`       // as tgt's user named it: rdwr, aio, null, …
	BackingStore string  `json:"backingStore,omitempty"` // as tgt's user named it
	Layers       []Layer `json:"layers,omitempty"`

	Unit UnitParams `json:"unit"`

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// Layer is one stackable layer, the first nearest to the store.
type Layer struct {
	Kind   string            `json:"kind"` // delay, fault, readonly, …
	Params map[string]string `json:"params,omitempty"`
}

// UnitParams is how a volume looks as a logical unit.
type UnitParams struct {
	Type     string `json:"type,omitempty"`     // disk (default), cd, controller
	Serial   string `json:"serial,omitempty"`   // identity; VPD 80h
	NAA      string `json:"naa,omitempty"`      // identity; 32 hex digits, first is 6
	SCSIID   string `json:"scsiId,omitempty"`   // T10 designator text, if set by the user or by tgt's rule
	Vendor   string `json:"vendor,omitempty"`   // ≤ 8 characters
	Product  string `json:"product,omitempty"`  // ≤ 16
	Revision string `json:"revision,omitempty"` // ≤ 4

	Removable          bool     `json:"removable,omitempty"`
	ReadOnly           bool     `json:"readOnly,omitempty"`
	Offline            bool     `json:"offline,omitempty"`
	WriteCache         *bool    `json:"writeCache,omitempty"`  // initial WCE; nil: on
	Thin               *bool    `json:"thin,omitempty"`        // nil: what the store can
	SenseFormat        int      `json:"senseFormat,omitempty"` // 1: descriptor by default
	RotationRate       int      `json:"rotationRate,omitempty"`
	PhysicalExp        *int     `json:"physicalExp,omitempty"` // log2 of logical blocks per physical block; nil: from the store
	LowestAligned      int      `json:"lowestAligned,omitempty"`
	OptimalGranularity int      `json:"optimalGranularity,omitempty"` // blocks
	OptimalLength      int      `json:"optimalLength,omitempty"`      // blocks
	ModePages          []string `json:"modePages,omitempty"`          // tgt's mode_page strings
}

// Target is an iSCSI target node.
type Target struct {
	Name  string `json:"name"`         // the iSCSI name
	ID    int    `json:"id,omitempty"` // tgt's tid; 0: given at creation, the lowest free
	Alias string `json:"alias,omitempty"`
	// Offline refuses logins (03/00) without removing anything.
	Offline bool  `json:"offline,omitempty"`
	LUNs    []LUN `json:"luns,omitempty"` // sorted by number
	// ControllerLUN0 puts a storage array controller at LUN 0, as tgt does.
	ControllerLUN0 bool `json:"controllerLun0,omitempty"`
	// ACL: a login is allowed if any rule matches. No rule refuses every login.
	ACL []ACLRule `json:"acl,omitempty"`
	// Accounts: CHAP users (names of Account resources) that may log in; empty
	// means no authentication. OutgoingAccount is the target's own for mutual CHAP.
	Accounts        []string `json:"accounts,omitempty"`
	OutgoingAccount string   `json:"outgoingAccount,omitempty"`
	// PortalGroups by tag; empty means every portal of the gateway.
	PortalGroups []int `json:"portalGroups,omitempty"`
	// PortIDs are the relative target port identifiers (1 to 65535) of the
	// target's ports, by portal group tag; identity.
	PortIDs map[int]uint16 `json:"portIds,omitempty"`
	// Params: iSCSI keys and tgt's local ones (MaxQueueCmd, nop_interval, …), as
	// strings; what is absent has the default.
	Params map[string]string `json:"params,omitempty"`

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// LUN maps a volume into a target.
type LUN struct {
	Number uint64 `json:"number"`
	Volume string `json:"volume"`
	Scope  string `json:"scope,omitempty" yaml:"-"` // as a resource's
}

// ACLRule allows initiators. Exactly one field is set.
type ACLRule struct {
	All     bool   `json:"all,omitempty"`
	Address string `json:"address,omitempty"` // 10.0.0.1, 10.0.0.0/8, [fe80::1], [fe80::]/64
	Name    string `json:"name,omitempty"`    // an initiator's iSCSI name
	// LUNs, if not empty, is all that a matching initiator sees.
	LUNs  []uint64 `json:"luns,omitempty"`
	Scope string   `json:"scope,omitempty" yaml:"-"` // as a resource's
}

// Account is a CHAP user. The secret never appears in lists, exports or logs.
type Account struct {
	User   string `json:"user"`
	Secret string `json:"secret,omitempty"`

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// Portal is an address the gateway listens on.
type Portal struct {
	Address string `json:"address"` // ip:port, [ip6]:port; canonical
	Group   int    `json:"group"`   // target portal group tag, 1 to 65535
	// Advertise replaces Address in discovery answers (behind NAT).
	Advertise string `json:"advertise,omitempty"`
	// Congestion names the TCP congestion control of the portal's connections.
	// Empty: cubic. "-": the system's.
	Congestion string `json:"congestion,omitempty"`

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// System is the gateway's own settings; there is one.
type System struct {
	Offline bool `json:"offline,omitempty"` // accept and close, as tgt's State=offline
	Debug   bool `json:"debug,omitempty"`
	// Discovery authentication: CHAP users for discovery sessions.
	DiscoveryAccounts        []string          `json:"discoveryAccounts,omitempty"`
	DiscoveryOutgoingAccount string            `json:"discoveryOutgoingAccount,omitempty"`
	Params                   map[string]string `json:"params,omitempty"` // iSNS and others, kept for tgt's show

	// Scope owns the resource: the name in the declared file that it came from
	// (see Config). Empty: it was made by hand.
	Scope string `json:"scope,omitempty" yaml:"-"`
}

// ParamDriver is the parameter of the system that tgtadm's --op stop --mode lld
// sets to DriverStopped: no connection is taken until --op start, or until tgtd
// starts again.
const (
	ParamDriver   = "iscsi_driver"
	DriverStopped = "stopped"
)

// Stopped tells whether the iSCSI driver is stopped.
func (s *System) Stopped() bool { return s.Params[ParamDriver] == DriverStopped }
