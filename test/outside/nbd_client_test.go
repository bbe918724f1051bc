package outside

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/engines"
	"blockgate/iscsi/initiator"
	"blockgate/nbd"
	"blockgate/nbd/client"
)

// nbdServer is a foreign NBD server on a unix socket.
type nbdServer struct {
	*process
	socket string
	name   string
	args   []string
}

// newNBDServer starts nbdkit or qemu-nbd; args get the socket's path for %s.
func newNBDServer(t *testing.T, name string, args ...string) *nbdServer {
	t.Helper()
	needsTools(t)
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s here (test/packages.sh)", name)
	}
	dir, err := os.MkdirTemp("", "nbd") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &nbdServer{socket: filepath.Join(dir, "s"), name: name}
	for _, a := range args {
		if a == "%s" {
			a = s.socket
		}
		s.args = append(s.args, a)
	}
	s.start(t)
	return s
}

func nbdkit(t *testing.T, args ...string) *nbdServer {
	t.Helper()
	return newNBDServer(t, "nbdkit", append([]string{"-f", "-U", "%s"}, args...)...)
}

func qemuNBD(t *testing.T, args ...string) *nbdServer {
	t.Helper()
	return newNBDServer(t, "qemu-nbd", append([]string{"-t", "-e", "4", "-x", "", "--discard=unmap", "-k", "%s"}, args...)...)
}

// start starts it, again too, and waits until it answers.
func (s *nbdServer) start(t *testing.T) {
	t.Helper()
	os.Remove(s.socket)
	s.process = spawn(t, nil, s.name, s.args...)
	eventually(t, 20*time.Second, s.name+" answers", func() bool {
		if !s.alive() {
			t.Fatalf("%s ended: %s", s.name, s.err.String())
		}
		nc, err := net.Dial("unix", s.socket)
		if err != nil {
			return false
		}
		nc.Close()
		return true
	})
}

func (s *nbdServer) url() string { return "nbd+unix:///?socket=" + s.socket }

// export makes a target of the server's export and gives its URL.
func (s *nbdServer) export(t *testing.T, d *gatewayd, iqn string) string {
	t.Helper()
	name := iqn[len(iqn)-4:]
	d.cli(t, "volume", "create", name, s.url())
	d.cli(t, "target", "create", iqn, "--volume", name, "--allow", "all")
	return "iscsi://" + d.portal(t) + "/" + iqn + "/0"
}

