package outside

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockgate/iscsi/initiator"
)

var nbdPattern = regexp.MustCompile(`(?m)^url +(nbds?(\+unix)?://\S+)$`)

// serveNBD runs `blockgate serve --nbd 127.0.0.1:0 ARGS…` and gives the URI of the
// first export.
func serveNBD(t *testing.T, args ...string) (p *process, uri string) {
	t.Helper()
	needsTools(t)
	p = spawn(t, nil, blockgate, append([]string{"serve", "--nbd", "127.0.0.1:0"}, args...)...)
	uri = p.expect(t, &p.out, "URL", 20*time.Second, func(s string) string {
		if m := nbdPattern.FindStringSubmatch(s); m != nil {
			return m[1]
		}
		return ""
	})
	return p, uri
}

// randomFile has data, a hole, data and a hole.
func randomFile(t *testing.T, path string, size int64) {
	t.Helper()
	data := make([]byte, size/4)
	rand.Read(data)
	f, err := os.Create(path)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		_, err = f.WriteAt(data, size/2)
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// libnbd is the strictest client there is.
func TestNBDLibnbd(t *testing.T) {
	needsTools(t)
	const size = 64 << 20
	dir := t.TempDir()
	src, back := filepath.Join(dir, "src"), filepath.Join(dir, "back")
	randomFile(t, src, size)
	for name, store := range map[string][]string{
		"file": {filepath.Join(dir, "a.img"), "--size", "64M"}, "ram": {"ram:64M"},
		"4096-byte blocks": {filepath.Join(dir, "b.img"), "--size", "64M", "--block-size", "4096"},
		"unix":             {"ram:64M", "--nbd", "unix:" + filepath.Join(dir, "s")},
	} {
		t.Run(name, func(t *testing.T) {
			p, uri := serveNBD(t, store...)
			if name == "unix" {
				uri = "nbd+unix:///ram?socket=" + filepath.Join(dir, "s")
			}
			var info struct {
				Protocol   string
				Structured bool
				TLS        bool
				Exports    []struct {
					Name     string          `json:"export-name"`
					Size     int64           `json:"export-size"`
					ReadOnly bool            `json:"is_read_only"`
					Multi    bool            `json:"can_multi_conn"`
					Trim     bool            `json:"can_trim"`
					FUA      bool            `json:"can_fua"`
					Zero     bool            `json:"can_zero"`
					Fast     bool            `json:"can_fast_zero"`
					Min      json.RawMessage `json:"block_size_minimum"`
					Contexts []string        `json:"contexts"`
				}
			}
			out := ok(t, time.Minute, "nbdinfo", "--json", uri)
			if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
				t.Fatalf("%v: %s", err, out)
			}
			e := info.Exports[0]
			if info.Protocol != "newstyle-fixed" || !info.Structured || e.Size != size || e.ReadOnly || !e.Multi || !e.Trim || !e.FUA || !e.Zero || !e.Fast ||
				len(e.Contexts) != 1 || e.Contexts[0] != "base:allocation" {
				t.Errorf("%s", out)
			}
			ok(t, time.Minute, "nbdinfo", "--list", uri)
			ok(t, time.Minute, "nbdcopy", src, uri)
			ok(t, time.Minute, "nbdcopy", "--connections=4", uri, back)
			ok(t, time.Minute, "cmp", src, back)
			// The holes have come over, and go back.
			if m := ok(t, time.Minute, "nbdinfo", "--map", "--totals", uri); !regexp.MustCompile(`(?m)^ *33554432 +50\.0% +3 +hole,zero`).MatchString(m) {
				t.Errorf("allocation:\n%s", m)
			}
			ok(t, time.Minute, "nbdcopy", "--synchronous", "--request-size=65536", "--flush", src, uri)
			ok(t, time.Minute, "nbdcopy", uri, back)
			ok(t, time.Minute, "cmp", src, back)
			if r := run(t, time.Minute, "nbdinfo", strings.Replace(uri, "/"+e.Name, "/nothing", 1)); r.code == 0 || !strings.Contains(r.both(), "No such file") {
				t.Errorf("an export that is not there: %d %s", r.code, r.both())
			}
			if !p.alive() {
				t.Error("the server has ended")
			}
		})
	}
}

// QEMU's block layer over NBD does what it does over iSCSI.
func TestNBDQEMU(t *testing.T) {
	needsTools(t)
	for name, args := range map[string][]string{
		"file": {filepath.Join(t.TempDir(), "d.img"), "--size", "128M"}, "ram": {"ram:128M"},
	} {
		t.Run(name, func(t *testing.T) {
			p, uri := serveNBD(t, args...)
			qemuChecks(t, &export{process: p, url: uri}, true)
		})
	}
}

