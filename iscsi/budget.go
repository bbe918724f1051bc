package iscsi

import "blockgate/internal/budget"

// Budget bounds the payload memory that all sessions of one server, or of several
// that share it, may hold, in bytes. When it becomes scarce commands are answered
// TASK SET FULL, first those of the sessions and logical units that hold most. Safe
// for concurrent use.
type Budget = budget.Budget

// NewBudget makes a budget of limit bytes.
func NewBudget(limit int64) *Budget { return budget.New(limit) }

// share is what a command's memory counts for.
func (cmd *command) share() budget.Share {
	return budget.Share{Peer: cmd.conn.sess, Thing: cmd.task.Unit()}
}

// admits asks whether a command that has all that it will hold may keep it.
func (cmd *command) admits() (ok bool) {
	ok, cmd.counted = cmd.conn.sess.budget.Enter(cmd.share(), cmd.held)
	return ok
}

// minWindow is what is left of a command window at least.
const minWindow = 4

// windowOf is how many commands a session may have outstanding that may have n
// while there is memory: half when half of the budget is used, and a quarter when
// three quarters are. Initiators then wait, instead of being answered TASK SET
// FULL for what they have sent in vain.
func windowOf(b *Budget, n int) int {
	used := b.Used()
	switch {
	case used <= b.Limit()/2:
		return n
	case used <= b.Limit()/4*3:
		return min(n, max(n/2, minWindow))
	default:
		return min(n, max(n/4, minWindow))
	}
}