// open opens the export as a store of this process.
func (s *nbdServer) open(t *testing.T, url string) backing.Store {
	t.Helper()
	store, err := engines.Default().Open(t.Context(), url, backing.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

const nbdIQN = "iqn.2025-01.io.blockgate.test:"

// An image is converted through our target onto each server, and compared.
func TestNBDUpstream(t *testing.T) {
	d := newDaemon(t)
	d.start(t, "--listen", "127.0.0.1:0")
	const size = 64 << 20
	image := filepath.Join(d.dir, "image")
	p := make([]byte, 3<<20)
	for i := range p {
		p[i] = byte(i>>9 ^ i*7)
	}
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, 10<<20 + 512, size - int64(len(p))} {
		if _, err := f.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(d.dir, "file")
	qcow2 := filepath.Join(d.dir, "qcow2")
	ok(t, time.Minute, "qemu-img", "create", "-q", "-f", "raw", file, "64M")
	ok(t, time.Minute, "qemu-img", "create", "-q", "-f", "qcow2", qcow2, "64M")
	for name, s := range map[string]func() *nbdServer{
		"kmem": func() *nbdServer { return nbdkit(t, "memory", "64M") },
		"kfil": func() *nbdServer { return nbdkit(t, "file", file) },
		// Blocks of 4 KiB and payloads of 64 KiB, by force.
		"kblk": func() *nbdServer {
			return nbdkit(t, "--filter=blocksize-policy", "memory", "64M", "blocksize-minimum=4096", "blocksize-preferred=4096",
				"blocksize-maximum=64K", "blocksize-error-policy=error")
		},
		"qcow": func() *nbdServer { return qemuNBD(t, "-f", "qcow2", qcow2) },
	} {
		url := s().export(t, d, nbdIQN+name)
		ok(t, 2*time.Minute, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, url)
		ok(t, 2*time.Minute, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, url)
		qemuIO(t, url, "write -P 0x5a 1M 64k", "write -P 0x77 1052160 512", "flush", "discard 2M 1M", "write -z 3M 1M",
			"read -P 0x5a 1M 3584", "read -P 0x77 1052160 512", "read -P 0x5a 1052672 61440", "read -P 0 2M 2M")
	}
}

// The server is killed under load again and again and comes back: no command
// fails, and nothing that was acknowledged is lost. Two of the servers have in
// their memory what was not flushed, or where it is, and lose it.
func TestNBDServerKilled(t *testing.T) {
	rounds := 4
	if os.Getenv("BLOCKGATE_OUTSIDE") == "all" {
		rounds = 20
	}
	d := newDaemon(t)
	d.start(t, "--listen", "127.0.0.1:0")
	for name, start := range map[string]func(disk string) *nbdServer{
		"file": func(disk string) *nbdServer { return nbdkit(t, "file", disk) },
		"cach": func(disk string) *nbdServer {
			return nbdkit(t, "--filter=cache", "file", "cache=writeback", "file="+disk)
		},
		// Its tables are in memory until a flush.
		"qcow": func(disk string) *nbdServer {
			ok(t, time.Minute, "qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
			return qemuNBD(t, "--cache=writeback", "-f", "qcow2", disk)
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := filepath.Join(d.dir, name)
			ok(t, time.Minute, "qemu-img", "create", "-q", "-f", "raw", disk, "64M")
			s := start(disk)
			s.export(t, d, nbdIQN+name)
			ctx := t.Context()
			session, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{d.portal(t)}, TargetName: nbdIQN + name})
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			unit, err := session.Unit(0).OpenDisk(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var book ledger
			var writes atomic.Int64
			var stop atomic.Bool
			var ended sync.WaitGroup
			for w := range crashWriters {
				ended.Go(func() {
					if err := book.load(unit, w, 1, &writes); !stop.Load() {
						t.Errorf("a command failed: %v", err)
					}
				})
			}
			for round := range rounds {
				enough := writes.Load() + 300
				eventually(t, 90*time.Second, "enough writes", func() bool { return writes.Load() >= enough || t.Failed() })
				if round%2 == 1 { // it hangs first
					syscall.Kill(-s.pid(), syscall.SIGSTOP)
					since := time.Now()
					eventually(t, 10*time.Second, "time", func() bool { return time.Since(since) > 500*time.Millisecond })
				}
				s.kill()
				if round%4 == 2 { // and is gone for a while
					since := time.Now()
					eventually(t, 10*time.Second, "time", func() bool { return time.Since(since) > 700*time.Millisecond })
				}
				s.start(t)
			}
			enough := writes.Load() + 300
			eventually(t, 90*time.Second, "enough writes", func() bool { return writes.Load() >= enough || t.Failed() })
			stop.Store(true)
			session.Close()
			ended.Wait()

			again, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{d.portal(t)}, TargetName: nbdIQN + name})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if unit, err = again.Unit(0).OpenDisk(ctx); err != nil {
				t.Fatal(err)
			}
			book.flushed = book.acked // the gateway has not died
			p := make([]byte, crashBlock)
			for b := range crashBlocks {
				if err := unit.ReadAt(ctx, p, int64(b)*crashBlock); err != nil {
					t.Fatal(err)
				}
				if err := book.check(p, b); err != nil {
					t.Fatal(err)
				}
			}
			figure(t, "%s killed %d times under load: %d writes, none lost, none failed", name, rounds, writes.Load())
		})
	}
}

// What a server refuses is refused, and delays are waited for.
func TestNBDErrors(t *testing.T) {
	trigger := filepath.Join(t.TempDir(), "trigger")
	s := nbdkit(t, "--filter=error", "--filter=delay", "memory", "1M", "error-rate=100%", "error=ENOSPC", "error-file="+trigger, "rdelay=50ms")
	store := s.open(t, s.url())
	p := make([]byte, 4096)
	begin := time.Now()
	if err := store.ReadAt(t.Context(), p, 0); err != nil || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("a delayed read: %v after %v", err, time.Since(begin))
	}
	if err := os.WriteFile(trigger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.WriteAt(t.Context(), p, 0); !errors.Is(err, backing.ErrNoSpace) {
		t.Errorf("a write without space: %v", err)
	}
	if err := store.ReadAt(t.Context(), p, 0); !errors.Is(err, nbd.ENOSPC) {
		t.Errorf("a read that is refused: %v", err)
	}
	os.Remove(trigger)
	if err := store.WriteAt(t.Context(), p, 0); err != nil {
		t.Errorf("after the errors: %v", err)
	}
}

// Sparse parts are seen, and a file that grew is taken over.
func TestNBDExtentsAndGrowth(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	needsTools(t)
	ok(t, time.Minute, "qemu-img", "create", "-q", "-f", "raw", disk, "64M")
	s := nbdkit(t, "file", disk)
	store := s.open(t, s.url())
	if err := store.WriteAt(t.Context(), make([]byte, 1<<20), 8<<20); err != nil {
		t.Fatal(err)
	}
	e, has := backing.As[backing.Extenter](store)
	if !has {
		t.Fatal("no extents")
	}
	allocated := int64(0)
	if err := e.Extents(t.Context(), 0, 64<<20, func(x backing.Extent) bool {
		if x.Allocated {
			allocated += x.Len
		}
		return true
	}); err != nil || allocated < 1<<20 || allocated > 2<<20 {
		t.Errorf("%d bytes allocated, %v; 1 MiB was written", allocated, err)
	}
	if err := os.Truncate(disk, 65<<20); err != nil {
		t.Fatal(err)
	}
	r, has := backing.As[backing.Refresher](store)
	if !has {
		t.Fatal("no refresh")
	}
	if n, err := r.Refresh(t.Context()); err != nil || n != 65<<20 {
		t.Errorf("Refresh = %d, %v", n, err)
	}
	if err := store.WriteAt(t.Context(), make([]byte, 512), 65<<20-512); err != nil {
		t.Error(err)
	}
}

