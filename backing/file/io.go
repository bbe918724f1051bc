package file

import (
	"context"
	"errors"
	"io"
	"syscall"
)

// ReadAt reads from the file or the page cache. A file that has become shorter
// under the store gives io.ErrUnexpectedEOF, not zeroes.
func (s *Store) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(off, int64(len(p)), false); err != nil {
		return err
	}
	defer s.gate.leave()
	if s.direct != nil {
		return s.directRead(p, off)
	}
	return s.read(p, off)
}

// tryReadMax is the longest read that is worth trying, in bytes. To copy more
// takes longer than to have another core do it, and the caller can send earlier
// answers meanwhile. For writes this does not pay: the data is in the caller's
// cache.
const tryReadMax = 256 << 10

// TryReadAt reads what the page cache has. A file system in memory is all page
// cache, and does not know RWF_NOWAIT; what it has swapped out is waited for.
func (s *Store) TryReadAt(p []byte, off int64) (bool, error) {
	if len(p) > tryReadMax || s.noTryRead.Load() || s.direct != nil {
		return false, nil
	}
	if err := s.enter(off, int64(len(p)), false); err != nil {
		return false, err
	}
	defer s.gate.leave()
	if s.geo.inMemory {
		n, err := pread(s.h, p, off)
		return err == nil && n == len(p), nil
	}
	n, err := preadNowait(s.h, p, off)
	if err != nil {
		// Errors of the medium are left to ReadAt to find and to name.
		if unsupported(err) {
			s.noTryRead.Store(true)
		}
		return false, nil
	}
	return n == len(p), nil
}

// WriteAt writes into the page cache, or to the medium if opened with Direct or
// Sync.
func (s *Store) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(off, int64(len(p)), true); err != nil {
		return err
	}
	defer s.gate.leave()
	s.locks.write(off, int64(len(p)))
	defer s.locks.unwrite(off, int64(len(p)))
	return s.put(p, off, false)
}

// TryWriteAt writes into the page cache if that needs no waiting.
func (s *Store) TryWriteAt(p []byte, off int64) (bool, error) {
	if s.noTryWrite.Load() || s.direct != nil || s.opt.Sync {
		return false, nil
	}
	if err := s.enter(off, int64(len(p)), true); err != nil {
		return false, err
	}
	defer s.gate.leave()
	// A loan is over soon, but not before whoever has it has sent.
	if !s.locks.tryWrite(off, int64(len(p))) {
		return false, nil
	}
	defer s.locks.unwrite(off, int64(len(p)))
	if s.geo.inMemory {
		n, err := pwrite(s.h, p, off)
		return err == nil && n == len(p), nil
	}
	n, err := pwriteNowait(s.h, p, off)
	if err != nil {
		// EINVAL is what file systems answer that can read but not write so.
		if unsupported(err) || errors.Is(err, syscall.EINVAL) {
			s.noTryWrite.Store(true)
		}
		return false, nil
	}
	return n == len(p), nil
}

// WriteFUA writes durably, by RWF_DSYNC where the kernel has it and else by a
// write and a flush. If it fails for another reason than a full medium the store
// is failed as after a Flush, since the kernel reports with it the loss of any
// earlier write to the file, and only once.
func (s *Store) WriteFUA(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.enter(off, int64(len(p)), true); err != nil {
		return err
	}
	defer s.gate.leave()
	s.locks.write(off, int64(len(p)))
	defer s.locks.unwrite(off, int64(len(p)))
	if !s.noDSync.Load() {
		err := s.put(p, off, true)
		if !unsupported(err) {
			return err
		}
		s.noDSync.Store(true)
	}
	if err := s.put(p, off, false); err != nil {
		return err
	}
	return s.sync(ctx)
}

// put writes all of p, durably if asked or if the file was opened so.
func (s *Store) put(p []byte, off int64, durable bool) error {
	var err error
	if s.direct != nil {
		err = s.directWrite(p, off, durable)
	} else {
		err = s.write(p, off, durable)
	}
	if err == nil {
		if durable || s.opt.Sync {
			// Another call may have been told meanwhile of a write that was lost.
			if f := s.failed.Load(); f != nil {
				return f.err
			}
		}
		return nil
	}
	if (durable || s.opt.Sync) && !unsupported(err) && !isNoSpace(err) && !errors.Is(err, syscall.EFBIG) {
		return s.fail("write", err)
	}
	return err
}

// read fills p.
func (s *Store) read(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := pread(s.h, p, off)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return s.ioError("read", off, err)
		case n == 0:
			return s.ioError("read", off, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// write writes all of p.
func (s *Store) write(p []byte, off int64, durable bool) error {
	for len(p) > 0 {
		var n int
		var err error
		if durable {
			n, err = pwriteDSync(s.h, p, off)
		} else {
			n, err = pwrite(s.h, p, off)
		}
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return s.ioError("write", off, err)
		case n == 0:
			return s.ioError("write", off, io.ErrShortWrite)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// unsupported reports whether the kernel or the file system lacks the call. It
// is asked about failures only, so that its cost does not matter.
func unsupported(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EOPNOTSUPP))
}
