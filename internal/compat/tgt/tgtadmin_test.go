package tgt

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockgate/internal/api/client"
	"blockgate/internal/state"
)

// admin runs tgt-admin.
func (w *world) admin(args ...string) (stdout, stderr string, rc int) {
	var out, err bytes.Buffer
	rc = RunTgtAdmin(args, &out, &err, w.getenv)
	return out.String(), err.String(), rc
}

// conf writes a targets.conf; DIR is the world's directory.
func (w *world) conf(text string) string {
	w.t.Helper()
	file := filepath.Join(w.dir, "targets.conf")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", w.dir)), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// mustAdmin runs a tgt-admin line that has to succeed without a word on stderr.
func (w *world) mustAdmin(args ...string) string {
	w.t.Helper()
	out, stderr, rc := w.admin(args...)
	if rc != 0 || stderr != "" {
		w.t.Fatalf("tgt-admin %q: status %d, %q, %s", args, rc, out, stderr)
	}
	return out
}

const sampleConf = `
default-driver iscsi
<target iqn.2024-01.com.example:b>
	backing-store DIR/z.img
	backing-store DIR/a.img
	<backing-store anything>
		bs-type null
		lun 9
	</backing-store>
	incominguser u1 secret-of-u1
	outgoinguser o1 secret-of-o1
	initiator-address 10.0.0.0/8
	initiator-name iqn.x:y
	MaxBurstLength 131072
	vendor_id ACME
</target>
<target iqn.2024-01.com.example:a>
	<backing-store DIR/c.img>
		lun 5
		scsi_sn SN5
		write-cache off
		params thin_provisioning=1,product_id=P${tid}-${lun}
		block-size 4096
	</backing-store>
	controller_tid 40
</target>
`

// TestExecute: -e makes what the file says, leaves what is there and removes
// what is not in the file.
func TestExecute(t *testing.T) {
	w := newWorld(t)
	for _, n := range []string{"a.img", "c.img", "z.img"} {
		w.file(n, 1<<20)
	}
	w.must("--op new --mode target --tid 7 -T iqn.2024-01.com.example:old")
	conf := w.conf(sampleConf)
	if out := w.mustAdmin("-e", "-c", conf); out != "" {
		t.Errorf("printed %q", out)
	}
	shown := w.must("--op show --mode target")
	for _, want := range []string{
		"Target 40: iqn.2024-01.com.example:a\n", "Target 41: iqn.2024-01.com.example:b\n",
		"        LUN: 5\n            Type: disk\n            SCSI ID: IET     00280005\n            SCSI SN: SN5\n            Size: 1 MB, Block size: 4096\n",
		"Thin-provisioning: Yes\n", "        u1\n        o1 (outgoing)\n", "    ACL information:\n        10.0.0.0/8\n        iqn.x:y\n", "    ACL information:\n        ALL\n",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("lacks %q:\n%s", want, shown)
		}
	}
	if a, z := strings.Index(shown, "a.img"), strings.Index(shown, "z.img"); a < 0 || z < a || strings.Contains(shown, ":old") {
		t.Errorf("stores are not in the order of their paths, or an old target is still there:\n%s", shown)
	}
	out := w.mustAdmin("-e", "-v", "-c", conf)
	if strings.Count(out, "already exists!") != 2 || w.must("--op show --mode target") != shown {
		t.Errorf("a second -e changes something, or says %s", out)
	}
	c := client.New(socketPath(w.getenv, 0))
	defer c.Close()
	v, err := c.Volume(limit(t), "tgt-40-5")
	if err != nil || v.Unit.Product != "P40-5" || v.Unit.WriteCache == nil || *v.Unit.WriteCache {
		t.Errorf("%+v, %v", v.Unit, err)
	}
	w.conf("# nothing")
	w.mustAdmin("-e", "-c", conf)
	if w.must("--op show --mode target") != shown {
		t.Error("an empty file empties the daemon with -e")
	}
	w.mustAdmin("--update", "ALL", "-c", "/dev/null", "-f")
	if out := w.must("--op show --mode target"); out != "" {
		t.Errorf("an empty file does not empty the daemon with --update ALL:\n%s", out)
	}
	w.must("--op delete --mode system")
	if _, stderr, rc := w.admin("--update", "ALL", "-c", "/dev/null", "-f"); rc != 0 || !strings.HasPrefix(stderr, "tgtadm: "+msgUnreachable) {
		t.Errorf("without a daemon: %d, %q", rc, stderr)
	}
	if out, _, rc := w.admin("-s"); rc != 107 || !strings.HasPrefix(out, "Command:\n\ttgtadm -C 0 --op show --mode target\nexited with code: 107.\n") {
		t.Errorf("without a daemon -s ends with %d, %q", rc, out)
	}
}

