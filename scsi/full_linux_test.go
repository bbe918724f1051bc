package scsi_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/scsi"
)

// A file on a file system that is full: what needs space fails with SPACE
// ALLOCATION FAILED WRITE PROTECT and nothing else does, and once there is space
// again writes go on.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("blockgate-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	store, err := file.Open(t.Context(), filepath.Join(dir, "disk.img"), backing.OpenOptions{Create: true, CreateSize: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r := &rig{t: t}
	r.unit = r.newUnit(func(c *scsi.UnitConfig) { c.Store = store })
	r.dev = scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:disk"})
	if err := r.dev.SetUnit(0, r.unit); err != nil {
		t.Fatal(err)
	}
	h := r.login("a")
	const blocks = 128 // 64 KiB
	data := make([]byte, blocks*512)
	for i := range data {
		data[i] = byte(i + 1)
	}
	full := uint32(0)
	for lba := uint32(0); ; lba += blocks {
		if p := h.do(write10(lba, blocks), data...); p.Status != scsi.Good {
			h.expect("a full file system", p, "7/27/07")
			full = lba
			break
		}
		if lba > 2<<20/512 {
			t.Fatal("2 MiB fitted into 1 MiB")
		}
	}
	h.expect("FUA", h.do([]byte{0x2a, 0x08, 0, 1, 0, 0, 0, 0, blocks, 0}, data...), "7/27/07")
	h.good(write10(0, blocks), data...) // has its space
	h.good(read10(0, blocks))
	h.good(read10(full+1000, blocks))
	h.good(make10(0x35))
	h.good([]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, unmapBlocks(0, 2*blocks)...)
	h.good(write10(full, blocks), data...)
	if b := h.good(read10(full, blocks)); string(b) != string(data) {
		t.Error("what was written after space had been freed is not there")
	}
}
