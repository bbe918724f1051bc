package client

import (
	"errors"
	"fmt"

	"blockgate/nbd"
)

var (
	// ErrClosed: the call came after Close, or Close ended it.
	ErrClosed = errors.New("nbd: client is closed")
	// ErrFailed: what was acknowledged and not flushed may be lost, because a
	// flush failed or the server was replaced and nothing was kept of it
	// (Config.Unflushed). It is sticky: every later write and flush fails.
	ErrFailed = errors.New("nbd: earlier writes may be lost")
	// ErrTimeout: no answer within Config.Stall. What was asked may still be done.
	ErrTimeout = errors.New("nbd: the server does not answer")
	// ErrNotSupported: the server does not offer it, or not in this form.
	ErrNotSupported = errors.New("nbd: not supported by the server")
	// ErrRange: a range is negative or ends behind the export.
	ErrRange = errors.New("nbd: range is outside the export")
	// ErrReadOnly: the export, or the client, is read-only.
	ErrReadOnly = errors.New("nbd: export is read-only")
	// ErrProtocol: the server broke the protocol; the connection was closed.
	ErrProtocol = errors.New("nbd: the server broke the protocol")
	// ErrTLSRequired: the server wants TLS before it says more.
	ErrTLSRequired = errors.New("nbd: the server requires TLS")
	// ErrUnknownExport: the server has no export of that name.
	ErrUnknownExport = errors.New("nbd: the server has no such export")
)

// Error is what a server answered to a request. It unwraps to its nbd.Errno.
type Error struct {
	Command nbd.Command
	Errno   nbd.Errno
	Message string // the server's words, may be empty
	Offset  int64  // of the byte that failed, -1 if the server did not say
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("%v: %v", e.Command, e.Errno)
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	if e.Offset >= 0 {
		s += fmt.Sprintf(" at byte %d", e.Offset)
	}
	return s
}

// Unwrap is the error number.
func (e *Error) Unwrap() error { return e.Errno }

// lostError is of a request whose connection ended before its answer: nobody
// knows whether it was done.
type lostError struct{ error }

func (e *lostError) Error() string { return "connection lost: " + e.error.Error() }
func (e *lostError) Unwrap() error { return e.error }

// broken is a server's breach of the protocol.
func broken(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, a...))
}
