package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"blockgate/backing"
	"blockgate/backing/layer"
	"blockgate/scsi"
)

// VolumeConfig says what a volume is.
type VolumeConfig struct {
	Name string
	// URL names the store ("file:/srv/a.img", "ram:1G"). Empty, and without a
	// Store, the volume is a unit without medium.
	URL string
	// Store, if set, is served in place of one opened by URL. It belongs to the
	// gateway once AddVolume has returned nil, which closes it in the end.
	Store backing.Store
	// Create makes the store if it does not exist, with Size bytes.
	Create bool
	Size   int64
	// ReadOnly opens the store so; Unit.ReadOnly only write-protects the unit.
	ReadOnly, Direct, Sync bool
	NoAIO                  bool // see backing.OpenOptions
	// IgnorePartialBlock serves the whole blocks of a store whose size is no
	// multiple of the block size, and never touches what is over. Without it such a
	// store is a *PartialBlockError.
	IgnorePartialBlock bool
	// Layers are stacked on the store, the first nearest to it.
	Layers []Layer
	// Unit is how the volume looks. The zero value is DefaultUnit; to change a
	// part of it, begin with that: without WriteCache every write waits until it
	// is durable.
	// Store, Logger and Copies are set by the gateway. A unit without NAA and
	// Serial gets random ones: give it the same each time if initiators shall
	// know it again.
	Unit scsi.UnitConfig
}

// DefaultUnit is how a volume looks if nothing else is said: a disk with a write
// cache, with the physical block size of its store, and thin if its store is.
func DefaultUnit() scsi.UnitConfig {
	return scsi.UnitConfig{Type: scsi.TypeDirectAccess, WriteCache: true}
}

// Layer is a stackable layer; see package backing/layer for the kinds.
type Layer struct {
	Kind   string
	Params map[string]string
}

// volume is a store in use. A volume that is being opened or closed has no
// unit; its name is taken all the same.
type volume struct {
	cfg   VolumeConfig
	store backing.Store
	unit  *scsi.Unit
	maps  []mapping // where it is a LUN
	// calls are those of the store beside the unit's. They begin with Gateway.mu
	// held, while the volume has this store.
	calls *sync.WaitGroup
	// unfollow ends what follow began; it is called before calls is waited for.
	unfollow func()
	// opening, of a pending volume, is who opens its store now.
	opening *opening
}

type mapping struct {
	target *target
	lun    uint64
}

// LingerError says that a volume is out of use, but some calls are still inside
// its store, which is closed when they return. Until then the store may be
// locked against being opened again.
type LingerError struct {
	Volume string
	Tasks  int // commands inside the store; 0: it is the closing that hangs
}

func (e *LingerError) Error() string {
	if e.Tasks == 0 {
		return fmt.Sprintf("volume %q: the store is still being closed", e.Volume)
	}
	return fmt.Sprintf("volume %q: %d commands are still inside the store, which is closed when they return", e.Volume, e.Tasks)
}

// AddVolume opens a store and makes it a logical unit, not yet mapped anywhere.
func (g *Gateway) AddVolume(ctx context.Context, cfg VolumeConfig) error {
	v := &volume{cfg: cfg}
	g.mu.Lock()
	switch {
	case g.closed:
		g.mu.Unlock()
		return ErrClosed
	case g.volumes[cfg.Name] != nil:
		g.mu.Unlock()
		return fmt.Errorf("volume %q: %w", cfg.Name, ErrExists)
	}
	g.volumes[cfg.Name] = v
	g.mu.Unlock()
	identify(&v.cfg.Unit)
	err := g.start(ctx, v)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil && g.closed {
		err = ErrClosed
		go g.retire(context.Background(), v)
	}
	if err != nil {
		delete(g.volumes, cfg.Name)
		return err
	}
	return nil
}

// start opens the store and makes the unit.
func (g *Gateway) start(ctx context.Context, v *volume) error {
	store, err := g.open(ctx, v.cfg)
	if err != nil {
		return fmt.Errorf("volume %q: %w", v.cfg.Name, err)
	}
	unit, err := g.newUnit(v.cfg, store)
	if err != nil {
		if v.cfg.Store == nil {
			store.Close()
		}
		return err
	}
	// What is followed is this unit and store, whatever v has later.
	opened := &volume{cfg: v.cfg, store: store, unit: unit, calls: new(sync.WaitGroup)}
	opened.unfollow = g.follow(opened)
	g.mu.Lock()
	v.store, v.unit, v.calls, v.unfollow = store, unit, opened.calls, opened.unfollow
	g.mu.Unlock()
	return nil
}

