package nebdfake

// Request is what a fault is decided by.
type Request struct {
	Method string // "Read", "Write", "OpenFile", "KeepAlive", …
	FD     int32
	Offset uint64
	Size   uint64
}

// Kind is a kind of fault.
type Kind int

// The faults there are. After those that close, the connection is gone and the
// server goes on.
const (
	None        Kind = iota
	CloseBefore      // close without doing anything
	CloseAfter       // do it and close without an answer
	Torn             // do it and close after the first Bytes bytes of the answer
	Drop             // what nebd does by default when I/O fails: no answer, and the file's lock stays taken
	Swallow          // no answer, nothing done, no lock
	Fail             // answer that it failed; with Options.DropOnError it is Drop
	BRPC             // answer brpc's error Code
	Late             // answer once Until is closed; with Before also do it only then
)

// Fault says what happens to a request.
type Fault struct {
	Kind   Kind
	Bytes  int
	Code   int32
	Until  <-chan struct{}
	Before bool
}
