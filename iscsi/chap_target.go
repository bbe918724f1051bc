package iscsi

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// chapTarget is the target's half of one CHAP exchange (RFC 7143 §12.1.3):
//
//	CHAP_A=list              → CHAP_A, CHAP_I, CHAP_C
//	CHAP_N, CHAP_R [, CHAP_I, CHAP_C]  → done [with CHAP_N, CHAP_R]
//
// There is one attempt; any error ends the login.
type chapTarget struct {
	policy    *AuthPolicy
	rand      io.Reader
	state     chapState
	alg       CHAPAlgorithm
	id        byte
	challenge [chapChallengeLen]byte
	user      string // set when done
}

type chapState uint8

const (
	chapWantAlg chapState = iota
	chapWantResponse
	chapDone
)

// errCHAP is for the log; the peer learns only that authentication failed.
var errCHAP = errors.New("CHAP")

// step takes the CHAP keys of one message.
func (c *chapTarget) step(k chapKeys) (out []KV, err error) {
	switch {
	case !k.any():
		return nil, nil // the peer asks for the next move, which is its own
	case c.state == chapWantAlg && k.hasAlg && !k.hasName && !k.hasResp && !k.hasID && !k.hasChal:
		return c.challengePeer(k.alg)
	case c.state == chapWantResponse && !k.hasAlg && k.hasName && k.hasResp && k.hasID == k.hasChal:
		return c.check(k)
	}
	return nil, fmt.Errorf("%w: keys that do not belong together or come out of order", errCHAP)
}

func (c *chapTarget) challengePeer(list string) ([]KV, error) {
	alg, ok := chooseCHAP(list)
	if !ok {
		return nil, fmt.Errorf("%w: no algorithm in common with %.80q", errCHAP, list)
	}
	var id [1]byte
	if _, err := io.ReadFull(c.rand, id[:]); err != nil {
		return nil, &LoginError{Status: LoginTargetError, Reason: "no random bytes: " + err.Error()}
	}
	if _, err := io.ReadFull(c.rand, c.challenge[:]); err != nil {
		return nil, &LoginError{Status: LoginTargetError, Reason: "no random bytes: " + err.Error()}
	}
	c.alg, c.id, c.state = alg, id[0], chapWantResponse
	return []KV{
		{"CHAP_A", strconv.Itoa(int(alg))},
		{"CHAP_I", strconv.Itoa(int(c.id))},
		{"CHAP_C", EncodeBinary(c.challenge[:], HexBinary)},
	}, nil
}

func (c *chapTarget) check(k chapKeys) ([]KV, error) {
	response, err := DecodeBinary(k.response)
	if err != nil {
		return nil, fmt.Errorf("%w: CHAP_R: %w", errCHAP, err)
	}
	acc, ok := verifyCHAP(c.policy.Incoming, c.alg, c.id, c.challenge[:], k.name, response)
	if !ok {
		return nil, fmt.Errorf("%w: unknown name or wrong secret", errCHAP)
	}
	var out []KV
	if k.hasID {
		if out, err = c.prove(k, acc); err != nil {
			return nil, err
		}
	}
	c.user, c.state = acc.User, chapDone
	return out, nil
}

// prove answers the initiator's challenge, after the initiator has proved itself.
func (c *chapTarget) prove(k chapKeys, acc Account) ([]KV, error) {
	own := c.policy.Outgoing
	if own == nil {
		return nil, fmt.Errorf("%w: mutual authentication is asked for and no outgoing account is set", errCHAP)
	}
	id, challenge, err := k.peerChallenge()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCHAP, err)
	}
	// Whoever sends our challenge back wants our answer to it for another
	// connection; with one secret for both directions that would be the password
	// (RFC 7143 §12.1.3 forbids both).
	if subtle.ConstantTimeCompare(challenge, c.challenge[:]) == 1 {
		return nil, fmt.Errorf("%w: the initiator sent our own challenge back", errCHAP)
	}
	if subtle.ConstantTimeCompare([]byte(own.Secret), []byte(acc.Secret)) == 1 {
		return nil, fmt.Errorf("%w: incoming and outgoing account have the same secret", errCHAP)
	}
	return []KV{
		{"CHAP_N", own.User},
		{"CHAP_R", EncodeBinary(CHAPResponse(c.alg, id, own.Secret, challenge), HexBinary)},
	}, nil
}
