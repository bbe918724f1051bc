package server_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/fault"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
)

// TestCommandsOverlapInTheStore: the commands of one connection are in a slow store
// all at once, not one after the other.
func TestCommandsOverlapInTheStore(t *testing.T) {
	const depth = 32
	for name, write := range map[string]bool{"reads": false, "writes": true} {
		t.Run(name, func(t *testing.T) {
			st := fault.New(memory(t, 16<<20), 1)
			st.Add(fault.Rule{Action: fault.Stick})
			r := serve(t, options{stores: []backing.Store{st}})
			defer st.Clear()
			s := r.dial("a", nil)
			if err := s.Unit(0).TestUnitReady(limited(t)); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for i := range depth {
				wg.Add(1)
				c := &initiator.Command{LUN: initiator.LUN(0), Done: func(*initiator.Command) { wg.Done() }}
				if write {
					c.CDB, c.Out = rw10(0x2a, uint32(i)*8, 8), make([]byte, 4096)
				} else {
					c.CDB, c.In = rw10(0x28, uint32(i)*8, 8), make([]byte, 4096)
				}
				if err := s.Submit(c); err != nil {
					t.Fatal(err)
				}
			}
			if err := st.WaitHeld(limited(t), depth); err != nil {
				t.Fatal(err)
			}
			st.Clear()
			s.Close()
			wg.Wait()
		})
	}
}

// TestHungUnitDoesNotSlowItsNeighbour: most of the command window hangs in one
// unit; commands for another unit of the same session do not notice it.
func TestHungUnitDoesNotSlowItsNeighbour(t *testing.T) {
	const hung = 100
	st := stuck(t)
	r := serve(t, options{stores: []backing.Store{st, memory(t, 4<<20)}})
	defer st.Clear() // not Release: some still wait for a worker then
	s := r.dial("a", nil)
	checkIO(t, s, 1, 0)
	if err := s.Unit(0).TestUnitReady(limited(t)); err != nil {
		t.Fatal(err)
	}
	load := func() time.Duration {
		start, ctx, u, p := time.Now(), limited(t), s.Unit(1), make([]byte, 4096)
		for i := range uint64(500) {
			if err := u.ReadBlocks(ctx, p, i%100*8, 8); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(start)
	}
	before := load()
	var wg sync.WaitGroup
	for i := range hung {
		wg.Add(1)
		c := &initiator.Command{LUN: initiator.LUN(0), CDB: rw10(0x2a, uint32(i)*8, 8), Out: make([]byte, 4096), Done: func(*initiator.Command) { wg.Done() }}
		if err := s.Submit(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.WaitHeld(limited(t), 64); err != nil { // as many as the unit has workers
		t.Fatal(err)
	}
	after := load()
	t.Logf("500 reads: %v alone, %v beside a hung unit", before, after)
	// Far from what a busy machine does, and from a timeout as well.
	if after > 10*before+time.Second {
		t.Errorf("500 reads took %v, and %v beside a hung unit", before, after)
	}
	checkIO(t, s, 1, 8)
	s.Close()
	wg.Wait()
}

// TestIdleSessionsAreSmall: a thousand sessions that do nothing, with the
// clients' ends of the sockets in the same process.
func TestIdleSessionsAreSmall(t *testing.T) {
	const n, limit = 1000, 64 << 20
	r := serve(t, options{})
	heap, rss := memoryInUse(t)
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = bareLogin(t, r.addr, fmt.Sprint("iqn.test:idle", i))
	}
	defer func() {
		for _, nc := range conns {
			nc.Close()
		}
	}()
	// A command on each, so that all have been at work once.
	for i, nc := range conns {
		nc.Write(command(1, 1, 0, rw10(0x28, 0, 8), 4096, read)[:])
		var h iscsi.BHS
		if _, err := io.ReadFull(nc, h[:]); err != nil || h.Opcode() != iscsi.OpSCSIResp { // the unit attention
			t.Fatalf("connection %d: %v, % x", i, err, h[:])
		}
		io.CopyN(io.Discard, nc, int64(h.DataLen()+iscsi.PadLen(h.DataLen())))
		nc.Write(command(1, 2, 0, rw10(0x28, 0, 8), 4096, read)[:])
		if _, err := io.ReadFull(nc, h[:]); err != nil || h.Opcode() != iscsi.OpDataIn {
			t.Fatalf("connection %d: %v, % x", i, err, h[:])
		}
		io.CopyN(io.Discard, nc, int64(h.DataLen()))
	}
	if l := len(r.srv.Sessions()); l != n {
		t.Fatalf("%d sessions", l)
	}
	heap2, rss2 := memoryInUse(t)
	t.Logf("a session takes %d bytes of heap and stacks, %d of resident memory", (heap2-heap)/n, (rss2-rss)/n)
	if heap2-heap > limit {
		t.Errorf("%d sessions take %d MiB of heap and stacks", n, (heap2-heap)>>20)
	}
	if rss2-rss > limit && !raceEnabled {
		t.Errorf("%d sessions take %d MiB of resident memory", n, (rss2-rss)>>20)
	}
}

// memoryInUse is the heap and stacks in use, and the resident memory, in bytes.
func memoryInUse(t testing.TB) (heap, rss int64) {
	t.Helper()
	for range 2 { // pools keep things through one collection
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64)
			rss = pages * int64(os.Getpagesize())
		}
	}
	return int64(m.HeapInuse + m.StackInuse), rss
}

