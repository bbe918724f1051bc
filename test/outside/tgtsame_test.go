package outside

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var sameReport = flag.String("same-report", "", "TestTgtSame: write every command with what each side answered to this file")

// sameStep is one line of testdata/tgt-same.txt with what follows it.
type sameStep struct {
	line    int
	words   []string
	text    string // of a "write"
	reason  string // why ours differs
	status  string // our exit status where it differs
	judge   bool   // of a "section"
	answers []string
}

// readSame reads a script: lines are commands, or one of
//
//	file NAME SIZE     a sparse file in $D
//	write NAME         a file with the lines up to "EOF"
//	rm NAME
//	login TARGET LUN   an initiator that stays
//	logout             all of them go
//	section TITLE      the daemons start anew, empty
//	theirs COMMAND     for tgt's daemon alone, to have the same on both sides
//	ours COMMAND       likewise
//
// $D is a directory that each side has of its own, $P the portal's port. A
// command may be followed by indented lines that say where ours differs:
//
//	differs REASON     of our tgtadm and tgt-admin, or of tgt's own on our daemon
//	status N           our exit status
//	answer TEXT        what our standard output or error has among its lines
//
// And a section by one that says that tgt's own tools on our daemon play it in the
// longer tests only. It takes long, and they send what they send in others:
//
//	judge
func readSame(t *testing.T, path string) []sameStep {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var steps []sameStep
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for n := 1; in.Scan(); n++ {
		line := in.Text()
		switch {
		case strings.TrimSpace(line) == "" || line[0] == '#':
			continue
		case line[0] == ' ' || line[0] == '\t':
			word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			last := &steps[len(steps)-1]
			switch word {
			case "differs":
				last.reason = rest
			case "status":
				last.status = rest
			case "judge":
				last.judge = true
			case "answer":
				last.answers = append(last.answers, rest)
			default:
				t.Fatalf("%s:%d: %q", path, n, line)
			}
			continue
		}
		s := sameStep{line: n}
		if s.words, err = shellWords(line); err != nil {
			t.Fatalf("%s:%d: %v", path, n, err)
		}
		if s.words[0] == "write" {
			for in.Scan() {
				n++
				if in.Text() == "EOF" {
					break
				}
				s.text += in.Text() + "\n"
			}
		}
		steps = append(steps, s)
	}
	if err := in.Err(); err != nil {
		t.Fatal(err)
	}
	return steps
}

// shellWords splits as a shell does: blanks, 'single' and "double" quotes. The
// word @NxC is the character C, N times.
func shellWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	end := func() {
		if in {
			words = append(words, word.String())
			word.Reset()
			in = false
		}
	}
	for _, c := range line {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, in = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			end()
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote without its end")
	}
	end()
	repeat := regexp.MustCompile(`@(\d+)x(.)`)
	for i := range words {
		words[i] = repeat.ReplaceAllStringFunc(words[i], func(m string) string {
			sub := repeat.FindStringSubmatch(m)
			n, _ := strconv.Atoi(sub[1])
			return strings.Repeat(sub[2], n)
		})
	}
	return words, nil
}

// sameSide is one daemon with the tools that drive it.
type sameSide struct {
	name        string
	tools, tgtd string // directories
	g           *tgt
	clients     []*process
}

// restart gives the side an empty daemon.
func (s *sameSide) restart(t *testing.T) {
	t.Helper()
	s.logout()
	if s.g.daemon != nil {
		s.g.daemon.kill()
	}
	old, _ := filepath.Glob(filepath.Join(s.g.dir, "*"))
	for _, f := range old {
		os.RemoveAll(f)
	}
	s.g.port = freePort(t)
	s.g.daemon = spawn(t, s.g.env, filepath.Join(s.tgtd, "tgtd"), "-f", "--iscsi", "portal="+s.g.portal())
	eventually(t, 20*time.Second, s.name+": tgtadm reaches tgtd", func() bool {
		r, err := runErr(20*time.Second, s.g.env, filepath.Join(s.tools, "tgtadm"), "--op", "show", "--mode", "target")
		return err == nil && r.code == 0
	})
}

func (s *sameSide) logout() {
	for _, c := range s.clients {
		c.kill()
	}
	s.clients = nil
}

func (s *sameSide) fill(w string) string {
	return strings.NewReplacer("$D", s.g.dir, "$P", s.g.port).Replace(w)
}

