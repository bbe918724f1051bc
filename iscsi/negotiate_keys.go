package iscsi

// rule is how two values become one (RFC 7143 §6.2.1, §6.2.2 and per key in §13).
type rule uint8

const (
	ruleOr      rule = iota // Yes if either says Yes
	ruleAnd                 // Yes if both say Yes
	ruleMin                 // the smaller number
	ruleMax                 // the larger number
	ruleList                // the first of the originator's list that the responder takes
	ruleDeclare             // told, not answered
	ruleFixed               // answered with a constant, whatever was offered
)

// Bounds of segment and burst lengths in bytes (RFC 7143 §13.12 to §13.14).
const (
	minSegment = 512
	maxSegment = 1<<24 - 1
	// loginSegment is what everyone takes in one PDU until MaxRecvDataSegmentLength
	// comes into force, at the full feature phase.
	loginSegment = 8192
)

// keyDef is an operational key: one row of RFC 7143 §13. Security keys and the
// names of the ends are handled where the login machines use them.
type keyDef struct {
	name   string
	rule   rule
	lo, hi int  // of a number
	lead   bool // only on the first connection of a session
	normal bool // irrelevant in a discovery session
	fixed  string
	num    func(*Params) *int
	flag   func(*Params) *bool
	list   func(*Offer) []string
}

// keyDefs is in the order in which an initiator sends the keys.
var keyDefs = [...]keyDef{
	{name: "HeaderDigest", rule: ruleList,
		flag: func(p *Params) *bool { return &p.HeaderDigest }, list: func(o *Offer) []string { return o.HeaderDigests }},
	{name: "DataDigest", rule: ruleList,
		flag: func(p *Params) *bool { return &p.DataDigest }, list: func(o *Offer) []string { return o.DataDigests }},
	{name: "DefaultTime2Wait", rule: ruleMax, lo: 0, hi: 3600, lead: true,
		num: func(p *Params) *int { return &p.DefaultTime2Wait }},
	{name: "DefaultTime2Retain", rule: ruleMin, lo: 0, hi: 3600, lead: true,
		num: func(p *Params) *int { return &p.DefaultTime2Retain }},
	{name: "ErrorRecoveryLevel", rule: ruleMin, lo: 0, hi: 2, lead: true,
		num: func(p *Params) *int { return &p.ErrorRecoveryLevel }},
	{name: "InitialR2T", rule: ruleOr, lead: true, normal: true,
		flag: func(p *Params) *bool { return &p.InitialR2T }},
	{name: "ImmediateData", rule: ruleAnd, lead: true, normal: true,
		flag: func(p *Params) *bool { return &p.ImmediateData }},
	{name: "MaxBurstLength", rule: ruleMin, lo: minSegment, hi: maxSegment, lead: true, normal: true,
		num: func(p *Params) *int { return &p.MaxBurst }},
	{name: "FirstBurstLength", rule: ruleMin, lo: minSegment, hi: maxSegment, lead: true, normal: true,
		num: func(p *Params) *int { return &p.FirstBurst }},
	{name: "MaxOutstandingR2T", rule: ruleMin, lo: 1, hi: 65535, lead: true, normal: true,
		num: func(p *Params) *int { return &p.MaxOutstandingR2T }},
	{name: "MaxConnections", rule: ruleMin, lo: 1, hi: 65535, lead: true, normal: true,
		num: func(p *Params) *int { return &p.MaxConnections }},
	{name: "DataPDUInOrder", rule: ruleOr, lead: true, normal: true,
		flag: func(p *Params) *bool { return &p.DataPDUInOrder }},
	{name: "DataSequenceInOrder", rule: ruleOr, lead: true, normal: true,
		flag: func(p *Params) *bool { return &p.DataSequenceInOrder }},
	{name: "MaxRecvDataSegmentLength", rule: ruleDeclare, lo: minSegment, hi: maxSegment,
		num: func(p *Params) *int { return &p.MaxXmitDataSegment }},

	// Only answered, never sent of our own accord.

	// Plain RFC 3720 task management reporting; FastAbort and ResponseFence would
	// change how the session machine orders responses (RFC 7143 §13.23).
	{name: "TaskReporting", rule: ruleList, lead: true, normal: true,
		list: func(*Offer) []string { return []string{"RFC3720"} }},
	{name: "iSCSIProtocolLevel", rule: ruleMin, lo: 0, hi: 31, lead: true, normal: true},

	// Markers went with RFC 7143 (§13.25), which allows No beside Reject for the
	// first two. Initiators of RFC 3720 send them as booleans and expect one back.
	{name: "IFMarker", rule: ruleFixed, fixed: ValueNo},
	{name: "OFMarker", rule: ruleFixed, fixed: ValueNo},
	{name: "IFMarkInt", rule: ruleFixed, fixed: ValueReject},
	{name: "OFMarkInt", rule: ruleFixed, fixed: ValueReject},

	// iSER (RFC 7145 §6): never on a TCP connection, so the answer is No and the
	// rest does not matter.
	{name: "RDMAExtensions", rule: ruleFixed, fixed: ValueNo, lead: true},
	{name: "InitiatorRecvDataSegmentLength", rule: ruleFixed, fixed: ValueIrrelevant},
	{name: "TargetRecvDataSegmentLength", rule: ruleFixed, fixed: ValueIrrelevant},
	{name: "MaxOutstandingUnexpectedPDUs", rule: ruleFixed, fixed: ValueIrrelevant},
	{name: "MaxAHSLength", rule: ruleFixed, fixed: ValueIrrelevant},
	{name: "TaggedBufferForSolicitedDataOnly", rule: ruleFixed, fixed: ValueIrrelevant},
	{name: "iSERHelloRequired", rule: ruleFixed, fixed: ValueIrrelevant},
}

