package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"blockgate/iscsi/initiator"
)

// Patterns of access.
const (
	PatternRandom     = "rand"
	PatternSequential = "seq"
)

// BenchOptions says what load to put on a unit. The zero value reads 4 KiB
// blocks at random for ten seconds, 32 at a time.
type BenchOptions struct {
	Pattern      string // PatternRandom or PatternSequential
	WritePercent int    // share of writes, 0 to 100
	// AllowWrite must be set for WritePercent > 0: writes destroy what is there.
	AllowWrite  bool
	BlockSize   int           // bytes an I/O, a multiple of the unit's block size; 4096
	Depth       int           // I/Os outstanding a session; 32
	Sessions    int           // 1
	Connections int           // of each session; 1
	Portals     []string      // more portals of the target, "host:port": the connections of a session take them in turn
	Duration    time.Duration // 10 s
	Offset      int64         // the region: bytes from the start …
	Length      int64         // … and how many; 0: to the end
	Unbatched   bool          // send each command by itself
	Digests     bool          // CRC32C header and data digests
	// BesideDepth, if not 0, is how many 4 KiB random reads each session keeps
	// outstanding on a second unit of the target, BesideLUN. What they do to the
	// first one's figures tells whether a slow unit holds its neighbours up.
	BesideDepth int
	BesideLUN   int
	JSON        bool // write the result as JSON
	// Configure, if not nil, changes how the sessions log in.
	Configure func(*initiator.Config)
}

// BenchResult is what was measured.
type BenchResult struct {
	URL          string      `json:"url"` // without secrets
	Pattern      string      `json:"pattern"`
	WritePercent int         `json:"writePercent"`
	BlockSize    int         `json:"blockSize"` // bytes
	Depth        int         `json:"depth"`     // of each session
	Sessions     int         `json:"sessions"`
	Connections  int         `json:"connections"` // of each session
	Unbatched    bool        `json:"unbatched,omitempty"`
	Digests      bool        `json:"digests,omitempty"`
	LeastSession float64     `json:"leastSession"` // IOPS of the session that got the fewest, and
	MostSession  float64     `json:"mostSession"`  // of the one that got the most
	Seconds      float64     `json:"seconds"`
	All          BenchSeries `json:"all"`
	Reads        BenchSeries `json:"reads"`
	Writes       BenchSeries `json:"writes"`
	// Beside is what the second unit did meanwhile, if there was one. It counts
	// nowhere else.
	Beside *BenchSeries `json:"beside,omitempty"`
}

// BenchSeries is one kind of I/O. Latencies are microseconds.
type BenchSeries struct {
	Count int64   `json:"count"`
	IOPS  float64 `json:"iops"`
	MBps  float64 `json:"mbps"` // 10^6 bytes a second
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

func (o *BenchOptions) fill() error {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.BlockSize, 4096)
	def(&o.Depth, 32)
	def(&o.Sessions, 1)
	def(&o.Connections, 1)
	if o.Pattern == "" {
		o.Pattern = PatternRandom
	}
	if o.Duration == 0 {
		o.Duration = 10 * time.Second
	}
	switch {
	case o.Pattern != PatternRandom && o.Pattern != PatternSequential:
		return fmt.Errorf("%w: pattern %q, there are %s and %s", ErrUsage, o.Pattern, PatternRandom, PatternSequential)
	case o.WritePercent < 0 || o.WritePercent > 100:
		return fmt.Errorf("%w: %d percent of writes", ErrUsage, o.WritePercent)
	case o.WritePercent > 0 && !o.AllowWrite:
		return fmt.Errorf("%w: writes destroy what is on the unit; allow them explicitly", ErrUsage)
	case o.BlockSize < 1 || o.BlockSize > 64<<20:
		return fmt.Errorf("%w: block size %d is not within 1 byte and 64 MiB", ErrUsage, o.BlockSize)
	case o.Depth < 1 || o.Depth > 4096 || o.Sessions < 1 || o.Sessions > 1024 || o.Connections < 1 || o.Connections > 64 ||
		o.BesideDepth < 0 || o.BesideDepth > 4096 || o.BesideLUN < 0 || o.BesideLUN > 16383:
		return fmt.Errorf("%w: depth is 1 to 4096, sessions 1 to 1024, connections 1 to 64, LUNs 0 to 16383", ErrUsage)
	case int64(o.Depth)*int64(o.Sessions)*int64(o.BlockSize) > 4<<30:
		return fmt.Errorf("%w: depth × sessions × block size exceed 4 GiB", ErrUsage)
	case o.Duration < 0 || o.Offset < 0 || o.Length < 0:
		return fmt.Errorf("%w: a negative duration, offset or length", ErrUsage)
	}
	return nil
}

