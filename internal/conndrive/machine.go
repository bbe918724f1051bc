// Package conndrive drives protocol machines over connections: it reads what
// there is, feeds it to the machine, and sends what the machine gathered with
// one system call. It knows no protocol; iSCSI and NBD share it.
//
// # Goroutines
//
// The reader is the goroutine that calls Conn.Run. It reads, feeds and sends.
// A second one, the writer, is started by the first Wake: it sends what others
// finish while the reader waits for input. At most one of the two sends at any
// time; the machine hands the right to send out (BeginSend, EndFeed), and whoever
// has it sends everything, including what others queue meanwhile. Workers never
// send, so that none of them ever waits for a peer that does not read.
//
// # The reader's round
//
//	read what there is (up to 256 KiB, or into Direct's buffer, then Filled)
//	┌▶ Feed            runs every complete request as far as it goes without waiting
//	│  EndFeed or BeginSend: if true, Gather and write until Gather returns nil
//	│  WaitRoom        waits while too much is queued that the writer sends
//	└─ while Again     Feed left input behind since enough was to be sent
//
// # The right to send
//
//	BeginSend true ─▶ Gather ─▶ (transport) ─▶ Gather ─▶ … ─▶ Gather nil
//	                               └─ Settle, before each wait for the peer
//	                               └─ Progress, after each part that it took
//	                               └─ SendFailed instead, if the transport broke
//
// The writer asks for it after Wake.
package conndrive

// Machine is one end of one connection without its socket: bytes in, vectors of
// bytes out. Its methods must not block, except where said.
type Machine interface {
	// Feed consumes what it can of p and returns how many bytes that was; the
	// rest is offered again, with more behind it. It runs every complete request
	// in p as far as it goes without waiting for anybody. 0 without an error means
	// that p holds only part of a piece that it wants to see at once, which may be
	// no longer than MaxPiece. A non-nil error ends the connection, after what is
	// queued has been sent. The memory of p is the caller's again when it returns.
	//
	// From the beginning of Feed to EndFeed the machine calls no Wake: the reader
	// sends. Reader only.
	Feed(p []byte) (n int, err error)
	// EndFeed follows each Feed: what is queued from now on calls Wake. It reports
	// true if the reader has the right to send already, as after BeginSend (a
	// machine that lends memory takes it at the beginning of Feed), and false
	// if it should ask BeginSend. Reader only.
	EndFeed() (send bool)
	// Again reports that the last Feed stopped, though it could have gone on,
	// since there is enough to be sent: it is called again, with nothing new, once
	// that is done. Stopping after some sixteen answers makes the peer work on
	// these while the rest runs, instead of taking turns. Reader only.
	Again() bool
	// Direct returns where the next bytes of the stream belong, or nil when they
	// should go through Feed: the payload of a long write is received in place. It
	// is asked only when all input was fed, and the buffer stays the machine's.
	// Filled tells that n bytes were put at its front. Reader only.
	Direct() []byte
	Filled(n int)
	// WaitRoom waits while more is queued than a peer that reads would leave and
	// somebody else is sending. It must return when that one stops, which it does
	// at the latest when the connection is closed. Reader only.
	WaitRoom()

	// BeginSend asks for the right to send. It reports false when there is nothing
	// to send, or somebody else is sending, who then sends it all. Safe for
	// concurrent use.
	BeginSend() bool
	// Gather returns the next batch to send, as vectors which stay valid and
	// unchanged until the next call, or nil when all is sent; nil also ends the
	// right to send. The call means that the batch before was taken by the
	// transport. The driver may cut and shorten the vectors in place, and does so
	// before Settle, so that they are what is unsent. About 1000 vectors and
	// 1 MiB are a good batch. Right to send only.
	Gather() [][]byte
	// Settle is called before the sender waits for the peer: what the vectors hold
	// of memory that must not be held up (loans of a store) must be copied, in
	// place. A machine that takes no loans does nothing. An error says that it
	// cannot be copied: nothing more of the batch is sent, and SendFailed follows.
	// Right to send only.
	Settle() error
	// SendFailed tells that the transport broke, and how (EFAULT: memory of the
	// batch was not to be had), and ends the right to send. Part of a message may
	// be with the peer, to whom the transport may still be open: from here on the
	// machine has nothing to send.
	SendFailed(err error)

	// Progress tells that the peer takes what is sent, and Sending reports that a
	// batch is with the transport. Both are for the machine's way of finding peers
	// that do not read. Safe for concurrent use.
	Progress()
	Sending() bool
}

// MaxPiece is the largest piece of the stream that a machine may want to see at
// once, in bytes.
const MaxPiece = 32 << 10
