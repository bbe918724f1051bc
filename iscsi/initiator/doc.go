// Package initiator is a small user-space iSCSI initiator (RFC 7143): discovery,
// login with CHAP, sessions of one or more connections, commands of any kind,
// task management and logout. It serves the self-test, the benchmark, volumes
// that live on another iSCSI target, and, through [Raw], tests that have to send
// what no well-behaved initiator would.
//
// It works at error recovery level 0: when a connection fails, its session
// fails, and every command that had no answer ends with the reason.
//
// The engine gathers. One goroutine per connection reads what there is, handles
// every PDU in it and calls the completions; what they submit leaves together in
// one write before the goroutine waits again. Nobody who reads ever waits for a
// write, so that a target which does not read until it has written cannot
// deadlock with it. A command costs no allocation.
package initiator
