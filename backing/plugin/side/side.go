// Package side is the plugin's side of package backing/plugin: what the main
// function of a plugin process calls. A plugin is a program blockgate-NAME that
// serves one store of one engine to the gateway that started it. It exists to
// keep a C library out of the gateway's process.
//
// To write one, implement backing.Store and whatever else of package backing the
// engine can do, as any engine does, and hand the package an Engine:
//
//	func main() {
//		os.Exit(side.Main(side.Engine{
//			Name: "gluster",
//			Load: loadLibrary, // dlopen; the error is one line that names the package
//			Open: open,        // like a backing.Opener
//		}))
//	}
//
// The rest is found in the store:
//   - backing.Selective and the capability interfaces, as everywhere. Discard,
//     WriteZeroes, WriteFUA and Extents go by NBD; Resize, Refresh, Usage,
//     CompareAndWrite and the Snapshotter by the control channel. Those not named
//     here do not reach the gateway.
//   - backing.Notifier and backing.Healther: each change is told to the gateway.
//     A store that reports backing.Failed is out of use until the operator opens
//     it again; the gateway ends the process.
//   - backing.Staller: is told when OpenOptions.Stall has changed. It must not block.
//   - Durable: see there; without it a crash of the process after writes that no
//     flush followed makes the store fail for good.
//   - Restarter: a store that cannot go on in this process.
//
// Errors wrap those of package backing (backing.ErrNoSpace, …); others reach the
// initiator as a medium or hardware error. A call that may hang must end by
// itself some time after OpenOptions.Stall: the gateway lets calls fail then and
// ends a process that still keeps some.
//
// Buffers handed to ReadAt and WriteAt are Go memory: a store that gives memory
// to a C library which keeps it beyond the call copies it (see the plugins'
// own pools).
//
// The process shares nothing with the gateway but two sockets and its standard
// error, which goes to the gateway's log line by line. It is killed when the
// gateway ends, and may be killed at any time: Close is called only when the
// volume is closed in an orderly way.
package side

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
)

// Engine is what a plugin does.
type Engine struct {
	Name string // the scheme, and the program's name after "blockgate-"
	// Load finds the C library, once, before Open, and returns its name and
	// version ("librbd 16.2.15"). Its error is one line that says what is
	// missing and which package has it. Nil: there is none.
	Load func() (library string, err error)
	// Open opens the store, once in a process's life.
	Open func(ctx context.Context, location string, o Options) (backing.Store, error)
}

// Options says how a store is opened.
type Options struct {
	backing.OpenOptions
	// Again says that a former process of this very store has died. What it
	// had of locks in the engine is stale, and is to be taken from it in a way
	// that keeps its last writes, which may still be on their way, from landing
	// later.
	Again bool
}

// Durable is implemented by stores of which what has been acknowledged is safe
// from the end of this process, flushed or not: nothing is kept back here. The
// gateway then goes on after a crash as if nothing had been.
type Durable interface{ Durable() bool }

// Restarter is implemented by stores that may come to an end which only a new
// process and a new connection to the engine can heal, as after an operation of
// which nobody knows whether it will be done. fn is called at most once, with the
// reason; the gateway kills this process, starts another and sends again what
// was not answered.
type Restarter interface{ NotifyRestart(fn func(reason string)) }

// Exit statuses of Main.
const (
	exitOK    = 0
	exitUsage = 2 // started by hand
	exitLost  = 3 // the gateway has gone, or what it sent made no sense
)

// Main serves one store and returns the exit status of the process.
func Main(e Engine) int {
	if len(os.Args) > 1 && (os.Args[1] == "--version" || os.Args[1] == "version") {
		fmt.Printf("blockgate-%s %s, plugin protocol %d\n", e.Name, version(), control.Protocol)
		if e.Load != nil {
			library, err := e.Load()
			if err != nil {
				fmt.Println(err)
				return exitUsage
			}
			fmt.Println(library)
		}
		return exitOK
	}
	ctl, err := inherited(control.FD, "control")
	if err == nil {
		var data *net.UnixConn
		if data, err = inherited(control.DataFD, "data"); err == nil {
			err = Serve(e, ctl, data)
		}
	}
	if errors.Is(err, errByHand) {
		fmt.Fprintf(os.Stderr, "blockgate-%s is started by blockgate, which finds it beside its own program or in /usr/libexec/blockgate:\n"+
			"  blockgate serve %s:…\nBy hand it only knows --version.\n", e.Name, e.Name)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitLost
	}
	return exitOK
}

var errByHand = errors.New("not started by blockgate")

// inherited is a socket that the gateway has left open for this process.
func inherited(fd uintptr, name string) (*net.UnixConn, error) {
	f := os.NewFile(fd, name)
	if f == nil {
		return nil, errByHand
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, errByHand
	}
	if u, ok := c.(*net.UnixConn); ok {
		return u, nil
	}
	c.Close()
	return nil, errByHand
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}

// closeTime is how long a store may take to be closed when it was not asked for.
const closeTime = 2 * time.Second

// Serve serves one store until it has been closed, or the gateway has gone. ctl is
// the control channel; each byte of data brings the descriptor of a connection for
// NBD. It owns both.
func Serve(e Engine, ctl, data *net.UnixConn) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &session{engine: e, conn: control.NewConn(ctl), data: data, ended: make(chan error, 1)}
	defer s.conn.Close()
	defer data.Close()
	for {
		m, err := s.conn.Receive()
		if err != nil {
			select {
			case err := <-s.ended:
				return err
			default:
			}
			s.abandon()
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("blockgate-%s: the gateway has gone", e.Name)
			}
			return fmt.Errorf("blockgate-%s: %w", e.Name, err)
		}
		s.handle(ctx, m)
	}
}

// abandon gives a store up whose gateway has gone.
func (s *session) abandon() {
	s.mu.Lock()
	store := s.store
	s.mu.Unlock()
	if store == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		store.Close()
	}()
	select {
	case <-done:
	case <-time.After(closeTime):
	}
}
