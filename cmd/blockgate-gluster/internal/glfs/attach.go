package glfs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"blockgate/cmd/blockgate-gluster/internal/gfapi"
)

// volume is what the store needs of an attached volume, and file of a file in it:
// gfapi's, or those of a test.
type volume interface {
	Open(path string, flags int) (file, error)
	Create(path string, flags int, mode uint32) (file, error)
	Volfile() ([]byte, error)
	Meta(name string) (string, error)
	Space(path string) (available int64, err error)
	// Detach does not wait for what it starts, which takes seconds.
	Detach()
}

type file interface {
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64, durable bool) (int, error)
	Datasync(ctx context.Context) error
	Discard(ctx context.Context, off, n int64) error
	Zerofill(ctx context.Context, off, n int64) error
	Stat() (syscall.Stat_t, error)
	Truncate(size int64) error
	Seek(off int64, whence int) (int64, error)
	Locked() (bool, error)
	Lock(mandatory bool) error
	Close() error
}

// native is a volume attached by the library.
type native struct{ *gfapi.FS }

func (n native) Open(path string, flags int) (file, error) {
	f, err := n.FS.Open(path, flags)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (n native) Create(path string, flags int, mode uint32) (file, error) {
	f, err := n.FS.Create(path, flags, mode)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (n native) Detach() { go n.Fini() }

// levelNames are those that the levels of glfs_set_logging have as an option.
var levelNames = [...]string{"NONE", "NONE", "NONE", "CRITICAL", "ERROR", "WARNING", "INFO", "INFO", "DEBUG", "TRACE"}

// attach reaches a server and attaches the volume. It may hang as long as the
// library lets it.
func attach(lib *gfapi.Library, l Location) (volume, error) {
	fs, err := lib.New(l.Volume)
	if err != nil {
		return nil, err
	}
	for _, s := range l.Servers {
		if s.Socket != "" {
			err = fs.Server("unix", s.Socket, 0)
		} else {
			err = fs.Server("tcp", s.Host, s.Port)
		}
		if err != nil {
			return nil, err
		}
	}
	log, level := l.LogFile, l.LogLevel
	if log == "" {
		log = "-" // the standard error
	}
	if level < 0 {
		level = DefaultLogLevel
	}
	if err := fs.Logging(log, level); err != nil {
		return nil, fmt.Errorf("log file %s: %w", l.LogFile, err)
	}
	// The volume's own idea of the level (diagnostics.client-log-level) would come
	// into force as soon as it is attached.
	if err := fs.Option(l.Volume, "log-level", levelNames[level]); err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	if l.WriteBehind != Accept {
		// Also where the volume has it off: that may change while we are attached.
		if err := fs.Option("*-write-behind", "pass-through", "true"); err != nil {
			return nil, fmt.Errorf("keep write-behind out of the way: %w", err)
		}
	}
	// What Init failed for is left as it is: to take it down is what crashes
	// some versions, and the process has no more use.
	switch err := fs.Init(); {
	case errors.Is(err, syscall.ENOENT):
		return nil, fmt.Errorf("%w: the servers know no volume %q", errNoVolume, l.Volume)
	case errors.Is(err, syscall.ENOTCONN):
		return nil, fmt.Errorf("no server answers, or all bricks are away: %w", err)
	case err != nil:
		return nil, fmt.Errorf("attach the volume (are its bricks up?): %w", err)
	}
	return native{fs}, nil
}
