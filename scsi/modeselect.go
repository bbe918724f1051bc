package scsi

import (
	"encoding/binary"
	"math/bits"

	"blockgate/scsi/sense"
)

// modeSelectLen checks the CDB's own fields and gives the parameter list length.
func modeSelectLen(t *Task) (int64, *sense.Sense) {
	var bad sense.Sense
	switch {
	case t.CDB[1]&0x01 != 0: // SP: nothing can be saved
		bad = sense.InvalidFieldInCDB(1, 0)
	case t.CDB[1]&0x10 == 0: // PF: no pages but the standard's
		bad = sense.InvalidFieldInCDB(1, 4)
	case t.CDB[0] == 0x55:
		return int64(binary.BigEndian.Uint16(t.CDB[7:])), nil
	default:
		return int64(t.CDB[4]), nil
	}
	return 0, &bad
}

// modeSelect is MODE SELECT(6) and (10) (SPC-4 §6.11, §6.12). All pages of the
// list take effect or none.
func modeSelect(t *Task) {
	u := t.unit
	list := t.Out
	if t.OutLen == 0 {
		return
	}
	if int64(len(list)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	u.mu.Lock()
	old := u.mode
	u.mu.Unlock()
	next, bad := u.parseModeList(list, t.CDB[0] == 0x55, old)
	if bad != nil {
		t.Fail(*bad)
		return
	}
	if old.wce && !next.wce {
		// From now on GOOD means durable; what was answered before must be too.
		if err := t.Store().Flush(t.Context()); err != nil {
			t.FailStore(err, AccessNone, 0)
			return
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if t.state.Load()&flagAborted != 0 || next == u.mode {
		return
	}
	u.mode = next
	u.applyModeLocked()
	u.raiseLocked(attnModeParameters, t.itl)
}

// parseModeList checks a mode parameter list (SPC-4 §7.5) and gives m with its
// pages adopted.
func (u *Unit) parseModeList(list []byte, ten bool, m modePages) (modePages, *sense.Sense) {
	fail := func(s sense.Sense) (modePages, *sense.Sense) { return m, &s }
	header, descLen, descAt, long := 4, 0, 3, false
	if ten {
		header, descAt = 8, 6
	}
	if len(list) < header {
		return fail(sense.ParameterListLength())
	}
	if ten {
		if list[2] != 0 {
			return fail(sense.InvalidFieldInParameterList(2, -1))
		}
		long = list[4]&0x01 != 0
		descLen = int(binary.BigEndian.Uint16(list[6:]))
	} else {
		if list[1] != 0 {
			return fail(sense.InvalidFieldInParameterList(1, -1))
		}
		descLen = int(list[3])
	}
	want := 8
	if long {
		want = 16
	}
	if descLen != 0 && descLen != want {
		return fail(sense.InvalidFieldInParameterList(descAt, -1))
	}
	if len(list) < header+descLen {
		return fail(sense.ParameterListLength())
	}
	if descLen != 0 {
		if at := u.checkBlockDescriptor(list[header:header+descLen], long); at >= 0 {
			return fail(sense.InvalidFieldInParameterList(header+at, -1))
		}
	}
	for at := header + descLen; at < len(list); {
		p, n, bad := u.checkModePage(list, at, m)
		if bad != nil {
			return m, bad
		}
		m.adopt(p, list[at:at+n])
		at += n
	}
	return m, nil
}

// checkBlockDescriptor: the geometry cannot be changed, so a descriptor must say
// what is, or that nothing changes (zero or all ones for the number of blocks).
// It returns the offset of the field that does not, or -1.
func (u *Unit) checkBlockDescriptor(d []byte, long bool) int {
	blocks, size, all, sizeAt := uint64(binary.BigEndian.Uint32(d)), binary.BigEndian.Uint32(d[4:])&0xffffff, uint64(0xffffffff), 5
	if long {
		blocks, size, all, sizeAt = binary.BigEndian.Uint64(d), binary.BigEndian.Uint32(d[12:]), ^uint64(0), 12
	}
	if blocks != 0 && blocks != all && blocks != u.Blocks() {
		return 0
	}
	if size != uint32(u.BlockSize()) && size != 0 {
		return sizeAt
	}
	return -1
}

// checkModePage finds the page at list[at:] and its length, and checks that it
// differs from m in changeable bits only.
func (u *Unit) checkModePage(list []byte, at int, m modePages) (p modePage, n int, bad *sense.Sense) {
	fail := func(s sense.Sense) (modePage, int, *sense.Sense) { return p, 0, &s }
	b := list[at:]
	code, sub, head := b[0]&0x3f, byte(0), 2
	if b[0]&0x40 != 0 {
		head = 4
	}
	if len(b) < head {
		return fail(sense.ParameterListLength())
	}
	n = int(b[1]) + 2
	if head == 4 {
		sub = b[1]
		n = int(binary.BigEndian.Uint16(b[2:])) + 4
	}
	found := false
	for _, p = range modePageList {
		p = p.of(u)
		if p.code == code && p.sub == sub && (p.sub != 0) == (head == 4) && p.types&u.typeBit != 0 {
			found = true
			break
		}
	}
	switch {
	case !found:
		return fail(sense.InvalidFieldInParameterList(at, 5))
	case n != p.length:
		return fail(sense.InvalidFieldInParameterList(at+head-1, -1))
	case len(b) < n:
		return fail(sense.ParameterListLength())
	}
	now, mask := p.render(m, false), p.render(everyBit, true)
	for i := head; i < n; i++ {
		if diff := (b[i] ^ now[i]) &^ mask[i]; diff != 0 {
			return fail(sense.InvalidFieldInParameterList(at+i, bits.Len8(diff)-1))
		}
	}
	return p, n, nil
}
