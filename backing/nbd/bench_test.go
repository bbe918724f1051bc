package nbd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/nbd"
	"blockgate/nbd/client/nbdfake"
)

// BenchmarkIO measures against nbdkit's memory plugin where there is one, and the
// fake otherwise.
func BenchmarkIO(b *testing.B) {
	const size = 256 << 20
	socket := filepath.Join(b.TempDir(), "nbdkit")
	if kit, err := exec.LookPath("nbdkit"); err == nil {
		cmd := exec.Command(kit, "-f", "-U", socket, "memory", "256M")
		cmd.Stderr = os.Stderr
		ok(b, cmd.Start())
		b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	} else {
		s := nbdfake.New(nbdfake.Options{Flags: nbdfake.All, Size: size})
		ok(b, s.Start("unix", socket))
		b.Cleanup(s.Stop)
	}
	var s backing.Store
	for try := time.Now(); ; {
		var err error
		if s, err = nbd.Opener("nbd+unix")(b.Context(), "///?socket="+socket, backing.OpenOptions{}); err == nil {
			break
		}
		if time.Since(try) > 5*time.Second {
			b.Fatal(err)
		}
	}
	defer s.Close()
	for _, k := range []struct {
		name        string
		size, depth int
	}{{"4K-q1", 4096, 1}, {"4K-q32", 4096, 32}, {"1M-q4", 1 << 20, 4}} {
		for name, do := range map[string]func(p []byte, off int64) error{
			"read":  func(p []byte, off int64) error { return s.ReadAt(b.Context(), p, off) },
			"write": func(p []byte, off int64) error { return s.WriteAt(b.Context(), p, off) },
		} {
			b.Run(name+"-"+k.name, func(b *testing.B) {
				b.SetBytes(int64(k.size))
				b.ReportAllocs()
				var wg sync.WaitGroup
				for w := range k.depth {
					wg.Go(func() {
						p := make([]byte, k.size)
						off := int64(w) * (size / 32)
						for i := w; i < b.N; i += k.depth {
							if err := do(p, off); err != nil {
								b.Error(err)
								return
							}
							off = (off*5 + 7<<20) % size &^ int64(k.size-1)
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
