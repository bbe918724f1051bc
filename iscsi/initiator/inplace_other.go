//go:build !linux

package initiator

import "io"

// inPlace is not used here: payloads are read as they come.
type inPlace struct{}

func newInPlace(io.Reader) *inPlace { return nil }

func (*inPlace) read(a, b []byte, wait bool) (int, error) { panic("not reached: there is none") }

func (*inPlace) fill(*input, int) (int, error) { panic("not reached: there is none") }
