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
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/conndrive"
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
	ln, err := conndrive.ListenPrivate(context.Background(), path)
	if err != nil {
		return nil, fail(state.Refused, reason(err), "name another with --socket", err)
	}
	return ln, nil
}

func reason(err error) string {
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return no.Error()
	}
	return err.Error()
}

// peer is the process at the other end of a connection.
type peer struct {
	uid  uint32
	pid  int
	comm string
}

type (
	peerKey   struct{}
	originKey struct{}
)

// maxCommand bounds what is kept of what a client says that it does.
const maxCommand = 512

func (p peer) origin(r *http.Request) state.Origin {
	cmd := r.Header.Get(v1.CommandHeader)
	if s, err := url.PathUnescape(cmd); err == nil {
		cmd = s
	}
	if cmd == "" {
		cmd = r.Method + " " + r.URL.Path
	}
	cmd = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == utf8.RuneError {
			return '?'
		}
		return c
	}, cmd[:min(len(cmd), maxCommand)])
	return state.Origin{UID: int(p.uid), PID: p.pid, Comm: p.comm, Command: cmd}
}

// WithOrigin says who asks for the changes that are made with the context it
// gives, for requests that come by another way than this API.
func WithOrigin(ctx context.Context, o state.Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf is who made the request that ctx belongs to.
func OriginOf(ctx context.Context) (state.Origin, bool) {
	o, ok := ctx.Value(originKey{}).(state.Origin)
	return o, ok
}

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
			if p, ok := peerOf(c); ok {
				return context.WithValue(ctx, peerKey{}, p)
			}
			return ctx
		},
	}
}

func onlyOwner(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := r.Context().Value(peerKey{}).(peer)
		if !ok || who.uid != 0 && int(who.uid) != os.Geteuid() {
			log.Warn("api: refused", "uid", who.uid, "known", ok)
			p := asProblem(&state.Error{Class: state.Refused, Code: state.CodeForbidden, Object: "request",
				Reason: "only root and the daemon's own user may use it"}).(*problem)
			w.Header().Set("Content-Type", p.ContentType(""))
			w.WriteHeader(p.Status)
			json.NewEncoder(w).Encode(p)
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), originKey{}, who.origin(r))))
	})
}
