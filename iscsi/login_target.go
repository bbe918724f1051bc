package iscsi

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// TargetLogin is the target's half of the login phase of one connection (RFC 7143
// §6.3, §11.12, §11.13): Login Requests in, Login Responses out. It is not safe
// for concurrent use.
type TargetLogin struct {
	cfg     LoginConfig
	started bool
	done    bool
	stage   byte
	first   BHS // of the first request: what must stay the same
	lastExp uint32
	statSN  uint32
	pdus    int
	idle    int

	gather TextGather
	text   int // bytes in all
	seen   map[string]struct{}
	reply  TextReply

	named      bool // the names were given and accepted
	naming     bool // the text in hand is the first
	peer       Peer
	discovery  bool
	access     *Access
	policy     AuthPolicy
	offer      Offer
	auth       *chapTarget // CHAP was chosen
	authChosen bool
	neg        *negotiator
	declared   bool // the time to send our MaxRecvDataSegmentLength is over
	result     *LoginResult
}

// NewTargetLogin starts a login. The connection's first PDU goes to Step.
func NewTargetLogin(cfg LoginConfig) *TargetLogin {
	cfg.Rand = randOr(cfg.Rand)
	return &TargetLogin{cfg: cfg, statSN: cfg.StatSN, peer: cfg.Peer, seen: make(map[string]struct{})}
}

// Result is nil until the full feature phase was entered.
func (l *TargetLogin) Result() *LoginResult { return l.result }

// NextStatSN is the StatSN of the next response on the connection.
func (l *TargetLogin) NextStatSN() uint32 { return l.statSN }

// Step takes the PDU that came in and its data segment (without padding), and
// gives the responses to send. done means that the login phase is over after
// them: with a nil error the connection is in full feature phase and Result tells
// what was agreed; otherwise err is a *LoginError and the connection is to be
// closed once out was sent. Data is not kept; what is returned is the caller's.
func (l *TargetLogin) Step(h *BHS, data []byte) (out []LoginPDU, done bool, err error) {
	if l.done {
		return nil, true, ErrLoginOver
	}
	pdu, err := l.step(h, data)
	if err != nil {
		var le *LoginError
		if !errors.As(err, &le) {
			le = &LoginError{Status: LoginInitiatorError, Reason: err.Error()}
		}
		l.done, l.result = true, nil
		return []LoginPDU{l.refusal(h, le)}, true, le
	}
	return []LoginPDU{pdu}, l.done, nil
}

func refuse(s LoginStatus, format string, args ...any) error {
	return &LoginError{Status: s, Reason: fmt.Sprintf(format, args...)}
}

func (l *TargetLogin) step(h *BHS, data []byte) (LoginPDU, error) {
	if err := l.checkHeader(h, data); err != nil {
		return LoginPDU{}, err
	}
	l.lastExp = h.ExpStatSN()
	if l.reply.Pending() {
		if len(data) > 0 || h.Flags()&FlagContinue != 0 {
			return LoginPDU{}, refuse(LoginInitiatorError, "text while our own is not yet complete")
		}
		return l.respond(h)
	}
	kvs, complete, err := l.gather.Add(data, h.Flags()&FlagContinue != 0)
	if err != nil {
		return LoginPDU{}, err
	}
	if !complete {
		return l.response(h, 0, nil), nil
	}
	for _, kv := range kvs {
		if _, dup := l.seen[kv.Key]; dup {
			return LoginPDU{}, refuse(LoginInitiatorError, "%s is negotiated a second time", kv.Key)
		}
		l.seen[kv.Key] = struct{}{}
	}
	var answer []KV
	if l.naming = !l.named; l.naming {
		if answer, err = l.identify(kvs); err != nil {
			return LoginPDU{}, err
		}
	}
	var more []KV
	if l.stage == StageSecurity {
		more, err = l.security(kvs, h.Flags()&FlagTransit != 0)
	} else {
		more, err = l.operational(kvs)
	}
	if err != nil {
		return LoginPDU{}, err
	}
	l.reply.reset(AppendPairs(nil, append(answer, more...)), loginSegment)
	return l.respond(h)
}

