package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestKeyFile(t *testing.T) {
	const a, b = "joe:000102030405060708090a0b0c0d0e0f\n", "joe:100102030405060708090a0b0c0d0e0f\n"
	path := filepath.Join(t.TempDir(), "keys")
	write := func(s string, age time.Duration) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	f := &keyFile{path: path}
	wants := func(what string, first byte, there bool) {
		t.Helper()
		if k, ok := f.key("joe"); ok != there || ok && k[0] != first {
			t.Errorf("%s: %x, %v", what, k, ok)
		}
	}
	wants("no file", 0, false)
	write(a, 0)
	wants("a file", 0, true)
	// As long, and of the same time: what was just written may be written again.
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write(b, 0)
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	wants("changed at once", 0x10, true)
	write(a, time.Hour)
	wants("an old one", 0, true)
	was := f.read
	wants("again", 0, true)
	if !f.read.Equal(was) {
		t.Error("a file that has not changed is read again")
	}
	write("joe:short\n", time.Minute)
	wants("a bad one", 0, false)
	write(b, time.Minute)
	wants("a good one", 0x10, true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wants("gone", 0, false)
}
