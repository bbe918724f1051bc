package iscsi

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// BinaryEncoding is a way to write bytes in a text value (RFC 7143 §6.1).
type BinaryEncoding uint8

// Encodings of binary values.
const (
	HexBinary    BinaryEncoding = iota // 0x and hexadecimal digits
	Base64Binary                       // 0b and base64 (RFC 4648 §4, padded)
)

// EncodeBinary writes b as a large-binary-value.
func EncodeBinary(b []byte, enc BinaryEncoding) string {
	if enc == Base64Binary {
		return "0b" + base64.StdEncoding.EncodeToString(b)
	}
	return "0x" + hex.EncodeToString(b)
}

// DecodeBinary reads a large-binary-value in either encoding. The prefix may be
// of either case; an odd number of hexadecimal digits has a leading zero added;
// base64 may lack its padding. The result has at least one byte and at most
// MaxBinaryValue/4*3.
//
// Only values that the RFC defines as binary may be given to it: a CHAP name
// such as "0xabc" is text.
func DecodeBinary(value string) ([]byte, error) {
	if len(value) > MaxBinaryValue {
		return nil, fmt.Errorf("%w: binary value of %d characters", ErrTextTooLong, len(value))
	}
	if len(value) < 3 || value[0] != '0' {
		return nil, fmt.Errorf("%w: binary value without 0x or 0b", ErrTextSyntax)
	}
	digits := value[2:]
	switch value[1] {
	case 'x', 'X':
		if len(digits)%2 != 0 {
			digits = "0" + digits
		}
		b, err := hex.DecodeString(digits)
		if err != nil {
			return nil, fmt.Errorf("%w: not hexadecimal", ErrTextSyntax)
		}
		return b, nil
	case 'b', 'B':
		if strings.ContainsAny(digits, "\r\n") { // the decoder would skip them
			return nil, fmt.Errorf("%w: line break in base64", ErrTextSyntax)
		}
		enc := base64.StdEncoding
		if len(digits)%4 != 0 {
			enc = base64.RawStdEncoding
		}
		b, err := enc.DecodeString(digits)
		if err != nil || len(b) == 0 {
			return nil, fmt.Errorf("%w: not base64", ErrTextSyntax)
		}
		return b, nil
	}
	return nil, fmt.Errorf("%w: binary value without 0x or 0b", ErrTextSyntax)
}
