package tgt

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func TestPortalOrder(t *testing.T) {
	portal := func(addr string, rev uint64, st string) v1.Portal {
		return v1.Portal{Portal: state.Portal{Address: addr, Group: 1}, Revision: rev, State: st, Bound: strings.Replace(addr, ":0", ":40001", 1)}
	}
	var out bytes.Buffer
	notes := writePortals(&out, []v1.Portal{
		portal("0.0.0.0:3260", 0, v1.Online), portal("[::]:3260", 0, v1.Online), portal("127.0.0.1:3261", 7, v1.Online),
		portal("127.0.0.1:3262", 9, v1.Online), portal("10.0.0.1:3263", 8, v1.Failed), portal("127.0.0.1:0", 1, v1.Online),
	})
	want := "Portal: 127.0.0.1:3262,1\nPortal: 127.0.0.1:3261,1\nPortal: 127.0.0.1:40001,1\nPortal: [::]:3260,1\nPortal: 0.0.0.0:3260,1\n"
	if out.String() != want || len(notes) != 1 || !strings.Contains(notes[0], "10.0.0.1:3263") {
		t.Errorf("%s%q\nwant\n%s", &out, notes, want)
	}
}

func TestMegabytes(t *testing.T) {
	for size, want := range map[int64]int64{0: 0, 1000: 0, 499_999: 0, 500_000: 1, 64 << 20: 67, 100 << 20: 105, 1 << 40: 1099512, 1<<63 - 1: 9223372036855} {
		if got := megabytes(size); got != want {
			t.Errorf("megabytes(%d) = %d, want %d", size, got, want)
		}
	}
}

// TestUnitViews has the blocks that no daemon of a test shows.
func TestUnitViews(t *testing.T) {
	v := &v1.Volume{
		Volume: state.Volume{Name: "db", URL: "ram:1G", BlockSize: 4096, Unit: state.UnitParams{Removable: true}},
		Status: v1.VolumeStatus{State: v1.Online, Size: 1 << 30, SWP: true, PreventRemoval: true, ReadOnly: true, Thin: true},
	}
	var out bytes.Buffer
	writeUnit(&out, 17, describe(300, 17, v))
	want := `        LUN: 17
            Type: disk
            SCSI ID: IET     012c0011
            SCSI SN: beaf30017
            Size: 1074 MB, Block size: 4096
            Online: Yes
            Removable media: Yes
            Prevent removal: Yes
            Readonly: Yes
            SWP: Yes
            Thin-provisioning: Yes
            Backing store type: ram
            Backing store path: ram:1G
            Backing store flags: ` + "\n"
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", &out, want)
	}
	for url, want := range map[string]string{
		"file:/srv/a.img": "rdwr /srv/a.img", "null:1T": "null null:1T", "nbd://user:word@host/x": "nbd nbd://user:xxxxx@host/x",
	} {
		kind, path := shown(&state.Volume{URL: url})
		if got := kind + " " + path; got != want {
			t.Errorf("%s is shown as %q, want %q", url, got, want)
		}
	}
}

func TestBackingStoreURLs(t *testing.T) {
	for _, c := range []struct{ bstype, path, want string }{
		{"rdwr", "/srv/a:b,c?d#e.img", "file:/srv/a:b,c?d#e.img"},
		{"aio", "/dev/vg/lv", "file:/dev/vg/lv"},
		{"null", "anything", "null:1T"},
		{"rbd", "image@snap", "rbd:rbd/image@snap"},
		{"rbd", "pool/image", "rbd:pool/image"},
		{"glfs", "vol@host:dir/file", "gluster:vol@host/dir/file"},
		{"sheepdog", "unix:/var/run/sheep.sock:vdi", "sheepdog:unix:/var/run/sheep.sock:vdi"},
		{"curve", "cbd:pool//vol_user_", "curve:cbd:pool//vol_user_"},
	} {
		b, _ := findBstype(c.bstype)
		var v state.Volume
		if err := b.store(&v, "/", c.path, ""); err != nil || v.URL != c.want || v.BackingStore != c.path || v.Direct != (c.bstype == "aio") {
			t.Errorf("%s %s: %+v, %v; want %s", c.bstype, c.path, v, err, c.want)
		}
	}
}