// A volume over both fabrics at once: what an initiator reserves is reserved, and
// a new size reaches both. A write-protected export stays so.
func TestNBDBesideISCSI(t *testing.T) {
	g := newDaemon(t)
	port, nbdPort := freePort(t), freePort(t)
	g.start(t, "--listen", "127.0.0.1:"+port, "--nbd", "127.0.0.1:"+nbdPort)
	g.cli(t, "volume", "create", "disk", filepath.Join(g.dir, "disk.img"), "--size", "64M")
	g.cli(t, "target", "create", guestIQN, "--volume", "disk", "--allow", "all")
	g.cli(t, "nbd", "export", "disk", "--allow", "127.0.0.0/8")
	g.cli(t, "nbd", "export", "disk", "--name", "golden", "--read-only", "--allow", "all")
	uri := "nbd://127.0.0.1:" + nbdPort + "/disk"
	qemuIO(t, uri, "write -P 0x11 0 1M", "read -P 0x11 0 1M")

	s, err := initiator.Dial(t.Context(), initiator.Config{Addrs: []string{"127.0.0.1:" + port}, TargetName: guestIQN})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d, err := s.Unit(initiator.LUN(0)).OpenDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	if err := d.ReadAt(t.Context(), block, 0); err != nil || block[0] != 0x11 {
		t.Fatalf("what NBD wrote is %#x over iSCSI, %v", block[0], err)
	}

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string) {
		t.Helper()
		r := run(t, time.Minute, "qemu-io", "-f", "raw", "-c", what, uri)
		if !strings.Contains(r.both(), "Operation not permitted") {
			t.Errorf("%s under a reservation: exit %d, %s", what, r.code, r.both())
		}
	}
	must(reserveOut(t.Context(), s, 0, prRegisterIgnore, 0, 0, 7))
	must(reserveOut(t.Context(), s, 0, prReserve, writeExclusive, 7, 0))
	refused("write -P 0x22 0 64k")
	refused("discard 0 64k")
	refused("write -z 0 64k")
	qemuIO(t, uri, "read -P 0x11 0 1M")
	must(reserveOut(t.Context(), s, 0, prRelease, writeExclusive, 7, 0))
	must(reserveOut(t.Context(), s, 0, prReserve, exclusiveAccess, 7, 0))
	refused("read 0 64k")
	must(reserveOut(t.Context(), s, 0, prClear, 0, 7, 0))
	qemuIO(t, uri, "write -P 0x33 0 64k", "read -P 0x33 0 64k")
	if r := run(t, time.Minute, "qemu-io", "-f", "raw", "-c", "write 0 64k", strings.Replace(uri, "/disk", "/golden", 1)); r.code == 0 {
		t.Errorf("a read-only export is written to: %s", r.both())
	}

	g.cli(t, "volume", "resize", "disk", "96M")
	if got := strings.TrimSpace(ok(t, time.Minute, "nbdinfo", "--size", uri)); got != fmt.Sprint(96<<20) {
		t.Errorf("%s bytes over NBD", got)
	}
	if out := ok(t, time.Minute, "iscsi-readcapacity16", fmt.Sprintf("iscsi://127.0.0.1:%s/%s/0", port, guestIQN)); !strings.Contains(out, fmt.Sprint(96<<20)) {
		t.Errorf("over iSCSI: %s", out)
	}

	// What may not be reached any more is closed.
	hold := spawn(t, nil, "nbdkit", "--exit-with-parent", "-f", "-U", filepath.Join(g.dir, "k"), "nbd", "uri="+uri, "shared=true")
	eventually(t, 20*time.Second, "a client that stays", func() bool {
		l, err := g.api.NBDClients(t.Context())
		return err == nil && len(l) > 0
	})
	g.cli(t, "nbd", "deny", "disk", "127.0.0.0/8")
	eventually(t, 20*time.Second, "its end", func() bool {
		l, err := g.api.NBDClients(t.Context())
		return err == nil && len(l) == 0
	})
	hold.kill()
	if r := run(t, time.Minute, "nbdinfo", uri); r.code == 0 {
		t.Error("a client that no rule allows gets in")
	}
}

// What a client has flushed outlives a kill.
func TestNBDKill(t *testing.T) {
	dir := t.TempDir()
	img := filepath.Join(dir, "d.img")
	p, uri := serveNBD(t, img, "--size", "64M")
	qemuIO(t, uri, "write -P 0x77 3M 5M", "flush", "write -f -P 0x78 20M 1M")
	p.kill()
	_, uri = serveNBD(t, img)
	qemuIO(t, uri, "read -P 0x77 3M 5M", "read -P 0x78 20M 1M", "read -P 0 0 3M")
}

