package state

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Param is one of a target's parameters: an iSCSI key (RFC 7143 §13), or a
// setting of ours that tgt knows under the same name.
type Param struct {
	Name     string
	Min, Max int      // numbers
	Words    []string // or the words there are
	// Fixed: the value is negotiated to Words[0] or is one of another transport;
	// it is kept for those who ask, and changes nothing.
	Fixed bool
	// Default is what counts while the parameter is not set. Empty: nothing does.
	Default string
}

// RedirectCallback names the program that is asked, at each login, where that is
// to go, and its arguments, separated by blanks. A fixed RedirectAddress goes
// before it.
const RedirectCallback = "RedirectCallback"

// Params lists the parameters that a target can have.
func Params() []Param {
	yesNo, digest := []string{"Yes", "No"}, []string{"None", "CRC32C", "CRC32C,None", "None,CRC32C"}
	return []Param{
		{Name: "nop_interval", Max: 3600, Default: "30"}, {Name: "nop_count", Max: 3600, Default: "2"},
		{Name: "MaxRecvDataSegmentLength", Min: 512, Max: 16777215, Default: "262144"},
		{Name: "HeaderDigest", Words: digest, Default: "None,CRC32C"}, {Name: "DataDigest", Words: digest, Default: "None,CRC32C"},
		{Name: "InitialR2T", Words: yesNo, Default: "No"}, {Name: "MaxOutstandingR2T", Min: 1, Max: 65535, Default: "4"},
		{Name: "ImmediateData", Words: yesNo, Default: "Yes"},
		{Name: "FirstBurstLength", Min: 512, Max: 16777215, Default: "262144"}, {Name: "MaxBurstLength", Min: 512, Max: 16777215, Default: "1048576"},
		{Name: "DataPDUInOrder", Words: yesNo, Default: "Yes"}, {Name: "DataSequenceInOrder", Words: yesNo, Default: "Yes"},
		{Name: "ErrorRecoveryLevel", Max: 2, Default: "0"},
		{Name: "IFMarker", Words: []string{"No"}, Fixed: true, Default: "No"}, {Name: "OFMarker", Words: []string{"No"}, Fixed: true, Default: "No"},
		{Name: "DefaultTime2Wait", Max: 3600, Default: "2"}, {Name: "DefaultTime2Retain", Max: 3600, Default: "0"},
		{Name: "OFMarkInt", Words: []string{"Reject"}, Fixed: true, Default: "Reject"}, {Name: "IFMarkInt", Words: []string{"Reject"}, Fixed: true, Default: "Reject"},
		{Name: "MaxConnections", Min: 1, Max: 65535, Default: "8"},
		{Name: "RDMAExtensions", Words: yesNo, Fixed: true},
		{Name: "TargetRecvDataSegmentLength", Min: 512, Max: 16777215, Fixed: true},
		{Name: "InitiatorRecvDataSegmentLength", Min: 512, Max: 16777215, Fixed: true},
		{Name: "MaxOutstandingUnexpectedPDUs", Max: 4294967295, Fixed: true},
		{Name: "MaxXmitDataSegmentLength", Min: 512, Max: 16777215},
		{Name: "MaxQueueCmd", Min: 1, Max: 512, Default: "128"},
		{Name: "RedirectAddress"}, {Name: "RedirectPort", Min: 1, Max: 65535},
		{Name: "RedirectReason", Words: []string{"Temporary", "Permanent"}},
		{Name: RedirectCallback},
	}
}

// CanonicalParam finds a parameter whatever its case and checks the value.
// The value comes back as it is to be kept ("yes" becomes "Yes").
func CanonicalParam(name, value string) (n, v string, err error) {
	for _, p := range Params() {
		if !strings.EqualFold(p.Name, name) {
			continue
		}
		switch p.Name {
		case "RedirectAddress":
			if !isHost(value) {
				return "", "", fmt.Errorf("%s=%.300q is neither an IP address nor a host name", p.Name, value)
			}
			return p.Name, value, nil
		case RedirectCallback:
			if err := checkCallback(value); err != nil {
				return "", "", err
			}
			return p.Name, value, nil
		}
		if p.Words != nil {
			i := slices.IndexFunc(p.Words, func(w string) bool { return strings.EqualFold(w, value) })
			if i < 0 {
				return "", "", fmt.Errorf("%s=%q is none of %s", p.Name, value, strings.Join(p.Words, ", "))
			}
			return p.Name, p.Words[i], nil
		}
		i, err := strconv.Atoi(value)
		if err != nil || i < p.Min || i > p.Max {
			return "", "", fmt.Errorf("%s=%q is not a number from %d to %d", p.Name, value, p.Min, p.Max)
		}
		return p.Name, strconv.Itoa(i), nil
	}
	return "", "", nil
}

// isHost tells whether a login can be sent to host: an IP address, one of IPv6
// with or without brackets, or a name that DNS may know (RFC 1123 §2.1).
func isHost(host string) bool {
	if in, ok := strings.CutPrefix(host, "["); ok {
		in, ok = strings.CutSuffix(in, "]")
		a, err := netip.ParseAddr(in)
		return ok && err == nil && a.Is6()
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Zone() == "" // which means something on this machine alone
	}
	if len(host) == 0 || len(host) > 253 {
		return false
	}
	letter := false
	for _, label := range strings.Split(strings.TrimSuffix(host, "."), ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-':
				letter = true
			case c >= '0' && c <= '9':
			default:
				return false
			}
		}
	}
	return letter // without one it is an address that is none
}

// checkCallback: whether the program is there is found out when it is asked; the
// file system that it is on may be mounted later.
func checkCallback(command string) error {
	if len(command) > 4096 || strings.ContainsAny(command, "\x00\n\r") {
		return fmt.Errorf("%s: a program and its arguments are one line of at most 4096 bytes", RedirectCallback)
	}
	if f := strings.Fields(command); len(f) == 0 || !strings.HasPrefix(f[0], "/") {
		return fmt.Errorf("%s=%.300q does not begin with a program's absolute path", RedirectCallback, command)
	}
	return nil
}

func checkParams(t *Target) error {
	out := make(map[string]string, len(t.Params))
	for k, v := range t.Params {
		n, v, err := CanonicalParam(k, v)
		if err != nil {
			return invalid(CodeInvalidValue, KindTarget, t.Name, "", "%v", err)
		}
		if n == "" {
			return invalid(CodeUnknownParam, KindTarget, t.Name, "", "there is no parameter %q", k)
		}
		out[n] = v
	}
	if len(out) > 0 {
		t.Params = out
	}
	return nil
}
