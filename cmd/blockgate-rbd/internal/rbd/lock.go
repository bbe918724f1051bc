package rbd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/cmd/blockgate-rbd/internal/ceph"
)

// markName is the attribute of the image's header object where the owner of the
// lock says which process it is, so that the next one on the same host knows when it
// has died. It is no metadata of the image, as a change of those waits for every
// client that watches the image, also for one that has died.
const markName = "blockgate.owner"

// watchTime is after what time an OSD forgets a client that has gone
// (osd_client_watch_timeout is 30 s), and some.
const watchTime = 40 * time.Second

// mark says who took the exclusive lock.
type mark struct {
	Owner string `json:"owner"` // the lock's owner as librbd names it: the client's address
	Host  string `json:"host"`
	Boot  string `json:"boot"`  // of the host's kernel
	Space string `json:"space"` // the name space of process numbers
	PID   int    `json:"pid"`
	Start string `json:"start"` // of the process, so that its number may be used again
}

func ourMark() mark {
	m := mark{PID: os.Getpid(), Start: startOf(os.Getpid())}
	m.Host, _ = os.Hostname()
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	m.Boot = strings.TrimSpace(string(b))
	m.Space, _ = os.Readlink("/proc/self/ns/pid")
	return m
}

// startOf is when a process began, as the kernel counts it; "" if it is not there
// any more.
func startOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The name in parentheses may hold anything; field 3 follows it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// dead reports whether the process that left the mark is known to have ended:
// only one of the same running kernel and space of process numbers can be known.
func (m *mark) dead(us mark) bool {
	return m.Boot != "" && m.Boot == us.Boot && m.Space == us.Space && m.PID > 0 && startOf(m.PID) != m.Start
}

// lock takes the managed exclusive lock: other clients' writes and requests for
// it are refused from then on. A lock whose owner is gone is broken, which has the
// cluster refuse whatever that owner may still send; so is a live one, if told.
func (s *Store) lock(again bool) error {
	us := ourMark()
	deadline := time.Now()
	if again {
		deadline = deadline.Add(watchTime)
	}
	for {
		owner, err := s.lockOwner()
		if err != nil {
			return s.wrap("looking for the lock", err)
		}
		if owner == "" {
			break
		}
		m := s.readMark()
		known := m.Owner == owner
		why := ""
		switch {
		case known && m.dead(us):
			why = fmt.Sprintf("process %d of this host, which has ended", m.PID)
		case !s.watches(owner):
			why = "which the cluster does not hear from any more"
		case s.location.Steal && !again:
			why = "as ?steal=yes says"
		case !known && time.Now().Before(deadline):
			// Most likely our former process, killed before it left its mark.
			time.Sleep(time.Second)
			continue
		default:
			return s.busy(owner, m)
		}
		log.Printf("rbd: %s: breaking the lock of %s, %s", s.spec, owner, why)
		if err := ceph.Errno(s.lib.LockBreak(s.image, ceph.LockExclusive, owner)); err != nil && err != syscall.ENOENT {
			return s.wrap("breaking the lock", err)
		}
		break
	}
	if err := ceph.Errno(s.lib.LockAcquire(s.image, ceph.LockExclusive)); err != nil {
		if err == syscall.EROFS || err == syscall.EBUSY || err == syscall.EAGAIN {
			owner, _ := s.lockOwner()
			return s.busy(owner, s.readMark())
		}
		return s.wrap("taking the lock", err)
	}
	s.owner = true
	owner, err := s.lockOwner()
	if err != nil {
		return s.wrap("looking for the lock", err)
	}
	us.Owner = owner
	b, err := json.Marshal(us)
	if err != nil {
		return err
	}
	header, err := s.header()
	if err != nil {
		return err
	}
	return s.wrap("leaving a mark", ceph.Errno(s.lib.SetXattr(s.io, header, markName, &b[0], uintptr(len(b)))))
}

func (s *Store) busy(owner string, m mark) error {
	who := owner
	if m.Owner == owner && owner != "" {
		who = fmt.Sprintf("%s: blockgate on host %s, process %d", owner, m.Host, m.PID)
	}
	return fmt.Errorf("rbd: %s is locked by another client (%s); stop it, or take the lock from it with ?steal=yes: %w",
		s.spec, who, backing.ErrBusy)
}

// lockOwner is the address of the client that has the exclusive lock, "" if none.
func (s *Store) lockOwner() (string, error) {
	var mode int32
	owners := make([]uintptr, 8)
	n := uintptr(len(owners))
	err := ceph.Errno(s.lib.LockGetOwners(s.image, &mode, &owners[0], &n))
	switch {
	case err == syscall.ENOENT:
		return "", nil
	case err != nil:
		return "", err
	case n == 0 || n > uintptr(len(owners)):
		return "", nil
	}
	owner := ceph.GoString(owners[0])
	s.lib.LockOwnersEnd(&owners[0], n)
	return owner, nil
}

