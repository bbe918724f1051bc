// Package tgtconf reads targets.conf, the configuration of tgt's tgt-admin: the
// grammar of Perl's Config::General in the form that tgt-admin uses it, and what
// the directives mean. It changes nothing and asks no daemon.
//
// Load gives the meaning: targets with their stores, accounts and rules.
// ReadTree gives the tree of directives, each with its file and line.
//
// The grammar, by lines: "key value" or "key = value", blocks "<key name>" to
// "</key>", "#" begins a comment wherever it stands unless written "\#", a
// backslash at the end joins the next line, "key <<WORD" takes the lines up to
// WORD. "include PATH" or "<<include PATH>>" puts a file, a directory's files or
// those that a pattern matches in its place, each file once. Keys match in
// case.
package tgtconf

import "fmt"

// Position is a place in a file.
type Position struct {
	File string
	Line int // from 1; 0: the file as a whole
}

// String is "file:line".
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Error is what is wrong in a file, and where.
type Error struct {
	Pos    Position
	Reason string
	Err    error // cause; may be nil
}

// Error is "file:line: reason".
func (e *Error) Error() string { return e.Pos.String() + ": " + e.Reason }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

func failf(at Position, format string, a ...any) *Error {
	return &Error{Pos: at, Reason: fmt.Sprintf(format, a...)}
}
