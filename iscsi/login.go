package iscsi

import (
	"errors"
	"fmt"
	"io"
)

// Stages of the login phase (RFC 7143 §11.12.3); 2 is reserved.
const (
	StageSecurity    = 0
	StageOperational = 1
	StageFullFeature = 3
)

// Bounds on a login, besides MaxText.
const (
	maxLoginPDUs = 256 // in all; enough for MaxText in segments of 256 bytes
	maxLoginIdle = 20  // in a row that neither bring text nor change the stage
	maxNameLen   = 223 // an iSCSI name (RFC 7143 §4.2.7.1)
)

// Errors of the login machines.
var (
	// ErrNegotiation is wrapped by errors about keys that break the rules.
	ErrNegotiation = errors.New("iscsi: negotiation failed")
	// ErrLoginOver is returned by Step after the end of the login.
	ErrLoginOver = errors.New("iscsi: login is over")
)

// LoginPDU is one Login Request or Response to send. Data is not padded.
type LoginPDU struct {
	BHS  BHS
	Data []byte
}

// LoginError ends a login. On the target side it was also sent to the initiator,
// without the reason.
type LoginError struct {
	Status LoginStatus
	Reason string // for the log of this end: no secret in it
	// TargetAddress, on the initiator side and with a status of class 1, is where
	// the target went.
	TargetAddress string
}

func (e *LoginError) Error() string {
	return fmt.Sprintf("iscsi: login refused with %s: %s", e.Status, e.Reason)
}

// String names the status as RFC 7143 §11.13.5 does.
func (s LoginStatus) String() string {
	names := map[LoginStatus]string{
		LoginOK: "success", LoginMovedTemporarily: "target moved temporarily",
		LoginMovedPermanently: "target moved permanently", LoginInitiatorError: "initiator error",
		LoginAuthFailed: "authentication failure", LoginForbidden: "authorization failure",
		LoginNotFound: "not found", LoginTargetRemoved: "target removed",
		LoginUnsupportedVersion: "unsupported version", LoginTooManyConnections: "too many connections",
		LoginMissingParameter: "missing parameter", LoginCantInclude: "can't include in session",
		LoginSessionTypeUnsupported: "session type not supported", LoginSessionNotFound: "session does not exist",
		LoginInvalidRequest: "invalid request during login", LoginTargetError: "target error",
		LoginServiceUnavailable: "service unavailable", LoginOutOfResources: "out of resources",
	}
	if n, ok := names[s]; ok {
		return fmt.Sprintf("%04x (%s)", uint16(s), n)
	}
	return fmt.Sprintf("%04x", uint16(s))
}

// LoginConfig is what a target needs for one connection's login.
type LoginConfig struct {
	Directory Directory
	// Peer has Remote, Local and Group set; the login fills in the rest.
	Peer Peer
	// Rand gives CHAP challenges; nil: crypto/rand. Only tests need another.
	Rand io.Reader
	// StatSN is the number of the first response.
	StatSN uint32
	// DiscoveryOffer is what discovery sessions are offered; nil: DefaultOffer.
	DiscoveryOffer *Offer
	// Admit is called once, when everything else is in order and before the last
	// response is made. It decides about sessions: reinstatement, another
	// connection for a session, limits. It sets TSIH (not 0) and may set ExpCmdSN
	// and MaxCmdSN for a connection that joins a session. A status other than
	// LoginOK refuses the login. nil: every login gets TSIH 1.
	Admit func(*LoginResult) LoginStatus
}

// LoginResult is a login that reached the full feature phase. Keys that the
// initiator did not offer have the default of RFC 7143, not that of the Offer: a
// target that proposed them would be in the right, and there are initiators that
// would not get past it.
type LoginResult struct {
	Peer      Peer
	Discovery bool
	Access    *Access // nil in a discovery session
	Offer     Offer   // what Params were made from, with the local values
	// Params are the outcome. If ReqTSIH is not 0 the connection joins a session:
	// the digests and the segment lengths count, the rest is the session's.
	Params  Params
	CID     uint16
	ISID    [6]byte
	ReqTSIH uint16 // of the requests: 0 asks for a new session
	TSIH    uint16
	User    string // CHAP name; "" if not authenticated

	ITT       uint32 // of the login
	ExpStatSN uint32 // of the last request
	CmdSN     uint32 // of the requests: the next command has it too
	// Window in the last response; set for a new session, to be changed by Admit
	// for a connection that joins one.
	ExpCmdSN, MaxCmdSN uint32
}
