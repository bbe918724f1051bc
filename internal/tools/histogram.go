package tools

import (
	"math/bits"
	"time"
)

// Each power of two of nanoseconds has 2^subBits buckets, so a quantile is wrong
// by less than 1/2^subBits (1.6 %). The last buckets hold everything above 73
// minutes.
const (
	subBits = 6
	buckets = (42 - subBits + 1) << subBits
)

// histogram counts durations in buckets of nearly constant relative width. The
// zero value is empty. Not safe for concurrent use.
type histogram struct {
	count  [buckets]uint64
	n      uint64
	sum    time.Duration
	lowest time.Duration
	most   time.Duration
}

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return min((shift+1)<<subBits+int(v>>shift)-1<<subBits, buckets-1)
}

// upper is the longest duration of a bucket.
func upper(b int) time.Duration {
	if b < 1<<subBits {
		return time.Duration(b)
	}
	shift := b>>subBits - 1
	low := uint64(1<<subBits+b&(1<<subBits-1)) << shift
	return time.Duration(low + 1<<shift - 1)
}

func (h *histogram) add(d time.Duration) {
	h.count[bucket(d)]++
	if h.n == 0 || d < h.lowest {
		h.lowest = d
	}
	h.n++
	h.sum += d
	h.most = max(h.most, d)
}

func (h *histogram) merge(o *histogram) {
	if o.n == 0 {
		return
	}
	if h.n == 0 || o.lowest < h.lowest {
		h.lowest = o.lowest
	}
	for i, c := range o.count {
		h.count[i] += c
	}
	h.n += o.n
	h.sum += o.sum
	h.most = max(h.most, o.most)
}

// quantile gives a duration that at least a share of q (0 to 1) does not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := max(uint64(q*float64(h.n)+0.5), 1)
	var seen uint64
	for i, c := range h.count {
		if seen += c; seen >= want {
			return min(upper(i), h.most)
		}
	}
	return h.most
}

func (h *histogram) mean() time.Duration {
	if h.n == 0 {
		return 0
	}
	return h.sum / time.Duration(h.n)
}
