package tlspsk

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"net"
	"slices"
)

// MinKey is the shortest key that is taken, in bytes.
const MinKey = 16

type clientConfig struct {
	user string
	key  []byte
}

type serverConfig struct {
	lookup func(user string) (key []byte, ok bool)
}

// Client makes the client's end of a connection, which shows that it has the key
// of this user name, and wants the server to show the same.
func Client(nc net.Conn, user string, key []byte) *Conn {
	c := newConn(nc)
	c.client = &clientConfig{user, slices.Clone(key)}
	return c
}

// Server makes the server's end of a connection. lookup finds a user's key.
func Server(nc net.Conn, lookup func(user string) (key []byte, ok bool)) *Conn {
	c := newConn(nc)
	c.server = &serverConfig{lookup}
	return c
}

// Secure is Client with the handshake done, for users of contexts.
func Secure(user string, key []byte) func(context.Context, net.Conn) (net.Conn, error) {
	return func(ctx context.Context, nc net.Conn) (net.Conn, error) {
		c := Client(nc, user, key)
		return c, c.Handshake(ctx)
	}
}

// transcript is the hash of the messages so far.
type transcript struct{ h hash.Hash }

func (t transcript) sum() []byte { return t.h.Sum(nil) }

// nextMessage reads a handshake message. It is good until the next call.
func (c *Conn) nextMessage() ([]byte, error) {
	for range 4 * maxUseless {
		m, rest, err := cutMessage(c.hand)
		if err != nil {
			return nil, err
		}
		if m != nil {
			m = slices.Clone(m)
			c.hand = append(c.hand[:0], rest...)
			return m, nil
		}
		typ, p, err := c.readRecord()
		if err != nil {
			return nil, err
		}
		if typ != typeHandshake && typ != typeAlert && len(c.hand) > 0 {
			return nil, fault(alertUnexpectedMessage, "a record of type %d within a handshake message", typ)
		}
		switch typ {
		case typeChangeCipherSpec:
		case typeHandshake:
			if len(p) == 0 {
				return nil, fault(alertUnexpectedMessage, "empty handshake record")
			}
			c.hand = append(c.hand, p...)
		case typeAlert:
			if err := takeAlert(p); err != nil {
				return nil, err
			}
		default:
			return nil, fault(alertUnexpectedMessage, "data before the end of the handshake")
		}
	}
	return nil, fault(alertUnexpectedMessage, "too many records in the handshake")
}

// expect reads a message of a type and adds it to the transcript.
func (c *Conn) expect(typ byte, t transcript) ([]byte, error) {
	m, err := c.nextMessage()
	if err != nil {
		return nil, err
	}
	if m[0] != typ {
		if m[0] == msgCertificateRequest {
			return nil, fault(alertUnexpectedMessage, "the peer wants a certificate")
		}
		return nil, fault(alertUnexpectedMessage, "handshake message %d in place of %d", m[0], typ)
	}
	if t.h != nil {
		t.h.Write(m)
	}
	return m, nil
}

// keysChange: no message may lie across a change of keys.
func (c *Conn) keysChange() error {
	if len(c.hand) > 0 {
		return fault(alertUnexpectedMessage, "a message under a key that has ended")
	}
	return nil
}

func (c *Conn) send(b []byte) error {
	_, err := c.nc.Write(b)
	return err
}

// clientHello is our ClientHello with its binder.
func (c *Conn) clientHello(keys []*ecdh.PrivateKey, early []byte) []byte {
	var random [32]byte
	rand.Read(random[:])
	m := message(msgClientHello, func(w *builder) {
		w.u16(versionTLS12)
		w.bytes(random[:])
		w.vec(1, func() {})
		w.vec(2, func() { w.u16(suiteAES128GCM) })
		w.vec(1, func() { w.u8(0) })
		w.vec(2, func() {
			w.ext(extSupportedVersions, func() { w.vec(1, func() { w.u16(versionTLS13) }) })
			w.ext(extSupportedGroups, func() {
				w.vec(2, func() {
					for _, k := range curves {
						w.u16(int(k.group))
					}
				})
			})
			w.ext(extKeyShare, func() {
				w.vec(2, func() {
					for i, k := range curves {
						w.u16(int(k.group))
						w.vec(2, func() { w.bytes(keys[i].PublicKey().Bytes()) })
					}
				})
			})
			w.ext(extPSKModes, func() { w.vec(1, func() { w.u8(modeDHE) }) })
			w.ext(extPreSharedKey, func() {
				w.vec(2, func() {
					w.vec(2, func() { w.bytes([]byte(c.client.user)) })
					w.bytes(make([]byte, 4))
				})
				w.vec(2, func() { w.vec(1, func() { w.bytes(make([]byte, hashLen)) }) })
			})
		})
	})
	sum := sha256.Sum256(m[:len(m)-hashLen-3])
	copy(m[len(m)-hashLen:], binder(early, sum[:]))
	return m
}

