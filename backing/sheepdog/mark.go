package sheepdog

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"hash/fnv"
	"net"
	"os"
	"runtime"

	"blockgate/backing/sheepdog/internal/wire"
)

// The mark of a VDI's owner and the request of one who wants to be lie at the end
// of the inode's header, in what has been unused since Sheepdog 0.9.
const (
	recordSize = 32
	offRequest = wire.InodeHeaderSize - recordSize
	offMark    = offRequest - recordSize
)

var recordMagic = [8]byte{'B', 'L', 'K', 'G', 'A', 'T', 'E', 1}

type markRecord struct {
	valid bool
	token [16]byte // of an open store
	host  [8]byte  // where it runs
}

func record(token [16]byte, host [8]byte) []byte {
	return bytes.Join([][]byte{recordMagic[:], token[:], host[:]}, nil)
}

func parseRecord(b []byte) (m markRecord, ok bool) {
	if len(b) < recordSize || [8]byte(b) != recordMagic {
		return m, false
	}
	return markRecord{true, [16]byte(b[8:]), [8]byte(b[24:])}, true
}

// via sends a request some way; see client.do.
type via func(req *wire.Request, out, in []byte) (wire.Response, int, error)

func (c *client) via(ctx context.Context) via {
	return func(req *wire.Request, out, in []byte) (wire.Response, int, error) {
		return c.do(ctx, req, out, in, effort{})
	}
}

// via sends on this connection alone, and once.
func (c *conn) via() via {
	return func(req *wire.Request, out, in []byte) (wire.Response, int, error) {
		x := &call{req: *req, out: out, in: in, patience: ticks}
		if err := c.do(x); err != nil {
			return x.resp, 0, err
		}
		if x.resp.Result != wire.Success {
			return x.resp, 0, x.resp.Result
		}
		return x.resp, x.n, nil
	}
}

func readMark(do via, vid uint32) (markRecord, error) {
	b := make([]byte, recordSize)
	_, _, err := do(&wire.Request{Op: wire.OpRead, OID: wire.InodeOID(vid), Offset: offMark}, nil, b)
	m, _ := parseRecord(b)
	return m, err
}

// release releases a VDI's lock, whoever has it.
func release(do via, vid uint32) error {
	_, _, err := do(&wire.Request{Op: wire.OpReleaseVDI, BaseVID: vid, LockType: wire.LockNormal}, nil, nil)
	return err
}

// vdiState asks what the cluster knows of a VDI. The answer has all VDIs there
// are, and its size has to be guessed.
func vdiState(do via, vid uint32) (wire.VDIState, bool, error) {
	for n := 512; ; n *= 4 {
		b := make([]byte, n*wire.VDIStateSize)
		_, got, err := do(&wire.Request{Op: wire.OpVDIStates}, nil, b)
		if errors.Is(err, wire.BufferSmall) && n < 1<<17 {
			continue
		}
		if err != nil {
			return wire.VDIState{}, false, err
		}
		return wire.FindVDIState(b[:got], vid)
	}
}

// nodes lists the members of the cluster.
func nodes(do via) ([]wire.NodeID, error) {
	b := make([]byte, wire.MaxNodes*wire.NodeSize)
	_, n, err := do(&wire.Request{Op: wire.OpNodeList}, nil, b)
	if err != nil {
		return nil, err
	}
	return wire.ParseNodes(b[:n])
}

// kill stops a sheep.
func (c *client) kill(ctx context.Context, sheep wire.NodeID) error {
	dctx, cancel := context.WithTimeout(ctx, c.cfg.AnswerTimeout)
	defer cancel()
	nc, err := c.cfg.Dial(dctx, "tcp", sheep.String())
	if err != nil {
		return err
	}
	k := newConn(nc, -1, c.cfg.AnswerTimeout, nil)
	defer k.close()
	_, _, err = k.via()(&wire.Request{Op: wire.OpKillNode}, nil, nil)
	return err
}

// hostID tells this host from others. It outlives a boot, so that locks of before
// can be told to be ours.
func hostID() (id [8]byte) {
	h := fnv.New64a()
	if b, err := os.ReadFile("/etc/machine-id"); err == nil {
		h.Write(b)
	}
	name, _ := os.Hostname()
	h.Write([]byte(name))
	return [8]byte(h.Sum(nil))
}

// guardOf makes something on this host that exists as long as the process does and
// the store is open; nil where there is no such thing.
func guardOf(token [16]byte) net.Listener {
	if runtime.GOOS != "linux" {
		return nil
	}
	l, err := net.Listen("unix", guardName(token))
	if err != nil {
		return nil
	}
	return l
}

func guardName(token [16]byte) string { return "@blockgate-sheepdog-" + hex.EncodeToString(token[:]) }

// ended reports whether the process of this host that had the token is known to
// have ended, or the store in it to be closed.
func ended(token [16]byte) bool {
	l := guardOf(token)
	if l == nil {
		return false
	}
	l.Close()
	return true
}