// Volumes that tgt's tools have made can be NBD exports too.
func TestNBDOfTgtVolume(t *testing.T) {
	g := newTgt(t)
	g.start(t)
	file := filepath.Join(g.dir, "t.img")
	sparse(t, file, 32<<20)
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
	sock := filepath.Join(g.dir, "n")
	var volumes []struct{ Name string }
	list := func(args ...string) string {
		return ok(t, time.Minute, blockgate, append([]string{"--socket", filepath.Join(g.dir, "socket.0")}, args...)...)
	}
	if err := json.Unmarshal([]byte(list("volume", "list", "-o", "json")), &volumes); err != nil || len(volumes) != 1 {
		t.Fatalf("%v, %v", volumes, err)
	}
	list("nbd", "listen", "unix:"+sock)
	list("nbd", "export", volumes[0].Name, "--name", "t", "--allow", "all")
	uri := "nbd+unix:///t?socket=" + sock
	qemuIO(t, uri, "write -P 0x42 1M 1M", "read -P 0x42 1M 1M")
	if got := strings.TrimSpace(ok(t, time.Minute, "nbdinfo", "--size", uri)); got != fmt.Sprint(32<<20) {
		t.Errorf("%s bytes", got)
	}
}

// TLS as the product has it: a file of keys, and rules by what a client has proved.
func TestNBDWithKeys(t *testing.T) {
	g := newDaemon(t)
	port := freePort(t)
	g.start(t)
	keys, stranger := filepath.Join(g.dir, "keys"), filepath.Join(g.dir, "stranger")
	const a, b = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	for file, text := range map[string]string{keys: "alice:" + a + "\nbob:" + b + "\n", stranger: "alice:" + b + "\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.cli(t, "volume", "create", "v", "ram:16M")
	g.cli(t, "nbd", "listen", "127.0.0.1:"+port, "--tls-psk", keys)
	g.cli(t, "nbd", "export", "v", "--allow", "ali*")
	uri := func(who, keys string) string {
		return fmt.Sprintf("nbds://%s@127.0.0.1:%s/v?tls-psk-file=%s", who, port, keys)
	}
	ok(t, time.Minute, "nbdinfo", uri("alice", keys))
	for what, u := range map[string]string{
		"a name that no rule allows": uri("bob", keys), "another's key": uri("alice", stranger),
		"no TLS": fmt.Sprintf("nbd://127.0.0.1:%s/v", port),
	} {
		if r := run(t, time.Minute, "nbdinfo", u); r.code == 0 {
			t.Errorf("%s gets in: %s", what, r.both())
		}
	}
	src, back := filepath.Join(g.dir, "src"), filepath.Join(g.dir, "back")
	randomFile(t, src, 16<<20)
	ok(t, time.Minute, "nbdcopy", src, uri("alice", keys))
	ok(t, time.Minute, "nbdcopy", uri("alice", keys), back)
	ok(t, time.Minute, "cmp", src, back)
}

// A crowd that says nothing, and one that sends nonsense, keep nobody out.
func TestNBDHostile(t *testing.T) {
	p, uri := serveNBD(t, "ram:16M")
	addr := strings.TrimSuffix(strings.TrimPrefix(uri, "nbd://"), "/ram")
	before := rss(t, p.pid())
	for i := range 300 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%3 == 0 {
			junk := make([]byte, 4096)
			rand.Read(junk)
			c.Write(junk)
		}
	}
	ok(t, time.Minute, "nbdinfo", uri)
	if after := rss(t, p.pid()); after > before+64<<20 {
		t.Errorf("memory went from %d to %d MiB", before>>20, after>>20)
	}
	syscall.Kill(p.pid(), syscall.SIGTERM)
	if code := p.ended(t, 20*time.Second); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// The kernel's client in the guest.
func TestGuestNBD(t *testing.T) {
	needsAll(t)
	const size = 256 << 20
	g := newDaemon(t)
	port := freePort(t)
	g.start(t, "--nbd", "127.0.0.1:"+port)
	g.cli(t, "volume", "create", "disk", filepath.Join(g.dir, "disk.img"), "--size", fmt.Sprint(size))
	g.cli(t, "volume", "create", "golden", "ram:16M")
	g.cli(t, "nbd", "export", "disk", "--allow", "all")
	g.cli(t, "nbd", "export", "golden", "--allow", "all", "--read-only")
	guest(t, 8*time.Minute, []string{"nbd.sh"}, map[string]string{"PORT": port, "SIZE": fmt.Sprint(size)}, "-x")
}
