package iscsi

import (
	"errors"
	"fmt"
	"io"
	"slices"
)

// InitiatorConfig is what an initiator logs in with.
type InitiatorConfig struct {
	InitiatorName  string
	InitiatorAlias string // optional
	TargetName     string // not for discovery
	Discovery      bool
	ISID           [6]byte
	TSIH           uint16 // not 0: join this session with another connection
	CID            uint16
	ITT            uint32
	CmdSN          uint32
	ExpStatSN      uint32

	// Account is what we prove ourselves with; nil: no authentication.
	Account *Account
	// Mutual, with Account, is what the target must prove itself with. Its secret
	// must be another than Account's.
	Mutual *Account
	// Algorithms are offered in this order; nil: DefaultCHAPAlgorithms.
	Algorithms []CHAPAlgorithm
	// Rand gives CHAP challenges; nil: crypto/rand.
	Rand io.Reader

	// Offer has the values and digest lists to offer; start from DefaultOffer.
	Offer Offer
	// Extra keys go into the first text of the operational stage. One that has the
	// name of an offered key takes its place.
	Extra []KV
}

// InitiatorResult is a login that reached the full feature phase.
type InitiatorResult struct {
	Params             Params
	TSIH               uint16
	ExpStatSN          uint32 // the StatSN the next response will have
	ExpCmdSN, MaxCmdSN uint32
	TargetAlias        string
	PortalGroup        uint16 // TargetPortalGroupTag; 0 in discovery sessions
	Authenticated      bool   // we proved ourselves
	Answers            []KV   // everything the target said, in order
}

// InitiatorLogin is the initiator's half of the login phase of one connection:
// Login Responses in, Login Requests out. It is not safe for concurrent use.
type InitiatorLogin struct {
	cfg     InitiatorConfig
	offer   Offer
	stage   byte
	step    initiatorStep
	chap    *chapInitiator
	neg     *negotiator
	offered []KV // and not yet answered
	heard   map[string]struct{}
	gather  TextGather
	out     TextReply
	transit bool // what the last piece of the text in hand asks for
	pdus    int
	statSN  uint32
	started bool
	done    bool
	result  InitiatorResult
}

type initiatorStep uint8

const (
	stepMethod    initiatorStep = iota // AuthMethod was sent
	stepChallenge                      // CHAP_A was sent
	stepProof                          // CHAP_R was sent
	stepLeave                          // nothing is left to do in the security stage
	stepOffers                         // operational keys were sent
)

// NewInitiatorLogin checks the configuration.
func NewInitiatorLogin(cfg InitiatorConfig) (*InitiatorLogin, error) {
	switch {
	case cfg.InitiatorName == "" || !plainName(cfg.InitiatorName):
		return nil, errors.New("iscsi: login: the initiator name is missing or malformed")
	case !cfg.Discovery && (cfg.TargetName == "" || !plainName(cfg.TargetName)):
		return nil, errors.New("iscsi: login: the target name is missing or malformed")
	case cfg.Mutual != nil && cfg.Account == nil:
		return nil, errors.New("iscsi: login: mutual CHAP needs an account of our own too")
	case cfg.Mutual != nil && cfg.Mutual.Secret == cfg.Account.Secret:
		return nil, errors.New("iscsi: login: both directions of CHAP have the same secret")
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = DefaultCHAPAlgorithms()
	}
	for _, a := range cfg.Algorithms {
		if a.new() == nil {
			return nil, fmt.Errorf("iscsi: login: CHAP algorithm %d is unknown", uint8(a))
		}
	}
	l := &InitiatorLogin{cfg: cfg, offer: cfg.Offer, heard: make(map[string]struct{})}
	l.neg = newNegotiator(&l.offer, cfg.TSIH == 0, cfg.Discovery)
	return l, nil
}

// Start gives the first request. It is called once.
func (l *InitiatorLogin) Start() LoginPDU {
	l.started = true
	kvs := []KV{{"InitiatorName", l.cfg.InitiatorName}}
	if l.cfg.InitiatorAlias != "" {
		kvs = append(kvs, KV{"InitiatorAlias", l.cfg.InitiatorAlias})
	}
	if l.cfg.Discovery {
		kvs = append(kvs, KV{"SessionType", "Discovery"})
	} else {
		kvs = append(kvs, KV{"SessionType", "Normal"}, KV{"TargetName", l.cfg.TargetName})
	}
	return l.say(append(kvs, KV{"AuthMethod", l.methods()}), l.cfg.Account == nil)
}

func (l *InitiatorLogin) methods() string {
	switch {
	case l.cfg.Account == nil:
		return ValueNone
	case l.cfg.Mutual == nil:
		return "CHAP,None"
	}
	return "CHAP"
}

// Result is what was agreed, once Step has said done without an error.
func (l *InitiatorLogin) Result() *InitiatorResult {
	if !l.done || l.result.TSIH == 0 {
		return nil
	}
	return &l.result
}

