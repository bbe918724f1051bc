package scsi

import (
	"context"
	"encoding/binary"

	"blockgate/scsi/sense"
)

// opFormatUnit is the opcode of FORMAT UNIT.
const opFormatUnit = 0x04

// Bits of FORMAT UNIT's byte 1. FMTPINFO is absent: there is no protection
// information.
const (
	formatLongList = 0x20
	formatData     = 0x10
	formatUse      = 0x3f
)

// Lengths of the parts of the parameter list, in bytes (SBC-3 §5.3.2).
const (
	formatShortHeader = 4
	formatLongHeader  = 8
	patternHeader     = 4
)

func formatCommands() []Command {
	return []Command{{
		Name: "FORMAT UNIT", Op: opFormatUnit, SA: NoSA,
		Usage: []byte{opFormatUnit, formatUse, 0, 0, 0, 0},
		Types: TypeDisk, Dir: DirOut, Access: AccessWrite, Reserve: ResWrite, Waits: true,
		Exclusive: true, Range: wholeMedium, OutLen: formatLen, Run: formatUnit,
	}}
}

// formatLen: the CDB does not say how long the parameter list is; the list does.
// The initiator gives what it has, up to what can be in it.
func formatLen(t *Task) (int64, *sense.Sense) {
	if t.CDB[1]&formatData != 0 {
		return min(t.MaxOut, formatLongHeader+patternHeader+int64(t.unit.BlockSize())), nil
	}
	if t.CDB[1]&formatLongList != 0 {
		s := sense.InvalidFieldInCDB(1, 5)
		return 0, &s
	}
	return 0, nil
}

// formatList is a decoded FORMAT UNIT parameter list.
type formatList struct {
	immed   bool
	pattern []byte // nil: the default, which is that all blocks are deallocated or zero
}

// parseFormatList reads the parameter list. There are no defects that a list
// could name, and nothing to certify, so that the options for it, where the
// standard allows them, change nothing.
func parseFormatList(p []byte, long bool, blockSize int) (l formatList, s *sense.Sense) {
	fail := func(s sense.Sense) (formatList, *sense.Sense) { return formatList{}, &s }
	const (
		fov   = 0x80
		ip    = 0x08
		immed = 0x02
		fixed = 0x70 // DPRY, DCRT, STPF
		other = 0x05 // obsolete and vendor specific
	)
	header, defects := formatShortHeader, 0
	if long {
		header = formatLongHeader
	}
	if len(p) < header {
		return fail(sense.ParameterListLength())
	}
	if long {
		defects = int(binary.BigEndian.Uint32(p[4:]))
	} else {
		defects = int(binary.BigEndian.Uint16(p[2:]))
	}
	switch o := p[1]; {
	case p[0] != 0: // PROTECTION FIELDS USAGE
		return fail(sense.InvalidFieldInParameterList(0, -1))
	case o&other != 0, o&fov == 0 && o&(fixed|ip) != 0:
		return fail(sense.InvalidFieldInParameterList(1, -1))
	case long && (p[2] != 0 || p[3] != 0): // P_I_INFORMATION, PROTECTION INTERVAL EXPONENT
		return fail(sense.InvalidFieldInParameterList(3, -1))
	case defects != 0 && long:
		return fail(sense.InvalidFieldInParameterList(4, -1))
	case defects != 0:
		return fail(sense.InvalidFieldInParameterList(2, -1))
	}
	l.immed = p[1]&immed != 0
	if p[1]&ip == 0 {
		return l, nil
	}
	d := p[header:]
	if len(d) < patternHeader {
		return fail(sense.ParameterListLength())
	}
	n := int(binary.BigEndian.Uint16(d[2:]))
	switch {
	case d[0] != 0: // IP MODIFIER, SI: no blocks beside those of the medium
		return fail(sense.InvalidFieldInParameterList(header, -1))
	case d[1] > 1 || d[1] == 0 && n != 0:
		return fail(sense.InvalidFieldInParameterList(header+1, -1))
	case d[1] == 1 && (n == 0 || n > blockSize):
		return fail(sense.InvalidFieldInParameterList(header+2, -1))
	case len(d) < patternHeader+n:
		return fail(sense.ParameterListLength())
	}
	if n > 0 {
		l.pattern = append([]byte(nil), d[patternHeader:][:n]...)
	}
	return l, nil
}

// formatUnit is FORMAT UNIT (SBC-3 §5.3): the medium keeps its geometry and loses
// its content. A format operation that fails leaves a medium with some blocks
// as they were; it can be read and written.
func formatUnit(t *Task) {
	u := t.unit
	var list formatList
	if t.CDB[1]&formatData != 0 {
		var s *sense.Sense
		if list, s = parseFormatList(t.Out, t.CDB[1]&formatLongList != 0, u.BlockSize()); s != nil {
			t.Fail(*s)
			return
		}
	}
	if list.pattern != nil && !u.canFill() {
		t.Fail(sense.SpaceAllocationFailed())
		return
	}
	n := byteOffset(u, u.Blocks())
	op := &operation{total: n}
	began := u.begin(op, func(ctx context.Context) error {
		var err error
		if list.pattern != nil {
			err = u.overwrite(ctx, op, list.pattern, n)
		} else {
			err = u.erase(ctx, op, n)
		}
		if err != nil {
			u.warn("format failed", "unit", u.name(), "err", err)
		}
		return err
	})
	if !began {
		t.Fail(sense.LUNotSupported())
		return
	}
	t.await(op, list.immed, sense.FormatFailed())
}
