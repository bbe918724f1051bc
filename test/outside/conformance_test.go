package outside

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Limits for one suite, and for one test that is run again alone.
const (
	suiteLimit = 60 * time.Second
	aloneLimit = 20 * time.Second
)

// sanitizeLimit is for the suite whose tool sleeps a minute at a time.
const sanitizeLimit = 3 * time.Minute

func limitOf(suite string, usual time.Duration) time.Duration {
	if suite == "SCSI.Sanitize" {
		return sanitizeLimit
	}
	return usual
}

const expectationsFile = "testdata/conformance.txt"

// conformanceSuites lists "FAMILY.SUITE" and its tests as the tool has them.
// SCSI and iSCSI together are all; ALL repeats them, LINUX needs a /dev/sdX.
func conformanceSuites(t *testing.T) (suites []string, tests map[string][]string) {
	t.Helper()
	tests = map[string][]string{}
	for line := range strings.Lines(ok(t, 10*time.Second, "iscsi-test-cu", "-l")) {
		f := strings.Split(strings.TrimSpace(line), ".")
		if len(f) != 3 || f[0] != "SCSI" && f[0] != "iSCSI" {
			continue
		}
		s := f[0] + "." + f[1]
		if tests[s] == nil {
			suites = append(suites, s)
		}
		tests[s] = append(tests[s], f[2])
	}
	if len(suites) == 0 {
		t.Fatal("iscsi-test-cu lists no tests")
	}
	return suites, tests
}

// conform runs the suites that match one of the patterns against the unit, and
// fails the test for every result that is not expected of its profile. The unit
// loses its data.
func conform(t *testing.T, server *process, profile, url string, patterns ...string) {
	t.Helper()
	expects, err := readExpectations(expectationsFile)
	if err != nil {
		t.Fatal(err)
	}
	suites, tests := conformanceSuites(t)
	count := map[string]int{}
	start := time.Now()
	for _, suite := range suites {
		if !slices.ContainsFunc(patterns, func(p string) bool { m, _ := path.Match(p, suite); return m }) {
			continue
		}
		if !server.alive() {
			t.Fatalf("the target died before %s", suite)
		}
		for _, v := range runSuite(t, url, suite, tests[suite]) {
			count[v.result]++
			judge(t, expects, profile, v)
		}
	}
	total := 0
	for _, n := range count {
		total += n
	}
	if total == 0 {
		t.Fatalf("no suite matches %q", patterns)
	}
	figure(t, "conformance, %s: %d tests: PASS %d PART %d SKIP %d FAIL %d HANG %d CRASH %d in %.1f s", profile, total,
		count[verdictPass], count[verdictPart], count[verdictSkip], count[verdictFail], count[verdictHang], count[verdictCrash],
		time.Since(start).Seconds())
}

func judge(t *testing.T, expects []*expectation, profile string, v verdict) {
	t.Helper()
	if v.result == verdictPass || v.result == verdictPart {
		for _, e := range expects {
			if e.pattern == v.test && e.profile == profile && e.result != verdictSkip {
				t.Logf("NOW PASSES %s, listed as %s in %s: %s", v.test, e.result, expectationsFile, e.reason)
			}
		}
		return
	}
	if e := expected(expects, profile, v.test, v.result); e != nil {
		t.Logf("expected %s %s: %s", v.result, v.test, e.reason)
		return
	}
	t.Errorf("%s %s: %s", v.result, v.test, v.why)
}

// runSuite gives one verdict for each test of the suite, in the tool's order.
func runSuite(t *testing.T, url, suite string, tests []string) []verdict {
	t.Helper()
	family, short, _ := strings.Cut(suite, ".")
	r := testCU(t, limitOf(suite, suiteLimit), suite, url)
	found := map[string]verdict{}
	for _, v := range parseCUnit(r.stdout) {
		if _, again := found[v.test]; !again {
			found[v.test] = v
		}
	}
	var all []verdict
	for _, name := range tests {
		v, have := found[short+"."+name]
		// A suite that ended in disorder keeps the verdicts it gave; the others
		// are run alone. A test that gave up its session makes the next ones skip.
		if !have || v.result == verdictOpen || strings.HasPrefix(v.why, "Not an iSCSI device") {
			v = runAlone(t, url, suite, name)
		}
		v.test = family + "." + short + "." + name
		all = append(all, v)
	}
	return all
}

func runAlone(t *testing.T, url, suite, name string) verdict {
	t.Helper()
	limit := limitOf(suite, aloneLimit)
	r := testCU(t, limit, suite+"."+name, url)
	switch {
	case r.timedOut:
		return verdict{result: verdictHang, why: fmt.Sprintf("no end within %v", limit)}
	case r.signal != 0:
		return verdict{result: verdictCrash, why: fmt.Sprintf("iscsi-test-cu died of signal %v", r.signal)}
	}
	for _, v := range parseCUnit(r.stdout) {
		if strings.HasSuffix(v.test, "."+name) && v.result != verdictOpen {
			return v
		}
	}
	return verdict{result: verdictFail, why: fmt.Sprintf("no verdict, exit %d: %s", r.code, tail(r.both(), 2))}
}

