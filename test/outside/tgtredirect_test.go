package outside

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// libiscsi follows what a target's RedirectAddress or RedirectCallback says to
// another tgtd.
func TestTgtRedirect(t *testing.T) {
	here, there := newTgt(t), newTgt(t)
	for g, size := range map[*tgt]int64{here: 16 << 20, there: 48 << 20} {
		g.start(t)
		file := filepath.Join(g.dir, "disk.img")
		sparse(t, file, size)
		g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
		g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
		g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	}
	set := func(name, value string) {
		t.Helper()
		here.adm(t, "--op", "update", "--mode", "target", "--tid", "1", "--name", name, "--value", value)
	}
	expect := func(what, size string) {
		t.Helper()
		if r := run(t, 20*time.Second, "iscsi-readcapacity16", here.url(1)); !strings.Contains(r.stdout, "Total size:"+size+"\n") {
			t.Errorf("%s: exit %d, %s", what, r.code, r.both())
		}
	}
	const small, large = "16777216", "50331648"
	expect("no redirection", small)
	set("RedirectAddress", "127.0.0.1")
	set("RedirectPort", there.port)
	expect("RedirectAddress", large)
	set("RedirectReason", "Permanent")
	// It does not follow a target that has moved for good, and says so.
	if r := run(t, 20*time.Second, "iscsi-inq", here.url(1)); r.code == 0 || !strings.Contains(r.both(), "Target moved permanently") {
		t.Errorf("for good: exit %d, %s", r.code, r.both())
	}
	set("RedirectAddress", "")

	program := filepath.Join(here.dir, "where is it")
	link := filepath.Join(here.dir, "where")
	script := "#!/bin/sh\n[ \"$1 $2\" = '" + tgtIQN + " 127.0.0.1' ] && echo 127.0.0.1:" + there.port + ":Temporary\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, link); err != nil { // the setting splits at blanks
		t.Fatal(err)
	}
	set("RedirectCallback", link)
	expect("RedirectCallback", large)
	here.daemon.kill()
	here.start(t)
	if shown := here.adm(t, "--op", "show", "--mode", "target", "--tid", "1"); shown != "RedirectCallback="+link+"\n" {
		t.Errorf("after kill -9: %s", shown)
	}
	expect("RedirectCallback after kill -9", large)
	set("RedirectCallback", "/bin/false")
	if r := run(t, 20*time.Second, "iscsi-inq", here.url(1)); r.code == 0 || !strings.Contains(r.both(), "Target error") {
		t.Errorf("a program that fails: exit %d, %s", r.code, r.both())
	}
	set("RedirectCallback", "/bin/true")
	expect("nothing answered", small)
}