// checkHeader refuses requests that no text could make right.
func (l *TargetLogin) checkHeader(h *BHS, data []byte) error {
	if h.Opcode() != OpLoginReq {
		return refuse(LoginInvalidRequest, "opcode %#02x during login", h.Opcode())
	}
	if h.VersionMin() > 0 {
		return refuse(LoginUnsupportedVersion, "versions %d to %d are asked for, 0 is spoken", h.VersionMin(), h.VersionMax())
	}
	flags, csg, nsg := h.Flags(), h.CSG(), h.NSG()
	transit := flags&FlagTransit != 0
	switch {
	case h.AHSLen() != 0:
		return refuse(LoginInitiatorError, "additional header segments in a login request")
	case len(data) > loginSegment:
		return refuse(LoginInitiatorError, "a data segment of %d bytes", len(data))
	case csg != StageSecurity && csg != StageOperational:
		return refuse(LoginInitiatorError, "current stage %d", csg)
	case transit && flags&FlagContinue != 0:
		return refuse(LoginInitiatorError, "both the transit and the continue bit")
	case transit && (nsg <= csg || nsg == 2):
		return refuse(LoginInitiatorError, "next stage %d after stage %d", nsg, csg)
	}
	if !l.started {
		l.started, l.first, l.stage = true, *h, csg
		// The RFC has no ISID of its own for "none"; a zero one is a header that
		// was never filled in.
		if h.TSIH() == 0 && h.ISID() == [6]byte{} {
			return refuse(LoginMissingParameter, "neither ISID nor TSIH")
		}
	}
	switch {
	case csg != l.stage:
		return refuse(LoginInitiatorError, "current stage %d, it is %d", csg, l.stage)
	case h.ISID() != l.first.ISID() || h.TSIH() != l.first.TSIH() || h.CID() != l.first.CID() || h.ITT() != l.first.ITT():
		return refuse(LoginInitiatorError, "ISID, TSIH, CID or task tag changes during login")
	}
	l.pdus++
	l.idle++
	if len(data) > 0 {
		l.idle = 0
	}
	l.text += len(data)
	if l.pdus > maxLoginPDUs || l.idle > maxLoginIdle || l.text > MaxText {
		return refuse(LoginInitiatorError, "login without end: %d requests, %d bytes", l.pdus, l.text)
	}
	return nil
}

// respond sends the next piece of the answer, and changes the stage with the last.
func (l *TargetLogin) respond(h *BHS) (LoginPDU, error) {
	piece, more := l.reply.Next()
	if more {
		return l.response(h, FlagContinue, piece), nil
	}
	if h.Flags()&FlagTransit == 0 || !l.mayLeave() {
		return l.response(h, 0, piece), nil
	}
	l.stage, l.idle = h.NSG(), 0
	if l.stage == StageFullFeature {
		if err := l.admit(h); err != nil {
			return LoginPDU{}, err
		}
	}
	return l.response(h, FlagTransit|h.NSG(), piece), nil
}

// mayLeave says whether the security stage has done its work.
func (l *TargetLogin) mayLeave() bool {
	if l.auth != nil {
		return l.auth.state == chapDone
	}
	return len(l.policy.Incoming) == 0
}

// response builds a response of status success. flags are T, C and NSG.
func (l *TargetLogin) response(h *BHS, flags byte, data []byte) LoginPDU {
	pdu := l.header(h)
	pdu.BHS.SetFlags(flags | h.CSG()<<2)
	pdu.BHS.SetDataLen(len(data))
	pdu.Data = data
	return pdu
}

// header has the fields that every response has.
func (l *TargetLogin) header(h *BHS) LoginPDU {
	var pdu LoginPDU
	b := &pdu.BHS
	b.SetOpcode(OpLoginResp, false)
	b.SetISID(h.ISID())
	b.SetTSIH(h.TSIH())
	b.SetITT(h.ITT())
	b.SetStatSN(l.statSN)
	l.statSN++
	b.SetExpCmdSN(h.CmdSN())
	b.SetMaxCmdSN(h.CmdSN())
	if r := l.result; r != nil {
		b.SetTSIH(r.TSIH)
		b.SetExpCmdSN(r.ExpCmdSN)
		b.SetMaxCmdSN(r.MaxCmdSN)
	}
	return pdu
}

func (l *TargetLogin) refusal(h *BHS, e *LoginError) LoginPDU {
	pdu := l.header(h)
	pdu.BHS.SetFlags(h.CSG() << 2)
	pdu.BHS.SetLoginStatus(byte(e.Status>>8), byte(e.Status))
	if e.TargetAddress != "" {
		pdu.Data = AppendText(nil, "TargetAddress", e.TargetAddress)
		pdu.BHS.SetDataLen(len(pdu.Data))
	}
	return pdu
}

