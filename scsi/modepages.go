package scsi

import "math"

// modePages is what MODE SELECT can change. Every other bit of the pages is fixed.
type modePages struct {
	wce         bool // caching: write cache enabled
	dSense      bool // control: descriptor format sense data
	swp         bool // control: software write protect
	tas         bool // control: TASK ABORTED status for tasks aborted by another nexus
	tstPerNexus bool // control: TST = 001b, each nexus has a task set of its own
	locked      bool // capabilities of a disc drive: no field of its own, follows PREVENT
	lbpere      bool // read-write error recovery: thresholds are reported
	thresholds  [numThresholds]threshold
}

// Page codes.
const (
	pageRecovery      = 0x01
	pageDisconnect    = 0x02
	pageCaching       = 0x08
	pageControl       = 0x0a
	pageInformational = 0x1c
	pageCapabilities  = 0x2a
	pageAll           = 0x3f
	subpageAll        = 0xff
)

// Changeable bits.
const (
	cachingWCE    = 0x04 // byte 2
	controlTST    = 0x20 // byte 2
	controlDSense = 0x04 // byte 2
	controlSWP    = 0x08 // byte 4
	controlTAS    = 0x40 // byte 5

	recoveryLBPERE = 0x80 // byte 7
)

// modePage is one page that units with a medium have, in ascending order.
type modePage struct {
	code, sub byte
	length    int // of the whole page
	types     Types
	// metered: the unit tells what it uses, so that there can be thresholds.
	metered bool
}

// of is the page as the unit has it.
func (p modePage) of(u *Unit) modePage {
	if p.metered = u.thresholdExponent() != 0; p.metered && p.code == pageInformational && p.sub == 2 {
		p.length = thresholdOffset(numThresholds)
	}
	return p
}

// modePageList is read-only.
var modePageList = [...]modePage{
	{code: pageRecovery, length: 12, types: withMedium},
	{code: pageDisconnect, length: 16, types: TypeDisk},
	{code: pageCaching, length: 20, types: withMedium},
	{code: pageControl, length: 12, types: withMedium},
	{code: pageControl, sub: 1, length: 32, types: withMedium},
	{code: pageInformational, length: 12, types: withMedium},
	{code: pageInformational, sub: 2, length: thresholdOffset(0), types: TypeDisk},
	{code: pageCapabilities, length: 22, types: TypeCD},
}

// defaultModePages are the values after a reset.
func defaultModePages(u *Unit) modePages {
	c := u.cfg.Load()
	return modePages{wce: c.WriteCache, dSense: c.DescriptorSense, lbpere: true}
}

// everyBit has each changeable field set.
var everyBit = modePages{wce: true, dSense: true, swp: true, tas: true, tstPerNexus: true, lbpere: true,
	thresholds: [numThresholds]threshold{{true, math.MaxUint32}, {true, math.MaxUint32}}}

// render gives the page with its changeable bits from m; with mask set only
// these, as PC = 01b asks for.
func (p modePage) render(m modePages, mask bool) []byte {
	b := make([]byte, p.length)
	if p.sub != 0 {
		b[0], b[1], b[3] = p.code|0x40, p.sub, byte(p.length-4)
	} else {
		b[0], b[1] = p.code, byte(p.length-2)
	}
	bit := func(n int, v byte, on bool) {
		if on {
			b[n] |= v
		}
	}
	switch {
	case p.code == pageRecovery:
		bit(7, recoveryLBPERE, p.metered && m.lbpere)
	case p.code == pageCaching:
		bit(2, cachingWCE, m.wce)
		bit(2, 0x10, !mask) // DISC: prefetch goes across discontinuities
	case p.code == pageControl && p.sub == 0:
		bit(2, controlTST, m.tstPerNexus)
		bit(2, controlDSense, m.dSense)
		bit(4, controlSWP, m.swp)
		bit(5, controlTAS, m.tas)
		if !mask {
			b[2] |= 0x02              // GLTSD: log parameters are not saved
			b[3] = 0x10               // unrestricted reordering
			b[8], b[9] = 0xff, 0xff   // busy timeout: unlimited
			b[10], b[11] = 0x00, 0x01 // extended self-test: a second
		}
	case p.code == pageControl:
		bit(4, 0x01, !mask) // IALUAE: implicit asymmetric access
	case p.code == pageInformational && p.sub == 0:
		bit(2, 0x08, !mask) // DEXCPT: there are no exceptions to report
	case p.code == pageInformational:
		if p.metered {
			m.renderThresholds(b, mask)
		}
	case p.code == pageCapabilities && !mask:
		discCapabilities(b, m.locked)
	}
	return b
}

// adopt takes the changeable bits of a page that has been found correct.
func (m *modePages) adopt(p modePage, b []byte) {
	switch {
	case p.code == pageRecovery && p.metered:
		m.lbpere = b[7]&recoveryLBPERE != 0
	case p.code == pageInformational && p.sub == 2 && p.metered:
		m.adoptThresholds(b)
	case p.code == pageCaching:
		m.wce = b[2]&cachingWCE != 0
	case p.code == pageControl && p.sub == 0:
		m.tstPerNexus = b[2]&controlTST != 0
		m.dSense = b[2]&controlDSense != 0
		m.swp = b[4]&controlSWP != 0
		m.tas = b[5]&controlTAS != 0
	}
}

// applyModeLocked makes the unit behave as its mode pages say.
func (u *Unit) applyModeLocked() {
	u.setFlag(unitWCE, u.mode.wce)
	u.setFlag(unitDSense, u.mode.dSense)
	u.setFlag(unitSWP, u.mode.swp)
	u.setFlag(unitTAS, u.mode.tas)
	u.setFlag(unitTSTPerNexus, u.mode.tstPerNexus)
	u.armThresholdsLocked()
}
