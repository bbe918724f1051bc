// Package daemon puts the pieces together: the state says what should exist,
// the gateway runs it, the API shows and changes it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"blockgate/backing"
	"blockgate/gateway"
	"blockgate/internal/api"
	"blockgate/internal/state"
)

// DefaultDrain is how long a stopping daemon waits for initiators to log out.
const DefaultDrain = 10 * time.Second

// Config is what a daemon is started with.
type Config struct {
	// StateDir is where the state is kept; it is made if it is missing. Empty
	// keeps it in memory.
	StateDir string
	// Socket is the path of the API's unix socket; empty: no API.
	Socket string
	// Portals are listened on for this start, beside those of the state. Port 0
	// takes a free one. If one of them cannot be had the daemon does not start.
	Portals []state.Portal
	// NBDPortals are the same for NBD.
	NBDPortals []state.NBDPortal
	Engines    *backing.Registry // nil: all that are built in
	Logger     *slog.Logger      // nil: no log
	Memory     int64             // bytes of payload for all sessions; 0: default
	Version    string
	// Drain is how long a stop waits for initiators; 0: DefaultDrain.
	Drain time.Duration
	// DelayReady leaves it to the caller to call Ready, or Admit, when there is more
	// to do before clients are let in and the service manager is told. Until then
	// the portals listen, and connections wait.
	DelayReady bool
	// Share, if not nil, is given the listener of Socket and gives the one that
	// the API is served on: another protocol may have a part of its connections.
	// Closing the one it gives closes the other.
	Share func(net.Listener, api.Service) net.Listener
}

// Daemon is a running daemon. Its methods are safe for concurrent use.
type Daemon struct {
	cfg     Config
	log     *slog.Logger
	backend state.Backend
	st      *state.State
	gw      *gateway.Gateway
	started time.Time
	up      bool // Start succeeded

	http     *http.Server
	httpDone chan struct{}

	redirects *redirector

	stopOnce, endOnce sync.Once
	stopping          chan struct{} // a stop was asked for by the API
	endErr            error

	failed   chan struct{} // one element: something may have to be tried again
	stopTry  context.CancelFunc
	retrying sync.WaitGroup

	mu      sync.RWMutex
	volumes map[string]*state.Error // those that do not run, and why
	// attempts are those that are tried again.
	attempts   map[string]*attempt
	portals    map[string]*state.Error
	nbdPortals map[string]*state.Error
	runtime    map[string]bool // bound addresses of Config.Portals
	bound      []gateway.PortalInfo
	runtimeNBD map[string]state.NBDPortal // by bound address
	boundNBD   []gateway.NBDPortalInfo
}

// Start starts everything: the state, all objects that can, the portals, the
// API. An object that cannot run is kept, reported as failed, and does not stop
// the others; a portal of Config.Portals is an exception.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Drain <= 0 {
		cfg.Drain = DefaultDrain
	}
	if cfg.StateDir != "" {
		// What status shows is asked from other directories.
		if dir, err := filepath.Abs(cfg.StateDir); err == nil {
			cfg.StateDir = dir
		}
	}
	d := &Daemon{
		cfg: cfg, log: cfg.Logger, started: time.Now(), stopping: make(chan struct{}),
		redirects: newRedirector(),
		failed:    make(chan struct{}, 1), attempts: map[string]*attempt{},
		volumes: map[string]*state.Error{}, portals: map[string]*state.Error{}, nbdPortals: map[string]*state.Error{}, runtimeNBD: map[string]state.NBDPortal{}, runtime: map[string]bool{},
	}
	if err := d.start(ctx); err != nil {
		d.end(func() error { return d.closeGateway() })
		return nil, err
	}
	d.up = true
	return d, nil
}

