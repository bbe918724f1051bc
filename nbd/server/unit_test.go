package server

import (
	"bytes"
	"context"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/backing/ram"
	"blockgate/nbd"
	"blockgate/scsi"
)

// disk is a unit with an iSCSI-like initiator beside the NBD clients.
type disk struct {
	t     *testing.T
	unit  *scsi.Unit
	dev   *scsi.Device // of the export
	other *scsi.Nexus  // of another target with the same unit
	exp   *UnitExport
}

func newDisk(t *testing.T, store backing.Store, cfg scsi.UnitConfig) *disk {
	t.Helper()
	cfg.Store, cfg.WriteCache = store, true
	u, err := scsi.NewUnit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.Close(context.Background())
		store.Close()
	})
	d := &disk{t: t, unit: u, dev: scsi.NewDevice(scsi.DeviceConfig{Name: "nbd:disk"})}
	d.dev.SetUnit(0, u)
	target := scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2025-01.io.example:disk"})
	target.SetUnit(0, u)
	d.other = target.Attach(scsi.NexusConfig{
		Initiator: scsi.InitiatorPort{Name: "iqn.2025-01.io.example:host"}, Port: scsi.TargetPort{Name: "iqn.2025-01.io.example:disk", RelID: 1},
	})
	t.Cleanup(func() { d.other.Detach(nil) })
	d.exp = &UnitExport{Name: "disk", Description: "a disk", Device: d.dev, Port: scsi.TargetPort{Name: "nbd:disk", RelID: 0xffff}, FastZeroes: true}
	return d
}

type taskDone chan *scsi.Task

func (c taskDone) TaskDone(t *scsi.Task) { c <- t }

// scsi runs a command of the other initiator, past its unit attentions.
func (d *disk) scsi(cdb, out []byte) scsi.Status {
	d.t.Helper()
	for range 8 {
		done := make(taskDone, 1)
		task := &scsi.Task{CDB: cdb, MaxIn: 1 << 16, MaxOut: int64(len(out)), Transport: done, Attr: scsi.Simple}
		if d.other.Admit(task) {
			task.Out = out
			task.Run()
		}
		<-done
		if task.Status == scsi.CheckCondition && task.Sense[2]&0x0f == 6 {
			continue
		}
		return task.Status
	}
	d.t.Fatal("unit attentions without end")
	return 0
}

func (d *disk) must(cdb, out []byte) {
	d.t.Helper()
	if st := d.scsi(cdb, out); st != scsi.Good {
		d.t.Fatalf("command %#x: status %#x", cdb[0], st)
	}
}

// reserve takes a persistent reservation of a type (SPC-4 table 60).
func (d *disk) reserve(kind byte) {
	d.t.Helper()
	list := make([]byte, 24)
	list[15] = 1                                                      // service action reservation key
	d.must([]byte{0x5f, 0x06, 0, 0, 0, 0, 0, 0, 24, 0}, list)         // REGISTER AND IGNORE EXISTING KEY
	list = append(make([]byte, 7), append([]byte{1}, list[8:]...)...) // reservation key 1
	d.must([]byte{0x5f, 0x01, kind, 0, 0, 0, 0, 0, 24, 0}, list)
}

func (d *disk) release() {
	d.t.Helper()
	list := make([]byte, 24)
	list[7] = 1
	d.must([]byte{0x5f, 0x03, 0, 0, 0, 0, 0, 0, 24, 0}, list) // CLEAR
}

func TestUnit(t *testing.T) {
	for _, store := range []struct {
		name string
		open func(t *testing.T) backing.Store
	}{
		{"ram", func(t *testing.T) backing.Store { return openRAM(t, 64<<20) }},
		{"file", func(t *testing.T) backing.Store {
			s, err := file.Open(t.Context(), t.TempDir()+"/img", backing.OpenOptions{Create: true, CreateSize: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}},
	} {
		t.Run(store.name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, m nbd.Mode) {
				d := newDisk(t, store.open(t), scsi.UnitConfig{MaxTransfer: 1 << 20})
				_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "tcp")
				p := dial()
				i := p.enter("disk", m)
				if i.Size != 64<<20 || i.Flags&(nbd.SendTrim|nbd.SendFlush|nbd.SendFUA|nbd.SendWriteZeroes|nbd.CanMultiConn|nbd.ReadOnly) !=
					nbd.SendTrim|nbd.SendFlush|nbd.SendFUA|nbd.SendWriteZeroes|nbd.CanMultiConn {
					t.Errorf("%+v", i)
				}
				everything(t, p, m)
			})
		})
	}
}

