package daemon

import (
	"context"
	"sync"
	"time"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

// A volume that does not run is tried again after firstRetry, then after twice as
// long each time, up to lastRetry.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// attempt is how far trying again has come for one volume.
type attempt struct {
	tries   int // since the daemon started or the volume last ran
	next    time.Time
	running bool
}

// pend keeps a volume that could not be started as one whose store is still to
// come, which is tried again. One that no engine could ever serve is not kept: its
// LUNs are absent.
func (d *Daemon) pend(v state.Volume, e *state.Error) {
	if e.Code == state.CodeUnknownEngine {
		return
	}
	cfg, err := d.volumeConfig(v, false)
	if err == nil {
		err = d.gw.AddPending(cfg)
	}
	if err != nil {
		d.log.Warn("volume is not tried again", "volume", v.Name, "err", err)
	}
}

// keepTrying opens the stores of pending volumes until ctx ends.
func (d *Daemon) keepTrying(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, loaders)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.failed:
		}
		due, wait := d.due(time.Now())
		for _, name := range due {
			work.Go(func() {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return
				}
				d.tryAgain(ctx, name)
				<-slots
			})
		}
		timer.Reset(wait)
	}
}

// due are the volumes to be tried now, and how long it is until the next ones.
func (d *Daemon) due(now time.Time) (names []string, wait time.Duration) {
	wait = lastRetry
	d.mu.Lock()
	none := len(d.volumes) == 0
	d.mu.Unlock()
	if none {
		return nil, wait // told when there is one
	}
	pending := map[string]bool{}
	for _, v := range d.gw.Volumes() {
		pending[v.Name] = v.Pending
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.attempts {
		if !pending[name] {
			delete(d.attempts, name)
		}
	}
	for name, is := range pending {
		if !is {
			continue
		}
		a := d.attempts[name]
		if a == nil {
			a = &attempt{next: now.Add(firstRetry)}
			d.attempts[name] = a
		}
		switch {
		case a.running:
		case !a.next.After(now):
			a.running = true
			names = append(names, name)
		default:
			wait = min(wait, a.next.Sub(now))
		}
	}
	return names, wait
}

// tryAgain opens the store of a pending volume. What is said of it in the log is
// said once.
func (d *Daemon) tryAgain(ctx context.Context, name string) {
	e := d.openPending(ctx, name)
	d.mu.Lock()
	if a := d.attempts[name]; a != nil {
		a.tries++
		a.running = false
		a.next = time.Now().Add(min(firstRetry<<min(a.tries, 16), lastRetry))
		if e == nil {
			delete(d.attempts, name)
		}
	}
	d.mu.Unlock()
	d.wakeRetries()
}

// openPending opens the store of a pending volume, and keeps account of how that
// went.
func (d *Daemon) openPending(ctx context.Context, name string) *state.Error {
	err := d.gw.OpenPending(ctx, name)
	v, exists := d.st.Snapshot().Volume(name)
	if !exists || ctx.Err() != nil {
		return nil // deleted meanwhile, or we are stopping
	}
	if err != nil {
		e, was := volumeError(v.Value, err), d.failure(d.volumes, name)
		if i, err := d.gw.Volume(name); err == nil && !i.Pending {
			return nil // an administrator was faster
		}
		d.note(d.volumes, name, e)
		if was == nil || was.Reason != e.Reason {
			d.log.Warn("volume still failed", "volume", name, "err", e.Reason, "code", e.Code)
		}
		return e
	}
	if d.failure(d.volumes, name) != nil {
		d.log.Info("volume runs again", "volume", name)
	}
	d.note(d.volumes, name, nil)
	d.checkSize(ctx, v.Value)
	return nil
}

// reopen opens the store of a volume anew that says that it has failed for good.
// What does not work at once is tried again.
func (d *Daemon) reopen(ctx context.Context, v v1.Volume) (v1.Volume, error) {
	d.log.Info("volume is opened anew", "volume", v.Name, "because", v.Status.Health.Reason)
	if err := d.gw.ReopenVolume(ctx, v.Name); err != nil {
		e := volumeError(v.Volume, err)
		if i, err := d.gw.Volume(v.Name); err == nil && i.Pending {
			d.note(d.volumes, v.Name, e)
		}
		return v, e
	}
	if s, ok := d.st.Snapshot().Volume(v.Name); ok {
		d.checkSize(ctx, s.Value)
	}
	return d.Volume(ctx, v.Name)
}

// wakeRetries makes keepTrying look again.
func (d *Daemon) wakeRetries() {
	select {
	case d.failed <- struct{}{}:
	default:
	}
}

// attempted is how far trying again has come for a volume that does not run.
func (d *Daemon) attempted(name string) (tries int, next time.Time) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if a := d.attempts[name]; a != nil {
		return a.tries, a.next
	}
	return 0, time.Time{}
}
