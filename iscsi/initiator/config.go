package initiator

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net"
	"strings"
	"time"

	"blockgate/iscsi"
)

// DefaultInitiatorName is used when Config.InitiatorName is empty.
const DefaultInitiatorName = "iqn.2025-01.io.blockgate:initiator"

// DefaultPort is iSCSI's (RFC 7143 §15).
const DefaultPort = "3260"

// Config says where and how to log in. Addrs, and for Dial TargetName, are
// needed; the rest has defaults.
type Config struct {
	// Addrs are portals, "host:port" or "host". Connection i of a session uses
	// the i-th of them, round and round.
	Addrs         []string
	InitiatorName string // DefaultInitiatorName
	TargetName    string
	// ISID: a random one (RFC 7143 §11.12.5, format 10b) if zero. The same ISID
	// and name as a living session of the target replace that session.
	ISID [6]byte

	// Auth is the account for CHAP, nil for none; Mutual, if not nil, is the
	// account by which the target must prove itself.
	Auth, Mutual *iscsi.Account
	// Algorithms for CHAP, in order of preference; iscsi.DefaultCHAPAlgorithms if
	// nil.
	Algorithms []iscsi.CHAPAlgorithm

	// Params are offered; DefaultParams if nil. HeaderDigest and DataDigest in
	// it are ignored in favour of the lists below, MaxXmitDataSegment is the
	// target's to declare.
	Params *iscsi.Params
	// HeaderDigests and DataDigests in order of preference, of "None" and
	// "CRC32C"; None if empty.
	HeaderDigests, DataDigests []string

	// Extra keys go into the operational stage, in place of those we would send
	// ourselves: for tests.
	Extra []iscsi.KV

	// Connections of a session, 1 if zero. A target that allows fewer gets fewer.
	Connections int

	// Unbatched sends each command at once and by itself, as simple initiators do,
	// instead of together with others that become ready meanwhile.
	Unbatched bool

	// LoginTimeout limits connecting and login of each connection, 30 s if zero;
	// AbortTimeout how long an ABORT TASK or a logout that the target asked for
	// may take, 5 s if zero.
	LoginTimeout, AbortTimeout time.Duration

	// OnAsync is told of asynchronous messages. It must not block.
	OnAsync func(Async)
	// Logger gets what a session cannot return; nothing is logged if nil.
	Logger *slog.Logger
	// Congestion names the TCP congestion control, "cubic" if empty; "-" leaves
	// the system's. One that the kernel does not have is ignored.
	Congestion string
	// Dialer opens connections; TCP if nil.
	Dialer func(ctx context.Context, addr string) (net.Conn, error)
}

// DefaultParams are offered unless told otherwise: everything that saves round
// trips, in large pieces.
func DefaultParams() iscsi.Params {
	return iscsi.Params{
		MaxConnections: 1, InitialR2T: false, ImmediateData: true,
		MaxRecvDataSegment: 256 << 10, MaxXmitDataSegment: 8192,
		MaxBurst: 1 << 20, FirstBurst: 256 << 10, MaxOutstandingR2T: 4,
		DefaultTime2Wait: 2, DefaultTime2Retain: 0,
		DataPDUInOrder: true, DataSequenceInOrder: true,
	}
}

// filled is the configuration with defaults.
func (c Config) filled() Config {
	if c.InitiatorName == "" {
		c.InitiatorName = DefaultInitiatorName
	}
	if c.ISID == [6]byte{} {
		rand.Read(c.ISID[:]) // never fails (crypto/rand)
		c.ISID[0] = 0x80     // random format, reserved bits zero
	}
	if c.Params == nil {
		p := DefaultParams()
		c.Params = &p
	}
	if len(c.HeaderDigests) == 0 {
		c.HeaderDigests = []string{"None"}
	}
	if len(c.DataDigests) == 0 {
		c.DataDigests = []string{"None"}
	}
	if c.Connections < 1 {
		c.Connections = 1
	}
	if c.LoginTimeout <= 0 {
		c.LoginTimeout = 30 * time.Second
	}
	if c.AbortTimeout <= 0 {
		c.AbortTimeout = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Congestion == "" {
		c.Congestion = "cubic" // bbr paces even on loopback, and halves its bandwidth
	}
	if c.Dialer == nil {
		d := net.Dialer{Control: congestionHook(c.Congestion)}
		c.Dialer = func(ctx context.Context, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", withPort(addr))
		}
	}
	return c
}

// withPort adds the default port to an address that has none.
func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), DefaultPort)
}
