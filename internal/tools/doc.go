// Package tools holds the initiator-side tools: a self-test that proves a target
// works, a load generator that measures one, and a listing of what a portal
// offers. They are plain functions; the command line wraps them.
package tools
