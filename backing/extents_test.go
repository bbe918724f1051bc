package backing_test

import (
	"slices"
	"testing"

	"blockgate/backing"
)

func TestJoinExtents(t *testing.T) {
	for _, c := range []struct {
		in   []int64 // lengths, negative: holes
		want []backing.Extent
		take int // extents until fn wants no more; 0: all
	}{
		{nil, nil, 0},
		{[]int64{512, 512, 4096}, []backing.Extent{{Off: 10, Len: 5120, Allocated: true}}, 0},
		{[]int64{-1, -2, 3, -4}, []backing.Extent{{Off: 10, Len: 3}, {Off: 13, Len: 3, Allocated: true}, {Off: 16, Len: 4}}, 0},
		{[]int64{1, -1, 1, -1}, []backing.Extent{{Off: 10, Len: 1, Allocated: true}, {Off: 11, Len: 1}}, 2},
	} {
		var got []backing.Extent
		j := backing.JoinExtents(10, func(e backing.Extent) bool { got = append(got, e); return len(got) != c.take })
		more := true
		for _, n := range c.in {
			if more = j.Add(max(n, -n), n > 0); !more {
				break
			}
		}
		if more {
			j.End()
		}
		if !slices.Equal(got, c.want) || more != (c.take == 0) {
			t.Errorf("%v: %v, more: %v", c.in, got, more)
		}
	}
}
