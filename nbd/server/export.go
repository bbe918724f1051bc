// Package server serves NBD (see package nbd): the handshake, the machine of the
// transmission phase, and sockets with their limits and timeouts around both.
// What is served is an Export: a SCSI logical unit, to which the client is one
// more I_T nexus (UnitExport), or a bare backing store (ForStore).
package server

import (
	"fmt"
	"net"

	"blockgate/internal/bufpool"
	"blockgate/nbd"
)

// Client is who is at the other end of a connection.
type Client struct {
	Remote, Local net.Addr
	// Identity is how the client has proved itself; nil without TLS.
	Identity *Identity
}

// From is where the client comes from, for people.
func (c *Client) From() string {
	switch {
	case c.Remote == nil:
		return "unknown"
	case c.Remote.Network() == "unix":
		return "unix"
	}
	return c.Remote.String()
}

// Identity is what TLS tells about a client.
type Identity struct {
	Method string // "x509", "psk"
	// Names are what it may be known by: a certificate's subject alternative names
	// and common name, the identity of a pre-shared key. Empty if it has shown
	// nothing, and only the server has proved itself.
	Names []string
}

// Directory says what a client may use. Its methods are called for each option
// of a handshake, by many goroutines, and should not block.
type Directory interface {
	// Exports lists what LIST shows to the client.
	Exports(c *Client) []nbd.ServerEntry
	// Export finds an export by name; the empty name is the default export. An
	// error that is a *Refusal is told as such, any other as unknown export.
	Export(name string, c *Client) (Export, error)
}

// Refusal is why a client does not get an export.
type Refusal struct {
	Type   nbd.ReplyType // one of the errors
	Reason string        // told to the client
}

func (r *Refusal) Error() string { return r.Reason }

// Export is what clients attach to.
type Export interface {
	// Info describes it as it is now.
	Info() Info
	// Open begins a connection's use of the export. It may be called by several
	// goroutines at once. It must not wait for a store. An error is told like one
	// of Directory.Export.
	Open(c *Client) (Session, error)
}

// Info describes an export.
type Info struct {
	Name, Description string
	Size              uint64 // bytes
	BlockSize         nbd.BlockSize
	// Flags is what it can do. HasFlags, SendDF and what depends on the mode are
	// added by the server.
	Flags nbd.TransmissionFlags
	// Allocation: it answers BLOCK_STATUS with its allocation.
	Allocation bool
}

// check holds an Info against what may be advertised.
func (i *Info) check() error {
	if !i.BlockSize.Valid() {
		return fmt.Errorf("nbd: export %q: size constraints %+v", i.Name, i.BlockSize)
	}
	return nil
}

// Session is one connection's use of an export. Submit is called by one
// goroutine at a time; everything else may come from any.
type Session interface {
	// Size is the size in bytes now. It does not block.
	Size() uint64
	// Submit runs a request. It must not block and calls r.Done once, from any
	// goroutine, possibly before it returns. The request is within Size, aligned
	// and not empty, and asks for nothing that Info's flags do not offer.
	Submit(r *Request)
	// EndLoan ends the loan that r.In is; if keep is set, r.In becomes a copy. After
	// an error r.In must not be sent.
	EndLoan(r *Request, keep bool) error
	// CopyLent copies v, a part of the loan that r.In is, to dst. Who has no
	// session's word for it must not touch r.In: it may be the memory of a file
	// that only system calls may look at.
	CopyLent(r *Request, dst, v []byte) error
	// Distrust tells that the system did not take the loan that r.In is (EFAULT).
	Distrust(r *Request)
	// Release tells that the reply is sent or will not be: what r.In and r.Extents
	// hold is the session's again, a loan ends. It comes once after each Done.
	Release(r *Request)
	// Close tells that the connection is gone. Requests that still run should end
	// soon. It does not wait for them.
	Close()
}

// Beginner is a Session that may leave requests to be begun together.
type Beginner interface {
	Session
	// Begin follows Submit of the requests that have arrived together, on the same
	// goroutine: what they left is begun now. It must not block.
	Begin()
}

// Request is a request on its way through a Session. The server owns the object
// and uses it again.
type Request struct {
	nbd.Request
	// Data is the payload of a WRITE, read-only, until Done.
	Data []byte

	// Valid at Done, if there is no error.
	In      []byte       // what a READ has read, Length bytes
	Lent    bool         // In is memory that has to be given back soon; see MayLend
	Extents []nbd.Extent // of BLOCK_STATUS, from Offset on; may end before or behind the range

	// State is the session's. It stays with the object, whose next request is of
	// the same session.
	State any

	m       *machine
	err     nbd.Errno
	message string
	buf     *bufpool.Buf // of a WRITE's data
	cost    int64        // of the budget; counted: in shares
	counted bool
	batched bool // in a batch that is being sent
	// answered: the client has its reply, and the request only waits for its end.
	// reply: it is that reply of another request.
	answered, reply bool
	next            *Request
}

// Loans is the server's side of loans. Settle ends every loan that the connection
// holds; it may be called by Submit before it does something on the caller's
// goroutine that a loan could keep waiting.
// An error is its own affair, which it ends by.
type Loans interface{ Settle() error }

// MayLend returns the connection's Loans if the session may end this request
// within Submit with In on loan, and nil if In has to be memory that nobody
// waits for.
func (r *Request) MayLend() Loans {
	if r.m.loans.mine {
		return r.m
	}
	return nil
}
