package tools

import "errors"

// Errors, wrapped with the particulars.
var (
	// ErrUsage: options that do not go together or are out of range.
	ErrUsage = errors.New("wrong option")
	// ErrMismatch: data read is not the data written.
	ErrMismatch = errors.New("data mismatch")
	// ErrSelftest: a check of the self-test failed.
	ErrSelftest = errors.New("self-test failed")

	errNotThere = errors.New("target not found")
)
