package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"testing"

	"blockgate/backing"
	"blockgate/scsi"
)

// CopyRange is memDisk's own way of copying, for CapCopyRange.
func (m *memDisk) CopyRange(ctx context.Context, dst, src, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("CopyRange", dst, n); err != nil {
		return err
	}
	copy(m.data[dst:dst+n], m.data[src:])
	m.mark(dst, n, true)
	return ctx.Err()
}

// CopyFrom is memDisk's way of copying from another, for CapCopyFrom.
func (m *memDisk) CopyFrom(ctx context.Context, src backing.Store, dst, srcOff, n int64, mayUnmap bool) error {
	from, ok := src.(*memDisk)
	if !ok || from == m {
		return backing.ErrNotSupported
	}
	p := make([]byte, n)
	if err := from.ReadAt(ctx, p, srcOff); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.enter("CopyFrom", dst, n); err != nil {
		return err
	}
	copy(m.data[dst:dst+n], p)
	for off := int64(0); off < n; off += memUnit {
		part := p[off:min(off+memUnit, n)]
		m.mark(dst+off, int64(len(part)), !mayUnmap || slices.ContainsFunc(part, func(b byte) bool { return b != 0 }))
	}
	return ctx.Err()
}

// copyRig is a device with units that share a copy manager, LUN 0 and on.
type copyRig struct {
	t      testing.TB
	copies *scsi.CopyManager
	dev    *scsi.Device
	units  []*scsi.Unit
}

func newCopyRig(t testing.TB, stores ...backing.Store) *copyRig {
	t.Helper()
	r := &copyRig{t: t, copies: scsi.NewCopyManager(), dev: scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:disk"})}
	for _, s := range stores {
		r.add(s, nil)
	}
	return r
}

// naaOf is the NAA designator of the unit at a LUN.
func naaOf(lun int) []byte {
	return []byte{0x60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, byte(lun)}
}

// add makes a unit and puts it at the next LUN.
func (r *copyRig) add(s backing.Store, change func(*scsi.UnitConfig)) *scsi.Unit {
	r.t.Helper()
	cfg := scsi.UnitConfig{
		Type: scsi.TypeDirectAccess, Store: s, WriteCache: true,
		Vendor: "TEST", Product: "DISK", Serial: "1", T10ID: "unit " + string(rune('0'+len(r.units))),
		NAA: [16]byte(naaOf(len(r.units))), Copies: r.copies,
	}
	if change != nil {
		change(&cfg)
	}
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.dev.SetUnit(uint64(len(r.units)), u); err != nil {
		r.t.Fatal(err)
	}
	r.units = append(r.units, u)
	return u
}

// close shows that nothing has stayed in the task sets.
func (r *copyRig) close() {
	r.t.Helper()
	for i, u := range r.units {
		if err := u.Close(context.Background()); err != nil {
			r.t.Error(err)
		}
		if s := u.Stats(); s.Tasks != 0 || s.Stuck != 0 {
			r.t.Errorf("LUN %d: left %+v", i, s)
		}
	}
}

// login logs a host in, with the attentions of a new nexus taken.
func (r *copyRig) login(name string) *host {
	r.t.Helper()
	return r.loginBy(r.dev, name, "")
}

func (r *copyRig) loginBy(d *scsi.Device, name, from string) *host {
	r.t.Helper()
	h := &host{t: r.t, nx: d.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2026-01.test:" + name}, Host: from,
		Port: scsi.TargetPort{Name: d.Name(), RelID: 1, Group: 1},
	})}
	for lun := range r.units {
		for o := h.on(lun); ; {
			p := o.do(tur)
			if s := p.outcome(); s == "good" || s == "5/25/00" {
				break
			} else if s[:4] != "6/29" {
				r.t.Fatalf("LUN %d: %s", lun, s)
			}
		}
	}
	return h
}

// on is the host's access to another LUN.
func (h *host) on(lun int) *host {
	return &host{t: h.t, nx: h.nx, lun: uint64(lun) << 48, tag: uint64(lun+1) << 32}
}

// cscdNAA is an identification descriptor with a NAA designator.
func cscdNAA(lun, blockSize int) []byte { return cscd(1, 3, naaOf(lun), blockSize) }

func cscd(codeSet, kind byte, id []byte, blockSize int) []byte {
	d := make([]byte, 32)
	d[0], d[4], d[5], d[7] = 0xe4, codeSet, kind, byte(len(id))
	copy(d[8:28], id)
	binary.BigEndian.PutUint32(d[28:], uint32(blockSize))
	return d
}

// ownUnit is the CSCD descriptor ID of the unit that has the command.
const ownUnit = 0xffff

// b2b is a block to block segment descriptor.
func b2b(src, dst int, nblocks uint16, from, to uint64) []byte {
	be := binary.BigEndian
	d := make([]byte, 28)
	d[0], d[3] = 0x02, 0x18
	be.PutUint16(d[4:], uint16(src))
	be.PutUint16(d[6:], uint16(dst))
	be.PutUint16(d[10:], nblocks)
	be.PutUint64(d[12:], from)
	be.PutUint64(d[20:], to)
	return d
}

