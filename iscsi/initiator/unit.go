package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"blockgate/scsi/sense"
)

// Operation codes of the helpers (SPC-4 table E.2).
const (
	opTestUnitReady    = 0x00
	opInquiry          = 0x12
	opReadCapacity10   = 0x25
	opSynchronizeCache = 0x35
	opUnmap            = 0x42
	opRead16           = 0x88
	opWrite16          = 0x8a
	opWriteSame16      = 0x93
	opServiceActionIn  = 0x9e
	saReadCapacity16   = 0x10
	opReportLUNs       = 0xa0
)

// unitAttentions is how many UNIT ATTENTION conditions in a row the helpers take
// notice of and try again: a new session finds one or more on each unit.
const unitAttentions = 8

// Unit is a logical unit seen through a session, with typed commands. Answers
// other than GOOD are *StatusError. Safe for concurrent use.
type Unit struct {
	s   *Session
	lun uint64 // the LUN field
}

// Unit gives the logical unit with a number; nothing is sent.
func (s *Session) Unit(lun uint64) *Unit { return &Unit{s, LUN(lun)} }

// run executes a command, again while UNIT ATTENTIONs are reported.
func (u *Unit) run(ctx context.Context, c *Command) error {
	c.LUN = u.lun
	for try := 0; ; try++ {
		if err := u.s.Execute(ctx, c); err != nil {
			return err
		}
		err := c.Failure()
		if IsSense(err, sense.UnitAttention) && try < unitAttentions {
			continue
		}
		return err
	}
}

// IsSense reports whether the error is a CHECK CONDITION with this sense key.
func IsSense(err error, key sense.Key) bool {
	var e *StatusError
	return errors.As(err, &e) && e.HasSense && e.Sense.Key == key
}

// IsUnitAttention reports whether the error is a UNIT ATTENTION: the command did
// not run and can be sent again.
func IsUnitAttention(err error) bool { return IsSense(err, sense.UnitAttention) }

// in runs a command that has data-in of at most n bytes.
func (u *Unit) in(ctx context.Context, cdb []byte, n int) ([]byte, error) {
	c := &Command{CDB: cdb, In: make([]byte, n)}
	err := u.run(ctx, c)
	return c.In[:c.Received], err
}

// TestUnitReady asks whether the unit is ready.
func (u *Unit) TestUnitReady(ctx context.Context) error {
	return u.run(ctx, &Command{CDB: []byte{opTestUnitReady, 0, 0, 0, 0, 0}})
}

// Inquiry is standard INQUIRY data (SPC-4 §6.6.2).
type Inquiry struct {
	Qualifier byte // peripheral qualifier; 0: there is a unit
	Type      byte // peripheral device type; 0: disk
	Removable bool
	Version   byte
	Vendor    string
	Product   string
	Revision  string
}

// Inquiry reads the standard data.
func (u *Unit) Inquiry(ctx context.Context) (q Inquiry, err error) {
	b, err := u.in(ctx, []byte{opInquiry, 0, 0, 0, 255, 0}, 255)
	if err != nil {
		return q, fmt.Errorf("INQUIRY: %w", err)
	}
	if len(b) < 36 {
		return q, fmt.Errorf("INQUIRY: %w", protocolErrorf("%d bytes of standard data, 36 are the least", len(b)))
	}
	return Inquiry{
		Qualifier: b[0] >> 5, Type: b[0] & 0x1f, Removable: b[1]&0x80 != 0, Version: b[2],
		Vendor: text(b[8:16]), Product: text(b[16:32]), Revision: text(b[32:36]),
	}, nil
}

func text(b []byte) string { return strings.TrimRight(string(b), " \x00") }

// VPD reads a vital product data page, header included (SPC-4 §7.8).
func (u *Unit) VPD(ctx context.Context, page byte) ([]byte, error) {
	b, err := u.in(ctx, []byte{opInquiry, 1, page, 4096 >> 8, 4096 & 0xff, 0}, 4096)
	if err != nil {
		return nil, fmt.Errorf("INQUIRY, page %02Xh: %w", page, err)
	}
	if len(b) < 4 || b[1] != page {
		return nil, fmt.Errorf("INQUIRY, page %02Xh: %w", page, protocolErrorf("the answer is not that page"))
	}
	return b[:min(len(b), 4+int(binary.BigEndian.Uint16(b[2:])))], nil
}

