package outside

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// libvirt is a libvirtd of an ordinary user, with a home of its own.
type libvirt struct {
	dir string
	env []string
}

// nobody is the user and group that it runs as: as root it would use the
// system's own directories.
const nobody = 65534

func newLibvirt(t *testing.T) *libvirt {
	t.Helper()
	dir, err := os.MkdirTemp("", "bgvirt") // short: a socket lies below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &libvirt{dir: dir}
	for _, d := range []string{"", "run", "home", "conf", "conf/libvirt", "cache"} {
		p := filepath.Join(dir, d)
		if err := os.MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(p, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	l.write(t, "conf/libvirt/qemu.conf", "stdio_handler = \"file\"\n") // no virtlogd
	l.env = []string{
		"HOME=" + dir + "/home", "XDG_RUNTIME_DIR=" + dir + "/run", "XDG_CONFIG_HOME=" + dir + "/conf",
		"XDG_CACHE_HOME=" + dir + "/cache", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
	}
	daemon := spawn(t, l.env, "setpriv", l.as("libvirtd")...)
	eventually(t, 30*time.Second, "virsh reaches libvirtd", func() bool {
		if !daemon.alive() {
			t.Fatalf("libvirtd ended: %s", daemon.err.String())
		}
		return l.try("version").code == 0
	})
	return l
}

func (l *libvirt) as(words ...string) []string {
	id := strconv.Itoa(nobody)
	return append([]string{"--reuid=" + id, "--regid=" + id, "--clear-groups"}, words...)
}

// write makes a file that libvirt's user can read, and gives its path.
func (l *libvirt) write(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(l.dir, name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(p, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return p
}

func (l *libvirt) try(args ...string) result {
	r, err := runErr(time.Minute, l.env, "setpriv", l.as(append([]string{"virsh", "-q", "-c", "qemu:///session"}, args...)...)...)
	if err != nil {
		return result{code: -1, stderr: err.Error()}
	}
	return r
}

func (l *libvirt) virsh(t *testing.T, args ...string) string {
	t.Helper()
	r := l.try(args...)
	if r.code != 0 {
		t.Fatalf("virsh %s: exit %d: %s", strings.Join(args, " "), r.code, r.both())
	}
	return r.stdout
}

// The recipes of docs/migrating-from-tgt.md for libvirt: a domain with a target
// as its disk, one attached while it runs, one behind CHAP, and a resize.
func TestLibvirt(t *testing.T) {
	needsTools(t)
	needsAll(t)
	g := newTgt(t)
	g.start(t)
	for i := 1; i <= 3; i++ {
		tid, file := strconv.Itoa(i), filepath.Join(g.dir, fmt.Sprintf("%d.img", i))
		sparse(t, file, 16<<20)
		g.adm(t, "--op", "new", "--mode", "target", "--tid", tid, "-T", tgtIQN+":disk"+tid)
		g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "-b", file)
		g.adm(t, "--op", "bind", "--mode", "target", "--tid", tid, "-I", "ALL")
	}
	g.adm(t, "--op", "new", "--mode", "account", "--user", "joe", "--password", "secret-of-joe")
	g.adm(t, "--op", "bind", "--mode", "account", "--tid", "3", "--user", "joe")

	l := newLibvirt(t)
	host, port, _ := strings.Cut(g.portal(), ":")
	source := func(i int) string {
		return fmt.Sprintf("<source protocol='iscsi' name='%s:disk%d/1'><host name='%s' port='%s'/></source>", tgtIQN, i, host, port)
	}
	l.virsh(t, "create", l.write(t, "guest.xml", `<domain type='qemu'>
  <name>guest</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>`+source(1)+`
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
`))
	t.Cleanup(func() { l.try("destroy", "guest") })
	connected := func(tid int) bool {
		return strings.Contains(g.adm(t, "--op", "show", "--mode", "conn", "--tid", strconv.Itoa(tid)), "Initiator: ")
	}
	if !connected(1) {
		t.Error("the domain runs and its disk's target has no session")
	}

	l.virsh(t, "attach-disk", "guest", "--sourcetype", "network", "--source-protocol", "iscsi", "--source-host-name", host+":"+port,
		"--source", tgtIQN+":disk2/1", "--target", "vdb", "--driver", "qemu", "--subdriver", "raw")
	if !connected(2) {
		t.Error("attach-disk has made no session")
	}

	l.virsh(t, "secret-define", l.write(t, "secret.xml", "<secret ephemeral='no' private='yes'><usage type='iscsi'><target>san</target></usage></secret>\n"))
	uuid := strings.Fields(l.virsh(t, "secret-list"))[0]
	l.virsh(t, "secret-set-value", uuid, "--plain", "--file", l.write(t, "password", "secret-of-joe"))
	chap := func(auth string) string {
		return l.write(t, "disk.xml", "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"+auth+source(3)+"<target dev='vdc' bus='virtio'/></disk>\n")
	}
	if r := l.try("attach-device", "guest", chap("")); r.code == 0 || connected(3) {
		t.Errorf("without the password: %d, %s", r.code, r.both())
	}
	l.virsh(t, "attach-device", "guest", chap("<auth username='joe'><secret type='iscsi' usage='san'/></auth>"))
	if !connected(3) {
		t.Error("attach-device with the password has made no session")
	}

	// Grown under the guest: the daemon tells QEMU, libvirt asks it.
	if err := os.Truncate(filepath.Join(g.dir, "2.img"), 32<<20); err != nil {
		t.Fatal(err)
	}
	g.adm(t, "--op", "update", "--mode", "logicalunit", "--tid", "2", "--lun", "1", "--params", "disksize=auto")
	l.virsh(t, "blockresize", "guest", "vdb", "32768")
	if info := l.virsh(t, "domblkinfo", "guest", "vdb"); !strings.Contains(info, strconv.Itoa(32<<20)) {
		t.Errorf("after the resize: %s", info)
	}
	l.virsh(t, "destroy", "guest")
	eventually(t, 10*time.Second, "the sessions are gone", func() bool { return !connected(1) && !connected(2) && !connected(3) })
}