// Bench puts load on the unit of an iSCSI URL and writes what it measured to w.
// It stops early when ctx ends, and then reports what there is along with the
// reason.
func Bench(ctx context.Context, w io.Writer, url string, o BenchOptions) error {
	r, err := Measure(ctx, url, o)
	if r == nil {
		return err
	}
	if o.JSON {
		return errors.Join(err, writeJSON(w, r))
	}
	r.print(w)
	return err
}

// Measure is Bench without the report. With an error the result is nil, or what
// had been measured until then.
func Measure(ctx context.Context, url string, o BenchOptions) (*BenchResult, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	u, err := initiator.ParseURL(url)
	if err != nil {
		return nil, err
	}
	if err := place(ctx, u); err != nil {
		return nil, err
	}
	run := &benchRun{o: o, stopping: make(chan struct{})}
	defer run.close()
	for range o.Sessions {
		if err := run.open(ctx, u); err != nil {
			return nil, err
		}
	}
	err = run.run(ctx)
	res := run.result(u)
	if res.All.Count == 0 && err != nil {
		return nil, err
	}
	return res, err
}

// benchRun is one measurement.
type benchRun struct {
	o        BenchOptions
	sessions []*initiator.Session
	streams  []*stream
	out      sync.WaitGroup // I/Os that are out
	elapsed  time.Duration
	deadline time.Time

	once     sync.Once
	stopping chan struct{} // closed by stop
	err      error         // of the first I/O that failed; read after out.Wait
}

// streamLoad is what a stream does.
type streamLoad struct {
	pattern      string
	writePercent int
	blockSize    int // bytes
	depth        int // of the session, on all its connections
	beside       bool
}

// stream is the load on one unit by one connection. Its I/Os end one by one on the
// connection's reader, but now and then elsewhere: hence the mutex.
type stream struct {
	run     *benchRun
	s       *initiator.Session
	load    streamLoad
	lun     uint64
	perIO   uint64 // blocks
	first   uint64 // first block of the region
	slots   uint64 // I/Os that fit the region
	mu      sync.Mutex
	rnd     *rand.Rand
	next    uint64
	reads   histogram
	writes  histogram
	started []*benchIO
}

// benchIO is one place in the queue.
type benchIO struct {
	initiator.Command
	cdb    [16]byte
	stream *stream
	buf    []byte
	start  time.Time
}

func (b *benchRun) open(ctx context.Context, u *initiator.URL) error {
	cfg := u.Config()
	cfg.Connections, cfg.Unbatched = b.o.Connections, b.o.Unbatched
	cfg.Addrs = append(cfg.Addrs, b.o.Portals...)
	if b.o.Digests {
		cfg.HeaderDigests, cfg.DataDigests = []string{"CRC32C"}, []string{"CRC32C"}
	}
	if b.o.Configure != nil {
		b.o.Configure(&cfg)
	}
	s, err := initiator.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	b.sessions = append(b.sessions, s)
	if err := chooseLUN(ctx, s, u); err != nil {
		return err
	}
	o := b.o
	first := streamLoad{pattern: o.Pattern, writePercent: o.WritePercent, blockSize: o.BlockSize, depth: o.Depth}
	if err := b.addStreams(ctx, s, u.LUN, first, o.Offset, o.Length); err != nil || o.BesideDepth == 0 {
		return err
	}
	beside := streamLoad{pattern: PatternRandom, blockSize: 4096, depth: o.BesideDepth, beside: true}
	return b.addStreams(ctx, s, uint64(o.BesideLUN), beside, 0, 0)
}