// identify reads who is there and what it wants, from the first text of the login
// (RFC 7143 §13.4, §13.5, §13.21), and asks the directory.
func (l *TargetLogin) identify(kvs []KV) (answer []KV, err error) {
	name, ok := Lookup(kvs, "InitiatorName")
	if !ok || name == "" {
		return nil, refuse(LoginMissingParameter, "no InitiatorName in the first request")
	}
	if !plainName(name) {
		return nil, refuse(LoginInitiatorError, "InitiatorName %.250q is not a name", name)
	}
	l.peer.Name, l.peer.ISID = name, l.first.ISID()
	l.peer.Alias, _ = Lookup(kvs, "InitiatorAlias")

	switch kind, given := Lookup(kvs, "SessionType"); {
	case !given || kind == "Normal":
	case kind == "Discovery":
		l.discovery = true
	default:
		return nil, refuse(LoginSessionTypeUnsupported, "SessionType=%.80q", kind)
	}
	if l.discovery {
		l.policy = l.cfg.Directory.DiscoveryAuth(l.peer)
		l.offer = DefaultOffer()
		if l.cfg.DiscoveryOffer != nil {
			l.offer = *l.cfg.DiscoveryOffer
		}
	} else if answer, err = l.findTarget(kvs); err != nil {
		return nil, err
	}
	l.named = true
	l.neg = newNegotiator(&l.offer, l.first.TSIH() == 0, l.discovery)
	if l.stage != StageSecurity && len(l.policy.Incoming) > 0 {
		return nil, refuse(LoginAuthFailed, "%s skipped the security stage", name)
	}
	return answer, nil
}

func (l *TargetLogin) findTarget(kvs []KV) ([]KV, error) {
	target, ok := Lookup(kvs, "TargetName")
	if !ok || target == "" {
		return nil, refuse(LoginMissingParameter, "no TargetName for a normal session")
	}
	acc, status := l.cfg.Directory.Target(target, l.peer)
	if status>>8 == 1 {
		if acc == nil || acc.Redirect == "" {
			return nil, refuse(LoginTargetError, "%.250q moved, but nowhere", target)
		}
		return nil, &LoginError{Status: status, Reason: target + " is at " + acc.Redirect, TargetAddress: acc.Redirect}
	}
	if status != LoginOK {
		return nil, refuse(status, "%s may not use target %.250q", l.peer.Name, target)
	}
	if acc == nil {
		return nil, refuse(LoginTargetError, "no access to target %.250q was given", target)
	}
	if acc.RedirectTo != nil && l.first.TSIH() == 0 {
		addr, permanent, err := acc.RedirectTo()
		if err != nil {
			return nil, refuse(LoginTargetError, "where %.250q is could not be found out: %v", target, err)
		}
		if addr != "" {
			status := LoginMovedTemporarily
			if permanent {
				status = LoginMovedPermanently
			}
			return nil, &LoginError{Status: status, Reason: target + " is at " + addr, TargetAddress: addr}
		}
	}
	l.access, l.policy, l.offer = acc, acc.Auth, acc.Offer
	answer := []KV{{"TargetPortalGroupTag", strconv.Itoa(int(l.peer.Group))}}
	if acc.Alias != "" && len(acc.Alias) <= MaxSimpleValue && !strings.Contains(acc.Alias, "\x00") {
		answer = append([]KV{{"TargetAlias", acc.Alias}}, answer...)
	}
	return answer, nil
}

// plainName accepts what can be an iSCSI name in any of its formats; whether it is
// one that has access is the directory's business.
func plainName(s string) bool {
	return len(s) <= maxNameLen && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) < 0
}

