package tgt

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/ours anew from what is printed")

// TestTranscripts replays recorded sessions of tgtadm. Those in testdata/tgt are
// what tgt 1.0.85 printed for the same lines, byte for byte; our own further
// lines on standard error, which are indented, are left out of the comparison.
// Those in testdata/ours are where we differ on purpose, complete.
//
// A line "$ tgtadm ARGS" is a command; its standard output follows, then
// standard error, each line after "2| ", then the exit status in brackets. DIR
// stands for the directory with the files a.img (64 MiB), b.img (100 MiB),
// "with,comma.img" (1 MiB), odd.img (100 bytes) and the directory d.
func TestTranscripts(t *testing.T) {
	for _, kind := range []string{"tgt", "ours"} {
		files, err := filepath.Glob(filepath.Join("testdata", kind, "*.txt"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no transcripts in testdata/%s: %v", kind, err)
		}
		for _, f := range files {
			t.Run(kind+"/"+strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
				replay(t, f, kind == "ours")
			})
		}
	}
}

func replay(t *testing.T, file string, complete bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.file("a.img", 64<<20)
	w.file("b.img", 100<<20)
	w.file("with,comma.img", 1<<20)
	w.file("odd.img", 100)
	if err := os.Mkdir(filepath.Join(w.dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	answer := false // within the recorded answer of a command
	for line := range strings.Lines(string(raw)) {
		cmd, ok := strings.CutPrefix(line, "$ tgtadm")
		if !ok {
			if !answer {
				got.WriteString(line)
			} else if line[0] == '[' {
				answer = false
			}
			continue
		}
		answer = true
		got.WriteString(line)
		stdout, stderr, rc := w.adm(words(t, strings.ReplaceAll(cmd, "DIR", w.dir))...)
		got.WriteString(hide(stdout, w.dir))
		for l := range strings.Lines(hide(stderr, w.dir)) {
			if complete || !strings.HasPrefix(l, "  ") {
				got.WriteString("2| " + l)
			}
		}
		fmt.Fprintf(&got, "[%d]\n", rc)
	}
	if complete && *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(raw), got.String()); d != "" {
		t.Errorf("-recorded +ours:\n%s", d)
	}
}

// hide takes out what differs from run to run: the directory, and the engines
// that a build has beside those that each has.
func hide(s, dir string) string {
	s = engines.ReplaceAllString(s, "(there are: …)")
	s = places.ReplaceAllString(s, "(looked for in …)")
	s = more.ReplaceAllString(s, "")
	return strings.ReplaceAll(s, dir, "DIR")
}

var (
	engines = regexp.MustCompile(`\(there are: [^)]*\)`)
	places  = regexp.MustCompile(`\(looked for in [^)]*\)`)
	more    = regexp.MustCompile(`(?m)^    (sheepdog|rbd|glfs|curve|longhorn)( \(bsoflags .*\))?\n`)
)

// words splits a line at blanks, except within single quotes.
func words(t *testing.T, line string) []string {
	var out []string
	var word strings.Builder
	in, quoted := false, false
	for _, c := range strings.TrimRight(line, "\n") {
		switch {
		case c == '\'':
			in, quoted = true, !quoted
		case c == ' ' && !quoted:
			if in {
				out = append(out, word.String())
			}
			word.Reset()
			in = false
		default:
			in = true
			word.WriteRune(c)
		}
	}
	if quoted {
		t.Fatalf("open quote in %q", line)
	}
	if in {
		out = append(out, word.String())
	}
	return out
}