func (c *Conn) asClient() error {
	if n := len(c.client.user); n == 0 || n > maxIdentity || len(c.client.key) < MinKey {
		return fault(alertInternalError, "a user name has 1 to %d bytes, a key at least %d", maxIdentity, MinKey)
	}
	early := earlySecret(c.client.key)
	keys := make([]*ecdh.PrivateKey, len(curves))
	for i, k := range curves {
		var err error
		if keys[i], err = k.curve.GenerateKey(rand.Reader); err != nil {
			return err
		}
	}
	t := transcript{sha256.New()}
	hello := c.clientHello(keys, early)
	t.h.Write(hello)
	if err := c.send(c.appendRecord(nil, typeHandshake, hello)); err != nil {
		return err
	}
	m, err := c.expect(msgServerHello, t)
	if err != nil {
		return err
	}
	h, err := parseServerHello(m)
	if err != nil {
		return err
	}
	switch {
	case [32]byte(h.random) == retryRandom:
		return fault(alertHandshakeFailure, "the server wants another group of keys than X25519 and secp256r1")
	case h.suite != suiteAES128GCM || len(h.session) != 0:
		return fault(alertIllegalParameter, "the server chose what was not offered")
	case h.psk != 0:
		return fault(alertHandshakeFailure, "the server does not use the key")
	}
	var shared []byte
	for i, k := range curves {
		if k.group == h.share.group {
			if shared, err = agree(keys[i], h.share.key); err != nil {
				return err
			}
		}
	}
	if shared == nil {
		return fault(alertIllegalParameter, "the server chose a group that was not offered")
	}
	if err := c.keysChange(); err != nil {
		return err
	}
	s := newSecrets(early, shared, t.sum())
	c.in.set(s.server)
	c.out.set(s.client)
	if m, err = c.expect(msgEncryptedExtensions, t); err != nil {
		return err
	}
	if e := (&cursor{b: m[4:]}); !e.extensions(func(int, *cursor) {}) || !e.end() {
		return fault(alertDecodeError, "EncryptedExtensions cannot be read")
	}
	want := finished(s.server, t.sum())
	if m, err = c.expect(msgFinished, t); err != nil {
		return err
	}
	if !hmac.Equal(m[4:], want) {
		return fault(alertDecryptError, "the server does not have the key")
	}
	if err := c.keysChange(); err != nil {
		return err
	}
	sum := t.sum()
	fin := message(msgFinished, func(w *builder) { w.bytes(finished(s.client, sum)) })
	if err := c.send(c.appendRecord(nil, typeHandshake, fin)); err != nil {
		return err
	}
	clientData, serverData := s.data(sum)
	c.out.set(clientData)
	c.in.set(serverData)
	c.user = c.client.user
	return nil
}

func agree(key *ecdh.PrivateKey, public []byte) ([]byte, error) {
	p, err := key.Curve().NewPublicKey(public)
	if err != nil {
		return nil, fault(alertIllegalParameter, "the peer's key is none")
	}
	shared, err := key.ECDH(p)
	if err != nil {
		return nil, fault(alertIllegalParameter, "the peer's key is none")
	}
	return shared, nil
}

// secrets are those of the handshake.
type secrets struct{ handshake, client, server []byte }

func newSecrets(early, shared, sum []byte) secrets {
	hs := extract(next(early), shared)
	return secrets{hs, deriveSecret(hs, "c hs traffic", sum), deriveSecret(hs, "s hs traffic", sum)}
}

// data are the client's and the server's secrets for data; sum includes the
// server's Finished.
func (s secrets) data(sum []byte) (client, server []byte) {
	master := extract(next(s.handshake), make([]byte, hashLen))
	return deriveSecret(master, "c ap traffic", sum), deriveSecret(master, "s ap traffic", sum)
}

