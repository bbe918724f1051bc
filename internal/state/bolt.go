package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Bolt keeps the state in one file of this node. A committed transaction is on
// the disk (fdatasync) when Txn returns.
type Bolt struct {
	watchers
	db   *bolt.DB
	file fs.FileInfo // of db, as it was opened
}

// FileName is the state file's name in a state directory.
const FileName = "state.db"

var (
	bucketResources = []byte("resources") // key → envelope as JSON
	bucketMeta      = []byte("meta")
	keyRevision     = []byte("revision") // big endian, 8 bytes
	keyFormat       = []byte("format")
	formatV1        = []byte("blockgate 1")
)

// envelope is the value of one key.
type envelope struct {
	Revision uint64          `json:"revision"`
	Resource json.RawMessage `json:"resource"`
}

// OpenBolt opens or makes the state file at path; its directory must exist.
// The file is readable by its owner alone: it has secrets. An error of code
// CodeStateLocked names the process that has it open, if it can be found, and
// one of CodeStateCorrupt says that the file is not a state file or is damaged.
func OpenBolt(path string) (*Bolt, error) {
	b := &Bolt{}
	err := guard(path, func() error { return b.open(path) })
	if err != nil {
		if b.db != nil {
			b.db.Close()
		}
		return nil, err
	}
	return b, nil
}

func (b *Bolt) open(path string) error {
	// bbolt takes an empty file for a new one. It is what a broken file system or
	// a slip of the shell leaves of an old one: a gateway that came up without a
	// single target, and gave them new identities when they are made again, would
	// be worse than one that does not start.
	info, err := os.Stat(path)
	if err == nil && info.Size() == 0 {
		e := corrupt(path, errors.New("it is empty"))
		e.Hint = "restore a backup; if there never was a state here, remove the file"
		return e
	}
	fresh := errors.Is(err, fs.ErrNotExist)
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 200 * time.Millisecond, FreelistType: bolt.FreelistMapType})
	if err != nil {
		if fresh && !errors.Is(err, berrors.ErrTimeout) {
			os.Remove(path) // what a full disk let us make of it
		}
		return openError(path, err)
	}
	b.db = db
	if b.file, err = os.Stat(path); err != nil {
		return openError(path, err)
	}
	return db.Update(func(tx *bolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		switch f := meta.Get(keyFormat); {
		case f == nil:
			if err := meta.Put(keyFormat, formatV1); err != nil {
				return err
			}
		case !bytes.Equal(f, formatV1):
			return &Error{Class: Refused, Code: CodeStateFailed, Object: path, Reason: fmt.Sprintf("has the format %q, this version knows %q", f, formatV1),
				Hint: "use the version that wrote it"}
		}
		_, err = tx.CreateBucketIfNotExists(bucketResources)
		return err
	})
}

func openError(path string, err error) error {
	e := &Error{Class: Internal, Code: CodeStateFailed, Object: "state " + path, Reason: err.Error(), Err: err}
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		e.Class, e.Code, e.Reason = Conflict, CodeStateLocked, "is in use by another process"
		e.Hint = "stop it, or use another --state directory"
		if who := lockHolder(path); who != "" {
			e.Reason = "is in use by " + who
		}
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return corrupt(path, err)
	case errors.Is(err, fs.ErrPermission):
		e.Class, e.Hint = Refused, "run as its owner, or use another --state directory"
	case errors.Is(err, syscall.ENOSPC):
		e.Class, e.Hint = Refused, "free some space"
	case errors.Is(err, syscall.EROFS):
		e.Class, e.Hint = Refused, "mount it writable, or use another --state directory"
	}
	return e
}

func corrupt(path string, err error) *Error {
	return &Error{Class: Internal, Code: CodeStateCorrupt, Object: "state " + path, Reason: "is damaged or not a state file: " + err.Error(),
		Hint: "move it away and restore a backup; the volumes' data are not in it", Err: err}
}

// guard turns what a damaged file does to its reader (a panic, or a fault where
// the mapping ends behind the file) into an error.
func guard(path string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = corrupt(path, fmt.Errorf("%v", r))
		}
	}()
	return f()
}

