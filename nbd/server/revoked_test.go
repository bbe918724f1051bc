package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"strings"
	"testing"
	"time"

	"blockgate/nbd"
)

// revoking is a directory whose export is taken away while somebody enters it.
type revoking struct {
	names
	srv *Server
	t   *testing.T
}

func (d *revoking) Export(name string, c *Client) (Export, error) {
	e, err := d.names.Export(name, c)
	if err != nil {
		return nil, err
	}
	return revoked{e, d}, nil
}

type revoked struct {
	Export
	d *revoking
}

func (e revoked) Open(c *Client) (Session, error) {
	s, err := e.Export.Open(c)
	clear(e.d.names)
	if n := e.d.srv.CloseConns("taken away", func(ConnInfo) bool { return true }); n != 0 {
		e.d.t.Errorf("%d connections are seen before they are entered", n)
	}
	return s, err
}

// An export that is taken away while a client enters it is not served to it.
func TestTakenAwayWhileEntered(t *testing.T) {
	for _, o := range []nbd.Option{nbd.OptGo, nbd.OptExportName} {
		d := &revoking{names: twoStores(t), t: t}
		s, dial := start(t, Config{Directory: d}, Access{}, "tcp")
		d.srv = s
		p := dial()
		p.greet()
		data := []byte("a")
		if o == nbd.OptGo {
			data = nbd.InfoRequest{Name: "a"}.Append(nil)
		}
		p.send(nbd.AppendOption(nil, o, data))
		p.closed()
	}
}

// TLS that is demanded and cannot be had keeps everyone out, and that is all.
func TestTLSWithoutMeans(t *testing.T) {
	_, dial := start(t, Config{Directory: twoStores(t)}, Access{RequireTLS: true}, "tcp")
	p := dial()
	p.greet()
	if _, r := p.option(nbd.OptStartTLS, nil); r != nbd.RepErrPolicy {
		t.Errorf("STARTTLS: %v", r)
	}
	if _, r := p.option(nbd.OptGo, nbd.InfoRequest{Name: "a"}.Append(nil)); r != nbd.RepErrTLSRequired {
		t.Errorf("GO: %v", r)
	}
}

// Why an option is refused is a string of the protocol, whatever it quotes.
func TestLongReason(t *testing.T) {
	_, dial := start(t, Config{Directory: Single(ForStore(openRAM(t, 1<<20), StoreOptions{Name: "a"}))}, Access{}, "tcp")
	p := dial()
	p.greet()
	p.send(nbd.AppendOption(nil, nbd.OptInfo, nbd.InfoRequest{Name: strings.Repeat("\x01ü", nbd.MaxString/3)}.Append(nil)))
	h, err := nbd.DecodeOptionReplyHeader(p.take(nbd.OptionReplyHeaderLen))
	if err != nil || h.Type != nbd.RepErrUnknown || h.Length > nbd.MaxString {
		t.Fatalf("%+v, %v", h, err)
	}
	if m := string(p.take(int(h.Length))); !nbd.ValidName(m) {
		t.Errorf("the reason is %q", m)
	}
}

// A client that reads nothing does not keep who closes its connection: TLS has a
// farewell to send, for which there is no room.
func TestCloseOfWhoReadsNothing(t *testing.T) {
	ca := certificate(t, nil, x509.Certificate{Subject: pkix.Name{CommonName: "authority"}})
	cert := certificate(t, &ca, x509.Certificate{DNSNames: []string{"nbd.example"}})
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	s := New(Config{Directory: twoStores(t)})
	t.Cleanup(func() { s.Close() })
	ours, theirs := net.Pipe() // holds nothing
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.ServeConn(theirs, Access{Upgrade: X509(&tls.Config{Certificates: []tls.Certificate{cert}})})
	}()
	p := &peer{t: t, nc: ours}
	p.greet()
	if _, r := p.option(nbd.OptStartTLS, nil); r != nbd.RepAck {
		t.Fatalf("STARTTLS: %v", r)
	}
	c := tls.Client(ours, &tls.Config{RootCAs: pool, ServerName: "nbd.example"})
	if err := c.HandshakeContext(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.nc = c
	if _, r := p.option(nbd.OptGo, nbd.InfoRequest{Name: "a"}.Append(nil)); r != nbd.RepAck {
		t.Fatalf("GO: %v", r)
	}
	begin := time.Now()
	if n := s.CloseConns("enough", func(ConnInfo) bool { return true }); n != 1 {
		t.Fatalf("%d connections", n)
	}
	<-ended
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("closing took %v", d)
	}
	ours.Close()
}

// Nobody comes in by what he proved another time.
func TestNoResumption(t *testing.T) {
	ca := certificate(t, nil, x509.Certificate{Subject: pkix.Name{CommonName: "authority"}})
	cert := certificate(t, &ca, x509.Certificate{DNSNames: []string{"nbd.example"}})
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	own := &tls.Config{Certificates: []tls.Certificate{cert}}
	for name, cfg := range map[string]*tls.Config{
		"one for all": own, "one for each": {GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return own, nil }},
	} {
		_, dial := start(t, Config{Directory: twoStores(t)}, Access{Upgrade: X509(cfg)}, "tcp")
		cache := tls.NewLRUClientSessionCache(1)
		for range 2 {
			p := dial()
			p.greet()
			p.option(nbd.OptStartTLS, nil)
			c := tls.Client(p.nc, &tls.Config{RootCAs: pool, ServerName: "nbd.example", ClientSessionCache: cache})
			p.nc = c
			if _, r := p.option(nbd.OptGo, nbd.InfoRequest{Name: "a"}.Append(nil)); r != nbd.RepAck {
				t.Fatalf("GO: %v", r)
			}
			if c.ConnectionState().DidResume {
				t.Errorf("%s: a session is resumed", name)
			}
		}
	}
}
