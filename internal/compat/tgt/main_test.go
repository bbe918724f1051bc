package tgt

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test binary be the daemon that tgtd starts in the
// background: it calls itself by that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "tgtd" {
		os.Exit(RunTgtd(context.Background(), os.Args[1:], os.Stdout, os.Stderr, os.Getenv))
	}
	goleak.VerifyTestMain(m)
}

// world is a daemon with a directory of its own.
type world struct {
	t    *testing.T
	dir  string
	args []string // of tgtd
	stop func() int
}

func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), args: args}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) getenv(k string) string {
	switch k {
	case "TGT_IPC_SOCKET":
		return filepath.Join(w.dir, "socket")
	case "BLOCKGATE_STATE":
		return filepath.Join(w.dir, "state")
	}
	return ""
}

// start runs tgtd in the foreground, in this process, until stop.
func (w *world) start() {
	w.t.Helper()
	o, end := parseTgtd(w.args, w.t.Output(), w.t.Output())
	if end != nil {
		w.t.Fatalf("tgtd %q ends with %d", w.args, end.status)
	}
	if len(o.portals) == 0 {
		if e := o.iscsi("portal=127.0.0.1:0"); e != nil {
			w.t.Fatal(e)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan int, 1)
	var stderr bytes.Buffer
	go func() {
		ended <- serve(ctx, o, slog.DiscardHandler, &stderr, w.getenv, func() { close(ready) })
	}()
	select {
	case <-ready:
	case rc := <-ended:
		cancel()
		w.t.Fatalf("tgtd ended with %d: %s", rc, &stderr)
	}
	w.stop = func() int {
		cancel()
		rc := <-ended
		ended <- rc
		return rc
	}
}

// adm runs tgtadm.
func (w *world) adm(args ...string) (stdout, stderr string, rc int) {
	var out, err bytes.Buffer
	rc = RunTgtadm(args, &out, &err, w.getenv)
	return out.String(), err.String(), rc
}

// must runs a tgtadm line that has to succeed without a word on stderr.
func (w *world) must(line string) string {
	w.t.Helper()
	out, stderr, rc := w.adm(strings.Fields(line)...)
	if rc != 0 || stderr != "" {
		w.t.Fatalf("tgtadm %s: status %d, %s", line, rc, stderr)
	}
	return out
}

// file makes a sparse file in the world's directory.
func (w *world) file(name string, size int64) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	f, err := os.Create(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		w.t.Fatal(err)
	}
	return path
}
