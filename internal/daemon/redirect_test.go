package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockgate/internal/daemon"
	"blockgate/internal/state"
	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
)

// redirected starts a daemon whose target asks a shell script where logins go.
func redirected(t *testing.T, script string) *daemon.Daemon {
	t.Helper()
	d, c := start(t, "", state.Portal{Address: "127.0.0.1:0", Group: 1})
	program := filepath.Join(t.TempDir(), "where")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	must(c.CreateTarget(t.Context(), state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, ControllerLUN0: true,
		Params: map[string]string{"RedirectCallback": program + " $(id) 'a"}}))(t)
	must(c.CreateTarget(t.Context(), state.Target{Name: iqn + ":other", ACL: []state.ACLRule{{All: true}}, ControllerLUN0: true}))(t)
	return d
}

// login logs in to d's target and tells the portal at which the session is.
func login(ctx context.Context, d *daemon.Daemon, target string) (string, error) {
	at := ""
	s, err := initiator.Dial(ctx, initiator.Config{
		Addrs: []string{d.Bound()[0].Bound.String()}, TargetName: target, InitiatorName: "iqn.2025-01.io.example:me",
		Dialer: func(ctx context.Context, addr string) (net.Conn, error) {
			at = addr
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	})
	if err != nil {
		return "", err
	}
	return at, s.Close()
}

func TestRedirectCallback(t *testing.T) {
	home, c := start(t, "", state.Portal{Address: "127.0.0.1:0", Group: 1})
	must(c.CreateTarget(t.Context(), state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, ControllerLUN0: true}))(t)
	there := home.Bound()[0].Bound.String()

	asked := filepath.Join(t.TempDir(), "asked")
	d := redirected(t, fmt.Sprintf(`printf '%%s|' "$@" >%s; echo %s:Temporary`, asked, there))
	if at, err := login(t.Context(), d, iqn); err != nil || at != there {
		t.Errorf("the session is at %s (%v), not at %s", at, err, there)
	}
	if got := string(must(os.ReadFile(asked))(t)); got != "$(id)|'a|"+iqn+"|127.0.0.1|" {
		t.Errorf("the program was given %q", got)
	}
	for _, bad := range []string{
		"exit 3", "echo garbage", "echo 192.0.2.1:3260:Sometimes", "echo 192.0.2.1:Temporary", "echo 192.0.2.1:0:Temporary",
		"echo '192.0.2.1;x:3260:Temporary'", "head -c 100000 /dev/zero", "kill -9 $$",
	} {
		d := redirected(t, bad)
		_, err := login(t.Context(), d, iqn)
		if le, ok := errors.AsType[*iscsi.LoginError](err); !ok || le.Status != iscsi.LoginTargetError {
			t.Errorf("%s: the login ends with %v", bad, err)
		}
	}
	d = redirected(t, "exit 0")
	if at, err := login(t.Context(), d, iqn); err != nil || at != d.Bound()[0].Bound.String() {
		t.Errorf("no answer: the session is at %s (%v), not here", at, err)
	}
}

func TestRedirectAnswers(t *testing.T) {
	for _, c := range []struct {
		address, port, reason, sent string
		status                      iscsi.LoginStatus
	}{
		{"192.0.2.9", "3261", "Permanent", "192.0.2.9:3261", iscsi.LoginMovedPermanently},
		{"fe80::1", "", "Temporary", "[fe80::1]:3260", iscsi.LoginMovedTemporarily},
		{"[2001:db8::1]", "1", "", "[2001:db8::1]:1", iscsi.LoginMovedTemporarily},
		{"san2.example.com", "3260", "", "san2.example.com:3260", iscsi.LoginMovedTemporarily},
	} {
		d, api := start(t, "", state.Portal{Address: "127.0.0.1:0", Group: 1})
		params := map[string]string{"RedirectAddress": c.address}
		if c.port != "" {
			params["RedirectPort"] = c.port
		}
		if c.reason != "" {
			params["RedirectReason"] = c.reason
		}
		must(api.CreateTarget(t.Context(), state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, ControllerLUN0: true, Params: params}))(t)
		raw := must(initiator.DialRaw(t.Context(), d.Bound()[0].Bound.String()))(t)
		err := raw.Login(initiator.Config{TargetName: iqn, InitiatorName: "iqn.2025-01.io.example:me"})
		raw.Close()
		if le, ok := errors.AsType[*iscsi.LoginError](err); !ok || le.Status != c.status || le.TargetAddress != c.sent {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// A program that hangs holds up its own login alone, and nothing of it is left
// when the daemon ends.
func TestRedirectCallbackHangs(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	d := redirected(t, "exec >"+fifo+"; sleep 1000 & echo started; sleep 1000")
	refused := make(chan error, 1)
	go func() {
		_, err := login(context.WithoutCancel(t.Context()), d, iqn)
		refused <- err
	}()
	f := must(os.Open(fifo))(t)
	defer f.Close()
	if b := make([]byte, 8); must(io.ReadFull(f, b))(t) != 8 {
		t.Fatal("the program did not start")
	}
	if _, err := login(t.Context(), d, iqn+":other"); err != nil {
		t.Errorf("another target's login: %v", err)
	}
	select {
	case err := <-refused:
		t.Fatalf("the login has ended already: %v", err)
	default:
	}
	began := time.Now()
	d.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("the daemon took %v to end", took)
	}
	if err := <-refused; err == nil {
		t.Error("the login succeeded")
	}
	if rest := string(must(io.ReadAll(f))(t)); strings.TrimSpace(rest) != "" { // the end comes when all have gone
		t.Errorf("%q", rest)
	}
}

func TestRedirectParams(t *testing.T) {
	for _, c := range []struct {
		name, value string
		ok          bool
	}{
		{"RedirectAddress", "10.0.0.1", true}, {"RedirectAddress", "::1", true}, {"RedirectAddress", "[::1]", true},
		{"RedirectAddress", "[10.0.0.1]", false}, {"RedirectAddress", "fe80::1%eth0", false}, {"RedirectAddress", "10.0.0.256", false},
		{"RedirectAddress", "a..b", false}, {"RedirectAddress", "a_b", false}, {"RedirectAddress", "-a", false}, {"RedirectAddress", "a b", false},
		{"RedirectAddress", strings.Repeat("a", 64), false}, {"RedirectAddress", "x.example.", true},
		{"RedirectCallback", "/bin/x y z", true}, {"RedirectCallback", "x", false}, {"RedirectCallback", " ", false},
		{"RedirectCallback", "/bin/x\ny", false}, {"RedirectCallback", "/" + strings.Repeat("x", 4096), false},
	} {
		if _, _, err := state.CanonicalParam(c.name, c.value); (err == nil) != c.ok {
			t.Errorf("%s=%.50q: %v", c.name, c.value, err)
		}
	}
}
