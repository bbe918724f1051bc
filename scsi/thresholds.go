package scsi

import (
	"context"
	"encoding/binary"
	"time"

	"blockgate/backing"
)

// Logical block provisioning thresholds (SBC-3 §4.7.3.7): a unit whose store tells
// what it uses has two, which an initiator sets by the Logical Block Provisioning
// mode page (1Ch, 02h) and which raise THIN PROVISIONING SOFT THRESHOLD REACHED
// for every nexus, once each time they are crossed.
//
// The store is asked after commands that allocate or free blocks, while a
// threshold is enabled: at most once in thresholdInterval, and once more after the
// last of them. A unit that nobody writes to does not ask, so that space which
// others take away behind it is noticed with its next write. Thresholds are not
// saved: a reset or a restart, of which the initiators hear, clears them.

// threshold is one threshold descriptor.
type threshold struct {
	enabled bool
	count   uint32 // threshold sets
}

// The threshold descriptors in their order.
const (
	thresholdAvailable = iota // resource 01h, reached when the count falls to it
	thresholdUsed             // resource 02h, reached when the count rises to it
	numThresholds
)

// Values of the THRESHOLD ARMING field.
const (
	armDecreasing = 0
	armIncreasing = 1
)

// thresholdEnabled is the ENABLED bit, byte 0 of a descriptor.
const thresholdEnabled = 0x80

// thresholdInterval is the least time between two questions to the store.
const thresholdInterval = time.Second

// usageTimeout bounds one question.
const usageTimeout = 30 * time.Second

// thresholdOffset is where descriptor i is in the mode page.
func thresholdOffset(i int) int { return 16 + 8*i }

// thresholdKinds are the fields of the descriptors that cannot be changed, and
// the condition that each raises. Read-only.
var thresholdKinds = [numThresholds]struct {
	arming, resource byte
	attn             attention
}{
	{armDecreasing, resourceAvailable, attnThinAvailable},
	{armIncreasing, resourceUsed, attnThinUsed},
}

func (m *modePages) renderThresholds(page []byte, mask bool) {
	for i, t := range m.thresholds {
		b := page[thresholdOffset(i):]
		if t.enabled {
			b[0] = thresholdEnabled
		}
		if !mask {
			b[0] |= thresholdKinds[i].arming // THRESHOLD TYPE 000b: a count of sets
			b[1] = thresholdKinds[i].resource
		}
		binary.BigEndian.PutUint32(b[4:], t.count)
	}
}

func (m *modePages) adoptThresholds(page []byte) {
	for i := range m.thresholds {
		b := page[thresholdOffset(i):]
		m.thresholds[i] = threshold{b[0]&thresholdEnabled != 0, binary.BigEndian.Uint32(b[4:])}
	}
}

// thresholdWatch follows the thresholds of a unit, under its mutex.
type thresholdWatch struct {
	armed     [numThresholds]threshold // as they were when told was cleared
	told      [numThresholds]bool      // reached and reported, and not left since
	scheduled bool                     // a look at the usage is to come or under way
	asking    bool                     // the store has been asked
	again     bool                     // something has changed since it was
	last      time.Time                // of the latest question
}

// armThresholdsLocked follows the mode pages.
func (u *Unit) armThresholdsLocked() {
	on := false
	for i, t := range u.mode.thresholds {
		if t != u.meter.armed[i] {
			u.meter.armed[i], u.meter.told[i] = t, false
		}
		on = on || t.enabled
	}
	u.setFlag(unitThresholds, on && u.mode.lbpere && u.caps.usager != nil)
	u.allocationChangedLocked() // it may be beyond a new threshold already
}

// allocationChangedLocked has the thresholds looked at before long.
func (u *Unit) allocationChangedLocked() {
	w := &u.meter
	switch {
	case u.flags.Load()&unitThresholds == 0 || u.closed:
	case w.asking:
		w.again = true
	case !w.scheduled:
		w.scheduled = true
		time.AfterFunc(time.Until(w.last.Add(thresholdInterval)), u.lookAtThresholds)
	}
}

// lookAtThresholds asks the store, which may take its time, and tells the nexuses.
func (u *Unit) lookAtThresholds() {
	u.mu.Lock()
	defer u.mu.Unlock()
	w := &u.meter
	w.scheduled = false
	if u.closed || u.flags.Load()&unitThresholds == 0 {
		return
	}
	w.scheduled, w.asking, w.again, w.last = true, true, false, time.Now()
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), usageTimeout)
	usage, err := u.caps.usager.Usage(ctx)
	cancel()
	u.mu.Lock()
	w.scheduled, w.asking = false, false
	if err != nil {
		u.warn("what the store uses cannot be had: thresholds are not watched", "unit", u.name(), "err", err)
	} else if !u.closed && u.thresholdExponent() != 0 {
		u.compareThresholdsLocked(usage)
	}
	if w.again {
		u.allocationChangedLocked()
	}
	u.drainedLocked()
}

func (u *Unit) compareThresholdsLocked(usage backing.Usage) {
	available, used := u.resourceCounts(usage)
	for i, t := range u.mode.thresholds {
		reached := available <= t.count
		if i == thresholdUsed {
			reached = used >= t.count
		}
		reached = reached && t.enabled
		if reached && !u.meter.told[i] {
			u.raiseLocked(thresholdKinds[i].attn, nil)
		}
		u.meter.told[i] = reached
	}
}
