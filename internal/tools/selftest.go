package tools

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/scsi/sense"
)

// SelftestOptions says how far the self-test may go. The zero value only reads.
type SelftestOptions struct {
	// Write allows the test to save the last part of the unit, write patterns
	// there, read them back through a second session, and put back what was
	// there. Nobody else may use the unit meanwhile.
	Write bool
	// Region is how much of the end the write test uses, in bytes; 1 MiB if zero,
	// at most 64 MiB, and no more than the unit has.
	Region int64
	// Timeout is how long one check may take, DefaultSelftestTimeout if zero; the
	// write test has six times that. When one has taken longer, as on a store that
	// hangs, those that would wait as well are left out.
	Timeout time.Duration
	// Configure, if not nil, changes how the test logs in.
	Configure func(*initiator.Config)
}

// DefaultSelftestTimeout is for SelftestOptions.Timeout.
const DefaultSelftestTimeout = 10 * time.Second

// abandonTime is how long the test waits for the end of a command that it gave up.
const abandonTime = time.Second

// Selftest proves that the target of an iSCSI URL works: discovery, login, what
// was negotiated, the unit's identity and capacity, reads that agree with each
// other, and, if allowed, writes. It writes a line for each check to w and
// returns an error if any failed: one that wraps ErrMismatch if data was wrong.
func Selftest(ctx context.Context, w io.Writer, url string, o SelftestOptions) error {
	if o.Region == 0 {
		o.Region = 1 << 20
	}
	if o.Region < 0 || o.Region > 64<<20 {
		return fmt.Errorf("%w: a region of %d bytes, 64 MiB are the most", ErrUsage, o.Region)
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultSelftestTimeout
	}
	if o.Timeout < 0 {
		return fmt.Errorf("%w: a timeout of %v", ErrUsage, o.Timeout)
	}
	u, err := initiator.ParseURL(url)
	if err != nil {
		return err
	}
	t := &selftest{w: w, o: o, u: u}
	begin := time.Now()
	t.all(ctx)
	if t.failed != nil {
		fmt.Fprintf(w, "FAILED: %d of %d checks\n", t.bad, t.checks)
		return fmt.Errorf("%w: %w", ErrSelftest, t.failed)
	}
	fmt.Fprintf(w, "passed: %d checks in %v\n", t.checks, time.Since(begin).Round(time.Millisecond))
	if !o.Write {
		fmt.Fprintln(w, "nothing was written; allow writes to test them too")
	}
	return nil
}

type selftest struct {
	w      io.Writer
	o      SelftestOptions
	u      *initiator.URL
	s      *initiator.Session
	d      *initiator.Disk
	hangs  bool // a check was given up
	checks int
	bad    int
	failed error // of the first check that failed
}