// TestLostStore: a file that is gone at a restart is told about, keeps nothing
// else from running, and can be given again.
func TestLostStore(t *testing.T) {
	w := newWorld(t)
	file := w.file("a", 1<<20)
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:lost")
	w.must("--op new --mode logicalunit --tid 1 --lun 1 -b " + file)
	w.must("--op new --mode logicalunit --tid 1 --lun 2 -b " + w.file("b", 2<<20))
	w.stop()
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	w.start()
	out, stderr, rc := w.adm("--op", "show", "--mode", "target")
	if rc != 0 || !strings.Contains(out, "Size: 0 MB, Block size: 512\n            Online: No\n") || !strings.Contains(out, "Size: 2 MB, Block size: 512\n            Online: Yes\n") ||
		!strings.HasPrefix(stderr, "  LUN 1 of target 1 does not run: ") {
		t.Errorf("status %d, %s\n%s", rc, stderr, out)
	}
	w.must("--op update --mode logicalunit --tid 1 --lun 1 --params path=" + file + ".away")
	if out := w.must("--op show --mode target"); strings.Contains(out, "Online: No") {
		t.Errorf("after path=:\n%s", out)
	}
}

// TestGrownStore: the same path again, and disksize=auto, take over a new size.
func TestGrownStore(t *testing.T) {
	w := newWorld(t)
	file := w.file("a", 64<<20)
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:grow")
	w.must("--op new --mode logicalunit --tid 1 --lun 1 -b " + file)
	size := func(want string) {
		t.Helper()
		if out := w.must("--op show --mode target"); !strings.Contains(out, "Size: "+want+" MB, Block size: 512") {
			t.Errorf("the size is not %s MB:\n%s", want, out)
		}
	}
	w.file("a", 100<<20)
	size("67")
	w.must("--op update --mode logicalunit --tid 1 --lun 1 --params online=0,path=" + file)
	size("105")
	w.file("a", 200<<20)
	w.must("--op update --mode logicalunit --tid 1 --lun 1 --params disksize=auto")
	size("210")
}

func TestReadOnlyFile(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write to every file")
	}
	w := newWorld(t)
	file := w.file("a", 1<<20)
	if err := os.Chmod(file, 0o444); err != nil {
		t.Fatal(err)
	}
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:ro")
	w.must("--op new --mode logicalunit --tid 1 --lun 1 -b " + file)
	if out := w.must("--op show --mode target"); !strings.Contains(out, "Readonly: Yes") {
		t.Errorf("not read-only:\n%s", out)
	}
}

// TestKeptVolume: a target that was deleted by other means leaves the volumes
// of its units; a unit of the same number is made all the same.
func TestKeptVolume(t *testing.T) {
	w := newWorld(t)
	c := client.New(socketPath(w.getenv, 0))
	defer c.Close()
	for i := range 3 {
		w.must(fmt.Sprintf("--op new --mode target --tid 1 -T iqn.2024-01.com.example:kept%d", i))
		w.must("--op new --mode logicalunit --tid 1 --lun 1 -b " + w.file(fmt.Sprint("f", i), 1<<20))
		if _, err := c.DeleteTarget(limit(t), fmt.Sprintf("iqn.2024-01.com.example:kept%d", i), false); err != nil {
			t.Fatal(err)
		}
	}
	volumes, err := c.Volumes(limit(t))
	if err != nil || len(volumes) != 3 {
		t.Fatalf("%d volumes, %v", len(volumes), err)
	}
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:again")
	w.must("--op new --mode logicalunit --tid 1 --lun 1 -b " + w.file("f9", 1<<20))
	w.must("--op delete --mode target --tid 1")
	if volumes, err = c.Volumes(limit(t)); err != nil || len(volumes) != 3 {
		t.Errorf("%d volumes after tgtadm deleted its own target, %v", len(volumes), err)
	}
	// A volume that somebody else made is unmapped and kept.
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:mixed")
	if _, err := c.CreateVolume(limit(t), state.Volume{Name: "db", URL: "ram:1M"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddLUN(limit(t), "iqn.2024-01.com.example:mixed", state.LUN{Number: 5, Volume: "db"}); err != nil {
		t.Fatal(err)
	}
	w.must("--op delete --mode logicalunit --tid 1 --lun 5")
	if _, err := c.Volume(limit(t), "db"); err != nil {
		t.Error(err)
	}
}

// TestDaemonGoes: a daemon that ends in the middle of a request is not taken
// for one that did as it was told.
func TestDaemonGoes(t *testing.T) {
	w := &world{t: t, dir: t.TempDir()}
	ln, err := net.Listen("unix", socketPath(w.getenv, 0))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.ReadFull(c, make([]byte, 16))
			c.Close()
		}
	}()
	out, stderr, rc := w.adm("--op", "new", "--mode", "account", "--user", "u", "--password", "p")
	ln.Close()
	<-done
	if first, _, _ := strings.Cut(stderr, "\n"); rc != 107 || out != "" || first != "tgtadm: "+msgClosed {
		t.Errorf("status %d, %q, %q", rc, out, stderr)
	}
}

