package scsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
	"blockgate/scsi"
)

// meter is a store whose usage the test sets.
type meter struct {
	*memDisk
	mu    sync.Mutex
	usage backing.Usage
	asked int
	hold  chan struct{} // if not nil, Usage waits for it
}

func (m *meter) Usage(context.Context) (backing.Usage, error) {
	m.mu.Lock()
	m.asked++
	u, hold := m.usage, m.hold
	m.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return u, nil
}

// set changes what is available and used, in threshold sets of 1 MiB.
func (m *meter) set(available, used int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.usage = backing.Usage{Available: available << 20, Used: used << 20}
}

func (m *meter) questions() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// meterRig is a rig whose disk is a meter.
func meterRig(t *testing.T) (*meter, *rig) {
	m := &meter{memDisk: newMemDisk(1<<20, backing.CapDiscard|backing.CapUsage)}
	m.set(100, 10)
	r := &rig{t: t}
	r.unit = r.newUnit(func(c *scsi.UnitConfig) { c.Store = m })
	r.dev = scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:disk"})
	if err := r.dev.SetUnit(0, r.unit); err != nil {
		t.Fatal(err)
	}
	return m, r
}

// setThresholds sets the counts of both thresholds; 0 disables one.
func (h *host) setThresholds(available, used uint32) {
	h.t.Helper()
	p := h.page6(0, 0x1c, 2)
	for i, count := range []uint32{available, used} {
		d := p[16+8*i:]
		d[0] &^= 0x80
		if count != 0 {
			d[0] |= 0x80
		}
		binary.BigEndian.PutUint32(d[4:], count)
	}
	h.expect("set thresholds", h.select6(append(make([]byte, 4), p...)...), "good")
}

func TestThresholdPage(t *testing.T) {
	_, r := meterRig(t)
	h := r.login("a")
	want := append([]byte{0x5c, 2, 0, 28}, make([]byte, 12)...)
	want = append(want, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0)
	if p := h.page6(0, 0x1c, 2); !bytes.Equal(p, want) {
		t.Errorf("got  % x\nwant % x", p, want)
	}
	mask := append([]byte{0x5c, 2, 0, 28}, make([]byte, 12)...)
	mask = append(mask, 0x80, 0, 0, 0, 255, 255, 255, 255, 0x80, 0, 0, 0, 255, 255, 255, 255)
	if p := h.page6(1, 0x1c, 2); !bytes.Equal(p, mask) {
		t.Errorf("changeable % x\nwant       % x", p, mask)
	}
	if p := h.page6(1, 1, 0); p[7] != 0x80 {
		t.Errorf("LBPERE cannot be changed: % x", p)
	}
	h.setThresholds(20, 0xfffffffe)
	if p := h.page6(0, 0x1c, 2); p[16] != 0x80 || p[23] != 20 || p[24] != 0x81 || p[31] != 0xfe {
		t.Errorf("set: % x", p)
	}
	bad := h.page6(0, 0x1c, 2)
	bad[25] = 1
	h.expect("another resource", h.select6(append(make([]byte, 4), bad...)...), "5/26/00")

	if err := r.unit.Update(func(c *scsi.UnitConfig) { c.Provisioning = scsi.ProvisioningFull }); err != nil {
		t.Fatal(err)
	}
	h.do(tur)
	if p := h.page6(0, 0x1c, 2); len(p) != 16 {
		t.Errorf("a unit that is not thin has thresholds: % x", p)
	}
}

func TestThresholdCrossings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := meterRig(t)
		a, b := r.login("a"), r.login("b")
		told := func(what string, h *host, descriptor byte) {
			t.Helper()
			p := h.expect(what, h.do(tur), "6/38/07")
			if p.Sense[0]&0x80 == 0 || p.Sense[6] != descriptor {
				t.Errorf("%s: INFORMATION is not %d: % x", what, descriptor, p.Sense)
			}
			h.expect(what, h.do(tur), "good")
		}
		settle := func() { time.Sleep(3 * time.Second); synctest.Wait() } // on the bubble's clock
		write := func() { a.good(write10(0, 1), block(1)...); settle() }

		write()
		if n := m.questions(); n != 0 {
			t.Fatalf("asked %d times without a threshold", n)
		}
		a.setThresholds(20, 50)
		settle()
		b.expect("the page has changed", b.do(tur), "6/2a/01")
		a.good(tur)
		m.set(21, 49)
		write()
		a.good(tur)

		m.set(20, 49)
		write()
		told("available", a, 16)
		told("available, another nexus", b, 16)
		m.set(5, 49)
		write()
		a.expect("told already", a.do(tur), "good")
		m.set(30, 49)
		write()
		a.good(tur)
		m.set(19, 51)
		write()
		a.expect("both crossed", a.do(tur), "6/38/07")
		told("both crossed", a, 24)
		b.do(tur)
		b.do(tur)

		// Many writes are few questions, and the last one counts.
		n := m.questions()
		for range 50 {
			a.good(write10(0, 1), block(1)...)
		}
		m.set(30, 10)
		settle()
		if n = m.questions() - n; n < 1 || n > 2 {
			t.Errorf("50 writes at once asked %d times", n)
		}
		write()
		m.set(20, 10)
		a.good([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, unmapBlocks(0, 8)...)
		settle()
		told("after an UNMAP", a, 16)
		told("after an UNMAP", b, 16)

		// A threshold that has been passed when it is set is told at once.
		a.setThresholds(0, 5)
		settle()
		told("passed already", a, 24)
		b.expect("the page has changed", b.do(tur), "6/2a/01")
		told("passed already", b, 24)

		p := a.page6(0, 1, 0)
		p[7] &^= 0x80 // LBPERE
		a.expect("", a.select6(append(make([]byte, 4), p...)...), "good")
		b.do(tur)
		m.set(20, 1)
		write()
		m.set(20, 60)
		write()
		a.expect("reports are off", a.do(tur), "good")
	})
}

// Close waits for a question, and asks none afterwards.
func TestThresholdsAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, r := meterRig(t)
		a := r.login("a")
		m.mu.Lock()
		m.hold = make(chan struct{})
		m.mu.Unlock()
		a.setThresholds(20, 0)
		time.Sleep(2 * time.Second)
		a.good(write10(0, 1), block(1)...) // nothing waits for the store's answer
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.unit.Close(short); !errors.Is(err, scsi.ErrStuck) {
			t.Errorf("closed while the store is asked: %v", err)
		}
		close(m.hold)
		if err := r.unit.Close(t.Context()); err != nil {
			t.Error(err)
		}
		n := m.questions()
		time.Sleep(time.Minute)
		if m.questions() != n {
			t.Error("asked after Close")
		}
	})
}

// unmapBlocks is the parameter list of an UNMAP of one range.
func unmapBlocks(lba uint64, n uint32) []byte {
	b := []byte{0, 22, 0, 16, 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint64(b, lba)
	return append(binary.BigEndian.AppendUint32(b, n), 0, 0, 0, 0)
}
