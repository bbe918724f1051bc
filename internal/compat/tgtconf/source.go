package tgtconf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Limits on what one configuration may bring together. A site with 10,000
// targets in a file each stays far below.
const (
	maxFile  = 16 << 20 // bytes of one file
	maxTotal = 64 << 20 // bytes of all files
	maxFiles = 200_000
	maxDepth = 32 // of includes, and of blocks
)

// Source is where files come from. Names are as the configuration has them:
// absolute, or relative to the working directory.
type Source interface {
	// ReadFile gives a regular file's content. It fails with fs.ErrNotExist if
	// there is none.
	ReadFile(name string) ([]byte, error)
	// Files lists, sorted, the regular files that an include names: those in a
	// directory, or those that a pattern with *, ? or [ matches. A name that is
	// neither comes back as it is, whether there is such a file or not.
	Files(name string) ([]string, error)
}

// OS is the machine's own files.
func OS() Source { return osFiles{} }

type osFiles struct{}

func (osFiles) ReadFile(name string) ([]byte, error) {
	// A file that others may replace by a pipe must not make us wait.
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() && !(st.Mode()&fs.ModeCharDevice != 0 && name == os.DevNull) {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return b, err
}

func (osFiles) Files(name string) ([]string, error) {
	regular := func(list []string) []string {
		return slices.DeleteFunc(list, func(n string) bool {
			st, err := os.Stat(n)
			return err != nil || !st.Mode().IsRegular()
		})
	}
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		entries, err := os.ReadDir(name)
		if err != nil {
			return nil, err
		}
		var list []string
		for _, e := range entries {
			list = append(list, filepath.Join(name, e.Name()))
		}
		return regular(list), nil
	} else if err == nil || !hasPattern(name) {
		return []string{name}, nil
	}
	list, err := filepath.Glob(name)
	if err != nil {
		return nil, fmt.Errorf("the pattern %q is malformed", name)
	}
	list = slices.DeleteFunc(list, func(n string) bool { return hiddenFrom(name, n) })
	return regular(list), nil
}

// FS gives the files of fsys, whose root stands for "/".
func FS(fsys fs.FS) Source { return fsFiles{fsys} }

type fsFiles struct{ fsys fs.FS }

func inFS(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}

func (f fsFiles) ReadFile(name string) ([]byte, error) {
	b, err := fs.ReadFile(f.fsys, inFS(name))
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		p.Path = name
	}
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return b, err
}

func (f fsFiles) Files(name string) ([]string, error) {
	st, err := fs.Stat(f.fsys, inFS(name))
	switch {
	case err == nil && st.IsDir():
		entries, err := fs.ReadDir(f.fsys, inFS(name))
		var list []string
		for _, e := range entries {
			if e.Type().IsRegular() {
				list = append(list, path.Join(name, e.Name()))
			}
		}
		return list, err
	case err == nil, !hasPattern(name):
		return []string{name}, nil
	}
	list, err := fs.Glob(f.fsys, inFS(name))
	if err != nil {
		return nil, fmt.Errorf("the pattern %q is malformed", name)
	}
	var out []string
	for _, n := range list {
		if st, err := fs.Stat(f.fsys, n); err != nil || !st.Mode().IsRegular() || hiddenFrom(name, n) {
			continue
		}
		if strings.HasPrefix(name, "/") {
			n = "/" + n
		}
		out = append(out, n)
	}
	return out, nil
}

func hasPattern(name string) bool { return strings.ContainsAny(name, "*?[") }

// hiddenFrom tells whether a file is hidden from a pattern as in a shell: its
// name begins with a dot and the pattern does not say so.
func hiddenFrom(pattern, name string) bool {
	return strings.HasPrefix(path.Base(name), ".") && !strings.HasPrefix(path.Base(pattern), ".")
}

func asError(at Position, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return &Error{Pos: at, Reason: fmt.Sprintf("%s: %v", p.Path, p.Err), Err: err}
	}
	return &Error{Pos: at, Reason: err.Error(), Err: err}
}
