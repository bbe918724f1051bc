package control

import (
	"time"

	"blockgate/backing"
)

// Requests. What each carries, and what its answer has, is the pair of types of
// the same name below; none where there is no such type.
const (
	OpHello          = "hello"
	OpOpen           = "open"
	OpClose          = "close" // the plugin closes the store, answers and ends
	OpPing           = "ping"
	OpStall          = "stall" // the limit of waiting has changed
	OpResize         = "resize"
	OpRefresh        = "refresh"
	OpUsage          = "usage"
	OpCompareWrite   = "compare-and-write"
	OpSnapshotCreate = "snapshot-create"
	OpSnapshots      = "snapshots"
	OpSnapshotDelete = "snapshot-delete"
	OpClone          = "clone"
)

// MaxCalls is how many requests a gateway has sent at most that are not answered;
// a plugin refuses more, pings and the like aside.
const MaxCalls = 64

// Events.
const (
	EventChanged = "changed" // the store has changed: a Status
	EventRestart = "restart" // the process is to be replaced: a Restart
)

// Restart says why this process is of no use any more.
type Restart struct {
	Reason string `json:"reason"`
}

// Hello is the first request: who asks.
type Hello struct {
	Protocol int `json:"protocol"`
}

// HelloAnswer is who answers. It has no Error: a library that is not there is
// told by the answer to OpOpen.
type HelloAnswer struct {
	Protocol int    `json:"protocol"`
	Name     string `json:"name"`    // "rbd"
	Version  string `json:"version"` // of the plugin
}

// Open opens the store, once in a process's life.
type Open struct {
	Location   string        `json:"location"` // the URL after "scheme:"
	ReadOnly   bool          `json:"readOnly,omitempty"`
	Create     bool          `json:"create,omitempty"`
	CreateSize int64         `json:"createSize,omitempty"`
	Direct     bool          `json:"direct,omitempty"`
	Sync       bool          `json:"sync,omitempty"`
	Exclusive  bool          `json:"exclusive,omitempty"`
	Stall      time.Duration `json:"stall,omitempty"` // nanoseconds
	// Again says that a former process of this store has ended without closing
	// it. It is dead: what it had of locks may be taken from it.
	Again bool `json:"again,omitempty"`
}

// OpenAnswer is what the store is.
type OpenAnswer struct {
	Info    backing.Info `json:"info"`
	Caps    []string     `json:"caps"`
	Library string       `json:"library"` // "librbd 16.2.15"
	// Durable: what has been acknowledged outlives the process, flushed or not.
	Durable bool `json:"durable"`
	Status
}

// Status is what may change of a store by itself.
type Status struct {
	Size   int64         `json:"size"`
	State  backing.State `json:"state"`
	Reason string        `json:"reason,omitempty"`
}

// Stall has the new limit of Open.Stall.
type Stall struct {
	Limit time.Duration `json:"limit"` // nanoseconds; negative: for ever
}

// Resize has the new size; the answer is a Status, as that of OpRefresh is.
type Resize struct {
	Size int64 `json:"size"`
}

// CompareWrite compares the range at Off with Old and writes New.
type CompareWrite struct {
	Off int64  `json:"off"`
	Old []byte `json:"old"`
	New []byte `json:"new"`
}

// CompareWriteAnswer has the offset of the first byte that differs, -1 if none.
type CompareWriteAnswer struct {
	Miscompare int `json:"miscompare"`
}

// Snapshot names a snapshot, and for OpClone the store to make of it.
type Snapshot struct {
	Name  string `json:"name"`
	Clone string `json:"clone,omitempty"`
}

// CloneAnswer is where the clone is.
type CloneAnswer struct {
	Location string `json:"location"`
}

// CapNames are the names of a set of capabilities.
func CapNames(c backing.Caps) []string {
	var names []string
	for bit := backing.Caps(1); bit <= backing.CapsAll; bit <<= 1 {
		if c&bit != 0 {
			names = append(names, bit.String())
		}
	}
	return names
}

// CapsOf is the set that names mean; names that are not known are left out.
func CapsOf(names []string) backing.Caps {
	var c backing.Caps
	for bit := backing.Caps(1); bit <= backing.CapsAll; bit <<= 1 {
		for _, n := range names {
			if n == bit.String() {
				c |= bit
			}
		}
	}
	return c
}
