package tlspsk

import (
	"crypto/ecdh"
	"encoding/binary"
	"slices"
)

// Handshake messages.
const (
	msgClientHello         = 1
	msgServerHello         = 2
	msgNewSessionTicket    = 4
	msgEncryptedExtensions = 8
	msgCertificateRequest  = 13
	msgFinished            = 20
	msgKeyUpdate           = 24
)

// Extensions.
const (
	extSupportedGroups   = 10
	extPreSharedKey      = 41
	extEarlyData         = 42
	extSupportedVersions = 43
	extPSKModes          = 45
	extKeyShare          = 51
)

const (
	versionTLS12 = 0x0303
	versionTLS13 = 0x0304

	suiteAES128GCM = 0x1301

	groupP256   = 23
	groupX25519 = 29

	modeDHE = 1
)

const (
	maxMessage    = 16 << 10 // bytes of a handshake message
	maxIdentities = 16       // that are looked at
	maxIdentity   = 512      // bytes of a name
)

// retryRandom is the random of a ServerHello that is a HelloRetryRequest.
var retryRandom = [32]byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// curves are the groups there are, ours first.
var curves = []struct {
	group uint16
	curve ecdh.Curve
}{{groupX25519, ecdh.X25519()}, {groupP256, ecdh.P256()}}

func curveOf(group uint16) ecdh.Curve {
	for _, c := range curves {
		if c.group == group {
			return c.curve
		}
	}
	return nil
}

// cutMessage cuts a whole handshake message with its header off b; nil if there is
// none yet.
func cutMessage(b []byte) (m, rest []byte, err error) {
	if len(b) < 4 {
		return nil, b, nil
	}
	n := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	if n > maxMessage {
		return nil, b, fault(alertDecodeError, "handshake message of %d bytes", n)
	}
	if len(b) < 4+n {
		return nil, b, nil
	}
	return b[:4+n], b[4+n:], nil
}

// cursor reads a message. What does not fit makes it bad, and zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) bytes(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() int {
	if p := c.bytes(1); p != nil {
		return int(p[0])
	}
	return 0
}

func (c *cursor) u16() int {
	if p := c.bytes(2); p != nil {
		return int(binary.BigEndian.Uint16(p))
	}
	return 0
}

// vec8 and vec16 read what has its length before it.
func (c *cursor) vec8() []byte  { return c.bytes(c.u8()) }
func (c *cursor) vec16() []byte { return c.bytes(c.u16()) }

// end reports whether everything has been read, and was there.
func (c *cursor) end() bool { return !c.bad && len(c.b) == 0 }

// builder writes a message.
type builder struct{ b []byte }

func (w *builder) u8(v int)       { w.b = append(w.b, byte(v)) }
func (w *builder) u16(v int)      { w.b = binary.BigEndian.AppendUint16(w.b, uint16(v)) }
func (w *builder) bytes(p []byte) { w.b = append(w.b, p...) }

// vec writes what fn writes with its length before it, of n bytes.
func (w *builder) vec(n int, fn func()) {
	at := len(w.b)
	w.b = append(w.b, make([]byte, n)...)
	fn()
	l := len(w.b) - at - n
	for i := range n {
		w.b[at+n-1-i] = byte(l >> (8 * i))
	}
}

func (w *builder) ext(id int, fn func()) {
	w.u16(id)
	w.vec(2, fn)
}

// message is a handshake message with its header.
func message(typ int, fn func(w *builder)) []byte {
	w := new(builder)
	w.u8(typ)
	w.vec(3, func() { fn(w) })
	return w.b
}

// keyShare is a public key of a group.
type keyShare struct {
	group uint16
	key   []byte
}

// clientHello is what matters of a ClientHello.
type clientHello struct {
	session    []byte
	suites     []uint16
	tls13, dhe bool
	early      bool
	shares     []keyShare
	identities []string
	binders    [][]byte
	// truncated is how long the message is without its binders.
	truncated int
}

func u16s(p []byte) (l []uint16) {
	for ; len(p) >= 2; p = p[2:] {
		l = append(l, binary.BigEndian.Uint16(p))
	}
	return l
}

