package scsi

import (
	"encoding/binary"
	"fmt"
	"math"
)

// vpdPage is one vital product data page (SPC-4 §7.8, SBC-3 §6.5).
type vpdPage struct {
	code  byte
	types Types
	// build appends the page to b, which holds the four bytes of the header.
	build func(t *Task, b []byte) []byte
}

// vpdPages are the pages there are besides page 00h, ascending.
var vpdPages = []vpdPage{
	{0x80, withMedium | TypeController, vpdSerial},
	{0x83, AnyType, vpdIdentification},
	{0x86, withMedium | TypeController, vpdExtended},
	{vpdCodeCopy, TypeDisk, vpdThirdPartyCopy},
	{0xb0, TypeDisk, vpdBlockLimits},
	{0xb1, TypeDisk, vpdCharacteristics},
	{0xb2, TypeDisk, vpdProvisioning},
}

// findVPD gives the builder of a page, or nil.
func (u *Unit) findVPD(code byte) func(*Task, []byte) []byte {
	if u.absent {
		return nil
	}
	if code == 0 {
		return vpdSupported
	}
	for _, p := range vpdPages {
		if p.code == code && u.hasVPD(&p) {
			return p.build
		}
	}
	return nil
}

func (u *Unit) hasVPD(p *vpdPage) bool {
	return p.types&u.typeBit != 0 && (p.code != vpdCodeCopy || u.hasCopies())
}

// vpdSupported is the Supported VPD Pages page.
func vpdSupported(t *Task, b []byte) []byte {
	b = append(b, 0)
	for _, p := range vpdPages {
		if t.unit.hasVPD(&p) {
			b = append(b, p.code)
		}
	}
	return b
}

// vpdSerial is the Unit Serial Number page.
func vpdSerial(t *Task, b []byte) []byte {
	s := t.unit.cfg.Load().Serial
	n := len(b)
	b = append(b, s...)
	padded(b[n:], s)
	return b
}

// Fields of a designation descriptor (SPC-4 §7.8.6).
const (
	codeBinary, codeASCII, codeUTF8 = 1, 2, 3

	assocUnit, assocPort, assocDevice = 0x00, 0x10, 0x20

	designatorT10, designatorNAA, designatorRelPort = 1, 3, 4
	designatorGroup, designatorName                 = 5, 8

	protocolISCSI = 0x50
	designatorPIV = 0x80 // the protocol identifier is valid
)

// designator appends one designation descriptor.
func designator(b []byte, code, assoc, kind byte, data []byte) []byte {
	first := code
	if assoc != assocUnit {
		first |= protocolISCSI
		assoc |= designatorPIV
	}
	b = append(b, first, assoc|kind, 0, byte(len(data)))
	return append(b, data...)
}

// nameString is a SCSI name string: UTF-8, zero-terminated, a multiple of four.
func nameString(s string) []byte {
	if len(s) > 251 {
		s = s[:251]
	}
	return append([]byte(s), make([]byte, 4-len(s)%4)...)
}

// t10Designator is the T10 vendor ID based designator.
func (c *UnitConfig) t10Designator() []byte {
	id := c.T10ID
	if id == "" {
		id = fmt.Sprintf("%-8.8s%-16.16s%s", c.Vendor, c.Product, c.Serial)
	}
	text := make([]byte, min(len(id), 252))
	padded(text, id)
	return text
}