// TestUpdateInPlace: an update changes what differs and nothing else: the
// identity stays, a store that has grown shows it, changed passwords count.
func TestUpdateInPlace(t *testing.T) {
	w := newWorld(t)
	for _, n := range []string{"a.img", "c.img", "z.img", "n.img"} {
		w.file(n, 1<<20)
	}
	conf := w.conf(sampleConf)
	w.mustAdmin("-e", "-c", conf)
	c := client.New(socketPath(w.getenv, 0))
	defer c.Close()
	before, err := c.Volume(limit(t), "tgt-41-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(w.dir, "a.img"), 5<<20); err != nil {
		t.Fatal(err)
	}
	w.conf(strings.NewReplacer("DIR/z.img", "DIR/n.img", "vendor_id ACME", "vendor_id NEW", "MaxBurstLength 131072\n", "\n").Replace(sampleConf))
	w.mustAdmin("--update", "iqn.2024-01.com.example:b", "-c", conf)
	after, err := c.Volume(limit(t), "tgt-41-1")
	if err != nil || after.Unit.NAA != before.Unit.NAA || after.Status.Size != 5<<20 || after.Unit.Vendor != "NEW" {
		t.Errorf("%+v, %v; before %+v", after, err, before)
	}
	shown := w.must("--op show --mode target")
	if strings.Contains(shown, "z.img") || !strings.Contains(shown, "n.img") || !strings.Contains(w.must2("--op show --mode target --tid 41"), "MaxBurstLength=262144\n") {
		t.Errorf("not what the file says:\n%s", shown)
	}
	if list, err := c.Volumes(limit(t)); err != nil || len(list) != 4 {
		t.Errorf("%d volumes, %v", len(list), err)
	}
	// By number; and what the file no longer has goes.
	w.conf("<target iqn.2024-01.com.example:b>\n</target>\n")
	w.mustAdmin("--update", "tid=40", "-c", conf)
	w.mustAdmin("--update", "tid=41", "-c", conf)
	if shown := w.must("--op show --mode target"); strings.Contains(shown, "Target 40") || strings.Contains(shown, "LUN: 1\n") {
		t.Errorf("left over:\n%s", shown)
	}
	for _, c := range []struct {
		value, want string
	}{
		{"tid=99", "There is no target with tid 99, can't continue!\n"},
		{"iqn.zz", "Target iqn.zz is currently not configured\nand does not exist in the config file - can't continue!\n"},
	} {
		if out, _, rc := w.admin("--update", c.value, "-c", conf); rc != 1 || out != c.want {
			t.Errorf("%s: %d, %q", c.value, rc, out)
		}
	}
}

