// Package tlspsk is TLS 1.3 (RFC 8446) for two who share a key, which package
// crypto/tls has no means for: external pre-shared keys with an exchange of
// Diffie-Hellman keys (psk_dhe_ke), X25519 or secp256r1, and
// TLS_AES_128_GCM_SHA256, the hash of a key that says nothing else. It is what
// GnuTLS speaks for the NBD programs' --tls-psk and tls-psk-file.
//
// There are no certificates, tickets, early data, retries of the hello, or older
// versions; a peer that wants one of them is refused. Everything that a peer can
// make us keep is bounded.
package tlspsk

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/internal/bufpool"
)

// Conn is a protected connection. Read and Write may be called at the same time;
// both do the handshake first if it has not been done.
type Conn struct {
	nc     net.Conn
	client *clientConfig
	server *serverConfig

	hsMu  sync.Mutex
	hsErr error
	done  atomic.Bool
	user  string

	inMu       sync.Mutex // Read's
	handshaken bool
	in         half
	rx         input  // records as they came
	hand       []byte // part of a handshake message
	data       []byte // opened and not yet read; lies in rx
	useless    int    // records in a row without data
	inErr      error

	outMu  sync.Mutex // Write's
	out    half
	outErr error
	closed bool

	owed atomic.Bool // a KeyUpdate is to be sent before the next data
}

const (
	// batch is how much is sent at a time, in bytes, of which each record has up
	// to maxPlain.
	batch = 4 * maxPlain
	// recordCost is what a record is longer than its data, in bytes.
	recordCost = recordHeader + 1 + tagLen
	// maxUseless bounds records in a row that carry no data.
	maxUseless = 32
	// maxRecords is how many records a key protects: RFC 8446 section 5.5 has
	// 2^24.5 for AES-GCM.
	maxRecords = 1 << 24
	// closeTime bounds the farewell.
	closeTime = 200 * time.Millisecond
)

func newConn(nc net.Conn) *Conn {
	return &Conn{nc: nc, rx: newInput(nc)}
}

// User is the name of the key that was agreed on.
func (c *Conn) User() string { return c.user }

// Handshake does the handshake, once; Conn is of no use after an error. When ctx
// ends before, it fails with ctx's error.
func (c *Conn) Handshake(ctx context.Context) error {
	c.hsMu.Lock()
	defer c.hsMu.Unlock()
	if c.done.Load() || c.hsErr != nil {
		return c.hsErr
	}
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	if c.client != nil {
		c.hsErr = c.asClient()
	} else {
		c.hsErr = c.asServer()
	}
	if a, ok := local(c.hsErr); ok {
		c.sendAlert(a)
	}
	if !stop() {
		c.hsErr = context.Cause(ctx)
	}
	if c.hsErr == io.EOF {
		c.hsErr = ErrTruncated
	}
	if c.hsErr != nil {
		return c.hsErr
	}
	c.handshaken = true
	c.done.Store(true)
	return nil
}

// Read reads at least one byte unless p is empty. io.EOF is the peer's farewell;
// an end without one is ErrTruncated.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.done.Load() {
		if err := c.Handshake(context.Background()); err != nil {
			return 0, err
		}
	}
	c.inMu.Lock()
	defer c.inMu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if err := c.await(); err != nil {
		return 0, err
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// AwaitInput waits until Read has something to give, or fails as Read would. Who
// calls it before Read needs no buffer while he waits.
func (c *Conn) AwaitInput() error {
	if !c.done.Load() {
		if err := c.Handshake(context.Background()); err != nil {
			return err
		}
	}
	c.inMu.Lock()
	defer c.inMu.Unlock()
	return c.await()
}

// await sees to it that there is data.
func (c *Conn) await() error {
	for len(c.data) == 0 {
		if c.inErr != nil {
			return c.inErr
		}
		if err := c.readData(); err != nil {
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				return err // a later deadline goes on
			}
			c.inErr = err
			if a, ok := local(err); ok {
				c.sendAlert(a)
			}
			return err
		}
	}
	return nil
}