func (d *Daemon) start(ctx context.Context) error {
	var sock net.Listener
	if d.cfg.Socket != "" {
		var err error
		if sock, err = api.Listen(d.cfg.Socket); err != nil {
			return err
		}
		defer func() {
			if sock != nil {
				sock.Close()
			}
		}()
	}
	if err := d.openState(ctx); err != nil {
		return err
	}
	var err error
	// Who finds a port open finds its disks too, also those of the caller.
	d.gw, err = gateway.New(gateway.Config{Engines: d.cfg.Engines, Logger: d.log, Memory: d.cfg.Memory, Hold: true})
	if err != nil {
		return err
	}
	d.load(ctx)
	tctx, stop := context.WithCancel(context.Background())
	d.stopTry = stop
	d.retrying.Go(func() { d.keepTrying(tctx) })
	for _, p := range d.cfg.Portals {
		info, err := d.gw.AddPortal(ctx, portalConfig(p))
		if err != nil {
			return portalError(p.Address, err)
		}
		d.mu.Lock()
		d.runtime[info.Bound.String()] = true
		d.bound = append(d.bound, info)
		d.mu.Unlock()
		d.log.Info("listening", "portal", info.Bound)
	}
	if err := d.listenNBD(ctx, d.cfg.NBDPortals); err != nil {
		return err
	}
	if sock != nil {
		d.http = api.NewServer(api.NewHandler(d, d.cfg.Version), d.log)
		d.httpDone = make(chan struct{})
		ln := sock
		if d.cfg.Share != nil {
			ln = d.cfg.Share(ln, d)
		}
		sock = nil
		go func() {
			defer close(d.httpDone)
			if err := d.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				d.log.Error("api: stopped", "err", err)
			}
		}()
		d.log.Info("api ready", "socket", d.cfg.Socket)
	}
	if !d.cfg.DelayReady {
		d.Ready()
	}
	return nil
}

// Admit lets clients in that wait at the portals; see Config.DelayReady.
func (d *Daemon) Admit() { d.gw.Admit() }

// Ready lets clients in, and tells the service manager that the daemon serves
// (sd_notify).
func (d *Daemon) Ready() {
	d.Admit()
	notify("READY=1")
}

func (d *Daemon) openState(ctx context.Context) error {
	if d.cfg.StateDir == "" {
		d.backend = state.NewMemory()
	} else {
		if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
			return &state.Error{Class: state.Refused, Code: state.CodeStateFailed, Object: "state directory " + d.cfg.StateDir,
				Reason: reason(err), Hint: "name another with --state", Err: err}
		}
		b, err := state.OpenBolt(filepath.Join(d.cfg.StateDir, state.FileName))
		if err != nil {
			return err
		}
		d.backend = b
	}
	var err error
	d.st, err = state.Open(ctx, d.backend)
	return err
}

// Bound are the portals of Config.Portals, in that order, as they are bound.
func (d *Daemon) Bound() []gateway.PortalInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.bound
}

// Gateway is what runs.
func (d *Daemon) Gateway() *gateway.Gateway { return d.gw }

// Stopping is closed when a stop was asked for through the API.
func (d *Daemon) Stopping() <-chan struct{} { return d.stopping }

// Run waits until ctx ends, a signal comes or the API asks for a stop, and then
// stops: orderly at first, at once on a second signal.
func (d *Daemon) Run(ctx context.Context, signals <-chan os.Signal) error {
	select {
	case <-ctx.Done():
	case s := <-signals:
		d.log.Info("stopping; once more to stop at once", "signal", s.String())
	case <-d.stopping:
		d.log.Info("stopping by request")
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.Drain)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-signals:
			cancel()
		case <-done:
		}
	}()
	return d.Stop(drain)
}

// Stop ends the daemon: it stops listening, asks initiators to log out, waits
// for that until ctx ends, and closes everything. The error tells what did not
// end well; the daemon has ended in any case.
func (d *Daemon) Stop(ctx context.Context) error {
	return d.end(func() error { return d.gw.Shutdown(ctx) })
}

// Close ends the daemon without waiting for initiators.
func (d *Daemon) Close() error {
	return d.end(d.closeGateway)
}

func (d *Daemon) closeGateway() error {
	if d.gw == nil {
		return nil
	}
	return d.gw.Close()
}

func (d *Daemon) end(gatewayDown func() error) error {
	d.endOnce.Do(func() {
		notify("STOPPING=1")
		var errs []error
		if d.http != nil {
			// Answers under way are finished, such as the one to the request that
			// stops us.
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			if d.http.Shutdown(ctx) != nil {
				d.http.Close()
			}
			cancel()
			<-d.httpDone
		}
		d.redirects.cancel()
		if d.stopTry != nil {
			d.stopTry()
		}
		errs = append(errs, gatewayDown())
		d.retrying.Wait()
		if d.st != nil {
			errs = append(errs, d.st.Close())
		} else if d.backend != nil {
			errs = append(errs, d.backend.Close())
		}
		if d.endErr = errors.Join(errs...); d.endErr != nil {
			d.log.Warn("stopped", "err", d.endErr)
		} else if d.up {
			d.log.Info("stopped")
		}
	})
	return d.endErr
}

// notifyPatience is how long notify waits for room in the supervisor's socket.
const notifyPatience = 100 * time.Millisecond

// notify tells systemd how we are (sd_notify), if it asked for that.
func notify(msg string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	// A supervisor that does not read must not keep us from ending.
	c.SetWriteDeadline(time.Now().Add(notifyPatience))
	fmt.Fprint(c, msg)
}