func (g *Gateway) newUnit(cfg VolumeConfig, store backing.Store) (*scsi.Unit, error) {
	u := cfg.Unit
	u.Store, u.Logger, u.Copies = store, g.log.With("volume", cfg.Name), g.copies
	if u.BlockSize == 0 {
		u.BlockSize = 512
	}
	if _, is := store.(pendingStore); is {
		u.Pending, u.Sanitize, u.Copies = true, nil, nil
	}
	if _, none := store.(noMedium); none {
		u.Offline = true
		if u.Type == scsi.TypeStorageController {
			u.Store, u.Offline = nil, cfg.Unit.Offline
		}
	}
	// A rest that no initiator could reach is most likely a file that is not a
	// disk image, or one for another block size.
	if err := cfg.wholeBlocks(store, u.BlockSize); err != nil {
		return nil, fmt.Errorf("volume %q: %w", cfg.Name, err)
	}
	unit, err := scsi.NewUnit(u)
	if err != nil {
		return nil, fmt.Errorf("volume %q: %w", cfg.Name, err)
	}
	return unit, nil
}

// wholeBlocks tells whether the volume may serve the store with its size.
func (c *VolumeConfig) wholeBlocks(s backing.Store, blockSize int) error {
	size := s.Size()
	if size%int64(blockSize) == 0 || c.IgnorePartialBlock && size >= int64(blockSize) {
		return nil
	}
	return &PartialBlockError{Size: size, BlockSize: blockSize}
}

// PartialBlockError: the store's size is not a multiple of the block size.
type PartialBlockError struct {
	Size      int64 // bytes
	BlockSize int
}

func (e *PartialBlockError) Error() string {
	return fmt.Sprintf("the store has %d bytes, which is not a multiple of the block size, %d: %d bytes are over",
		e.Size, e.BlockSize, e.Size%int64(e.BlockSize))
}

// open opens the store with its layers, within OpenTimeout. A store that opens
// later than that is closed again.
func (g *Gateway) open(ctx context.Context, cfg VolumeConfig) (backing.Store, error) {
	if cfg.Store != nil {
		return wrap(cfg.Store, cfg.Layers)
	}
	if cfg.URL == "" {
		return noMedium{size: int64(max(cfg.Unit.BlockSize, 512))}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.cfg.OpenTimeout)
	type opened struct {
		store backing.Store
		err   error
	}
	done := make(chan opened, 1)
	go func() {
		s, err := g.openStore(ctx, cfg)
		if err == nil {
			g.noteThreads(cfg, s)
			var top backing.Store
			if top, err = wrap(s, cfg.Layers); err != nil {
				s.Close()
			}
			s = top
		}
		done <- opened{s, err}
	}()
	defer cancel()
	select {
	case o := <-done:
		return o.store, o.err
	case <-ctx.Done():
		go func() {
			if o := <-done; o.err == nil {
				o.store.Close()
			}
		}()
		return nil, fmt.Errorf("open %q: the store does not answer: %w", cfg.URL, ctx.Err())
	}
}

func (g *Gateway) openStore(ctx context.Context, cfg VolumeConfig) (backing.Store, error) {
	opt := backing.OpenOptions{
		Logger:   g.log,
		ReadOnly: cfg.ReadOnly, Create: cfg.Create, CreateSize: cfg.Size,
		Direct: cfg.Direct, NoAIO: cfg.NoAIO, Sync: cfg.Sync, Exclusive: true, Stall: engineLimit(cfg.Unit.Stall),
	}
	s, err := g.cfg.Engines.Open(ctx, cfg.URL, opt)
	if !cfg.IgnorePartialBlock || !errors.Is(err, backing.ErrSizeMismatch) {
		return s, err
	}
	// Size is that of the whole blocks, as the volume has it when it is there.
	opt.Create, opt.CreateSize = false, 0
	found, again := g.cfg.Engines.Open(ctx, cfg.URL, opt)
	if again != nil {
		return nil, err
	}
	bs := cfg.Unit.BlockSize
	if bs == 0 {
		bs = scsi.DefaultBlockSize(cfg.Unit.Type)
	}
	if size := found.Size(); size-size%int64(bs) != cfg.Size {
		found.Close()
		return nil, err
	}
	return found, nil
}

