package nebdfake

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"

	"blockgate/backing/curve/internal/brpc"
	"blockgate/backing/curve/internal/nebd"
)

// reply is an answer that waits to be sent.
type reply struct {
	head []byte
	data []byte
}

// session is one connection.
type session struct {
	s    *Server
	life *life
	nc   net.Conn
	r    *bufio.Reader
	rng  *rand.Rand

	batch []reply
	mem   []byte // the batch's answers lie in it

	mu sync.Mutex
	w  *bufio.Writer
}

func (s *Server) serve(l *life, nc net.Conn) {
	x := &session{
		s: s, life: l, nc: nc, r: bufio.NewReaderSize(nc, 64<<10), w: bufio.NewWriterSize(nc, 64<<10),
		rng: rand.New(rand.NewPCG(s.opt.Seed, 1)),
	}
	defer func() {
		nc.Close()
		s.mu.Lock()
		delete(l.conns, nc)
		s.mu.Unlock()
	}()
	var body []byte
	for {
		var h [brpc.HeaderSize]byte
		if _, err := io.ReadFull(x.r, h[:]); err != nil {
			return
		}
		head, err := brpc.ParseHeader(&h)
		if err != nil {
			return
		}
		if cap(body) < head.Body {
			body = make([]byte, head.Body)
		}
		body = body[:head.Body]
		if _, err := io.ReadFull(x.r, body); err != nil {
			return
		}
		meta, err := brpc.ParseMeta(body[:head.Meta])
		if err != nil || head.Meta+meta.Attachment > head.Body {
			return
		}
		msg := body[head.Meta : head.Body-meta.Attachment]
		if !x.request(&meta, msg, body[head.Body-meta.Attachment:]) {
			return
		}
		if (x.r.Buffered() < brpc.HeaderSize || len(x.batch) >= 128) && !x.flush() {
			return
		}
	}
}

// job is a request on its way.
type job struct {
	method string
	id     uint64
	req    nebd.Request
	files  []nebd.File // of a heartbeat
	in     []byte
}

// request answers one request, or does what the fault says. It is false when the
// connection is to end.
func (x *session) request(meta *brpc.Meta, msg, in []byte) bool {
	j := job{id: meta.ID, in: in}
	j.method = methodName(meta)
	var err error
	switch j.method {
	case "":
		x.add(reply{head: brpc.AppendResponse(nil, 1002, "no such method", meta.ID, nil, 0)})
		return true
	case nebd.KeepAlive:
		_, _, j.files, err = nebd.ParseKeepAlive(msg)
	default:
		j.req, err = nebd.ParseRequest(j.method, msg)
	}
	if err != nil {
		x.add(reply{head: brpc.AppendResponse(nil, 1003, "fail to parse request", meta.ID, nil, 0)})
		return true
	}
	f := Fault{}
	if fn := x.s.fault.Load(); fn != nil {
		f = (*fn)(Request{Method: j.method, FD: j.req.FD, Offset: j.req.Offset, Size: j.req.Size})
	}
	if f.Kind == Fail && x.s.opt.DropOnError && (j.method == nebd.Read || j.method == nebd.Write || j.method == nebd.Discard) {
		f.Kind = Drop
	}
	switch f.Kind {
	case CloseBefore:
		return false
	case Swallow:
		return true
	case Drop:
		if file := x.s.file(j.req.FD); file != nil {
			file.enter()
		}
		return true
	case Fail:
		x.add(x.answer(&j, &nebd.Response{Code: nebd.NotOK, Text: "failed"}, nil))
		return true
	case BRPC:
		x.add(reply{head: brpc.AppendResponse(nil, f.Code, "fault", meta.ID, nil, 0)})
		return true
	}
	file := x.s.file(j.req.FD)
	// What may wait does so beside the others.
	if f.Kind == Late || j.method == nebd.CloseFile || file != nil && file.mustWait() {
		j.in = append([]byte(nil), in...)
		entered := j.io() && f.Kind == Late && file != nil && !file.mustWait() && file.enter()
		x.life.wg.Go(func() { x.later(j, f, file, entered) })
		return true
	}
	rep := x.run(&j, file, false, x)
	switch f.Kind {
	case CloseAfter:
		return false
	case Torn:
		all := append(rep.head, rep.data...)
		x.flush()
		_, _ = x.nc.Write(all[:min(len(all)-1, max(1, f.Bytes))])
		return false
	}
	x.add(rep)
	return true
}

func methodName(m *brpc.Meta) string {
	service := string(m.Service)
	if !strings.HasPrefix(service, "nebd.client.") {
		service = "nebd.client." + service
	}
	switch service {
	case nebd.Heartbeat:
		if string(m.Method) == nebd.KeepAlive {
			return nebd.KeepAlive
		}
	case nebd.Service:
		for _, name := range [...]string{nebd.Read, nebd.Write, nebd.OpenFile, nebd.CloseFile, nebd.Discard, nebd.ResizeFile, nebd.Flush, nebd.GetInfo, nebd.InvalidateCache} {
			if string(m.Method) == name {
				return name
			}
		}
	}
	return ""
}

// io reports whether the request holds its file until it is answered.
func (j *job) io() bool {
	switch j.method {
	case nebd.OpenFile, nebd.CloseFile, nebd.KeepAlive:
		return false
	}
	return true
}

func (x *session) later(j job, f Fault, file *file, entered bool) {
	var rep reply
	wait := func() bool {
		if f.Kind != Late {
			return true
		}
		select {
		case <-f.Until:
			return true
		case <-x.life.over:
			return false
		}
	}
	switch {
	case f.Kind == Late && !f.Before:
		rep = x.run(&j, file, entered, nil)
		if !wait() {
			return
		}
	default:
		if !wait() {
			return
		}
		rep = x.run(&j, file, entered, nil)
	}
	x.send(rep)
}

