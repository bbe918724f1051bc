package tgt

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"blockgate/internal/state"
)

// The messages of tgt's daemon.
const (
	msgUnknown         = "unknown error"
	msgNoDriver        = "can't find the driver"
	msgNoTarget        = "can't find the target"
	msgNoUnit          = "can't find the logical unit"
	msgNoSession       = "can't find the session"
	msgNoConnection    = "can't find the connection"
	msgTargetExists    = "this target already exists"
	msgUnitExists      = "this logical unit number already exists"
	msgRuleExists      = "this access control rule already exists"
	msgNoRule          = "this access control rule does not exist"
	msgAccountExists   = "this account already exists"
	msgNoAccount       = "can't find the account"
	msgInvalid         = "invalid request"
	msgOutgoingExists  = "this target already has an outgoing account"
	msgTargetActive    = "this target is still active"
	msgUnitActive      = "this logical unit is still active"
	msgDriverBusy      = "this driver is busy"
	msgNotSupported    = "this operation isn't supported"
	msgPreventsRemoval = "this device has Prevent Removal set"
	msgClosed          = "tgtd closed the socket"
	msgUnreachable     = "failed to send request hdr to tgt daemon, Transport endpoint is not connected"
)

// failure is a refusal in tgt's words, with a detail that tgt does not give.
type failure struct {
	message string
	detail  string // may be empty
	status  int    // exit status; 0 means exitInvalid
}

func (f *failure) Error() string { return f.message }

func fail(message string) error { return &failure{message: message} }

// refuse is an "invalid request" with its reason.
func refuse(format string, a ...any) error {
	return &failure{message: msgInvalid, detail: fmt.Sprintf(format, a...)}
}

// asFailure puts an error of the API into tgt's words.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	e := state.ErrorOf(err)
	message, known := map[string]string{
		state.CodeTargetNotFound:  msgNoTarget,
		state.CodeLUNNotFound:     msgNoUnit,
		state.CodeSessionNotFound: msgNoSession,
		state.CodeConnNotFound:    msgNoConnection,
		state.CodeTargetExists:    msgTargetExists,
		state.CodeTargetIDExists:  msgTargetExists,
		state.CodeLUNExists:       msgUnitExists,
		state.CodeACLExists:       msgRuleExists,
		state.CodeACLNotFound:     msgNoRule,
		state.CodeAccountExists:   msgAccountExists,
		state.CodeAccountNotFound: msgNoAccount,
		state.CodeTargetActive:    msgTargetActive,
		state.CodeLUNActive:       msgUnitActive,
		state.CodeRemovalPrevent:  msgPreventsRemoval,
	}[e.Code]
	if known {
		return &failure{message: message}
	}
	f := &failure{message: msgInvalid, detail: e.Error()}
	switch {
	case e.Class == state.Unreachable && closed(err):
		// tgt says so and ends with 0; nobody can tell then that it failed.
		f.message, f.detail, f.status = msgClosed, "whether the request was carried out is not known", exitNotConn
	case e.Class == state.Unreachable, e.Code == state.CodeForbidden:
		f.message, f.status = msgUnreachable, exitNotConn
		if e.Code == state.CodeUnreachable {
			f.detail = "" // tgt's line says it all, and init scripts expect it alone
		}
	case e.Class == state.Internal:
		f.message = msgUnknown
	}
	// Hints that name commands or options of ours would mislead tgt's users.
	if e.Hint != "" && f.detail != "" && !strings.Contains(e.Hint, "blockgate ") && !strings.Contains(e.Hint, "--") {
		f.detail += "; " + e.Hint
	}
	return f
}

// closed tells whether the daemon went away in the middle of a request.
func closed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// report writes a failure and gives the exit status. The first line is tgt's.
func report(stderr io.Writer, err error) int {
	f := asFailure(err)
	fmt.Fprintf(stderr, "tgtadm: %s\n", f.message)
	if f.detail != "" {
		note(stderr, f.detail)
	}
	if f.status != 0 {
		return f.status
	}
	return exitInvalid
}

// note writes a line that tgt would not: indented, so that it is told apart.
func note(stderr io.Writer, text string) {
	fmt.Fprintf(stderr, "  %s\n", strings.ReplaceAll(text, "\n", "\n  "))
}
