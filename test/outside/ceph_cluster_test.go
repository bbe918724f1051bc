package outside

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"blockgate/backing"
	"blockgate/backing/plugin"
)

// ceph is a cluster of one monitor and one OSD on loopback, with a pool "rbd".
type ceph struct {
	t         *testing.T // whose cluster it is
	dir, conf string
	osd       *process
}

const cephConf = `[global]
fsid = 3b1a62a4-9a0f-4a55-8f7c-6f0b1d8f2c11
mon_host = [v2:127.0.0.1:33300,v1:127.0.0.1:36789]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
run_dir = DIR/run
admin_socket = DIR/run/$cluster-$name.$pid.asok
pid_file = DIR/run/$name.pid
log_file = DIR/log/$name.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_heartbeat_grace = 4
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_warn = 2
mon_data_avail_crit = 1
crush_location = root=default host=h
rbd_default_order = 20
[client]
keyring = DIR/keyring
[mon]
mon_data = DIR/mon
mon_initial_members = a
[osd]
keyring = DIR/osd/keyring
osd_data = DIR/osd
osd_objectstore = STORE
osd_class_update_on_start = false
bluestore_block_size = 4294967296
bluestore_block_create = true
memstore_device_bytes = 4294967296
osd_memory_target = 939524096
`

// newCeph starts a cluster, or skips the test where Ceph is not to be had. The OSD
// keeps its data in memory ("memstore") or so that it survives its kill
// ("bluestore").
func newCeph(t *testing.T, store string) *ceph {
	t.Helper()
	needsAll(t)
	for _, tool := range []string{"ceph-mon", "ceph-osd", "ceph", "rbd"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not there: test/packages.sh ceph installs it", tool)
		}
	}
	dir, err := os.MkdirTemp("", "ceph") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &ceph{t: t, dir: dir, conf: filepath.Join(dir, "ceph.conf")}
	for _, d := range []string{"mon", "osd", "run", "log"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.conf, []byte(strings.NewReplacer("DIR", dir, "STORE", store).Replace(cephConf)), 0o644); err != nil {
		t.Fatal(err)
	}
	keyring, monmap := filepath.Join(dir, "keyring"), filepath.Join(dir, "monmap")
	ok(t, time.Minute, "ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
	ok(t, time.Minute, "ceph-authtool", keyring, "--gen-key", "-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
	ok(t, time.Minute, "monmaptool", "--create", "--fsid", "3b1a62a4-9a0f-4a55-8f7c-6f0b1d8f2c11",
		"--addv", "a", "[v2:127.0.0.1:33300,v1:127.0.0.1:36789]", monmap)
	ok(t, time.Minute, "ceph-mon", "-c", c.conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
	b, err := os.ReadFile(keyring)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mon", "keyring"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	spawn(t, nil, "ceph-mon", "-f", "-c", c.conf, "-i", "a", "--public-addr", "127.0.0.1")
	id := strings.TrimSpace(c.ceph(t, "osd", "create", "7d3f4f9e-6a52-4dc5-9b6a-0c3b3bb1f0aa"))
	if id != "0" {
		t.Fatalf("the OSD is number %s", id)
	}
	c.ceph(t, "auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd", "-o", filepath.Join(dir, "osd", "keyring"))
	ok(t, time.Minute, "ceph-osd", "-c", c.conf, "-i", "0", "--mkfs", "--osd-uuid", "7d3f4f9e-6a52-4dc5-9b6a-0c3b3bb1f0aa")
	c.startOSD(t)
	c.ceph(t, "osd", "pool", "create", "rbd", "8")
	c.ceph(t, "osd", "pool", "application", "enable", "rbd", "rbd")
	// Our client, with the rights that docs/rbd.md names.
	key := c.ceph(t, "auth", "get-or-create", "client.tgt", "mon", "profile rbd", "osd", "profile rbd pool=rbd")
	if err := os.WriteFile(keyring, append(b, key...), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// startOSD starts the OSD and waits until the monitor has it up, which it may have
// of the one before for longer than that one lived.
func (c *ceph) startOSD(t *testing.T) {
	t.Helper()
	c.osd = spawn(c.t, nil, "ceph-osd", "-f", "-c", c.conf, "-i", "0")
	eventually(t, time.Minute, "the OSD is up", func() bool {
		return strings.Contains(c.ceph(t, "osd", "dump", "-f", "json"), fmt.Sprintf(`"nonce":%d}`, c.osd.pid())) &&
			strings.Contains(c.ceph(t, "osd", "stat", "-f", "json"), `"num_up_osds":1`)
	})
}

func (c *ceph) ceph(t *testing.T, args ...string) string {
	t.Helper()
	return ok(t, time.Minute, "ceph", append([]string{"-c", c.conf}, args...)...)
}

func (c *ceph) rbd(t *testing.T, args ...string) string {
	t.Helper()
	return ok(t, time.Minute, "rbd", append([]string{"-c", c.conf}, args...)...)
}

// url names an image to us.
func (c *ceph) url(image string) string { return "rbd:" + c.location(image) }

func (c *ceph) location(image string) string { return "rbd/" + image + "?id=tgt&conf=" + c.conf }

// open opens an image without a gateway.
func (c *ceph) open(t *testing.T, location string, o backing.OpenOptions) (*plugin.Store, error) {
	t.Helper()
	return plugin.Open(t.Context(), plugin.Config{Name: "rbd", Path: filepath.Join(bindir, "blockgate-rbd")}, location, o)
}

func (c *ceph) mustOpen(t *testing.T, location string, o backing.OpenOptions) *plugin.Store {
	t.Helper()
	s, err := c.open(t, location, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plugins are the processes that a process has started.
func plugins(t *testing.T, parent int) []int {
	t.Helper()
	var pids []int
	for _, path := range must(filepath.Glob("/proc/[0-9]*/stat")) {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		head, rest, _ := strings.Cut(string(b), " (")
		name, rest, _ := strings.Cut(rest, ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(parent) && strings.HasPrefix(name, "blockgate-") && f[0] != "Z" {
			pid, _ := strconv.Atoi(head)
			pids = append(pids, pid)
		}
	}
	return pids
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
