package outside

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

// issue writes NAME-cert.pem and NAME-key.pem into dir. Without a parent it is the
// authority's own.
func (a *authority) issue(t *testing.T, dir, name string, template x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	template.SerialNumber = big.NewInt(a.n)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		a.key = key
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name+"-"+suffix+".pem"), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Certificates on both sides, judged by GnuTLS (libnbd, QEMU); a rule goes by the
// client's, and a renewed certificate counts at once.
func TestNBDWithCertificates(t *testing.T) {
	g := newDaemon(t)
	port := freePort(t)
	g.start(t)
	a := &authority{}
	a.issue(t, g.dir, "ca", x509.Certificate{Subject: pkix.Name{CommonName: "authority"}})
	server := x509.Certificate{Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	a.issue(t, g.dir, "server", server)
	client := func(name string) string {
		dir := filepath.Join(g.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		a.issue(t, dir, "client", x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		ca, err := os.ReadFile(filepath.Join(g.dir, "ca-cert.pem"))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "ca-cert.pem"), ca, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	h1, h2 := client("host1.example"), client("other.example")
	g.cli(t, "volume", "create", "v", "ram:32M")
	g.cli(t, "nbd", "listen", "127.0.0.1:"+port, "--tls-cert", filepath.Join(g.dir, "server-cert.pem"),
		"--tls-key", filepath.Join(g.dir, "server-key.pem"), "--tls-client-ca", filepath.Join(g.dir, "ca-cert.pem"))
	g.cli(t, "nbd", "export", "v", "--allow", "host?.example")

	uri := func(dir string) string { return fmt.Sprintf("nbds://127.0.0.1:%s/v?tls-certificates=%s", port, dir) }
	src, back := filepath.Join(g.dir, "src"), filepath.Join(g.dir, "back")
	randomFile(t, src, 32<<20)
	ok(t, time.Minute, "nbdcopy", src, uri(h1))
	ok(t, time.Minute, "nbdcopy", uri(h1), back)
	ok(t, time.Minute, "cmp", src, back)
	ok(t, time.Minute, "qemu-img", "compare", "--object", "tls-creds-x509,id=t,endpoint=client,dir="+h1, "--image-opts",
		fmt.Sprintf("driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port=%s,file.export=v,file.tls-creds=t", port), "driver=raw,file.filename="+src)
	if r := run(t, time.Minute, "nbdinfo", uri(h2)); r.code == 0 {
		t.Errorf("a name that no rule allows gets in: %s", r.both())
	}
	a.issue(t, g.dir, "server", server) // renewed
	ok(t, time.Minute, "nbdinfo", uri(h1))
	stranger := &authority{}
	stranger.issue(t, t.TempDir(), "ca", x509.Certificate{Subject: pkix.Name{CommonName: "stranger"}})
	stranger.issue(t, h1, "client", x509.Certificate{Subject: pkix.Name{CommonName: "host1.example"}})
	if r := run(t, time.Minute, "nbdinfo", uri(h1)); r.code == 0 {
		t.Errorf("a certificate of another authority gets in: %s", r.both())
	}
}
