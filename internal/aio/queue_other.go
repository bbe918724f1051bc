//go:build !(linux && (amd64 || arm64 || riscv64 || loong64 || ppc64le))

package aio

// Queue does not exist on this platform.
type Queue struct{}

// New fails with ErrUnavailable.
func New(int, func([]*Op)) (*Queue, error) { return nil, ErrUnavailable }

// NewFaulty fails with ErrUnavailable.
func NewFaulty(int, func([]*Op), Faults) (*Queue, error) { return nil, ErrUnavailable }

// Submit is never called.
func (*Queue) Submit([]*Op) {}

// Close is never called.
func (*Queue) Close() {}