// TestDumpGivesBack: what --dump prints makes the same targets again, and does
// not change a password.
func TestDumpGivesBack(t *testing.T) {
	w := newWorld(t)
	for _, n := range []string{"a.img", "c.img", "z.img", "with #1.img"} {
		w.file(n, 1<<20)
	}
	w.mustAdmin("-e", "-c", w.conf(sampleConf+`
incomingdiscoveryuser d1 secret-of-d1
<target iqn.2024-01.com.example:c>
	<backing-store "DIR/with \#1.img">
		bs-type aio
		scsi_id "A  B"
		readonly 1
		lun 3
	</backing-store>
	<backing-store NONE:x>
		lun 4
	</backing-store>
	initiator-address [fe80::]/64
	initiator-address ALL
	state offline
</target>
`))
	shown := w.must("--op show --mode target")
	dumped := w.mustAdmin("--dump")
	conf := w.conf(dumped)
	if strings.Contains(dumped, "secret-of") {
		t.Errorf("a password is printed:\n%s", dumped)
	}
	c := client.New(socketPath(w.getenv, 0))
	defer c.Close()
	acc, err := c.Accounts(limit(t))
	if err != nil || len(acc) != 3 {
		t.Fatalf("%v, %v", acc, err)
	}
	w.mustAdmin("--update", "ALL", "-c", conf)
	if again := w.must("--op show --mode target"); again != shown {
		t.Errorf("after the update with the dump:\n%s\nbefore:\n%s", again, shown)
	}
	w.mustAdmin("--delete", "ALL")
	w.mustAdmin("-e", "-c", conf)
	if again := w.must("--op show --mode target"); again != shown {
		t.Errorf("made from the dump:\n%s\nbefore:\n%s\ndump:\n%s", again, shown, dumped)
	}
}

// TestStates: --offline and --ready by name, number and for all.
func TestStates(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.must(fmt.Sprintf("--op new --mode target --tid %d -T iqn.2024-01.com.example:s%d", i+1, i+1))
	}
	offline := func() int { return strings.Count(w.must("--op show --mode target"), "State: offline\n") }
	w.mustAdmin("--offline", "iqn.2024-01.com.example:s1")
	w.mustAdmin("--offline", "tid=2")
	if n := offline(); n != 2 {
		t.Errorf("%d targets are offline", n)
	}
	w.mustAdmin("--ready", "ALL", "-p")
	if n := offline(); n != 2 {
		t.Errorf("--pretend changed something: %d", n)
	}
	w.mustAdmin("--ready", "ALL")
	if n := offline(); n != 0 {
		t.Errorf("%d targets are offline", n)
	}
	if out, _, rc := w.admin("--offline", "iqn.zz"); rc != 1 || out != "There is no target with name \"iqn.zz\", can't offline it!\n" {
		t.Errorf("%d, %q", rc, out)
	}
	if out, stderr, rc := w.admin("--offline", "tid=9"); rc != 22 || stderr != "tgtadm: can't find the target\n" || !strings.HasSuffix(out, "exited with code: 22.\n") {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
}