// iscsi-test-cu's SCSI family on an NBD volume.
func TestNBDConformance(t *testing.T) {
	s := nbdkit(t, "memory", "1G")
	d := newDaemon(t)
	d.start(t, "--listen", "127.0.0.1:0")
	url := s.export(t, d, nbdIQN+"conf")
	patterns := []string{"SCSI.[^S]*", "SCSI.S[^a]*"}
	if os.Getenv("BLOCKGATE_OUTSIDE") == "all" {
		patterns = []string{"SCSI.*"} // Sanitize too, whose tool sleeps
	}
	conform(t, d.process, "nbd", url, patterns...)
}

// TLS with certificates on both ends, against GnuTLS.
func TestNBDTLS(t *testing.T) {
	needsTools(t)
	dir := t.TempDir()
	writeCertificates(t, dir, "localhost")
	s := nbdkit(t, "--tls=require", "--tls-certificates="+dir, "--tls-verify-peer", "memory", "16M")
	url := "nbds+unix:///?tls-hostname=localhost&socket=" + s.socket
	store := s.open(t, url+"&tls-certificates="+dir)
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(i * 7)
	}
	if err := store.WriteAt(t.Context(), want, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := store.ReadAt(t.Context(), got, 4096); err != nil || string(got) != string(want) {
		t.Errorf("content differs, or %v", err)
	}
	other := t.TempDir()
	writeCertificates(t, other, "localhost")
	for what, url := range map[string]string{
		"without TLS":              s.url(),
		"another authority":        url + "&tls-certificates=" + other,
		"certificate of no one":    url,
		"certificate of elsewhere": "nbds+unix:///?tls-hostname=elsewhere&socket=" + s.socket + "&tls-certificates=" + dir,
	} {
		store, err := engines.Default().Open(t.Context(), url, backing.OpenOptions{})
		if err == nil {
			store.Close()
			t.Errorf("%s: opened", what)
		}
		if what == "without TLS" && !errors.Is(err, client.ErrTLSRequired) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// writeCertificates makes an authority, and certificates of a server and of a
// client, in the files that GnuTLS's users expect.
func writeCertificates(t *testing.T, dir, host string) {
	t.Helper()
	put := func(file, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, who := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: fmt.Sprint("blockgate test ", who)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if who == "ca" {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
			ca, caKey = c, key
		} else if who == "server" {
			c.DNSNames = []string{host}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		put(who+"-cert.pem", "CERTIFICATE", der)
		b, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		put(who+"-key.pem", "PRIVATE KEY", b)
	}
}

// TLS with a key that both share, against GnuTLS.
func TestNBDPSK(t *testing.T) {
	needsTools(t)
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys.psk")
	const key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	if err := os.WriteFile(keys, []byte("alice:"+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(dir, "wrong.psk")
	if err := os.WriteFile(wrong, []byte("alice:"+key[2:]+"ff\nbob:"+key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	ok(t, time.Minute, "qemu-img", "create", "-q", "-f", "raw", image, "16M")
	for name, s := range map[string]*nbdServer{
		"nbdkit": nbdkit(t, "--tls=require", "--tls-psk="+keys, "memory", "16M"),
		"qemu-nbd": qemuNBD(t, "-f", "raw", "--object", "tls-creds-psk,id=tls0,endpoint=server,dir="+dir,
			"--tls-creds", "tls0", image),
	} {
		url := "nbds+unix:///?socket=" + s.socket
		store := s.open(t, url+"&tls-psk-file="+keys)
		want := make([]byte, 4<<20)
		for i := range want {
			want[i] = byte(i * 13)
		}
		if err := store.WriteAt(t.Context(), want, 4096); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := store.Flush(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := make([]byte, len(want))
		if err := store.ReadAt(t.Context(), got, 4096); err != nil || string(got) != string(want) {
			t.Errorf("%s: content differs, or %v", name, err)
		}
		for _, file := range []string{wrong + "&tls-username=alice", wrong + "&tls-username=bob"} {
			store, err := engines.Default().Open(t.Context(), url+"&tls-psk-file="+file, backing.OpenOptions{})
			if err == nil {
				store.Close()
				t.Errorf("%s: opened with %s", name, file)
			}
		}
	}
}