// readData takes one record.
func (c *Conn) readData() error {
	typ, p, err := c.readRecord()
	if err != nil {
		return err
	}
	if typ == typeData {
		if len(c.hand) > 0 {
			return fault(alertUnexpectedMessage, "data within a handshake message")
		}
		if len(p) > 0 {
			c.useless = 0
		}
		c.data = p
	}
	if len(p) == 0 || typ != typeData {
		if c.useless++; c.useless > maxUseless {
			return fault(alertUnexpectedMessage, "too many records without data")
		}
	}
	switch typ {
	case typeData:
		return nil
	case typeAlert:
		return takeAlert(p)
	case typeHandshake:
		return c.postHandshake(p)
	}
	return fault(alertUnexpectedMessage, "record of type %d", typ)
}

// postHandshake takes what is sent between data.
func (c *Conn) postHandshake(p []byte) error {
	c.hand = append(c.hand, p...)
	for {
		m, rest, err := cutMessage(c.hand)
		if err != nil || m == nil {
			return err
		}
		switch m[0] {
		case msgNewSessionTicket:
			if c.server != nil {
				return fault(alertUnexpectedMessage, "a ticket from a client")
			}
			// Not used: the key is at hand.
		case msgKeyUpdate:
			if len(m) != 5 || m[4] > 1 {
				return fault(alertDecodeError, "key update")
			}
			if len(rest) > 0 {
				return fault(alertUnexpectedMessage, "a message under a key that has ended")
			}
			c.in.update()
			if m[4] == 1 {
				c.owed.Store(true)
			}
		default:
			return fault(alertUnexpectedMessage, "handshake message %d after the handshake", m[0])
		}
		c.hand = append(c.hand[:0], rest...)
	}
}

// Write writes all of p or returns an error, after which nothing can be written.
func (c *Conn) Write(p []byte) (int, error) {
	if !c.done.Load() {
		if err := c.Handshake(context.Background()); err != nil {
			return 0, err
		}
	}
	c.outMu.Lock()
	defer c.outMu.Unlock()
	total := 0
	records := (min(len(p), batch) + maxPlain - 1) / maxPlain
	buf := bufpool.Get(min(len(p), batch) + records*recordCost + recordCost + 5)
	defer bufpool.Put(buf)
	for len(p) > 0 {
		if c.closed {
			return total, net.ErrClosed
		}
		if c.outErr != nil {
			return total, c.outErr
		}
		b := buf.B[:0]
		if c.owed.Swap(false) || c.out.seq >= maxRecords {
			b = c.appendRecord(b, typeHandshake, []byte{msgKeyUpdate, 0, 0, 1, 0})
			c.out.update()
		}
		n := 0
		for len(p) > n && n < batch {
			k := min(len(p)-n, maxPlain)
			b = c.appendRecord(b, typeData, p[n:n+k])
			n += k
		}
		if _, err := c.nc.Write(b); err != nil {
			// A part of a record may have been sent: nothing fits behind it.
			c.outErr = err
			return total, err
		}
		p, total = p[n:], total+n
	}
	return total, nil
}

// sendAlert tells the peer why it ends, if that is quick: while a Write is under
// way nothing fits in between.
func (c *Conn) sendAlert(a alert) {
	if !c.outMu.TryLock() {
		return
	}
	defer c.outMu.Unlock()
	if c.closed || c.outErr != nil {
		return
	}
	level := byte(2)
	if a == alertCloseNotify {
		level = 1
	}
	c.nc.SetWriteDeadline(time.Now().Add(closeTime))
	_, _ = c.nc.Write(c.appendRecord(nil, typeAlert, []byte{level, byte(a)}))
	c.closed = true
}

// Close says good-bye, unless a Write is under way, and closes the connection.
func (c *Conn) Close() error {
	if c.done.Load() {
		c.sendAlert(alertCloseNotify)
	}
	return c.nc.Close()
}

// LocalAddr is the connection's below.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr is the connection's below.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// SetDeadline is the connection's below. A Write that it ends is the last one.
func (c *Conn) SetDeadline(t time.Time) error { return c.nc.SetDeadline(t) }

// SetReadDeadline is the connection's below.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.nc.SetReadDeadline(t) }

// SetWriteDeadline is the connection's below. A Write that it ends is the last
// one.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }
