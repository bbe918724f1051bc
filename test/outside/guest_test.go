package outside

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// guest boots Linux once and runs scripts of test/guest in it; each line of
// "ok …" or "FAIL …" becomes a subtest. More options go to test/guest/run.sh.
func guest(t *testing.T, limit time.Duration, scripts []string, vars map[string]string, options ...string) {
	t.Helper()
	guestWith(t, nil, limit, scripts, vars, options...)
}

// guestWith is guest, doing the work that comes meanwhile.
func guestWith(t *testing.T, work <-chan func(), limit time.Duration, scripts []string, vars map[string]string, options ...string) {
	t.Helper()
	logs := t.TempDir()
	args := append([]string{"-t", fmt.Sprint(int(limit.Seconds())), "-k", logs}, options...)
	for k, v := range vars {
		args = append(args, "-v", k+"="+v)
	}
	for _, s := range scripts {
		args = append(args, filepath.Join("..", "guest", s))
	}
	// The first run also downloads and builds the guest.
	var r result
	ended := make(chan error, 1)
	go func() {
		var err error
		r, err = runErr(limit+10*time.Minute, nil, filepath.Join("..", "guest", "run.sh"), args...)
		ended <- err
	}()
	for running := true; running; {
		select {
		case do := <-work:
			do()
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		}
	}
	checks, script := 0, ""
	seen := map[string]bool{}
	s := bufio.NewScanner(strings.NewReader(r.stdout))
	for s.Scan() {
		line := s.Text()
		if name, found := strings.CutPrefix(line, "script "); found {
			script = regexp.MustCompile(`^\d+-|\.sh$`).ReplaceAllString(name, "")
			seen[script] = true
			continue
		}
		what, passed := strings.CutPrefix(line, "ok ")
		failed := false
		if !passed {
			what, failed = strings.CutPrefix(line, "FAIL ")
		}
		if !passed && !failed {
			continue
		}
		checks++
		t.Run(script+": "+regexp.MustCompile(`:? ?\[[0-9.]+ s\]$`).ReplaceAllString(what, ""), func(t *testing.T) {
			if failed {
				t.Error(what)
			}
		})
	}
	if r.code != 0 || r.timedOut {
		console, _ := os.ReadFile(filepath.Join(logs, "guest.console"))
		t.Errorf("the guest ended with %d (timed out: %v)\n%s\nconsole:\n%s", r.code, r.timedOut, tail(r.both(), 30), tail(string(console), 25))
	}
	for _, name := range scripts {
		if !seen[strings.TrimSuffix(name, ".sh")] {
			t.Errorf("%s did not run", name)
		}
	}
	figure(t, "guest: %d checks in %.0f s", checks, r.took.Seconds())
}

// chapTarget is a target that asks for CHAP and answers a challenge too, made
// with tgt's command line, and what the guest's chap.sh wants to know of it.
func chapTarget(t *testing.T) map[string]string {
	t.Helper()
	g := newTgt(t)
	g.start(t)
	file := filepath.Join(g.dir, "chap.img")
	sparse(t, file, 64<<20)
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file)
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	g.adm(t, "--op", "new", "--mode", "account", "--user", "joe", "--password", "secret-of-joe-1")
	g.adm(t, "--op", "new", "--mode", "account", "--user", "disk", "--password", "secret-of-disk-1")
	g.adm(t, "--op", "bind", "--mode", "account", "--tid", "1", "--user", "joe")
	g.adm(t, "--op", "bind", "--mode", "account", "--tid", "1", "--user", "disk", "--outgoing")
	return map[string]string{
		"CHAP_PORT": g.port, "CHAP_IQN": tgtIQN, "CHAP_USER": "joe", "CHAP_PASS": "secret-of-joe-1",
		"CHAP_OUT_USER": "disk", "CHAP_OUT_PASS": "secret-of-disk-1",
	}
}

// A Linux guest: a file system, CHAP, sg3_utils and a CD drive.
func TestGuest(t *testing.T) {
	const size = 256 << 20
	h := newGuestHost(t)
	h.disk(t, "a", 0, size)
	h.disk(t, "b", 1, size)
	vars := h.vars(t)
	for k, v := range chapTarget(t) {
		vars[k] = v
	}
	disc, sum := h.disc(t, 2)
	vars["CD_LUN"], vars["CD_SIZE"], vars["CD_SUM"] = "2", fmt.Sprint(disc), sum
	vars["SIZE"], vars["LUNS"] = fmt.Sprint(size), "3"
	guestWith(t, h.work, 8*time.Minute, []string{"basic.sh", "chap.sh", "sg.sh", "cd.sh"}, vars)
}

// Two initiators and their reservations, two portal groups and their states, a
// disk that grows.
func TestGuestCluster(t *testing.T) {
	needsAll(t)
	const size = 64 << 20
	h := newGuestHost(t)
	h.disk(t, "a", 0, size)
	vars := h.vars(t)
	vars["VOLUME"], vars["SIZE"] = "a", fmt.Sprint(size)
	guestWith(t, h.work, 8*time.Minute, []string{"pr.sh", "alua.sh", "resize.sh"}, vars)
}

// A volume whose engine is away when the gateway comes back: the host waits.
func TestGuestAway(t *testing.T) {
	needsAll(t)
	h := newGuestHost(t)
	h.disk(t, "a", 0, 256<<20)
	vars := h.vars(t)
	vars["VOLUME"] = "a"
	guestWith(t, h.work, 8*time.Minute, []string{"away.sh"}, vars)
}

// What ext4 and xfs delete comes back to the host's file.
func TestGuestTrim(t *testing.T) {
	needsAll(t)
	h := newGuestHost(t)
	h.disk(t, "a", 0, 512<<20)
	vars := h.vars(t)
	vars["VOLUME"] = "a"
	guestWith(t, h.work, 8*time.Minute, []string{"trim.sh"}, vars, "-x")
}

// Logical volumes as Cinder exports them: gateway and initiator in the guest.
func TestGuestLVM(t *testing.T) {
	needsAll(t)
	guest(t, 8*time.Minute, []string{"lvm.sh"}, nil, "-x", "-f", blockgate)
}

// dm-multipath over two portal groups, under a load that verifies, while paths
// go away and come back.
func TestGuestMultipath(t *testing.T) {
	needsAll(t)
	h := newGuestHost(t)
	h.disk(t, "a", 0, 64<<20)
	vars := h.vars(t)
	guestWith(t, h.work, 15*time.Minute, []string{"multipath.sh"}, vars, "-x")
}

// The negotiated parameters in two dozen combinations.
func TestGuestParams(t *testing.T) {
	needsAll(t)
	e := serve(t, filepath.Join(t.TempDir(), "disk.img"), "--size", "64M")
	guest(t, 10*time.Minute, []string{"params.sh"}, map[string]string{"PORT": e.port(), "IQN": e.iqn()})
}

// A file system on blocks of 4096 bytes and on memory.
func TestGuestOtherUnits(t *testing.T) {
	needsAll(t)
	for name, args := range map[string][]string{
		"4096-byte blocks": {filepath.Join(t.TempDir(), "disk.img"), "--size", "256M", "--block-size", "4096"},
		"ram":              {"ram:256M"},
	} {
		t.Run(name, func(t *testing.T) {
			e := serve(t, args...)
			guest(t, 5*time.Minute, []string{"basic.sh"}, map[string]string{"PORT": e.port(), "IQN": e.iqn(), "SIZE": fmt.Sprint(256 << 20)})
		})
	}
}
