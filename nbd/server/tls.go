package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
)

// Upgrade puts TLS on a connection whose client has asked for it, as the server,
// and says who the client is. ctx bounds it. The connection it returns is closed
// by the server; if it fails, the one it was given is.
type Upgrade func(ctx context.Context, nc net.Conn) (net.Conn, *Identity, error)

// X509 is an Upgrade by certificates. cfg has the server's, and with
// tls.RequireAndVerifyClientCert the authorities that a client's must come from.
// TLS is at least 1.2. Each connection is a handshake of its own, in which the
// client proves itself: no session is resumed, also by what GetConfigForClient
// gives.
func X509(cfg *tls.Config) Upgrade {
	cfg = ownHandshakes(cfg)
	if get := cfg.GetConfigForClient; get != nil {
		cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := get(h)
			if c != nil {
				c = ownHandshakes(c)
			}
			return c, err
		}
	}
	return func(ctx context.Context, nc net.Conn) (net.Conn, *Identity, error) {
		t := tls.Server(nc, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, nil, fmt.Errorf("TLS: %w", err)
		}
		id := &Identity{Method: "x509"}
		// Only a chain that was verified says who it is.
		if st := t.ConnectionState(); len(st.VerifiedChains) > 0 {
			c := st.VerifiedChains[0][0]
			id.Names = append(id.Names, c.DNSNames...)
			for _, u := range c.URIs {
				id.Names = append(id.Names, u.String())
			}
			id.Names = append(id.Names, c.EmailAddresses...)
			for _, ip := range c.IPAddresses {
				id.Names = append(id.Names, ip.String())
			}
			if c.Subject.CommonName != "" {
				id.Names = append(id.Names, c.Subject.CommonName)
			}
		}
		return t, id, nil
	}
}

// ownHandshakes is cfg without tickets: with one a client would come in that the
// authorities of today, or the rest of its certificate's life, keep out.
func ownHandshakes(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	cfg.SessionTicketsDisabled = true
	return cfg
}
