package state

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Class says what kind of failure an Error is. It decides the exit status of
// the command line and the status of an HTTP answer.
type Class int

// Classes of errors. The numbers are the exit statuses of the command line.
const (
	Internal    Class = 1 // a fault of ours or of the machine
	Usage       Class = 2 // the request itself is wrong
	NotFound    Class = 3 // an object that was named does not exist
	Conflict    Class = 4 // it exists already, is in use, or has changed meanwhile
	Unreachable Class = 5 // the daemon does not answer
	Refused     Class = 6 // understood, and refused: by permission or by what lies below
)

// Codes of errors that programs may rely on. They never change their meaning.
const (
	CodeInvalidName     = "invalid_name"
	CodeInvalidValue    = "invalid_value"
	CodeInvalidRequest  = "invalid_request"
	CodeUnknownParam    = "unknown_parameter"
	CodeUnknownEngine   = "unknown_engine"
	CodeVolumeNotFound  = "volume_not_found"
	CodeTargetNotFound  = "target_not_found"
	CodeLUNNotFound     = "lun_not_found"
	CodeACLNotFound     = "acl_not_found"
	CodeAccountNotFound = "account_not_found"
	CodePortalNotFound  = "portal_not_found"
	CodeExportNotFound  = "export_not_found"
	CodeSessionNotFound = "session_not_found"
	CodeConnNotFound    = "connection_not_found"
	CodeVolumeExists    = "volume_exists"
	CodeTargetExists    = "target_exists"
	CodeTargetIDExists  = "target_id_exists"
	CodeLUNExists       = "lun_exists"
	CodeACLExists       = "acl_exists"
	CodeAccountExists   = "account_exists"
	CodePortalExists    = "portal_exists"
	CodeExportExists    = "export_exists"
	CodeVolumeInUse     = "volume_in_use"
	CodeAccountInUse    = "account_in_use"
	CodeTargetActive    = "target_active"    // it has sessions
	CodeVolumeActive    = "volume_active"    // sessions see it
	CodeLUNActive       = "lun_active"       // commands are running
	CodeExportActive    = "export_active"    // it has NBD clients
	CodeRemovalPrevent  = "removal_prevent"  // an initiator prevents medium removal
	CodeRevision        = "revision_changed" // a precondition does not hold
	CodeOwned           = "owned_by_another" // another scope, or nobody's, where a scope declares it
	CodeInvalidFile     = "invalid_file"     // a declared file cannot be read
	CodeNoRevision      = "revision_unknown" // the history does not reach back to it
	CodeOpenFailed      = "open_failed"      // the backing store cannot be opened
	CodeUnitFailed      = "unit_failed"      // the store cannot be a logical unit
	CodeListenFailed    = "listen_failed"    // the portal cannot be listened on
	CodeResizeFailed    = "resize_failed"
	CodeStateLocked     = "state_locked"
	CodeStateCorrupt    = "state_corrupt"
	CodeStateFailed     = "state_failed"
	CodeUnreachable     = "daemon_unreachable"
	CodeForbidden       = "forbidden"
	CodeInternal        = "internal"
)

// Codes of snapshots and clones.
const (
	CodeSnapshotFailed   = "snapshot_failed"
	CodeSnapshotNotFound = "snapshot_not_found"
	CodeSnapshotExists   = "snapshot_exists"
	CodeSnapshotInUse    = "snapshot_in_use" // a volume serves it, or clones depend on it
	CodeNoSnapshots      = "no_snapshots"    // the store cannot have any
	CodeCloneExists      = "clone_exists"    // the engine has a store of that name
)

// Error is a failure that a person can act on: what, on which object, why, and
// what to do next.
type Error struct {
	Class  Class
	Code   string // stable, for programs
	Object string // `volume "db"`
	Reason string // why, without the object
	Hint   string // the next step; may be empty
	Err    error  // cause; may be nil
}

// Error is "object: reason".
func (e *Error) Error() string {
	if e.Object == "" {
		return e.Reason
	}
	return e.Object + ": " + e.Reason
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// ErrorOf finds the Error in err's chain, and makes one of class Internal
// otherwise. It returns nil for nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Class: Internal, Code: CodeInternal, Reason: err.Error(), Err: err}
}

// Bounds on what an error repeats of a request, in bytes. The longest name that
// can exist has MaxTargetName.
const (
	maxEcho   = 256
	maxReason = 1024
)

// Clip shortens what a request said to what an error may repeat of it.
func Clip(s string) string { return clipTo(s, maxEcho) }

func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:n], len(s))
}

func object(kind Kind, name string) string {
	return fmt.Sprintf("%s %q", kind.Noun(), Clip(name))
}

// Reasonf formats a reason, with strings clipped, in at most 1 KiB or a little more.
func Reasonf(format string, a ...any) string {
	a = slices.Clone(a)
	for i := range a {
		if s, ok := a[i].(string); ok {
			a[i] = Clip(s)
		}
	}
	return clipTo(fmt.Sprintf(format, a...), maxReason)
}

func invalid(code string, kind Kind, name, hint, format string, a ...any) *Error {
	return &Error{Class: Usage, Code: code, Object: object(kind, name), Reason: Reasonf(format, a...), Hint: clipTo(hint, maxReason)}
}

func conflict(code string, kind Kind, name, hint, format string, a ...any) *Error {
	return &Error{Class: Conflict, Code: code, Object: object(kind, name), Reason: Reasonf(format, a...), Hint: clipTo(hint, maxReason)}
}

func missing(code string, kind Kind, name, hint string) *Error {
	return &Error{Class: NotFound, Code: code, Object: object(kind, name), Reason: "does not exist", Hint: clipTo(hint, maxReason)}
}
