package scsi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"blockgate/backing"
	"blockgate/scsi/pr"
)

// DeviceType is a peripheral device type (SPC-4 table 142).
type DeviceType uint8

// Peripheral device types of units.
const (
	TypeDirectAccess      DeviceType = 0x00
	TypeMultimedia        DeviceType = 0x05
	TypeStorageController DeviceType = 0x0c
	TypeWellKnown         DeviceType = 0x1e
)

func (t DeviceType) bit() Types {
	switch t {
	case TypeDirectAccess:
		return TypeDisk
	case TypeMultimedia:
		return TypeCD
	case TypeStorageController:
		return TypeController
	}
	return TypeWLUN
}

// DefaultBlockSize is the logical block length in bytes of a unit of which
// nothing else is said.
func DefaultBlockSize(t DeviceType) int {
	if t == TypeMultimedia {
		return discBlock
	}
	return 512
}

// Provisioning says whether a unit offers logical block provisioning (LBPME).
type Provisioning uint8

// Kinds of provisioning. None claims what the store cannot do.
const (
	ProvisioningAuto Provisioning = iota // thin if the store can give space back
	ProvisioningFull                     // fully provisioned, whatever the store can
)

// UnitConfig says how a store looks as a logical unit. What the store can do is
// found by asking it, and nothing here claims what it cannot.
type UnitConfig struct {
	Type  DeviceType
	Store backing.Store // nil for a controller; the Unit does not close it
	// BlockSize is the logical block length in bytes, a power of two from 512
	// to 65536; 0 means 512, or 2048 for multimedia (see DefaultBlockSize). A rest of the store smaller than it is not used.
	BlockSize int
	// PhysicalBlock is the physical block length in bytes, BlockSize times a power
	// of two up to 2^15; 0 takes the store's.
	PhysicalBlock int
	LowestAligned int // lowest aligned logical block, 0 to 16383

	Vendor, Product, Revision string // printable ASCII, cut to 8, 16 and 4 characters
	Serial                    string // unit serial number (VPD 80h), up to 252 characters
	// T10ID is the whole text of the T10 vendor ID based designator (VPD 83h),
	// beginning with the vendor; "" makes it from Vendor, Product and Serial.
	T10ID string
	// NAA is the unit's NAA IEEE Registered Extended identifier; the first four
	// bits are 6. All zero means that it has none.
	NAA [16]byte

	// ReadOnly write-protects the unit. Multimedia is read-only and removable
	// whatever is said here.
	ReadOnly, Removable, Offline bool
	// Pending says that the store is still to come: the unit is there with its
	// identity, and all but the commands that an unavailable port answers get NOT
	// READY, becoming ready, which hosts try again. It ends with the Unit.
	Pending            bool
	WriteCache         bool // WCE of the caching mode page, until MODE SELECT changes it
	Provisioning       Provisioning
	RotationRate       int  // VPD B1h: rpm, 1 not rotating, 0 from the store
	OptimalGranularity int  // blocks, 0: physical block
	OptimalLength      int  // blocks, 0: from the store
	DescriptorSense    bool // D_SENSE of the control mode page, until MODE SELECT changes it

	// Stall is what becomes of commands while the store does not answer.
	Stall StallPolicy

	Workers     int   // goroutines that may wait for the store; 0 means 64
	MaxTransfer int64 // bytes of one command; 0 means 16 MiB
	Logger      *slog.Logger
	// Reservations keeps persistent reservations through a restart (APTPL); nil:
	// the unit cannot.
	Reservations pr.Store
	// Copies gives the unit the third-party copy commands, from and to the units
	// that share the CopyManager; nil: it does not have them.
	Copies *CopyManager
	// Sanitize keeps the state of a failed or interrupted sanitize operation
	// through a restart; nil: it is forgotten.
	Sanitize SanitizeStore
	// OverwriteRate bounds SANITIZE OVERWRITE and FORMAT UNIT with a pattern, in
	// bytes a second; 0 means 160 MiB/s, -1 no bound.
	OverwriteRate int64
}

