package tgt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"blockgate/internal/api"
)

const (
	// controlPatience is how long a peer may take to say what it wants, and to
	// read the answer.
	controlPatience = 10 * time.Second
	// controlPeers is how many requests are served at a time. Others wait in the
	// socket's backlog.
	controlPeers = 256
	// controlEnd is how long a daemon that ends waits for requests under way.
	controlEnd = 2 * time.Second
)

// control shares the daemon's unix socket: tgt's management protocol is served
// here, so that a tgtadm of tgt itself finds its daemon, and other connections
// are given on to the API. A request of tgt's begins with a small number, one of
// HTTP with a letter.
type control struct {
	net.Listener
	api    apiClient
	log    *slog.Logger
	ctx    context.Context // ends what is under way, once its time is over
	cancel context.CancelFunc

	http    chan net.Conn
	closing chan struct{}
	once    sync.Once
	err     error
	slots   chan struct{}
	peers   sync.WaitGroup
}

// newControl serves tgt's protocol on ln until it is closed.
func newControl(ln net.Listener, svc api.Service, log *slog.Logger) *control {
	c := &control{
		Listener: ln, api: local{svc}, log: log,
		http: make(chan net.Conn), closing: make(chan struct{}), slots: make(chan struct{}, controlPeers),
	}
	if u, ok := ln.(*net.UnixListener); ok {
		// tgt's tgtadm waits for the end of a daemon until its socket refuses; one
		// that is gone it takes for something else, and waits on.
		u.SetUnlinkOnClose(false)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.peers.Go(c.accept)
	return c
}

// Accept implements net.Listener: it gives the API's connections.
func (c *control) Accept() (net.Conn, error) {
	select {
	case conn := <-c.http:
		return conn, nil
	case <-c.closing:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener: requests under way are answered.
func (c *control) Close() error {
	c.once.Do(func() {
		close(c.closing)
		c.err = c.Listener.Close()
		end := time.AfterFunc(controlEnd, c.cancel)
		c.peers.Wait()
		end.Stop()
		c.cancel()
	})
	return c.err
}

func (c *control) accept() {
	for {
		select {
		case c.slots <- struct{}{}:
		case <-c.closing:
			return
		}
		conn, err := c.Listener.Accept()
		if err != nil {
			<-c.slots
			select {
			case <-c.closing:
				return
			case <-time.After(10 * time.Millisecond): // out of descriptors, say
			}
			continue
		}
		c.peers.Go(func() {
			c.meet(conn)
			<-c.slots
		})
	}
}

// meet finds out what a connection is for.
func (c *control) meet(conn net.Conn) {
	conn.SetDeadline(time.Now().Add(controlPatience))
	// A daemon that ends does not wait for those who say nothing.
	quiet := context.AfterFunc(c.ctx, func() { conn.SetDeadline(time.Now()) })
	defer quiet()
	stop := make(chan struct{})
	defer close(stop)
	c.peers.Go(func() {
		select {
		case <-c.closing:
			conn.SetReadDeadline(time.Now())
		case <-stop:
		}
	})
	first, err := peekByte(conn)
	if err != nil {
		conn.Close()
		return
	}
	if first >= ' ' {
		conn.SetDeadline(time.Time{})
		select {
		case c.http <- conn:
		case <-c.closing:
			conn.Close()
		}
		return
	}
	defer conn.Close()
	if !mayControl(conn) {
		c.log.Warn("control: refused: the peer is neither root nor the daemon's own user and group")
		return
	}
	if err := c.serve(conn); err != nil {
		c.log.Debug("control: no answer given", "err", err)
	}
}

// serve reads one request and answers it.
func (c *control) serve(conn net.Conn) error {
	in := bufio.NewReaderSize(conn, 4<<10)
	b := make([]byte, wireHeader)
	if _, err := io.ReadFull(in, b); err != nil {
		return err
	}
	n, err := wireLength(b)
	if err != nil {
		if n > 0 && n <= wireDiscard {
			// tgtadm would be killed by a socket that closes while it writes.
			io.CopyN(io.Discard, in, int64(n-wireHeader))
			conn.SetWriteDeadline(time.Now().Add(controlPatience))
			conn.Write(encodeAnswer(errorCode(msgInvalid), ""))
		}
		return err
	}
	b = append(b, make([]byte, n-wireHeader)...)
	if _, err := io.ReadFull(in, b[wireHeader:]); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	answer := c.carryOut(ctx, b)
	conn.SetWriteDeadline(time.Now().Add(controlPatience))
	_, err = conn.Write(answer)
	return err
}

func (c *control) carryOut(ctx context.Context, b []byte) []byte {
	if wire.Uint32(b) == wireCommand {
		return c.command(ctx, b[wireHeader:])
	}
	r, err := decodeRequest(b)
	if err != nil {
		c.log.Warn("control: a request that is none", "err", err)
		return encodeAnswer(errorCode(msgInvalid), "")
	}
	if m := r.check(); m != "" {
		// tgtadm has its own message for it, before it asks; this is another client.
		c.log.Warn("control: refused", "mode", r.mode.String(), "op", r.op.String(), "reason", m)
		return encodeAnswer(errorCode(msgInvalid), "")
	}
	var out bytes.Buffer
	notes, err := c.run(ctx, r, "/", &out)
	for _, n := range notes {
		c.log.Info("control: "+n, "mode", r.mode.String(), "op", r.op.String())
	}
	if err != nil {
		f := asFailure(err)
		c.log.Warn("control: refused", "mode", r.mode.String(), "op", r.op.String(), "error", f.message, "reason", f.detail)
		return encodeAnswer(errorCode(f.message), f.detail)
	}
	return encodeAnswer(0, out.String())
}

// run carries out a request that has been checked.
func (c *control) run(ctx context.Context, r *request, dir string, out *bytes.Buffer) (notes []string, err error) {
	w := bufio.NewWriter(out)
	a := &admin{request: r, ctx: ctx, api: c.api, dir: dir, out: w}
	err = a.run()
	w.Flush()
	return a.notes, err
}

// commandLine is what our own tgtadm asks for.
type commandLine struct {
	Args []string `json:"args"`
	Dir  string   `json:"dir"` // which relative paths are taken from
}

// commandResult is what it is to print.
type commandResult struct {
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
	Status int    `json:"status"`
	// Stopping: the daemon ends; the command is over when its socket is.
	Stopping bool `json:"stopping,omitempty"`
}

func (c *control) command(ctx context.Context, text []byte) []byte {
	var line commandLine
	var out, errs bytes.Buffer
	var res commandResult
	if err := json.Unmarshal(text, &line); err != nil {
		return encodeAnswer(errorCode(msgInvalid), "the command line cannot be read: "+err.Error())
	}
	r, end := parseTgtadm(line.Args, &out, &errs)
	if end != nil {
		res.Status = end.status
	} else if m := r.check(); m != "" {
		errs.WriteString("tgtadm: " + m + "\n")
		res.Status = exitInvalid
	} else {
		notes, err := c.run(ctx, r, line.Dir, &out)
		if err != nil {
			out.Reset()
			res.Status = report(&errs, err)
		}
		for _, n := range notes {
			note(&errs, n)
		}
		res.Stopping = err == nil && r.mode == modeSystem && r.op == opDelete
	}
	res.Stdout, res.Stderr = out.String(), errs.String()
	b, err := json.Marshal(res)
	if err != nil {
		return encodeAnswer(errorCode(msgUnknown), err.Error())
	}
	return encodeAnswer(0, string(b))
}
