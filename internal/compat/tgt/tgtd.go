package tgt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"

	"blockgate/internal/api"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
)

// RunTgtd runs tgtd with one command line (without the program's name) and
// returns the exit status. Without -f and -D it starts itself again in the
// background and returns when that process listens on its control socket and on
// its portals, or has failed. In the foreground it returns when ctx ends, a
// signal comes, or tgtadm asks for it. getenv is asked for TGT_IPC_SOCKET,
// BLOCKGATE_STATE and what the default state directory depends on.
func RunTgtd(ctx context.Context, args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	o, end := parseTgtd(args, stdout, stderr)
	if end != nil {
		return end.status
	}
	if o.foreground {
		return serve(ctx, o, slog.NewTextHandler(stderr, o.logOptions()), stderr, getenv, func() {})
	}
	if o.logger {
		return serve(ctx, o, systemLog(o.logOptions()), stderr, getenv, func() {})
	}
	if getenv(readyEnv) == "" {
		return detach(ctx, args, stderr, getenv)
	}
	return runDetached(ctx, o, getenv)
}

func (o *tgtdOptions) logOptions() *slog.HandlerOptions {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	return &slog.HandlerOptions{Level: level}
}

// serve runs the daemon. ready is called once it answers and listens.
func serve(ctx context.Context, o *tgtdOptions, log slog.Handler, stderr io.Writer, getenv func(string) string, ready func()) int {
	socket := socketPath(getenv, o.port)
	lock, err := lockSocket(socket + ".lock")
	if err != nil {
		if errors.Is(err, errLocked) {
			// tgt's own line, which knows no program name yet.
			fmt.Fprintf(stderr, "(null): ipc_init(787) another tgtd is using %s.lock\n", socket)
		} else {
			fmt.Fprintf(stderr, "tgtd: %v\n", err)
		}
		return 1
	}
	defer lock.Close()

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	d, err := start(ctx, o, socket, slog.New(log), getenv)
	if err != nil {
		e := state.ErrorOf(err)
		fmt.Fprintf(stderr, "tgtd: %v\n", e)
		return 1
	}
	if o.pidFile != "" {
		if err := os.WriteFile(o.pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
			d.Close()
			fmt.Fprintf(stderr, "tgtd: %v\n", err)
			return 1
		}
		defer os.Remove(o.pidFile)
	}
	ready()
	if err := d.Run(ctx, signals); err != nil {
		fmt.Fprintf(stderr, "tgtd: %v\n", err)
		return 1
	}
	return 0
}

func start(ctx context.Context, o *tgtdOptions, socket string, log *slog.Logger, getenv func(string) string) (*daemon.Daemon, error) {
	dir, err := stateDir(o, getenv)
	if err != nil {
		return nil, err
	}
	kept, err := keptPortals(ctx, dir)
	if err != nil {
		return nil, err
	}
	cfg := daemon.Config{StateDir: dir, Socket: socket, Portals: choosePortals(o.portals, kept), Logger: log, Version: version(), Share: func(ln net.Listener, svc api.Service) net.Listener {
		return newControl(ln, svc, log)
	}}
	d, err := daemon.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := setDefaults(ctx, d, o); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// stateDir is where the state is: --state, BLOCKGATE_STATE or a default, with a
// directory of its own for each control port but 0.
func stateDir(o *tgtdOptions, getenv func(string) string) (string, error) {
	dir := o.state
	if dir == "" {
		dir = getenv("BLOCKGATE_STATE")
	}
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/lib/blockgate"
	case getenv("XDG_STATE_HOME") != "":
		dir = filepath.Join(getenv("XDG_STATE_HOME"), "blockgate")
	case getenv("HOME") != "":
		dir = filepath.Join(getenv("HOME"), ".local/state/blockgate")
	default:
		return "", errors.New("no state directory: name one with --state")
	}
	if o.port > 0 {
		dir = filepath.Join(dir, "tgtd."+strconv.Itoa(o.port))
	}
	return filepath.Abs(dir)
}

// keptPortals are the portals that the state has, before the daemon opens it.
func keptPortals(ctx context.Context, dir string) ([]state.Portal, error) {
	file := filepath.Join(dir, state.FileName)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	b, err := state.OpenBolt(file)
	if err != nil {
		return nil, err
	}
	s, err := state.Open(ctx, b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	var out []state.Portal
	for _, p := range s.Snapshot().Portals() {
		out = append(out, p.Value)
	}
	return out, s.Close()
}

// choosePortals are the portals of this start beside those that are kept: the
// ones given, or tgt's wildcards where no kept portal has that port already.
func choosePortals(given, kept []state.Portal) []state.Portal {
	if len(given) > 0 {
		return slices.DeleteFunc(slices.Clone(given), func(p state.Portal) bool {
			return slices.ContainsFunc(kept, func(k state.Portal) bool { return k.Address == p.Address })
		})
	}
	var out []state.Portal
	for _, addr := range wildcards() {
		if !slices.ContainsFunc(kept, func(k state.Portal) bool { return overlaps(k.Address, addr) }) {
			out = append(out, state.Portal{Address: addr, Group: 1})
		}
	}
	return out
}

// setDefaults keeps what new targets of this start get; tgtadm reads it there. The
// driver is started.
func setDefaults(ctx context.Context, d *daemon.Daemon, o *tgtdOptions) error {
	sys := d.System(ctx)
	changed := false
	for k, v := range map[string]string{"nop_interval": o.nopInterval, "nop_count": o.nopCount, state.ParamDriver: ""} {
		if sys.Params[k] == v {
			continue
		}
		changed = true
		if v == "" {
			delete(sys.Params, k)
			continue
		}
		if sys.Params == nil {
			sys.Params = map[string]string{}
		}
		sys.Params[k] = v
	}
	if !changed {
		return nil
	}
	_, err := d.Apply(ctx, []state.Op{{Verb: state.Update, Kind: state.KindSystem, System: &sys.System}})
	return err
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return b.Main.Version
	}
	return ""
}