// TestUnitZero: a target made by other means may have a disk at LUN 0.
func TestUnitZero(t *testing.T) {
	w := newWorld(t)
	c := client.New(socketPath(w.getenv, 0))
	defer c.Close()
	if _, err := c.CreateTarget(limit(t), state.Target{Name: "iqn.2024-01.com.example:zero", ID: 6}); err != nil {
		t.Fatal(err)
	}
	w.must("--op new --mode logicalunit --tid 6 --lun 0 -b " + w.file("a", 1<<20))
	if out := w.must("--op show --mode target"); strings.Count(out, "LUN: ") != 1 || !strings.Contains(out, "        LUN: 0\n            Type: disk\n") {
		t.Errorf("listing:\n%s", out)
	}
	w.must("--op update --mode logicalunit --tid 6 --lun 0 --params online=0")
	w.must("--op delete --mode logicalunit --tid 6 --lun 0")
	if _, stderr, rc := w.adm("--op", "delete", "--mode", "logicalunit", "--tid", "6", "--lun", "0"); rc != 22 || stderr != "tgtadm: "+msgNoUnit+"\n" {
		t.Errorf("status %d, %q", rc, stderr)
	}
}

// TestManyAtOnce: commands that meet each other succeed or fail in tgt's words,
// and one target number goes to one of them.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.must("--op new --mode target --tid 99 -T iqn.2024-01.com.example:shared")
	const n = 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, odd := 0, []string{}
	for i := range n {
		wg.Go(func() {
			for _, line := range []string{
				fmt.Sprintf("--op new --mode target --tid 1 -T iqn.2024-01.com.example:race%d", i),
				fmt.Sprintf("--op new --mode target --tid %d -T iqn.2024-01.com.example:own%d", 10+i, i),
				fmt.Sprintf("--op bind --mode target --tid 99 -I 10.0.0.%d", i),
				fmt.Sprintf("--op new --mode account --user u%d --password secret-of-u%d", i, i),
				fmt.Sprintf("--op bind --mode account --tid 99 --user u%d", i),
				fmt.Sprintf("--op bind --mode account --user u%d", i),
				fmt.Sprintf("--op new --mode logicalunit --tid 99 --lun %d --bstype null -b x", i+1),
				fmt.Sprintf("--op update --mode logicalunit --tid 99 --lun %d --params scsi_sn=S%d", i+1, i),
				fmt.Sprintf("--op delete --mode target --tid %d", 10+i),
			} {
				_, stderr, rc := w.adm(strings.Fields(line)...)
				mu.Lock()
				switch {
				case strings.Contains(line, "--tid 1 -T") && rc == 0:
					made++
				case strings.Contains(line, "--tid 1 -T") && stderr == "tgtadm: "+msgTargetExists+"\n":
				case rc != 0 || stderr != "":
					odd = append(odd, fmt.Sprintf("%s: %d %s", line, rc, stderr))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if made != 1 || len(odd) > 0 {
		t.Errorf("%d targets with number 1; %s", made, odd)
	}
	out := w.must("--op show --mode target")
	for i := range n {
		for _, want := range []string{fmt.Sprintf("        10.0.0.%d\n", i), fmt.Sprintf("        u%d\n", i), fmt.Sprintf("SCSI SN: S%d\n", i)} {
			if !strings.Contains(out, want) {
				t.Errorf("lost: %q", want)
			}
		}
	}
	if lines := strings.Split(out, "\n"); slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, ":own") }) {
		t.Errorf("a deleted target is still there:\n%s", out)
	}
}
