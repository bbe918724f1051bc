package tgt

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"blockgate/internal/state"
)

// targetKey is a parameter of targets with the value that tgt shows until
// another is set.
type targetKey struct {
	name, value string
	kind        keyKind
}

type keyKind int

const (
	keyNumber keyKind = iota
	keyYesNo
	keyDigest
	keyMarker // an interval of markers, which are always refused
	keyLocal  // a number of tgt's own, whose name has to match in case too
)

// targetKeys is in the order of tgt's listing.
func targetKeys() []targetKey {
	return []targetKey{
		{"nop_interval", "0", keyLocal},
		{"nop_count", "0", keyLocal},
		{"MaxRecvDataSegmentLength", "8192", keyNumber},
		{"HeaderDigest", "None", keyDigest},
		{"DataDigest", "None", keyDigest},
		{"InitialR2T", "Yes", keyYesNo},
		{"MaxOutstandingR2T", "1", keyNumber},
		{"ImmediateData", "Yes", keyYesNo},
		{"FirstBurstLength", "65536", keyNumber},
		{"MaxBurstLength", "262144", keyNumber},
		{"DataPDUInOrder", "Yes", keyYesNo},
		{"DataSequenceInOrder", "Yes", keyYesNo},
		{"ErrorRecoveryLevel", "0", keyNumber},
		{"IFMarker", "No", keyYesNo},
		{"OFMarker", "No", keyYesNo},
		{"DefaultTime2Wait", "2", keyNumber},
		{"DefaultTime2Retain", "20", keyNumber},
		{"OFMarkInt", "Reject", keyMarker},
		{"IFMarkInt", "Reject", keyMarker},
		{"MaxConnections", "1", keyNumber},
		{"RDMAExtensions", "Yes", keyYesNo},
		{"TargetRecvDataSegmentLength", "262144", keyNumber},
		{"InitiatorRecvDataSegmentLength", "262144", keyNumber},
		{"MaxOutstandingUnexpectedPDUs", "0", keyNumber},
		{"MaxXmitDataSegmentLength", "8192", keyNumber},
		{"MaxQueueCmd", "128", keyNumber},
	}
}

// setTargetParam does one "target update". Ranges are the daemon's business.
func setTargetParam(t *state.Target, name, value string) error {
	set := func(name, v string) error {
		if t.Params == nil {
			t.Params = map[string]string{}
		}
		t.Params[name] = v
		return nil
	}
	switch name {
	case "state":
		switch value {
		case "ready", "offline":
			t.Offline = value == "offline"
			return nil
		}
		return refuse("state is ready or offline, not %q", value)
	case "RedirectAddress", "RedirectPort", "RedirectReason", state.RedirectCallback:
		if value == "" {
			delete(t.Params, name)
			return nil
		}
		return set(name, value)
	}
	for _, k := range targetKeys() {
		if k.name != name && (k.kind == keyLocal || !strings.EqualFold(k.name, name)) {
			continue
		}
		v, err := k.parse(value)
		if err != nil {
			return err
		}
		return set(k.name, v)
	}
	return refuse("there is no target parameter %q", name)
}

func (k *targetKey) parse(value string) (string, error) {
	switch k.kind {
	case keyLocal:
		return strconv.Itoa(integer(value)), nil
	case keyNumber:
		v, rest, ok := leadingNumber(value)
		if !ok || rest == value {
			return "", refuse("%s=%q is not a number", k.name, value)
		}
		return strconv.FormatUint(v, 10), nil
	case keyYesNo:
		if value == "Yes" || value == "No" {
			return value, nil
		}
		return "", refuse("%s is Yes or No, not %q", k.name, value)
	case keyDigest:
		switch value {
		case "None", "CRC32C", "CRC32C,None", "None,CRC32C":
			return value, nil
		}
		return "", refuse("%s is None, CRC32C or CRC32C,None, not %q", k.name, value)
	default:
		if value == "Reject" {
			return value, nil
		}
		return "", refuse("%s: markers are obsolete (RFC 7143 §13.25) and always rejected", k.name)
	}
}

// showParams lists a target's parameters, or where it redirects to.
func (a *admin) showParams() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	writeParams(a.out, &t.Target)
	if l := otherDefaults(&t.Target); len(l) > 0 {
		a.note("not set, and other than in tgt: " + strings.Join(l, " "))
	}
	return nil
}

// otherDefaults are the parameters that the listing shows with tgt's default
// while another counts.
func otherDefaults(t *state.Target) []string {
	if t.Params["RedirectAddress"] != "" || t.Params[state.RedirectCallback] != "" {
		return nil
	}
	var out []string
	for _, k := range targetKeys() {
		if _, set := t.Params[k.name]; set {
			continue
		}
		for _, p := range state.Params() {
			if p.Name == k.name && p.Default != "" && p.Default != k.value {
				out = append(out, k.name+"="+p.Default)
			}
		}
	}
	return out
}

func writeParams(w io.Writer, t *state.Target) {
	if addr := t.Params["RedirectAddress"]; addr != "" {
		reason := t.Params["RedirectReason"]
		if reason == "" {
			reason = "Unknown"
		}
		fmt.Fprintf(w, "RedirectAddress=%s\nRedirectPort=%s\nRedirectReason=%s\n", addr, t.Params["RedirectPort"], reason)
		return
	}
	if callback := t.Params[state.RedirectCallback]; callback != "" {
		fmt.Fprintf(w, "%s=%s\n", state.RedirectCallback, callback)
		return
	}
	for _, k := range targetKeys() {
		v, set := t.Params[k.name]
		if !set {
			v = k.value
		}
		if k.kind == keyDigest && strings.Contains(v, "CRC32C") {
			v = "CRC32C"
		}
		fmt.Fprintf(w, "%s=%s\n", k.name, v)
	}
}
