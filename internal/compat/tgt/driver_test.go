package tgt

import (
	"strings"
	"testing"
)

// A driver that was stopped is ready again when tgtd starts.
func TestDriverStartsWithDaemon(t *testing.T) {
	w := newWorld(t)
	w.must("--lld iscsi --op stop --mode lld")
	if out := w.must("--op show --mode lld"); !strings.Contains(out, "iscsi: stopped\n") {
		t.Errorf("after stop:\n%s", out)
	}
	if _, stderr, rc := w.adm("--lld", "iscsi", "--op", "show", "--mode", "target"); rc != 22 || !strings.HasPrefix(stderr, "tgtadm: can't find the driver\n") {
		t.Errorf("a command for it ends with %d: %s", rc, stderr)
	}
	w.stop()
	w.start()
	if out := w.must("--op show --mode lld"); !strings.Contains(out, "iscsi: ready\n") {
		t.Errorf("after a restart:\n%s", out)
	}
	w.must("--lld iscsi --op new --mode target --tid 1 -T iqn.2024-01.com.example:one")
}
