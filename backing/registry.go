package backing

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// OpenOptions says how a store is opened.
type OpenOptions struct {
	ReadOnly bool
	// Create makes the store if it does not exist, with CreateSize bytes
	// (sparse where the engine can). It never truncates, grows or overwrites
	// what is there: an existing store is opened as it is, and one whose size
	// differs from a non-zero CreateSize is an error.
	Create     bool
	CreateSize int64
	Direct     bool // bypass the page cache (O_DIRECT) where the engine knows one
	NoAIO      bool // Direct without Linux AIO: a thread waits for each call
	Sync       bool // every write is durable when it returns (O_DSYNC)
	// Exclusive takes a lock that keeps a second gateway (or a second open by
	// this one) from writing to the same store; ErrBusy if it is taken.
	Exclusive bool
	// Stall is how long a call may wait for an engine that does not answer before
	// it fails. 0 is the engine's default, negative for ever. Engines that are
	// not reached over anything ignore it.
	Stall time.Duration
	// Logger gets what an engine has to say that no call returns. Nil: nobody.
	Logger *slog.Logger
}

// An Opener opens one engine's stores. rest is the URL after "scheme:".
type Opener func(ctx context.Context, rest string, o OpenOptions) (Store, error)

// Registry maps URL schemes to engines. The zero value is empty; it is filled
// before use and read-only afterwards, so that two gateways in one process can
// offer different engines.
type Registry struct {
	engines map[string]Opener
}

// Register adds an engine under a scheme ("file", "ram"). A scheme registered
// twice is a programming error and panics.
func (r *Registry) Register(scheme string, open Opener) {
	if r.engines == nil {
		r.engines = make(map[string]Opener)
	}
	if _, dup := r.engines[scheme]; dup {
		panic("backing: engine registered twice: " + scheme)
	}
	r.engines[scheme] = open
}

// Schemes lists the engines, sorted.
func (r *Registry) Schemes() []string {
	s := make([]string, 0, len(r.engines))
	for k := range r.engines {
		s = append(s, k)
	}
	slices.Sort(s)
	return s
}

// SplitURL cuts "scheme:rest". A string without a scheme of letters and digits
// before the first colon, or one that begins with "/" or ".", is a path and
// belongs to the engine "file".
func SplitURL(url string) (scheme, rest string) {
	head, tail, ok := strings.Cut(url, ":")
	if !ok || head == "" {
		return "file", url
	}
	for i, c := range head {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || c == '+' || c == '-')) {
			return "file", url
		}
	}
	return strings.ToLower(head), tail
}

// Open opens a store by URL. The error names the URL, the reason and, for an
// unknown scheme, the engines there are.
func (r *Registry) Open(ctx context.Context, url string, o OpenOptions) (Store, error) {
	scheme, rest := SplitURL(url)
	open, ok := r.engines[scheme]
	if !ok {
		return nil, fmt.Errorf("open %q: no engine %q (there are: %s): %w", url, scheme,
			strings.Join(r.Schemes(), ", "), ErrNotSupported)
	}
	s, err := open(ctx, rest, o)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", url, err)
	}
	return s, nil
}
