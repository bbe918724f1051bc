package scsi

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// DeviceConfig is what a Device is made of.
type DeviceConfig struct {
	Name   string // the target's iSCSI name; designates the device in VPD page 83h
	Logger *slog.Logger
	// ManageTimeout is the time after which task management answers although the
	// store still holds aborted tasks; 0 means 5 s.
	ManageTimeout time.Duration
}

// Device is a SCSI target device: numbered logical units and the I_T nexuses
// that reach them (SAM-5 §4.6). Safe for concurrent use.
type Device struct {
	name    string
	log     *slog.Logger
	timeout time.Duration

	absent *Unit // answers for LUNs that do not exist
	wlun   *Unit // the REPORT LUNS well known logical unit
	groups atomic.Pointer[PortGroups]

	mu      sync.Mutex // before any Unit.mu
	units   map[uint64]*Unit
	nexuses map[*Nexus]struct{}
}

// NewDevice makes a device without logical units.
func NewDevice(cfg DeviceConfig) *Device {
	d := &Device{
		name: cfg.Name, log: cfg.Logger, timeout: cfg.ManageTimeout,
		units: make(map[uint64]*Unit), nexuses: make(map[*Nexus]struct{}),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.timeout <= 0 {
		d.timeout = 5 * time.Second
	}
	d.absent = newInternalUnit(TypeWellKnown, d.log)
	d.absent.absent = true
	d.wlun = newInternalUnit(TypeWellKnown, d.log)
	return d
}

// Name is the target's name.
func (d *Device) Name() string { return d.name }

// SetUnit puts a unit at a LUN, in place of the one that was there, and tells
// every nexus that sees that LUN by REPORTED LUNS DATA HAS CHANGED. A unit may
// have several LUNs, also in several devices. Tasks that run on a replaced unit
// go on to their end.
func (d *Device) SetUnit(lun uint64, u *Unit) error {
	if lun > MaxLUN {
		return fmt.Errorf("scsi: LUN %d is above %d", lun, MaxLUN)
	}
	if u == nil {
		return fmt.Errorf("scsi: LUN %d: no unit", lun)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.units[lun] == u {
		return nil
	}
	d.units[lun] = u
	d.inventoryChangedLocked(lun)
	return nil
}

// RemoveUnit takes the unit away from a LUN; what is admitted already runs to its
// end (Unit.Close waits for it). It reports an error if nothing is there.
func (d *Device) RemoveUnit(lun uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.units[lun]; !ok {
		return fmt.Errorf("scsi: %s has no LUN %d", d.name, lun)
	}
	delete(d.units, lun)
	d.inventoryChangedLocked(lun)
	return nil
}

// Units lists the logical units by number. The map is the caller's.
func (d *Device) Units() map[uint64]*Unit {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := make(map[uint64]*Unit, len(d.units))
	for n, u := range d.units {
		m[n] = u
	}
	return m
}

// Nexuses counts the I_T nexuses.
func (d *Device) Nexuses() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.nexuses)
}

func (d *Device) inventoryChangedLocked(lun uint64) {
	for n := range d.nexuses {
		if n.cfg.LUNs == nil || n.cfg.LUNs(lun) {
			n.updateLocked(lun, d.units[lun])
		}
	}
}

// lunMap is what a nexus sees, never changed once it is published.
type lunMap struct {
	low  []*itl // below 256, by number
	high map[uint64]*itl
}

func (m *lunMap) find(n uint64) *itl {
	if n < uint64(len(m.low)) {
		return m.low[n]
	}
	return m.high[n] // nil for a nil map
}

// all calls fn for each unit, in no order.
func (m *lunMap) all(fn func(*itl)) {
	for _, i := range m.low {
		if i != nil {
			fn(i)
		}
	}
	for _, i := range m.high {
		fn(i)
	}
}

// numbers lists the LUNs, ascending.
func (m *lunMap) numbers() []uint64 {
	var ns []uint64
	m.all(func(i *itl) { ns = append(ns, i.lun) })
	slices.Sort(ns)
	return ns
}

// with returns a copy in which LUN n is i (nil: nothing).
func (m *lunMap) with(n uint64, i *itl) *lunMap {
	c := &lunMap{low: m.low, high: m.high}
	if n < 256 {
		c.low = make([]*itl, max(len(m.low), int(n)+1))
		copy(c.low, m.low)
		c.low[n] = i
		return c
	}
	c.high = make(map[uint64]*itl, len(m.high)+1)
	for k, v := range m.high {
		c.high[k] = v
	}
	if i != nil {
		c.high[n] = i
	} else {
		delete(c.high, n)
	}
	return c
}
