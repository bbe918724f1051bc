package client

import (
	"blockgate/internal/bufpool"
	"blockgate/nbd"
)

// reply takes one reply, or one chunk of one. Its error ends the connection.
func (c *conn) reply() error {
	magic, err := c.in.peek(4)
	if err != nil {
		return err
	}
	mode := c.exp.Mode
	n := nbd.ReplyLen(magic, mode)
	if n == 0 {
		return broken("%x where a reply should begin", magic)
	}
	head, err := c.in.peek(n)
	if err != nil {
		return err
	}
	var rep nbd.Reply
	if !nbd.DecodeReply(head, mode, &rep) {
		return broken("reply %x", head)
	}
	c.in.skip(n)

	c.mu.Lock()
	x := c.pending[rep.Cookie]
	if x != nil {
		x.receiving, c.within = true, true
	}
	c.mu.Unlock()
	if x == nil {
		return broken("reply to a request that is not there (cookie %#x)", rep.Cookie)
	}
	done, err := c.take(x, &rep)

	c.mu.Lock()
	x.receiving, c.within = false, false
	switch {
	case c.err != nil:
		// fail has left it to us.
		if err != nil || !done {
			x.lost = c.err
		}
		done = true
	case err != nil:
		delete(c.pending, rep.Cookie)
		x.lost = &lostError{err}
		done = true
	case done:
		delete(c.pending, rep.Cookie)
		c.noteDrained()
	}
	c.mu.Unlock()
	if done {
		x.end()
	}
	return err
}

// take takes what follows the header. done: it was the last of the reply.
func (c *conn) take(x *call, rep *nbd.Reply) (done bool, err error) {
	if rep.Simple {
		return true, c.simple(x, rep.Error)
	}
	if err := c.chunk(x, rep); err != nil {
		return false, err
	}
	if rep.Flags&nbd.ChunkDone == 0 {
		return false, nil
	}
	if x.err != nil || x.orphan() {
		return true, nil
	}
	switch x.req.Type {
	case nbd.CmdRead:
		if !x.got.whole(x.req.Offset, x.req.Length) {
			return false, broken("the answer to a READ of %d bytes at %d has gaps", x.req.Length, x.req.Offset)
		}
	case nbd.CmdBlockStatus:
		if !x.told {
			return false, broken("the answer to BLOCK_STATUS has no extents")
		}
	}
	return true, nil
}

func (c *conn) simple(x *call, e nbd.Errno) error {
	structured := x.req.Type == nbd.CmdRead && x.mode != nbd.Simple || x.req.Type == nbd.CmdBlockStatus
	switch {
	case e != nbd.None:
		x.err = &Error{x.req.Type, e.Known(), "", -1}
	case structured:
		return broken("simple reply to a %v", x.req.Type)
	case x.req.Type == nbd.CmdRead && x.orphan():
		return c.in.discard(x.req.Length)
	case x.req.Type == nbd.CmdRead:
		return c.in.read(x.in)
	}
	return nil
}

func (c *conn) chunk(x *call, rep *nbd.Reply) error {
	if x.mode == nbd.Extended && rep.Offset != x.req.Offset {
		return broken("reply with offset %d to a request with %d", rep.Offset, x.req.Offset)
	}
	read := x.req.Type == nbd.CmdRead
	switch {
	case rep.Type == nbd.ChunkNone:
		if rep.Length != 0 || rep.Flags&nbd.ChunkDone == 0 {
			return broken("empty chunk of %d bytes, flags %#x", rep.Length, rep.Flags)
		}
		return nil
	case rep.Type.IsError():
		return c.errorChunk(x, rep)
	case rep.Type == nbd.ChunkOffsetData && read:
		return c.data(x, rep)
	case rep.Type == nbd.ChunkOffsetHole && read:
		return c.hole(x, rep)
	case rep.Type == x.mode.BlockStatusType() && x.req.Type == nbd.CmdBlockStatus:
		return c.extents(x, rep)
	}
	return broken("chunk of type %#x in the answer to a %v", rep.Type, x.req.Type)
}

// place finds where a part of a READ belongs.
func (x *call) place(off, n uint64) ([]byte, error) {
	if off < x.req.Offset || n > x.req.Length || off-x.req.Offset > x.req.Length-n {
		return nil, broken("%d bytes at %d in the answer to a READ of %d at %d", n, off, x.req.Length, x.req.Offset)
	}
	if x.orphan() {
		return nil, nil
	}
	if !x.got.add(off, n) {
		return nil, broken("the answer to a READ has bytes at %d twice", off)
	}
	return x.in[off-x.req.Offset:][:n], nil
}

func (c *conn) data(x *call, rep *nbd.Reply) error {
	if rep.Length <= nbd.OffsetDataLen {
		return broken("data chunk of %d bytes", rep.Length)
	}
	b, err := c.in.peek(nbd.OffsetDataLen)
	if err != nil {
		return err
	}
	off, err := nbd.DecodeOffset(b)
	if err != nil {
		return err
	}
	c.in.skip(nbd.OffsetDataLen)
	n := rep.Length - nbd.OffsetDataLen
	p, err := x.place(off, n)
	if err != nil {
		return err
	}
	if x.orphan() {
		return c.in.discard(n)
	}
	return c.in.read(p)
}

func (c *conn) hole(x *call, rep *nbd.Reply) error {
	if rep.Length != nbd.OffsetHoleLen {
		return broken("hole chunk of %d bytes", rep.Length)
	}
	b, err := c.in.peek(nbd.OffsetHoleLen)
	if err != nil {
		return err
	}
	off, n, err := nbd.DecodeOffsetHole(b)
	if err != nil {
		return err
	}
	c.in.skip(nbd.OffsetHoleLen)
	p, err := x.place(off, uint64(n))
	if err != nil {
		return err
	}
	clear(p)
	return nil
}

func (c *conn) errorChunk(x *call, rep *nbd.Reply) error {
	if rep.Length > nbd.MaxErrorLen {
		return broken("error chunk of %d bytes", rep.Length)
	}
	b, err := c.in.peek(int(rep.Length))
	if err != nil {
		return err
	}
	info, err := nbd.DecodeError(b, rep.Type)
	if err != nil {
		return err
	}
	c.in.skip(int(rep.Length))
	if x.err != nil {
		return nil // the first one it is
	}
	e := &Error{x.req.Type, info.Error.Known(), info.Message, -1}
	if rep.Type == nbd.ChunkErrorOffset {
		e.Offset = int64(info.Offset)
	}
	x.err = e
	return nil
}

func (c *conn) extents(x *call, rep *nbd.Reply) error {
	if rep.Length > uint64(x.mode.BlockStatusLen(nbd.MaxExtents)) {
		return broken("block status of %d bytes", rep.Length)
	}
	if x.orphan() {
		return c.in.discard(rep.Length)
	}
	buf := bufpool.Get(int(rep.Length))
	defer bufpool.Put(buf)
	if err := c.in.read(buf.B); err != nil {
		return err
	}
	context, list, err := nbd.DecodeBlockStatus(buf.B, x.mode, x.ext)
	if err != nil {
		return err
	}
	if context != c.exp.context {
		return broken("block status of context %d, which was not asked for", context)
	}
	if x.told {
		return broken("block status of one context twice")
	}
	x.told, x.ext = true, list
	return nil
}
