package outside

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// theirs runs a program of Debian's tgt package against our daemon.
func (g *tgt) theirs(t *testing.T, name string, args ...string) result {
	t.Helper()
	env := append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, g.env...)
	return runEnv(t, 60*time.Second, env, filepath.Join("/usr/sbin", name), args...)
}

func (g *tgt) mustTheirs(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := g.theirs(t, name, args...)
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("Debian's %s %s: exit %d: %s", name, strings.Join(args, " "), r.code, r.both())
	}
	return r.stdout
}

// conf writes a targets.conf with the daemon's directory for DIR.
func (g *tgt) conf(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(g.dir, "targets.conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", g.dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Debian's own tgtadm and tgt-admin, the Perl script, drive our daemon through
// tgt's binary control socket.
func TestTgtDebianTools(t *testing.T) {
	g := newTgt(t)
	g.start(t)
	for _, n := range []string{"a.img", "b.img", "c.img"} {
		sparse(t, filepath.Join(g.dir, n), 16<<20)
	}
	g.mustTheirs(t, "tgtadm", "--op", "new", "--mode", "target", "--tid", "3", "-T", tgtIQN+":old")
	if r := g.theirs(t, "tgtadm", "--op", "new", "--mode", "target", "--tid", "3", "-T", tgtIQN+":x"); r.code != 22 || r.stderr != "tgtadm: this target already exists\n" {
		t.Errorf("a tid that is taken: %d, %q", r.code, r.stderr)
	}
	conf := g.conf(t, `default-driver iscsi
<target `+tgtIQN+`>
	backing-store DIR/b.img
	backing-store DIR/a.img
	incominguser cinder secret-of-cinder
	MaxBurstLength 131072
	write-cache off
</target>
<target `+tgtIQN+`:second>
	<backing-store DIR/c.img>
		lun 5
		vendor_id ACME
		scsi_sn SN5
		params thin_provisioning=1
		bsoflags direct
	</backing-store>
	initiator-address 127.0.0.0/8
	initiator-name iqn.2013-10.com.example:host
</target>
`)
	g.mustTheirs(t, "tgt-admin", "-e", "-c", conf)
	shown := g.adm(t, "--op", "show", "--mode", "target")
	if theirs := g.mustTheirs(t, "tgt-admin", "--show"); theirs != shown {
		t.Errorf("tgt-admin --show differs from our tgtadm:\n%s\nours:\n%s", theirs, shown)
	}
	for _, want := range []string{tgtIQN + "\n", "        LUN: 5\n", "SCSI SN: SN5\n", "Thin-provisioning: Yes\n", "flags: direct\n", "        cinder\n", "        127.0.0.0/8\n        iqn.2013-10.com.example:host\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("lacks %q:\n%s", want, shown)
		}
	}
	if strings.Contains(shown, ":old") {
		t.Error("tgt-admin -e left a target that its file does not have")
	}
	dump := g.mustTheirs(t, "tgt-admin", "--dump")
	for _, want := range []string{"default-driver iscsi\n", "<target " + tgtIQN + ">\n", "\tbacking-store " + g.dir + "/a.img\n", "\tincominguser cinder PLEASE_CORRECT_THE_PASSWORD\n"} {
		if !strings.Contains(dump, want) {
			t.Errorf("the dump lacks %q:\n%s", want, dump)
		}
	}
	g.mustTheirs(t, "tgt-admin", "--update", "ALL", "-c", conf)
	if again := g.adm(t, "--op", "show", "--mode", "target"); again != shown {
		t.Errorf("after --update ALL with the same file:\n%s\nbefore:\n%s", again, shown)
	}
	g.mustTheirs(t, "tgt-admin", "--offline", "ALL")
	if n := strings.Count(g.adm(t, "--op", "show", "--mode", "target"), "State: offline\n"); n != 2 {
		t.Errorf("%d targets are offline", n)
	}
	g.mustTheirs(t, "tgt-admin", "--ready", "ALL")

	// With an initiator logged in: left alone, and cut when forced.
	client := holdSession(t, fmt.Sprintf("iscsi://%s/%s:second/5", g.portal(), tgtIQN))
	if g.mustTheirs(t, "tgt-admin", "--delete", tgtIQN+":second"); !strings.Contains(g.adm(t, "--op", "show", "--mode", "target"), ":second\n") {
		t.Error("a target in use was deleted without -f")
	}
	client.kill()
	// Stop as the init script does.
	g.mustTheirs(t, "tgtadm", "--op", "update", "--mode", "sys", "--name", "State", "-v", "offline")
	g.mustTheirs(t, "tgt-admin", "--offline", "ALL")
	g.mustTheirs(t, "tgt-admin", "--update", "ALL", "-c", "/dev/null", "-f")
	g.mustTheirs(t, "tgtadm", "--op", "delete", "--mode", "system")
	if rc := g.daemon.ended(t, 20*time.Second); rc != 0 {
		t.Errorf("tgtd ended with %d", rc)
	}
	if r := g.theirs(t, "tgtadm", "--op", "show", "--mode", "target"); r.code != 107 {
		t.Errorf("tgtadm without a daemon: %d", r.code)
	}
}

// What Cinder does with a volume: export by a file in a directory that is
// included, extend under a session, restart in between, remove. The session
// stays, and sees the new size.
func TestTgtExtendUnderSession(t *testing.T) {
	g := newTgt(t)
	g.start(t)
	volumes := filepath.Join(g.dir, "volumes")
	if err := os.Mkdir(volumes, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(g.dir, "lu.img")
	sparse(t, file, 64<<20)
	conf := g.conf(t, "include "+volumes+"/*\n")
	stanza := "\n<target " + tgtIQN + ">\n    backing-store " + file + "\n    driver iscsi\n    \n    \n    write-cache on\n    params thin_provisioning=1\n</target>\n"
	if err := os.WriteFile(filepath.Join(volumes, "volume-1"), []byte(stanza), 0o600); err != nil {
		t.Fatal(err)
	}
	admin := func(args ...string) string {
		t.Helper()
		r := runEnv(t, 20*time.Second, g.env, filepath.Join(bindir, "tgt-admin"), append(args, "-c", conf)...)
		if r.code != 0 || r.stderr != "" {
			t.Fatalf("tgt-admin %q: exit %d: %s", args, r.code, r.both())
		}
		return r.stdout
	}
	admin("--update", tgtIQN)
	holdSession(t, g.url(1))
	sid := regexp.MustCompile(`I_T nexus: (\d+)`)
	before := sid.FindStringSubmatch(admin("--show"))
	if before == nil {
		t.Fatal("no session is shown")
	}
	if err := os.Truncate(file, 128<<20); err != nil {
		t.Fatal(err)
	}
	if out := admin("--update", tgtIQN, "-v"); !strings.Contains(out, "is in use, it won't be updated.") {
		t.Errorf("without -f: %s", out)
	}
	admin("--update", tgtIQN, "-f")
	shown := admin("--show")
	after := sid.FindStringSubmatch(shown)
	if after == nil || after[1] != before[1] || !strings.Contains(shown, "Size: 134 MB") {
		t.Errorf("session %v before, %v after:\n%s", before, after, shown)
	}
	if r := run(t, 20*time.Second, "iscsi-readcapacity16", g.url(1)); !strings.Contains(r.stdout, "Total size:134217728") {
		t.Errorf("an initiator sees %s", r.both())
	}
	g.daemon.kill()
	g.start(t)
	admin("--update", tgtIQN)
	if shown := admin("--show"); !strings.Contains(shown, "        LUN: 1\n") || !strings.Contains(shown, "Size: 134 MB") {
		t.Errorf("after kill -9:\n%s", shown)
	}
	admin("--delete", tgtIQN, "-f")
	if shown := admin("--show"); shown != "" {
		t.Errorf("deleted, and shown:\n%s", shown)
	}
}
