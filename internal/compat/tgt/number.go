package tgt

import (
	"math"
	"strconv"
	"strings"
)

// numberFault says why a number is refused, in tgt's words.
type numberFault string

const (
	numberOK      numberFault = ""
	numberInvalid numberFault = "invalid"
	numberRange   numberFault = "out of range"
)

// parseNumber reads a number as tgt does: decimal, 0x hexadecimal or 0 octal,
// as far as digits go ("5x" is 5), negative ones as their two's complement. The
// largest 64-bit value stands for "not given" in tgt and is refused.
func parseNumber(s string, limit uint64) (uint64, numberFault) {
	v, rest, ok := leadingNumber(s)
	if !ok || len(rest) == len(s) || v == math.MaxUint64 {
		return 0, numberInvalid
	}
	if v > limit {
		return 0, numberRange
	}
	return v, numberOK
}

// leadingNumber is strtoull(s, &rest, 0). ok is false on overflow; without any
// digit rest is s.
func leadingNumber(s string) (v uint64, rest string, ok bool) {
	t := strings.TrimLeft(s, " \t\n\v\f\r")
	neg := false
	if t != "" && (t[0] == '-' || t[0] == '+') {
		neg = t[0] == '-'
		t = t[1:]
	}
	base, digits := 10, "0123456789"
	switch {
	case len(t) > 2 && t[0] == '0' && t[1]|0x20 == 'x' && strings.IndexByte("0123456789abcdefABCDEF", t[2]) >= 0:
		base, digits, t = 16, "0123456789abcdefABCDEF", t[2:]
	case strings.HasPrefix(t, "0"):
		base, digits = 8, "01234567"
	}
	n := 0
	for n < len(t) && strings.IndexByte(digits, t[n]) >= 0 {
		n++
	}
	if n == 0 {
		return 0, s, true
	}
	v, err := strconv.ParseUint(t[:n], base, 64)
	if err != nil {
		return 0, t[n:], false
	}
	if neg {
		v = -v
	}
	return v, t[n:], true
}

// truth reads a parameter that tgt takes as a C integer for a truth value: 0
// and what is no number are false.
func truth(s string) bool { return integer(s) != 0 }

// integer is atoi: decimal digits as far as they go, 0 without any.
func integer(s string) int {
	t := strings.TrimLeft(s, " \t\n\v\f\r")
	n := 0
	if n < len(t) && (t[n] == '-' || t[n] == '+') {
		n++
	}
	for n < len(t) && t[n] >= '0' && t[n] <= '9' {
		n++
	}
	v, err := strconv.ParseInt(t[:n], 10, 32)
	if err != nil {
		return 0
	}
	return int(v)
}
