package outside

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const guestIQN = "iqn.2025-01.io.blockgate.test:guest"

// guestHost is a daemon with one target behind two portal groups, and what a
// guest may ask to be done to it while a script runs.
type guestHost struct {
	*gatewayd
	ports [2]string   // of portal groups 1 and 2
	work  chan func() // what the guest asks for, for the test's goroutine
}

// newGuestHost starts a daemon. The target has no LUNs yet.
func newGuestHost(t *testing.T) *guestHost {
	t.Helper()
	h := &guestHost{gatewayd: newDaemon(t), work: make(chan func())}
	h.ports = [2]string{freePort(t), freePort(t)}
	h.start(t, "--listen", "127.0.0.1:"+h.ports[0])
	h.cli(t, "portal", "add", "127.0.0.1:"+h.ports[1], "--group", "2")
	h.cli(t, "target", "create", guestIQN, "--allow", "all")
	return h
}

func (h *guestHost) file(volume string) string { return filepath.Join(h.dir, volume+".img") }

// disk adds a LUN of a sparse file.
func (h *guestHost) disk(t *testing.T, volume string, lun int, size int64) {
	t.Helper()
	h.cli(t, "volume", "create", volume, h.file(volume), "--size", fmt.Sprint(size))
	h.cli(t, "lun", "add", guestIQN, volume, "--number", fmt.Sprint(lun))
}

// disc adds a LUN that is a CD drive, and gives the size of the disc and the
// SHA-256 of the file DATA.BIN on it.
func (h *guestHost) disc(t *testing.T, lun int) (size int64, sum string) {
	t.Helper()
	data := make([]byte, 3<<20+12345)
	rand.Read(data)
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "data.bin"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	iso := filepath.Join(h.dir, "disc.iso")
	ok(t, time.Minute, "genisoimage", "-quiet", "-o", iso, tree)
	h.cli(t, "volume", "create", "disc", iso, "--cd")
	h.cli(t, "lun", "add", guestIQN, "disc", "--number", fmt.Sprint(lun))
	st, err := os.Stat(iso)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(data)
	return st.Size(), hex.EncodeToString(digest[:])
}

// vars are what every script wants to know.
func (h *guestHost) vars(t *testing.T) map[string]string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { h.serve(ctx, t, c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		serving.Wait()
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return map[string]string{"CONTROL": port, "PORT": h.ports[0], "PORT2": h.ports[1], "IQN": guestIQN}
}

// serve answers one line, "VERB ARGUMENT…", with "ok …" or "failed …".
func (h *guestHost) serve(ctx context.Context, t *testing.T, c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	line, err := bufio.NewReader(c).ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) == 0 {
		return
	}
	done := make(chan string, 1)
	work := func() {
		answer, err := h.do(ctx, t, words[0], words[1:])
		if err != nil {
			answer = "failed " + err.Error()
		} else {
			answer = "ok " + answer
		}
		done <- answer
	}
	select {
	case h.work <- work:
	case <-ctx.Done():
		return
	}
	select {
	case answer := <-done:
		fmt.Fprintln(c, answer)
	case <-ctx.Done(): // the test failed over it
	}
}

func (h *guestHost) do(ctx context.Context, t *testing.T, verb string, args []string) (string, error) {
	switch {
	case verb == "du" && len(args) == 1: // VOLUME: the bytes that its file takes
		var st syscall.Stat_t
		err := syscall.Stat(h.file(args[0]), &st)
		return fmt.Sprint(st.Blocks * 512), err
	case verb == "resize" && len(args) == 2: // VOLUME SIZE
		return h.ask("volume", "resize", args[0], args[1])
	case verb == "group" && len(args) == 2: // TAG STATE
		return h.ask("target", "group", "set", guestIQN, args[0], args[1])
	case verb == "prefer" && len(args) == 1: // TAG
		return h.ask("target", "group", "set", guestIQN, args[0], "--preferred")
	case verb == "crash" && len(args) == 0: // and starts again
		h.kill()
		h.start(t, "--listen", "127.0.0.1:"+h.ports[0])
		return "", nil
	case verb == "away" && len(args) == 1: // VOLUME: a crash, and its file is not there at the start
		h.kill()
		if err := os.Rename(h.file(args[0]), h.file(args[0])+".away"); err != nil {
			return "", err
		}
		h.start(t, "--listen", "127.0.0.1:"+h.ports[0])
		v, err := h.api.Volume(ctx, args[0])
		if err == nil && v.Status.State != "failed" {
			err = fmt.Errorf("volume %s is %s", args[0], v.Status.State)
		}
		return "", err
	case verb == "back" && len(args) == 1: // VOLUME: nobody tells the daemon
		return "", os.Rename(h.file(args[0])+".away", h.file(args[0]))
	case verb == "close" && len(args) == 1: // PORT: every session by it
		return h.closeSessions(ctx, args[0])
	}
	return "", fmt.Errorf("the host knows no %s %q", verb, args)
}

// ask runs a blockgate command and gives its answer.
func (h *guestHost) ask(args ...string) (string, error) {
	r, err := runErr(time.Minute, nil, blockgate, append([]string{"--socket", h.socket}, args...)...)
	if err == nil && r.code != 0 {
		err = fmt.Errorf("blockgate %q: exit %d: %s", args, r.code, r.stderr)
	}
	return r.stdout, err
}

// closeSessions cuts what is connected to a portal, as an administrator would.
func (h *guestHost) closeSessions(ctx context.Context, port string) (string, error) {
	list, err := h.api.Sessions(ctx, guestIQN)
	if err != nil {
		return "", err
	}
	n := 0
	for _, s := range list {
		if len(s.Conns) == 0 || !strings.HasSuffix(s.Conns[0].Local, ":"+port) {
			continue
		}
		if _, err := h.ask("session", "close", strconv.FormatUint(s.ID, 10)); err != nil {
			return "", err
		}
		n++
	}
	if n == 0 {
		return "", fmt.Errorf("no session by port %s among %d", port, len(list))
	}
	return fmt.Sprint(n), nil
}
