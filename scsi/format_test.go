package scsi_test

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

const (
	fmtData = 0x10
	fmtLong = 0x20
)

func formatCDB(flags byte) []byte { return []byte{0x04, flags, 0, 0, 0, 0} }

func TestFormatUnit(t *testing.T) {
	for name, caps := range map[string]backing.Caps{"thin": backing.CapDiscard, "thick": 0, "zeroing": backing.CapWriteZeroes} {
		disk := newMemDisk(sanitizeSize, caps)
		r := newSBCRig(t, disk, unbound)
		for what, c := range map[string]struct {
			cdb, list []byte
			fill      byte
		}{
			"by default":             {formatCDB(0), nil, 0},
			"short list":             {formatCDB(fmtData), []byte{0, 0, 0, 0}, 0},
			"long list":              {formatCDB(fmtData | fmtLong), make([]byte, 8), 0},
			"options for a disk":     {formatCDB(fmtData), []byte{0, 0xf0, 0, 0}, 0},
			"default pattern":        {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 0, 0, 0}, 0},
			"pattern":                {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 1, 0, 1, 0xa5}, 0xa5},
			"complete defect list":   {formatCDB(fmtData | 0x08), []byte{0, 0, 0, 0}, 0},
			"pattern in a long list": {formatCDB(fmtData | fmtLong), []byte{0, 0x88, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 7}, 7},
		} {
			r.good("", r.do(cdbOf(0x2a, 0, 9, 1), pattern(1, 512)))
			r.good(name+", "+what, r.do(c.cdb, c.list))
			r.wantMedium(name+", "+what, 0, bytes.Repeat([]byte{c.fill}, sanitizeSize))
			if !bytes.Equal(disk.stable, disk.data) {
				t.Errorf("%s, %s: GOOD before it was durable", name, what)
			}
		}
	}
}

func TestFormatUnitRefusals(t *testing.T) {
	disk := newMemDisk(sanitizeSize, backing.CapDiscard)
	r := newSBCRig(t, disk, unbound)
	for name, c := range map[string]struct {
		cdb, list []byte
		asc       byte
	}{
		"protection information":    {formatCDB(0x80), nil, 0x24},
		"long list without data":    {formatCDB(fmtLong), nil, 0x24},
		"cut header":                {formatCDB(fmtData), []byte{0, 0}, 0x1a},
		"cut long header":           {formatCDB(fmtData | fmtLong), []byte{0, 0, 0, 0}, 0x1a},
		"protection fields usage":   {formatCDB(fmtData), []byte{1, 0, 0, 0}, 0x26},
		"defects":                   {formatCDB(fmtData), []byte{0, 0, 0, 4, 0, 0, 0, 1}, 0x26},
		"defects in a long list":    {formatCDB(fmtData | fmtLong), []byte{0, 0, 0, 0, 0, 0, 0, 8}, 0x26},
		"interval exponent":         {formatCDB(fmtData | fmtLong), []byte{0, 0, 0, 1, 0, 0, 0, 0}, 0x26},
		"options without FOV":       {formatCDB(fmtData), []byte{0, 0x40, 0, 0}, 0x26},
		"pattern without FOV":       {formatCDB(fmtData), []byte{0, 0x08, 0, 0, 0, 1, 0, 1, 1}, 0x26},
		"no pattern":                {formatCDB(fmtData), []byte{0, 0x88, 0, 0}, 0x1a},
		"pattern type":              {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 2, 0, 1, 1}, 0x26},
		"default with a length":     {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 0, 0, 1, 1}, 0x26},
		"pattern of nothing":        {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 1, 0, 0}, 0x26},
		"pattern beyond a block":    {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 1, 2, 1, 1}, 0x26},
		"pattern beyond the list":   {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0, 1, 0, 9, 1}, 0x1a},
		"blocks beside the medium":  {formatCDB(fmtData), []byte{0, 0x88, 0, 0, 0x20, 1, 0, 1, 1}, 0x26},
		"a bit that means nothing":  {formatCDB(fmtData), []byte{0, 0x81, 0, 0}, 0x26},
		"a bit of the CDB likewise": {[]byte{0x04, 0, 1, 0, 0, 0}, nil, 0x24},
	} {
		r.want(name, r.do(c.cdb, c.list), 5, c.asc, 0)
	}
	if disk.count("WriteAt")+disk.count("Discard") != 0 {
		t.Error("refused and done")
	}
	disk.fail = func(op string, _, _ int64) error {
		if op == "Discard" || op == "WriteAt" {
			return errors.New("broken")
		}
		return nil
	}
	r.want("a store that fails", r.do(formatCDB(0), nil), 3, 0x31, 1)
	r.good("the medium can be read all the same", r.do(cdbOf(0x28, 0, 0, 1), nil))
}

func TestFormatInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newSBCRig(t, newMemDisk(4<<20, 0), func(c *scsi.UnitConfig) { c.OverwriteRate = 1 << 20 })
		r.good("IMMED", r.do(formatCDB(fmtData), []byte{0, 0x8a, 0, 0, 0, 1, 0, 1, 9}))
		synctest.Wait()
		r.want("", r.do(tur, nil), 2, 0x04, 0x04)
		r.want("", r.do(cdbOf(0x28, 0, 0, 1), nil), 2, 0x04, 0x04)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		r.good("", r.do(tur, nil))
		r.wantMedium("", 0, bytes.Repeat([]byte{9}, 4<<20))
	})
}

func FuzzFormatUnit(f *testing.F) {
	f.Add(byte(fmtData), []byte{0, 0x88, 0, 0, 0, 1, 0, 1, 0xa5})
	f.Add(byte(fmtData|fmtLong), make([]byte, 8))
	f.Add(byte(0), []byte{})
	f.Fuzz(func(t *testing.T, flags byte, list []byte) {
		if len(list) > 1 {
			list[1] &^= 0x02 // IMMED: the operation would outlive the check below
		}
		disk := newMemDisk(64<<10, backing.CapDiscard)
		r := newSBCRig(t, disk, unbound)
		res := r.do(formatCDB(flags), list)
		if done := disk.count("WriteAt")+disk.count("Discard") > 0; done != (res.status == scsi.Good) {
			t.Errorf("status %#x, done %v", res.status, done)
		}
	})
}
