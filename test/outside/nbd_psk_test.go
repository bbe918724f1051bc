package outside

import (
	"encoding/hex"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/ram"
	nbdserver "blockgate/nbd/server"
)

// GnuTLS's clients with a shared key at our end of TLS.
func TestPSKClients(t *testing.T) {
	needsTools(t)
	dir := t.TempDir()
	const hexKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	key, err := hex.DecodeString(hexKey)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys.psk")
	if err := os.WriteFile(keys, []byte("alice:"+hexKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := ram.Open(t.Context(), "64M", backing.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	srv := nbdserver.New(nbdserver.Config{Directory: nbdserver.Single(nbdserver.ForStore(store, nbdserver.StoreOptions{}))})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go srv.Serve(ln, nbdserver.Access{RequireTLS: true, Upgrade: nbdserver.PSK(func(user string) ([]byte, bool) { return key, user == "alice" })})
	image := filepath.Join(dir, "image")
	p := make([]byte, 64<<20)
	for i := range p[:8<<20] {
		p[i] = byte(i * 7)
	}
	if err := os.WriteFile(image, p, 0o600); err != nil {
		t.Fatal(err)
	}
	back := filepath.Join(dir, "back")
	if err := os.WriteFile(back, make([]byte, len(p)), 0o600); err != nil {
		t.Fatal(err)
	}
	host, port, _ := net.SplitHostPort(ln.Addr().String())
	uri := "nbds://alice@" + ln.Addr().String() + "/?tls-psk-file=" + keys
	if _, err := exec.LookPath("nbdcopy"); err == nil {
		if out := ok(t, time.Minute, "nbdinfo", "--size", uri); strings.TrimSpace(out) != "67108864" {
			t.Errorf("nbdinfo: %s", out)
		}
		ok(t, time.Minute, "nbdcopy", image, uri)
		ok(t, time.Minute, "nbdcopy", uri, back)
		got, err := os.ReadFile(back)
		if err != nil || string(got) != string(p) {
			t.Errorf("copied back: content differs, or %v", err)
		}
		if r := run(t, time.Minute, "nbdinfo", strings.Replace(uri, "alice@", "bob@", 1)); r.code == 0 {
			t.Error("nbdinfo has got in as a user who is not there")
		}
	}
	ok(t, time.Minute, "qemu-img", "compare", "--object", "tls-creds-psk,id=tls0,endpoint=client,username=alice,dir="+dir,
		"--image-opts", "driver=raw,file.driver=file,file.filename="+image,
		"driver=nbd,host="+host+",port="+port+",tls-creds=tls0")
}
