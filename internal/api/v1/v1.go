// Package v1 holds what travels over the API, beside the resources of package
// state: what the resources look like while they run, sessions, counters and
// errors. Server and client share it; it has no behaviour.
package v1

import (
	"time"

	"blockgate/internal/state"
)

// Conditions of a volume, a LUN or a portal.
const (
	Online  = "online"
	Offline = "offline" // by an administrator
	Failed  = "failed"  // Error says why
	// Of a volume that runs, with VolumeStatus.Health:
	Stalled = "stalled" // commands wait for a store that does not answer
	Failing = "failing" // the store fails the commands that need it
)

// Volume is a volume and what has become of it.
type Volume struct {
	state.Volume
	Revision uint64       `json:"revision"`
	Status   VolumeStatus `json:"status"`
	// Warnings are about the change that this answers.
	Warnings []string `json:"warnings,omitempty"`
}

// VolumeStatus is how a volume runs. Sizes are bytes.
type VolumeStatus struct {
	State string `json:"state"` // online, offline, failed, stalled, failing
	Error string `json:"error,omitempty"`
	// Health is how the store of a volume that runs fares, if not well.
	Health *Health `json:"health,omitempty"`
	// Attempts, of a failed volume, is how often it was tried again since the
	// daemon started or the volume last ran; NextAttempt is when that is done next.
	// Without one nothing is tried.
	Attempts    int            `json:"attempts,omitempty"`
	NextAttempt *time.Time     `json:"nextAttempt,omitempty"`
	Engine      string         `json:"engine,omitempty"`
	Location    string         `json:"location,omitempty"`
	Size        int64          `json:"size"`
	BlockSize   int            `json:"blockSize"`
	ReadOnly    bool           `json:"readOnly"`
	Thin        bool           `json:"thin"`
	UsedBy      []state.LUNRef `json:"usedBy,omitempty"`
	// Exports are the names by which NBD clients are served.
	Exports []string `json:"exports,omitempty"`
	// LockedBy is who has the engine's lock on the store, as far as is known: "this
	// gateway", a sheep's address.
	LockedBy string `json:"lockedBy,omitempty"`
	// DirectIO is how a direct volume waits for its medium: "aio", or "threads" and
	// why.
	DirectIO string `json:"directIO,omitempty"`
	// SWP: write protected by an initiator (control mode page).
	SWP bool `json:"swp,omitempty"`
	// PreventRemoval: an initiator prevents medium removal.
	PreventRemoval bool `json:"preventRemoval,omitempty"`
	// Busy: commands are running.
	Busy bool `json:"busy,omitempty"`
}

// Health is how a store fares.
type Health struct {
	State  string    `json:"state" enum:"stalled,failing,failed"` // failed: until it is opened again
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	Errors int       `json:"errors,omitempty"` // commands in a row that the store has failed
	Inside int       `json:"inside,omitempty"` // commands that the store has not answered yet
}

// Target is a target and what has become of it.
type Target struct {
	state.Target
	Revision uint64       `json:"revision"`
	Status   TargetStatus `json:"status"`
}

// TargetStatus is how a target runs.
type TargetStatus struct {
	State    string `json:"state"` // online, offline
	Sessions int    `json:"sessions"`
	// FailedLUNs are those whose volume is failed. To initiators they are not
	// ready, and absent if the daemon has no engine for the volume.
	FailedLUNs []uint64 `json:"failedLuns,omitempty"`
}

// PortGroup is a target port group (SPC-4 §5.15): the paths by one portal group.
type PortGroup struct {
	Group uint16 `json:"group"`
	// State: active/optimized, active/non-optimized, standby, unavailable,
	// offline, transitioning.
	State     string `json:"state"`
	Preferred bool   `json:"preferred"`
	// ChangedBy is "administrator" or "initiator"; empty: nobody.
	ChangedBy string   `json:"changedBy,omitempty"`
	Ports     []uint16 `json:"ports"` // relative target port identifiers
}

// SetPortGroup changes a target port group; what is absent stays.
type SetPortGroup struct {
	State     string `json:"state,omitempty"`
	Preferred *bool  `json:"preferred,omitempty"`
}