// room is memory for an answer that lives until the batch is sent.
func (x *session) room(n int) []byte {
	if x == nil || n > 64<<10 {
		return make([]byte, n)
	}
	if len(x.mem)+n > cap(x.mem) {
		x.mem = make([]byte, 0, 512<<10)
	}
	x.mem = x.mem[:len(x.mem)+n]
	return x.mem[len(x.mem)-n : len(x.mem) : len(x.mem)]
}

func (x *session) add(r reply) { x.batch = append(x.batch, r) }

// send sends one answer past the batch.
func (x *session) send(r reply) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, _ = x.w.Write(r.head)
	_, _ = x.w.Write(r.data)
	_ = x.w.Flush()
}

// flush sends what waits, shuffled if the server does so.
func (x *session) flush() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.s.opt.Shuffle {
		x.rng.Shuffle(len(x.batch), func(i, j int) { x.batch[i], x.batch[j] = x.batch[j], x.batch[i] })
	}
	for i := range x.batch {
		_, _ = x.w.Write(x.batch[i].head)
		_, _ = x.w.Write(x.batch[i].data)
		x.batch[i] = reply{}
	}
	x.batch, x.mem = x.batch[:0], x.mem[:0]
	return x.w.Flush() == nil
}

func (x *session) answer(j *job, r *nebd.Response, data []byte) reply {
	var msg [160]byte
	m := nebd.AppendResponse(msg[:0], r, 0x7f00dead0000^j.id)
	return reply{head: brpc.AppendResponse(x.room(160)[:0], 0, "", j.id, m, len(data)), data: data}
}

func (s *Server) file(fd int32) *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[fd]
}

// run does what the request asks for. entered says that the file is held already.
func (x *session) run(j *job, file *file, entered bool, mem *session) reply {
	s := x.s
	at := func(r *nebd.Response, data []byte) reply {
		if mem == nil {
			// From another goroutine: the batch's memory is not ours.
			m := nebd.AppendResponse(nil, r, 0x7f00dead0000^j.id)
			return reply{head: brpc.AppendResponse(nil, 0, "", j.id, m, len(data)), data: data}
		}
		return x.answer(j, r, data)
	}
	fail := func(format string, args ...any) reply {
		return at(&nebd.Response{Code: nebd.NotOK, Text: fmt.Sprintf(format, args...)}, nil)
	}
	switch j.method {
	case nebd.KeepAlive:
		s.mu.Lock()
		for _, f := range j.files {
			if g := s.files[f.FD]; g != nil && g.name == f.Name {
				s.beats++
			}
		}
		s.mu.Unlock()
		return at(&nebd.Response{}, nil)
	case nebd.OpenFile:
		fd, err := s.open(j.req)
		if err != nil {
			return fail("%v", err)
		}
		return at(&nebd.Response{FD: fd}, nil)
	case nebd.CloseFile:
		if file == nil {
			return at(&nebd.Response{}, nil)
		}
		if !file.close(true) {
			return reply{}
		}
		s.mu.Lock()
		if s.files[file.fd] == file {
			delete(s.files, file.fd)
		}
		s.mu.Unlock()
		return at(&nebd.Response{}, nil)
	}
	if file == nil || !entered && !file.enter() {
		return fail("file %d is not open", j.req.FD)
	}
	defer file.leave()
	v := file.vol
	off, n := int64(j.req.Offset), int64(j.req.Size)
	switch j.method {
	case nebd.GetInfo:
		b := v.blockSize
		if b == nebd.DefaultBlockSize {
			b = 0
		}
		return at(&nebd.Response{Info: nebd.Info{Size: uint64(v.length()), BlockSize: b}}, nil)
	case nebd.ResizeFile:
		if err := v.grow(n, s.opt.SegmentSize); err != nil {
			return fail("%v", err)
		}
	case nebd.Read, nebd.Write, nebd.Discard:
		if n <= 0 || off%int64(v.blockSize) != 0 || n%int64(v.blockSize) != 0 {
			s.accuse("%s of [%d,+%d) on blocks of %d", j.method, off, n, v.blockSize)
			return fail("not aligned")
		}
		if off < 0 || n > v.length() || off > v.length()-n {
			return fail("out of range")
		}
		if j.method == nebd.Read {
			p := mem.room(int(n))
			v.read(p, off)
			return at(&nebd.Response{}, p)
		}
		if j.method == nebd.Write {
			if int64(len(j.in)) != n {
				return fail("attachment of %d bytes", len(j.in))
			}
			v.write(j.in, off)
		}
		// A discard changes nothing that one could rely on.
	}
	return at(&nebd.Response{}, nil)
}

// open finds the file of a volume, or makes one.
func (s *Server) open(r nebd.Request) (int32, error) {
	flags := ""
	if r.Flags {
		flags = fmt.Sprint("exclusive=", r.Exclusive)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for fd, f := range s.files {
		if f.name != r.Name {
			continue
		}
		if f.flags != flags {
			return 0, fmt.Errorf("open with other flags")
		}
		f.mu.Lock()
		gone := f.gone
		f.open = f.open || !gone
		f.mu.Unlock()
		if !gone {
			return fd, nil
		}
	}
	v := s.volumes[r.Name]
	if v == nil {
		return 0, fmt.Errorf("open file failed")
	}
	fd := s.nextFD
	s.nextFD++
	s.files[fd] = newFile(fd, r.Name, flags, v)
	return fd, nil
}