var (
	sameNumbers = regexp.MustCompile(`(?m)(I_T nexus: |^Session: |\[)\d+`)
	sameSizes   = regexp.MustCompile(`BUFSIZE \(\d+ bytes\)`)
	sameVersion = regexp.MustCompile(`(?m)^1\.0\.\d+$`)
	// What each has in stores and devices is its own business.
	sameStores = regexp.MustCompile(`(?s)(Backing stores:\n).*(    Account information:|iSNS:)`)
	sameName   = regexp.MustCompile(`(Initiator: )\S+ alias: .*`)
)

// plain takes out what is each side's own, and the indented lines that our
// tools add to tgt's on standard error.
func (s *sameSide) plain(text string, errs bool) string {
	text = strings.NewReplacer(s.g.dir, "$D", ":"+s.g.port, ":$P").Replace(text)
	text = sameNumbers.ReplaceAllString(text, "${1}N")
	text = sameSizes.ReplaceAllString(text, "BUFSIZE (N bytes)")
	text = sameVersion.ReplaceAllString(text, "VERSION")
	text = sameStores.ReplaceAllString(text, "${1}    (its own)\n${2}")
	text = sameName.ReplaceAllString(text, "${1}NAME")
	if !errs {
		return text
	}
	var keep []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "  ") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}

