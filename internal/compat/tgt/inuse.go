package tgt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"blockgate/internal/state"
)

// openFiles knows which processes have which files open. It asks once, when it
// is first needed.
type openFiles struct {
	asked bool
	by    map[string]string // path: process
}

// of says who has a file or device open other than for looking, or "". Links in
// the path are followed. What cannot be found out is taken for free.
func (o *openFiles) of(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	if st, err := os.Stat(real); err == nil && st.Mode()&os.ModeDevice != 0 {
		// The kernel refuses this for a device that is mounted or part of another.
		f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_EXCL, 0)
		if errors.Is(err, syscall.EBUSY) {
			return "the kernel (mounted, or part of another device)"
		}
		if err == nil {
			f.Close()
		}
	}
	if !o.asked {
		o.asked, o.by = true, map[string]string{}
		o.ask()
	}
	return o.by[real]
}

func (o *openFiles) ask() {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return
	}
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, fd := range fds {
		if strings.HasPrefix(fd, self) {
			continue
		}
		if file, err := os.Readlink(fd); err == nil && strings.HasPrefix(file, "/") {
			o.by[file] = "process " + strings.Split(fd, "/")[2]
		}
	}
}

// checkPath tells why a file or device cannot be a store. Stores elsewhere are
// not looked at: only their engine can tell.
func checkPath(url string) error {
	path, ok := strings.CutPrefix(url, "file:")
	if !ok {
		return nil
	}
	st, err := os.Stat(path)
	switch {
	case err != nil && errors.Is(err, os.ErrNotExist):
		return errors.New("does not exist")
	case err == nil && st.IsDir():
		return errors.New("is a directory")
	}
	return nil
}

// copyIdentity gives a volume the identity of the SCSI device that it is on, as
// direct-store asks for. A device that does not tell keeps the defaults.
func copyIdentity(v *state.Volume, path string) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return
	}
	dir := filepath.Join("/sys/class/block", filepath.Base(real))
	read := func(file string) string {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || len(b) > 1024 {
			return ""
		}
		return strings.Trim(strings.ToValidUTF8(string(b), ""), " \n\t\x00")
	}
	set := func(to *string, value string, limit int) {
		if value != "" {
			*to = cut(value, limit)
		}
	}
	set(&v.Unit.Vendor, read("device/vendor"), 8)
	set(&v.Unit.Product, read("device/model"), 16)
	set(&v.Unit.Revision, read("device/rev"), 4)
	if page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && len(page) > 4 {
		set(&v.Unit.Serial, strings.Trim(strings.ToValidUTF8(string(page[4:]), ""), " \x00"), idLength) // SPC-4 §7.8.18
	}
	if size := read("queue/logical_block_size"); size == "4096" && v.BlockSize == 512 {
		v.BlockSize = 4096
	}
}
