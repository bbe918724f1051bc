// Package fault is a layer that makes calls fail, hang or tear by rules. Tests
// and tries use it to see how everything above behaves on a bad medium.
package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/backing/layer/base"
)

// Store injects faults. All methods are safe for concurrent use.
//
// A Flush that a rule fails, and a durable write (WriteFUA) that fails for
// another reason than ErrNoSpace, leave the layer failed, as the contract of
// backing.ErrFailed wants: every later write and flush fails until the layer is
// made anew.
type Store struct {
	*base.Store
	lower backing.Store

	mu      sync.Mutex
	rng     *rand.Rand
	rules   []*armed
	next    int
	gate    chan struct{} // closed by Release, then made anew
	held    int
	changed chan struct{} // closed when held changes, then made anew
	failed  error

	failedAt time.Time
}

type armed struct {
	Rule
	id        int
	seen, hit int
}

// strike is what the rules decided for one call.
type strike struct {
	rule Rule
	gate chan struct{}
}

// New puts rules before lower; the first rule that strikes a call decides. The
// seed fixes the sequence of what rules with a probability decide. Close closes
// lower.
//
// The layer never claims to be prompt and has no TryReadAt and TryWriteAt, so
// that every read and write passes the rules.
func New(lower backing.Store, seed uint64, rules ...Rule) *Store {
	s := &Store{
		lower:   lower,
		rng:     rand.New(rand.NewPCG(seed, 0)),
		gate:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	s.Store = base.New(lower, base.Options{
		Drop:      backing.CapTryRead | backing.CapTryWrite,
		Before:    s.before,
		NotPrompt: true,
	})
	for _, r := range rules {
		s.Add(r)
	}
	return s
}

// FromParams makes a layer from strings: "seed" is a number, and every key that
// begins with "rule" holds a rule (see ParseRule); they apply in the keys' order.
func FromParams(lower backing.Store, params map[string]string) (*Store, error) {
	var seed uint64
	keys := make([]string, 0, len(params))
	for k := range params {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var rules []Rule
	for _, k := range keys {
		switch {
		case k == "seed":
			n, err := strconv.ParseUint(params[k], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("fault: seed=%q: want a number", params[k])
			}
			seed = n
		case strings.HasPrefix(k, "rule"):
			r, err := ParseRule(params[k])
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		default:
			return nil, fmt.Errorf("fault: unknown parameter %q, want seed or rule…", k)
		}
	}
	return New(lower, seed, rules...), nil
}

// Health is Failed once a flush has failed here, and else as below.
func (s *Store) Health() backing.Health {
	s.mu.Lock()
	failed, at := s.failed, s.failedAt
	s.mu.Unlock()
	if failed != nil {
		return backing.Health{State: backing.Failed, Since: at, Reason: "injected: " + failed.Error()}
	}
	return s.Store.Health()
}

// Add appends a rule and returns its number for Remove.
func (s *Store) Add(r Rule) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	s.rules = append(s.rules, &armed{Rule: r, id: s.next})
	return s.next
}

// Remove takes a rule away; calls it holds stay held.
func (s *Store) Remove(id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = slices.DeleteFunc(s.rules, func(a *armed) bool { return a.id == id })
}

// Clear takes all rules away and lets every held call go.
func (s *Store) Clear() {
	s.mu.Lock()
	s.rules = nil
	s.mu.Unlock()
	s.Release()
}

// Release lets every call go that is held now. Calls struck later are held again.
func (s *Store) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.gate)
	s.gate = make(chan struct{})
}

// Held is the number of calls that are held now.
func (s *Store) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// WaitHeld waits until at least n calls are held, or ctx ends.
func (s *Store) WaitHeld(ctx context.Context, n int) error {
	for {
		s.mu.Lock()
		held, changed := s.held, s.changed
		s.mu.Unlock()
		if held >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// WriteAt writes through the rules.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	err := s.Store.WriteAt(ctx, p, off)
	return s.tear(ctx, err, p, off)
}

// WriteFUA writes through the rules.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	err := s.Store.WriteFUA(ctx, p, off)
	return s.tear(ctx, err, p, off)
}

// tornError is how a torn write comes out of before, which has no data.
type tornError struct {
	keep int
	err  error
}

func (e *tornError) Error() string { return "torn write: " + e.err.Error() }
func (e *tornError) Unwrap() error { return e.err }

// tear writes what is to arrive of a write that before has struck. The error
// must be before's own: one from a fault layer below has been torn there.
func (s *Store) tear(ctx context.Context, err error, p []byte, off int64) error {
	e, ok := err.(*tornError)
	if !ok {
		return err
	}
	if keep := min(e.keep, len(p)-1); keep > 0 {
		if err := s.lower.WriteAt(ctx, p[:keep], off); err != nil {
			return fmt.Errorf("torn write at %d: %w", off, err)
		}
	}
	return fmt.Errorf("torn write at %d: %w", off, e.err)
}

const modifies = base.Write | base.Flush | base.Discard | base.Zero | base.Copy | base.CompareAndWrite

func (s *Store) before(ctx context.Context, c base.Call) error {
	hit, struck, err := s.match(c)
	if err != nil || !struck {
		return err
	}
	r := hit.rule
	if r.Action == Hang || r.Action == Stick {
		if err := s.hold(ctx, hit); err != nil {
			return err
		}
		if r.Err == nil {
			return nil
		}
	}
	if r.Err == nil {
		r.Err = syscall.EIO
	}
	if r.Action == Torn && c.Op == base.Write {
		err = &tornError{keep: r.Torn, err: r.Err}
	} else {
		err = fmt.Errorf("injected at %d: %w", c.Off, r.Err)
	}
	if c.Op == base.Flush || c.FUA && !errors.Is(r.Err, backing.ErrNoSpace) {
		s.mu.Lock()
		if s.failed == nil {
			s.failed, s.failedAt = r.Err, time.Now()
		}
		s.mu.Unlock()
		if c.Op == base.Flush {
			err = fmt.Errorf("%w: injected: %w", backing.ErrFailed, r.Err)
		}
	}
	return err
}

// match finds the rule that strikes the call and counts it.
func (s *Store) match(c base.Call) (strike, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil && c.Op&modifies != 0 {
		return strike{}, false, fmt.Errorf("%w: %w", backing.ErrFailed, s.failed)
	}
	for _, a := range s.rules {
		if !a.matches(c) {
			continue
		}
		a.seen++
		if a.seen < a.Nth || a.Count > 0 && a.hit >= a.Count {
			continue
		}
		if a.Probability > 0 && s.rng.Float64() >= a.Probability {
			continue
		}
		a.hit++
		if a.Action == Hang || a.Action == Stick {
			s.held++
			s.notify()
		}
		return strike{a.Rule, s.gate}, true, nil
	}
	return strike{}, false, nil
}

func (a *armed) matches(c base.Call) bool {
	if a.Op != 0 && a.Op&c.Op == 0 {
		return false
	}
	if a.Off == 0 && a.Len == 0 {
		return true
	}
	if c.Op&(base.Flush|base.Refresh|base.Resize) != 0 {
		return false
	}
	return c.Off+c.Len > a.Off && (a.Len == 0 || c.Off-a.Off < a.Len)
}

// hold waits for Release and, for Hang, for the end of ctx.
func (s *Store) hold(ctx context.Context, h strike) error {
	defer func() {
		s.mu.Lock()
		s.held--
		s.notify()
		s.mu.Unlock()
	}()
	if h.rule.Action == Stick {
		<-h.gate
		return nil
	}
	select {
	case <-h.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// notify wakes WaitHeld; s.mu is held.
func (s *Store) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}
