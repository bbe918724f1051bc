package daemon_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"blockgate/internal/api/client"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
)

// disk is what a daemon that is killed leaves: its state file, and the stores,
// which are all holes. SIGKILL takes nothing away that was written.
type disk struct {
	db     []byte
	stores map[string]int64 // size by path
}

func readDisk(t *testing.T, dir, data string) disk {
	t.Helper()
	return disk{must(os.ReadFile(filepath.Join(dir, state.FileName)))(t), sizes(t, data)}
}

// sizes are those of the files in a directory.
func sizes(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	for _, e := range must(os.ReadDir(dir))(t) {
		out[filepath.Join(dir, e.Name())] = must(e.Info())(t).Size()
	}
	return out
}

// put makes the disk what it was, with the state file in a directory of its own.
func (d *disk) put(t *testing.T, dir, data string) {
	t.Helper()
	now := sizes(t, data)
	for p := range now {
		if _, stays := d.stores[p]; !stays {
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	for p, size := range d.stores {
		if is, there := now[p]; there && is == size {
			continue
		}
		f := must(os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600))(t)
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := os.WriteFile(filepath.Join(dir, state.FileName), d.db, 0o600); err != nil {
		t.Fatal(err)
	}
}

// torn is a commit that ended between its two steps: bbolt writes and syncs the
// new pages first, then one of the two meta pages at the file's start that says
// which pages count.
func torn(before, after []byte) []byte {
	metas := 2 * os.Getpagesize()
	return append(bytes.Clone(before[:metas]), after[metas:]...)
}

// longer tells whether this is the longer set (make judge).
func longer() bool { return os.Getenv("BLOCKGATE_OUTSIDE") == "all" }

// TestKilledAtEveryPoint goes, change by change, through all that kill -9 can
// leave on the disk, and starts a daemon on it (every ninth change, unless this
// is the longer set). Every state is the one before
// the change or the one after it, and where it is the one before, the change can
// be made again.
func TestKilledAtEveryPoint(t *testing.T) {
	const changes = 200
	step := 9
	switch {
	case longer():
		step = 1
	case testing.Short():
		step = 23
	}
	dir, data := t.TempDir(), t.TempDir()
	d, c := start(t, dir)
	list := script(data, changes)
	disks, states := []disk{readDisk(t, dir, data)}, []string{what(t, c)}
	for i, change := range list {
		if err := change(t.Context(), c); err != nil {
			t.Fatalf("change %d: %v", i+1, err)
		}
		disks, states = append(disks, readDisk(t, dir, data)), append(states, what(t, c))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	points := 0
	for i := 0; i < changes; i += step {
		before, after := disks[i], disks[i+1]
		type point struct {
			name string
			disk
			want int // the state
		}
		list2 := []point{
			{"before", before, i},
			{"the commit half done", disk{torn(before.db, after.db), after.stores}, i},
			{"committed", after, i + 1},
		}
		if !maps.Equal(before.stores, after.stores) {
			list2 = append(list2, point{"stores made", disk{before.db, after.stores}, i})
			// Some of the new stores, the last one without its size.
			some := maps.Clone(before.stores)
			var fresh []string
			for p := range after.stores {
				if _, old := before.stores[p]; !old {
					fresh = append(fresh, p)
				}
			}
			slices.Sort(fresh)
			for k, p := range fresh[:(len(fresh)+1)/2] {
				some[p] = after.stores[p]
				if k == (len(fresh)+1)/2-1 {
					some[p] = 0
				}
			}
			list2 = append(list2, point{"a store half made", disk{before.db, some}, i})
		}
		for _, p := range list2 {
			points++
			name := fmt.Sprintf("change %d, %s", i+1, p.name)
			on := t.TempDir()
			p.put(t, on, data)
			killedAt(t, name, on, states[p.want], func(c *client.Client) error {
				if p.want != i {
					return nil
				}
				return list[i](t.Context(), c)
			}, states[i+1])
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d points of %d changes", points, (changes+step-1)/step)
}

// killedAt starts a daemon on a disk and checks its state, and again after next.
func killedAt(t *testing.T, name, dir, want string, next func(*client.Client) error, then string) {
	t.Helper()
	d, err := daemon.Start(t.Context(), daemon.Config{StateDir: dir, Socket: filepath.Join(dir, "s")})
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer d.Close()
	c := client.New(filepath.Join(dir, "s"))
	defer c.Close()
	if got := what(t, c); got != want {
		t.Errorf("%s:\n%s", name, cmp.Diff(want, got))
		return
	}
	if err := next(c); err != nil {
		t.Errorf("%s: made again: %v", name, err)
		return
	}
	if got := what(t, c); got != then {
		t.Errorf("%s: made again:\n%s", name, cmp.Diff(then, got))
	}
}