// noteThreads says once that a direct volume has to do without AIO.
func (g *Gateway) noteThreads(cfg VolumeConfig, s backing.Store) {
	if how := backing.InfoOf(s).DirectIO; !cfg.NoAIO && strings.HasPrefix(how, "threads") {
		g.threadsOnce.Do(func() {
			g.log.Warn("direct I/O without Linux AIO, which is slower", "volume", cfg.Name, "directIO", how)
		})
	}
}

func wrap(s backing.Store, layers []Layer) (backing.Store, error) {
	for _, l := range layers {
		top, err := layer.Wrap(s, l.Kind, l.Params)
		if err != nil {
			return nil, err
		}
		s = top
	}
	return s, nil
}

// identify completes a unit: what it is by default, and who it is.
func identify(u *scsi.UnitConfig) {
	if plain := (scsi.UnitConfig{NAA: u.NAA, Serial: u.Serial, Stall: u.Stall}); *u == plain {
		*u = DefaultUnit()
		u.NAA, u.Serial, u.Stall = plain.NAA, plain.Serial, plain.Stall
	}
	if u.NAA == ([16]byte{}) {
		rand.Read(u.NAA[:])
		u.NAA[0] = 0x60 | u.NAA[0]&0x0f
	}
	if u.Serial == "" {
		var b [8]byte
		rand.Read(b[:])
		u.Serial = hex.EncodeToString(b[:])
	}
	if u.Vendor == "" && u.Product == "" {
		u.Vendor, u.Product, u.Revision = "BLKGATE", "VOLUME", "1"
		switch u.Type {
		case scsi.TypeMultimedia:
			u.Product = "DVD-ROM"
		case scsi.TypeStorageController:
			u.Product = "CONTROLLER"
		}
	}
}

// UpdateVolume changes a volume. Where only its presentation differs the unit
// goes on; otherwise the unit, and the store if it is opened differently, is
// replaced under its LUNs. If that fails the volume is as it was, unless the
// old store cannot be opened again either: the error then says so and the
// volume is pending (see AddPending). It is pending as well if the store has to be
// opened anew and hangs, which is a *LingerError. Of a pending volume the store is
// opened.
func (g *Gateway) UpdateVolume(ctx context.Context, cfg VolumeConfig) error {
	v, err := g.settled(ctx, cfg.Name)
	if err != nil {
		g.mu.Unlock()
		return err
	}
	old := *v
	if old.pending() {
		var o *opening
		ctx, o = v.beginOpening(ctx)
		defer func() {
			g.mu.Lock()
			v.opening = nil
			g.mu.Unlock()
			o.end()
		}()
	}
	g.mu.Unlock()
	if cfg.Unit.NAA == ([16]byte{}) {
		cfg.Unit.NAA = old.cfg.Unit.NAA
	}
	if cfg.Unit.Serial == "" {
		cfg.Unit.Serial = old.cfg.Unit.Serial
	}
	identify(&cfg.Unit)
	if !old.pending() && !storeDiffers(old.cfg, cfg) && !unitDiffers(old.cfg.Unit, cfg.Unit) {
		if old.cfg.IgnorePartialBlock {
			if err := cfg.wholeBlocks(old.store, old.unit.BlockSize()); err != nil {
				return fmt.Errorf("volume %q: %w", cfg.Name, err)
			}
		}
		err := old.unit.Update(func(u *scsi.UnitConfig) {
			n := cfg.Unit
			u.Vendor, u.Product, u.Revision, u.Serial, u.T10ID, u.NAA = n.Vendor, n.Product, n.Revision, n.Serial, n.T10ID, n.NAA
			u.ReadOnly, u.Removable, u.Offline, u.Provisioning = n.ReadOnly, n.Removable, n.Offline, n.Provisioning
			u.RotationRate, u.OptimalGranularity, u.OptimalLength = n.RotationRate, n.OptimalGranularity, n.OptimalLength
			u.Stall = n.Stall
			if _, none := old.store.(noMedium); none {
				u.Offline = true
			}
		})
		if err != nil {
			return fmt.Errorf("volume %q: %w", cfg.Name, err)
		}
		backing.SetStall(old.store, engineLimit(cfg.Unit.Stall))
		g.mu.Lock()
		v.cfg = cfg
		g.mu.Unlock()
		return nil
	}
	next := &volume{cfg: cfg}
	if old.pending() || cfg.URL != old.cfg.URL || cfg.Store != nil && cfg.Store != old.cfg.Store {
		if err := g.start(ctx, next); err != nil {
			return err
		}
		g.swap(v, next)
		return g.retireWithin(ctx, &old)
	}
	// The same store in another way: it has to be let go first.
	if err := g.retireWithin(ctx, &old); err != nil {
		if linger := (*LingerError)(nil); errors.As(err, &linger) {
			// It can be opened when the old one is closed, and nothing is served
			// before: the old unit takes no commands any more.
			return errors.Join(err, g.setAside(v, &old, cfg))
		}
		return err
	}
	if err := g.start(ctx, next); err != nil {
		back := &volume{cfg: old.cfg}
		back.cfg.Create = false
		if again := g.start(ctx, back); again != nil {
			if none := g.standIn(back); none == nil {
				g.swap(v, back)
			}
			return errors.Join(err, again)
		}
		g.swap(v, back)
		return err
	}
	g.swap(v, next)
	return nil
}