// protocolLevel is the iSCSIProtocolLevel we have (RFC 7143 §13.24); 2 would be
// RFC 7144's command priority, new task management functions and status qualifier.
const protocolLevel = 1

func lookupKey(name string) *keyDef {
	for i := range keyDefs {
		if keyDefs[i].name == name {
			return &keyDefs[i]
		}
	}
	return nil
}

// isSecurityKey reports whether a key belongs to the security stage alone
// (RFC 7143 §12).
func isSecurityKey(name string) bool {
	switch name {
	case "AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R",
		"KRB_AP_REQ", "KRB_AP_REP", "SPKM_REQ", "SPKM_ERROR", "SPKM_REP_TI", "SPKM_REP_IT",
		"SRP_U", "TargetAuth", "SRP_GROUP", "SRP_A", "SRP_B", "SRP_M", "SRP_HM", "SRP_s":
		return true
	}
	return false
}

// isNamingKey reports whether an initiator tells with this key who it is and what
// it wants (RFC 7143 §13.4 to §13.7, §13.21).
func isNamingKey(name string) bool {
	switch name {
	case "InitiatorName", "InitiatorAlias", "TargetName", "SessionType":
		return true
	}
	return false
}

// isTargetKey reports whether a key is declared by targets only.
func isTargetKey(name string) bool {
	switch name {
	case "TargetAlias", "TargetAddress", "TargetPortalGroupTag":
		return true
	}
	return false
}

// isConstant reports whether a value is one of the answers that are not values of
// their own.
func isConstant(v string) bool {
	return v == ValueReject || v == ValueIrrelevant || v == ValueNotUnderstood
}

// DefaultParams are the values in force when nothing is negotiated (RFC 7143 §13).
func DefaultParams() Params {
	return Params{
		MaxConnections: 1, InitialR2T: true, ImmediateData: true,
		MaxRecvDataSegment: 8192, MaxXmitDataSegment: 8192,
		MaxBurst: 262144, FirstBurst: 65536, MaxOutstandingR2T: 1,
		DefaultTime2Wait: 2, DefaultTime2Retain: 20,
		DataPDUInOrder: true, DataSequenceInOrder: true,
	}
}
