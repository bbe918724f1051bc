package initiator

import (
	"errors"
	"fmt"
	"io"

	"blockgate/internal/bufpool"
	"blockgate/iscsi"
)

const (
	inputBuffer = 256 << 10
	// directRead: this much of a data segment or more goes straight to where it
	// belongs; less is read through the buffer, with what follows it.
	directRead = 32 << 10
	// aheadRead is how much is read behind such a segment: what is read ahead of
	// the next one must be copied.
	aheadRead = 4 << 10
)

// input cuts a byte stream into PDUs. It reads as much as there is.
type input struct {
	r io.Reader
	// buf is of inputBuffer bytes. A socket's is given back while there is nothing
	// to read: that of many sessions would never be in the cache.
	buf        *bufpool.Buf
	start, end int      // unread bytes are buf.B[start:end]
	place      *inPlace // nil for what is no socket
	long       bool     // the last data segment was long, so the next one may be
	since      int      // bytes read since waits was called

	headerDigest, dataDigest bool
	maxData                  int // longest data segment the peer may send
	// waits is called before each read that may block, woke after it.
	waits, woke func()
}

func newInput(r io.Reader) *input {
	return &input{r: r, maxData: 8192, place: newInPlace(r)}
}

// hold makes sure that there is a buffer.
func (in *input) hold() {
	if in.buf == nil {
		in.buf = bufpool.Get(inputBuffer)
	}
}

// release gives the buffer back if nothing in it is unread.
func (in *input) release() {
	if in.start == in.end {
		bufpool.Put(in.buf)
		in.buf, in.start, in.end = nil, 0, 0
	}
}

// drop forgets what is unread; nothing is read any more.
func (in *input) drop() {
	in.start = in.end
	in.release()
}

// need makes at least n ≤ inputBuffer bytes available at buf.B[start:].
func (in *input) need(n int) error {
	if in.end-in.start >= n {
		return nil
	}
	if in.start == in.end {
		in.start, in.end = 0, 0 // where the cache is warm
	} else if inputBuffer-in.start < max(n, inputBuffer/4) {
		copy(in.buf.B, in.buf.B[in.start:in.end])
		in.end -= in.start
		in.start = 0
	}
	limit := inputBuffer
	if in.long && in.place != nil {
		limit = min(limit, in.start+max(n, aheadRead))
	}
	for in.end-in.start < n {
		m, err := in.read(limit)
		in.end += m
		if err != nil && in.end-in.start < n {
			if err == io.EOF && in.end > in.start {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// read reads to the end of the buffer, or to limit.
func (in *input) read(limit int) (n int, err error) {
	in.since = 0
	if in.waits != nil {
		in.waits()
	}
	if in.place != nil {
		n, err = in.place.fill(in, limit)
	} else {
		in.hold()
		n, err = readSome(in.r, in.buf.B[in.end:limit])
	}
	if in.woke != nil {
		in.woke()
	}
	return n, err
}

// readSome reads until there is something or an error.
func readSome(r io.Reader, p []byte) (int, error) {
	for range 100 {
		if n, err := r.Read(p); n != 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// readPlace reads into dst, while the buffer is empty, and a little of what
// follows into the buffer. It returns how much of dst was filled.
func (in *input) readPlace(dst []byte) (n int, err error) {
	if in.place == nil {
		in.since = 0
		if in.waits != nil {
			in.waits()
		}
		n, err = readSome(in.r, dst)
		if in.woke != nil {
			in.woke()
		}
		return n, err
	}
	in.hold()
	ahead := in.buf.B[:aheadRead]
	// What was queued leaves as often as if the buffer were filled each time.
	if in.since < inputBuffer {
		n, err = in.place.read(dst, ahead, false)
	}
	if n == 0 && err == nil {
		in.since = 0
		if in.waits != nil {
			in.waits()
		}
		n, err = in.place.read(dst, ahead, true)
		if in.woke != nil {
			in.woke()
		}
	}
	in.since += n
	m := min(n, len(dst))
	in.start, in.end = 0, n-m
	return m, err
}

// next reads a header, with its digest checked. ahs is valid until the next
// call of any method. The data segment must be taken by exactly one of data,
// dataInto and skip.
func (in *input) next(h *iscsi.BHS) (ahs []byte, err error) {
	if err := in.need(iscsi.BHSLen); err != nil {
		return nil, err
	}
	n := iscsi.BHSLen + (*iscsi.BHS)(in.buf.B[in.start:in.end]).AHSLen()
	whole := n
	if in.headerDigest {
		whole += iscsi.DigestLen
	}
	if err := in.need(whole); err != nil {
		return nil, unexpected(err)
	}
	p := in.buf.B[in.start : in.start+whole]
	in.start += whole
	copy(h[:], p)
	if in.headerDigest {
		if got, want := iscsi.WireDigest(p[n:]), iscsi.UpdateDigest(0, p[:n]); got != want {
			return nil, fmt.Errorf("%w: header digest %08x, computed %08x", ErrDigest, got, want)
		}
	}
	if h.DataLen() > in.maxData {
		return nil, protocolErrorf("data segment of %d bytes where at most %d were allowed", h.DataLen(), in.maxData)
	}
	return p[iscsi.BHSLen:n], nil
}

// data returns the data segment. It is valid until the next call.
func (in *input) data(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	whole := n + iscsi.PadLen(n)
	if in.dataDigest {
		whole += iscsi.DigestLen
	}
	if whole > inputBuffer {
		// Longer than the buffer: bounded by maxData, checked in next.
		p := make([]byte, n)
		return p, in.dataInto(p)
	}
	if err := in.need(whole); err != nil {
		return nil, unexpected(err)
	}
	p := in.buf.B[in.start : in.start+whole]
	in.start += whole
	if in.dataDigest {
		covered := p[:n+iscsi.PadLen(n)]
		if err := checkData(p[len(covered):], iscsi.UpdateDigest(0, covered)); err != nil {
			return nil, err
		}
	}
	return p[:n], nil
}

// dataInto reads a data segment of len(dst) bytes into dst. On an error the
// content of dst is unspecified.
func (in *input) dataInto(dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	in.long = len(dst) >= directRead
	for rest := dst; len(rest) > 0; {
		if in.end == in.start {
			if len(rest) >= directRead || in.long && in.place != nil {
				m, err := in.readPlace(rest)
				rest = rest[m:]
				if err != nil && len(rest) > 0 {
					return unexpected(err)
				}
				continue
			}
			if err := in.need(1); err != nil {
				return unexpected(err)
			}
		}
		m := copy(rest, in.buf.B[in.start:in.end])
		in.start += m
		rest = rest[m:]
	}
	tail := iscsi.PadLen(len(dst))
	pad := tail
	if in.dataDigest {
		tail += iscsi.DigestLen
	}
	if tail == 0 {
		return nil
	}
	if err := in.need(tail); err != nil {
		return unexpected(err)
	}
	p := in.buf.B[in.start : in.start+tail]
	in.start += tail
	if !in.dataDigest {
		return nil
	}
	sum := iscsi.UpdateDigest(iscsi.UpdateDigest(0, dst), p[:pad])
	return checkData(p[pad:], sum)
}

// skip reads a data segment of n bytes and forgets it.
func (in *input) skip(n int) error {
	_, err := in.data(n)
	return err
}

func checkData(digest []byte, sum uint32) error {
	if got := iscsi.WireDigest(digest); got != sum {
		return fmt.Errorf("%w: data digest %08x, computed %08x", ErrDigest, got, sum)
	}
	return nil
}

// unexpected turns the end of the stream inside a PDU into what it is.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
