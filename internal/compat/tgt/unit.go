package tgt

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *admin) unit() error {
	switch a.op {
	case opNew:
		return a.newUnit()
	case opDelete:
		return a.deleteUnit()
	case opUpdate:
		return a.updateUnit()
	}
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	if _, ok := findLUN(t, a.lun); !ok && !(a.lun == 0 && t.ControllerLUN0) {
		return fail(msgNoUnit)
	}
	return a.stat(func(s statRow) bool { return s.lun == a.lun }, t.Name)
}

func findLUN(t *v1.Target, number uint64) (state.LUN, bool) {
	i := slices.IndexFunc(t.LUNs, func(l state.LUN) bool { return l.Number == number })
	if i < 0 {
		return state.LUN{}, false
	}
	return t.LUNs[i], true
}

// volumeName is the name of the volume that is made for a unit.
func volumeName(tid int, lun uint64) string { return fmt.Sprintf("tgt-%d-%d", tid, lun) }

// owned tells whether tgtadm made the volume, and so removes it with its unit.
func owned(v *state.Volume) bool { return v.Bstype != "" && strings.HasPrefix(v.Name, "tgt-") }

func (a *admin) newUnit() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	if _, ok := findLUN(t, a.lun); ok || a.lun == 0 && t.ControllerLUN0 {
		return fail(msgUnitExists)
	}
	v, err := a.newVolume()
	if err != nil {
		return err
	}
	res, err := a.create(t, v)
	if e := state.ErrorOf(err); e != nil && e.Code == state.CodeOpenFailed {
		switch {
		case refusesWrites(e):
			// As tgt does; the listing then says "Readonly: Yes".
			v.ReadOnly, v.Unit.ReadOnly = true, true
			if again, err2 := a.create(t, v); err2 == nil {
				res, err = again, nil
			}
		case e.Class == state.Conflict:
			if again, err2 := a.share(t, v); err2 == nil {
				res, err = again, nil
			}
		}
	}
	if e := state.ErrorOf(err); e != nil && e.Code == state.CodeUnknownEngine {
		return a.keepUnserved(t, v, e)
	}
	a.warn(res)
	return err
}

// keepUnserved keeps a unit whose engine this daemon does not have: it is in the
// listing, initiators do not see it, and a daemon that has the engine serves it.
func (a *admin) keepUnserved(t *v1.Target, v *state.Volume, why *state.Error) error {
	if _, err := a.apply(t, v, true); err != nil {
		return err
	}
	return refuse("LUN %d is kept in target %d and is not served: %s", a.lun, t.ID, why.Reason)
}

// newVolume is the volume that the command line asks for, with the identity
// that tgt gives a unit.
func (a *admin) newVolume() (*state.Volume, error) {
	kind := a.bstype
	if kind == "" {
		kind = defaultBstype(a.deviceType)
	}
	b, ok := findBstype(kind)
	if !ok {
		return nil, refuse("there is no bstype %q", kind)
	}
	if a.deviceType != deviceFor(&b) {
		return nil, refuse("bstype %s is for device type %s, not %s", b.name, deviceFor(&b), a.deviceType)
	}
	v := &state.Volume{Name: volumeName(a.tid, a.lun), BlockSize: a.unitBlockSize(), PartialBlock: "ignore"}
	if err := b.store(v, a.dir, a.path, a.bsflags); err != nil {
		return nil, err
	}
	if err := b.options(v, a.bsopts); err != nil {
		return nil, err
	}
	thin := false
	v.Unit = state.UnitParams{
		Type: "disk", Vendor: "IET", Product: "VIRTUAL-DISK", Revision: "0001",
		SCSIID: defaultID(a.tid, a.lun), Serial: defaultSerial(a.tid, a.lun), Thin: &thin,
	}
	if b.name == "mmc" {
		v.BlockSize = 2048 // that of a disc; tgt takes no other either
		v.Unit.Type, v.Unit.Product, v.Unit.Removable = "cd", "VIRTUAL-CDROM", true
	}
	if a.path == "" {
		v.Unit.Removable, v.Unit.Offline = true, true
	}
	return v, nil
}

// deviceFor is the device type that a bstype makes.
func deviceFor(b *bstype) string {
	switch b.kind {
	case "cd/dvd":
		return "cd"
	case "passthrough":
		return "pt"
	case "":
		return "disk"
	}
	return b.kind
}

// unitBlockSize reads --blocksize. tgt takes 512 for what cannot be a block
// size, without a word.
func (a *admin) unitBlockSize() int {
	if a.blockSize == "" {
		return 512
	}
	v, _, ok := leadingNumber(a.blockSize)
	if !ok || v < 512 || v > 1<<20 || v&(v-1) != 0 {
		a.note(fmt.Sprintf("a block size of %s is not possible, 512 bytes are used", a.blockSize))
		return 512
	}
	return int(v)
}

// create makes volume and LUN in one step.
func (a *admin) create(t *v1.Target, v *state.Volume) (v1.Result, error) { return a.apply(t, v, false) }

