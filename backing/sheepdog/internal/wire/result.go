package wire

import "fmt"

// Result is what a sheep answers. Except for Success it is an error.
type Result uint32

// The results there are.
const (
	Success          Result = 0x00
	Unknown          Result = 0x01
	NoObject         Result = 0x02
	EIO              Result = 0x03
	VDIExists        Result = 0x04
	InvalidParams    Result = 0x05
	SystemError      Result = 0x06
	VDILocked        Result = 0x07
	NoVDI            Result = 0x08
	NoBaseVDI        Result = 0x09
	VDIRead          Result = 0x0a
	VDIWrite         Result = 0x0b
	BaseVDIRead      Result = 0x0c
	BaseVDIWrite     Result = 0x0d
	NoTag            Result = 0x0e
	Startup          Result = 0x0f
	VDINotLocked     Result = 0x10
	Shutdown         Result = 0x11
	NoMem            Result = 0x12
	FullVDI          Result = 0x13
	VersionMismatch  Result = 0x14
	NoSpace          Result = 0x15
	WaitForFormat    Result = 0x16
	WaitForJoin      Result = 0x17
	JoinFailed       Result = 0x18
	Halted           Result = 0x19
	ReadOnly         Result = 0x1a
	InodeInvalidated Result = 0x1d
	OldEpoch         Result = 0x81
	NewEpoch         Result = 0x82
	NetworkError     Result = 0x86
	NotSupported     Result = 0x8b
	Killed           Result = 0x8d
	Again            Result = 0x8f
	ClusterError     Result = 0x91
	CollectingInfo   Result = 0x95
	BufferSmall      Result = 0x88
)

var resultText = map[Result]string{
	Success: "success", Unknown: "unknown error", NoObject: "no such object", EIO: "I/O error",
	VDIExists: "VDI exists", InvalidParams: "invalid parameters", SystemError: "system error",
	VDILocked: "VDI is locked", NoVDI: "no such VDI", NoBaseVDI: "no such base VDI",
	VDIRead: "cannot read the VDI", VDIWrite: "cannot write the VDI",
	BaseVDIRead: "cannot read the base VDI", BaseVDIWrite: "cannot write the base VDI",
	NoTag: "no such snapshot", Startup: "sheep is starting up", VDINotLocked: "VDI is not locked",
	Shutdown: "cluster is shutting down", NoMem: "sheep is out of memory", FullVDI: "no free VDI id",
	VersionMismatch: "protocol version mismatch", NoSpace: "no space left in the cluster",
	WaitForFormat: "cluster is not formatted", WaitForJoin: "cluster waits for more nodes",
	JoinFailed: "sheep could not join", Halted: "cluster has stopped serving I/O",
	ReadOnly: "object is read-only", InodeInvalidated: "inode was changed by another gateway",
	OldEpoch: "request of an old epoch", NewEpoch: "request of a new epoch",
	NetworkError: "network error between sheep", NotSupported: "not supported", Killed: "sheep was stopped",
	Again: "try again", ClusterError: "cluster driver error", CollectingInfo: "sheep collects cluster information",
	BufferSmall: "buffer is too small",
}

func (r Result) String() string {
	if s := resultText[r]; s != "" {
		return s
	}
	return fmt.Sprintf("result %#x", uint32(r))
}

// Error is the text of the result.
func (r Result) Error() string { return "sheepdog: " + r.String() }

// Temporary reports whether the cluster is on its way to a state in which the
// same request succeeds: a node left or joins, or an epoch changed.
func (r Result) Temporary() bool {
	switch r {
	case Startup, Shutdown, WaitForFormat, WaitForJoin, Halted, OldEpoch, NewEpoch, NetworkError, Killed, Again, ClusterError, CollectingInfo, NoMem:
		return true
	}
	return false
}
