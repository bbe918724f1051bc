package outside

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"
)

// Verdicts of a conformance test. CUnit knows only passed and failed, and a
// test that skips itself counts as passed: the log has to be read.
const (
	verdictPass  = "PASS"
	verdictPart  = "PART"  // checked something, then skipped the rest
	verdictSkip  = "SKIP"  // checked nothing
	verdictFail  = "FAIL"  //
	verdictHang  = "HANG"  // no end within the limit
	verdictCrash = "CRASH" // the tool died of a signal
	verdictOpen  = ""      // the log ends within the test
)

// verdict is what became of one test, "SUITE.TEST" without the family.
type verdict struct {
	test, result, why string
}

// parseCUnit reads the verbose log of iscsi-test-cu. The word "passed" or
// "FAILED" stands behind "Test: NAME ..." or on a line of its own after what
// the test printed, and the test's first message may follow its name.
func parseCUnit(log string) []verdict {
	var all []verdict
	var suite, skip, warn string
	var cur *verdict
	checks := 0
	flush := func() {
		if cur == nil {
			return
		}
		switch {
		case cur.result == verdictPass && skip != "":
			cur.why = skip
			if checks == 0 || strings.Contains(skip, "not implemented") || strings.Contains(skip, "not support") {
				cur.result = verdictSkip
			} else {
				cur.result = verdictPart
			}
		case cur.result == verdictFail && cur.why == "", cur.result == verdictOpen:
			cur.why = warn
		}
		all = append(all, *cur)
		cur = nil
	}
	s := bufio.NewScanner(strings.NewReader(log))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := s.Text()
		switch {
		case strings.HasPrefix(line, "Suite: "):
			flush()
			suite = strings.TrimSpace(strings.TrimPrefix(line, "Suite: "))
			continue
		case strings.HasPrefix(line, "Run Summary"):
			flush()
			continue
		case strings.HasPrefix(line, "  Test: "):
			flush()
			name, rest, _ := strings.Cut(strings.TrimPrefix(line, "  Test: "), " ...")
			cur = &verdict{test: suite + "." + name}
			skip, warn, checks = "", "", 0
			line = rest
		}
		if cur == nil {
			continue
		}
		switch {
		case cur.result == verdictOpen && strings.HasPrefix(line, "passed"):
			cur.result = verdictPass
		case cur.result == verdictOpen && strings.HasPrefix(line, "FAILED"):
			cur.result = verdictFail
		case cur.result == verdictFail && cur.why == "" && strings.Contains(line, "  - "):
			cur.why = strings.TrimSpace(line) // the first assertion
			if warn != "" {
				cur.why += " | " + warn
			}
		case cur.result != verdictOpen:
		case strings.Contains(line, "[OK]"):
			checks++
		case strings.Contains(line, "[SKIPPED]") && skip == "":
			skip = after(line, "[SKIPPED]")
		case strings.Contains(line, "[FAILED]") && warn == "":
			warn = after(line, "[FAILED]")
		case strings.Contains(line, "[FAILURE]") && warn == "":
			warn = after(line, "[FAILURE]")
		}
	}
	flush()
	return all
}

func after(s, sep string) string {
	_, rest, _ := strings.Cut(s, sep)
	return strings.TrimSpace(rest)
}

// expectation lets tests end in something else than PASS or PART. profile is
// the kind of unit it holds for, "*" any.
type expectation struct {
	result, profile, pattern, reason string
}

// readExpectations reads lines of "RESULT PROFILE PATTERN reason"; PATTERN is
// FAMILY.SUITE.TEST with shell wildcards, the reason is obligatory.
func readExpectations(file string) ([]*expectation, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []*expectation
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 4 {
			return nil, fmt.Errorf("%s:%d: not RESULT PROFILE PATTERN reason", file, n)
		}
		switch f[0] {
		case verdictSkip, verdictFail, verdictHang, verdictCrash:
		default:
			return nil, fmt.Errorf("%s:%d: %q is no result that needs to be expected", file, n, f[0])
		}
		if _, err := path.Match(f[2], ""); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n, err)
		}
		all = append(all, &expectation{result: f[0], profile: f[1], pattern: f[2], reason: strings.Join(f[3:], " ")})
	}
	return all, nil
}

// expected finds the expectation that allows the result on the profile.
func expected(all []*expectation, profile, name, result string) *expectation {
	for _, e := range all {
		match, _ := path.Match(e.pattern, name)
		if match && e.result == result && (e.profile == "*" || e.profile == profile) {
			return e
		}
	}
	return nil
}

func TestParseCUnit(t *testing.T) {
	b, err := os.ReadFile("testdata/cunit.log")
	if err != nil {
		t.Fatal(err)
	}
	want := []verdict{
		{"Read10.Simple", verdictPass, ""},
		{"Sanitize.BlockErase", verdictSkip, "SANITIZE BLOCK_ERASE is not implemented according to REPORT_SUPPORTED_OPCODES."},
		{"Reserve6.TargetWarmReset", verdictPart, "Target refused the reset."},
		{"iSCSITMF.LUNResetSimpleAsync", verdictPass, ""},
		{"ProutReserve.OwnershipEA", verdictFail, "1. test_prout_reserve_ownership.c:101  - CU_FAIL(\"[FAILED] PRIN\") | PRIN command: failed with sense: UNIT_ATTENTION(6)"},
		{"NoMedia.NoMediaSBC", verdictSkip, "LUN is not removable."},
		{"iSCSIdatasn.iSCSIDataSnInvalid", verdictOpen, ""},
	}
	got := parseCUnit(string(b))
	for i := range max(len(want), len(got)) {
		var w, g verdict
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			t.Errorf("test %d:\n got %q\nwant %q", i, g, w)
		}
	}
}