// LUN is a LUN with its volume.
type LUN struct {
	Number uint64 `json:"number"`
	Volume Volume `json:"volume"`
}

// Account is a CHAP account without its secret.
type Account struct {
	User     string `json:"user"`
	Revision uint64 `json:"revision"`
}

// Portal is a portal and what has become of it.
type Portal struct {
	state.Portal
	Revision uint64 `json:"revision"`
	State    string `json:"state"` // online, failed
	Error    string `json:"error,omitempty"`
	// Runtime: given on the daemon's command line, not kept.
	Runtime bool `json:"runtime,omitempty"`
	// Bound is the address listened on, with the port chosen for ":0".
	Bound string `json:"bound,omitempty"`
}

// Session is an iSCSI session.
type Session struct {
	ID        uint64            `json:"id"` // unique while the daemon runs
	TSIH      uint16            `json:"tsih"`
	Target    string            `json:"target,omitempty"` // empty: discovery
	TargetID  int               `json:"targetId,omitempty"`
	Initiator string            `json:"initiator"`
	Alias     string            `json:"alias,omitempty"`
	ISID      string            `json:"isid"` // 12 hex digits
	Discovery bool              `json:"discovery,omitempty"`
	Params    map[string]string `json:"params,omitempty"` // negotiated
	Started   time.Time         `json:"started"`
	Conns     []Connection      `json:"connections"`
}

// Connection is one TCP connection of a session. Rx is what we received.
type Connection struct {
	CID        uint16 `json:"cid"`
	Remote     string `json:"remote"`
	Local      string `json:"local"`
	RxBytes    uint64 `json:"rxBytes"`
	TxBytes    uint64 `json:"txBytes"`
	Commands   uint64 `json:"commands"`
	Responses  uint64 `json:"responses"`
	DataOutPDU uint64 `json:"dataOutPdus"`
	DataInPDU  uint64 `json:"dataInPdus"`
}

// NexusStat are the counters of one LUN. Session 0 is all sessions together, also
// past ones, and counts what reads and writes the medium. A session's own count all
// its commands by the direction of their data, and end with it.
type NexusStat struct {
	Target   string `json:"target"`
	TargetID int    `json:"targetId"`
	LUN      uint64 `json:"lun"`
	Session  uint64 `json:"session,omitempty"`

	ReadBytes     uint64 `json:"readBytes"`
	ReadCommands  uint64 `json:"readCommands"`
	WriteBytes    uint64 `json:"writeBytes"`
	WriteCommands uint64 `json:"writeCommands"`
	Errors        uint64 `json:"errors"`
}

// System is the gateway's settings and facts.
type System struct {
	state.System
	Revision uint64    `json:"revision"`
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Started  time.Time `json:"started"`
	StateDir string    `json:"stateDir,omitempty"` // empty: nothing is kept
	Volumes  int       `json:"volumes"`
	Targets  int       `json:"targets"`
	Sessions int       `json:"sessions"`
	Failed   int       `json:"failed"` // volumes and portals that do not run
	// Unwell is how many volumes that run have a store that is not well (see Health).
	Unwell int `json:"unwell,omitempty"`
}

// Engine is a kind of backing store.
type Engine struct {
	Scheme string `json:"scheme"` // of a layer its kind
	Layer  bool   `json:"layer,omitempty"`
}

// Transaction is a list of operations that take effect all or not at all.
type Transaction struct {
	Ops []state.Op `json:"ops"`
}

// Result is what a transaction did.
type Result struct {
	Revision uint64   `json:"revision"`
	Warnings []string `json:"warnings,omitempty"`
}

// Resize asks for another size of a volume.
type Resize struct {
	// Size in bytes; 0 takes over the size the store has grown to.
	Size int64 `json:"size"`
}

// Problem is an error as RFC 9457 has it, with the parts of state.Error.
type Problem struct {
	Type   string `json:"type,omitempty"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Class  int    `json:"class"`
	Object string `json:"object,omitempty"`
	Reason string `json:"reason,omitempty"`
	Hint   string `json:"hint,omitempty"`
}
