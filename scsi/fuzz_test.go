package scsi_test

import (
	"testing"

	"blockgate/backing/ram"
	"blockgate/scsi"
)

// FuzzCDB sends sequences of arbitrary commands with arbitrary data-out from two
// nexuses: no panic, exactly one TaskDone each, nothing stays in the task set,
// data-in within its bounds, and sense data exactly with CHECK CONDITION.
func FuzzCDB(f *testing.F) {
	for _, c := range scsi.Commands() {
		cdb := make([]byte, 16)
		copy(cdb, c.Usage)
		f.Add(append(cdb, 24, 0, 0, 0, 0x0a, 0x0a, 2))
		clear(cdb)
		cdb[0] = c.Op
		if c.SA != scsi.NoSA {
			cdb[1] = byte(c.SA)
		}
		cdb[len(c.Usage)-2] = 1
		f.Add(append(cdb, 0x80, 1, 2, 3))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		store, err := ram.New(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{t: t}
		r.unit = r.newUnit(func(c *scsi.UnitConfig) { c.Store, c.Removable = store, true })
		r.dev = scsi.NewDevice(scsi.DeviceConfig{Name: "iqn.2026-01.test:fuzz"})
		if err := r.dev.SetUnit(0, r.unit); err != nil {
			t.Fatal(err)
		}
		hosts := []*host{r.login("a"), r.login("b")}
		for range 16 {
			if len(script) < 17 {
				break
			}
			cdb, how := script[:16], script[16]
			script = script[17:]
			n := min(len(script), int(how&0x7f))
			out := script[:n]
			script = script[n:]
			h := hosts[how>>7]
			p, ok := h.admit(scsi.Attr(how%5), cdb, out)
			switch {
			case !ok:
			case how == 0x55:
				p.Abandon(nil)
			default:
				if p.OutLen < 0 || p.OutLen > 64<<20 {
					t.Fatalf("CDB % x asks for %d bytes", cdb, p.OutLen)
				}
				p.run()
			}
			<-p.done
			if int64(len(p.In)) > p.MaxIn || int64(len(p.In)) > p.InLen {
				t.Errorf("CDB % x: %d bytes of data-in, InLen %d, room for %d", cdb, len(p.In), p.InLen, p.MaxIn)
			}
			if (len(p.Sense) > 0) != (p.Status == scsi.CheckCondition && !p.Aborted()) {
				t.Errorf("CDB % x: status %02x, sense % x", cdb, p.Status, p.Sense)
			}
			p.Reset()
		}
		for _, h := range hosts {
			h.nx.Detach(nil)
		}
		if err := r.unit.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
