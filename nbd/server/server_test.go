package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/nbd"
)

// names is a directory of stores by name.
type names map[string]Export

func (d names) Exports(*Client) (l []nbd.ServerEntry) {
	for n, e := range d {
		l = append(l, nbd.ServerEntry{Name: n, Description: e.Info().Description})
	}
	slices.SortFunc(l, func(a, b nbd.ServerEntry) int { return len(a.Name) - len(b.Name) })
	return l
}

func (d names) Export(name string, c *Client) (Export, error) {
	if e := d[name]; e != nil {
		return e, nil
	}
	return nil, &Refusal{nbd.RepErrUnknown, "there is no such export"}
}

func twoStores(t *testing.T) names {
	return names{
		"a":  ForStore(openRAM(t, 1<<20), StoreOptions{Name: "a", Description: "first"}),
		"bb": ForStore(openRAM(t, 2<<20), StoreOptions{Name: "bb"}),
	}
}

// Old clients know EXPORT_NAME and nothing else.
func TestExportName(t *testing.T) {
	_, dial := start(t, Config{Directory: twoStores(t)}, Access{}, "tcp")
	for _, zeroes := range []bool{true, false} {
		p := dial()
		p.take(nbd.GreetingLen)
		f, n := nbd.ClientFixedNewstyle, nbd.ExportNameReplyLen+nbd.ExportNameZeroes
		if !zeroes {
			f, n = f|nbd.ClientNoZeroes, nbd.ExportNameReplyLen
		}
		p.send(nbd.AppendClientFlags(nil, f))
		p.send(nbd.AppendOption(nil, nbd.OptExportName, []byte("bb")))
		size, flags, err := nbd.DecodeExportNameReply(p.take(n))
		if err != nil || size != 2<<20 || flags&nbd.HasFlags == 0 || flags&nbd.SendDF != 0 {
			t.Errorf("%d bytes, flags %x, %v", size, flags, err)
		}
		p.write(4096, pattern(1, 512)).wants(t, "write", nbd.None)
		wantData(t, "read", p.read(4096, 512), pattern(1, 512))
	}
	p := dial()
	p.greet()
	p.send(nbd.AppendOption(nil, nbd.OptExportName, []byte("none")))
	p.closed()
}

func TestUnknownClientFlags(t *testing.T) {
	_, dial := start(t, Config{Directory: twoStores(t)}, Access{}, "tcp")
	p := dial()
	p.take(nbd.GreetingLen)
	p.send([]byte{0, 0, 0, 0x80})
	p.closed()
}

// Options of any length leave the stream where the next one begins.
func TestLongOptions(t *testing.T) {
	_, dial := start(t, Config{Directory: twoStores(t)}, Access{}, "unix")
	p := dial()
	p.greet()
	if _, r := p.option(nbd.OptGo, make([]byte, nbd.MaxOptionData+1)); r != nbd.RepErrTooBig {
		t.Errorf("%v", r)
	}
	if _, r := p.option(4711, make([]byte, nbd.MaxOptionData)); r != nbd.RepErrUnsupported {
		t.Errorf("%v", r)
	}
	if l, r := p.option(nbd.OptList, nil); len(l) != 2 || r != nbd.RepAck {
		t.Errorf("%q, %v", l, r)
	}
	p.send(nbd.OptionHeader{Option: nbd.OptGo, Length: 1 << 31}.Append(nil))
	p.closed()
}

// A client that says nothing is gone when its time is up; what it was about to be
// does not stay.
func TestLoginTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Directory: names{}, LoginTimeout: 3 * time.Second})
		begin := time.Now()
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			s.ServeConn(ours, Access{})
			close(done)
		}()
		io.ReadFull(theirs, make([]byte, nbd.GreetingLen))
		<-done
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("closed after %v", d)
		}
		theirs.Close()
		s.Close()
	})
}

// A crowd of silent clients keeps nobody out.
func TestCrowd(t *testing.T) {
	s, dial := start(t, Config{Directory: twoStores(t), MaxLogins: 4, MaxConnections: 6}, Access{}, "tcp")
	quiet := []*peer{}
	for range 10 {
		p := dial()
		p.take(nbd.GreetingLen)
		quiet = append(quiet, p)
	}
	quiet[0].closed()
	var served []*peer
	for range 3 {
		p := dial()
		p.enter("a", nbd.Simple)
		served = append(served, p)
	}
	for range 8 {
		dial().take(nbd.GreetingLen)
	}
	for _, p := range served {
		p.read(0, 512).wants(t, "a client that is served", nbd.None)
	}
	if l := s.Conns(); len(l) != 3 || l[0].Export != "a" || l[0].Requests != 1 || l[0].ReadBytes != 512 {
		t.Errorf("%+v", l)
	}
	if n := s.CloseConns("test", func(i ConnInfo) bool { return i.ID == s.Conns()[0].ID }); n != 1 {
		t.Errorf("%d closed", n)
	}
	served[0].closed()
}