// Step takes a Login Response and its data segment (without padding), and gives
// the next request. done means that the login is over: with a nil error the
// connection is in full feature phase. A refusal by the target is a *LoginError
// with its status; after any error the connection is to be closed. Data is not
// kept.
func (l *InitiatorLogin) Step(h *BHS, data []byte) (next LoginPDU, done bool, err error) {
	if l.done || !l.started {
		return LoginPDU{}, true, ErrLoginOver
	}
	next, done, err = l.take(h, data)
	if err != nil {
		l.done, l.result.TSIH = true, 0
		return LoginPDU{}, true, err
	}
	l.done = done
	return next, done, nil
}

func (l *InitiatorLogin) take(h *BHS, data []byte) (next LoginPDU, done bool, err error) {
	if err := l.checkHeader(h, data); err != nil {
		return next, false, err
	}
	more := h.Flags()&FlagContinue != 0
	if l.out.Pending() { // the target waits for the rest of our text
		if len(data) > 0 || more || h.Flags()&FlagTransit != 0 {
			return next, false, fmt.Errorf("%w: an answer to half of a text", ErrNegotiation)
		}
		return l.piece(), false, nil
	}
	kvs, complete, err := l.gather.Add(data, more)
	if err != nil {
		return next, false, err
	}
	if !complete {
		return l.say(nil, false), false, nil
	}
	for _, kv := range kvs {
		if _, dup := l.heard[kv.Key]; dup {
			return next, false, fmt.Errorf("%w: %s", ErrTextDuplicate, kv.Key)
		}
		l.heard[kv.Key] = struct{}{}
	}
	l.result.Answers = append(l.result.Answers, kvs...)
	if err := l.targetKeys(kvs); err != nil {
		return next, false, err
	}
	if l.stage == StageSecurity {
		return l.security(h, kvs)
	}
	return l.operational(h, kvs)
}

func (l *InitiatorLogin) checkHeader(h *BHS, data []byte) error {
	if h.Opcode() != OpLoginResp {
		return fmt.Errorf("%w: opcode %#02x in place of a login response", ErrNegotiation, h.Opcode())
	}
	if s := LoginStatus(h.StatusClass())<<8 | LoginStatus(h.StatusDetail()); s != LoginOK {
		e := &LoginError{Status: s, Reason: "said the target"}
		if kvs, err := ParseText(data, MaxText); err == nil {
			e.TargetAddress, _ = Lookup(kvs, "TargetAddress")
		}
		return e
	}
	if l.pdus++; l.pdus > maxLoginPDUs {
		return fmt.Errorf("%w: no end after %d responses", ErrNegotiation, l.pdus)
	}
	transit := h.Flags()&FlagTransit != 0
	switch {
	case h.ITT() != l.cfg.ITT:
		return fmt.Errorf("%w: response with task tag %#x", ErrNegotiation, h.ITT())
	case h.VersionMin() != 0:
		return fmt.Errorf("%w: active version %d", ErrNegotiation, h.VersionMin())
	case h.CSG() != l.stage:
		return fmt.Errorf("%w: response for stage %d in stage %d", ErrNegotiation, h.CSG(), l.stage)
	case transit && (!l.transit || h.Flags()&FlagContinue != 0 || h.NSG() != l.next()):
		return fmt.Errorf("%w: the target goes to a stage it was not asked to", ErrNegotiation)
	case l.pdus > 1 && h.StatSN() != l.statSN:
		return fmt.Errorf("%w: StatSN %d, %d was due", ErrNegotiation, h.StatSN(), l.statSN)
	}
	l.statSN = h.StatSN() + 1
	l.result.TSIH, l.result.ExpStatSN = h.TSIH(), l.statSN
	l.result.ExpCmdSN, l.result.MaxCmdSN = h.ExpCmdSN(), h.MaxCmdSN()
	return nil
}

// next is the stage after the current one: no stage is left out.
func (l *InitiatorLogin) next() byte {
	if l.stage == StageSecurity {
		return StageOperational
	}
	return StageFullFeature
}

// targetKeys reads what the target declares of itself.
func (l *InitiatorLogin) targetKeys(kvs []KV) error {
	if v, ok := Lookup(kvs, "TargetAlias"); ok {
		l.result.TargetAlias = v
	}
	if v, ok := Lookup(kvs, "TargetPortalGroupTag"); ok {
		n, ok := parseNumber(v)
		if !ok || n > 65535 {
			return fmt.Errorf("%w: TargetPortalGroupTag=%.80s", ErrNegotiation, v)
		}
		l.result.PortalGroup = uint16(n)
	}
	return nil
}

