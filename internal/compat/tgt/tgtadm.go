package tgt

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// patience is how long one tgtadm waits for the daemon. Opening a store takes
// the most; the daemon has its own, shorter limits for it.
const patience = 2 * time.Minute

// RunTgtadm carries out one tgtadm command line (without the program's name)
// and returns the exit status: 0, 22 for what is refused, 1 for an unknown mode
// or operation, 107 when the daemon does not answer. getenv is asked for
// TGT_IPC_SOCKET.
func RunTgtadm(args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	r, end := parseTgtadm(args, stdout, stderr)
	if end != nil {
		return end.status
	}
	if m := r.check(); m != "" {
		fmt.Fprintf(stderr, "tgtadm: %s\n", m)
		return exitInvalid
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dir, err := os.Getwd()
	if err != nil {
		dir = "/" // relative paths are not found then, and said so
	}
	socket := socketPath(getenv, r.port)
	res, err := sendCommand(ctx, socket, commandLine{Args: args, Dir: dir})
	if err == nil && res.Stopping {
		err = waitEnd(ctx, socket)
	}
	if err == nil {
		_, err = io.WriteString(stdout, res.Stdout)
	}
	io.WriteString(stderr, res.Stderr)
	if err != nil {
		return report(stderr, err)
	}
	return res.Status
}

// socketPath is the control socket of a control port.
func socketPath(getenv func(string) string, port int) string {
	prefix := getenv("TGT_IPC_SOCKET")
	if prefix == "" {
		prefix = "/var/run/tgtd/socket"
	}
	return prefix + "." + strconv.Itoa(port)
}

// admin carries out one checked request. Nothing is written to out before the
// last answer of the daemon has come: a failure leaves standard output empty.
type admin struct {
	*request
	ctx   context.Context
	api   apiClient
	named string // the target's name, if that is known instead of its number
	dir   string // which relative paths are taken from
	out   *bufio.Writer
	notes []string // for standard error, after the message if there is one
}

// note adds what tgt would not say.
func (a *admin) note(text string) { a.notes = append(a.notes, text) }

func (a *admin) run() error {
	if a.driver != "iscsi" && a.driver != "" && !(a.driver == "iser" && a.mode == modeDriver) {
		// The daemon is asked first: one that is away is the greater trouble.
		if _, err := a.api.System(a.ctx); err != nil {
			return err
		}
		return fail(msgNoDriver)
	}
	if a.driver == "iscsi" && a.mode != modeDriver {
		switch sys, err := a.settings(); {
		case err != nil:
			return err
		case sys.Stopped():
			return &failure{message: msgNoDriver, detail: "it is stopped: tgtadm --lld iscsi --op start --mode lld"}
		}
	}
	switch a.mode {
	case modeSystem:
		return a.system()
	case modeTarget:
		return a.target()
	case modeUnit:
		return a.unit()
	case modePortal:
		return a.portal()
	case modeDriver:
		return a.lld()
	case modeSession:
		return a.session()
	case modeConnection:
		return a.connection()
	default:
		return a.account()
	}
}

// warn passes on what the daemon has to say about a change that it made.
func (a *admin) warn(res v1.Result) {
	for _, w := range res.Warnings {
		a.note("warning: " + w)
	}
}

// retry repeats a change that was read, modified and written back, while another
// command gets in between. Each round one of those that compete succeeds; the
// pause, random and growing, keeps them from meeting again and again.
func (a *admin) retry(change func() (v1.Result, error)) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		res, err := change()
		if e := state.ErrorOf(err); e == nil || e.Code != state.CodeRevision {
			a.warn(res)
			return err
		}
		select {
		case <-time.After(rand.N(pause)):
		case <-a.ctx.Done():
			return err
		}
	}
}

// changeTarget changes the target of --tid as it is at that moment.
func (a *admin) changeTarget(name string, change func(*state.Target) error) error {
	return a.retry(func() (v1.Result, error) {
		t, err := a.api.Target(a.ctx, name)
		if err != nil {
			return v1.Result{}, err
		}
		if err := change(&t.Target); err != nil {
			return v1.Result{}, err
		}
		return a.api.Apply(a.ctx, state.Op{Verb: state.Update, Kind: state.KindTarget, IfRevision: t.Revision, Target: &t.Target})
	})
}

// changeSystem changes the gateway's settings as they are at that moment.
func (a *admin) changeSystem(change func(*state.System) error) error {
	return a.retry(func() (v1.Result, error) {
		sys, err := a.api.System(a.ctx)
		if err != nil {
			return v1.Result{}, err
		}
		if err := change(&sys.System); err != nil {
			return v1.Result{}, err
		}
		return a.api.Apply(a.ctx, state.Op{Verb: state.Update, Kind: state.KindSystem, IfRevision: sys.Revision, System: &sys.System})
	})
}

// settings are the gateway's own, which must not be changed.
func (a *admin) settings() (state.System, error) {
	if l, ok := a.api.(local); ok {
		if i, ok := l.inside(); ok {
			return i.Settings(a.ctx), nil
		}
	}
	sys, err := a.api.System(a.ctx)
	return sys.System, err
}

func found(t v1.Target, err error) (*v1.Target, error) {
	if e := state.ErrorOf(err); e != nil && e.Code == state.CodeTargetNotFound {
		return nil, fail(msgNoTarget)
	}
	return &t, err
}

// findTarget finds the target of --tid.
func (a *admin) findTarget() (*v1.Target, error) {
	if l, ok := a.api.(local); ok {
		if i, ok := l.inside(); ok {
			t, err := i.TargetByID(a.ctx, a.tid)
			return found(t, err)
		}
	}
	if a.named != "" {
		return found(a.api.Target(a.ctx, a.named))
	}
	list, err := a.api.Targets(a.ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].ID == a.tid && a.tid > 0 {
			return &list[i], nil
		}
	}
	return nil, fail(msgNoTarget)
}
