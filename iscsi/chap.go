package iscsi

import (
	"crypto/fips140"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"
)

// CHAPAlgorithm is a number of IANA's "PPP Authentication Algorithms" registry, as
// CHAP_A carries it (RFC 7143 §12.1.3).
type CHAPAlgorithm uint8

// CHAP algorithms. RFC 7143 demands MD5 of every end; open-iscsi, LIO and SCST
// have the others too. (tgt takes 7 for SHA1, against the registry.)
const (
	CHAPMD5      CHAPAlgorithm = 5
	CHAPSHA1     CHAPAlgorithm = 6
	CHAPSHA256   CHAPAlgorithm = 7
	CHAPSHA3_256 CHAPAlgorithm = 8
)

// Lengths of CHAP values in bytes.
const (
	chapChallengeLen = 32   // what we send: 16 to 64 are usual
	chapChallengeMax = 1024 // what we take (RFC 7143 §12.1.3)
)

// new gives the hash, nil for an algorithm that we do not have. Where FIPS 140-3
// is in force MD5 and SHA1 do not count, and must not even be tried.
func (a CHAPAlgorithm) new() hash.Hash {
	switch {
	case a == CHAPMD5 && !fips140.Enabled():
		return md5.New()
	case a == CHAPSHA1 && !fips140.Enabled():
		return sha1.New()
	case a == CHAPSHA256:
		return sha256.New()
	case a == CHAPSHA3_256:
		return sha3.New256()
	}
	return nil
}

// String names the algorithm as open-iscsi does.
func (a CHAPAlgorithm) String() string {
	switch a {
	case CHAPMD5:
		return "MD5"
	case CHAPSHA1:
		return "SHA1"
	case CHAPSHA256:
		return "SHA256"
	case CHAPSHA3_256:
		return "SHA3-256"
	}
	return "CHAP_A " + strconv.Itoa(int(a))
}

// DefaultCHAPAlgorithms is what an initiator offers unless told otherwise. SHA3-256
// comes first, as every target takes that has more than MD5 and SHA1. SHA256 comes
// last, not for its strength: tgt takes its number for SHA1, and is to choose MD5
// instead of failing.
func DefaultCHAPAlgorithms() []CHAPAlgorithm {
	all := []CHAPAlgorithm{CHAPSHA3_256, CHAPSHA1, CHAPMD5, CHAPSHA256}
	return slices.DeleteFunc(all, func(a CHAPAlgorithm) bool { return a.new() == nil })
}

// CHAPResponse is the answer to a challenge: the hash over identifier, secret and
// challenge (RFC 1994 §4.1). It is nil for an algorithm that we do not have.
func CHAPResponse(a CHAPAlgorithm, id byte, secret string, challenge []byte) []byte {
	h := a.new()
	if h == nil {
		return nil
	}
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// chooseCHAP takes the first algorithm of the peer's CHAP_A list that we have.
func chooseCHAP(list string) (CHAPAlgorithm, bool) {
	for v := range strings.SplitSeq(list, ",") {
		if n, ok := parseNumber(v); ok && n <= 255 {
			if a := CHAPAlgorithm(n); a.new() != nil {
				return a, true
			}
		}
	}
	return 0, false
}

// chapKeys are the values of one message.
type chapKeys struct {
	name, response, challenge, alg, id       string
	hasName, hasResp, hasChal, hasAlg, hasID bool
}

func readCHAP(kvs []KV) (k chapKeys) {
	k.name, k.hasName = Lookup(kvs, "CHAP_N")
	k.response, k.hasResp = Lookup(kvs, "CHAP_R")
	k.challenge, k.hasChal = Lookup(kvs, "CHAP_C")
	k.alg, k.hasAlg = Lookup(kvs, "CHAP_A")
	k.id, k.hasID = Lookup(kvs, "CHAP_I")
	return k
}

func (k *chapKeys) any() bool { return k.hasName || k.hasResp || k.hasChal || k.hasAlg || k.hasID }

// peerChallenge decodes CHAP_I and CHAP_C.
func (k *chapKeys) peerChallenge() (id byte, challenge []byte, err error) {
	n, ok := parseNumber(k.id)
	if !ok || n > 255 {
		return 0, nil, fmt.Errorf("CHAP_I is not a number from 0 to 255")
	}
	c, err := DecodeBinary(k.challenge)
	if err != nil {
		return 0, nil, fmt.Errorf("CHAP_C: %w", err)
	}
	if len(c) > chapChallengeMax {
		return 0, nil, fmt.Errorf("CHAP_C has %d bytes, at most %d are taken", len(c), chapChallengeMax)
	}
	return byte(n), c, nil
}

// verifyCHAP says whether name and response belong to one of the accounts, and to
// which. Every account is computed and compared in full, so that the time taken
// tells neither whether a name exists nor how much of a response was right. The
// name is compared byte by byte: it is text even if it looks like a number.
func verifyCHAP(accounts []Account, a CHAPAlgorithm, id byte, challenge []byte, name string, response []byte) (acc Account, ok bool) {
	found := -1
	asked := sha256.Sum256([]byte(name)) // of one length, which a name is not
	for i := range accounts {
		user := sha256.Sum256([]byte(accounts[i].User))
		sameName := subtle.ConstantTimeCompare(user[:], asked[:])
		want := CHAPResponse(a, id, accounts[i].Secret, challenge)
		same := subtle.ConstantTimeCompare(want, response)
		found = subtle.ConstantTimeSelect(sameName&same, i, found)
	}
	if found < 0 {
		return Account{}, false
	}
	return accounts[found], true
}
