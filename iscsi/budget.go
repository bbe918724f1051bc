package iscsi

import (
	"sync"
	"sync/atomic"

	"blockgate/scsi"
)

// Budget bounds the payload memory that all sessions of a server may hold, in
// bytes. Safe for concurrent use.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu     sync.Mutex
	shares map[*scsi.Unit]int64 // bytes by enter
}

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// take reserves n bytes, or nothing and reports false. A single command may
// always run when nothing else holds memory, whatever its size.
func (b *Budget) take(n int64) bool {
	if n == 0 {
		return true
	}
	u := b.used.Add(n)
	if u > b.limit && u != n {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *Budget) give(n int64) {
	if n != 0 {
		b.used.Add(-n)
	}
}

// enter asks whether a command of a unit may keep n bytes that it has taken. While
// more than half of the budget is used a unit gets no more than another quarter:
// commands for a store that hangs must not hold it all, or nobody else's would
// run. counted says that leave is to be called when the bytes are given back.
func (b *Budget) enter(u *scsi.Unit, n int64) (ok, counted bool) {
	if b.used.Load() <= b.limit/2 || n == 0 {
		return true, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	has := b.shares[u]
	if has > 0 && has+n > b.limit/4 {
		return false, false
	}
	if b.shares == nil {
		b.shares = make(map[*scsi.Unit]int64)
	}
	b.shares[u] = has + n
	return true, true
}

// leave takes back what enter has counted.
func (b *Budget) leave(u *scsi.Unit, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shares[u] -= n; b.shares[u] == 0 {
		delete(b.shares, u)
	}
}

// minWindow is what is left of a command window at least.
const minWindow = 4

// window is how many commands a session may have outstanding that may have n
// while there is memory: half when half of the budget is used, and a quarter when
// three quarters are. Initiators then wait, instead of being answered TASK SET
// FULL for what they have sent in vain.
func (b *Budget) window(n int) int {
	used := b.used.Load()
	switch {
	case used <= b.limit/2:
		return n
	case used <= b.limit/4*3:
		return min(n, max(n/2, minWindow))
	default:
		return min(n, max(n/4, minWindow))
	}
}

// Used is the number of bytes reserved now; Limit is the bound.
func (b *Budget) Used() int64  { return b.used.Load() }
func (b *Budget) Limit() int64 { return b.limit }

// admits is enter for a command that has all that it will hold.
func (b *Budget) admits(cmd *command) bool {
	u := cmd.task.Unit()
	ok, counted := b.enter(u, cmd.held)
	if counted {
		cmd.share = u
	}
	return ok
}