// Flags of a unit that commands look at on their way.
const (
	unitOffline uint32 = 1 << iota
	unitEjected
	unitReadOnly
	unitSWP    // software write protect, control mode page
	unitDSense // descriptor sense, control mode page
	unitTAS    // task aborted status, control mode page
	unitTSTPerNexus
	unitWCE // write cache enabled, caching mode page
	unitExplicitALUA
	unitOperating      // a sanitize or format operation runs
	unitSanitizeFailed // the last sanitize operation failed
	unitSanitizeFree   // EXIT FAILURE MODE is allowed after it (AUSE)
	unitCannotFill     // the store has not the space for all blocks
	unitThresholds     // provisioning thresholds are armed
	unitRefuses        // the store has stalled, and new commands are not to wait for it
	unitPending        // the store is still to come; unitOffline is set too
)

// maxPhysicalExp is the largest LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT.
const maxPhysicalExp = 15

// capabilities are what the store can do besides the core, found once.
type capabilities struct {
	discarder  backing.Discarder
	zeroWriter backing.ZeroWriter
	extenter   backing.Extenter
	fua        backing.FUAWriter
	tryReader  backing.TryReader
	tryWriter  backing.TryWriter
	caw        backing.CompareAndWriter
	copyRanger backing.CopyRanger
	copierFrom backing.CopierFrom
	atomic     backing.AtomicWriter
	usager     backing.Usager
	lender     backing.Lender
	mapped     backing.MappedLender
	starter    backing.Starter
	depth      int // of starter
}

// Unit is a logical unit with its device server and task set. It may be mapped at
// several LUNs and devices. Safe for concurrent use.
type Unit struct {
	table         *table
	typeBit       Types
	absent        bool // stands for a LUN where nothing is
	log           *slog.Logger
	store         backing.Store
	info          backing.Info
	caps          capabilities
	prompt        bool
	tries         bool // the store has calls that do not wait for a medium
	blockShift    uint
	maxTransfer   int64
	physicalExp   int
	lowestAligned int
	pr            *pr.Reservations
	copies        *CopyManager

	cfg      atomic.Pointer[UnitConfig]
	flags    atomic.Uint32
	blocks   atomic.Uint64
	reserve6 atomic.Pointer[itl] // holder of RESERVE(6/10)
	groups   atomic.Pointer[PortGroups]

	operation atomic.Pointer[operation]

	warned  atomic.Int64 // when the last warning was logged, Unix seconds
	special atomic.Int32 // tasks that others must look at before they start

	mu          sync.Mutex
	head, tail  *Task // the task set, oldest first
	ntasks      int
	begun       int // tasks that the store carries out by itself
	nblocked    int
	ordering    int // ORDERED and HEAD OF QUEUE tasks in the set
	seq         uint64
	exclusive   []*Task
	mediumWork  workQueue
	controlWork workQueue
	closed      bool
	drained     chan struct{} // made by Close
	itls        map[*itl]struct{}
	mode        modePages
	tokens      []*rodToken // that changes of the medium cancel
	stats       UnitStats
	meter       thresholdWatch
	stall       stallWatch
	health      unitHealth
}