// Serial reads the unit serial number (VPD page 80h).
func (u *Unit) Serial(ctx context.Context) (string, error) {
	b, err := u.VPD(ctx, 0x80)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(text(b[4:])), nil
}

// Capacity is what READ CAPACITY(16) tells (SBC-3 §5.16).
type Capacity struct {
	Blocks    uint64
	BlockSize int  // bytes
	Physical  int  // bytes per physical block
	Thin      bool // LBPME: unmapped blocks are possible
	ThinZero  bool // LBPRZ: unmapped blocks read as zeroes
	Protected bool // formatted with protection information
}

// Bytes is the size of the medium.
func (c Capacity) Bytes() int64 { return int64(c.Blocks) * int64(c.BlockSize) }

// ReadCapacity reads the capacity by READ CAPACITY(16), or by (10) where the
// unit does not know that.
func (u *Unit) ReadCapacity(ctx context.Context) (c Capacity, err error) {
	cdb := make([]byte, 16)
	cdb[0], cdb[1], cdb[13] = opServiceActionIn, saReadCapacity16, 32
	b, err := u.in(ctx, cdb, 32)
	switch {
	case IsSense(err, sense.IllegalRequest):
		return u.readCapacity10(ctx)
	case err != nil:
		return c, fmt.Errorf("READ CAPACITY(16): %w", err)
	case len(b) < 12:
		return c, fmt.Errorf("READ CAPACITY(16): %w", protocolErrorf("%d bytes", len(b)))
	}
	c.Blocks = binary.BigEndian.Uint64(b) + 1
	c.BlockSize = int(binary.BigEndian.Uint32(b[8:]))
	c.Physical = c.BlockSize
	if len(b) >= 16 {
		c.Protected = b[12]&1 != 0
		c.Physical <<= b[13] & 0x0f
		c.Thin, c.ThinZero = b[14]&0x80 != 0, b[14]&0x40 != 0
	}
	return c, c.check()
}

