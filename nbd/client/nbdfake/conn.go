package nbdfake

import (
	"io"
	"net"
	"sync"

	"blockgate/nbd"
)

// conn is a connection of a client.
type conn struct {
	s   *Server
	nc  net.Conn
	opt Options

	mode       nbd.Mode
	allocation bool

	mu    sync.Mutex // held while a reply is sent
	stuck bool       // nothing more is sent
}

// contextID is the number of the one metadata context.
const contextID = 7

func (c *conn) read(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(c.nc, b)
	return b, err
}

func (c *conn) handshake() error {
	flags := nbd.FixedNewstyle | nbd.NoZeroes
	if c.opt.Old {
		flags = nbd.FixedNewstyle
	}
	if _, err := c.nc.Write(nbd.AppendGreeting(nil, flags)); err != nil {
		return err
	}
	if _, err := c.read(nbd.ClientFlagsLen); err != nil {
		return err
	}
	for {
		b, err := c.read(nbd.OptionHeaderLen)
		if err != nil {
			return err
		}
		h, err := nbd.DecodeOptionHeader(b)
		if err != nil {
			return err
		}
		if b, err = c.read(int(h.Length)); err != nil {
			return err
		}
		done, err := c.option(h.Option, b)
		if err != nil || done {
			return err
		}
	}
}

func (c *conn) option(o nbd.Option, data []byte) (done bool, err error) {
	var out []byte
	reply := func(t nbd.ReplyType, data []byte) { out = nbd.AppendOptionReply(out, o, t, data) }
	known := o
	if c.opt.Old && o != nbd.OptExportName && o != nbd.OptAbort {
		known = 0
	}
	switch known {
	case nbd.OptExtendedHeaders, nbd.OptStructuredReply:
		m := nbd.Structured
		if o == nbd.OptExtendedHeaders {
			m = nbd.Extended
		}
		if c.opt.Mode < m {
			reply(nbd.RepErrUnsupported, nil)
			break
		}
		c.mode = max(c.mode, m)
		reply(nbd.RepAck, nil)
	case nbd.OptSetMetaContext:
		if c.opt.Allocation {
			c.allocation = true
			reply(nbd.RepMetaContext, nbd.MetaContext{ID: contextID, Name: nbd.AllocationContext}.Append(nil))
		}
		reply(nbd.RepAck, nil)
	case nbd.OptList:
		reply(nbd.RepServer, nbd.ServerEntry{Name: c.opt.Export}.Append(nil))
		reply(nbd.RepAck, nil)
	case nbd.OptGo, nbd.OptInfo:
		r, err := nbd.DecodeInfoRequest(data)
		if err != nil {
			return true, err
		}
		if r.Name != c.opt.Export {
			reply(nbd.RepErrUnknown, []byte("no such export"))
			break
		}
		reply(nbd.RepInfo, nbd.Info{Type: nbd.InfoExport, Size: uint64(c.opt.Size), Flags: c.opt.Flags}.Append(nil))
		if c.opt.BlockSize != nil {
			reply(nbd.RepInfo, nbd.Info{Type: nbd.InfoBlockSize, BlockSize: *c.opt.BlockSize}.Append(nil))
		}
		reply(nbd.RepAck, nil)
		done = o == nbd.OptGo
	case nbd.OptExportName:
		if string(data) != c.opt.Export {
			return true, errEnd
		}
		out = nbd.AppendExportNameReply(out, uint64(c.opt.Size), c.opt.Flags, c.opt.Old)
		done = true
	case nbd.OptAbort:
		return true, errEnd
	default:
		reply(nbd.RepErrUnsupported, []byte("what?"))
	}
	_, err = c.nc.Write(out)
	return done, err
}

func (c *conn) request() error {
	b, err := c.read(c.mode.RequestHeaderLen())
	if err != nil {
		return err
	}
	var r nbd.Request
	if !nbd.DecodeRequest(b, c.mode, &r) || r.Type == nbd.CmdDisconnect {
		return errEnd
	}
	p, err := c.read(int(r.PayloadLen(c.mode)))
	if err != nil {
		return err
	}
	f := c.s.decide(r)
	if f.Kind == Drop {
		return errEnd
	}
	c.s.wg.Go(func() { c.handle(r, p, f) })
	return nil
}

func (c *conn) handle(r nbd.Request, p []byte, f Fault) {
	if f.Kind == Slow {
		<-f.Until
	}
	var out []byte
	switch f.Kind {
	case Refuse:
		out = c.answer(r, nil, nil, f.Errno)
	case Garbage:
		out = f.Bytes(r)
	default:
		data, ext, e := c.s.do(r, p, &c.opt)
		out = c.answer(r, data, ext, e)
	}
	switch f.Kind {
	case Undone:
		c.nc.Close()
		return
	case Torn, Stuck:
		out = out[:len(out)/2]
	case Late:
		<-f.Until
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stuck {
		return
	}
	c.stuck = f.Kind == Stuck
	_, err := c.nc.Write(out)
	if err != nil || f.Kind == Torn {
		c.nc.Close()
	}
}

// answer is the whole reply.
func (c *conn) answer(r nbd.Request, data []byte, ext []nbd.Extent, e nbd.Errno) (out []byte) {
	structured := r.Type == nbd.CmdRead || r.Type == nbd.CmdBlockStatus
	if c.mode == nbd.Simple || c.mode == nbd.Structured && !structured {
		return append(nbd.AppendSimpleReply(nil, e, r.Cookie), data...)
	}
	chunk := func(t nbd.ChunkType, p []byte, done bool) {
		h := nbd.Chunk{Type: t, Cookie: r.Cookie, Offset: r.Offset, Length: uint64(len(p))}
		if done {
			h.Flags = nbd.ChunkDone
		}
		out = append(h.Append(out, c.mode), p...)
	}
	switch {
	case e != nbd.None:
		info := nbd.ErrorInfo{Error: e, Message: "as told", Offset: r.Offset}
		chunk(nbd.ChunkErrorOffset, info.Append(nil, nbd.ChunkErrorOffset), true)
	case r.Type == nbd.CmdRead:
		c.pieces(r, data, chunk)
	case r.Type == nbd.CmdBlockStatus:
		chunk(c.mode.BlockStatusType(), nbd.AppendBlockStatus(nil, c.mode, contextID, ext), true)
	default:
		chunk(nbd.ChunkNone, nil, true)
	}
	return out
}

func (c *conn) pieces(r nbd.Request, data []byte, chunk func(nbd.ChunkType, []byte, bool)) {
	n := c.opt.Pieces
	if n == 0 {
		n = len(data)
	}
	for at := (len(data) - 1) / n * n; at >= 0; at -= n {
		p := data[at:min(at+n, len(data))]
		zero := true
		for _, b := range p {
			zero = zero && b == 0
		}
		off := r.Offset + uint64(at)
		if zero && c.opt.Pieces != 0 {
			chunk(nbd.ChunkOffsetHole, nbd.AppendOffsetHole(nil, off, uint32(len(p))), false)
		} else {
			chunk(nbd.ChunkOffsetData, append(nbd.AppendOffset(nil, off), p...), false)
		}
	}
	chunk(nbd.ChunkNone, nil, true)
}
