package conndrive

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The socket has never had another mode than 0600: a change of mode would show as
// an event of its directory.
func TestPrivateFromTheBeginning(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err != nil {
		t.Skip(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_ATTRIB); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := ListenPrivate(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if n, err := unix.Read(fd, make([]byte, 4096)); err != unix.EAGAIN {
		t.Errorf("its mode was changed after it appeared: %d bytes of events, %v", n, err)
	}
}
