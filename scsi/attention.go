package scsi

import (
	"math/bits"
	"sync/atomic"

	"blockgate/scsi/sense"
)

// attention is a kind of unit attention condition (SAM-5 §5.14). The order is
// the order in which they are reported: conditions of a reset come first, and
// take with them what they make pointless.
type attention uint8

const (
	attnPowerOn attention = iota
	attnBusReset
	attnDeviceReset
	attnNexusLoss
	attnCommandsCleared
	attnReservationsReleased
	attnReservationsPreempted
	attnRegistrationsPreempted
	attnMediumChanged
	attnCapacityChanged
	attnModeParameters
	attnALUAState
	attnInquiryData
	attnReportedLUNs
	attnThinAvailable
	attnThinUsed
	numAttentions
)

func (a attention) sense() sense.Sense {
	switch a {
	case attnPowerOn:
		return sense.PowerOn()
	case attnBusReset:
		return sense.BusReset()
	case attnDeviceReset:
		return sense.DeviceReset()
	case attnNexusLoss:
		return sense.NexusLoss()
	case attnCommandsCleared:
		return sense.CommandsCleared()
	case attnReservationsReleased:
		return sense.ReservationsReleased()
	case attnReservationsPreempted:
		return sense.ReservationsPreempted()
	case attnRegistrationsPreempted:
		return sense.RegistrationsPreempted()
	case attnMediumChanged:
		return sense.MediumChanged()
	case attnCapacityChanged:
		return sense.CapacityChanged()
	case attnModeParameters:
		return sense.ModeParametersChanged()
	case attnALUAState:
		return sense.ALUAStateChanged()
	case attnInquiryData:
		return sense.InquiryDataChanged()
	case attnReportedLUNs:
		return sense.ReportedLUNsChanged()
	case attnThinAvailable:
		return sense.ThinThresholdReached(thresholdOffset(thresholdAvailable))
	default:
		return sense.ThinThresholdReached(thresholdOffset(thresholdUsed))
	}
}

// superseded by any reset: what it would tell is told by the reset, after which
// an initiator reads everything anew.
const supersededByReset = 1<<attnCommandsCleared | 1<<attnModeParameters | 1<<attnCapacityChanged | 1<<attnMediumChanged

// attentions are the pending conditions of one I_T_L nexus: a set, so that a
// condition raised twice is reported once and the memory is fixed. Safe for
// concurrent use.
type attentions struct{ pending atomic.Uint32 }

func (q *attentions) raise(a attention) {
	for {
		old := q.pending.Load()
		next := old | 1<<a
		if a <= attnDeviceReset {
			// The latest reset replaces earlier ones, but nothing replaces power on.
			next = old &^ (supersededByReset | 1<<attnBusReset | 1<<attnDeviceReset)
			if next&(1<<attnPowerOn) == 0 {
				next |= 1 << a
			}
		}
		if q.pending.CompareAndSwap(old, next) {
			return
		}
	}
}

func (q *attentions) clear(a attention) { q.pending.And(^uint32(1 << a)) }

// any reports whether a condition is pending.
func (q *attentions) any() bool { return q.pending.Load() != 0 }

// take removes the first condition.
func (q *attentions) take() (attention, bool) {
	for {
		old := q.pending.Load()
		if old == 0 {
			return 0, false
		}
		a := attention(bits.TrailingZeros32(old))
		if q.pending.CompareAndSwap(old, old&(old-1)) {
			return a, true
		}
	}
}

// takeAttention removes and returns the first pending condition of the nexus.
// REPORTED LUNS DATA HAS CHANGED, once reported by one unit, is cleared for the
// nexus on all of them (VPD page 86h says so by LUICLR).
func (i *itl) takeAttention() (sense.Sense, bool) {
	a, ok := i.attn.take()
	if !ok {
		return sense.Sense{}, false
	}
	if a == attnReportedLUNs {
		i.nexus.clearReportedLUNs()
	}
	return a.sense(), true
}