// b2bOffset is a block to block segment descriptor with offsets, in bytes.
func b2bOffset(src, dst int, n uint32, from, to uint64, fromOff, toOff uint16) []byte {
	be := binary.BigEndian
	d := make([]byte, 32)
	d[0], d[3] = 0x0a, 0x1c
	be.PutUint16(d[4:], uint16(src))
	be.PutUint16(d[6:], uint16(dst))
	be.PutUint32(d[8:], n)
	be.PutUint64(d[12:], from)
	be.PutUint64(d[20:], to)
	be.PutUint16(d[28:], fromOff)
	be.PutUint16(d[30:], toOff)
	return d
}

// copyList is the parameter list of EXTENDED COPY with a list identifier.
func copyList(id byte, cscds, segments [][]byte) []byte {
	b := make([]byte, 16)
	b[0] = id
	c, s := slices.Concat(cscds...), slices.Concat(segments...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(c)))
	binary.BigEndian.PutUint32(b[8:], uint32(len(s)))
	return slices.Concat(b, c, s)
}

func (h *host) startCopy(list []byte) *pending {
	return h.start(scsi.Simple, copyOut(0x00, 0, len(list)), list)
}

func (h *host) copy(list []byte) *pending {
	p := h.startCopy(list)
	<-p.done
	return p
}

// copyOut and copyIn are the CDBs of the third-party copy commands.
func copyOut(sa byte, id uint32, n int) []byte {
	c := make([]byte, 16)
	c[0], c[1] = 0x83, sa
	at := 6
	if sa == 0x1c {
		at = 2
	}
	binary.BigEndian.PutUint32(c[at:], id)
	binary.BigEndian.PutUint32(c[10:], uint32(n))
	return c
}

func copyIn(sa byte, id uint32, alloc int) []byte {
	c := make([]byte, 16)
	c[0], c[1] = 0x84, sa
	if sa < 5 {
		c[2] = byte(id)
	} else {
		binary.BigEndian.PutUint32(c[2:], id)
	}
	binary.BigEndian.PutUint32(c[10:], uint32(alloc))
	return c
}

// ranges are block device range descriptors: first block and number, in turn.
func ranges(lbaAndLen ...uint64) []byte {
	var b []byte
	for i := 0; i < len(lbaAndLen); i += 2 {
		b = binary.BigEndian.AppendUint64(b, lbaAndLen[i])
		b = binary.BigEndian.AppendUint32(b, uint32(lbaAndLen[i+1]))
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

func populateList(idle uint32, ranges []byte) []byte {
	b := make([]byte, 16, 16+len(ranges))
	binary.BigEndian.PutUint16(b, uint16(14+len(ranges)))
	binary.BigEndian.PutUint32(b[4:], idle)
	binary.BigEndian.PutUint16(b[14:], uint16(len(ranges)))
	return append(b, ranges...)
}

func useList(token []byte, offset uint64, ranges []byte) []byte {
	b := make([]byte, 536, 536+len(ranges))
	binary.BigEndian.PutUint16(b, uint16(534+len(ranges)))
	binary.BigEndian.PutUint64(b[8:], offset)
	copy(b[16:528], token)
	binary.BigEndian.PutUint16(b[534:], uint16(len(ranges)))
	return append(b, ranges...)
}

func (h *host) startPopulate(id uint32, list []byte) *pending {
	return h.start(scsi.Simple, copyOut(0x10, id, len(list)), list)
}

func (h *host) populate(id uint32, list []byte) *pending {
	p := h.startPopulate(id, list)
	<-p.done
	return p
}

func (h *host) useToken(id uint32, list []byte) *pending {
	p := h.start(scsi.Simple, copyOut(0x11, id, len(list)), list)
	<-p.done
	return p
}

// token populates a token and gives it.
func (h *host) token(lbaAndLen ...uint64) []byte {
	h.t.Helper()
	h.expect("POPULATE TOKEN", h.populate(77, populateList(0, ranges(lbaAndLen...))), "good")
	k := tokenOf(h.good(copyIn(0x07, 77, 4096)))
	if len(k) != 512 {
		h.t.Fatalf("a token of %d bytes", len(k))
	}
	return k
}

// tokenOf finds the token in the data of RECEIVE ROD TOKEN INFORMATION.
func tokenOf(b []byte) []byte {
	b = b[32+int(b[13]):]
	if n := binary.BigEndian.Uint32(b); n == 0 {
		return nil
	}
	return b[6:]
}

// contents is all that a store holds.
func (m *memDisk) contents() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.data)
}

// filledDisk is a memDisk full of a pattern.
func filledDisk(seed byte, size int, caps backing.Caps) *memDisk {
	m := newMemDisk(size, caps)
	copy(m.data, pattern(seed, size))
	m.mark(0, int64(size), true)
	return m
}
