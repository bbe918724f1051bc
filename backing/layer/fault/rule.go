package fault

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"blockgate/backing"
	"blockgate/backing/layer/base"
)

// Action is what happens to a call that a rule strikes.
type Action uint8

// The actions.
const (
	// Fail makes the call fail with Rule.Err; the store below is not called.
	Fail Action = iota
	// Hang holds the call until Release, or until its ctx ends. After Release
	// the call goes on, or fails if Rule.Err is set.
	Hang
	// Stick holds the call until Release whatever its ctx says, as a kernel
	// does whose disk has gone away: the caller's buffer stays in use until then.
	Stick
	// Torn writes the first Rule.Torn bytes and then fails with Rule.Err. Calls
	// that carry no data fail as with Fail.
	Torn
)

// Rule says which calls are struck, and how. The zero values of the conditions
// match everything.
type Rule struct {
	Op base.Op // the kinds of calls; 0: all
	// Off and Len are a byte range; a call matches if it touches it. Len 0 is
	// everything from Off on. Calls without a range match only Off 0, Len 0.
	Off, Len int64
	// Nth lets the first Nth-1 matching calls pass; 0 and 1 pass none.
	Nth int
	// Count is how many calls are struck before the rule wears out; 0: no end.
	Count int
	// Probability, if above 0, strikes each call that reaches it with this
	// chance (at most 1).
	Probability float64

	Action Action
	// Err is what the call fails with, wrapped; nil is EIO for Fail and Torn.
	Err error
	// Torn is how many bytes of a torn write reach the store below, at most
	// the write's length less one.
	Torn int
}

// ParseRule reads a rule of words "key=value", apart by spaces or commas:
//
//	op=write+flush   kinds: read write flush discard zero copy caw extents resize refresh any
//	range=1M+64K     offset and length in bytes, as backing.ParseSize reads them
//	nth=3 count=1 probability=0.01
//	action=fail      fail, hang, stick, torn
//	error=EIO        EIO, ENOSPC, EROFS, ETIMEDOUT, ENODEV
//	torn=512         bytes of a torn write that arrive
func ParseRule(s string) (Rule, error) {
	var r Rule
	words := strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == ',' })
	if len(words) == 0 {
		return r, fmt.Errorf("fault: empty rule")
	}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		if err := r.set(k, v); err != nil {
			return Rule{}, fmt.Errorf("fault: rule %q: %s: %w", s, w, err)
		}
	}
	return r, nil
}

func (r *Rule) set(k, v string) (err error) {
	switch k {
	case "op":
		for name := range strings.SplitSeq(v, "+") {
			op, ok := opNames[name]
			if !ok {
				return fmt.Errorf("unknown operation %q", name)
			}
			r.Op |= op
		}
	case "range":
		off, n, _ := strings.Cut(v, "+")
		if r.Off, err = backing.ParseSize(off); err == nil {
			r.Len, err = backing.ParseSize(n)
		}
		if err == nil && r.Len == 0 {
			err = fmt.Errorf("the range is empty")
		}
	case "nth":
		r.Nth, err = positive(v)
	case "count":
		r.Count, err = positive(v)
	case "torn":
		r.Torn, err = positive(v)
	case "probability":
		r.Probability, err = strconv.ParseFloat(v, 64)
		if err == nil && !(r.Probability > 0 && r.Probability <= 1) {
			err = fmt.Errorf("want a number above 0 and up to 1")
		}
	case "action":
		i := slices.Index(actionNames[:], v)
		if i < 0 {
			return fmt.Errorf("unknown action, want one of %s", strings.Join(actionNames[:], ", "))
		}
		r.Action = Action(i)
	case "error":
		e, ok := errNames[v]
		if !ok {
			return fmt.Errorf("unknown error")
		}
		r.Err = e
	default:
		return fmt.Errorf("unknown word")
	}
	return err
}

func positive(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("want a number above 0")
	}
	return n, nil
}

var actionNames = [...]string{Fail: "fail", Hang: "hang", Stick: "stick", Torn: "torn"}

var opNames = map[string]base.Op{
	"read": base.Read, "write": base.Write, "flush": base.Flush, "discard": base.Discard,
	"zero": base.Zero, "copy": base.Copy, "caw": base.CompareAndWrite, "extents": base.Extents,
	"resize": base.Resize, "refresh": base.Refresh, "any": base.AnyOp,
}

// ENOSPC and EROFS carry the errors that an engine would map them to.
var errNames = map[string]error{
	"EIO":       syscall.EIO,
	"ENOSPC":    fmt.Errorf("%w: %w", backing.ErrNoSpace, syscall.ENOSPC),
	"EROFS":     fmt.Errorf("%w: %w", backing.ErrReadOnly, syscall.EROFS),
	"ETIMEDOUT": syscall.ETIMEDOUT,
	"ENODEV":    syscall.ENODEV,
}
