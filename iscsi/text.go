package iscsi

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds on text a peer sends (RFC 7143 §6.1 and §6.2).
const (
	// MaxKeyLen is the length of the longest key name.
	MaxKeyLen = 63
	// MaxSimpleValue is the length of the longest simple value: one element of a
	// list, or a whole value that is not a list.
	MaxSimpleValue = 255
	// MaxBinaryValue is the length of the longest encoded binary value (CHAP_C,
	// CHAP_R) and of the longest list.
	MaxBinaryValue = 8192
	// MaxText is how much text one negotiation may carry, both ways alike,
	// however many PDUs it is spread over.
	MaxText = 64 << 10
)

// Values with a meaning in every negotiation (RFC 7143 §6.2).
const (
	ValueNone          = "None"
	ValueReject        = "Reject"
	ValueIrrelevant    = "Irrelevant"
	ValueNotUnderstood = "NotUnderstood"
	ValueYes           = "Yes"
	ValueNo            = "No"
)

// Errors of text that is not a sequence of key=value pairs. ParseText wraps them
// with the place.
var (
	ErrTextTooLong   = errors.New("iscsi: text is too long")
	ErrTextSyntax    = errors.New("iscsi: malformed text")
	ErrTextDuplicate = errors.New("iscsi: key is repeated")
)

// KV is one key=value pair of a Login or Text PDU.
type KV struct{ Key, Value string }

// String gives the pair as it is written on the wire, without the closing zero.
// The secret-bearing keys of CHAP carry no secret themselves, so this may be
// logged.
func (kv KV) String() string { return kv.Key + "=" + kv.Value }

// ParseText takes apart the text of a negotiation: pairs of key=value, each
// closed by one or more zero bytes (RFC 7143 §6.1). Data longer than limit bytes
// is refused; a limit of 0 or less means MaxText.
//
// A key may occur once, with the exception of those of target records, of which
// the answer to SendTargets has many. The pairs do not share memory with
// data.
func ParseText(data []byte, limit int) ([]KV, error) {
	if limit <= 0 {
		limit = MaxText
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are taken", ErrTextTooLong, len(data), limit)
	}
	if len(data) == 0 {
		return nil, nil
	}
	if data[len(data)-1] != 0 {
		return nil, fmt.Errorf("%w: the last pair is not closed by a zero byte", ErrTextSyntax)
	}
	var kvs []KV
	seen := make(map[string]struct{})
	rest := string(data)
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, "\x00")
		if pair == "" {
			continue // padding between pairs
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("%w: no \"=\" in %.80q", ErrTextSyntax, pair)
		}
		if err := checkKey(key); err != nil {
			return nil, err
		}
		if err := checkValue(key, value); err != nil {
			return nil, err
		}
		if _, dup := seen[key]; dup && !isRecordKey(key) {
			return nil, fmt.Errorf("%w: %s", ErrTextDuplicate, key)
		}
		seen[key] = struct{}{}
		kvs = append(kvs, KV{key, value})
	}
	return kvs, nil
}

// isRecordKey reports whether a key belongs to the records of SendTargets. The
// login machines refuse a second one by their own account of keys.
func isRecordKey(key string) bool {
	return key == "TargetName" || key == "TargetAddress" || key == "TargetAlias"
}

// checkKey accepts a standard-label. The RFC wants a capital first, which its own
// iSCSIProtocolLevel is not, so any letter does.
func checkKey(key string) error {
	if key == "" || len(key) > MaxKeyLen {
		return fmt.Errorf("%w: a key of %d bytes, 1 to %d are allowed", ErrTextSyntax, len(key), MaxKeyLen)
	}
	for i := 0; i < len(key); i++ {
		c := key[i]
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z':
		case i > 0 && (c >= '0' && c <= '9' || strings.IndexByte(".-+@_#", c) >= 0):
		default:
			return fmt.Errorf("%w: byte %#02x in key %.80q", ErrTextSyntax, c, key)
		}
	}
	return nil
}

// checkValue bounds a value: as a whole, and each element of a list.
func checkValue(key, value string) error {
	if len(value) > MaxBinaryValue {
		return fmt.Errorf("%w: %s has a value of %d bytes", ErrTextTooLong, key, len(value))
	}
	if len(value) <= MaxSimpleValue || key == "CHAP_C" || key == "CHAP_R" || strings.HasPrefix(key, "X-") {
		return nil
	}
	for e := range strings.SplitSeq(value, ",") {
		if len(e) > MaxSimpleValue {
			return fmt.Errorf("%w: %s has an element of %d bytes", ErrTextTooLong, key, len(e))
		}
	}
	return nil
}

// AppendText appends key=value and the closing zero byte to dst.
func AppendText(dst []byte, key, value string) []byte {
	dst = append(dst, key...)
	dst = append(dst, '=')
	dst = append(dst, value...)
	return append(dst, 0)
}

// AppendPairs appends all pairs in order.
func AppendPairs(dst []byte, kvs []KV) []byte {
	for _, kv := range kvs {
		dst = AppendText(dst, kv.Key, kv.Value)
	}
	return dst
}

// Lookup gives the value of the first pair with the key.
func Lookup(kvs []KV, key string) (value string, ok bool) {
	for _, kv := range kvs {
		if kv.Key == key {
			return kv.Value, true
		}
	}
	return "", false
}

// parseNumber reads a numerical value: a decimal constant, or a hexadecimal one
// with 0x (RFC 7143 §6.1). Signs, blanks and anything above 2^32-1 are refused.
func parseNumber(s string) (int, bool) {
	base := uint64(10)
	if len(s) > 2 && s[0] == '0' && s[1]|0x20 == 'x' {
		base, s = 16, s[2:]
	}
	if s == "" || len(s) > 32 {
		return 0, false
	}
	var v uint64
	for i := 0; i < len(s); i++ {
		var d uint64
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			d = uint64(c - '0')
		case base == 16 && c|0x20 >= 'a' && c|0x20 <= 'f':
			d = uint64(c|0x20-'a') + 10
		default:
			return 0, false
		}
		if v = v*base + d; v > 1<<32-1 {
			return 0, false
		}
	}
	return int(v), true
}
