package iscsi

import "sync/atomic"

// Budget bounds the payload memory that all sessions of a server may hold, in
// bytes. Safe for concurrent use.
type Budget struct {
	limit int64
	used  atomic.Int64
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

// Used is the number of bytes reserved now; Limit is the bound.
func (b *Budget) Used() int64  { return b.used.Load() }
func (b *Budget) Limit() int64 { return b.limit }
