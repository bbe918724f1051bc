package daemon

import (
	"os"
	"sync"
	"time"

	"blockgate/internal/tlspsk"
)

// keyFile is a file of pre-shared keys, which is read again when it has changed:
// not for each name that somebody claims to have, since whoever reaches the portal
// may claim many.
type keyFile struct {
	path string

	mu   sync.Mutex
	keys map[string][]byte
	stat os.FileInfo // as it was before it was read
	read time.Time
}

// settled is how old a change has to be for the next one to show in the file's
// time.
const settled = 2 * time.Second

// load reads the file unless it is as it was; mu is not held.
func (f *keyFile) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(f.path)
	if err != nil {
		f.keys, f.stat = nil, nil
		return err
	}
	if old := f.stat; old != nil && os.SameFile(old, st) && old.ModTime().Equal(st.ModTime()) && old.Size() == st.Size() &&
		f.read.Sub(st.ModTime()) > settled {
		return nil
	}
	f.read, f.stat = time.Now(), st
	if f.keys, err = tlspsk.ReadKeys(f.path); err != nil {
		f.keys, f.stat = nil, nil
	}
	return err
}

// key finds the key of an identity. Without a file that can be read there is none.
func (f *keyFile) key(identity string) ([]byte, bool) {
	if f.load() != nil {
		return nil, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k, ok := f.keys[identity]
	return k, ok
}
