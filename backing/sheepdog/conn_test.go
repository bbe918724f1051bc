package sheepdog

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
	"blockgate/internal/sendq"
)

// FuzzAnswers: whatever a sheep sends, requests on the connection end, with what
// was asked for or an error, and nothing is written outside their buffers.
func FuzzAnswers(f *testing.F) {
	answer := func(id uint32, op wire.Op, res wire.Result, data []byte) []byte {
		var h [wire.HeaderSize]byte
		(&wire.Response{Op: op, ID: id, Result: res, Length: uint32(len(data))}).Put(&h)
		return append(h[:], data...)
	}
	f.Add(append(answer(2, wire.OpWrite, wire.Success, nil), answer(1, wire.OpRead, wire.Success, make([]byte, 100))...))
	f.Add(append(answer(1, wire.OpRead, wire.NoObject, nil), answer(2, wire.OpWrite, wire.EIO, nil)...))
	f.Add(answer(1, wire.OpRead, wire.Success, make([]byte, 101)))
	f.Add(answer(3, wire.OpRead, wire.Success, nil))
	f.Add(answer(1, wire.OpWrite, wire.Success, nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, stream []byte) {
		here, there := net.Pipe()
		c := newConn(here, 0, time.Minute, nil)
		defer c.close()
		go func() {
			defer there.Close()
			// The two requests come first, or the answers would not be theirs.
			if _, err := io.ReadFull(there, make([]byte, 2*wire.HeaderSize+sendq.CopyLimit+1)); err != nil {
				return
			}
			_, _ = there.Write(stream)
		}()
		room := bytes.Repeat([]byte{0xaa}, 120)
		read := &call{req: wire.Request{Op: wire.OpRead}, in: room[10:110:110], patience: ticks}
		write := &call{req: wire.Request{Op: wire.OpWrite, Flags: wire.FlagWrite}, out: make([]byte, sendq.CopyLimit+1), patience: ticks}
		c.start(read)
		c.start(write)
		read.Wait()
		write.Wait()
		for _, x := range []*call{read, write} {
			if x.err != nil && !errors.Is(x.err, errLost) {
				t.Errorf("error %v", x.err)
			}
			if x.err == nil && x.resp.Op != x.req.Op {
				t.Errorf("operation %#x answered with %#x", x.req.Op, x.resp.Op)
			}
		}
		for i, b := range room {
			if (i < 10 || i >= 110) && b != 0xaa {
				t.Fatalf("byte %d outside of the buffer was written", i-10)
			}
		}
	})
}
