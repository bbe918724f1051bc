package glfs

import (
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"blockgate/backing"
)

const replicatePrivate = "graphs/active/v1-replicate-0/private"

func TestChildrenUp(t *testing.T) {
	text, err := os.ReadFile("testdata/replicate-private")
	if err != nil {
		t.Fatal(err)
	}
	if got := childrenUp(string(text)); got != "101" {
		t.Errorf("children %q, want 101", got)
	}
	if got := childrenUp("nonsense\n = \nchild_up[0\n"); got != "" {
		t.Errorf("of nonsense: %q", got)
	}
}

// A replica goes away under load: writes are held up for one sync, and go on.
func TestReplicaGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newFake(t)
		v.volfile = strings.Replace(v.volfile, "volume v1\n", "volume v1-replicate-0\n    type cluster/replicate\nend-volume\n\nvolume v1\n", 1)
		const up = "child_count = 2\nchild_up[0] = 1\nhalo_child_up[0] = 0\nchild_up[1] = 1\n"
		v.meta[replicatePrivate] = up
		s, err := openFake(t, v, Location{}, backing.OpenOptions{Create: true, CreateSize: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var load sync.WaitGroup
		for range 4 {
			load.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					if err := s.WriteAt(t.Context(), make([]byte, 512), 0); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		syncs := func() (n int) { v.set(func() { n = v.syncs }); return n }
		for _, c := range []struct {
			name, state string
			want        int // syncs by then
		}{
			{"all up", up, 0},
			{"one away", strings.Replace(up, "child_up[1] = 1", "child_up[1] = 0", 1), 1},
			{"still away", strings.Replace(up, "child_up[1] = 1", "child_up[1] = 0", 1), 1},
			{"up again", up, 1},
			{"another one away", strings.Replace(up, "child_up[0] = 1", "child_up[0] = -1", 1), 2},
		} {
			v.set(func() { v.meta[replicatePrivate] = c.state })
			time.Sleep(3 * replicaTime)
			if n := syncs(); n != c.want {
				t.Errorf("%s: %d syncs, want %d", c.name, n, c.want)
			}
		}
		close(stop)
		load.Wait()
		s.Close()
	})
}