// check runs one check, for at most limit, and writes its line; it reports success.
func (t *selftest) check(ctx context.Context, name string, limit time.Duration, f func(context.Context) (note string, err error)) bool {
	t.checks++
	own, stop := context.WithTimeout(ctx, limit)
	defer stop()
	note, err := f(own)
	if err != nil {
		if own.Err() != nil && ctx.Err() == nil {
			t.hangs = true
			err = fmt.Errorf("no answer within %v (%w)", limit, err)
		}
		t.bad++
		if t.failed == nil {
			t.failed = fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(t.w, "FAIL  %-12s %v\n", name, err)
		return false
	}
	fmt.Fprintf(t.w, "ok    %-12s %s\n", name, note)
	return true
}

func (t *selftest) all(ctx context.Context) {
	check := func(name string, f func(context.Context) (string, error)) bool {
		return t.check(ctx, name, t.o.Timeout, f)
	}
	ok := check("discovery", t.discover) && check("login", t.login)
	if t.s != nil {
		defer t.s.Close()
	}
	if !ok {
		return
	}
	check("ping", func(ctx context.Context) (string, error) {
		return "1000 bytes came back", t.s.Ping(ctx, pattern(1000, 1))
	})
	if !check("units", t.units) || !check("inquiry", t.inquiry) || !check("capacity", t.capacity) {
		return
	}
	check("identity", t.identity)
	check("read", t.read)
	if !t.hangs {
		check("beyond end", t.beyond)
	}
	if t.o.Write && !t.hangs {
		t.check(ctx, "write", 6*t.o.Timeout, t.write)
	}
	if t.s.Err() == nil {
		check("logout", func(ctx context.Context) (string, error) { return "", t.s.Logout(ctx) })
	}
}

func (t *selftest) discover(ctx context.Context) (string, error) {
	records, err := discover(ctx, t.u)
	if err != nil {
		return "", err
	}
	if t.u.Target == "" {
		if err := place(ctx, t.u); err != nil {
			return "", err
		}
	}
	i := slices.IndexFunc(records, func(r iscsi.TargetRecord) bool { return r.Name == t.u.Target })
	if i < 0 {
		return "", fmt.Errorf("%s does not list %s among its %d targets: %w", t.u.Addr, t.u.Target, len(records), errNotThere)
	}
	return fmt.Sprintf("%s at %s", t.u.Target, strings.Join(records[i].Portals, " ")), nil
}

func (t *selftest) config() initiator.Config {
	cfg := t.u.Config()
	cfg.AbortTimeout = abandonTime
	if t.o.Configure != nil {
		t.o.Configure(&cfg)
	}
	return cfg
}

func (t *selftest) login(ctx context.Context) (string, error) {
	s, err := initiator.Dial(ctx, t.config())
	if err != nil {
		return "", err
	}
	t.s = s
	p := s.Params()
	digest := func(on bool) string {
		if on {
			return "CRC32C"
		}
		return "None"
	}
	yes := func(on bool) string {
		if on {
			return "Yes"
		}
		return "No"
	}
	return fmt.Sprintf("HeaderDigest=%s DataDigest=%s InitialR2T=%s ImmediateData=%s FirstBurst=%d MaxBurst=%d MaxRecv=%d MaxXmit=%d MaxOutstandingR2T=%d window=%d",
		digest(p.HeaderDigest), digest(p.DataDigest), yes(p.InitialR2T), yes(p.ImmediateData), p.FirstBurst, p.MaxBurst,
		p.MaxRecvDataSegment, p.MaxXmitDataSegment, p.MaxOutstandingR2T, s.Window()), nil
}

func (t *selftest) units(ctx context.Context) (string, error) {
	numbers, err := t.s.ReportLUNs(ctx)
	if err != nil {
		return "", err
	}
	if err := chooseLUN(ctx, t.s, t.u); err != nil {
		return "", err
	}
	if !slices.Contains(numbers, t.u.LUN) {
		return "", fmt.Errorf("REPORT LUNS does not list %d: %v", t.u.LUN, numbers)
	}
	return fmt.Sprintf("%v, testing %d", numbers, t.u.LUN), nil
}

func (t *selftest) inquiry(ctx context.Context) (string, error) {
	q, err := t.s.Unit(t.u.LUN).Inquiry(ctx)
	if err != nil {
		return "", err
	}
	if q.Type != typeDisk || q.Qualifier != 0 {
		return "", fmt.Errorf("logical unit %d is no disk but %s (qualifier %d)", t.u.LUN, typeName(q.Type), q.Qualifier)
	}
	return fmt.Sprintf("%s %s %s", q.Vendor, q.Product, q.Revision), nil
}

func (t *selftest) capacity(ctx context.Context) (string, error) {
	u := t.s.Unit(t.u.LUN)
	if err := u.TestUnitReady(ctx); err != nil {
		return "", err
	}
	d, err := u.OpenDisk(ctx)
	if err != nil {
		return "", err
	}
	t.d = d
	c := d.Capacity
	note := fmt.Sprintf("%s, %d blocks of %d bytes (%d physical)", byteSize(c.Bytes()), c.Blocks, c.BlockSize, c.Physical)
	if c.Thin {
		note += ", thin"
	}
	return note, nil
}

// identity checks the device identification page: without a designator of the
// unit, multipath cannot tell two paths to it from two disks.
func (t *selftest) identity(ctx context.Context) (string, error) {
	serial, err := t.d.Serial(ctx)
	if err != nil {
		return "", err
	}
	b, err := t.d.VPD(ctx, 0x83)
	if err != nil {
		return "", err
	}
	for d := b[4:]; len(d) >= 4; {
		n := 4 + int(d[3])
		if n > len(d) {
			return "", fmt.Errorf("VPD page 83h: a designator of %d bytes with %d left", n, len(d))
		}
		// Association 0, the logical unit; type 3 is NAA, 2 EUI-64, 1 T10.
		if kind := d[1] & 0x0f; d[1]&0x30 == 0 && (kind == 3 || kind == 2) {
			return fmt.Sprintf("serial %s, %s %x", serial, map[byte]string{2: "eui", 3: "naa"}[kind], d[4:n]), nil
		}
		d = d[n:]
	}
	return "", errors.New("VPD page 83h names the unit by no NAA or EUI-64 designator")
}

// read reads the ends of the unit in pieces of different sizes and expects the
// same bytes each time.
func (t *selftest) read(ctx context.Context) (string, error) {
	bs, size := int64(t.d.Capacity.BlockSize), t.d.Size()
	n := min(size, 1<<20) / bs * bs
	total := int64(0)
	for _, off := range []int64{0, (size - n) / bs * bs} {
		whole := make([]byte, n)
		if err := t.d.ReadAt(ctx, whole, off); err != nil {
			return "", err
		}
		pieces := make([]byte, n)
		for _, piece := range []int64{bs, 16 * bs, n} {
			step := max(piece, n/64/bs*bs) // a single block here and there, not all
			for at := int64(0); at < n; at += step {
				m := min(piece, n-at)
				if err := t.d.ReadAt(ctx, pieces[:m], off+at); err != nil {
					return "", err
				}
				if i := differs(pieces[:m], whole[at:at+m]); i >= 0 {
					return "", fmt.Errorf("%w: reading %d bytes at %d gives another byte at %d than reading %d at %d (is the unit in use?)",
						ErrMismatch, m, off+at, off+at+int64(i), n, off)
				}
				total += m
			}
		}
	}
	return fmt.Sprintf("%s in commands of different sizes", byteSize(total)), nil
}

// beyond expects LOGICAL BLOCK ADDRESS OUT OF RANGE behind the last block.
func (t *selftest) beyond(ctx context.Context) (string, error) {
	c := t.d.Capacity
	err := t.d.ReadBlocks(ctx, make([]byte, c.BlockSize), c.Blocks, 1)
	var e *initiator.StatusError
	switch {
	case err == nil:
		return "", fmt.Errorf("block %d of %d could be read", c.Blocks, c.Blocks)
	case !errors.As(err, &e):
		return "", err
	case e.Sense.Key != sense.IllegalRequest || e.Sense.ASC != 0x21:
		return "", fmt.Errorf("reading block %d of %d should fail with LBA OUT OF RANGE: %w", c.Blocks, c.Blocks, err)
	}
	return "refused with LBA OUT OF RANGE", nil
}

// restoreTime is how long putting back may take, also when ctx has ended.
const restoreTime = time.Minute

func (t *selftest) write(ctx context.Context) (note string, err error) {
	bs := int64(t.d.Capacity.BlockSize)
	n := min(t.o.Region, t.d.Size()) / bs * bs
	if n == 0 {
		n = bs
	}
	off := t.d.Size() - n
	saved := make([]byte, n)
	if err := t.d.ReadAt(ctx, saved, off); err != nil {
		return "", fmt.Errorf("saving the last %s: %w", byteSize(n), err)
	}
	defer func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), restoreTime)
		defer stop()
		if e := t.restore(ctx, saved, off); e != nil {
			err = errors.Join(err, fmt.Errorf("the last %s could NOT be put back: %w", byteSize(n), e))
		}
	}()
	if err := t.patterns(ctx, off, n); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s at the end written, verified and put back", byteSize(n)), nil
}