// run carries out a step and gives its result, both texts plain.
func (s *sameSide) run(t *testing.T, step *sameStep) (r result, whole string) {
	t.Helper()
	words := make([]string, len(step.words))
	for i, w := range step.words {
		words[i] = s.fill(w)
	}
	args := words[1:]
	file := func() string { return filepath.Join(s.g.dir, args[0]) }
	switch step.words[0] {
	case "section":
		s.restart(t)
	case "file":
		size, err := strconv.ParseInt(args[1], 0, 64)
		if err != nil {
			t.Fatalf("line %d: %v", step.line, err)
		}
		sparse(t, file(), size)
	case "write":
		if err := os.MkdirAll(filepath.Dir(file()), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(), []byte(s.fill(step.text)), 0o600); err != nil {
			t.Fatal(err)
		}
	case "rm":
		os.Remove(file())
	case "login":
		s.clients = append(s.clients, holdSession(t, fmt.Sprintf("iscsi://%s/%s/%s", s.g.portal(), args[0], args[1])))
	case "logout":
		s.logout()
		eventually(t, 10*time.Second, s.name+": the sessions are gone", func() bool {
			r, err := runErr(10*time.Second, s.g.env, filepath.Join(s.tools, "tgtadm"), "--op", "show", "--mode", "target")
			return err == nil && !strings.Contains(r.stdout, "I_T nexus: ")
		})
	case "tgtadm", "tgt-admin":
		env := append([]string{"PATH=" + s.tools + ":/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}, s.g.env...)
		// Through env: the tools print the name that they were called by.
		r = runEnv(t, 60*time.Second, env, "/usr/bin/env", words...)
		whole = r.both()
		whole = s.plain(whole, false)
		r.stdout, r.stderr = s.plain(r.stdout, false), s.plain(r.stderr, true)
		if step.words[0] == "tgt-admin" && (slices.Contains(args, "-p") || slices.Contains(args, "-v") || slices.Contains(args, "--dump")) {
			// The order is that of a Perl hash, another one at each run.
			lines := strings.SplitAfter(r.stdout, "\n")
			slices.Sort(lines)
			r.stdout = strings.Join(lines, "")
		}
	default:
		t.Fatalf("line %d: no command %q", step.line, step.words[0])
	}
	return r, whole
}

// sameDiff shows the lines that are not in both, by a longest common subsequence.
func sameDiff(a, b string) string {
	x, y := strings.SplitAfter(a, "\n"), strings.SplitAfter(b, "\n")
	common := make([][]int, len(x)+1) // of x[i:] and y[j:]
	for i := range common {
		common[i] = make([]int, len(y)+1)
	}
	for i := len(x) - 1; i >= 0; i-- {
		for j := len(y) - 1; j >= 0; j-- {
			if x[i] == y[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	for i, j := 0, 0; i < len(x) || j < len(y); {
		switch {
		case i < len(x) && j < len(y) && x[i] == y[j]:
			i, j = i+1, j+1
		case j == len(y) || i < len(x) && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintf(&out, "- %.300s\n", strings.TrimSuffix(x[i], "\n"))
			i++
		default:
			fmt.Fprintf(&out, "+ %.300s\n", strings.TrimSuffix(y[j], "\n"))
			j++
		}
	}
	return out.String()
}

func sameText(r result) string {
	return fmt.Sprintf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
}

// sameAnswer is what a side made of a step.
type sameAnswer struct {
	result
	whole string // both texts as they came
	alive bool   // the daemon still runs
	out   bool   // not played
}

// play carries out a script. Steps of the other side alone are left out, and so are
// sections for the longer tests if brief.
func (s *sameSide) play(t *testing.T, steps []sameStep, skip string, brief bool) []sameAnswer {
	out := make([]sameAnswer, len(steps))
	leave := false
	for i := range steps {
		step := steps[i]
		if step.words[0] == "section" {
			leave = brief && step.judge
		}
		if leave {
			out[i].out = true
			continue
		}
		switch only := step.words[0]; only {
		case skip:
		case "theirs", "ours":
			step.words = step.words[1:]
			if r, whole := s.run(t, &step); r.code != 0 {
				t.Fatalf("line %d: exit %d: %s", step.line, r.code, whole)
			}
		default:
			out[i].result, out[i].whole = s.run(t, &step)
		}
		out[i].alive = s.g.daemon.alive()
	}
	s.logout()
	return out
}

// Debian's tgtd with its own tools, ours with ours, and ours with Debian's tools
// are given the same commands. What they print and how they exit is the same,
// but where the script says why not.
func TestTgtSame(t *testing.T) {
	needsTools(t)
	const path = "testdata/tgt-same.txt"
	steps := readSame(t, path)
	names := []string{"tgt", "ours", "tgt's tools on our tgtd"}
	got := make([][]sameAnswer, len(names))
	played := t.Run("play", func(t *testing.T) {
		for k, dirs := range [][2]string{{"/usr/sbin", "/usr/sbin"}, {bindir, bindir}, {"/usr/sbin", bindir}} {
			t.Run(names[k], func(t *testing.T) {
				t.Parallel()
				skip := "theirs"
				if k == 0 {
					skip = "ours"
				}
				s := &sameSide{name: names[k], tools: dirs[0], tgtd: dirs[1], g: newTgt(t)}
				got[k] = s.play(t, steps, skip, k == 2 && os.Getenv("BLOCKGATE_OUTSIDE") != "all")
			})
		}
	})
	if !played {
		return
	}
	var report strings.Builder
	commands, differ := 0, 0
	for i := range steps {
		step := &steps[i]
		if !strings.HasPrefix(step.words[0], "tgt") {
			continue
		}
		commands++
		where := fmt.Sprintf("%s:%d: %.200s", path, step.line, strings.Join(step.words, " "))
		want, ours := sameText(got[0][i].result), got[1][i]
		same := true
		for k := 1; k < len(names); k++ {
			if got[k][i].out {
				continue
			}
			if have := sameText(got[k][i].result); have != want {
				same = false
				if step.reason == "" {
					t.Errorf("%s: tgt (-) and %s (+):\n%s", where, names[k], sameDiff(want, have))
				}
			}
			if !got[k][i].alive && got[0][i].alive {
				t.Fatalf("%s: %s: the daemon has ended", where, names[k])
			}
		}
		fmt.Fprintf(&report, "%s\n--- tgt\n%s--- ours\nexit %d\n%s\n", where, want, ours.code, ours.whole)
		if !same {
			fmt.Fprintf(&report, "DIFFERS\n--- tgt's tools on ours\n%s\n", sameText(got[2][i].result))
			differ++
		} else if step.reason != "" {
			t.Errorf("%s\nis the same now, and said to differ: %s", where, step.reason)
		}
		if step.status != "" && step.status != strconv.Itoa(ours.code) {
			t.Errorf("%s\nours exits with %d, not %s:\n%s", where, ours.code, step.status, ours.whole)
		}
		for _, a := range step.answers {
			if !strings.Contains(ours.whole, a) {
				t.Errorf("%s\nours does not say %q:\n%s", where, a, ours.whole)
			}
		}
	}
	if *sameReport != "" {
		if err := os.WriteFile(*sameReport, []byte(report.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
	figure(t, "%d commands as with tgt, %d of them different for a reason", commands, differ)
}