// addStreams puts a load on a unit of the session, divided over its connections.
// The region is length bytes from offset, 0 for all behind it.
func (b *benchRun) addStreams(ctx context.Context, s *initiator.Session, lun uint64, l streamLoad, offset, length int64) error {
	d, err := s.Unit(lun).OpenDisk(ctx)
	if err != nil {
		return err
	}
	bs := d.Capacity.BlockSize
	region := d.Size() - offset
	if length > 0 {
		region = min(region, length)
	}
	if l.blockSize%bs != 0 || offset%int64(bs) != 0 || region < int64(l.blockSize) {
		return fmt.Errorf("%w: I/Os of %d bytes from offset %d do not fit LUN %d, a unit of %d blocks of %d bytes",
			ErrUsage, l.blockSize, offset, lun, d.Capacity.Blocks, bs)
	}
	if m := int(d.Limits.MaxTransfer); m > 0 && l.blockSize/bs > m {
		return fmt.Errorf("%w: LUN %d takes at most %d bytes in one command", ErrUsage, lun, m*bs)
	}
	n := s.Connections()
	for c := range n {
		st := &stream{
			run: b, s: s, load: l, lun: initiator.LUN(lun), perIO: uint64(l.blockSize / bs),
			first: uint64(offset) / uint64(bs), slots: uint64(region) / uint64(l.blockSize),
			rnd: rand.New(rand.NewPCG(uint64(len(b.streams)), 0x9e3779b97f4a7c15)),
		}
		for range share(l.depth, n, c) {
			io := &benchIO{stream: st, buf: make([]byte, l.blockSize)}
			for i := range io.buf {
				io.buf[i] = byte(st.rnd.Uint32())
			}
			io.LUN, io.CDB, io.Connection = st.lun, io.cdb[:], c+1
			io.Done = func(*initiator.Command) { st.done(io) }
			st.started = append(st.started, io)
		}
		b.streams = append(b.streams, st)
	}
	return nil
}

// share divides depth over n connections.
func share(depth, n, i int) int {
	d := depth / n
	if i < depth%n {
		d++
	}
	return d
}

func (b *benchRun) run(ctx context.Context) error {
	for i, st := range b.streams {
		// Sequential streams begin at different places.
		st.next = st.slots * uint64(i) / uint64(len(b.streams))
	}
	begin := time.Now()
	b.deadline = begin.Add(b.o.Duration)
	for _, st := range b.streams {
		for _, io := range st.started {
			b.out.Add(1)
			st.mu.Lock()
			st.prepare(io, begin)
			st.mu.Unlock()
			st.submit(io)
		}
	}
	all := make(chan struct{})
	go func() { b.out.Wait(); close(all) }()
	timer := time.NewTimer(b.o.Duration)
	defer timer.Stop()
	var interrupted error
	select {
	case <-all:
	case <-timer.C:
	case <-ctx.Done():
		interrupted = context.Cause(ctx)
	case <-b.stopping:
	}
	b.stop(nil)
	grace := time.NewTimer(drainTime)
	defer grace.Stop()
	select {
	case <-all:
	case <-grace.C:
		b.fail(fmt.Errorf("I/Os were still unanswered %v after the end", drainTime))
		for _, s := range b.sessions {
			s.Close()
		}
		<-all
	}
	b.elapsed = time.Since(begin)
	if b.err != nil {
		return b.err
	}
	return interrupted
}

// drainTime is how long the last I/Os may take.
const drainTime = 10 * time.Second

func (b *benchRun) stop(err error) {
	b.once.Do(func() { b.err = err; close(b.stopping) })
}

// fail is stop for an error found when the run has ended already.
func (b *benchRun) fail(err error) {
	b.stop(err)
	if b.err == nil {
		b.err = err
	}
}

func (b *benchRun) close() {
	for _, s := range b.sessions {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		s.Logout(ctx) // what was measured stands, however the session ends
		cancel()
	}
}

// prepare sets the next I/O. The stream's mutex is held.
func (st *stream) prepare(io *benchIO, now time.Time) {
	at := st.next
	if st.load.pattern == PatternRandom {
		at = st.rnd.Uint64N(st.slots)
	} else if st.next++; st.next >= st.slots {
		st.next = 0
	}
	at %= st.slots
	w := st.load.writePercent
	write := w == 100 || w > 0 && st.rnd.IntN(100) < w
	io.In, io.Out = io.buf, nil
	op := byte(0x88) // READ(16)
	if write {
		io.In, io.Out, op = nil, io.buf, 0x8a // WRITE(16)
	}
	initiator.PutCDB16(io.cdb[:], op, st.first+at*st.perIO, uint32(st.perIO))
	io.start = now
}