// security answers a text of the security stage. Operational keys are not allowed
// there (RFC 7143 §6.3.2).
func (l *TargetLogin) security(kvs []KV, transit bool) (out []KV, err error) {
	for _, kv := range kvs {
		switch {
		case isNamingKey(kv.Key):
			if err := l.lateName(kv); err != nil {
				return nil, err
			}
		case kv.Key == "AuthMethod":
			method, err := l.chooseAuth(kv.Value)
			if err != nil {
				return nil, err
			}
			out = append(out, KV{"AuthMethod", method})
		case strings.HasPrefix(kv.Key, "CHAP_"):
			if l.auth == nil {
				return nil, refuse(LoginAuthFailed, "%s without AuthMethod=CHAP", kv.Key)
			}
		case isTargetKey(kv.Key) && isConstant(kv.Value):
		case lookupKey(kv.Key) != nil, isSecurityKey(kv.Key), isTargetKey(kv.Key), kv.Key == "SendTargets":
			return nil, refuse(LoginInitiatorError, "%s in the security stage", kv.Key)
		default:
			out = append(out, KV{kv.Key, ValueNotUnderstood})
		}
	}
	if l.auth != nil {
		chap, err := l.auth.step(readCHAP(kvs))
		if err != nil {
			var le *LoginError
			if errors.As(err, &le) {
				return nil, le
			}
			return nil, refuse(LoginAuthFailed, "%s: %v", l.peer.Name, err)
		}
		return append(out, chap...), nil
	}
	if transit && !l.authChosen && len(l.policy.Incoming) > 0 {
		return nil, refuse(LoginAuthFailed, "%s offers no authentication", l.peer.Name)
	}
	return out, nil
}

// chooseAuth takes the first method of the initiator's list that the policy
// allows (RFC 7143 §12.1). CHAP without an account could only fail.
func (l *TargetLogin) chooseAuth(list string) (string, error) {
	allowed := ValueNone
	if len(l.policy.Incoming) > 0 {
		allowed = "CHAP"
	}
	method, ok := chooseFrom(list, []string{allowed})
	if !ok {
		return "", refuse(LoginAuthFailed, "%s offers AuthMethod=%.80s, %s is needed", l.peer.Name, list, allowed)
	}
	l.authChosen = true
	if method == "CHAP" {
		l.auth = &chapTarget{policy: &l.policy, rand: l.cfg.Rand}
	}
	return method, nil
}

// lateName allows naming keys in the first text only, where identify read them.
func (l *TargetLogin) lateName(kv KV) error {
	if !l.naming && kv.Key != "InitiatorAlias" {
		return refuse(LoginInitiatorError, "%s after the first request", kv.Key)
	}
	if kv.Key == "InitiatorAlias" {
		l.peer.Alias = kv.Value
	}
	return nil
}

// operational answers a text of the operational stage.
func (l *TargetLogin) operational(kvs []KV) ([]KV, error) {
	offers := kvs[:0:0]
	for _, kv := range kvs {
		switch {
		case isNamingKey(kv.Key):
			if err := l.lateName(kv); err != nil {
				return nil, err
			}
		case isTargetKey(kv.Key) && isConstant(kv.Value):
		case isSecurityKey(kv.Key), isTargetKey(kv.Key), kv.Key == "SendTargets":
			return nil, refuse(LoginInitiatorError, "%s in the operational stage", kv.Key)
		default:
			offers = append(offers, kv)
		}
	}
	out := l.neg.respondAll(offers)
	// Having rejected the initiator's MaxRecvDataSegmentLength we cannot name ours:
	// a key stands in a text once. Both directions then keep the default.
	if _, rejected := Lookup(out, "MaxRecvDataSegmentLength"); !l.declared && !rejected {
		out = append(out, KV{"MaxRecvDataSegmentLength", strconv.Itoa(l.neg.ownSegment())})
		l.neg.p.MaxRecvDataSegment = l.neg.ownSegment()
	}
	l.declared = true
	return out, nil
}

// admit ends the login with success, unless the session rules are against it.
func (l *TargetLogin) admit(h *BHS) error {
	r := &LoginResult{
		Peer: l.peer, Discovery: l.discovery, Access: l.access,
		Offer: l.offer, Params: l.neg.result(),
		CID: h.CID(), ISID: h.ISID(), ReqTSIH: h.TSIH(), TSIH: h.TSIH(),
		ITT: h.ITT(), ExpStatSN: l.lastExp, CmdSN: h.CmdSN(),
		ExpCmdSN: h.CmdSN(), MaxCmdSN: h.CmdSN() + uint32(max(l.offer.MaxQueue, 1)) - 1,
	}
	if l.auth != nil {
		r.User = l.auth.user
	}
	if l.cfg.Admit == nil {
		r.TSIH = 1
	} else if s := l.cfg.Admit(r); s != LoginOK {
		return refuse(s, "%s: the session was not admitted", l.peer.Name)
	}
	if r.TSIH == 0 {
		return refuse(LoginTargetError, "no session handle was given")
	}
	l.result, l.done = r, true
	return nil
}
