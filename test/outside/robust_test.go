package outside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
)

// bystander is a session that reads, writes and verifies all the while.
type bystander struct {
	stop    chan struct{}
	done    sync.WaitGroup
	rounds  int
	slowest time.Duration
	err     error
}

const bystanderLimit = 5 * time.Second

func startBystander(t *testing.T, e *export) *bystander {
	t.Helper()
	ctx := context.Background()
	s, err := initiator.Dial(ctx, config(e))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := s.Unit(0).OpenDisk(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := &bystander{stop: make(chan struct{})}
	b.done.Go(func() {
		defer s.Close()
		out, in := make([]byte, 16<<10), make([]byte, 16<<10)
		for i := 0; ; i++ {
			select {
			case <-b.stop:
				return
			default:
			}
			for j := range out {
				out[j] = byte(i + j)
			}
			ctx, cancel := context.WithTimeout(ctx, bystanderLimit)
			start := time.Now()
			off := int64(i%64) * int64(len(out))
			b.err = disk.WriteAt(ctx, out, off)
			if b.err == nil {
				b.err = disk.ReadAt(ctx, in, off)
			}
			if b.err == nil && string(in) != string(out) {
				b.err = errors.New("read something else than was written")
			}
			cancel()
			if b.err != nil {
				return
			}
			b.rounds++
			b.slowest = max(b.slowest, time.Since(start))
		}
	})
	return b
}

func (b *bystander) end(t *testing.T) {
	t.Helper()
	close(b.stop)
	b.done.Wait()
	if b.err != nil {
		t.Errorf("another session suffered after %d rounds: %v", b.rounds, b.err)
	}
	if b.rounds == 0 {
		t.Error("another session did nothing")
	}
	figure(t, "a session beside all that: %d rounds of write and read, the slowest %v", b.rounds, b.slowest.Round(time.Millisecond))
}

func dial(t *testing.T, e *export) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", e.addr(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// closedBy reads until the peer closes, and tells whether it did so in time.
func closedBy(c net.Conn, deadline time.Time) bool {
	c.SetReadDeadline(deadline)
	_, err := io.Copy(io.Discard, c)
	return err == nil || errors.Is(err, syscall.ECONNRESET)
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	l, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

// What a broken or hostile peer can do, with a session beside it that must not
// notice.
func TestHostilePeers(t *testing.T) {
	e := serve(t, "ram:64M")
	beside := startBystander(t, e)
	files := openFiles(t, e.pid())

	// Half a login PDU, a whole header without its data, and nothing at all: they
	// are closed at the login timeout. Looked at in the end.
	opened := time.Now()
	var silent []net.Conn
	for _, head := range [][]byte{loginHeader(512)[:20], loginHeader(512), nil} {
		c := dial(t, e)
		c.Write(head)
		silent = append(silent, c)
	}

	t.Run("garbage", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range 200 {
			c := dial(t, e)
			p := make([]byte, 1+rng.IntN(4096))
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			if i%2 == 0 {
				// A login request up to its lengths and flags.
				copy(p, loginHeader(rng.IntN(1 << 24))[:min(8, len(p))])
			}
			c.Write(p)
			c.(*net.TCPConn).CloseWrite()
			if !closedBy(c, time.Now().Add(10*time.Second)) {
				t.Fatalf("connection %d is still open 10 s after %d bytes of garbage (% x…)", i, len(p), p[:min(16, len(p))])
			}
			c.Close()
		}
	})
	t.Run("garbage in full feature phase", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for i := range 100 {
			raw := rawLogin(t, e)
			p := make([]byte, 48+rng.IntN(2048))
			for j := range p {
				p[j] = byte(rng.Uint32())
			}
			raw.SendBytes(p)
			raw.Conn().(*net.TCPConn).CloseWrite()
			if !closedBy(raw.Conn(), time.Now().Add(10*time.Second)) {
				t.Fatalf("session %d is still open 10 s after garbage (% x…)", i, p[:48])
			}
			raw.Close()
		}
	})
	t.Run("a client that never reads", func(t *testing.T) {
		before := rss(t, e.pid())
		for range 4 {
			raw := rawLogin(t, e)
			raw.SetDeadline(time.Now().Add(10 * time.Second))
			for i := range raw.MaxCmdSN - raw.CmdSN + 1 {
				if err := raw.SendBytes(raw.Encode(nil, read10(raw, i, 1<<20), nil, nil)); err != nil {
					break // the target takes no more: as good an answer as any
				}
			}
			defer raw.Close()
		}
		ok(t, 20*time.Second, "qemu-io", "-f", "raw", "-c", "read 0 1M", e.url)
		grown := rss(t, e.pid()) - before
		figure(t, "4 clients that ask for 128 MiB each and never read: %d MiB more resident", grown>>20)
		if grown > 768<<20 {
			t.Errorf("the memory grew by %d MiB", grown>>20)
		}
	})
	t.Run("2000 connections", func(t *testing.T) {
		before := rss(t, e.pid())
		var all []net.Conn
		defer func() {
			for _, c := range all {
				c.Close()
			}
		}()
		for range 2000 {
			c, err := net.DialTimeout("tcp", e.addr(), 10*time.Second)
			if err != nil {
				t.Fatalf("connection %d: %v", len(all), err)
			}
			all = append(all, c)
		}
		grown := rss(t, e.pid()) - before
		start := time.Now()
		// Well before the silent ones are out of time: they have to give way.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s, err := initiator.Dial(ctx, config(e))
		if err != nil {
			t.Fatalf("no login beside 2000 silent connections: %v", err)
		}
		s.Close()
		figure(t, "2000 silent connections: %d MiB more resident, the next login done after %v", grown>>20, time.Since(start).Round(time.Millisecond))
		if grown > 256<<20 {
			t.Errorf("the memory grew by %d MiB", grown>>20)
		}
	})

	for i, c := range silent {
		if !closedBy(c, opened.Add(25*time.Second)) {
			t.Errorf("silent connection %d is still open after %v", i, time.Since(opened))
		}
	}
	figure(t, "silent connections closed after at most %v", time.Since(opened).Round(100*time.Millisecond))
	beside.end(t)
	if !e.alive() {
		t.Fatal("the target died")
	}
	eventually(t, 10*time.Second, "every descriptor of the peers that left is closed", func() bool {
		return openFiles(t, e.pid()) <= files
	})
	ok(t, 15*time.Second, "iscsi-inq", e.url)
}

