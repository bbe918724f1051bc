// Package control is the language between the gateway and a plugin process,
// beside NBD, which carries the data: who one is, opening and closing, what NBD
// has no words for, and what the plugin has to tell by itself.
//
// A frame is a length of four bytes, most significant first, and as many bytes of
// JSON: a Message. The gateway asks and the plugin answers, in any order; an event
// is a message of the plugin's without number.
package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Protocol is the version of this language. Both sides come from one release, so
// there is one version at a time; a plugin of another one is refused.
const Protocol = 1

// Descriptors that a plugin finds open when it starts.
const (
	FD     = 3 // the control channel, one end of a pair of stream sockets
	DataFD = 4 // the same; each byte that comes brings one end of a connection for NBD, of which the plugin is the server
)

// MaxMessage is how long a frame may be, in bytes: a compare-and-write of 1 MiB,
// with both payloads in base64.
const MaxMessage = 3 << 20

// MaxCompare is the longest range of one compare-and-write, in bytes.
const MaxCompare = 1 << 20

// Message is one request, answer or event.
type Message struct {
	ID    uint64          `json:"id,omitempty"` // of a request and of its answer; 0: an event
	Op    string          `json:"op,omitempty"` // of a request or an event
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// ErrFrame: what came is not of this language.
var ErrFrame = errors.New("not a frame of the plugin protocol")

// writeTimeout is how long a frame may take to be sent. The peer reads at all
// times, so one that takes longer has stopped.
const writeTimeout = 10 * time.Second

// Conn sends and receives messages. Send may be called at the same time as
// Receive and as itself.
type Conn struct {
	c  net.Conn
	mu sync.Mutex // of sending
}

// NewConn makes a Conn of a stream connection, which it then owns.
func NewConn(c net.Conn) *Conn { return &Conn{c: c} }

// Close closes the connection, which ends a Receive.
func (c *Conn) Close() error { return c.c.Close() }

// ErrTooLong: a message was not sent because of its length.
var ErrTooLong = errors.New("a message that is too long")

// Send sends a message; body is put into it as JSON if it is not nil. After an error
// other than ErrTooLong the connection is closed: it may have half of the frame.
func (c *Conn) Send(m Message, body any) error {
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		m.Body = b
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("%w: %d bytes of at most %d", ErrTooLong, len(b), MaxMessage)
	}
	frame := make([]byte, 4, 4+len(b))
	binary.BigEndian.PutUint32(frame, uint32(len(b)))
	frame = append(frame, b...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err = c.c.Write(frame); err != nil {
		c.c.Close()
	}
	return err
}

// Receive waits for the next message. io.EOF says that the peer has closed.
func (c *Conn) Receive() (Message, error) { return Read(c.c) }

// Read reads one message.
func Read(r io.Reader) (Message, error) {
	var m Message
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return m, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxMessage {
		return m, fmt.Errorf("%w: a length of %d bytes", ErrFrame, n)
	}
	// What is announced is not allocated before it has come.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return m, err
	}
	if len(b) < int(n) {
		return m, io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return m, nil
}
