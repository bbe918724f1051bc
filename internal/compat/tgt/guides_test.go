package tgt

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestStartPortal: a portal of tgtd's own command line can be closed, and is
// there again after a restart.
func TestStartPortal(t *testing.T) {
	w := newWorld(t)
	addr := strings.TrimSuffix(strings.TrimPrefix(w.must("--op show --mode portal"), "Portal: "), ",1\n")
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, stderr, rc := w.adm("--op", "delete", "--mode", "portal", "--param", "portal="+addr); rc != 0 || !strings.Contains(stderr, "is listened on again") {
		t.Errorf("%d, %q", rc, stderr)
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("still listens")
	}
	if out := w.must("--op show --mode portal"); out != "" {
		t.Errorf("shown: %q", out)
	}
	if _, stderr, rc := w.adm("--op", "delete", "--mode", "portal", "--param", "portal="+addr); rc != 22 || !strings.HasPrefix(stderr, "tgtadm: invalid request\n") {
		t.Errorf("deleted twice: %d, %q", rc, stderr)
	}
	w.stop()
	w.start()
	if out := w.must("--op show --mode portal"); !strings.HasPrefix(out, "Portal: 127.0.0.1:") {
		t.Errorf("after the restart: %q", out)
	}
}

// TestDisc: an image as a CD.
func TestDisc(t *testing.T) {
	w := newWorld(t)
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:cd")
	w.must("--op new --mode logicalunit --tid 1 --lun 1 -Y cd -b " + w.file("disc.iso", 4<<20))
	w.must("--op new --mode logicalunit --tid 1 --lun 2 -Y cd")
	shown := w.must("--op show --mode target")
	for _, want := range []string{"LUN: 1\n            Type: cd/dvd\n", "Removable media: Yes\n", "Backing store type: mmc\n", "LUN: 2\n            Type: cd/dvd\n", "Backing store path: None\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("lacks %q:\n%s", want, shown)
		}
	}
}

// TestGuides: the lines of the guides for distributed stores are taken, and what
// has no engine is named, kept over a restart, and can be deleted.
func TestGuides(t *testing.T) {
	w := newWorld(t)
	w.must("--lld iscsi --op new --mode target --tid 1 -T iqn.2013-10.org.sheepdog-project")
	engines := w.must("--op show --mode sys")
	for i, c := range []struct{ bstype, path string }{
		{"glfs", "volume@host:disk.img"}, {"rbd", "pool/image"}, {"longhorn", "/var/run/longhorn-v.sock"},
	} {
		line := fmt.Sprintf("--lld iscsi --op new --mode logicalunit --tid 1 --lun %d --bstype %s -b %s", i+1, c.bstype, c.path)
		if strings.Contains(engines, "    "+c.bstype) {
			continue // this build has it, and would ask the store
		}
		_, stderr, rc := w.adm(strings.Fields(line)...)
		if rc != 22 || !strings.HasPrefix(stderr, "tgtadm: invalid request\n") || !strings.Contains(stderr, "is kept in target 1 and is not served: no engine") {
			t.Errorf("%s: %d, %q", c.bstype, rc, stderr)
		}
		for range 2 {
			if shown := w.must2("--op show --mode target"); !strings.Contains(shown, "Backing store type: "+c.bstype+"\n            Backing store path: "+c.path+"\n") {
				t.Errorf("not kept:\n%s", shown)
			}
			w.stop()
			w.start()
		}
		w.must(fmt.Sprintf("--op delete --mode logicalunit --tid 1 --lun %d", i+1))
	}
	if _, stderr, rc := w.adm("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "9", "-Y", "tape", "-b", w.file("tape", 1<<20)); rc != 22 || !strings.Contains(stderr, `no engine "ssc"`) {
		t.Errorf("tape: %d, %q", rc, stderr)
	}
	if shown := w.must2("--op show --mode target"); !strings.Contains(shown, "LUN: 9\n            Type: tape\n") {
		t.Errorf("listing:\n%s", shown)
	}
	w.must("--op delete --mode target --tid 1")
}
