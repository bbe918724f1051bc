package client

import (
	"io"
	"net"
	"sync/atomic"
)

// inputSize is how much is read ahead, in bytes. What is left of a payload that is
// longer goes to its place without a copy.
const inputSize = 64 << 10

// input reads a connection.
type input struct {
	nc   net.Conn
	buf  []byte
	r, w int
	// arrivals counts what has come in, for who watches whether anything does.
	arrivals atomic.Uint32
}

func newInput(nc net.Conn) *input { return &input{nc: nc, buf: make([]byte, inputSize)} }

// peek gives the next n bytes, at most inputSize, until the next call.
func (in *input) peek(n int) ([]byte, error) {
	if in.w-in.r < n {
		if err := in.fill(n); err != nil {
			return nil, err
		}
	}
	return in.buf[in.r:][:n], nil
}

func (in *input) fill(n int) error {
	in.w = copy(in.buf, in.buf[in.r:in.w])
	in.r = 0
	for in.w < n {
		k, err := in.nc.Read(in.buf[in.w:])
		in.arrivals.Add(1)
		in.w += k
		if err != nil && in.w < n {
			if err == io.EOF && in.w > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

func (in *input) skip(n int) { in.r += n }

// read fills p.
func (in *input) read(p []byte) error {
	k := copy(p, in.buf[in.r:in.w])
	in.r += k
	if p = p[k:]; len(p) == 0 {
		return nil
	}
	if len(p) >= inputSize/4 {
		for len(p) > 0 {
			k, err := in.nc.Read(p)
			in.arrivals.Add(1)
			if p = p[k:]; err != nil && len(p) > 0 {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		return nil
	}
	b, err := in.peek(len(p))
	if err != nil {
		return err
	}
	copy(p, b)
	in.skip(len(p))
	return nil
}

// discard reads n bytes for nobody.
func (in *input) discard(n uint64) error {
	for n > 0 {
		k := int(min(n, inputSize))
		if _, err := in.peek(k); err != nil {
			return err
		}
		in.skip(k)
		n -= uint64(k)
	}
	return nil
}
