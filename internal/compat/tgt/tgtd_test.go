package tgt

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"blockgate/internal/state"
	"blockgate/iscsi/initiator"
)

// limit bounds what waits for the daemon or an initiator.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// login logs in to a target of the world's daemon.
func (w *world) login(name string) *initiator.Session {
	w.t.Helper()
	addr := strings.TrimSuffix(strings.TrimPrefix(w.must("--op show --mode portal"), "Portal: "), ",1\n")
	s, err := initiator.Dial(limit(w.t), initiator.Config{
		Addrs: []string{addr}, TargetName: name, InitiatorName: "iqn.2024-01.org.test:ini",
	})
	if err != nil {
		w.t.Fatalf("login to %s at %s: %v", name, addr, err)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

// TestGlusterRecipe has the lines of a manual verbatim.
func TestGlusterRecipe(t *testing.T) {
	w := newWorld(t)
	file := w.file("block", 16<<20)
	w.must("--lld iscsi --op new --mode target --tid 1 -T iqn.2013-10.com.example")
	w.must("--lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b " + file)
	w.must("--lld iscsi --op bind --mode target --tid 1 -I ALL")
	if out := w.must("--lld iscsi --op show --mode conn --tid 1"); out != "" {
		t.Errorf("connections before anyone has logged in: %s", out)
	}
	s := w.login("iqn.2013-10.com.example")
	u := s.Unit(1)
	_ = u.TestUnitReady(limit(t)) // takes the unit attention of a new session
	block := bytes.Repeat([]byte("tgt!"), 4096/4)
	if err := u.WriteBlocks(limit(t), block, 8, 8); err != nil {
		t.Fatal(err)
	}
	if err := u.SynchronizeCache(limit(t)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 8*512); err != nil || !bytes.Equal(got, block) {
		t.Errorf("the file does not have what was written: %v", err)
	}
	want := "Session: 1\n    Connection: 0\n        Initiator: iqn.2024-01.org.test:ini\n        IP Address: 127.0.0.1\n"
	if out := w.must("--lld iscsi --op show --mode conn --tid 1"); out != want {
		t.Errorf("show --mode conn:\n%swant\n%s", out, want)
	}
}

func TestIdentity(t *testing.T) {
	w := newWorld(t)
	w.must("--op new --mode target --tid 18 -T iqn.2024-01.com.example:id")
	w.must("--op bind --mode target --tid 18 -I ALL")
	w.must("--op new --mode logicalunit --tid 18 --lun 11 -b " + w.file("a", 1<<20))
	w.must("--op new --mode logicalunit --tid 18 --lun 12 -b " + w.file("b", 1<<20))
	w.must("--op update --mode logicalunit --tid 18 --lun 12 --params scsi_id=naa.6001405abcdef,scsi_sn=SN12,vendor_id=ACME,product_id=DISK,product_rev=7")
	s := w.login("iqn.2024-01.com.example:id")
	naa := map[uint64]string{}
	for lun, want := range map[uint64][5]string{
		11: {"IET", "VIRTUAL-DISK", "0001", "beaf1811", "IET     0012000b"},
		12: {"ACME", "DISK", "7", "SN12", "naa.6001405abcdef"},
	} {
		u := s.Unit(lun)
		_ = u.TestUnitReady(limit(t))
		q, err := u.Inquiry(limit(t))
		if err != nil {
			t.Fatal(err)
		}
		sn, err := u.Serial(limit(t))
		if err != nil {
			t.Fatal(err)
		}
		vpd, err := u.VPD(limit(t), 0x83)
		if err != nil {
			t.Fatal(err)
		}
		naa[lun] = hex.EncodeToString(vpd)
		got := [5]string{strings.TrimSpace(q.Vendor), strings.TrimSpace(q.Product), strings.TrimSpace(q.Revision), strings.TrimSpace(sn), want[4]}
		if got != want || !bytes.Contains(vpd, []byte(want[4])) {
			t.Errorf("LUN %d is %q, want %q; page 83h %x", lun, got, want, vpd)
		}
	}
	if !strings.Contains(naa[12], "6000000000000000aa06001405abcdef") {
		t.Errorf("page 83h of LUN 12 lacks tgt's NAA identifier: %s", naa[12])
	}
	if out := w.must("--op show --mode target"); !strings.Contains(out, "            SCSI ID: naa.6001405abcdef\n            SCSI SN: SN12\n") {
		t.Errorf("listing without the new identity:\n%s", out)
	}
}

func TestSessionsAndCounters(t *testing.T) {
	w := newWorld(t)
	name := "iqn.2024-01.com.example:s"
	w.must("--op new --mode target --tid 4 -T " + name)
	w.must("--op bind --mode target --tid 4 -I ALL")
	w.must("--op new --mode logicalunit --tid 4 --lun 1 -b " + w.file("a", 1<<20))
	w.must("--op new --mode logicalunit --tid 4 --lun 2 -b " + w.file("b", 1<<20))
	s := w.login(name)
	u := s.Unit(1)
	_ = u.TestUnitReady(limit(t))
	block := make([]byte, 4096)
	if err := u.ReadBlocks(limit(t), block, 0, 8); err != nil {
		t.Fatal(err)
	}
	if err := u.WriteBlocks(limit(t), block, 0, 8); err != nil {
		t.Fatal(err)
	}
	out := w.must("--op show --mode target")
	if want := "    I_T nexus information:\n        I_T nexus: 1\n            Initiator: iqn.2024-01.org.test:ini alias: none\n" +
		"            Connection: 0\n                IP Address: 127.0.0.1\n    LUN information:\n"; !strings.Contains(out, want) {
		t.Errorf("listing without\n%s:\n%s", want, out)
	}
	const head = "tgt lun sid rd_subm(bytes,cmds) rd_done(bytes,cmds) wr_subm(bytes,cmds) wr_done(bytes,cmds) errs\n"
	zero := "  4   0   1            0      0            0      0            0      0            0      0    0\n"
	// The error is the unit attention that the first command met.
	one := "  4   1   1         4096      1         4096      1         4096      1         4096      1    1\n"
	two := strings.Replace(zero, "  4   0", "  4   2", 1)
	for line, want := range map[string]string{
		"--op stat --mode sys":                             head + zero + one + two,
		"--op stat --mode target --tid 4":                  head + zero + one + two,
		"--op stat --mode logicalunit --tid 4 --lun 1":     head + one,
		"--op stat --mode logicalunit --tid 4 --lun 0":     head + zero,
		"--op stat --mode system --control-port 0":         head + zero + one + two,
		"--op stat --mode tgt --tid 0x4 --control-port 00": head + zero + one + two,
	} {
		if out := w.must(line); out != want {
			t.Errorf("%s:\n%swant\n%s", line, out, want)
		}
	}
	out = w.must("--op stat --mode session --sid 1")
	tables := strings.Split(out, "\n\n")
	if len(tables) != 2 || tables[0]+"\n" != head+two+one+zero {
		t.Fatalf("session statistics:\n%s", out)
	}
	if conn := w.must("--op stat --mode conn --sid 1 --cid 0"); !strings.HasPrefix(conn, "sid cid rxdata_octets txdata_octets dataout_pdus datain_pdus cmd_pdus rsp_pdus\n  1   0 ") {
		t.Errorf("connection statistics:\n%s", conn)
	} else if f := strings.Fields(strings.Split(conn, "\n")[1]); len(f) != 8 || f[2] == "0" || f[6] == "0" {
		t.Errorf("connection counters: %q", f)
	}

	for line, want := range map[string]string{
		"--op delete --mode target --tid 4":                     msgTargetActive,
		"--op stat --mode conn --sid 1 --cid 5":                 msgNoConnection,
		"--op delete --mode conn --tid 4 --sid 99":              msgNoSession,
		"--op delete --mode conn --tid 4 --sid 1 --cid 7":       msgNoConnection,
		"--op delete --mode conn --tid 99 --sid 1 --cid 0":      msgNoTarget,
		"--op delete --mode conn --sid 1 --cid 0":               msgNoTarget,
		"--op show --mode session --sid 1":                      msgInvalid,
		"--op show --mode conn --sid 1":                         msgNoTarget,
		"--op new --mode logicalunit --tid 4 --lun 1 -b /x/y/z": msgUnitExists,
	} {
		out, stderr, rc := w.adm(strings.Fields(line)...)
		if first, _, _ := strings.Cut(stderr, "\n"); rc != 22 || out != "" || first != "tgtadm: "+want {
			t.Errorf("%s: status %d, %q, %q; want %q", line, rc, out, stderr, want)
		}
	}
	// The session goes on while a LUN goes.
	w.must("--op delete --mode logicalunit --tid 4 --lun 2")
	w.must("--op delete --mode conn --tid 4 --sid 1 --cid 0")
	for _, err := u.Inquiry(limit(t)); err == nil; _, err = u.Inquiry(limit(t)) {
	}
	w.login(name)
	w.must("--op delete --mode target --tid 4 --force")
	if out := w.must("--op show --mode target"); out != "" {
		t.Errorf("after the forced delete:\n%s", out)
	}
}

// TestEverythingIsKept kills the daemon as kill -9 does and starts another one.
func TestEverythingIsKept(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	daemon := w.background("--iscsi", "portal=127.0.0.1:0,nop_interval=7,nop_count=2")
	port := freePort(t)
	w.must("--op new --mode target --tid 3 -T iqn.2024-01.com.example:kept")
	w.must("--op new --mode logicalunit --tid 3 --lun 1 -b " + w.file("a", 1<<20) + " --bsoflags sync")
	w.must("--op new --mode logicalunit --tid 3 --lun 2")
	w.must("--op update --mode logicalunit --tid 3 --lun 1 --params scsi_sn=keep,online=0")
	w.must("--op update --mode target --tid 3 -n MaxBurstLength -v 524288")
	w.must("--op bind --mode target --tid 3 -I 10.0.0.0/8")
	w.must("--op bind --mode target --tid 3 -Q iqn.1993-08.org.debian:01:abc")
	w.must("--op new --mode account --user u1 --password secret-of-u1")
	w.must("--op new --mode account --user o1 --password secret-of-o1")
	w.must("--op bind --mode account --tid 3 --user u1")
	w.must("--op bind --mode account --tid 3 --user o1 --outgoing")
	w.must("--op bind --mode account --user u1")
	w.must("--op update --mode sys --name State --value offline")
	w.must("--op new --mode portal --param portal=127.0.0.1:" + port)
	look := func() string {
		var b strings.Builder
		for _, line := range []string{"--op show --mode target", "--op show --mode target --tid 3", "--op show --mode account", "--op show --mode sys"} {
			b.WriteString(w.must2(line))
		}
		return b.String()
	}
	before := look()
	if !strings.Contains(before, "        Nop interval: 7\n        Nop count: 2\n") {
		t.Errorf("the new target has not the ping interval of tgtd's command line:\n%s", before)
	}
	daemon.Kill()
	daemon.Wait()
	if _, stderr, rc := w.adm("--op", "show", "--mode", "target"); rc != 107 || stderr != "tgtadm: "+msgUnreachable+"\n" {
		t.Errorf("without a daemon: status %d, %q", rc, stderr)
	}
	w.background("--iscsi", "portal=127.0.0.1:0")
	if after := look(); after != before {
		t.Errorf("before the end:\n%s\nafter the restart:\n%s", before, after)
	}
	if out := w.must("--op show --mode portal"); !strings.HasPrefix(out, "Portal: 127.0.0.1:"+port+",1\n") || strings.Count(out, "\n") != 2 {
		t.Errorf("portals after the restart:\n%s", out)
	}
}

// background starts tgtd as an init script does and gives its process, which
// ends with the test at the latest.
func (w *world) background(args ...string) *os.Process {
	w.t.Helper()
	pidFile := filepath.Join(w.dir, "tgtd.pid")
	var out, stderr bytes.Buffer
	if rc := RunTgtd(w.t.Context(), append(args, "--pid-file", pidFile), &out, &stderr, w.getenv); rc != 0 || out.Len()+stderr.Len() > 0 {
		w.t.Fatalf("tgtd: status %d, %q, %q", rc, &out, &stderr)
	}
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		w.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p
}

func freePort(t *testing.T) string {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

func TestSystemDelete(t *testing.T) {
	w := newWorld(t)
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:x")
	if _, stderr, rc := w.adm("--op", "delete", "--mode", "system"); rc != 22 || !strings.HasPrefix(stderr, "tgtadm: invalid request\n") {
		t.Errorf("system delete with a target: status %d, %q", rc, stderr)
	}
	w.must("--op delete --mode target --tid 1")
	w.must("--op delete --mode system")
	// The command returns only when nobody answers any more.
	if _, _, rc := w.adm("--op", "show", "--mode", "sys"); rc != 107 {
		t.Errorf("after system delete: status %d", rc)
	}
	if rc := w.stop(); rc != 0 {
		t.Errorf("tgtd ended with %d", rc)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	w := newWorld(t)
	var stderr bytes.Buffer
	rc := RunTgtd(t.Context(), []string{"-f", "--iscsi", "portal=127.0.0.1:0"}, &stderr, &stderr, w.getenv)
	want := fmt.Sprintf("(null): ipc_init(787) another tgtd is using %s/socket.0.lock\n", w.dir)
	if rc != 1 || stderr.String() != want {
		t.Errorf("status %d, %q; want 1, %q", rc, &stderr, want)
	}
}

func TestPortalThatCannotBeBound(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w := &world{t: t, dir: t.TempDir()}
	for _, bg := range []bool{false, true} {
		args := []string{"--iscsi", "portal=" + ln.Addr().String()}
		if !bg {
			args = append(args, "-f")
		}
		var out, stderr bytes.Buffer
		rc := RunTgtd(t.Context(), args, &out, &stderr, w.getenv)
		if rc != 1 || !strings.HasPrefix(lastLine(stderr.String()), "tgtd: portal "+ln.Addr().String()+": ") {
			t.Errorf("background %v: status %d, %q", bg, rc, &stderr)
		}
		if _, _, rc := w.adm("--op", "show", "--mode", "sys"); rc != 107 {
			t.Errorf("background %v: a daemon answers", bg)
		}
	}
}

func lastLine(s string) string {
	l := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	return l[len(l)-1]
}

// TestBackground starts tgtd as an init script does: it returns when the daemon
// answers, and the daemon ends on SIGTERM although there are targets.
func TestBackground(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	p := w.background("--iscsi", "portal=127.0.0.1:0", "-C", "3")
	w.must("-C 3 --op new --mode target --tid 1 -T iqn.2024-01.com.example:bg")
	if out := w.must("-C 3 --op show --mode portal"); !strings.HasPrefix(out, "Portal: 127.0.0.1:") {
		t.Errorf("portals: %s", out)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "state", "tgtd.3", state.FileName)); err != nil {
		t.Error(err)
	}
	var out, stderr bytes.Buffer
	if rc := RunTgtd(t.Context(), []string{"-C", "3"}, &out, &stderr, w.getenv); rc != 1 || !strings.Contains(stderr.String(), "another tgtd is using") {
		t.Errorf("a second one: status %d, %q", rc, &stderr)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.Wait() // our own child
	if _, _, rc := w.adm("-C", "3", "--op", "show", "--mode", "sys"); rc != 107 {
		t.Errorf("after SIGTERM: status %d", rc)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "tgtd.pid")); err == nil {
		t.Error("the pid file is still there")
	}
}

func TestTgtdOptions(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		stderr string // its first line
	}{
		{"-C abc", 22, "-C argument value 'abc' invalid"},
		{"-C 99999", 34, "-C argument value '99999' out of range"},
		{"-d abc", 22, "-d argument value 'abc' invalid"},
		{"-d 5", 34, "-d argument value '5' out of range"},
		{"-t -1", 22, "-t argument value '-1' invalid"},
		{"--nr 0", 34, "-t argument value '0' out of range"},
		{"--bogus", 1, "tgtd: unrecognized option '--bogus'"},
		{"-Z", 1, "tgtd: invalid option -- 'Z'"},
		{"-p", 1, "tgtd: option requires an argument -- 'p'"},
		{"--iscsi portal=garbage", 1, `tgtd: --iscsi portal=garbage: portal "garbage": is not an IP address with a port`},
		{"--iscsi foo=bar", 1, "tgtd: --iscsi foo=bar: known are portal, nop_interval and nop_count"},
		{"--iscsi nop_interval=x", 1, "tgtd: --iscsi nop_interval=x: invalid"},
	} {
		var out, stderr bytes.Buffer
		rc := RunTgtd(t.Context(), strings.Fields(c.args), &out, &stderr, func(string) string { return "" })
		first, rest, _ := strings.Cut(stderr.String(), "\n")
		if rc != c.status || first != c.stderr || rest != "Try `tgtd --help' for more information.\n" {
			t.Errorf("tgtd %s: status %d, %q; want %d, %q", c.args, rc, &stderr, c.status, c.stderr)
		}
	}
	for _, arg := range []string{"-V", "--help"} {
		var out, stderr bytes.Buffer
		if rc := RunTgtd(t.Context(), []string{arg}, &out, &stderr, nil); rc != 0 || out.Len() == 0 || stderr.Len() > 0 {
			t.Errorf("tgtd %s: status %d, %q, %q", arg, rc, &out, &stderr)
		}
	}
	var sink bytes.Buffer
	o, end := parseTgtd([]string{"-f", "-d1", "-C", "7", "--iscsi", "portal=10.0.0.1,portal=[fe80::1]:3261,nop_interval=5,nop_count=3", "-t", "64"}, &sink, &sink)
	if end != nil {
		t.Fatal(sink.String())
	}
	if !o.foreground || !o.debug || o.port != 7 || o.nopInterval != "5" || o.nopCount != "3" || len(o.portals) != 2 ||
		o.portals[0].Address != "10.0.0.1:3260" || o.portals[1].Address != "[fe80::1]:3261" {
		t.Errorf("options: %+v", o)
	}
}

func TestPortalsOfAStart(t *testing.T) {
	list := func(addrs ...string) (out []state.Portal) {
		for _, a := range addrs {
			out = append(out, state.Portal{Address: a, Group: 1})
		}
		return out
	}
	all := wildcards()
	for _, c := range []struct {
		given, kept []state.Portal
		want        []state.Portal
	}{
		{nil, nil, list(all...)},
		{list("10.0.0.1:3260"), nil, list("10.0.0.1:3260")},
		{list("10.0.0.1:3260", "10.0.0.2:3260"), list("10.0.0.1:3260"), list("10.0.0.2:3260")},
		{nil, list("10.0.0.1:3261"), list(all...)},
		// A kept portal on the same port keeps the wildcard from being bound.
		{nil, list("10.0.0.1:3260"), list(all[1:]...)},
	} {
		if got := choosePortals(c.given, c.kept); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("given %v, kept %v: %v, want %v", c.given, c.kept, got, c.want)
		}
	}
}
