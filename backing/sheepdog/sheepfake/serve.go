package sheepfake

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"blockgate/backing/sheepdog/internal/wire"
)

// maxPayload bounds a request: more than the largest read of a client, an inode
// with its index.
const maxPayload = 64 << 20

// Sheep is one daemon of a cluster.
type Sheep struct {
	c                *Cluster
	network, address string
	id               netip.AddrPort

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// Addr is where the sheep listens.
func (s *Sheep) Addr() (network, address string) { return s.network, s.address }

// ID is the sheep's address in the cluster.
func (s *Sheep) ID() netip.AddrPort { return s.id }

func (s *Sheep) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.l != nil
}

func (s *Sheep) serve(l net.Listener) {
	s.mu.Lock()
	s.l = l
	s.mu.Unlock()
	s.c.epoch.Add(1)
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			if s.l != l {
				s.mu.Unlock()
				conn.Close()
				return
			}
			s.conns[conn] = struct{}{}
			s.wg.Go(func() { s.conn(conn) })
			s.mu.Unlock()
		}
	})
}

// halt closes the sockets; what is under way ends by itself.
func (s *Sheep) halt() {
	s.mu.Lock()
	l := s.l
	s.l = nil
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	if l == nil {
		return
	}
	l.Close()
	s.c.epoch.Add(1)
	// A normal lock outlives its owner; a participant of a shared one does not.
	s.c.mu.Lock()
	for _, v := range s.c.vdis {
		delete(v.shared, s.id)
	}
	s.c.mu.Unlock()
}

// Stop ends the sheep as kill -9 does and waits until it is gone. Its objects
// and its locks stay.
func (s *Sheep) Stop() {
	s.halt()
	s.wg.Wait()
}

// Start brings a stopped sheep back at its address.
func (s *Sheep) Start() error {
	l, err := net.Listen(s.network, s.address)
	if err != nil {
		return err
	}
	s.serve(l)
	return nil
}

// Drop tears every connection.
func (s *Sheep) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		conn.Close()
	}
}

// reply is an answer that waits to be sent.
type reply struct {
	resp wire.Response
	data []byte
}

// session is one connection.
type session struct {
	s    *Sheep
	conn net.Conn
	r    *bufio.Reader
	rng  *rand.Rand

	batch []reply
	data  []byte // read answers of the batch lie in it

	mu sync.Mutex
	w  *bufio.Writer
}

func (s *Sheep) conn(conn net.Conn) {
	x := &session{
		s: s, conn: conn, r: bufio.NewReaderSize(conn, 64<<10), w: bufio.NewWriterSize(conn, 64<<10),
		rng: rand.New(rand.NewPCG(s.c.opt.ShuffleSeed, 1)),
	}
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	var payload []byte
	var h [wire.HeaderSize]byte
	for {
		if _, err := io.ReadFull(x.r, h[:]); err != nil {
			return
		}
		req := wire.ParseRequest(&h)
		if req.Length > maxPayload {
			return
		}
		var in []byte
		if req.Flags&wire.FlagWrite != 0 {
			if cap(payload) < int(req.Length) {
				payload = make([]byte, req.Length)
			}
			in = payload[:req.Length]
			if _, err := io.ReadFull(x.r, in); err != nil {
				return
			}
		}
		if !x.request(&req, in) {
			return
		}
		if (x.r.Buffered() < wire.HeaderSize || len(x.batch) >= 128) && !x.flush() {
			return
		}
	}
}

// request answers one request, or does what the fault says. It is false when the
// connection is to end.
func (x *session) request(req *wire.Request, in []byte) bool {
	f := Fault{}
	if fn := x.s.c.fault.Load(); fn != nil {
		f = (*fn)(Request{Op: req.Op, OID: req.OID, Offset: req.Offset, Length: req.Length, Flags: req.Flags, Sheep: x.s.id})
	}
	switch f.Kind {
	case CloseBefore:
		return false
	case Swallow:
		return true
	case Answer:
		x.add(reply{resp: wire.Response{Op: req.Op, ID: req.ID, Epoch: x.s.c.epoch.Load(), Result: wire.Result(f.Result)}})
		return true
	case Late:
		// The answer, and with Before the work too, waits for the channel.
		in = append([]byte(nil), in...)
		r := *req
		var rep reply
		if !f.Before {
			rep = x.run(&r, in, nil)
		}
		x.s.wg.Go(func() {
			select {
			case <-f.Until:
			case <-time.After(time.Minute):
				return
			}
			if f.Before {
				rep = x.run(&r, in, nil)
			}
			x.send(rep)
		})
		return true
	}
	rep := x.run(req, in, x)
	switch f.Kind {
	case CloseAfter:
		return false
	case Torn:
		var h [wire.HeaderSize]byte
		rep.resp.Put(&h)
		all := append(h[:], rep.data...)
		x.flush()
		_, _ = x.conn.Write(all[:min(len(all)-1, max(1, f.Bytes))])
		return false
	}
	x.add(rep)
	return true
}