// lockHolder names the process that holds the file's lock, as far as
// /proc/locks shows it.
func lockHolder(path string) string {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	suffix := fmt.Sprintf(":%d", st.Ino)
	for line := range strings.Lines(string(locks)) {
		// "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF"
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], suffix) || f[4] == "-1" {
			continue
		}
		comm, _ := os.ReadFile("/proc/" + f[4] + "/comm")
		if name := strings.TrimSpace(string(comm)); name != "" {
			return fmt.Sprintf("process %s (%s)", f[4], name)
		}
		return "process " + f[4]
	}
	return ""
}

// Get implements Backend.
func (b *Bolt) Get(_ context.Context, key string) (it Item, ok bool, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketResources).Get([]byte(key))
		if v == nil {
			return nil
		}
		ok = true
		it, err = item(key, v)
		return err
	})
	return it, ok, err
}

// List implements Backend.
func (b *Bolt) List(_ context.Context, prefix string) (l []Item, rev uint64, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		rev = revision(tx)
		c := tx.Bucket(bucketResources).Cursor()
		for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			it, err := item(string(k), v)
			if err != nil {
				return err
			}
			l = append(l, it)
		}
		return nil
	})
	return l, rev, err
}

func (b *Bolt) view(f func(*bolt.Tx) error) error {
	return guard(b.db.Path(), func() error { return b.db.View(f) })
}

func item(key string, v []byte) (Item, error) {
	var e envelope
	if err := json.Unmarshal(v, &e); err != nil {
		return Item{}, &Error{Class: Internal, Code: CodeStateCorrupt, Object: fmt.Sprintf("state key %q", key),
			Reason: "cannot be read: " + err.Error(), Hint: "restore the state file from a backup", Err: err}
	}
	return Item{Key: key, Value: e.Resource, Revision: e.Revision}, nil
}

func revision(tx *bolt.Tx) uint64 {
	if v := tx.Bucket(bucketMeta).Get(keyRevision); len(v) == 8 {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// present tells whether the file still has its name. A change that is written
// to one that was deleted, or that another was moved over, is lost when we end.
func (b *Bolt) present() error {
	now, err := os.Stat(b.db.Path())
	if err == nil && os.SameFile(now, b.file) {
		return nil
	}
	why := "was replaced"
	if err != nil {
		why = "is gone (" + err.Error() + ")"
	}
	return &Error{Class: Refused, Code: CodeStateFailed, Object: "state " + b.db.Path(), Reason: why + " while it was in use: a change would not last", Err: err,
		Hint: "save what runs, blockgate export --secrets > FILE, then start again and apply it"}
}

// Txn implements Backend.
func (b *Bolt) Txn(_ context.Context, t Txn) (rev uint64, err error) {
	if err := b.present(); err != nil {
		return 0, err
	}
	err = b.db.Update(func(tx *bolt.Tx) error {
		res := tx.Bucket(bucketResources)
		for _, c := range t.If {
			var have uint64
			if v := res.Get([]byte(c.Key)); v != nil {
				it, err := item(c.Key, v)
				if err != nil {
					return err
				}
				have = it.Revision
			}
			if have != c.Revision {
				return fmt.Errorf("%s: %w", c.Key, ErrCompare)
			}
		}
		rev = revision(tx) + 1
		if err := tx.Bucket(bucketMeta).Put(keyRevision, binary.BigEndian.AppendUint64(nil, rev)); err != nil {
			return err
		}
		for _, it := range t.Put {
			v, err := json.Marshal(envelope{Revision: rev, Resource: it.Value})
			if err != nil {
				return err
			}
			if err := res.Put([]byte(it.Key), v); err != nil {
				return err
			}
		}
		for _, k := range t.Delete {
			if err := res.Delete([]byte(k)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, ErrCompare) {
			return 0, err
		}
		return 0, openError(b.db.Path(), err)
	}
	b.send(t, rev)
	return rev, nil
}

// Watch implements Backend.
func (b *Bolt) Watch(ctx context.Context) <-chan []Event { return b.watch(ctx) }

// Close implements Backend.
func (b *Bolt) Close() error {
	b.watchers.close()
	return b.db.Close()
}