// testCU runs iscsi-test-cu; -d and -S permit tests that destroy data. Its
// output is line-buffered so that a killed run leaves what it found.
func testCU(t *testing.T, limit time.Duration, pattern, url string) result {
	t.Helper()
	args := []string{"-oL", "iscsi-test-cu", "-v", "-V", "-d", "-S", "-t", pattern, url}
	if strings.Contains(pattern, "MultipathIO") {
		args = append(args, url) // the second path: another session to the same unit
	}
	return run(t, limit, "stdbuf", args...)
}

// The whole of SCSI and iSCSI on a disk that can unmap.
func TestConformanceDisk(t *testing.T) {
	e := serve(t, "ram:1G")
	conform(t, e.process, "disk", e.url, "SCSI.*", "iSCSI.*")
	if t.Failed() {
		return
	}
	ok(t, 10*time.Second, "iscsi-inq", e.url) // it is still there after all that
}

// The medium commands on 4096-byte blocks in a file.
func TestConformance4K(t *testing.T) {
	file := t.TempDir() + "/disk.img"
	e := serve(t, file, "--size", "1G", "--block-size", "4096")
	conform(t, e.process, "4k", e.url, "SCSI.Read*", "SCSI.Write*", "SCSI.Verify*", "SCSI.Unmap", "SCSI.GetLBAStatus", "SCSI.CompareAndWrite", "iSCSI.iSCSIResiduals")
}

// What depends on physical blocks of several logical ones, which files have.
func TestConformance512e(t *testing.T) {
	file := t.TempDir() + "/disk.img"
	e := serve(t, file, "--size", "1G")
	conform(t, e.process, "512e", e.url, "SCSI.WriteSame*", "SCSI.CompareAndWrite", "SCSI.Unmap", "SCSI.GetLBAStatus")
}

// Sessions that have proved who they are, also with names that look like numbers.
func TestConformanceCHAP(t *testing.T) {
	const secret = "secret-of-joe-1"
	for _, c := range []struct {
		profile, user string
		patterns      []string
	}{
		{"chap", "joe", []string{"iSCSI.*", "SCSI.Read10"}},
		{"chap-0x", "0xjoe", []string{"iSCSI.iSCSICHAP", "SCSI.TestUnitReady"}},
		{"chap-0b", "0bjoe", []string{"iSCSI.iSCSICHAP", "SCSI.TestUnitReady"}},
	} {
		t.Run(c.profile, func(t *testing.T) {
			e := serve(t, "ram:64M", "--chap", c.user+":"+secret)
			url := strings.Replace(e.url, "%SECRET@", "%"+secret+"@", 1)
			if url == e.url {
				t.Fatalf("no place for the secret in %s", url)
			}
			conform(t, e.process, c.profile, url, c.patterns...)
		})
	}
}

// Units that only tgt's command line makes: removable, and write-protected on a
// store that can be written.
func TestConformanceTgtParams(t *testing.T) {
	g := newTgt(t)
	g.start(t)
	g.adm(t, "--op", "new", "--mode", "target", "--tid", "1", "-T", tgtIQN)
	g.adm(t, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
	unit := func(lun, params string) {
		file := filepath.Join(g.dir, "lun"+lun+".img")
		sparse(t, file, 256<<20)
		g.adm(t, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", lun, "-b", file)
		g.adm(t, "--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", lun, "--params", params)
	}
	unit("1", "removable=1,thin_provisioning=1")
	unit("2", "readonly=1,thin_provisioning=1")
	t.Run("removable", func(t *testing.T) {
		conform(t, g.daemon, "removable", g.url(1), "SCSI.PreventAllow", "SCSI.StartStopUnit", "SCSI.NoMedia", "SCSI.TestUnitReady")
	})
	t.Run("readonly", func(t *testing.T) {
		conform(t, g.daemon, "readonly", g.url(2), "SCSI.ReadOnly", "SCSI.Read10", "SCSI.Read16", "SCSI.Inquiry")
	})
}

func TestExpectationsAreRead(t *testing.T) {
	all, err := readExpectations(expectationsFile)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range all {
		// One pattern twice hides which reason is the true one.
		if j := slices.IndexFunc(all[:i], func(o *expectation) bool {
			return o.pattern == e.pattern && o.result == e.result && o.profile == e.profile
		}); j >= 0 {
			t.Errorf("%s %s is listed twice", e.result, e.pattern)
		}
	}
}