func (l *InitiatorLogin) security(h *BHS, kvs []KV) (next LoginPDU, done bool, err error) {
	chap := readCHAP(kvs)
	switch l.step {
	case stepMethod:
		method, ok := Lookup(kvs, "AuthMethod")
		switch {
		case method == "CHAP" && l.cfg.Account != nil && h.Flags()&FlagTransit == 0 && !chap.any():
			l.chap = &chapInitiator{account: *l.cfg.Account, mutual: l.cfg.Mutual, algs: l.cfg.Algorithms, rand: randOr(l.cfg.Rand)}
			l.step = stepChallenge
			return l.say(l.chap.start(), false), false, nil
		case (!ok || method == ValueNone) && l.cfg.Mutual == nil && !chap.any():
			l.step = stepLeave
		default:
			return next, false, &LoginError{Status: LoginAuthFailed, Reason: fmt.Sprintf("the target answers AuthMethod=%.80s to %s", method, l.methods())}
		}
	case stepChallenge:
		answer, err := l.chap.answer(chap)
		if err != nil {
			return next, false, &LoginError{Status: LoginAuthFailed, Reason: err.Error()}
		}
		l.step = stepProof
		return l.say(answer, true), false, nil
	case stepProof:
		if err := l.chap.verify(chap); err != nil {
			return next, false, &LoginError{Status: LoginAuthFailed, Reason: err.Error()}
		}
		l.result.Authenticated = true
		l.step = stepLeave
	}
	if h.Flags()&FlagTransit == 0 {
		return l.say(nil, true), false, nil
	}
	l.stage, l.step = StageOperational, stepOffers
	kvs = l.neg.offers()
	for _, e := range l.cfg.Extra {
		kvs = slices.DeleteFunc(kvs, func(kv KV) bool { return kv.Key == e.Key })
	}
	kvs = append(kvs, l.cfg.Extra...)
	l.offered = slices.Clone(kvs)
	if v, ok := Lookup(kvs, "MaxRecvDataSegmentLength"); ok {
		if n, ok := parseNumber(v); ok {
			l.neg.p.MaxRecvDataSegment = n
		}
	}
	return l.say(kvs, true), false, nil
}

// operational takes answers, and answers what the target proposes itself.
func (l *InitiatorLogin) operational(h *BHS, kvs []KV) (next LoginPDU, done bool, err error) {
	var proposed []KV
	for _, kv := range kvs {
		if isSecurityKey(kv.Key) || isNamingKey(kv.Key) && !isConstant(kv.Value) {
			return next, false, fmt.Errorf("%w: %s from the target in the operational stage", ErrNegotiation, kv.Key)
		}
		i := slices.IndexFunc(l.offered, func(o KV) bool { return o.Key == kv.Key })
		if i < 0 {
			if !isTargetKey(kv.Key) && !isConstant(kv.Value) {
				proposed = append(proposed, kv)
			}
			continue
		}
		if err := l.neg.conclude(l.offered[i], kv); err != nil {
			return next, false, err
		}
		l.offered = slices.Delete(l.offered, i, i+1)
	}
	answers := l.neg.respondAll(proposed)
	if h.Flags()&FlagTransit == 0 {
		return l.say(answers, true), false, nil
	}
	if len(answers) > 0 {
		return next, false, fmt.Errorf("%w: the target proposes %s and does not wait for the answer", ErrNegotiation, answers[0].Key)
	}
	for _, o := range l.offered { // a digest that was insisted on needs an answer
		if err := l.neg.conclude(o, KV{o.Key, ValueIrrelevant}); err != nil {
			return next, false, err
		}
	}
	l.result.Params = l.neg.result()
	if h.TSIH() == 0 {
		return next, false, fmt.Errorf("%w: no session handle was given", ErrNegotiation)
	}
	return next, true, nil
}

// say starts to send a text; transit asks for the next stage with its last piece.
func (l *InitiatorLogin) say(kvs []KV, transit bool) LoginPDU {
	l.out.reset(AppendPairs(nil, kvs), loginSegment)
	l.transit = transit
	return l.piece()
}

func (l *InitiatorLogin) piece() LoginPDU {
	data, more := l.out.Next()
	var pdu LoginPDU
	b := &pdu.BHS
	b.SetOpcode(OpLoginReq, true)
	flags := l.stage << 2
	switch {
	case more:
		flags |= FlagContinue
	case l.transit:
		flags |= FlagTransit | l.next()
	}
	b.SetFlags(flags)
	b.SetISID(l.cfg.ISID)
	b.SetTSIH(l.cfg.TSIH)
	b.SetITT(l.cfg.ITT)
	b.SetCID(l.cfg.CID)
	b.SetCmdSN(l.cfg.CmdSN)
	b.SetExpStatSN(l.cfg.ExpStatSN)
	if l.pdus > 0 {
		b.SetExpStatSN(l.statSN)
	}
	b.SetDataLen(len(data))
	pdu.Data = data
	return pdu
}
