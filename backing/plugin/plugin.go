// Package plugin opens stores whose engine is a C library. Such a library is
// kept out of this process: a program blockgate-NAME is started for each store,
// which serves it by NBD over a socket that it inherits, with a control channel
// beside it. A crash of the library is a crash of that program: it is started
// again, and what it had not answered is sent again, within OpenOptions.Stall.
//
// How a plugin is written is told by package plugin/side.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin/internal/control"
)

// Config says which plugin, where it is and how it is kept. Zero values are
// those that each field names.
type Config struct {
	// Name is the engine's, "rbd" for the program blockgate-rbd.
	Name string
	// Path is the program. Empty: the environment variable BLOCKGATE_PLUGIN_NAME
	// (in capitals) if it is set, and otherwise the first there is of
	// blockgate-NAME in the directory of the running program, in
	// /usr/libexec/blockgate, in /usr/lib/blockgate and in the absolute
	// directories of PATH, which must not be one that another user could have put
	// there.
	Path string
	// Logger gets what the program writes to its standard error, and when it is
	// started again. Nil: OpenOptions.Logger.
	Logger *slog.Logger
	// OpenTime bounds how long a program that was started again may take to open
	// the store; the first time ctx does. 0: two minutes.
	OpenTime time.Duration
	// Grace is how long the program may take to close the store before it is
	// killed. 0: ten seconds.
	Grace time.Duration
	// Ping is how often the program is asked whether it is alive; one that does
	// not answer for four times as long is killed. 0: five seconds.
	Ping time.Duration
	// Backoff is how long to wait before a program is started again that has ended
	// after a short life, of less than 64 times that; it doubles with each, up to 32
	// times that. 0: 100 ms.
	Backoff time.Duration
}

// ErrMissing: the program or the library it needs is not installed. The error's
// text says which, and what to install. It is backing.ErrNotSupported, too.
var ErrMissing = control.ErrMissing

// DefaultStall is how long calls wait for a plugin if nothing else is said.
const DefaultStall = 30 * time.Second

// Engine is the opener of an engine that the plugin blockgate-name has. Nothing
// is looked for before a store is opened.
func Engine(name string) backing.Opener {
	return func(ctx context.Context, rest string, o backing.OpenOptions) (backing.Store, error) {
		return Open(ctx, Config{Name: name}, rest, o)
	}
}

func (c *Config) complete(o *backing.OpenOptions) {
	if c.Logger == nil {
		c.Logger = o.Logger
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&c.OpenTime, 2 * time.Minute}, {&c.Grace, 10 * time.Second}, {&c.Ping, 5 * time.Second}, {&c.Backoff, 100 * time.Millisecond}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
}

// find is the path of the program.
func (c *Config) find() (string, error) {
	program := "blockgate-" + c.Name
	variable := "BLOCKGATE_PLUGIN_" + strings.ToUpper(strings.ReplaceAll(c.Name, "-", "_"))
	path := c.Path
	if path == "" {
		path = os.Getenv(variable)
	}
	if path != "" {
		if err := executable(path); err != nil {
			return "", fmt.Errorf("the plugin %s: %w", program, err)
		}
		return path, nil
	}
	var dirs []string
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Dir(self))
	}
	dirs = append(dirs, "/usr/libexec/blockgate", "/usr/lib/blockgate")
	known := len(dirs)
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue // what the directory of the moment has is nobody's choice
		}
		path := filepath.Join(dir, program)
		err := executable(path)
		if err == nil {
			err = trusted(path)
		}
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return "", fmt.Errorf("the plugin %s: %w (%s names one to use whatever it is)", program, err, variable)
		}
	}
	return "", control.Missing(fmt.Sprintf("no engine %q: the program %s is not there: install the package %s, or name it in %s (looked for in %s and PATH)",
		c.Name, program, program, variable, strings.Join(dirs[:known], ", ")))
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not a program", path)
	}
	return nil
}