// NewUnit makes a logical unit. It loads persistent reservations, if there is a
// store for them, and fails if they cannot be had: a unit must not be served
// without the reservations that protect it.
func NewUnit(cfg UnitConfig) (*Unit, error) {
	if cfg.BlockSize == 0 {
		cfg.BlockSize = DefaultBlockSize(cfg.Type)
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 64
	}
	if cfg.MaxTransfer <= 0 {
		cfg.MaxTransfer = 16 << 20
	}
	if err := checkUnit(&cfg); err != nil {
		return nil, fmt.Errorf("scsi: unit %s: %w", cfg.Serial, err)
	}
	u := &Unit{
		table: sharedTable(), typeBit: cfg.Type.bit(), log: cfg.Logger, store: cfg.Store,
		blockShift:  uint(bits.TrailingZeros(uint(cfg.BlockSize))),
		maxTransfer: max(cfg.MaxTransfer, int64(cfg.BlockSize)), lowestAligned: cfg.LowestAligned,
		copies:     cfg.Copies,
		mediumWork: workQueue{limit: cfg.Workers}, controlWork: workQueue{limit: controlWorkers},
	}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	if s := cfg.Store; s != nil {
		u.attachStore(s, &cfg)
	} else {
		u.prompt = true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var err error
	u.pr, err = pr.New(ctx, cfg.Reservations, pr.Topology{
		TargetPorts: u.targetPorts, InitiatorPorts: u.initiatorPorts,
	})
	if err != nil {
		return nil, fmt.Errorf("scsi: unit %s: %w", cfg.Serial, err)
	}
	if err := u.loadSanitize(ctx, cfg.Sanitize); err != nil {
		return nil, fmt.Errorf("scsi: unit %s: %w", cfg.Serial, err)
	}
	u.setFlag(unitCannotFill, !u.roomForAll(ctx))
	u.cfg.Store(&cfg)
	u.setFlag(unitOffline, cfg.Offline || cfg.Pending)
	u.setFlag(unitPending, cfg.Pending)
	u.setFlag(unitReadOnly, cfg.ReadOnly || u.info.ReadOnly)
	u.mode = defaultModePages(u)
	u.applyModeLocked()
	if u.hasCopies() {
		u.copies.add(u)
	}
	return u, nil
}

// checkUnit also sets what follows from the type.
func checkUnit(c *UnitConfig) error {
	switch c.Type {
	case TypeDirectAccess, TypeMultimedia:
		if c.Type == TypeMultimedia {
			c.ReadOnly, c.Removable, c.WriteCache = true, true, false
		}
		if c.Store == nil {
			return errors.New("a unit with a medium needs a store")
		}
	case TypeStorageController:
		if c.Store != nil {
			return errors.New("a controller has no medium")
		}
	default:
		return fmt.Errorf("device type %#x is not offered", uint8(c.Type))
	}
	switch b := c.BlockSize; {
	case b < 512 || b > 65536 || b&(b-1) != 0:
		return fmt.Errorf("block size %d is not a power of two from 512 to 65536", b)
	case c.PhysicalBlock != 0 && (c.PhysicalBlock < b || c.PhysicalBlock > b<<maxPhysicalExp || c.PhysicalBlock&(c.PhysicalBlock-1) != 0):
		return fmt.Errorf("physical block size %d is not %d times a power of two up to 2^%d", c.PhysicalBlock, b, maxPhysicalExp)
	case c.Provisioning > ProvisioningFull:
		return fmt.Errorf("there is no provisioning %d", c.Provisioning)
	case c.Stall.check() != nil:
		return c.Stall.check()
	case c.LowestAligned < 0 || c.LowestAligned > 0x3fff:
		return fmt.Errorf("lowest aligned block %d is not in 0 to 16383", c.LowestAligned)
	case c.RotationRate < 0 || c.RotationRate > 0xfffe:
		return fmt.Errorf("rotation rate %d is not in 0 to 65534", c.RotationRate)
	case c.OptimalGranularity < 0 || c.OptimalGranularity > 0xffff || c.OptimalLength < 0 || int64(c.OptimalLength) > 0xffffffff:
		return errors.New("optimal transfer sizes are out of range")
	case len(c.Serial) > 252:
		return errors.New("serial number is longer than 252 characters")
	case len(c.T10ID) > 252:
		return errors.New("T10 designator is longer than 252 characters")
	case c.NAA != [16]byte{} && c.NAA[0]>>4 != 6:
		return errors.New("NAA identifier does not begin with 6")
	case c.Store != nil && c.Store.Size() < int64(b):
		return fmt.Errorf("the store has %d bytes, less than one block", c.Store.Size())
	}
	return nil
}

func (u *Unit) attachStore(s backing.Store, cfg *UnitConfig) {
	u.info = backing.InfoOf(s)
	u.prompt = backing.IsPrompt(s)
	u.caps = findCapabilities(s)
	u.tries = u.caps.tryReader != nil || u.caps.tryWriter != nil
	u.blocks.Store(uint64(s.Size()) >> u.blockShift)
	p := cfg.PhysicalBlock
	if p == 0 {
		p = u.info.PhysicalBlock
	}
	if p > cfg.BlockSize {
		u.physicalExp = min(bits.Len(uint(p))-1-int(u.blockShift), maxPhysicalExp)
	}
}

// roomForAll reports whether every block of the store can be allocated, as far as
// it tells.
func (u *Unit) roomForAll(ctx context.Context) bool {
	if u.caps.usager == nil || !u.info.Thin {
		return true
	}
	usage, err := u.caps.usager.Usage(ctx)
	return err != nil || usage.Used+usage.Available >= u.store.Size()
}

// newInternalUnit makes a unit that every device has without being told.
func newInternalUnit(t DeviceType, log *slog.Logger) *Unit {
	u := &Unit{table: sharedTable(), typeBit: t.bit(), log: log, prompt: true, maxTransfer: 1}
	u.mediumWork.limit, u.controlWork.limit = 1, 1
	u.cfg.Store(&UnitConfig{Type: t, BlockSize: 512, Vendor: "BLKGATE", Product: "Well Known LU", Revision: "1"})
	u.pr, _ = pr.New(context.Background(), nil, pr.Topology{}) // without a store it cannot fail
	return u
}

func (u *Unit) name() string { return u.cfg.Load().Serial }

func (u *Unit) setFlag(f uint32, on bool) {
	if on {
		u.flags.Or(f)
	} else {
		u.flags.And(^f)
	}
}

// Blocks is the capacity in logical blocks.
func (u *Unit) Blocks() uint64 { return u.blocks.Load() }

// BlockSize is the logical block length in bytes.
func (u *Unit) BlockSize() int { return 1 << u.blockShift }

// writeCache: GOOD may come before the data is durable (WCE).
func (u *Unit) writeCache() bool { return u.flags.Load()&unitWCE != 0 }

// thin: logical block provisioning management is offered (LBPME). A store that
// cannot be written but knows its holes counts as well, so that a disk looks the
// same whether it is protected or not: the commands are there, and refused as
// all that write.
func (u *Unit) thin() bool {
	return (u.caps.discarder != nil || u.info.ReadOnly && u.caps.extenter != nil) && u.cfg.Load().Provisioning != ProvisioningFull
}

// Config is the configuration as it is now; Offline and ReadOnly follow the setters.
func (u *Unit) Config() UnitConfig { return *u.cfg.Load() }

// Update changes how the unit presents itself while it runs: the identity fields,
// Removable, ReadOnly, Offline, Provisioning, RotationRate, the Optimal fields and Stall. edit
// gets a copy; changes of other fields are ignored. It fails, and nothing
// changes, if a value is out of range. Every nexus gets INQUIRY DATA HAS CHANGED
// if more than Offline, ReadOnly and Stall differ.
func (u *Unit) Update(edit func(*UnitConfig)) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.cfg.Load()
	c := *old
	edit(&c)
	c.Type, c.Store, c.BlockSize, c.PhysicalBlock, c.LowestAligned = old.Type, old.Store, old.BlockSize, old.PhysicalBlock, old.LowestAligned
	c.Workers, c.MaxTransfer, c.Logger, c.Reservations, c.Copies = old.Workers, old.MaxTransfer, old.Logger, old.Reservations, old.Copies
	c.Sanitize, c.OverwriteRate, c.Pending = old.Sanitize, old.OverwriteRate, old.Pending
	c.WriteCache, c.DescriptorSense = old.WriteCache, old.DescriptorSense
	if err := checkUnit(&c); err != nil {
		return fmt.Errorf("scsi: unit %s: %w", old.Serial, err)
	}
	u.storeConfigLocked(&c)
	if c.Vendor != old.Vendor || c.Product != old.Product || c.Revision != old.Revision || c.Serial != old.Serial ||
		c.T10ID != old.T10ID || c.NAA != old.NAA || c.Removable != old.Removable || c.Provisioning != old.Provisioning ||
		c.RotationRate != old.RotationRate || c.OptimalGranularity != old.OptimalGranularity || c.OptimalLength != old.OptimalLength {
		u.raiseLocked(attnInquiryData, nil)
	}
	return nil
}

