package server

import (
	"fmt"
	"testing"

	"blockgate/backing"
	"blockgate/backing/file"
	"blockgate/nbd"
	"blockgate/scsi"
)

// steady is a machine over a session with a batch of requests to run again and again.
func steady(t testing.TB, e Export, m nbd.Mode, c nbd.Command, n, depth int) (run func()) {
	s, err := e.Open(&Client{Remote: here{}})
	if err != nil {
		t.Fatal(err)
	}
	k := newMachine(machineConfig{
		Session: s, Mode: m, Flags: e.Info().Flags | nbd.HasFlags, BlockSize: e.Info().BlockSize,
		Budget: NewBudget(1 << 30), Host: &quietHost{}, Lend: true,
	})
	t.Cleanup(k.Closed)
	var in []byte
	for i := range depth {
		r := nbd.Request{Type: c, Cookie: uint64(i), Offset: uint64(i * n), Length: uint64(n)}
		if c == nbd.CmdWrite && m == nbd.Extended {
			r.Flags = nbd.FlagPayloadLen
		}
		in = r.Append(in, m)
		if c == nbd.CmdWrite {
			in = append(in, make([]byte, n)...)
		}
	}
	return func() {
		for p := in; ; {
			n, err := k.Feed(p)
			if err != nil {
				t.Fatal(n, err)
			}
			p = p[n:]
			if k.EndFeed() || k.BeginSend() {
				for k.Gather() != nil {
				}
			}
			if !k.Again() {
				if len(p) > 0 {
					t.Fatalf("%d bytes were left", len(p))
				}
				return
			}
		}
	}
}

type here struct{}

func (here) Network() string { return "unix" }
func (here) String() string  { return "" }

func openFile(t testing.TB, size int64) backing.Store {
	s, err := file.Open(t.Context(), t.TempDir()+"/img", backing.OpenOptions{Create: true, CreateSize: size})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteAt(t.Context(), make([]byte, size), 0); err != nil { // in the page cache
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, name := range []string{"ram", "file"} {
		store := openRAM(t, 4<<20)
		if name == "file" {
			store = openFile(t, 4<<20)
		}
		u, err := scsi.NewUnit(scsi.UnitConfig{Store: store, WriteCache: true})
		if err != nil {
			t.Fatal(err)
		}
		dev := scsi.NewDevice(scsi.DeviceConfig{})
		dev.SetUnit(0, u)
		for what, e := range map[string]Export{"unit": &UnitExport{Device: dev}, "store": ForStore(store, StoreOptions{})} {
			for m := range nbd.Extended + 1 {
				for _, c := range []nbd.Command{nbd.CmdRead, nbd.CmdWrite} {
					if name == "file" && c == nbd.CmdWrite {
						continue // a worker's, on most file systems
					}
					t.Run(fmt.Sprint(name, " ", what, " ", m, " ", c), func(t *testing.T) {
						run := steady(t, e, m, c, 4096, 32)
						run()
						if n := testing.AllocsPerRun(100, run); n > 0.5 {
							t.Errorf("%v allocations for 32 requests", n)
						}
					})
				}
			}
		}
	}
}

// lentNothing has a store's calls and no loans, so that units and bare stores do
// the same work.
type lentNothing struct{ backing.Store }

func (lentNothing) Prompt() bool { return true }

func BenchmarkMachine(b *testing.B) {
	for name, store := range map[string]backing.Store{"ram": lentNothing{openRAM(b, 4<<20)}, "file": openFile(b, 4<<20)} {
		u, err := scsi.NewUnit(scsi.UnitConfig{Store: store, WriteCache: true})
		if err != nil {
			b.Fatal(err)
		}
		dev := scsi.NewDevice(scsi.DeviceConfig{})
		dev.SetUnit(0, u)
		for what, e := range map[string]Export{"unit": &UnitExport{Device: dev}, "store": ForStore(store, StoreOptions{})} {
			b.Run(name+"/"+what, func(b *testing.B) {
				run := steady(b, e, nbd.Structured, nbd.CmdRead, 4096, 32)
				b.ReportAllocs()
				for b.Loop() {
					run()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/32, "ns/request")
			})
		}
	}
}
