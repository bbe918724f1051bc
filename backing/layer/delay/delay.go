// Package delay is a layer that makes a store slower: each read, write and flush
// first waits. It stands for a slow medium in tests and tries.
package delay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/base"
)

// Config says how long calls wait before they go to the store below. A duration
// of zero or less waits not at all.
type Config struct {
	Read  time.Duration // ReadAt, Extents
	Write time.Duration // WriteAt, WriteFUA, Discard, WriteZeroes, CopyRange, CompareAndWrite
	Flush time.Duration // Flush, and WriteFUA in addition to Write
	// Jitter adds a random time in [0, Jitter) to each call that waits.
	Jitter time.Duration
}

// Store delays calls. Calls that run at the same time wait at the same time: N
// parallel reads take one delay, not N. A call whose ctx ends while it waits
// returns the ctx's error and has done nothing.
type Store struct {
	*base.Store
	c Config
}

// New puts a delay before lower. Close closes lower, without delay.
func New(lower backing.Store, c Config) *Store {
	s := &Store{c: c}
	var drop backing.Caps
	if c.Read > 0 {
		drop |= backing.CapTryRead
	}
	if c.Write > 0 {
		drop |= backing.CapTryWrite
	}
	s.Store = base.New(lower, base.Options{
		Drop:      drop,
		Before:    s.wait,
		NotPrompt: c.Read > 0 || c.Write > 0 || c.Flush > 0,
	})
	return s
}

const writes = base.Write | base.Discard | base.Zero | base.Copy | base.CompareAndWrite

func (s *Store) wait(ctx context.Context, c base.Call) error {
	var d time.Duration
	switch {
	case c.Op&(base.Read|base.Extents) != 0:
		d = max(s.c.Read, 0)
	case c.Op&writes != 0:
		d = max(s.c.Write, 0)
		if c.FUA {
			d += max(s.c.Flush, 0)
		}
	case c.Op == base.Flush:
		d = max(s.c.Flush, 0)
	}
	if d == 0 {
		return nil
	}
	if s.c.Jitter > 0 {
		d += rand.N(s.c.Jitter)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// FromParams reads read, write, flush and jitter, as time.ParseDuration does
// ("20ms"). Other keys and negative times are errors.
func FromParams(params map[string]string) (Config, error) {
	var c Config
	for k, v := range params {
		var d *time.Duration
		switch k {
		case "read":
			d = &c.Read
		case "write":
			d = &c.Write
		case "flush":
			d = &c.Flush
		case "jitter":
			d = &c.Jitter
		default:
			return Config{}, fmt.Errorf("delay: unknown parameter %q, want read, write, flush or jitter", k)
		}
		t, err := time.ParseDuration(v)
		if err != nil || t < 0 {
			return Config{}, fmt.Errorf("delay: %s=%q: want a time such as 20ms", k, v)
		}
		*d = t
	}
	if c.Jitter > 0 && c.Read == 0 && c.Write == 0 && c.Flush == 0 {
		return Config{}, fmt.Errorf("delay: jitter=%s adds to a delay, and there is none: set read, write or flush", c.Jitter)
	}
	return c, nil
}
