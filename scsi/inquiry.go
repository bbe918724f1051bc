package scsi

import (
	"encoding/binary"

	"blockgate/scsi/sense"
)

// Version descriptors of the standard INQUIRY data (SPC-4 table 148).
const (
	versionSAM5  = 0x00a0
	versionSPC4  = 0x0460
	versionISCSI = 0x0960
	versionSBC3  = 0x04c0
	versionMMC   = 0x02a0
	versionSCC2  = 0x01e0
)

// standardInquiryLen is the length of the standard INQUIRY data, in bytes.
const standardInquiryLen = 96

func inquiry(t *Task) {
	u := t.unit
	alloc := int64(binary.BigEndian.Uint16(t.CDB[3:]))
	page := t.CDB[2]
	if t.CDB[1]&0x01 == 0 {
		if page != 0 {
			t.Fail(sense.InvalidFieldInCDB(2, -1))
			return
		}
		var b [standardInquiryLen]byte
		u.standardInquiry(b[:], t.itl.tpgs())
		t.Respond(b[:], alloc)
		return
	}
	if build := u.findVPD(page); build != nil {
		b := build(t, []byte{u.peripheral(), page, 0, 0})
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)-4))
		t.Respond(b, alloc)
		return
	}
	t.Fail(sense.InvalidFieldInCDB(2, -1))
}

// peripheral is the first byte of INQUIRY data: qualifier and device type.
func (u *Unit) peripheral() byte {
	if u.absent {
		return 0x7f // no such unit, and none could be there
	}
	return byte(u.cfg.Load().Type)
}

// standardInquiry fills b (SPC-4 §6.6.2); tpgs is the TPGS field in its place.
func (u *Unit) standardInquiry(b []byte, tpgs byte) {
	c := u.cfg.Load()
	b[0] = u.peripheral()
	if c.Removable {
		b[1] = 0x80
	}
	b[2] = 0x06 // SPC-4
	b[3] = 0x12 // hierarchical addressing, response data format 2
	b[4] = standardInquiryLen - 5
	b[5] = tpgs
	if u.hasCopies() {
		b[5] |= 0x08 // 3PC
	}
	b[7] = 0x02 // CMDQUE
	padded(b[8:16], c.Vendor)
	padded(b[16:32], c.Product)
	padded(b[32:36], c.Revision)
	versions := []uint16{versionSAM5, versionSPC4, versionISCSI}
	switch c.Type {
	case TypeDirectAccess:
		versions = append(versions, versionSBC3)
	case TypeMultimedia:
		versions = append(versions, versionMMC)
	case TypeStorageController:
		versions = append(versions, versionSCC2)
	}
	for i, v := range versions {
		binary.BigEndian.PutUint16(b[58+2*i:], v)
	}
}

// padded writes s as a left-aligned ASCII field (SPC-4 §4.4.1): cut or filled
// with blanks, and a blank for what may not stand there.
func padded(dst []byte, s string) {
	for i := range dst {
		dst[i] = ' '
		if i < len(s) && s[i] >= 0x20 && s[i] <= 0x7e {
			dst[i] = s[i]
		}
	}
}