func (c *Conn) asServer() error {
	t := transcript{sha256.New()}
	m, err := c.expect(msgClientHello, t)
	if err != nil {
		return err
	}
	if err := c.keysChange(); err != nil {
		return err
	}
	h, err := parseClientHello(m)
	if err != nil {
		return err
	}
	switch {
	case !slices.Contains(h.suites, suiteAES128GCM):
		return fault(alertHandshakeFailure, "the client does not offer TLS_AES_128_GCM_SHA256")
	case len(h.identities) == 0 || !h.dhe:
		return fault(alertMissingExtension, "the client offers no pre-shared key with an exchange of keys")
	case h.early:
		return fault(alertHandshakeFailure, "the client wants to send early data")
	case len(h.shares) == 0:
		return fault(alertHandshakeFailure, "the client offers neither X25519 nor secp256r1")
	}
	chosen, early, err := c.choose(h, m)
	if err != nil {
		return err
	}
	share := h.shares[0]
	for _, s := range h.shares {
		if s.group == curves[0].group {
			share = s
		}
	}
	key, err := curveOf(share.group).GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	shared, err := agree(key, share.key)
	if err != nil {
		return err
	}
	var random [32]byte
	rand.Read(random[:])
	hello := message(msgServerHello, func(w *builder) {
		w.u16(versionTLS12)
		w.bytes(random[:])
		w.vec(1, func() { w.bytes(h.session) })
		w.u16(suiteAES128GCM)
		w.u8(0)
		w.vec(2, func() {
			w.ext(extSupportedVersions, func() { w.u16(versionTLS13) })
			w.ext(extKeyShare, func() {
				w.u16(int(share.group))
				w.vec(2, func() { w.bytes(key.PublicKey().Bytes()) })
			})
			w.ext(extPreSharedKey, func() { w.u16(chosen) })
		})
	})
	t.h.Write(hello)
	out := c.appendRecord(nil, typeHandshake, hello)
	if len(h.session) > 0 {
		out = c.appendRecord(out, typeChangeCipherSpec, []byte{1})
	}
	s := newSecrets(early, shared, t.sum())
	c.in.set(s.client)
	c.out.set(s.server)
	ee := message(msgEncryptedExtensions, func(w *builder) { w.vec(2, func() {}) })
	t.h.Write(ee)
	fin := message(msgFinished, func(w *builder) { w.bytes(finished(s.server, t.sum())) })
	t.h.Write(fin)
	if err := c.send(c.appendRecord(out, typeHandshake, append(ee, fin...))); err != nil {
		return err
	}
	sum := t.sum()
	want := finished(s.client, sum)
	clientData, serverData := s.data(sum)
	c.out.set(serverData)
	if m, err = c.expect(msgFinished, transcript{}); err != nil {
		return err
	}
	if !hmac.Equal(m[4:], want) {
		return fault(alertDecryptError, "the client does not have the key")
	}
	if err := c.keysChange(); err != nil {
		return err
	}
	c.in.set(clientData)
	c.user = h.identities[chosen]
	return nil
}

// choose finds the first identity whose key the client has. Whether a name is
// known does not show, also not to one who has a key of his own and names others
// beside it, as it would if only one of the names was looked at (RFC 8446 appendix
// E.6): each name is checked in the same way, one that is not known against a key
// that nobody has.
func (c *Conn) choose(h *clientHello, m []byte) (index int, early []byte, err error) {
	nobodys := make([]byte, 32)
	rand.Read(nobodys)
	sum := sha256.Sum256(m[:h.truncated])
	index = -1
	for i, user := range h.identities[:min(len(h.identities), maxIdentities)] {
		if len(user) == 0 || len(user) > maxIdentity {
			continue
		}
		key, known := c.server.lookup(user)
		if known = known && len(key) >= MinKey; !known {
			key = nobodys
		}
		e := earlySecret(key)
		if hmac.Equal(binder(e, sum[:]), h.binders[i]) && known && index < 0 {
			index, early = i, e
		}
	}
	if index < 0 {
		return 0, nil, fault(alertDecryptError, "the client does not have the key of a user there is")
	}
	return index, early, nil
}