func openRAM(t testing.TB, size int64) backing.Store {
	t.Helper()
	s, err := ram.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// everything is what every export of 64 MiB that can do all has to do.
func everything(t *testing.T, p *peer, m nbd.Mode) {
	t.Helper()
	for _, n := range []int{512, 4096, 64 << 10, 5 << 20} {
		off := n * 3
		p.write(uint64(off), pattern(off, n)).wants(t, "write", nbd.None)
		wantData(t, "read back", p.read(uint64(off), uint64(n)), pattern(off, n))
	}
	p.do(nbd.CmdWrite, nbd.FlagFUA, 0, 512, pattern(1, 512)).wants(t, "FUA", nbd.None)
	p.do(nbd.CmdFlush, 0, 0, 0, nil).wants(t, "flush", nbd.None)
	p.do(nbd.CmdCache, 0, 0, 1<<20, nil).wants(t, "cache", nbd.None)
	p.write(32<<20, bytes.Repeat([]byte{1}, 8<<20)).wants(t, "fill", nbd.None)
	p.do(nbd.CmdTrim, nbd.FlagFUA, 33<<20, 1<<20, nil).wants(t, "trim", nbd.None)
	p.do(nbd.CmdWriteZeroes, 0, 35<<20, 1<<20, nil).wants(t, "zeroes", nbd.None)
	p.do(nbd.CmdWriteZeroes, nbd.FlagNoHole|nbd.FlagFUA, 37<<20, 1<<20, nil).wants(t, "zeroes without holes", nbd.None)
	p.do(nbd.CmdWriteZeroes, nbd.FlagFastZero, 38<<20, 1<<20, nil).wants(t, "fast zeroes", nbd.None)
	want := bytes.Repeat([]byte{1}, 8<<20)
	clear(want[1<<20 : 2<<20])
	clear(want[3<<20 : 4<<20])
	clear(want[5<<20 : 7<<20])
	wantData(t, "read of holes", p.read(32<<20, 8<<20), want)
	p.do(nbd.CmdTrim, 0, 40<<20, 24<<20, nil).wants(t, "trim to the end", nbd.None)

	for _, c := range []struct {
		what   string
		c      nbd.Command
		f      nbd.CommandFlags
		off, n uint64
		want   nbd.Errno
	}{
		{"read behind the end", nbd.CmdRead, 0, 64<<20 - 512, 1024, nbd.EINVAL},
		{"read far behind the end", nbd.CmdRead, 0, 1 << 63, 512, nbd.EINVAL},
		{"read over the end of numbers", nbd.CmdRead, 0, 1<<64 - 512, 1024, nbd.EINVAL},
		{"trim behind the end", nbd.CmdTrim, 0, 64 << 20, 512, nbd.EINVAL},
		{"zeroes behind the end", nbd.CmdWriteZeroes, 0, 64 << 20, 512, nbd.ENOSPC},
		{"unknown command", 99, 0, 0, 0, nbd.EINVAL},
		{"resize", nbd.CmdResize, 0, 0, 1 << 30, nbd.EINVAL},
		{"unknown flag", nbd.CmdRead, 1 << 9, 0, 512, nbd.EINVAL},
		{"flag of another command", nbd.CmdRead, nbd.FlagNoHole, 0, 512, nbd.EINVAL},
		{"flush with a range", nbd.CmdFlush, 0, 512, 512, nbd.EINVAL},
		{"nothing", nbd.CmdTrim, 0, 0, 0, nbd.None},
	} {
		p.do(c.c, c.f, c.off, c.n, nil).wants(t, c.what, c.want)
	}
	wantData(t, "empty read", p.read(0, 0), nil)
	p.write(64<<20-512, make([]byte, 1024)).wants(t, "write behind the end", nbd.ENOSPC)
	p.write(0, make([]byte, nbd.DefaultMaxPayload+512)).wants(t, "more than the largest payload", nbd.EINVAL)
	df := p.do(nbd.CmdRead, nbd.FlagDF, 0, 64<<10, nil)
	if m == nbd.Simple {
		df.wants(t, "DF that is not offered", nbd.EINVAL)
		p.do(nbd.CmdBlockStatus, 0, 0, 1<<20, nil).wants(t, "status without a context", nbd.EINVAL)
		return
	}
	df.wants(t, "DF", nbd.None)
	if df.chunks != 1 {
		t.Errorf("DF: %d chunks", df.chunks)
	}
	status(t, p)
	if m == nbd.Extended {
		p.next++
		p.send(append(nbd.Request{Flags: nbd.FlagPayloadLen, Type: nbd.CmdTrim, Cookie: p.next, Length: 16}.Append(nil, m), make([]byte, 16)...))
		p.reply(0).wants(t, "payload that is not asked for", nbd.EINVAL)
		p.do(nbd.CmdTrim, 0, 0, 1<<63, nil).wants(t, "64 bits of trim", nbd.EINVAL)
		p.do(nbd.CmdWriteZeroes, 0, 0, 64<<20, nil).wants(t, "all of it", nbd.None)
	}
}

// status wants the holes that everything has made between 32 and 40 MiB.
func status(t *testing.T, p *peer) {
	t.Helper()
	const hole = nbd.StateHole | nbd.StateZero
	// NO_HOLE leaves it open what the status is.
	for off := uint64(32 << 20); off < 37<<20; {
		g := p.do(nbd.CmdBlockStatus, 0, off, 64<<20-off, nil)
		g.wants(t, "status", nbd.None)
		if len(g.extents) == 0 {
			t.Fatal("no extents")
		}
		for _, e := range g.extents {
			mib := off >> 20
			want := uint64(0)
			if mib == 33 || mib == 35 {
				want = hole
			}
			if mib < 37 && e.Flags != want {
				t.Errorf("status %d at %d MiB (%d bytes), want %d", e.Flags, mib, e.Length, want)
			}
			off += e.Length
		}
	}
	one := p.do(nbd.CmdBlockStatus, nbd.FlagReqOne, 33<<20, 4096, nil)
	if len(one.extents) != 1 || one.extents[0] != (nbd.Extent{Length: 4096, Flags: hole}) {
		t.Errorf("one extent: %+v", one.extents)
	}
	p.do(nbd.CmdBlockStatus, 0, 0, 0, nil).wants(t, "status of nothing", nbd.EINVAL)
}

func TestReservations(t *testing.T) {
	d := newDisk(t, openRAM(t, 1<<20), scsi.UnitConfig{})
	_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "unix")
	p := dial()
	p.enter("disk", nbd.Structured)
	p.write(0, make([]byte, 512)).wants(t, "write before", nbd.None)

	d.reserve(0x01) // write exclusive
	g := p.write(0, make([]byte, 512))
	g.wants(t, "write under write exclusive", nbd.EPERM)
	if g.message != "reservation conflict" {
		t.Errorf("the client is told %q", g.message)
	}
	p.do(nbd.CmdTrim, 0, 0, 4096, nil).wants(t, "trim under write exclusive", nbd.EPERM)
	p.do(nbd.CmdWriteZeroes, 0, 0, 4096, nil).wants(t, "zeroes under write exclusive", nbd.EPERM)
	p.read(0, 512).wants(t, "read under write exclusive", nbd.None)
	d.release()
	d.reserve(0x03) // exclusive access
	p.read(0, 512).wants(t, "read under exclusive access", nbd.EPERM)
	p.do(nbd.CmdBlockStatus, 0, 0, 4096, nil).wants(t, "status under exclusive access", nbd.EPERM)
	d.release()
	p.write(0, make([]byte, 512)).wants(t, "write after", nbd.None)
}

