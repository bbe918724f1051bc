package scsi

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"blockgate/scsi/sense"
)

// opSanitize is the opcode of SANITIZE.
const opSanitize = 0x48

// Bits of SANITIZE's byte 1.
const (
	sanitizeImmed = 0x80
	sanitizeAUSE  = 0x20
)

// SanitizeStore remembers, through a restart of the gateway, that a sanitize
// operation has begun and has not come to a good end. A unit that finds such a
// record when it is made refuses access to the medium as after a sanitize
// operation that failed, until another one succeeds: what the initiator wanted
// destroyed is never shown. Without a store a restart in the middle leaves a
// medium that is readable and partly sanitized.
//
// Calls come one at a time. The methods are those of pr.Store, with the same
// promises.
type SanitizeStore interface {
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, data []byte) error
}

// sanitizeRecord is what is saved.
type sanitizeRecord struct {
	Version      int  `json:"version"`
	Unrestricted bool `json:"unrestricted,omitempty"` // AUSE
}

const sanitizeRecordVersion = 1

// sanitizeCommands gives the service actions of SANITIZE (SBC-3 §5.20). CRYPTO
// ERASE is not among them: there is no key whose loss would make the medium
// unreadable.
func sanitizeCommands() []Command {
	row := func(name string, sa int, length byte) Command {
		return Command{
			Name: "SANITIZE: " + name, Op: opSanitize, SA: sa,
			Usage: []byte{opSanitize, sanitizeImmed | sanitizeAUSE | byte(sa), 0, 0, 0, 0, 0, length, length, 0},
			Types: TypeDisk, Access: AccessWrite, Reserve: ResWrite, Waits: true,
		}
	}
	overwrite := row("OVERWRITE", 0x01, useBytes)
	overwrite.Dir, overwrite.OutLen, overwrite.Run = DirOut, overwriteLen, sanitizeOverwrite
	overwrite.Supported = (*Unit).canFill
	overwrite.Exclusive, overwrite.Range = true, wholeMedium
	erase := row("BLOCK ERASE", 0x02, 0)
	erase.Run, erase.Supported = sanitizeBlockErase, (*Unit).thin
	erase.Exclusive, erase.Range = true, wholeMedium
	exit := row("EXIT FAILURE MODE", 0x1f, 0)
	exit.Run = exitFailureMode
	return []Command{overwrite, erase, exit}
}

// wholeMedium is Command.Range of what works on all blocks.
func wholeMedium(*Task) (lba, nblocks uint64) { return 0, 1<<64 - 1 }

// canFill: every block can be written at once. A thin store with less space
// behind it than it has blocks cannot; to offer an overwrite there would be to
// offer to fill up the medium that others live on.
func (u *Unit) canFill() bool { return u.flags.Load()&unitCannotFill == 0 }

// overwriteHeaderLen is the length of the OVERWRITE parameter list without its
// pattern, in bytes.
const overwriteHeaderLen = 4

// overwriteLen: the list holds a pattern of one byte to one block (SBC-3 §5.20.2).
func overwriteLen(t *Task) (int64, *sense.Sense) {
	n := int64(binary.BigEndian.Uint16(t.CDB[7:]))
	if n <= overwriteHeaderLen || n > overwriteHeaderLen+int64(t.unit.BlockSize()) {
		s := sense.InvalidFieldInCDB(7, -1)
		return 0, &s
	}
	return n, nil
}

// overwriteList is a decoded OVERWRITE parameter list.
type overwriteList struct {
	invert  bool // the pattern, from one pass to the next
	passes  int
	pattern []byte
}

func parseOverwriteList(p []byte, blockSize int) (l overwriteList, s *sense.Sense) {
	fail := func(s sense.Sense) (overwriteList, *sense.Sense) { return overwriteList{}, &s }
	if len(p) < overwriteHeaderLen {
		return fail(sense.ParameterListLength())
	}
	n := int(binary.BigEndian.Uint16(p[2:]))
	switch {
	case p[0]&0x60 != 0: // TEST: nothing but the pattern is written
		return fail(sense.InvalidFieldInParameterList(0, 6))
	case p[0]&0x1f == 0:
		return fail(sense.InvalidFieldInParameterList(0, 4))
	case p[1] != 0:
		return fail(sense.InvalidFieldInParameterList(1, -1))
	case n == 0 || n > blockSize:
		return fail(sense.InvalidFieldInParameterList(2, -1))
	case len(p) < overwriteHeaderLen+n:
		return fail(sense.ParameterListLength())
	}
	return overwriteList{p[0]&0x80 != 0, int(p[0] & 0x1f), p[overwriteHeaderLen:][:n]}, nil
}