// room is memory for an answer that lives until the batch is sent.
func (x *session) room(n int) []byte {
	if x == nil || n > 64<<10 {
		return make([]byte, n)
	}
	if len(x.data)+n > cap(x.data) {
		x.data = make([]byte, 0, 256<<10)
	}
	x.data = x.data[:len(x.data)+n]
	return x.data[len(x.data)-n:]
}

func (x *session) add(r reply) { x.batch = append(x.batch, r) }

// send sends one answer past the batch.
func (x *session) send(r reply) {
	var h [wire.HeaderSize]byte
	r.resp.Put(&h)
	x.mu.Lock()
	defer x.mu.Unlock()
	_, _ = x.w.Write(h[:])
	_, _ = x.w.Write(r.data)
	_ = x.w.Flush()
}

// flush sends what waits, shuffled if the cluster does so.
func (x *session) flush() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.s.c.opt.Shuffle {
		x.rng.Shuffle(len(x.batch), func(i, j int) { x.batch[i], x.batch[j] = x.batch[j], x.batch[i] })
	}
	var h [wire.HeaderSize]byte
	for i := range x.batch {
		x.batch[i].resp.Put(&h)
		_, _ = x.w.Write(h[:])
		_, _ = x.w.Write(x.batch[i].data)
		x.batch[i].data = nil
	}
	x.batch = x.batch[:0]
	x.data = x.data[:0]
	return x.w.Flush() == nil
}

// run does what the request asks for.
func (x *session) run(req *wire.Request, in []byte, mem *session) reply {
	s, c := x.s, x.s.c
	rep := reply{resp: wire.Response{Op: req.Op, ID: req.ID, Epoch: c.epoch.Load()}}
	resp := &rep.resp
	version := req.Proto <= wire.Version
	if req.Op >= 0x80 {
		version = req.Proto == wire.VersionInternal
	}
	if !version {
		resp.Result = wire.VersionMismatch
		return rep
	}
	switch req.Op {
	case wire.OpRead:
		p := mem.room(int(req.Length))
		if resp.Result = s.objectOp(req, p); resp.Result == wire.Success {
			rep.data = p
		}
	case wire.OpCreateAndWrite, wire.OpWrite, wire.OpRemove, wire.OpDiscard:
		resp.Result = s.objectOp(req, in)
	case wire.OpNewVDI:
		resp.Result = c.newVDI(req, in, resp)
	case wire.OpLockVDI, wire.OpGetVDIInfo:
		resp.Result = s.info(req, in, resp)
	case wire.OpReleaseVDI:
		resp.Result = s.release(req)
	case wire.OpReadVDIs:
		if req.Length != wire.VDIBitmapSize {
			resp.Result = wire.InvalidParams
			break
		}
		rep.data = c.bitmap()
	case wire.OpDelVDI:
		resp.Result = c.delete(req, in)
	case wire.OpClusterDefault:
		resp.Copies, resp.CopyPolicy, resp.BlockShift = c.opt.Copies, c.opt.CopyPolicy, c.opt.BlockShift
	case wire.OpNodeList:
		rep.data = c.members()
	case wire.OpVDIStates:
		rep.data = c.states()
		if len(rep.data) > int(req.Length) {
			rep.data, resp.Result = nil, wire.BufferSmall
		}
	case wire.OpKillNode:
		// It leaves when this answer is out.
		s.wg.Go(s.halt)
	default:
		// OpFlushVDI too: there has been nothing to flush for years.
		resp.Result = wire.InvalidParams
	}
	resp.Length = uint32(len(rep.data))
	return rep
}