func TestUnitStates(t *testing.T) {
	store := openRAM(t, 1<<20)
	d := newDisk(t, store, scsi.UnitConfig{})
	_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "tcp")
	p := dial()
	p.enter("disk", nbd.Structured)
	d.unit.SetReadOnly(true)
	p.write(0, make([]byte, 512)).wants(t, "write-protected", nbd.EPERM)
	ro := dial()
	if i := ro.enter("disk", nbd.Structured); i.Flags&nbd.ReadOnly == 0 || i.Flags&nbd.SendTrim != 0 {
		t.Errorf("flags %x of a unit that is write-protected", i.Flags)
	}
	ro.write(0, make([]byte, 512)).wants(t, "read-only", nbd.EPERM)
	d.unit.SetReadOnly(false)
	d.unit.SetOffline(true)
	p.read(0, 512).wants(t, "offline", nbd.EIO)
	d.unit.SetOffline(false)
	p.read(0, 512).wants(t, "online again", nbd.None)

	// What a client may use follows the size.
	if err := store.(backing.Resizer).Resize(t.Context(), 2<<20); err != nil {
		t.Fatal(err)
	}
	d.unit.Resized()
	p.write(1<<20, pattern(0, 512)).wants(t, "write to what has grown", nbd.None)
	if i := dial().enter("disk", nbd.Simple); i.Size != 2<<20 {
		t.Errorf("a new client sees %d bytes", i.Size)
	}

	// Another initiator's reset aborts nothing for good.
	d.must([]byte{0x00, 0, 0, 0, 0, 0}, nil)
	p.read(0, 512).wants(t, "after unit attentions", nbd.None)

	if err := d.dev.RemoveUnit(0); err != nil {
		t.Fatal(err)
	}
	p.read(0, 512).wants(t, "without the unit", nbd.ESHUTDOWN)
}