// storeDiffers: the store has to be opened anew.
func storeDiffers(a, b VolumeConfig) bool {
	return a.URL != b.URL || a.Store != b.Store || a.ReadOnly != b.ReadOnly || a.Direct != b.Direct || a.NoAIO != b.NoAIO || a.Sync != b.Sync ||
		!slices.EqualFunc(a.Layers, b.Layers, func(x, y Layer) bool { return reflect.DeepEqual(x, y) })
}

// unitDiffers: in ways that a unit cannot change while it runs.
func unitDiffers(a, b scsi.UnitConfig) bool {
	return a.Type != b.Type || a.BlockSize != b.BlockSize || a.PhysicalBlock != b.PhysicalBlock || a.LowestAligned != b.LowestAligned ||
		a.WriteCache != b.WriteCache || a.DescriptorSense != b.DescriptorSense || a.Workers != b.Workers || a.MaxTransfer != b.MaxTransfer
}

// swap puts another store and unit into v and under all its LUNs.
func (g *Gateway) swap(v, next *volume) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.swapLocked(v, next)
}

func (g *Gateway) swapLocked(v, next *volume) {
	another := v.cfg.URL != next.cfg.URL || v.cfg.Store != next.cfg.Store || v.unit.BlockSize() != next.unit.BlockSize()
	v.cfg, v.store, v.unit, v.calls, v.unfollow = next.cfg, next.store, next.unit, next.calls, next.unfollow
	for _, m := range v.maps {
		if err := m.target.dev.SetUnit(m.lun, v.unit); err != nil {
			g.log.Error("gateway: LUN lost", "target", m.target.name, "lun", m.lun, "err", err)
		}
	}
	g.swapExportsLocked(v, another)
}

// RemoveVolume takes a volume that is no LUN any more out of use and closes its
// store. A *LingerError says that the volume is gone but the store hangs.
func (g *Gateway) RemoveVolume(ctx context.Context, name string) error {
	g.mu.Lock()
	v := g.volumes[name]
	switch {
	case v == nil || v.unit == nil:
		g.mu.Unlock()
		return fmt.Errorf("volume %q: %w", name, ErrNotFound)
	case len(v.maps) > 0:
		m := v.maps[0]
		g.mu.Unlock()
		return fmt.Errorf("volume %q: %w as LUN %d of %q", name, ErrInUse, m.lun, m.target.name)
	}
	if e := g.exportOfLocked(v); e != "" {
		g.mu.Unlock()
		return fmt.Errorf("volume %q: %w as NBD export %q", name, ErrInUse, e)
	}
	delete(g.volumes, name)
	if v.opening != nil {
		v.opening.cancel()
	}
	g.mu.Unlock()
	return g.retireWithin(ctx, v)
}

func (g *Gateway) retireWithin(ctx context.Context, v *volume) error {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.CloseTimeout)
	defer cancel()
	return g.retire(ctx, v)
}