// loginHeader is the header of a login request that announces data.
func loginHeader(data int) []byte {
	var h iscsi.BHS
	h.SetOpcode(iscsi.OpLoginReq, true)
	h.SetFlags(0x81) // transit from security to operational negotiation
	h.SetDataLen(data)
	h.SetISID([6]byte{0x80, 1, 2, 3, 4, 5})
	return h[:]
}

// read10 is a READ(10) of n bytes from the start of LUN 0, the i-th command
// after login.
func read10(raw *initiator.Raw, i uint32, n int) *iscsi.BHS {
	h := new(iscsi.BHS)
	h.SetOpcode(iscsi.OpSCSICmd, false)
	h.SetFlags(0xc1) // final, read, simple
	h.SetITT(i + 1)
	h.SetEDTL(uint32(n))
	h.SetCmdSN(raw.CmdSN + i)
	h.SetExpStatSN(raw.ExpStatSN)
	cdb := h.CDB()
	cdb[0] = 0x28
	binary.BigEndian.PutUint16(cdb[7:], uint16(n/512))
	return h
}

// A session that does nothing must cost little.
func TestIdleSessions(t *testing.T) {
	const n = 1000
	e := serve(t, "ram:64M")
	ok(t, 15*time.Second, "iscsi-inq", e.url)
	before := rss(t, e.pid())
	for i := range n {
		cfg := config(e)
		cfg.InitiatorName = fmt.Sprintf("iqn.2025-01.io.blockgate.test:idle%d", i)
		raw, err := cfg.DialRaw(context.Background())
		if err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		defer raw.Close()
	}
	grown := rss(t, e.pid()) - before
	figure(t, "%d idle sessions: %.1f MiB more resident (%d KiB each)", n, float64(grown)/(1<<20), grown/n>>10)
	if grown > 64<<20 {
		t.Errorf("%d idle sessions cost %d MiB, at most 64 are in order", n, grown>>20)
	}
	ok(t, 15*time.Second, "iscsi-inq", e.url)
}
