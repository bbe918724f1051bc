package tgt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// As tgt does: the end of a file that is no whole block is left out, also after a
// restart and when the file has grown.
func TestPartialBlock(t *testing.T) {
	w := newWorld(t)
	file := w.file("odd.img", 1<<20+4096+512+1)
	w.must("--lld iscsi --op new --mode target --tid 1 -T iqn.2024-01.com.example:one")
	w.must("--lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b " + file)
	w.must("--lld iscsi --op new --mode logicalunit --tid 1 --lun 2 -y 4096 -b " + w.file("odd4k.img", 3<<20-1))
	shows := func(when string, want ...string) {
		t.Helper()
		out := w.must("--lld iscsi --op show --mode target")
		for _, s := range want {
			if !strings.Contains(out, s) {
				t.Errorf("%s: no %q in\n%s", when, s, out)
			}
		}
	}
	shows("made", "Size: 1 MB, Block size: 512", "Size: 3 MB, Block size: 4096")
	if rc := w.stop(); rc != 0 {
		t.Fatalf("tgtd ended with %d", rc)
	}
	w.start()
	shows("after a restart", "Size: 1 MB, Block size: 512", "Size: 3 MB, Block size: 4096")
	if err := os.Truncate(filepath.Join(w.dir, "odd4k.img"), 9<<20+1); err != nil {
		t.Fatal(err)
	}
	w.must("--lld iscsi --op update --mode logicalunit --tid 1 --lun 2 -P disksize=auto")
	w.stop()
	w.start()
	shows("grown", "Size: 9 MB, Block size: 4096")
}
