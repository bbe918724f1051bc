package server

import (
	"context"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/nbd"
)

// stuck keeps what is written to it until the test ends.
type stuck struct {
	backing.Store
	inside chan struct{}
	let    chan struct{}
}

func (s *stuck) WriteAt(context.Context, []byte, int64) error {
	s.inside <- struct{}{}
	<-s.let
	return nil
}

// A store that hangs with all that its clients have sent leaves the memory for the
// clients of others.
func TestHangingStoreLeavesMemory(t *testing.T) {
	const piece = 1 << 20
	h := &stuck{Store: openRAM(t, 8*piece), inside: make(chan struct{}, 64), let: make(chan struct{})}
	dir := names{
		"hangs": ForStore(h, StoreOptions{Name: "hangs"}),
		"well":  ForStore(openRAM(t, 8*piece), StoreOptions{Name: "well"}),
	}
	s, dial := start(t, Config{Directory: dir, Memory: 4 * piece}, Access{}, "unix")
	data := pattern(0, piece)
	sent := make(chan struct{})
	var left []*peer
	for range 2 {
		p := dial()
		p.enter("hangs", nbd.Simple)
		left = append(left, p)
	}
	go func() {
		defer close(sent)
		for range 3 { // more than there is room for; what does not fit stays in the sockets
			for _, p := range left {
				p.nc.Write(append(nbd.Request{Type: nbd.CmdWrite, Length: piece}.Append(nil, nbd.Simple), data...))
			}
		}
	}()
	<-h.inside
	<-h.inside // half of the memory
	select {
	case <-h.inside:
		t.Error("the store has more than half of the memory")
	case <-time.After(100 * time.Millisecond):
	}
	p := dial()
	p.enter("well", nbd.Simple)
	p.write(0, data).wants(t, "write beside a store that hangs", nbd.None)
	wantData(t, "read beside a store that hangs", p.read(0, piece), data)
	if n := s.MemoryUsed(); n > 3*piece {
		t.Errorf("%d bytes are in use", n)
	}
	close(h.let)
	for _, p := range left {
		for range 3 {
			p.reply(0).wants(t, "what was kept", nbd.None)
		}
		p.nc.Close()
	}
	<-sent
}
