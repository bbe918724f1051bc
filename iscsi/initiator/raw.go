package initiator

import (
	"context"
	"fmt"
	"net"
	"time"

	"blockgate/iscsi"
)

// PDU is one PDU as it came.
type PDU struct {
	iscsi.BHS
	AHS  []byte
	Data []byte // without padding
}

// Raw is a connection that sends what it is told and checks nothing but the
// framing: a test can send PDUs in any order, with any field. Not safe for
// concurrent use, except that one goroutine may send while another receives.
type Raw struct {
	nc net.Conn
	in *input
	// HeaderDigest and DataDigest are appended to what is sent.
	HeaderDigest, DataDigest bool
	// Params are the outcome of Login, until then the defaults of RFC 7143 §13.
	Params iscsi.Params
	TSIH   uint16
	// Answers is everything the target said during Login, in order.
	Answers []iscsi.KV
	// CmdSN, ExpStatSN, ExpCmdSN and MaxCmdSN are those after Login; Send and
	// Recv leave them alone.
	CmdSN, ExpStatSN, ExpCmdSN, MaxCmdSN uint32
}

// NewRaw makes a Raw of an open connection, which it owns from then on.
func NewRaw(nc net.Conn) *Raw {
	return &Raw{nc: nc, in: newInput(nc), CmdSN: 1}
}

// DialRaw opens a TCP connection to "host:port" (3260 if there is no port).
func DialRaw(ctx context.Context, addr string) (*Raw, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", withPort(addr))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return NewRaw(nc), nil
}

// Send sends one PDU. The length fields of h are set from ahs (padded to four
// bytes) and data; everything else leaves as it is in h.
func (r *Raw) Send(h *iscsi.BHS, ahs, data []byte) error {
	return r.SendBytes(r.Encode(nil, h, ahs, data))
}

// Encode appends the PDU as Send would send it to dst.
func (r *Raw) Encode(dst []byte, h *iscsi.BHS, ahs, data []byte) []byte {
	h.SetDataLen(len(data))
	h[4] = byte((len(ahs) + 3) / 4)
	at := len(dst)
	dst = append(dst, h[:]...)
	dst = append(dst, ahs...)
	dst = append(dst, zeroes[:iscsi.PadLen(len(ahs))]...)
	if r.HeaderDigest {
		dst = iscsi.AppendDigest(dst, iscsi.UpdateDigest(0, dst[at:]))
	}
	if len(data) == 0 {
		return dst
	}
	at = len(dst)
	dst = append(dst, data...)
	dst = append(dst, zeroes[:iscsi.PadLen(len(data))]...)
	if r.DataDigest {
		dst = iscsi.AppendDigest(dst, iscsi.UpdateDigest(0, dst[at:]))
	}
	return dst
}

// SendBytes sends bytes that need not be a PDU.
func (r *Raw) SendBytes(p []byte) error {
	_, err := r.nc.Write(p)
	return err
}

// Recv reads the next PDU; its slices are the caller's. Digests are expected and
// checked once ExpectDigests has been called. io.EOF means that the target
// closed the connection between two PDUs.
func (r *Raw) Recv() (*PDU, error) {
	p := new(PDU)
	ahs, err := r.in.next(&p.BHS)
	if err != nil {
		return nil, err
	}
	p.AHS = append([]byte(nil), ahs...)
	data, err := r.in.data(p.DataLen())
	if err != nil {
		return nil, err
	}
	p.Data = append([]byte(nil), data...)
	return p, nil
}

// ExpectDigests says which digests PDUs from the target carry.
func (r *Raw) ExpectDigests(header, data bool) {
	r.in.headerDigest, r.in.dataDigest = header, data
}

// MaxRecv sets the longest data segment that Recv accepts, in bytes (at most
// 2^24-1; 8192 before Login).
func (r *Raw) MaxRecv(n int) { r.in.maxData = n }

// SetDeadline limits Send and Recv, as net.Conn does.
func (r *Raw) SetDeadline(t time.Time) error { return r.nc.SetDeadline(t) }

// Conn is the connection below.
func (r *Raw) Conn() net.Conn { return r.nc }

// Close closes the connection without a logout.
func (r *Raw) Close() error { return r.nc.Close() }

var zeroes [4]byte