// patterns writes the region in pieces of several sizes and reads it back by
// another session, which shares no cache of ours.
func (t *selftest) patterns(ctx context.Context, off, n int64) error {
	second, err := initiator.Dial(ctx, t.config())
	if err != nil {
		return fmt.Errorf("second session: %w", err)
	}
	defer second.Close()
	d2, err := second.Unit(t.u.LUN).OpenDisk(ctx)
	if err != nil {
		return fmt.Errorf("second session: %w", err)
	}
	bs := int64(t.d.Capacity.BlockSize)
	got := make([]byte, n)
	for round, piece := range []int64{n, 64 << 10, 4096 + bs, bs} {
		want := pattern(int(n), uint64(round)+1)
		step := max(piece/bs*bs, bs)
		for at, ios := int64(0), 0; at < n; at, ios = at+step, ios+1 {
			if step == bs && ios == 64 {
				// The rest in one go: thousands of single blocks prove no more.
				step = n - at
			}
			if err := t.d.WriteAt(ctx, want[at:min(at+step, n)], off+at); err != nil {
				return err
			}
		}
		if err := t.d.Flush(ctx); err != nil {
			return err
		}
		if err := d2.ReadAt(ctx, got, off); err != nil {
			return fmt.Errorf("second session: %w", err)
		}
		if i := differs(got, want); i >= 0 {
			return fmt.Errorf("%w: byte %d was written as %02x in pieces of %d and is read as %02x", ErrMismatch, off+int64(i), want[i], step, got[i])
		}
	}
	return second.Logout(ctx)
}

// restore puts the saved bytes back and makes sure that they are there; by a new
// session if the old one did not survive.
func (t *selftest) restore(ctx context.Context, saved []byte, off int64) error {
	d := t.d
	if t.s.Err() != nil {
		s, err := initiator.Dial(ctx, t.config())
		if err != nil {
			return err
		}
		defer s.Close()
		if d, err = s.Unit(t.u.LUN).OpenDisk(ctx); err != nil {
			return err
		}
	}
	if err := d.WriteAt(ctx, saved, off); err != nil {
		return err
	}
	if err := d.Flush(ctx); err != nil {
		return err
	}
	got := make([]byte, len(saved))
	if err := d.ReadAt(ctx, got, off); err != nil {
		return err
	}
	if i := differs(got, saved); i >= 0 {
		return fmt.Errorf("%w: byte %d differs after it was put back", ErrMismatch, off+int64(i))
	}
	return nil
}

// pattern gives n bytes that depend on the seed and, in each 512, on the place.
func pattern(n int, seed uint64) []byte {
	p := make([]byte, (n+7)/8*8)
	r := rand.NewPCG(seed, 0x626c6f636b676174)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	for i := 0; i+8 <= len(p); i += 512 {
		binary.BigEndian.PutUint64(p[i:], uint64(i/512)<<8|seed)
	}
	return p[:n]
}

// differs gives the first place where a and b differ, -1 if there is none.
func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