func (st *stream) submit(io *benchIO) {
	if err := st.s.Submit(&io.Command); err != nil {
		st.run.stop(err)
		st.run.out.Done()
	}
}

// done counts an I/O and sends the next one.
func (st *stream) done(io *benchIO) {
	now := time.Now()
	if err := io.Failure(); err != nil {
		if initiator.IsUnitAttention(err) {
			st.submit(io) // tells something, ran nothing: once more
			return
		}
		st.run.stop(err)
		st.run.out.Done()
		return
	}
	if len(io.In) != io.Received {
		st.run.stop(fmt.Errorf("%w: GOOD with %d of %d bytes", ErrMismatch, io.Received, len(io.In)))
		st.run.out.Done()
		return
	}
	st.mu.Lock()
	h := &st.reads
	if io.Out != nil {
		h = &st.writes
	}
	h.add(now.Sub(io.start))
	st.prepare(io, now)
	st.mu.Unlock()
	select {
	case <-st.run.stopping:
		st.run.out.Done()
	default:
		st.submit(io)
	}
}

func (b *benchRun) result(u *initiator.URL) *BenchResult {
	var reads, writes, all, beside histogram
	bySession := make(map[*initiator.Session]float64)
	for _, st := range b.streams {
		if st.load.beside {
			beside.merge(&st.reads)
			continue
		}
		reads.merge(&st.reads)
		writes.merge(&st.writes)
		bySession[st.s] += float64(st.reads.n+st.writes.n) / b.elapsed.Seconds()
	}
	share := slices.Collect(maps.Values(bySession))
	all.merge(&reads)
	all.merge(&writes)
	o, sec := b.o, b.elapsed.Seconds()
	r := &BenchResult{
		URL: u.String(), Pattern: o.Pattern, WritePercent: o.WritePercent, BlockSize: o.BlockSize,
		Depth: o.Depth, Sessions: o.Sessions, Connections: b.sessions[0].Connections(), Seconds: sec,
		Unbatched: o.Unbatched, Digests: o.Digests, LeastSession: slices.Min(share), MostSession: slices.Max(share),
		All: series(&all, o.BlockSize, sec), Reads: series(&reads, o.BlockSize, sec), Writes: series(&writes, o.BlockSize, sec),
	}
	if o.BesideDepth > 0 {
		t := series(&beside, 4096, sec)
		r.Beside = &t
	}
	return r
}

func series(h *histogram, size int, seconds float64) BenchSeries {
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	s := BenchSeries{
		Count: int64(h.n), Mean: us(h.mean()), P50: us(h.quantile(0.5)), P99: us(h.quantile(0.99)),
		P999: us(h.quantile(0.999)), Max: us(h.most),
	}
	if seconds > 0 {
		s.IOPS = float64(h.n) / seconds
		s.MBps = s.IOPS * float64(size) / 1e6
	}
	return s
}

func (r *BenchResult) print(w io.Writer) {
	fmt.Fprintf(w, "%s\n%s, %d %% writes, %s blocks, depth %d, sessions %d, connections %d, %.1f s\n",
		r.URL, r.Pattern, r.WritePercent, byteSize(int64(r.BlockSize)), r.Depth, r.Sessions, r.Connections, r.Seconds)
	line := func(name string, s BenchSeries) {
		fmt.Fprintf(w, "%-7s %10.0f IOPS %9.1f MB/s   latency µs: mean %.0f  p50 %.0f  p99 %.0f  p99.9 %.0f  max %.0f\n",
			name, s.IOPS, s.MBps, s.Mean, s.P50, s.P99, s.P999, s.Max)
	}
	if r.WritePercent < 100 {
		line("read", r.Reads)
	}
	if r.WritePercent > 0 {
		line("write", r.Writes)
	}
	if r.WritePercent > 0 && r.WritePercent < 100 {
		line("all", r.All)
	}
	if r.Beside != nil {
		line("beside", *r.Beside)
	}
	if r.Sessions > 1 {
		fmt.Fprintf(w, "session %10.0f IOPS at least, %.0f at most\n", r.LeastSession, r.MostSession)
	}
}
