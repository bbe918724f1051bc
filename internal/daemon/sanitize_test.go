package daemon_test

import (
	"path/filepath"
	"testing"

	"blockgate/internal/state"
	"blockgate/iscsi/initiator"
)

// What was to be destroyed and is not is not shown after a restart.
func TestSanitizeThatIsCutShort(t *testing.T) {
	ctx, dir := t.Context(), filepath.Join(t.TempDir(), "state")
	portal := state.Portal{Address: "127.0.0.1:0", Group: 1}
	dial := func(addr string) *initiator.Session {
		t.Helper()
		s, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{addr}, TargetName: iqn})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	execute := func(s *initiator.Session, c *initiator.Command) {
		t.Helper()
		for range 4 { // unit attentions
			if err := s.Execute(ctx, c); err != nil {
				t.Fatal(err)
			}
			if len(c.Sense) < 14 || c.Sense[2]&0x0f != 6 {
				return
			}
		}
	}
	t.Run("begin", func(t *testing.T) { // its end stops the daemon
		d, c := start(t, dir, portal)
		must(c.CreateVolume(ctx, state.Volume{Name: "v", URL: "ram:1G"}))(t)
		must(c.CreateTarget(ctx, state.Target{Name: iqn, ACL: []state.ACLRule{{All: true}}, LUNs: []state.LUN{{Number: 0, Volume: "v"}}}))(t)
		s := dial(d.Bound()[0].Bound.String())
		defer s.Close()
		overwrite := &initiator.Command{CDB: []byte{0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0}, Out: []byte{1, 0, 0, 1, 0}}
		if execute(s, overwrite); !overwrite.Good() {
			t.Fatalf("SANITIZE: %v", overwrite.Failure())
		}
	})
	d, _ := start(t, dir, portal)
	s := dial(d.Bound()[0].Bound.String())
	defer s.Close()
	read := &initiator.Command{CDB: []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0}, In: make([]byte, 512)}
	execute(s, read)
	if len(read.Sense) < 14 || read.Sense[2]&0x0f != 3 || read.Sense[12] != 0x31 || read.Sense[13] != 0x03 {
		t.Errorf("READ: status %#x, sense % x; want SANITIZE COMMAND FAILED", uint8(read.Status), read.Sense)
	}
}
