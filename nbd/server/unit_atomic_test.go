package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"

	"blockgate/backing"
	"blockgate/nbd"
	"blockgate/scsi"
)

// keeping holds the first read until the test lets it go.
type keeping struct {
	backing.Store
	used        atomic.Bool
	inside, let chan struct{}
}

func (k *keeping) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := k.Store.ReadAt(ctx, p, off)
	if k.used.CompareAndSwap(false, true) {
		close(k.inside)
		<-k.let
	}
	return err
}

// compareAndWrite is the command for the first block (SBC-3 §5.2).
func compareAndWrite(was, becomes []byte) (cdb, out []byte) {
	cdb = make([]byte, 16)
	cdb[0], cdb[13] = 0x89, 1
	return cdb, append(bytes.Clone(was), becomes...)
}

// A write of an NBD client does not come between the two halves of an initiator's
// COMPARE AND WRITE.
func TestCompareAndWriteIsWhole(t *testing.T) {
	k := &keeping{Store: openRAM(t, 1<<20), inside: make(chan struct{}), let: make(chan struct{})}
	d := newDisk(t, k, scsi.UnitConfig{})
	_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "unix")
	p := dial()
	p.enter("disk", nbd.Simple)
	zero, ones, twos := make([]byte, 512), bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)
	status := make(chan scsi.Status, 1)
	go func() { status <- d.scsi(compareAndWrite(zero, ones)) }()
	<-k.inside // it has compared
	w := p.ask(nbd.CmdWrite, 0, 0, 512, twos)
	r := p.ask(nbd.CmdRead, 0, 4096, 512, nil)
	if g := p.reply(512); g.cookie != r { // what was asked later is answered first
		t.Errorf("the reply is to %d: the write to %d did not wait", g.cookie, w)
	}
	close(k.let)
	if st := <-status; st != scsi.Good {
		t.Errorf("COMPARE AND WRITE: status %#x", st)
	}
	if g := p.reply(0); g.cookie != w || g.err != nbd.None {
		t.Errorf("%+v", g)
	}
	wantData(t, "the write came last", p.read(0, 512), twos)
}

// Both under load: no write of the NBD client is lost to a COMPARE AND WRITE that
// had compared with what was there before.
func TestCompareAndWriteUnderLoad(t *testing.T) {
	d := newDisk(t, openRAM(t, 1<<20), scsi.UnitConfig{})
	_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "unix")
	p, q := dial(), dial()
	p.enter("disk", nbd.Structured)
	q.enter("disk", nbd.Simple)
	const mark = 1 << 63
	block := func(v uint64) []byte {
		b := make([]byte, 512)
		for i := 0; i < len(b); i += 8 {
			binary.BigEndian.PutUint64(b[i:], v)
		}
		return b
	}
	value := func(g got) uint64 {
		v := binary.BigEndian.Uint64(g.data)
		if !bytes.Equal(g.data, block(v)) {
			t.Errorf("a block is torn: % x", g.data)
		}
		return v
	}
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		marked := 0
		defer func() { done <- marked }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if v := value(q.read(0, 512)); d.scsi(compareAndWrite(block(v), block(v|mark))) == scsi.Good {
				marked++
			}
		}
	}()
	for v := uint64(1); v <= 1000 && !t.Failed(); v++ {
		p.write(0, block(v)).wants(t, "write", nbd.None)
		if got := value(p.read(0, 512)) &^ mark; got != v {
			t.Errorf("%d was written, and %d is there", v, got)
		}
	}
	close(stop)
	if n := <-done; n == 0 {
		t.Error("nothing was ever marked")
	}
}

// What one command may carry need not be whole blocks.
func TestOddTransferLimit(t *testing.T) {
	d := newDisk(t, openRAM(t, 1<<20), scsi.UnitConfig{MaxTransfer: 1300})
	_, dial := start(t, Config{Directory: Single(d.exp)}, Access{}, "unix")
	p := dial()
	p.enter("disk", nbd.Structured)
	p.write(512, pattern(3, 8192)).wants(t, "write", nbd.None)
	data := pattern(3, 8192)
	wantData(t, "read", p.read(512, 8192), data)
	for off := uint64(0); off < 8192; off += 512 {
		wantData(t, "read of a block", p.read(512+off, 512), data[off:][:512])
	}
}
