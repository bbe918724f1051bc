package iscsi

import (
	"net/netip"

	"blockgate/scsi"
)

// Params are a connection's and its session's operational values (RFC 7143 §13).
// Lengths are bytes.
type Params struct {
	HeaderDigest, DataDigest bool // CRC32C

	MaxConnections       int
	InitialR2T           bool
	ImmediateData        bool
	MaxRecvDataSegment   int // what we accept in one PDU (declared by us)
	MaxXmitDataSegment   int // what the peer accepts in one PDU (declared by it)
	MaxBurst, FirstBurst int
	MaxOutstandingR2T    int
	DefaultTime2Wait     int // seconds
	DefaultTime2Retain   int // seconds
	DataPDUInOrder       bool
	DataSequenceInOrder  bool
	ErrorRecoveryLevel   int
}

// Offer is what the target side is ready to agree to. The zero value is not
// usable; start from DefaultOffer.
type Offer struct {
	Params
	// Digests a target accepts: the first of the initiator's list that is among
	// them wins (RFC 7143 §6.2.1). For an initiator, what it offers, in order of
	// preference. Values "None" and "CRC32C".
	HeaderDigests, DataDigests []string
	// Local values, never negotiated.
	MaxQueue    int // commands a session may have outstanding
	NopInterval int // seconds between NOP-In pings on an idle connection; 0: none
	NopCount    int // unanswered pings after which the connection is dropped
	MaxXmitCap  int // upper bound for MaxXmitDataSegment; 0: none
}

// DefaultOffer is what a target offers unless told otherwise.
func DefaultOffer() Offer {
	return Offer{
		Params: Params{
			MaxConnections: 8, InitialR2T: false, ImmediateData: true,
			MaxRecvDataSegment: 256 << 10, MaxXmitDataSegment: 8192,
			MaxBurst: 1 << 20, FirstBurst: 256 << 10, MaxOutstandingR2T: 4,
			DefaultTime2Wait: 2, DefaultTime2Retain: 0,
			DataPDUInOrder: true, DataSequenceInOrder: true,
		},
		HeaderDigests: []string{"None", "CRC32C"}, DataDigests: []string{"None", "CRC32C"},
		MaxQueue: 128, NopInterval: 30, NopCount: 2,
	}
}

// Peer is the far end of a connection during and after login.
type Peer struct {
	Name   string // iSCSI initiator name
	Alias  string
	ISID   [6]byte
	Remote netip.AddrPort
	Local  netip.AddrPort // the address the initiator connected to
	Group  uint16         // target portal group tag of the portal it came in by
}

// Account is a CHAP name and secret.
type Account struct{ User, Secret string }

// AuthPolicy says how a peer proves itself.
type AuthPolicy struct {
	// Incoming: accounts an initiator may use. Empty: no authentication asked.
	Incoming []Account
	// Outgoing: the target's own account for mutual CHAP; nil: a mutual
	// challenge is refused.
	Outgoing *Account
}

// LoginStatus is the class (high byte) and detail of a login response (RFC 7143
// §11.13.5).
type LoginStatus uint16

// Login statuses.
const (
	LoginOK                     LoginStatus = 0x0000
	LoginMovedTemporarily       LoginStatus = 0x0101
	LoginMovedPermanently       LoginStatus = 0x0102
	LoginInitiatorError         LoginStatus = 0x0200
	LoginAuthFailed             LoginStatus = 0x0201
	LoginForbidden              LoginStatus = 0x0202
	LoginNotFound               LoginStatus = 0x0203
	LoginTargetRemoved          LoginStatus = 0x0204
	LoginUnsupportedVersion     LoginStatus = 0x0205
	LoginTooManyConnections     LoginStatus = 0x0206
	LoginMissingParameter       LoginStatus = 0x0207
	LoginCantInclude            LoginStatus = 0x0208
	LoginSessionTypeUnsupported LoginStatus = 0x0209
	LoginSessionNotFound        LoginStatus = 0x020a
	LoginInvalidRequest         LoginStatus = 0x020b
	LoginTargetError            LoginStatus = 0x0300
	LoginServiceUnavailable     LoginStatus = 0x0301
	LoginOutOfResources         LoginStatus = 0x0302
)

// Access is what a peer gets from a target it may log in to.
type Access struct {
	Target string // iSCSI name, as configured
	Alias  string
	Device *scsi.Device
	// RelPort is the relative target port identifier of the target port that
	// the peer came in by (1 to 65535), stored, never derived from order.
	RelPort uint16
	Auth    AuthPolicy
	Offer   Offer
	// LUNs, if not nil, tells which LUNs the peer sees.
	LUNs func(lun uint64) bool
	// Redirect, with status LoginMoved…: "addr:port" or "addr:port,tpgt".
	Redirect string
	// RedirectTo, if not nil, is asked once in the login of a session, before it
	// authenticates, where that is to go: an empty address lets it stay, an error
	// refuses it (0300h). Unlike Directory's methods it may take its time, which
	// is the login's alone.
	RedirectTo func() (addr string, permanent bool, err error)
}

// TargetRecord is one target of a SendTargets answer.
type TargetRecord struct {
	Name, Alias string
	Portals     []string // "ip:port,tpgt", every portal of the groups it is in
}

// Directory knows the targets. The server asks it at each login and discovery;
// answers may change at any time. Safe for concurrent use; it must not block on
// a store or the network.
type Directory interface {
	// Target decides whether the peer may use the target. A status other than
	// LoginOK refuses (or redirects) it; a peer without a right to it gets
	// LoginNotFound, so that names cannot be probed.
	Target(name string, p Peer) (*Access, LoginStatus)
	// DiscoveryAuth is the policy for discovery sessions.
	DiscoveryAuth(p Peer) AuthPolicy
	// Targets lists the targets the peer may use, sorted by name; name restricts
	// the answer to one of them, "" means all.
	Targets(name string, p Peer) []TargetRecord
}
