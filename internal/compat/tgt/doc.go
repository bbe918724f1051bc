// Package tgt is tgt's command line: tgtadm and tgtd with their options, output
// formats, messages and exit statuses, as clients of the daemon's API.
//
// Scripts match what tgt prints, so the first line of every message is tgt's
// own. Where that line says no more than "invalid request", a second, indented
// line on standard error names the object and the reason.
//
// Faults of tgt are not kept: a comma inside a value stays inside it, an
// account that is deleted leaves every target it was bound to, several
// parameters of one update take effect all or not at all, and a portal that
// cannot be bound is an error.
package tgt

// compatVersion is the version of tgt whose behaviour is offered. Scripts that
// ask for a version compare it with tgt's.
const compatVersion = "1.0.97"