// certificate makes one that ca (or itself) has signed.
func certificate(t *testing.T, ca *tls.Certificate, template x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := &template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	} else {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLS(t *testing.T) {
	ca := certificate(t, nil, x509.Certificate{Subject: pkix.Name{CommonName: "authority"}})
	server := certificate(t, &ca, x509.Certificate{DNSNames: []string{"nbd.example"}})
	client := certificate(t, &ca, x509.Certificate{Subject: pkix.Name{CommonName: "host 7"}, DNSNames: []string{"h7.hosts.example"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	dir := twoStores(t)
	s, dial := start(t, Config{Directory: dir}, Access{
		RequireTLS: true,
		Upgrade:    X509(&tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}),
	}, "tcp")

	p := dial()
	p.greet()
	for _, o := range []nbd.Option{nbd.OptList, nbd.OptGo, nbd.OptStructuredReply, 4711} {
		if _, r := p.option(o, nil); r != nbd.RepErrTLSRequired {
			t.Errorf("%v without TLS: %v", o, r)
		}
	}
	if _, r := p.option(nbd.OptAbort, nil); r != nbd.RepAck {
		t.Errorf("ABORT without TLS: %v", r)
	}
	p.closed()

	secure := func(certs ...tls.Certificate) (*peer, error) {
		p := dial()
		p.greet()
		if _, r := p.option(nbd.OptStartTLS, nil); r != nbd.RepAck {
			t.Fatalf("STARTTLS: %v", r)
		}
		c := tls.Client(p.nc, &tls.Config{RootCAs: pool, ServerName: "nbd.example", Certificates: certs})
		p.nc = c
		return p, c.HandshakeContext(t.Context())
	}
	p, err := secure(client)
	if err != nil {
		t.Fatal(err)
	}
	if _, r := p.option(nbd.OptStartTLS, nil); r != nbd.RepErrInvalid {
		t.Errorf("STARTTLS twice: %v", r)
	}
	if _, r := p.option(nbd.OptGo, nbd.InfoRequest{Name: "a"}.Append(nil)); r != nbd.RepAck {
		t.Fatalf("GO: %v", r)
	}
	p.write(0, pattern(1, 200<<10)).wants(t, "write by TLS", nbd.None)
	wantData(t, "read by TLS", p.read(0, 200<<10), pattern(1, 200<<10))
	if l := s.Conns(); len(l) != 1 || l[0].Identity == nil || !slices.Equal(l[0].Identity.Names, []string{"h7.hosts.example", "host 7"}) {
		t.Errorf("%+v", l)
	}
	if p, err := secure(); err == nil { // TLS 1.3 tells with the first read
		if _, err := p.nc.Read(make([]byte, 1)); err == nil {
			t.Error("a client without a certificate gets in")
		}
	}
	other := certificate(t, nil, x509.Certificate{Subject: pkix.Name{CommonName: "host 7"}})
	if p, err := secure(other); err == nil {
		if _, err := p.nc.Read(make([]byte, 1)); err == nil {
			t.Error("a client with somebody's certificate gets in")
		}
	}

	_, dial = start(t, Config{Directory: dir}, Access{}, "tcp")
	p = dial()
	p.greet()
	if _, r := p.option(nbd.OptStartTLS, nil); r != nbd.RepErrPolicy {
		t.Errorf("STARTTLS where there is none: %v", r)
	}
	p = dial()
	p.enter("a", nbd.Extended) // goes on without
}

// What was agreed on before TLS does not count behind it.
func TestUpgradeForgets(t *testing.T) {
	upgrade := func(_ context.Context, nc net.Conn) (net.Conn, *Identity, error) {
		return nc, &Identity{Method: "psk", Names: []string{"joe"}}, nil
	}
	_, dial := start(t, Config{Directory: twoStores(t)}, Access{Upgrade: upgrade}, "tcp")
	p := dial()
	p.greet()
	p.option(nbd.OptStructuredReply, nil)
	p.option(nbd.OptStartTLS, nil)
	meta := nbd.MetaContextRequest{Export: "a", Queries: []string{nbd.AllocationContext}}.Append(nil)
	if _, r := p.option(nbd.OptSetMetaContext, meta); r != nbd.RepErrInvalid {
		t.Errorf("SET_META_CONTEXT: %v", r)
	}
	infos, _ := p.option(nbd.OptGo, nbd.InfoRequest{Name: "a"}.Append(nil))
	if i, err := nbd.DecodeInfo(infos[0]); err != nil || i.Flags&nbd.SendDF != 0 {
		t.Errorf("%+v, %v", i, err)
	}
	p.read(0, 512).wants(t, "read", nbd.None)
}

// What is being served is closed with the server, whatever it is doing.
func TestClose(t *testing.T) {
	s, dial := start(t, Config{Directory: twoStores(t)}, Access{}, "tcp")
	p, q := dial(), dial()
	p.enter("a", nbd.Simple)
	q.take(nbd.GreetingLen)
	p.send(nbd.Request{Type: nbd.CmdWrite, Length: 1 << 20}.Append(nil, nbd.Simple)) // and no data
	s.Close()
	p.closed()
	q.closed()
	if err := s.ServeConn(dialed(t), Access{}); err != ErrClosed {
		t.Errorf("%v", err)
	}
}

func dialed(t *testing.T) net.Conn {
	a, b := net.Pipe()
	t.Cleanup(func() { b.Close() })
	return a
}

func TestShutdownWaits(t *testing.T) {
	s, dial := start(t, Config{Directory: twoStores(t)}, Access{}, "tcp")
	p := dial()
	p.enter("a", nbd.Simple)
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(t.Context()) }()
	p.read(0, 512).wants(t, "while it waits", nbd.None)
	p.send(nbd.Request{Type: nbd.CmdDisconnect}.Append(nil, nbd.Simple))
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("nobody was there: %v", err)
	}
}