// SetReadOnly write-protects the unit, or lifts that; a store opened read-only
// stays protected.
func (u *Unit) SetReadOnly(on bool) { u.set(func(c *UnitConfig) { c.ReadOnly = on }) }

// SetOffline takes the unit offline: commands that need the medium get NOT READY.
// What runs already goes on.
func (u *Unit) SetOffline(on bool) { u.set(func(c *UnitConfig) { c.Offline = on }) }

// set makes a change that cannot be refused.
func (u *Unit) set(edit func(*UnitConfig)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := *u.cfg.Load()
	edit(&c)
	u.storeConfigLocked(&c)
}

func (u *Unit) storeConfigLocked(c *UnitConfig) {
	if old := u.cfg.Swap(c); u.typeBit == TypeCD && old.Offline != c.Offline {
		// To a host a drive that is taken offline has lost its disc.
		if c.Offline {
			u.mediaEventLocked(mediaRemoval)
		} else {
			u.mediaEventLocked(mediaNew)
			u.raiseLocked(attnMediumChanged, nil)
		}
	}
	u.setFlag(unitOffline, c.Offline || c.Pending)
	u.setFlag(unitReadOnly, c.ReadOnly || u.info.ReadOnly)
	u.refuseLocked()
	if u.stall.armed {
		u.armLocked() // by the new policy's time
	}
}

