package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"blockgate/internal/tlspsk"
)

// Files of a directory of certificates, PEM, as GnuTLS's users name them.
const (
	caFile   = "ca-cert.pem"
	certFile = "client-cert.pem"
	keyFile  = "client-key.pem"
)

// LoadTLS makes the configuration of a client that checks the server's certificate
// against ca-cert.pem of a directory, and shows it client-cert.pem, whose key is
// client-key.pem, if there is one. Without a directory it is the system's
// authorities. hostname is what the server's certificate has to be for.
func LoadTLS(dir, hostname string) (*tls.Config, error) {
	if hostname == "" {
		return nil, errors.New("TLS: no host name to check the server's certificate against: name it with tls-hostname")
	}
	cfg := &tls.Config{ServerName: hostname, MinVersion: tls.VersionTLS12}
	if dir == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	cfg.RootCAs = x509.NewCertPool()
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("TLS: %s has no certificate", filepath.Join(dir, caFile))
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	switch {
	case err == nil:
		cfg.Certificates = []tls.Certificate{cert}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return cfg, nil
}

// Secure makes a Config.Secure of a configuration of TLS.
func Secure(cfg *tls.Config) func(context.Context, net.Conn) (net.Conn, error) {
	return func(ctx context.Context, nc net.Conn) (net.Conn, error) {
		c := tls.Client(nc, cfg)
		return c, c.HandshakeContext(ctx)
	}
}

func (u *URI) secure() (func(context.Context, net.Conn) (net.Conn, error), error) {
	if u.PSKFile != "" {
		user, key, err := loadPSK(u.PSKFile, u.User)
		if err != nil {
			return nil, err
		}
		return tlspsk.Secure(user, key), nil
	}
	cfg, err := LoadTLS(u.Certificates, u.Hostname)
	if err != nil {
		return nil, err
	}
	return Secure(cfg), nil
}

// loadPSK finds a user's key in a file; without a user it is the only one there.
func loadPSK(path, user string) (string, []byte, error) {
	keys, err := tlspsk.ReadKeys(path)
	if err != nil {
		return "", nil, fmt.Errorf("TLS: %w", err)
	}
	if user == "" {
		if len(keys) != 1 {
			return "", nil, fmt.Errorf("TLS: %s has the keys of %d users: name one with tls-username", path, len(keys))
		}
		for user = range keys {
		}
	}
	key, ok := keys[user]
	if !ok {
		return "", nil, fmt.Errorf("TLS: %s has no key of user %q", path, user)
	}
	return user, key, nil
}