// apply is create; keep makes them though nothing can serve them yet. A name that is taken, because the
// volume of an earlier target with this number was kept, gets a random ending.
func (a *admin) apply(t *v1.Target, v *state.Volume, keep bool) (v1.Result, error) {
	for try := 0; ; try++ {
		res, err := a.api.Apply(a.ctx,
			state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: v, Force: keep},
			state.Op{Verb: state.Create, Kind: state.KindLUN, Name: t.Name, LUN: &state.LUN{Number: a.lun, Volume: v.Name}})
		if e := state.ErrorOf(err); e == nil || e.Code != state.CodeVolumeExists || try == 3 {
			return res, err
		}
		v.Name = freshVolumeName(a.tid, a.lun)
	}
}

// freshVolumeName is a name for when volumeName is taken.
func freshVolumeName(tid int, lun uint64) string {
	var b [4]byte
	rand.Read(b[:])
	return volumeName(tid, lun) + "-" + hex.EncodeToString(b[:])
}

// share maps the volume that has this store open already. tgt lets two units
// open one file and gives them different identities; here they are one unit with
// several LUNs, so that multipath and reservations work across them.
func (a *admin) share(t *v1.Target, v *state.Volume) (v1.Result, error) {
	served, err := a.servedAs(v)
	if err != nil {
		return v1.Result{}, err
	}
	res, err := a.api.Apply(a.ctx, state.Op{Verb: state.Create, Kind: state.KindLUN, Name: t.Name, LUN: &state.LUN{Number: a.lun, Volume: served.Name}})
	if err == nil {
		a.noteShared(v, served)
	}
	return res, err
}

// servedAs is the volume that has v's store open in the same way.
func (a *admin) servedAs(v *state.Volume) (*v1.Volume, error) {
	list, err := a.api.Volumes(a.ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(o v1.Volume) bool {
		return owned(&o.Volume) && o.URL == v.URL && o.BlockSize == v.BlockSize && o.Bstype == v.Bstype && o.Sync == v.Sync && o.Direct == v.Direct
	})
	if i < 0 {
		return nil, fail(msgInvalid)
	}
	return &list[i], nil
}

func (a *admin) noteShared(v *state.Volume, served *v1.Volume) {
	a.note(fmt.Sprintf("%s is served already: this LUN is another path to the unit with serial number %s", v.BackingStore, served.Unit.Serial))
}

// refusesWrites tells whether a store could not be opened because it may only be
// read.
func refusesWrites(e *state.Error) bool {
	return strings.Contains(e.Reason, "permission denied") || strings.Contains(e.Reason, "read-only file system")
}

func (a *admin) deleteUnit() error {
	t, err := a.findTarget()
	switch f, ok := err.(*failure); {
	case err == nil && (a.lun != 0 || !t.ControllerLUN0):
	case err == nil, ok && f.message == msgNoTarget && a.lun == 0: // tgt looks at the number first
		return refuse("LUN 0 is the target's controller, which goes with the target")
	case ok && f.message == msgNoTarget:
		return fail(msgNoUnit)
	default:
		return err
	}
	l, ok := findLUN(t, a.lun)
	if !ok {
		return fail(msgNoUnit)
	}
	v, err := a.api.Volume(a.ctx, l.Volume)
	if err != nil {
		return err
	}
	ops := []state.Op{{Verb: state.Delete, Kind: state.KindLUN, Name: t.Name, LUN: &state.LUN{Number: a.lun}}}
	if owned(&v.Volume) && len(v.Status.UsedBy) == 1 {
		ops = append(ops, state.Op{Verb: state.Delete, Kind: state.KindVolume, Name: v.Name})
	}
	res, err := a.api.Apply(a.ctx, ops...)
	a.warn(res)
	return err
}

func (a *admin) updateUnit() error {
	t, err := a.findTarget()
	if err != nil {
		return err
	}
	if a.lun == 0 && t.ControllerLUN0 {
		if a.params == "" {
			return nil
		}
		return refuse("LUN 0 is the target's controller; it has no parameters")
	}
	l, ok := findLUN(t, a.lun)
	if !ok {
		return fail(msgNoUnit)
	}
	if a.params == "" {
		return nil
	}
	refresh := false
	err = a.retry(func() (v1.Result, error) {
		v, err := a.api.Volume(a.ctx, l.Volume)
		if err != nil {
			return v1.Result{}, err
		}
		if refresh, err = setUnitParams(&v, a.dir, a.params); err != nil {
			return v1.Result{}, err
		}
		return a.api.Apply(a.ctx, state.Op{Verb: state.Update, Kind: state.KindVolume, IfRevision: v.Revision, Volume: &v.Volume})
	})
	if err == nil && refresh {
		// The change itself is done; a size that cannot be read anew is no failure of it.
		if _, err := a.api.ResizeVolume(a.ctx, l.Volume, 0); err != nil {
			a.note("the size was not read again: " + state.ErrorOf(err).Error())
		}
	}
	return err
}