// watches reports whether the client at an address has the image open, as far as
// the cluster knows.
func (s *Store) watches(owner string) bool {
	w := make([]ceph.Watcher, 64)
	n := uintptr(len(w))
	err := ceph.Errno(s.lib.WatchersList(s.image, &w[0], &n))
	for err == syscall.ERANGE && n <= 1<<16 {
		w = make([]ceph.Watcher, n)
		err = ceph.Errno(s.lib.WatchersList(s.image, &w[0], &n))
	}
	if err != nil {
		return true // nobody is taken for dead without evidence
	}
	defer s.lib.WatchersEnd(&w[0], n)
	for _, x := range w[:min(n, uintptr(len(w)))] {
		if bare(ceph.GoString(x.Addr)) == bare(owner) {
			return true
		}
	}
	return false
}

// bare is an address without the protocol that some versions write before it.
func bare(addr string) string {
	if i := strings.Index(addr, ":"); i == 2 && addr[0] == 'v' {
		return addr[3:]
	}
	return addr
}

// header is the object that the image's header is in.
func (s *Store) header() (string, error) {
	id := make([]byte, 128)
	if err := ceph.Errno(s.lib.GetID(s.image, &id[0], uintptr(len(id)))); err != nil {
		return "", s.wrap("reading the number", err)
	}
	text, _, _ := bytes.Cut(id, []byte{0})
	return "rbd_header." + string(text), nil
}

func (s *Store) readMark() mark {
	header, err := s.header()
	if err != nil {
		return mark{}
	}
	b := make([]byte, 4096)
	n := s.lib.GetXattr(s.io, header, markName, &b[0], uintptr(len(b)))
	var m mark
	if n < 0 || int(n) > len(b) || json.Unmarshal(b[:n], &m) != nil {
		return mark{}
	}
	return m
}

// fate is called with each error of the library's. It finds out what means the
// end of this client.
func (s *Store) fate(err error, write bool) error {
	var no syscall.Errno
	if err == nil || !errors.As(err, &no) {
		return err
	}
	switch {
	case no == syscall.ESHUTDOWN:
		s.lose("fenced", true)
		return fmt.Errorf("rbd: %s: fenced by another client: %w", s.spec, backing.ErrFailed)
	case no == syscall.EROFS && write && s.owner:
		s.lose("the exclusive lock was taken away", true)
		return fmt.Errorf("rbd: %s: the exclusive lock was taken away: %w", s.spec, backing.ErrFailed)
	case no == syscall.ETIMEDOUT:
		// Nobody knows whether it will still be done. Only a new client that has
		// this one blocklisted can say that it will not.
		if s.askRestart(fmt.Sprintf("rbd: %s: the OSDs do not answer", s.spec)) {
			select {
			case <-time.After(restartTime):
			case <-s.quit:
			}
		}
	}
	return err
}

// restartTime is how long a call of unknown outcome waits for the end of the
// process.
const restartTime = time.Minute

func (s *Store) askRestart(reason string) bool {
	s.mu.Lock()
	fn := s.restart
	first := !s.asked
	s.asked = s.asked || fn != nil
	s.mu.Unlock()
	if fn == nil {
		return false
	}
	if first {
		fn(reason)
	}
	return true
}

// lose puts the store out of use, once, and finds out who is to be named for it.
func (s *Store) lose(why string, ask bool) {
	s.mu.Lock()
	first := s.lost == ""
	if first {
		s.lost = why
	}
	s.mu.Unlock()
	if !first {
		return
	}
	go func() {
		reason := fmt.Sprintf("rbd: %s: %s", s.spec, why)
		if who := s.successor(); ask && who != "" {
			reason += " by " + who
		}
		s.setHealth(backing.Failed, reason+"; open the volume again to take it back")
	}()
}

// successorTime bounds the search for who has fenced this client off.
const successorTime = 5 * time.Second

// successor is who has the lock now, asked by another client of the cluster; "" if
// that cannot be found out.
func (s *Store) successor() string {
	found := make(chan string, 1)
	go func() {
		other := &Store{lib: s.lib, location: s.location, spec: s.spec, readOnly: true, quit: make(chan struct{})}
		var err error
		if other.cluster, other.io, err = connect(s.lib, &s.location, 0); err != nil {
			found <- ""
			return
		}
		defer other.release()
		// One that is opened read-only is not told the owner.
		if s.lib.Open(other.io, s.location.Image, &other.image, nil) < 0 {
			other.image = 0
			found <- ""
			return
		}
		owner, err := other.lockOwner()
		m := other.readMark()
		if us := ourMark(); m.Owner == owner && m.Boot == us.Boot && m.Space == us.Space && m.PID == us.PID {
			owner = "" // nobody has taken it: an administrator has blocklisted us
		} else if err == nil && owner != "" && m.Owner == owner {
			owner = fmt.Sprintf("%s (blockgate on host %s, process %d)", owner, m.Host, m.PID)
		}
		found <- owner
	}()
	select {
	case who := <-found:
		return who
	case <-time.After(successorTime):
		return ""
	}
}
