package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"blockgate/internal/state"
)

// Listen makes the unix socket at path, for its owner alone (mode 0600). The
// socket that a dead daemon left behind is replaced; one that answers is not.
// Missing directories are made with mode 0755.
func Listen(path string) (net.Listener, error) {
	fail := func(class state.Class, reason, hint string, err error) error {
		return &state.Error{Class: class, Code: state.CodeListenFailed, Object: "socket " + path, Reason: reason, Hint: hint, Err: err}
	}
	if len(path) > 107 { // sun_path with its final zero
		return nil, fail(state.Usage, fmt.Sprintf("the path has %d bytes, a unix socket's has at most 107", len(path)), "name a shorter one with --socket", nil)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fail(state.Refused, "cannot make its directory: "+reason(err), "name another with --socket", err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode()&fs.ModeSocket == 0 {
			return nil, fail(state.Conflict, "is there and not a socket", "name another with --socket", nil)
		}
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fail(state.Conflict, "another daemon answers on it", "stop that one, or name another with --socket", nil)
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fail(state.Refused, "cannot be replaced: "+reason(err), "name another with --socket", err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fail(state.Refused, "cannot be replaced: "+reason(err), "name another with --socket", err)
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fail(state.Refused, reason(err), "name another with --socket", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fail(state.Refused, reason(err), "", err)
	}
	return ln, nil
}

func reason(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	return err.Error()
}

type peerKey struct{}

// NewServer makes the HTTP server for a listener of Listen. Only root and the
// user the daemon runs as are heard.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           onlyOwner(h, log),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if uid, ok := peerUID(c); ok {
				return context.WithValue(ctx, peerKey{}, uid)
			}
			return ctx
		},
	}
}

func onlyOwner(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, ok := r.Context().Value(peerKey{}).(uint32)
		if !ok || uid != 0 && int(uid) != os.Geteuid() {
			log.Warn("api: refused", "uid", uid, "known", ok)
			p := asProblem(&state.Error{Class: state.Refused, Code: state.CodeForbidden, Object: "request",
				Reason: "only root and the daemon's own user may use it"}).(*problem)
			w.Header().Set("Content-Type", p.ContentType(""))
			w.WriteHeader(p.Status)
			json.NewEncoder(w).Encode(p)
			return
		}
		h.ServeHTTP(w, r)
	})
}
