package control

import (
	"context"
	"errors"

	"blockgate/backing"
	"blockgate/nbd"
)

// Missing is what is not installed: a program or a library. Its text is one line
// that says what to do about it. errors.Is finds backing.ErrNotSupported and
// ErrMissing in it.
type Missing string

// ErrMissing is in every Missing.
var ErrMissing = errors.New("a part of the engine is not installed")

func (m Missing) Error() string { return string(m) }

// Is implements the interface of package errors.
func (m Missing) Is(target error) bool {
	return target == ErrMissing || target == backing.ErrNotSupported
}

// Error is an error of the other side: what kind, and its text.
type Error struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

// ErrnoFailed is backing.ErrFailed in an answer by NBD, where no other store would use
// it. The number that NBD has for it, ESHUTDOWN, asks a client to connect again.
const ErrnoFailed = nbd.EOVERFLOW

// MaxError is how much of an error's text is sent, in bytes.
const MaxError = 4 << 10

func kinds() []struct {
	name string
	err  error
} {
	return []struct {
		name string
		err  error
	}{
		{"missing", ErrMissing}, // before not-supported, which it is as well
		{"read-only", backing.ErrReadOnly},
		{"out-of-range", backing.ErrOutOfRange},
		{"no-space", backing.ErrNoSpace},
		{"closed", backing.ErrClosed},
		{"failed", backing.ErrFailed},
		{"not-supported", backing.ErrNotSupported},
		{"not-exist", backing.ErrNotExist},
		{"busy", backing.ErrBusy},
		{"exist", backing.ErrExist},
		{"size", backing.ErrSizeMismatch},
		{"deadline", context.DeadlineExceeded},
		{"canceled", context.Canceled},
	}
}

// ErrorOf makes what is sent of an error; nil of none.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Text: err.Error()}
	if len(e.Text) > MaxError {
		e.Text = e.Text[:MaxError] + "…"
	}
	for _, k := range kinds() {
		if errors.Is(err, k.err) {
			e.Kind = k.name
			break
		}
	}
	return e
}

func (e *Error) Error() string { return e.Text }

// Unwrap is the error of package backing or context that the other side had.
func (e *Error) Unwrap() error {
	if e.Kind == "missing" {
		return Missing(e.Text)
	}
	for _, k := range kinds() {
		if e.Kind == k.name {
			return k.err
		}
	}
	return nil
}