// A unit of other blocks at the same place is not written to by who knows the old
// ones.
func TestOtherBlocks(t *testing.T) {
	d := newDisk(t, openRAM(t, 1<<20), scsi.UnitConfig{})
	other := newDisk(t, openRAM(t, 1<<20), scsi.UnitConfig{BlockSize: 4096})
	_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "tcp")
	p := dial()
	p.enter("disk", nbd.Simple)
	p.write(0, make([]byte, 512)).wants(t, "before", nbd.None)
	if err := d.dev.SetUnit(0, other.unit); err != nil {
		t.Fatal(err)
	}
	p.write(512, pattern(0, 512)).wants(t, "after", nbd.ESHUTDOWN)
	q := dial()
	if i := q.enter("disk", nbd.Simple); i.Size != 1<<20 {
		t.Errorf("%+v", i)
	}
	q.read(0, 512).wants(t, "not aligned", nbd.EINVAL)
	wantData(t, "untouched", q.read(0, 8192), make([]byte, 8192))
}

// hanging keeps every read until the test lets it go.
type hanging struct {
	backing.Store
	inside chan struct{}
	let    chan struct{}
}

func (h *hanging) ReadAt(_ context.Context, p []byte, off int64) error {
	h.inside <- struct{}{}
	<-h.let
	clear(p)
	return nil
}

// A store that hangs holds up neither the client nor the next request, if the unit
// is to fail then; and nothing is said twice when it lets go.
func TestStalledStore(t *testing.T) {
	h := &hanging{Store: openRAM(t, 1<<20), inside: make(chan struct{}, 8), let: make(chan struct{})}
	d := newDisk(t, h, scsi.UnitConfig{Stall: scsi.StallPolicy{Action: scsi.StallFail, After: scsi.MinStall}})
	s, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "unix")
	p := dial()
	p.enter("disk", nbd.Structured)
	g := p.read(0, 512)
	<-h.inside
	g.wants(t, "the store hangs", nbd.EIO)
	if g.message != "the store does not answer" {
		t.Errorf("the client is told %q", g.message)
	}
	p.read(0, 512).wants(t, "the store hangs still", nbd.EIO)
	close(h.let)
	for p.read(0, 512).err != nbd.None { // it does not any more
	}
	q := dial()
	q.enter("disk", nbd.Simple)
	q.read(0, 512).wants(t, "a new client", nbd.None)
	if n := s.Conns()[0].Errors; n < 2 {
		t.Errorf("%d errors are counted", n)
	}
}

// untold is a thin store that does not tell what is allocated: no Extenter.
type untold struct{ backing.Store }

func (u untold) Discard(ctx context.Context, off, n int64) error {
	return u.Store.(backing.Discarder).Discard(ctx, off, n)
}

// A unit that cannot tell what is allocated has no block status to offer.
func TestAllocationIsOfferedWhereItIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		store backing.Store
		want  bool
	}{"told": {openRAM(t, 1<<20), true}, "untold": {untold{openRAM(t, 1<<20)}, false}} {
		if got := newDisk(t, c.store, scsi.UnitConfig{}).exp.Info().Allocation; got != c.want {
			t.Errorf("%s: base:allocation is offered: %t", name, got)
		}
	}
}