// extensions reads a list of extensions; none may come twice.
func (c *cursor) extensions(each func(id int, p *cursor)) bool {
	list := &cursor{b: c.vec16(), bad: c.bad}
	var seen []int
	for len(list.b) > 0 && !list.bad {
		id := list.u16()
		p := &cursor{b: list.vec16(), bad: list.bad}
		if slices.Contains(seen, id) || len(seen) > 64 {
			return false
		}
		seen = append(seen, id)
		each(id, p)
		if p.bad {
			return false
		}
	}
	return list.end()
}

func parseClientHello(m []byte) (*clientHello, error) {
	h := new(clientHello)
	c := &cursor{b: m[4:]}
	version := c.u16()
	c.bytes(32)
	h.session = slices.Clone(c.vec8())
	h.suites = u16s(c.vec16())
	compression := c.vec8()
	last, psk := 0, false
	good := c.extensions(func(id int, p *cursor) {
		last = id
		switch id {
		case extSupportedVersions:
			h.tls13 = slices.Contains(u16s(p.vec8()), versionTLS13)
		case extPSKModes:
			h.dhe = slices.Contains(p.vec8(), modeDHE)
		case extEarlyData:
			h.early = true
		case extKeyShare:
			l := &cursor{b: p.vec16(), bad: p.bad}
			for len(l.b) > 0 && !l.bad {
				s := keyShare{uint16(l.u16()), slices.Clone(l.vec16())}
				if curveOf(s.group) != nil {
					h.shares = append(h.shares, s)
				}
			}
			p.bad = p.bad || l.bad
		case extPreSharedKey:
			psk = true
			h.preShared(p)
			h.truncated = len(m)
			for _, b := range h.binders {
				h.truncated -= 1 + len(b)
			}
			h.truncated -= 2
		}
	})
	switch {
	case !good || !c.end():
		return nil, fault(alertDecodeError, "ClientHello cannot be read")
	case version != versionTLS12 || !h.tls13:
		return nil, fault(alertProtocolVersion, "the client does not speak TLS 1.3")
	case len(compression) != 1 || compression[0] != 0:
		return nil, fault(alertIllegalParameter, "the client wants compression")
	case psk && last != extPreSharedKey:
		return nil, fault(alertIllegalParameter, "the pre-shared key is not the last extension")
	case len(h.session) > 32:
		return nil, fault(alertDecodeError, "session id of %d bytes", len(h.session))
	}
	return h, nil
}

func (h *clientHello) preShared(p *cursor) {
	l := &cursor{b: p.vec16(), bad: p.bad}
	for len(l.b) > 0 && !l.bad {
		h.identities = append(h.identities, string(l.vec16()))
		l.bytes(4) // how old a ticket is
	}
	binders := &cursor{b: p.vec16(), bad: p.bad}
	for len(binders.b) > 0 && !binders.bad {
		h.binders = append(h.binders, slices.Clone(binders.vec8()))
	}
	if l.bad || binders.bad || len(p.b) > 0 || len(h.identities) != len(h.binders) {
		p.bad = true
	}
}

// serverHello is what matters of a ServerHello.
type serverHello struct {
	random  []byte
	session []byte
	suite   int
	share   keyShare
	version int
	psk     int // the identity that was chosen; -1: none
}

func parseServerHello(m []byte) (*serverHello, error) {
	h := &serverHello{psk: -1}
	c := &cursor{b: m[4:]}
	version := c.u16()
	h.random = c.bytes(32)
	h.session = c.vec8()
	h.suite = c.u16()
	compression := c.u8()
	good := true
	// A server of TLS 1.2 may leave the extensions out.
	if len(c.b) > 0 || c.bad {
		good = c.extensions(func(id int, p *cursor) {
			switch id {
			case extSupportedVersions:
				h.version = p.u16()
			case extKeyShare:
				h.share = keyShare{uint16(p.u16()), nil}
				if len(p.b) > 0 { // a retry has the group only
					h.share.key = slices.Clone(p.vec16())
				}
			case extPreSharedKey:
				h.psk = p.u16()
			default:
				p.bad = true
			}
		})
	}
	switch {
	case c.bad:
		return nil, fault(alertDecodeError, "ServerHello cannot be read")
	case version != versionTLS12 || h.version != versionTLS13:
		return nil, fault(alertProtocolVersion, "the server does not speak TLS 1.3")
	case !good || !c.end() || compression != 0:
		return nil, fault(alertDecodeError, "ServerHello cannot be read")
	}
	return h, nil
}
