package iscsi

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// chapInitiator is the initiator's half of one CHAP exchange.
type chapInitiator struct {
	account   Account
	mutual    *Account // the target proves itself with this
	algs      []CHAPAlgorithm
	rand      io.Reader
	alg       CHAPAlgorithm
	id        byte
	challenge [chapChallengeLen]byte
}

// start offers the algorithms.
func (c *chapInitiator) start() []KV {
	names := make([]string, len(c.algs))
	for i, a := range c.algs {
		names[i] = strconv.Itoa(int(a))
	}
	return []KV{{"CHAP_A", strings.Join(names, ",")}}
}

// answer proves who we are, and challenges the target if it must do so too.
func (c *chapInitiator) answer(k chapKeys) ([]KV, error) {
	if !k.hasAlg || !k.hasID || !k.hasChal {
		return nil, fmt.Errorf("%w: the target's challenge is incomplete", errCHAP)
	}
	n, ok := parseNumber(k.alg)
	if c.alg = CHAPAlgorithm(n); !ok || n > 255 || !slices.Contains(c.algs, c.alg) {
		return nil, fmt.Errorf("%w: the target chose CHAP_A=%.80s", errCHAP, k.alg)
	}
	id, challenge, err := k.peerChallenge()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCHAP, err)
	}
	out := []KV{
		{"CHAP_N", c.account.User},
		{"CHAP_R", EncodeBinary(CHAPResponse(c.alg, id, c.account.Secret, challenge), HexBinary)},
	}
	if c.mutual == nil {
		return out, nil
	}
	var own [1]byte
	if _, err := io.ReadFull(c.rand, own[:]); err != nil {
		return nil, fmt.Errorf("no random bytes: %w", err)
	}
	if _, err := io.ReadFull(c.rand, c.challenge[:]); err != nil {
		return nil, fmt.Errorf("no random bytes: %w", err)
	}
	if subtle.ConstantTimeCompare(challenge, c.challenge[:]) == 1 {
		return nil, fmt.Errorf("%w: our challenge would equal the target's", errCHAP)
	}
	c.id = own[0]
	return append(out,
		KV{"CHAP_I", strconv.Itoa(int(c.id))},
		KV{"CHAP_C", EncodeBinary(c.challenge[:], HexBinary)}), nil
}

// verify checks the target's proof.
func (c *chapInitiator) verify(k chapKeys) error {
	if c.mutual == nil {
		if k.any() {
			return fmt.Errorf("%w: keys after our response", errCHAP)
		}
		return nil
	}
	if !k.hasName || !k.hasResp {
		return fmt.Errorf("%w: the target did not prove itself", errCHAP)
	}
	response, err := DecodeBinary(k.response)
	if err != nil {
		return fmt.Errorf("%w: CHAP_R: %w", errCHAP, err)
	}
	if _, ok := verifyCHAP([]Account{*c.mutual}, c.alg, c.id, c.challenge[:], k.name, response); !ok {
		return fmt.Errorf("%w: the target has another name or secret", errCHAP)
	}
	return nil
}

// randOr gives crypto/rand for a reader that was not set.
func randOr(r io.Reader) io.Reader {
	if r == nil {
		return rand.Reader
	}
	return r
}
