package glfs

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// replicaTime is how often there is a look at which replicas are up. It reads
// memory of this process.
const replicaTime = 100 * time.Millisecond

// recordTime bounds what has to be waited for once.
const recordTime = 5 * time.Second

// watchReplicas sees to it that the bricks know which of them has missed writes.
//
// A client of a replicated volume writes that down on the others when it gives its
// lock of the file back, which under load it does not: as long as one write follows
// another the lock is kept. If the client ends before, nobody knows any more which
// replica is stale, and that one may be read, or be copied over the others. So, as
// soon as one goes away, writes are held up until it is written down; later ones are
// covered by that until the replica has been healed.
func (s *Store) watchReplicas() {
	defer s.watching.Done()
	tick := time.NewTicker(replicaTime)
	defer tick.Stop()
	known := make(map[string]string)
	for {
		missing := false
		for _, name := range s.replicates {
			now, err := s.vol.Meta("graphs/active/" + name + "/private")
			if err != nil {
				continue // while the graph is being exchanged
			}
			if now = childrenUp(now); now != known[name] {
				missing = missing || strings.Contains(now, "0")
				if !missing || s.record() == nil {
					known[name] = now
				}
			}
		}
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
	}
}

// childrenUp has a digit for each replica, 1 if it is up, from what the translator
// says of itself.
func childrenUp(private string) string {
	var up strings.Builder
	for line := range strings.Lines(private) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		if !strings.HasPrefix(key, "child_up[") || !strings.HasSuffix(key, "]") {
			continue
		}
		if value == "1" {
			up.WriteByte('1')
		} else { // 0, or -1 before the first connection
			up.WriteByte('0')
		}
	}
	return up.String()
}

// record has the lock given back, by a sync while no write is under way.
func (s *Store) record() error {
	if s.opt.ReadOnly || s.failed.Load() != nil {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	ctx, cancel := context.WithTimeout(s.life, recordTime)
	defer cancel()
	err := s.callOn(ctx, s.acquire(), true, func(ctx context.Context, f file) error { return f.Datasync(ctx) })
	if err != nil && s.life.Err() == nil && (lossy(err) || !s.Durable()) {
		s.giveUp(fmt.Errorf("flush: %w", err))
	}
	return err
}