// SoftwareWriteProtected reports the SWP bit of the control mode page.
func (u *Unit) SoftwareWriteProtected() bool { return u.flags.Load()&unitSWP != 0 }

// RemovalPrevented reports whether any nexus prevents medium removal.
func (u *Unit) RemovalPrevented() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.preventedLocked()
}

func (u *Unit) preventedLocked() bool {
	for i := range u.itls {
		if i.prevent {
			return true
		}
	}
	return false
}

// Resized reads the store's size again. If the capacity differs every nexus gets
// CAPACITY DATA HAS CHANGED.
func (u *Unit) Resized() {
	if u.store == nil {
		return
	}
	n := uint64(u.store.Size()) >> u.blockShift
	if u.blocks.Swap(n) != n {
		u.cancelTokens()
		u.raise(attnCapacityChanged, nil)
	}
}

func findCapabilities(s backing.Store) (c capabilities) {
	c.discarder, _ = backing.As[backing.Discarder](s)
	c.zeroWriter, _ = backing.As[backing.ZeroWriter](s)
	c.extenter, _ = backing.As[backing.Extenter](s)
	c.fua, _ = backing.As[backing.FUAWriter](s)
	c.tryReader, _ = backing.As[backing.TryReader](s)
	c.tryWriter, _ = backing.As[backing.TryWriter](s)
	c.caw, _ = backing.As[backing.CompareAndWriter](s)
	c.copyRanger, _ = backing.As[backing.CopyRanger](s)
	c.copierFrom, _ = backing.As[backing.CopierFrom](s)
	c.atomic, _ = backing.As[backing.AtomicWriter](s)
	c.usager, _ = backing.As[backing.Usager](s)
	c.lender, _ = backing.As[backing.Lender](s)
	c.mapped, _ = backing.As[backing.MappedLender](s)
	if c.starter = backing.StarterOf(s); c.starter != nil {
		c.depth = c.starter.Depth()
	}
	return c
}