// bareLogin logs in over a connection that has no buffers.
func bareLogin(t testing.TB, addr, name string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	var h iscsi.BHS
	h.SetOpcode(iscsi.OpLoginReq, true)
	h.SetFlags(iscsi.FlagTransit | iscsi.StageOperational<<2 | iscsi.StageFullFeature)
	h.SetISID([6]byte{0x80, 1})
	h.SetCmdSN(1)
	text := iscsi.AppendText(iscsi.AppendText(nil, "InitiatorName", name), "TargetName", targetName)
	h.SetDataLen(len(text))
	nc.Write(append(append(h[:], text...), make([]byte, iscsi.PadLen(len(text)))...))
	if _, err := io.ReadFull(nc, h[:]); err != nil || h.Opcode() != iscsi.OpLoginResp || h.StatusClass() != 0 || h.Flags()&iscsi.FlagTransit == 0 {
		t.Fatalf("login: %v, % x", err, h[:])
	}
	io.CopyN(io.Discard, nc, int64(h.DataLen()+iscsi.PadLen(h.DataLen())))
	return nc
}

// TestHalfPDUsHoldLittle: peers that stop in the middle of a long write hold the
// memory of that write, which the budget counts, and no input buffer.
func TestHalfPDUsHoldLittle(t *testing.T) {
	const n = 200
	r := serve(t, options{})
	heap, _ := memoryInUse(t)
	var conns []net.Conn
	defer func() {
		for _, nc := range conns {
			nc.Close()
		}
	}()
	half := longWrite(32 << 10)
	for i := range n {
		nc := bareLogin(t, r.addr, fmt.Sprint("iqn.test:half", i))
		conns = append(conns, nc)
		// Behind a ping, whose answer tells that the rest has been read as well.
		var h iscsi.BHS
		nc.Write(append(append(nop(1, 1)[:], half[:]...), make([]byte, 1000)...))
		if _, err := io.ReadFull(nc, h[:]); err != nil || h.Opcode() != iscsi.OpNopIn {
			t.Fatalf("%v, % x", err, h[:])
		}
	}
	heap2, _ := memoryInUse(t)
	used := r.srv.MemoryUsed()
	t.Logf("a half PDU holds %d bytes, of which the budget counts %d", (heap2-heap)/n, used/n)
	if used < n*32<<10 {
		t.Errorf("the budget counts %d bytes", used)
	}
	if got := heap2 - heap; got > used+n*64<<10 {
		t.Errorf("%d half PDUs hold %d MiB", n, got>>20)
	}
}