func (u *Unit) readCapacity10(ctx context.Context) (c Capacity, err error) {
	b, err := u.in(ctx, []byte{opReadCapacity10, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 8)
	if err != nil {
		return c, fmt.Errorf("READ CAPACITY(10): %w", err)
	}
	if len(b) < 8 {
		return c, fmt.Errorf("READ CAPACITY(10): %w", protocolErrorf("%d bytes", len(b)))
	}
	c.Blocks = uint64(binary.BigEndian.Uint32(b)) + 1
	c.BlockSize = int(binary.BigEndian.Uint32(b[4:]))
	c.Physical = c.BlockSize
	return c, c.check()
}

// check refuses what would make sizes overflow.
func (c Capacity) check() error {
	if c.BlockSize < 1 || c.BlockSize > 1<<20 || c.Blocks > 1<<63/uint64(c.BlockSize) || c.Blocks == 0 || c.Bytes() < 0 {
		return protocolErrorf("capacity of %d blocks of %d bytes", c.Blocks, c.BlockSize)
	}
	return nil
}

// Limits are what VPD page B0h tells (SBC-3 §6.6.4); 0 means not reported.
type Limits struct {
	MaxTransfer     uint32 // blocks
	OptimalTransfer uint32 // blocks
	MaxUnmapLBAs    uint32
	MaxUnmapRanges  uint32
	MaxWriteSame    uint64 // blocks
}

// Limits reads the block limits. A unit without the page has none.
func (u *Unit) Limits(ctx context.Context) (l Limits, err error) {
	b, err := u.VPD(ctx, 0xb0)
	if IsSense(err, sense.IllegalRequest) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	be := binary.BigEndian
	if len(b) >= 16 {
		l.MaxTransfer, l.OptimalTransfer = be.Uint32(b[8:]), be.Uint32(b[12:])
	}
	if len(b) >= 44 {
		l.MaxUnmapLBAs, l.MaxUnmapRanges = be.Uint32(b[20:]), be.Uint32(b[24:])
		l.MaxWriteSame = be.Uint64(b[36:])
	}
	return l, nil
}

// ReportLUNs lists the numbers of the target's units, sent to LUN 0.
func (s *Session) ReportLUNs(ctx context.Context) ([]uint64, error) {
	u := s.Unit(0)
	for n := 4096; ; {
		cdb := []byte{opReportLUNs, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(cdb[6:], uint32(n))
		b, err := u.in(ctx, cdb, n)
		if err != nil {
			return nil, fmt.Errorf("REPORT LUNS: %w", err)
		}
		if len(b) < 8 {
			return nil, fmt.Errorf("REPORT LUNS: %w", protocolErrorf("%d bytes", len(b)))
		}
		// 65536 units are more than single-level addressing can name.
		have := int(min(binary.BigEndian.Uint32(b), 8<<16)) + 8
		if have > n {
			n = have
			continue
		}
		var luns []uint64
		for p := b[8:min(have, len(b))]; len(p) >= 8; p = p[8:] {
			luns = append(luns, LUNNumber(binary.BigEndian.Uint64(p)))
		}
		return luns, nil
	}
}

// PutCDB16 fills the 16 bytes of a CDB that has an LBA at byte 2 and a count of
// blocks at byte 10, as READ(16), WRITE(16) and their kin do, and returns them.
func PutCDB16(cdb []byte, op byte, lba uint64, nblocks uint32) []byte {
	clear(cdb)
	cdb[0] = op
	binary.BigEndian.PutUint64(cdb[2:], lba)
	binary.BigEndian.PutUint32(cdb[10:], nblocks)
	return cdb
}

// ReadBlocks reads nblocks blocks from lba into p by one READ(16). The command's
// expected length is len(p).
func (u *Unit) ReadBlocks(ctx context.Context, p []byte, lba uint64, nblocks uint32) error {
	c := &Command{CDB: PutCDB16(make([]byte, 16), opRead16, lba, nblocks), In: p}
	if err := u.run(ctx, c); err != nil {
		return fmt.Errorf("READ(16) of %d blocks at %d: %w", nblocks, lba, err)
	}
	if c.Received != len(p) {
		return fmt.Errorf("READ(16) of %d blocks at %d: %w", nblocks, lba, protocolErrorf("GOOD with %d of %d bytes", c.Received, len(p)))
	}
	return nil
}

// WriteBlocks writes p as nblocks blocks from lba by one WRITE(16).
func (u *Unit) WriteBlocks(ctx context.Context, p []byte, lba uint64, nblocks uint32) error {
	c := &Command{CDB: PutCDB16(make([]byte, 16), opWrite16, lba, nblocks), Out: p}
	if err := u.run(ctx, c); err != nil {
		return fmt.Errorf("WRITE(16) of %d blocks at %d: %w", nblocks, lba, err)
	}
	return nil
}

// WriteSame writes one block's content to nblocks blocks by WRITE SAME(16), or,
// with unmap, lets the unit deallocate them.
func (u *Unit) WriteSame(ctx context.Context, block []byte, lba uint64, nblocks uint32, unmap bool) error {
	cdb := PutCDB16(make([]byte, 16), opWriteSame16, lba, nblocks)
	if unmap {
		cdb[1] |= 0x08
	}
	if err := u.run(ctx, &Command{CDB: cdb, Out: block}); err != nil {
		return fmt.Errorf("WRITE SAME(16) of %d blocks at %d: %w", nblocks, lba, err)
	}
	return nil
}

// SynchronizeCache makes everything written durable.
func (u *Unit) SynchronizeCache(ctx context.Context) error {
	if err := u.run(ctx, &Command{CDB: []byte{opSynchronizeCache, 0, 0, 0, 0, 0, 0, 0, 0, 0}}); err != nil {
		return fmt.Errorf("SYNCHRONIZE CACHE(10): %w", err)
	}
	return nil
}

// Unmap deallocates one run of blocks.
func (u *Unit) Unmap(ctx context.Context, lba uint64, nblocks uint32) error {
	list := make([]byte, 24) // one descriptor (SBC-3 §5.28.2)
	binary.BigEndian.PutUint16(list, 22)
	binary.BigEndian.PutUint16(list[2:], 16)
	binary.BigEndian.PutUint64(list[8:], lba)
	binary.BigEndian.PutUint32(list[16:], nblocks)
	c := &Command{CDB: []byte{opUnmap, 0, 0, 0, 0, 0, 0, 0, byte(len(list)), 0}, Out: list}
	if err := u.run(ctx, c); err != nil {
		return fmt.Errorf("UNMAP of %d blocks at %d: %w", nblocks, lba, err)
	}
	return nil
}
