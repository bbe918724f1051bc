package outside

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootSector is a program that a PC's BIOS loads from the first block of its
// disk. It says so on the serial line, writes itself to the second block, and
// ends the machine with QEMU's exit status 33, or 35 if the write failed.
func bootSector() []byte {
	const origin = 0x7c00
	text := "booted from blockgate\r\n"
	code := []byte{
		0x31, 0xc0, //             xor ax, ax
		0x8e, 0xd8, //             mov ds, ax
		0x52,             //       push dx          the drive's number
		0xbe, 0x00, 0x00, //       mov si, text     patched
		0xac,       //       next: lodsb
		0x84, 0xc0, //             test al, al
		0x74, 0x06, //             jz done
		0xba, 0xf8, 0x03, //       mov dx, 3f8h     the serial line
		0xee,       //             out dx, al
		0xeb, 0xf5, //             jmp next
		0x5a,             //       done: pop dx
		0xb8, 0x00, 0x43, //       mov ax, 4300h    extended write
		0xbe, 0x00, 0x00, //       mov si, packet   patched
		0xcd, 0x13, //             int 13h
		0xb0, 0x10, //             mov al, 10h
		0x73, 0x02, //             jnc +2
		0xb0, 0x11, //             mov al, 11h
		0xba, 0xf4, 0x00, //       mov dx, 0f4h     isa-debug-exit
		0xee,       //       out dx, al
		0xf4,       //       hlt
		0xeb, 0xfd, //             jmp $-1
	}
	packet := []byte{16, 0, 1, 0, 0, origin >> 8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0} // one block from 0:7c00h to LBA 1
	binary.LittleEndian.PutUint16(code[6:], uint16(origin+len(code)))
	binary.LittleEndian.PutUint16(code[24:], uint16(origin+len(code)+len(text)+1))
	b := make([]byte, 512)
	n := copy(b, code)
	n += copy(b[n:], text) + 1
	copy(b[n:], packet)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// The recipe of docs/migrating-from-tgt.md: a machine whose disk is a target,
// without the kernel's initiator.
func TestQEMUBoots(t *testing.T) {
	needsTools(t)
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(image, bootSector(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 1<<20); err != nil {
		t.Fatal(err)
	}
	e := serve(t, image)
	r := run(t, time.Minute, "qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
		"-drive", "file="+e.url+",format=raw,if=virtio")
	if r.code != 33 || !strings.Contains(r.stdout, "booted from blockgate") {
		t.Fatalf("exit %d, timed out: %v\n%s", r.code, r.timedOut, r.both())
	}
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if want := string(bootSector()); string(b[512:1024]) != want {
		t.Error("what the machine wrote is not in the file")
	}
}
