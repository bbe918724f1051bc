package server

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"blockgate/nbd"
	"blockgate/scsi"
)

// Clients that go away in the middle of anything leave nothing behind: no memory
// of the budget, no goroutine, and a unit that serves the next one.
func TestClientsThatVanish(t *testing.T) {
	for _, name := range []string{"ram", "file"} {
		t.Run(name, func(t *testing.T) {
			store := openRAM(t, 8<<20)
			if name == "file" {
				store = openFile(t, 8<<20)
			}
			d := newDisk(t, store, scsi.UnitConfig{MaxTransfer: 256 << 10})
			s, dial := start(t, Config{Directory: Single(d.exp), Memory: 4 << 20}, Access{}, "tcp")
			var wg sync.WaitGroup
			for i := range 8 {
				rnd := rand.New(rand.NewPCG(uint64(i), 7))
				peers := make([]*peer, 12)
				for j := range peers {
					peers[j] = dial()
				}
				wg.Go(func() {
					for _, p := range peers {
						vanish(p, rnd)
					}
				})
			}
			wg.Wait()
			// Until then they may still write; after that nothing of theirs gets past
			// what others write, although the store may have it for longer.
			eventually(t, "the clients are gone", func() bool { return len(s.Conns()) == 0 })
			p := dial()
			p.enter("disk", nbd.Extended)
			p.write(4096, pattern(3, 1<<20)).wants(t, "write after all that", nbd.None)
			wantData(t, "read after all that", p.read(4096, 1<<20), pattern(3, 1<<20))
		})
	}
}

// vanish asks for this and that, reads some of the replies, and is gone.
func vanish(p *peer, rnd *rand.Rand) {
	p.enter("disk", nbd.Mode(rnd.IntN(3)))
	commands := []nbd.Command{nbd.CmdRead, nbd.CmdRead, nbd.CmdWrite, nbd.CmdWrite, nbd.CmdFlush, nbd.CmdTrim, nbd.CmdWriteZeroes, nbd.CmdBlockStatus, nbd.CmdCache}
	var out []byte
	whole := 0 // how long the first request is
	for i := range rnd.IntN(100) {
		r := nbd.Request{Type: commands[rnd.IntN(len(commands))], Cookie: uint64(i), Offset: uint64(rnd.IntN(1<<13)) << 9, Length: uint64(1+rnd.IntN(1<<rnd.IntN(12))) << 9}
		if r.Type == nbd.CmdFlush {
			r.Offset, r.Length = 0, 0
		}
		if r.Type == nbd.CmdWrite && p.mode == nbd.Extended {
			r.Flags = nbd.FlagPayloadLen
		}
		out = r.Append(out, p.mode)
		if r.Type == nbd.CmdWrite {
			out = append(out, make([]byte, r.Length)...)
		}
		if i == 0 {
			whole = len(out)
		}
	}
	if rnd.IntN(4) == 0 {
		out = nbd.Request{Type: nbd.CmdDisconnect}.Append(out, p.mode)
	} else {
		out = out[:len(out)-rnd.IntN(len(out)/2+1)]
	}
	go p.nc.Write(out) // it may block until the end: most of the replies are not read
	if whole > 0 && len(out) >= whole && rnd.IntN(3) > 0 {
		p.take(nbd.SimpleReplyLen) // the first reply has come, or another
	}
	if c, ok := p.nc.(*net.TCPConn); ok && rnd.IntN(2) == 0 {
		c.SetLinger(0)
	}
	p.nc.Close()
}