// sanitizeOverwrite writes the pattern over the whole medium, as often as asked.
func sanitizeOverwrite(t *Task) {
	u := t.unit
	if int64(len(t.Out)) < t.OutLen {
		t.Fail(sense.ParameterListLength())
		return
	}
	list, s := parseOverwriteList(t.Out, u.BlockSize())
	if s != nil {
		t.Fail(*s)
		return
	}
	// The task's data-out is gone when it is done.
	list.pattern = append([]byte(nil), list.pattern...)
	n := byteOffset(u, u.Blocks())
	op := &operation{sanitize: true, total: n * int64(list.passes)}
	t.sanitize(op, func(ctx context.Context) error {
		for pass := range list.passes {
			if pass > 0 && list.invert {
				for i := range list.pattern {
					list.pattern[i] ^= 0xff
				}
			}
			if err := u.overwrite(ctx, op, list.pattern, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// sanitizeBlockErase deallocates the whole medium. What lies below, a file system
// or a disk that keeps old blocks, is beyond the device server's reach; reads
// give zeroes (WABEREQ is 01b).
func sanitizeBlockErase(t *Task) {
	u := t.unit
	n := byteOffset(u, u.Blocks())
	op := &operation{sanitize: true, total: n}
	t.sanitize(op, func(ctx context.Context) error { return u.erase(ctx, op, n) })
}

// sanitize runs a sanitize operation, with a record of it while it is not done.
func (t *Task) sanitize(op *operation, work func(context.Context) error) {
	u := t.unit
	unrestricted := t.CDB[1]&sanitizeAUSE != 0
	if err := u.recordSanitize(t.Context(), &sanitizeRecord{sanitizeRecordVersion, unrestricted}); err != nil {
		u.warn("sanitize cannot be recorded", "unit", u.name(), "err", err)
		t.Fail(sense.InternalFailure())
		return
	}
	began := u.begin(op, func(ctx context.Context) error {
		u.setFlag(unitSanitizeFree, unrestricted)
		err := work(ctx)
		if err == nil {
			err = u.recordSanitize(ctx, nil)
		}
		if err != nil {
			u.warn("sanitize failed", "unit", u.name(), "err", err)
		}
		return err
	})
	if !began {
		t.Fail(sense.LUNotSupported())
		return
	}
	t.await(op, t.CDB[1]&sanitizeImmed != 0, sense.SanitizeFailed())
}

// exitFailureMode gives the medium back after a sanitize operation that failed,
// if the command that began it allowed that (AUSE).
func exitFailureMode(t *Task) {
	u := t.unit
	flags := u.flags.Load()
	switch {
	case flags&unitSanitizeFailed == 0:
		return
	case flags&unitSanitizeFree == 0:
		t.Fail(sense.InvalidFieldInCDB(1, 4))
		return
	}
	if err := u.recordSanitize(t.Context(), nil); err != nil {
		u.warn("sanitize record cannot be removed", "unit", u.name(), "err", err)
		t.Fail(sense.InternalFailure())
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.operation.Load() == nil {
		u.setFlag(unitSanitizeFailed, false)
	}
}

// recordSanitize saves r, or removes what is saved if it is nil.
func (u *Unit) recordSanitize(ctx context.Context, r *sanitizeRecord) error {
	st := u.cfg.Load().Sanitize
	if st == nil {
		return nil
	}
	if r == nil {
		return st.Save(ctx, nil)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return st.Save(ctx, data)
}

// loadSanitize finds out whether an operation was cut short. A record that
// cannot be read counts as one.
func (u *Unit) loadSanitize(ctx context.Context, st SanitizeStore) error {
	if st == nil {
		return nil
	}
	data, err := st.Load(ctx)
	if err != nil {
		return fmt.Errorf("sanitize record: %w", err)
	}
	if len(data) == 0 {
		return nil
	}
	var r sanitizeRecord
	if err := json.Unmarshal(data, &r); err != nil || r.Version != sanitizeRecordVersion {
		r = sanitizeRecord{}
	}
	u.setFlag(unitSanitizeFailed, true)
	u.setFlag(unitSanitizeFree, r.Unrestricted)
	return nil
}
