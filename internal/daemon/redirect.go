package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"blockgate/internal/state"
	"blockgate/iscsi"
)

const (
	// redirectPatience is how long a login waits for RedirectCallback, its place
	// among those that run included. tgt gives up after a tenth of a second.
	redirectPatience = 2 * time.Second
	// redirectsAtOnce bounds the programs that run at a time, whatever
	// initiators do.
	redirectsAtOnce = 16
	// redirectAnswer bounds what is read of a program's answer, in bytes.
	redirectAnswer = 1024
)

// redirector runs the programs that are asked where a login is to go
// (RedirectCallback). Safe for concurrent use.
type redirector struct {
	ctx    context.Context // ends those that run
	cancel context.CancelFunc
	slots  chan struct{}
}

func newRedirector() *redirector {
	r := &redirector{slots: make(chan struct{}, redirectsAtOnce)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// ask runs a target's program, as tgt does: with the words of its setting, the
// target's name and the initiator's address as arguments. No shell sees them. It
// answers "address:port:Temporary" or "address:port:Permanent"; nothing at all
// means that the login stays here.
func (r *redirector) ask(command, target string, p iscsi.Peer) (addr string, permanent bool, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, redirectPatience)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return "", false, fmt.Errorf("%s was not run: %d programs run already", state.RedirectCallback, redirectsAtOnce)
	}
	words := append(strings.Fields(command), target, p.Remote.Addr().Unmap().String())
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out := &bounded{left: redirectAnswer}
	cmd.Stdout = out
	ownGroup(cmd)
	// A grandchild that keeps the pipe does not keep the login.
	cmd.WaitDelay = 100 * time.Millisecond
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", false, fmt.Errorf("%s %s gave no answer within %v", state.RedirectCallback, words[0], redirectPatience)
	case err != nil:
		return "", false, fmt.Errorf("%s: %w", state.RedirectCallback, err)
	}
	return redirectTo(out.String())
}

// redirectTo reads a program's answer.
func redirectTo(answer string) (addr string, permanent bool, err error) {
	text := strings.TrimSpace(answer)
	if text == "" {
		return "", false, nil
	}
	bad := func(why string) (string, bool, error) {
		return "", false, fmt.Errorf("%s answered %.200q, not ADDRESS:PORT:Temporary or ADDRESS:PORT:Permanent: %s", state.RedirectCallback, text, why)
	}
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return bad("no reason")
	}
	where, reason := text[:i], text[i+1:]
	switch reason {
	case "Temporary", "Permanent":
	default:
		return bad("the reason is neither")
	}
	i = strings.LastIndexByte(where, ':')
	if i < 0 {
		return bad("no port")
	}
	host, port := where[:i], where[i+1:]
	if port == "" {
		port = defaultRedirectPort
	}
	if _, _, err := state.CanonicalParam("RedirectPort", port); err != nil {
		return bad("no port")
	}
	if _, _, err := state.CanonicalParam("RedirectAddress", host); err != nil {
		return bad("no address")
	}
	return joinRedirect(host, port), reason == "Permanent", nil
}

const defaultRedirectPort = "3260"

// joinRedirect is "address:port"; an IPv6 address gets the brackets that RFC 7143
// §13.8 asks for, if it came without.
func joinRedirect(host, port string) string {
	host = strings.Trim(host, "[]")
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.String()
	}
	return net.JoinHostPort(host, port)
}

// bounded keeps the beginning of what is written to it. More is an error, which
// ends the program that writes it.
type bounded struct {
	bytes.Buffer
	left int
}

var errAnswerTooLong = errors.New("the answer is too long")

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, errAnswerTooLong
	}
	b.left -= len(p)
	return b.Buffer.Write(p)
}