// retire ends the unit and closes the store. When ctx ends first it leaves the
// rest to a goroutine, which ends when the store lets go.
func (g *Gateway) retire(ctx context.Context, v *volume) error {
	if v.unit == nil {
		return nil
	}
	unit, store := v.unit, v.store
	linger := &LingerError{Volume: v.cfg.Name}
	done := make(chan error, 1)
	stuck := unit.Close(ctx)
	if stuck != nil {
		linger.Tasks = max(unit.Stats().Tasks, 1)
	}
	g.mu.Lock()
	g.lingering[v] = struct{}{}
	g.mu.Unlock()
	go func() {
		if stuck != nil {
			unit.Close(context.Background())
		}
		if v.unfollow != nil {
			v.unfollow()
		}
		v.calls.Wait()
		err := store.Close()
		g.mu.Lock()
		delete(g.lingering, v)
		g.mu.Unlock()
		if err != nil {
			g.log.Error("gateway: store did not close well", "volume", v.cfg.Name, "err", err)
		}
		done <- err
	}()
	if stuck == nil {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("volume %q: close: %w", v.cfg.Name, err)
			}
			return nil
		case <-ctx.Done():
		}
	}
	g.log.Warn("gateway: a store hangs", "volume", v.cfg.Name, "commands", linger.Tasks)
	return linger
}

// Lingering names the volumes whose stores still hang after their removal.
func (g *Gateway) Lingering() []string {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var l []string
	for v := range g.lingering {
		l = append(l, v.cfg.Name)
	}
	slices.Sort(l)
	return l
}

// ResizeVolume changes the size of the store, in bytes, and tells initiators. The
// size is a multiple of the block size, or else a *PartialBlockError.
func (g *Gateway) ResizeVolume(ctx context.Context, name string, size int64) error {
	return g.sized(ctx, name, func(ctx context.Context, v *volume) error {
		r, ok := backing.As[backing.Resizer](v.store)
		if !ok {
			return backing.ErrNotSupported
		}
		if bs := int64(v.unit.BlockSize()); size%bs != 0 {
			return &PartialBlockError{Size: size, BlockSize: int(bs)}
		} else if has := v.store.Size(); v.cfg.IgnorePartialBlock && has-has%bs == size {
			return nil // what is over is not cut off
		}
		return r.Resize(ctx, size)
	})
}

// RefreshVolume takes over the size that the store has grown to by itself, and
// gives what of it is served, in bytes.
func (g *Gateway) RefreshVolume(ctx context.Context, name string) (size int64, err error) {
	err = g.sized(ctx, name, func(ctx context.Context, v *volume) error {
		r, ok := backing.As[backing.Refresher](v.store)
		if !ok {
			return backing.ErrNotSupported
		}
		size, err = r.Refresh(ctx)
		if v.cfg.IgnorePartialBlock {
			size -= size % int64(v.unit.BlockSize())
		}
		return err
	})
	return size, err
}

func (g *Gateway) sized(ctx context.Context, name string, f func(context.Context, *volume) error) error {
	g.mu.RLock()
	v := g.volumes[name]
	var cur volume
	if v != nil && v.unit != nil && !v.pending() {
		cur = *v
		cur.calls.Add(1)
	}
	g.mu.RUnlock()
	if cur.unit == nil {
		return fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(ctx, g.cfg.OpenTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer cur.calls.Done()
		done <- f(ctx, &cur)
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("volume %q: %w", name, err)
		}
		before := cur.unit.Blocks()
		cur.unit.Resized()
		if cur.unit.Blocks() != before {
			g.announceSize(name)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume %q: the store does not answer: %w", name, ctx.Err())
	}
}

// noMedium stands in for the store of a unit without medium.
type noMedium struct{ size int64 }

func (noMedium) ReadAt(context.Context, []byte, int64) error  { return backing.ErrNotExist }
func (noMedium) WriteAt(context.Context, []byte, int64) error { return backing.ErrNotExist }
func (noMedium) Flush(context.Context) error                  { return nil }
func (m noMedium) Size() int64                                { return m.size }
func (noMedium) Close() error                                 { return nil }
func (noMedium) Prompt() bool                                 { return true }
func (noMedium) Info() backing.Info                           { return backing.Info{Engine: "none", ReadOnly: true} }