// TestStoresThatCannotBe: what is missing or in use is left out and said; a
// store without an engine is kept; an error names the command.
func TestStoresThatCannotBe(t *testing.T) {
	w := newWorld(t)
	w.file("a.img", 1<<20)
	w.file("b.img", 1<<20)
	conf := w.conf(`
<target iqn.2024-01.com.example:a>
	backing-store DIR/none.img
	backing-store DIR/a.img
</target>
<target iqn.2024-01.com.example:b>
	backing-store DIR/a.img
	<backing-store pool/image>
		bs-type rbd
		lun 8
	</backing-store>
</target>
`)
	out, stderr, rc := w.admin("-e", "-v", "-c", conf)
	if rc != 0 || !strings.Contains(stderr, "none.img does not exist; LUN 2 is not made") || !strings.Contains(stderr, "a.img is in use by volume tgt-1-1") ||
		!strings.Contains(stderr, "LUN 8 is kept and is not served: no engine \"rbd\"") || !strings.Contains(out, "# Skipping device "+w.dir+"/a.img - it is in use.\n") {
		t.Fatalf("%d\n%s\n%s", rc, out, stderr)
	}
	if shown := w.must2("--op show --mode target"); strings.Count(shown, "a.img") != 1 || !strings.Contains(shown, "Backing store path: pool/image\n") {
		t.Errorf("listing:\n%s", shown)
	}
	// Forced, both targets serve it: as one unit.
	if out, stderr, rc := w.admin("--update", "ALL", "-f", "-c", conf); rc != 0 {
		t.Errorf("%d, %q, %s", rc, out, stderr)
	}
	if shown := w.must2("--op show --mode target"); strings.Count(shown, "a.img") != 2 {
		t.Errorf("listing:\n%s", shown)
	}
	conf = w.conf("<target iqn.2024-01.com.example:x>\n backing-store DIR/b.img\n MaxBurstLength 1\n</target>\n<target iqn.2024-01.com.example:y>\n</target>\n")
	out, stderr, rc = w.admin("-e", "-c", conf)
	if rc != 22 || !strings.HasPrefix(stderr, "tgtadm: invalid request\n") || !strings.HasPrefix(out, "Command:\n\ttgtadm -C 0 --lld iscsi --mode target --op update --tid 3 --name MaxBurstLength --value 1\nexited with code: 22.\n") {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
	if shown := w.must2("--op show --mode target"); strings.Contains(shown, ":x\n") {
		t.Errorf("half a target was made:\n%s", shown)
	}
	// Ignored, what is wrong is left out, and what remains is made: a target
	// whose only address is none is open to nobody.
	conf = w.conf("<target iqn.2024-01.com.example:x>\n backing-store DIR/b.img\n MaxBurstLength 1\n MaxConnections 2\n</target>\n" +
		"<target iqn.2024-01.com.example:y>\n initiator-address 10.0.0.1/33\n</target>\n")
	if out, stderr, rc := w.admin("-e", "--ignore-errors", "-c", conf); rc != 0 || out != "" || strings.Count(stderr, "tgtadm: invalid request\n  "+w.dir+"/targets.conf:") != 2 {
		t.Errorf("--ignore-errors: %d, %q, %q", rc, out, stderr)
	}
	shown := w.must2("--op show --mode target")
	if strings.Count(shown, "b.img\n") != 1 || strings.Count(shown, "        ALL\n") != 1 || !strings.Contains(shown, ":y\n") {
		t.Errorf("--ignore-errors:\n%s", shown)
	}
	if _, stderr, rc := w.admin("-e", "-c", w.dir+"/nothing"); rc != 2 || stderr != "Config file "+w.dir+"/nothing not found. Exiting...\n" {
		t.Errorf("no file: %d, %q", rc, stderr)
	}
	if _, stderr, rc := w.admin("-e", "-c", w.conf("<target x>\n")); rc != 1 || !strings.Contains(stderr, "targets.conf:1: <target x> has no end") {
		t.Errorf("bad file: %d, %q", rc, stderr)
	}
}

// must2 is must for a line that may say something on stderr.
func (w *world) must2(line string) string {
	w.t.Helper()
	out, stderr, rc := w.adm(strings.Fields(line)...)
	if rc != 0 {
		w.t.Fatalf("tgtadm %s: %d, %s", line, rc, stderr)
	}
	return out
}

// TestAdminsMeet: many at once each get a number of their own.
func TestAdminsMeet(t *testing.T) {
	w := newWorld(t)
	const n = 8
	confs := make([]string, n)
	for i := range n {
		confs[i] = filepath.Join(w.dir, fmt.Sprintf("c%d", i))
		text := fmt.Sprintf("<target iqn.2024-01.com.example:m%d>\n backing-store %s\n incominguser user%d secret-of-%d\n</target>\n", i, w.file(fmt.Sprintf("m%d.img", i), 1<<20), i, i)
		if err := os.WriteFile(confs[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if out, stderr, rc := w.admin("--update", fmt.Sprintf("iqn.2024-01.com.example:m%d", i), "-c", confs[i]); rc != 0 || stderr != "" {
				t.Errorf("%d: %d, %q, %q", i, rc, out, stderr)
			}
		})
	}
	wg.Wait()
	if shown := w.must("--op show --mode target"); strings.Count(shown, "        LUN: 1\n") != n || !strings.Contains(shown, "Target 8: ") {
		t.Errorf("listing:\n%s", shown)
	}
}

// TestPretend: the command lines are tgt-admin's, byte for byte but for
// passwords.
func TestPretend(t *testing.T) {
	w := newWorld(t)
	for _, n := range []string{"a.img", "c.img", "z.img"} {
		w.file(n, 1<<20)
	}
	out := w.mustAdmin("-e", "-p", "-c", w.conf(sampleConf))
	want := strings.ReplaceAll(`# Adding target: iqn.2024-01.com.example:a
tgtadm -C 0 --lld iscsi --op new --mode target --tid 40 -T iqn.2024-01.com.example:a
tgtadm -C 0 --lld iscsi --op new --mode logicalunit --tid 40 --lun 5 -b "DIR/c.img"     --blocksize 4096
tgtadm -C 0 --lld iscsi --op update --mode logicalunit --tid 40 --lun=5 --params mode_page=8:0:18:0x10:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0
tgtadm -C 0 --lld iscsi --op update --mode logicalunit --tid 40 --lun=5 --params scsi_sn="SN5"
tgtadm -C 0 --lld iscsi --op update --mode logicalunit --tid 40 --lun=5 --params "thin_provisioning=1,product_id=P40-5"
tgtadm -C 0 --lld iscsi --op bind --mode target --tid 40 -I ALL

# Adding target: iqn.2024-01.com.example:b
tgtadm -C 0 --lld iscsi --op new --mode target --tid 41 -T iqn.2024-01.com.example:b
tgtadm -C 0 --lld iscsi --mode target --op update --tid 41 --name MaxBurstLength --value 131072
tgtadm -C 0 --lld iscsi --op new --mode logicalunit --tid 41 --lun 1 -b "DIR/a.img"     `+`
tgtadm -C 0 --lld iscsi --op update --mode logicalunit --tid 41 --lun=1 --params vendor_id="ACME"
# Write cache is enabled (default) for lun 1.
tgtadm -C 0 --lld iscsi --op new --mode logicalunit --tid 41 --lun 2 -b "DIR/z.img"     `+`
tgtadm -C 0 --lld iscsi --op update --mode logicalunit --tid 41 --lun=2 --params vendor_id="ACME"
# Write cache is enabled (default) for lun 2.
tgtadm -C 0 --lld iscsi --op new --mode logicalunit --tid 41 --lun 9 -b "anything"  --bstype null   `+`
tgtadm -C 0 --lld iscsi --op update --mode logicalunit --tid 41 --lun=9 --params vendor_id="ACME"
# Write cache is enabled (default) for lun 9.
tgtadm -C 0 --lld iscsi --mode account --op new --user=u1 --password=PLEASE_CORRECT_THE_PASSWORD
tgtadm -C 0 --lld iscsi --mode account --op bind --tid=41 --user=u1
tgtadm -C 0 --lld iscsi --op bind --mode target --tid 41 -I 10.0.0.0/8
tgtadm -C 0 --lld iscsi --op bind --mode target --tid 41 -Q iqn.x:y
tgtadm -C 0 --lld iscsi --mode account --op new --user=o1 --password=PLEASE_CORRECT_THE_PASSWORD
tgtadm -C 0 --lld iscsi --mode account --op bind --tid=41 --user=o1 --outgoing
`, "DIR", w.dir)
	if !strings.Contains(out, want) {
		t.Errorf("printed:\n%s\nwant in it:\n%s", out, want)
	}
	if shown := w.must("--op show --mode target"); shown != "" {
		t.Errorf("made:\n%s", shown)
	}
}

// TestNamesRestrict: a target with names alone as rules is open to these, and
// not to everybody.
func TestNamesRestrict(t *testing.T) {
	w := newWorld(t)
	w.mustAdmin("-e", "-c", w.conf("<target iqn.2024-01.com.example:n>\n initiator-name iqn.x:y\n</target>\n"))
	c := client.New(socketPath(w.getenv, 0))
	defer c.Close()
	tg, err := c.Target(limit(t), "iqn.2024-01.com.example:n")
	if err != nil || len(tg.ACL) != 1 || tg.ACL[0].Name != (state.ACLRule{Name: "iqn.x:y"}).Name {
		t.Errorf("%+v, %v", tg.ACL, err)
	}
}

// TestSetupLUN and the image tool.
func TestSetupLUN(t *testing.T) {
	w := newWorld(t)
	setup := func(args ...string) (string, string, int) {
		var out, err bytes.Buffer
		rc := RunTgtSetupLUN(args, &out, &err, w.getenv)
		return out.String(), err.String(), rc
	}
	img := filepath.Join(w.dir, "d.img")
	var out, errs bytes.Buffer
	if rc := RunTgtimg([]string{"--op", "new", "-Y", "disk", "-t", "disk", "-s", "2", "-f", img, "-T"}, &out, &errs); rc != 0 || out.String() != "Created blank DISK image file : "+img+"\n" {
		t.Fatalf("tgtimg: %d, %q, %q", rc, &out, &errs)
	}
	if rc := RunTgtimg([]string{"--op", "new", "-Y", "disk", "-t", "disk", "-s", "2", "-f", img}, &out, &errs); rc != 22 {
		t.Errorf("tgtimg writes over a file: %d", rc)
	}
	name := "iqn.2024-01.com.example:setup"
	want := "Using transport: iscsi\nCreating new target (name=" + name + ", tid=1)\nAdding a logical unit (" + img + ") to target, tid=1\nAccepting connections from 10.0.0.1 10.0.0.2\n"
	if out, stderr, rc := setup("-n", name, "-d", img, "10.0.0.1", "10.0.0.2"); rc != 0 || out != want || stderr != "" {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
	if out, _, rc := setup("-n", name, "-d", img); rc != 1 || out != "Using transport: iscsi\nError: target named "+name+" already exists\n" {
		t.Errorf("%d, %q", rc, out)
	}
	if out, _, rc := setup("-n", "x", "-d", filepath.Join(w.dir, "none")); rc != 1 || !strings.Contains(out, "Error: failed to add a logical unit") {
		t.Errorf("%d, %q", rc, out)
	}
	if out, stderr, rc := setup("-n", "x", "-d", img, "-b", "bogus"); rc != 1 || !strings.Contains(out, "Error: failed to add a logical unit") || !strings.Contains(stderr, "there is no bstype") {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
	if shown := w.must("--op show --mode target"); strings.Count(shown, "Target ") != 1 || !strings.Contains(shown, "Size: 2 MB") {
		t.Errorf("listing:\n%s", shown)
	}
	// A second target for the device is another path to the same disk.
	if out, stderr, rc := setup("-n", name+"2", "-d", img); rc != 0 || !strings.Contains(stderr, "another path to the unit with serial number beaf11") {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
	if shown := w.must("--op show --mode target"); strings.Count(shown, "SCSI SN: beaf11\n") != 2 {
		t.Errorf("listing:\n%s", shown)
	}
	if out, stderr, rc := setup("-n", name+"3", "-d", img, "-B", "4096"); rc != 1 || !strings.Contains(stderr, "in use") {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
}

// TestISNS: what cannot be had of iSNS keeps no target away.
func TestISNS(t *testing.T) {
	w := newWorld(t)
	conf := w.conf("iSNSAccessControl On\niSNSServerIP 10.0.0.9\niSNS On\n<target iqn.2024-01.com.example:x>\n</target>\n")
	out, stderr, rc := w.admin("-e", "-c", conf)
	if rc != 0 || out != "" || !strings.Contains(stderr, "targets.conf:1: iSNSAccessControl=On: ") || !strings.Contains(stderr, "targets.conf:3: iSNS=On has no effect") {
		t.Errorf("%d, %q, %q", rc, out, stderr)
	}
	if shown := w.must("--op show --mode target"); !strings.Contains(shown, ":x\n") {
		t.Errorf("listing:\n%s", shown)
	}
	if shown := w.must("--op show --mode sys"); !strings.Contains(shown, "iSNS=Off\n    iSNSServerIP=10.0.0.9\n") {
		t.Errorf("listing:\n%s", shown)
	}
}