// TestPipelinedDataBehindTheLogin: an initiator may send its first commands at
// the heels of its last login request.
func TestPipelinedDataBehindTheLogin(t *testing.T) {
	r := serve(t, options{})
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	var h iscsi.BHS
	h.SetOpcode(iscsi.OpLoginReq, true)
	h.SetFlags(iscsi.FlagTransit | iscsi.StageOperational<<2 | iscsi.StageFullFeature)
	h.SetISID([6]byte{0x80, 1})
	h.SetCmdSN(1)
	text := iscsi.AppendText(iscsi.AppendText(nil, "InitiatorName", "iqn.test:quick"), "TargetName", targetName)
	h.SetDataLen(len(text))
	b := append(append(h[:], text...), make([]byte, iscsi.PadLen(len(text)))...)
	b = append(b, nop(7, 1)[:]...)
	b = append(b, nop(8, 1)[:30]...)
	nc.Write(b)
	for _, want := range []iscsi.Opcode{iscsi.OpLoginResp, iscsi.OpNopIn} {
		if _, err := io.ReadFull(nc, h[:]); err != nil || h.Opcode() != want {
			t.Fatalf("want opcode %02x: %v, % x", byte(want), err, h[:])
		}
		io.CopyN(io.Discard, nc, int64(h.DataLen()+iscsi.PadLen(h.DataLen())))
	}
	nc.Write(nop(8, 1)[30:])
	if _, err := io.ReadFull(nc, h[:]); err != nil || h.Opcode() != iscsi.OpNopIn || h.ITT() != 8 {
		t.Fatalf("%v, % x", err, h[:])
	}
}

// TestOneByteAtATime: where the stream is cut does not matter.
func TestOneByteAtATime(t *testing.T) {
	r := serve(t, options{})
	c := r.rawLogin("drip")
	c.Send(command(1, c.CmdSN, 0, []byte{0}, 0, final), nil, nil)
	if _, err := c.Recv(); err != nil { // the unit attention
		t.Fatal(err)
	}
	want := pattern(20<<10, 5) // long enough to be received in place
	h := command(2, c.CmdSN+1, 0, rw10(0x2a, 0, 40), len(want), write)
	b := c.Encode(nil, h, nil, want)
	for i := range 200 {
		c.SendBytes(b[i : i+1])
	}
	for at := 200; at < len(b); at += 997 {
		c.SendBytes(b[at:min(at+997, len(b))])
	}
	if p, err := c.Recv(); err != nil || p.Status() != 0 || binary.BigEndian.Uint32(p.BHS[16:]) != 2 {
		t.Fatal(p, err)
	}
	c.MaxRecv(1 << 20)
	c.Send(command(3, c.CmdSN+2, 0, rw10(0x28, 0, 40), len(want), read), nil, nil)
	var got []byte
	for len(got) < len(want) {
		p, err := c.Recv()
		if err != nil || p.Opcode() != iscsi.OpDataIn {
			t.Fatal(p, err)
		}
		got = append(got, p.Data...)
	}
	if !bytes.Equal(got, want) {
		t.Error("not read back as written")
	}
}

// TestSlowReaderKeepsNobodyWaiting: what a peer has asked for and does not read
// may lie in the store's memory only until the socket is full. It later gets
// what was there at one moment.
func TestSlowReaderKeepsNobodyWaiting(t *testing.T) {
	const size, n = 16 << 20, 16 // bytes of the disk, reads of a part of it each
	r := serve(t, options{})
	u := r.dial("writer", nil).Unit(0)
	write := func(data []byte) {
		t.Helper()
		for off := 0; off < size; off += size / n {
			err := u.WriteBlocks(limited(t), data[off:][:size/n], uint64(off)/512, size/n/512)
			if initiator.IsUnitAttention(err) {
				err = u.WriteBlocks(limited(t), data[off:][:size/n], uint64(off)/512, size/n/512)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	states := [][]byte{pattern(size, 1), pattern(size, 2), pattern(size, 3)}
	write(states[0])
	slow := r.asksForAll("slow", size, n)
	write(states[1]) // waits for nobody
	write(states[2])
	var got [n][]byte
	for done := 0; done < n; {
		p, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		i := p.ITT()
		got[i] = append(got[i], p.Data...)
		if p.Opcode() == iscsi.OpSCSIResp { // the unit attention of a new session
			got[i] = nil
			done++
		} else if p.Flags()&iscsi.FlagStatus != 0 {
			done++
		}
	}
	for i, p := range got {
		if p != nil && !slices.ContainsFunc(states, func(s []byte) bool { return bytes.Equal(p, s[i*(size/n):][:size/n]) }) {
			t.Errorf("read %d got what was never there", i)
		}
	}
}
