package tgt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// answerLimit bounds what is read of one answer, in bytes: the listing of
// 100,000 targets is about 200 MB.
const answerLimit = 1 << 30

// sendCommand has the daemon on socket carry out a command line.
func sendCommand(ctx context.Context, socket string, line commandLine) (res commandResult, err error) {
	text, err := json.Marshal(line)
	if err != nil {
		return res, err
	}
	n := wireHeader + len(text)
	if n > wireLimit {
		return res, &failure{message: fmt.Sprintf("BUFSIZE (%d bytes) isn't long enough", wireLimit)}
	}
	b := make([]byte, wireHeader, n)
	wire.PutUint32(b[atMode:], wireCommand)
	wire.PutUint32(b[atLength:], uint32(n))

	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return res, unreachable(err)
	}
	defer c.Close()
	if t, ok := ctx.Deadline(); ok {
		c.SetDeadline(t)
	}
	if _, err := c.Write(append(b, text...)); err != nil {
		return res, lost(err)
	}
	head := make([]byte, wireAnswer)
	if _, err := io.ReadFull(c, head); err != nil {
		return res, lost(err)
	}
	size := int64(wire.Uint32(head[4:]))
	if size < wireAnswer || size > answerLimit {
		return res, &failure{message: msgUnknown, detail: fmt.Sprintf("the daemon answers with %d bytes; are tgtadm and tgtd of the same version?", size)}
	}
	text = make([]byte, size-wireAnswer)
	if _, err := io.ReadFull(c, text); err != nil {
		return res, lost(err)
	}
	if len(text) > 0 {
		text = text[:len(text)-1]
	}
	if code := wire.Uint32(head); code != 0 {
		// A daemon of tgt's own does not know the request.
		return res, &failure{message: msgInvalid, detail: first(string(text), "the daemon on this socket is not Blockgate's tgtd")}
	}
	if err := json.Unmarshal(text, &res); err != nil {
		return res, &failure{message: msgUnknown, detail: "the daemon's answer: " + err.Error()}
	}
	return res, nil
}

// unreachable is a daemon that cannot be connected to.
func unreachable(err error) error {
	f := &failure{message: msgUnreachable, status: exitNotConn}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		// tgt's line says it all, and init scripts expect it alone
	case errors.Is(err, fs.ErrPermission):
		f.detail = "you have no right to use its socket; use the account that tgtd runs as, or root"
	default:
		f.detail = err.Error()
	}
	return f
}

// lost is a daemon that went away, or fell silent, in the middle of a request.
func lost(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &failure{message: msgUnreachable, detail: "tgtd did not answer in time; whether the request was carried out is not known", status: exitNotConn}
	}
	// tgt says so and ends with 0; nobody can tell then that it failed.
	return &failure{message: msgClosed, detail: "whether the request was carried out is not known", status: exitNotConn}
}
