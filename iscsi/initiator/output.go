package initiator

import (
	"net"

	"blockgate/iscsi"
)

const (
	// copyBelow: payloads shorter than this are copied into the batch, so that
	// a batch of small PDUs is one vector; longer ones are sent from where they are.
	copyBelow = 16 << 10
	// arenaKeep is how much memory an idle batch keeps.
	arenaKeep = 1 << 20
	// maxUnread bounds what answers to the target may pile up while it does not read.
	maxUnread = 16 << 20
)

// batch gathers PDUs for one write. Headers and small payloads stand in the
// arena, long payloads between them as references.
type batch struct {
	arena []byte
	refs  []payload
	vec   net.Buffers // what is left to write, made by vectors
	vecs  net.Buffers // vec's backing array, kept
	head  int         // where the PDU being made begins
}

// payload is a data segment to be sent from arena offset at on.
type payload struct {
	at   int
	data []byte
	cmd  *Command
}

func (b *batch) empty() bool { return len(b.arena) == 0 }

// header begins a PDU. The header is valid until seal.
func (b *batch) header() *iscsi.BHS {
	b.head = len(b.arena)
	var zero iscsi.BHS
	b.arena = append(b.arena, zero[:]...)
	return (*iscsi.BHS)(b.arena[b.head:])
}

// seal ends the PDU with its data segment. cmd is the command that data belongs
// to, nil if data may not be kept.
func (b *batch) seal(data []byte, cmd *Command, headerDigest, dataDigest bool) {
	h := (*iscsi.BHS)(b.arena[b.head:])
	n := len(b.arena) - b.head - iscsi.BHSLen
	h.SetDataLen(len(data))
	h[4] = byte(n / 4)
	if headerDigest {
		b.arena = iscsi.AppendDigest(b.arena, iscsi.UpdateDigest(0, b.arena[b.head:]))
	}
	if len(data) == 0 {
		return
	}
	if len(data) < copyBelow || cmd == nil {
		b.arena = append(b.arena, data...)
	} else {
		b.refs = append(b.refs, payload{len(b.arena), data, cmd})
		cmd.refs++
	}
	pad := zeroes[:iscsi.PadLen(len(data))]
	b.arena = append(b.arena, pad...)
	if dataDigest {
		b.arena = iscsi.AppendDigest(b.arena, iscsi.UpdateDigest(iscsi.UpdateDigest(0, data), pad))
	}
}

// vectors sets vec to everything in the batch, in order.
func (b *batch) vectors() {
	v, at := b.vecs[:0], 0
	for _, p := range b.refs {
		v = append(v, b.arena[at:p.at], p.data)
		at = p.at
	}
	if at < len(b.arena) {
		v = append(v, b.arena[at:])
	}
	b.vec, b.vecs = v, v
}

// consumed drops n written bytes from vec.
func (b *batch) consumed(n int) {
	for n > 0 {
		if m := len(b.vec[0]); n >= m {
			n -= m
			b.vec = b.vec[1:]
			continue
		}
		b.vec[0] = b.vec[0][n:]
		return
	}
}

// clear empties the batch and lets go of the payloads; it returns the commands
// that were answered and waited only for that.
func (b *batch) clear() (done *Command) {
	for _, p := range b.refs {
		p.cmd.refs--
		if p.cmd.settle() {
			p.cmd.next, done = done, p.cmd
		}
	}
	clear(b.refs)
	clear(b.vecs)
	b.refs, b.vecs, b.vec = b.refs[:0], b.vecs[:0], nil
	b.arena = b.arena[:0]
	if cap(b.arena) > arenaKeep {
		b.arena = nil
	}
	return done
}

// settle reports, once, whether a finished command can be completed.
func (c *Command) settle() bool {
	if !c.finished || c.refs > 0 || c.receiving {
		return false
	}
	c.finished = false
	return true
}

// flush writes what is queued, as far as that goes without waiting; the rest is
// left to the connection's writer. Not under the session's mutex.
func (c *conn) flush() {
	s := c.s
	s.mu.Lock()
	if c.writing || c.out.empty() || s.err != nil {
		s.mu.Unlock()
		return
	}
	c.writing = true
	var done *Command
	for {
		c.out, c.sent = c.sent, c.out
		b := c.sent
		s.mu.Unlock()
		b.vectors()
		all, err := c.try.write(b)
		s.mu.Lock()
		if err == nil && !all {
			c.handed = true
			c.quiet.Broadcast()
			s.mu.Unlock()
			c.wake <- struct{}{} // capacity 1, one batch at a time: never blocks
			completeAll(done)
			return
		}
		done = join(b.clear(), done)
		if err != nil || c.out.empty() || s.err != nil {
			c.writing = false
			c.quiet.Broadcast()
			s.mu.Unlock()
			completeAll(done)
			if err != nil {
				s.fail(lost(c, "send", err))
			}
			return
		}
	}
}

// write is the connection's writer: it takes over batches that would have made
// flush wait.
func (c *conn) write() {
	defer close(c.written)
	s := c.s
	for {
		select {
		case <-c.wake:
		case <-c.dead:
			return
		}
		for more := true; more; {
			if _, err := c.sent.vec.WriteTo(c.nc); err != nil {
				s.fail(lost(c, "send", err))
				return // handed stays set: the reader clears the batch
			}
			s.mu.Lock()
			done := c.sent.clear()
			if more = !c.out.empty() && s.err == nil; more {
				c.out, c.sent = c.sent, c.out
				c.sent.vectors()
			} else {
				c.writing, c.handed = false, false
				c.quiet.Broadcast()
			}
			s.mu.Unlock()
			completeAll(done)
		}
	}
}

// join appends list b to list a; a is usually empty.
func join(a, b *Command) *Command {
	if a == nil {
		return b
	}
	last := a
	for last.next != nil {
		last = last.next
	}
	last.next = b
	return a
}