// vpdIdentification is the Device Identification page: who the unit is, by which
// port it is seen, and which device it belongs to.
func vpdIdentification(t *Task, b []byte) []byte {
	c := t.unit.cfg.Load()
	if t.unit.typeBit != TypeWLUN {
		b = designator(b, codeASCII, assocUnit, designatorT10, c.t10Designator())
		if c.NAA != [16]byte{} {
			b = designator(b, codeBinary, assocUnit, designatorNAA, c.NAA[:])
			b = designator(b, codeUTF8, assocUnit, designatorName, nameString(fmt.Sprintf("naa.%x", c.NAA[:])))
		}
	}
	p := t.Nexus.cfg.Port
	b = designator(b, codeBinary, assocPort, designatorRelPort, []byte{0, 0, byte(p.RelID >> 8), byte(p.RelID)})
	if t.unit.typeBit&withMedium != 0 {
		b = designator(b, codeBinary, assocPort, designatorGroup, []byte{0, 0, byte(p.Group >> 8), byte(p.Group)})
	}
	// The iSCSI target port's name (RFC 7143 §4.4), told apart by the identifier
	// that stays when portal groups are renumbered.
	b = designator(b, codeUTF8, assocPort, designatorName, nameString(fmt.Sprintf("%s,t,0x%04x", p.Name, p.RelID)))
	return designator(b, codeUTF8, assocDevice, designatorName, nameString(p.Name))
}

// vpdExtended is the Extended INQUIRY Data page.
func vpdExtended(t *Task, b []byte) []byte {
	p := append(b, make([]byte, 60)...)
	p[5] = 0x07 // HEADSUP, ORDSUP, SIMPSUP
	if t.unit.typeBit&withMedium != 0 {
		p[6] = 0x01 // V_SUP: there may be a volatile cache
	}
	p[7] = 0x01 // LUICLR: REPORTED LUNS DATA HAS CHANGED is cleared on all units at once
	return p
}

// vpdBlockLimits is the Block Limits page (SBC-3 §6.5.3).
func vpdBlockLimits(t *Task, b []byte) []byte {
	u := t.unit
	c := u.cfg.Load()
	p := append(b, make([]byte, 60)...)
	be := binary.BigEndian
	p[5] = maxCompareAndWriteBlocks
	gran := c.OptimalGranularity
	if gran == 0 && u.physicalExp > 0 {
		gran = 1 << u.physicalExp
	}
	be.PutUint16(p[6:], uint16(gran))
	maxTransfer := min(u.maxTransfer>>u.blockShift, math.MaxUint32)
	be.PutUint32(p[8:], uint32(maxTransfer))
	opt := int64(c.OptimalLength)
	if opt == 0 {
		opt = int64(u.info.OptimalIO) >> u.blockShift
	}
	be.PutUint32(p[12:], uint32(min(opt, maxTransfer)))
	if u.thin() {
		nblocks, ndescs := u.maxUnmap()
		be.PutUint32(p[20:], uint32(nblocks))
		be.PutUint32(p[24:], uint32(ndescs))
		g := max(uint32(u.info.DiscardGranularity>>u.blockShift), 1)
		be.PutUint32(p[28:], g)
		if a := uint32(u.info.DiscardAlignment >> u.blockShift); u.info.DiscardGranularity > 0 {
			be.PutUint32(p[32:], 1<<31|a%g) // UGAVALID
		}
	}
	be.PutUint64(p[36:], u.maxWriteSame())
	u.atomicLimits().put(p)
	return p
}

// vpdCharacteristics is the Block Device Characteristics page (SBC-3 §6.5.2).
func vpdCharacteristics(t *Task, b []byte) []byte {
	u := t.unit
	rate := u.cfg.Load().RotationRate
	if rate == 0 && !u.info.Rotational {
		rate = 1 // not a rotating medium
	}
	p := append(b, make([]byte, 60)...)
	binary.BigEndian.PutUint16(p[4:], uint16(rate))
	if u.thin() {
		p[7] = 0x40 // WABEREQ 01b: reads succeed after a SANITIZE BLOCK ERASE
	}
	return p
}

// vpdProvisioning is the Logical Block Provisioning page (SBC-3 §6.5.4).
func vpdProvisioning(t *Task, b []byte) []byte {
	if !t.unit.thin() {
		return append(b, 0, 0, 0, 0)
	}
	// LBPU, LBPWS, LBPWS10 and LBPRZ: what is unmapped reads as zeroes. Thin.
	return append(b, t.unit.thresholdExponent(), 0xe4, 0x02, 0)
}
