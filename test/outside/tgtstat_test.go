package outside

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"blockgate/iscsi/initiator"
)

// statRow is what one command adds to its LUN's line of tgt's stat table.
type statRow struct{ readBytes, reads, writeBytes, writes, errors uint64 }

func (s *sameSide) stat(t *testing.T) (r statRow) {
	t.Helper()
	args := []string{"--lld", "iscsi", "--op", "stat", "--mode", "logicalunit", "--tid", "1", "--lun", "1"}
	out := runEnv(t, 20*time.Second, s.g.env, filepath.Join(s.tools, "tgtadm"), args...)
	_, line, _ := strings.Cut(out.stdout, "\n")
	var tid, lun, sid, rb, rc, wb, wc uint64
	if _, err := fmt.Sscan(line, &tid, &lun, &sid, &r.readBytes, &r.reads, &rb, &rc, &r.writeBytes, &r.writes, &wb, &wc, &r.errors); err != nil {
		t.Fatalf("%s: %v in\n%s", s.name, err, out.both())
	}
	if rb != r.readBytes || rc != r.reads || wb != r.writeBytes || wc != r.writes {
		t.Errorf("%s: not all that was submitted is done:\n%s", s.name, out.stdout)
	}
	return r
}

func (a statRow) since(b statRow) statRow {
	return statRow{a.readBytes - b.readBytes, a.reads - b.reads, a.writeBytes - b.writeBytes, a.writes - b.writes, a.errors - b.errors}
}

// Each command counts at ours as it counts at Debian's tgtd, refused ones too.
func TestTgtStat(t *testing.T) {
	needsTools(t)
	commands := []struct {
		name    string
		cdb     []byte
		in, out int // expected data transfer lengths
	}{
		{name: "TEST UNIT READY that meets a unit attention", cdb: make([]byte, 6)},
		{name: "TEST UNIT READY", cdb: make([]byte, 6)},
		{name: "READ(10)", cdb: []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0}, in: 4096},
		{name: "READ(10) of no block", cdb: []byte{0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{name: "READ(16)", cdb: []byte{0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0}, in: 1024},
		{name: "READ(10) behind the end", cdb: []byte{0x28, 0, 0x7f, 0, 0, 0, 0, 0, 8, 0}, in: 4096},
		{name: "WRITE(10)", cdb: []byte{0x2a, 0, 0, 0, 0, 0, 0, 0, 8, 0}, out: 4096},
		{name: "WRITE(10) of 1 MiB", cdb: []byte{0x2a, 0, 0, 0, 0, 0, 0, 8, 0, 0}, out: 1 << 20},
		{name: "WRITE(10) behind the end", cdb: []byte{0x2a, 0, 0x7f, 0, 0, 0, 0, 0, 8, 0}, out: 4096},
		{name: "READ CAPACITY(10)", cdb: []byte{0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0}, in: 8},
		{name: "READ CAPACITY(16)", cdb: []byte{0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0}, in: 32},
		{name: "INQUIRY of 36 bytes", cdb: []byte{0x12, 0, 0, 0, 36, 0}, in: 36},
		{name: "INQUIRY of no such page", cdb: []byte{0x12, 1, 0xee, 0, 255, 0}, in: 255},
		{name: "SYNCHRONIZE CACHE(10)", cdb: []byte{0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{name: "VERIFY(10) without data", cdb: []byte{0x2f, 0, 0, 0, 0, 0, 0, 0, 8, 0}},
		{name: "WRITE SAME(16)", cdb: []byte{0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0}, out: 512},
		{name: "an unknown command", cdb: []byte{0xee, 0, 0, 0, 0, 0}},
		{name: "START STOP UNIT", cdb: []byte{0x1b, 0, 0, 0, 1, 0}},
	}
	var got [2][]statRow
	for k, dir := range []string{"/usr/sbin", bindir} {
		s := &sameSide{name: []string{"tgt", "ours"}[k], tools: dir, tgtd: dir, g: newTgt(t)}
		s.restart(t)
		adm := func(args ...string) {
			t.Helper()
			ok(t, 20*time.Second, "/usr/bin/env", append(append(s.g.env, filepath.Join(dir, "tgtadm"), "--lld", "iscsi"), args...)...)
		}
		file := filepath.Join(s.g.dir, "disk.img")
		sparse(t, file, 16<<20)
		adm("--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
		adm("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
		adm("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		session, err := initiator.Dial(ctx, initiator.Config{Addrs: []string{s.g.portal()}, TargetName: tgtIQN})
		if err != nil {
			t.Fatal(err)
		}
		before := s.stat(t)
		if before != (statRow{}) {
			t.Errorf("%s: counts before the first command: %+v", s.name, before)
		}
		for _, c := range commands {
			cmd := initiator.Command{LUN: initiator.LUN(1), CDB: c.cdb, In: make([]byte, c.in), Out: make([]byte, c.out)}
			if err := session.Execute(ctx, &cmd); err != nil {
				t.Fatalf("%s: %s: %v", s.name, c.name, err)
			}
			now := s.stat(t)
			got[k] = append(got[k], now.since(before))
			before = now
		}
		session.Logout(ctx)
		s.g.daemon.kill()
	}
	for i, c := range commands {
		if theirs, ours := got[0][i], got[1][i]; ours != theirs {
			t.Errorf("%s counts as %+v, with tgt as %+v", c.name, ours, theirs)
		}
	}
}
