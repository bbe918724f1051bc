//go:build linux

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// This binary is also the servers and clients that the bench starts of itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "limit-") {
		if err := run(context.Background(), os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// small is a bench of what needs no peers and no privileges.
func small(t *testing.T, more ...string) *options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o, err := parse(append([]string{"-shared", "-blockgate", self, "-size", "64", "-rounds", "2", "-duration", "100ms", "-retries", "0",
		"-targets", limitFile + "," + limitMemory, "-workloads", "4k-randread-q32,1m-write-q8", "-results", t.TempDir()}, more...))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestBench(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("before\n"+docBegin+"\nold\n"+docEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := small(t, "-doc", page)
	before := leftovers(t)
	if err := measure(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, leftovers(t)); diff != "" {
		t.Errorf("it leaves something behind (-before +after):\n%s", diff)
	}
	b, err := os.ReadFile(filepath.Join(o.results, "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Targets) != 2 || len(r.Rows) != 4 || len(r.Absent) != 0 {
		t.Fatalf("%d targets, %d rows, absent: %v; want 2, 4 and none", len(r.Targets), len(r.Rows), r.Absent)
	}
	for _, row := range r.Rows {
		m := row.Median
		if len(row.Samples) != 2 || m == nil || m.IOPS <= 0 || m.MBps <= 0 || m.P99 < m.P50 || m.PeakMiB <= 0 || m.Foreign > 1 {
			t.Errorf("%s under %s: %+v", row.Target, row.Workload, row)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n" + docBegin + "\nTaken", "### 4 KiB random reads, depth 32", "| limit-memory | ", docEnd + "\nafter\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}

// What is missing is left out and named; the rest is measured.
func TestBenchWithoutATarget(t *testing.T) {
	o := small(t, "-targets", ourFile+","+limitFile, "-workloads", "4k-randread-q1", "-rounds", "1", "-blockgate", "/bin/true")
	if err := measure(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.results, "result.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "- blockgate-file is not in it: ") || !strings.Contains(string(text), "| limit-file | ") {
		t.Errorf("result:\n%s", text)
	}
}

func TestBenchEndsWithItsContext(t *testing.T) {
	o := small(t, "-rounds", "100", "-duration", "1m")
	before := leftovers(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(700*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
	if err := measure(ctx, o); err == nil {
		t.Error("no error")
	}
	if diff := cmp.Diff(before, leftovers(t)); diff != "" {
		t.Errorf("it leaves something behind (-before +after):\n%s", diff)
	}
}

// leftovers are the folders of benches and the processes that this one has started.
func leftovers(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/dev/shm/blockgate-bench-*")
	if err != nil {
		t.Fatal(err)
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, d := range dirs {
		if fi, err := os.Stat(d); err == nil && fi.ModTime().After(processStart) {
			found = append(found, d)
		}
	}
	for _, c := range children {
		if b, err := os.ReadFile(c); err == nil {
			found = append(found, strings.Fields(string(b))...)
		}
	}
	return found
}

var processStart = time.Now()

func TestParse(t *testing.T) {
	o, err := parse([]string{"-quick", "-rounds", "5"})
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds != 5 || o.duration != time.Second || o.size != 1<<30 || o.retries != 0 {
		t.Errorf("-quick -rounds 5 gives %+v", o)
	}
	if o, err = parse(nil); err != nil || o.size != 4<<30 || o.rounds != 3 {
		t.Errorf("no options give %+v, %v", o, err)
	}
	for _, args := range []string{"-size 1", "-rounds 0", "-duration 2m", "-retries -1", "left over"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s is taken", args)
		}
	}
	if _, err := parse([]string{"-h"}); err != flag.ErrHelp {
		t.Errorf("-h gives %v", err)
	}
}

func TestChoose(t *testing.T) {
	got, err := choose(workloads, "1m-read-q8, 4k-randread-q1")
	if err != nil || len(got) != 2 || got[0].Name != "4k-randread-q1" || got[1].Name != "1m-read-q8" {
		t.Errorf("choose = %v, %v", got, err)
	}
	if got, err = choose(workloads, ""); err != nil || len(got) != 7 {
		t.Errorf("by default there are %d workloads, %v; want 7", len(got), err)
	}
	if _, err := choose(workloads, "8k"); err == nil {
		t.Error("an unknown name is taken")
	}
}

// Every goal names what there is: otherwise it would silently not be checked.
func TestGoals(t *testing.T) {
	for _, g := range goals {
		if _, err := choose(workloads, g.workload); err != nil {
			t.Error(err)
		}
		if _, err := choose(targets, strings.Join(append(g.against, g.subject), ",")); err != nil {
			t.Error(err)
		}
	}
}

func TestReached(t *testing.T) {
	of := func(target string, iops, cpu float64) row {
		return row{Workload: "w", Target: target, Median: &sample{IOPS: iops, ServerCPU: cpu}}
	}
	r := &report{Rows: []row{of("a", 100, 10), of("b", 200, 30), of("us", 300, 6), {Workload: "w", Target: "broken", Failed: "so"}}}
	for _, c := range []struct {
		g       goal
		want    float64
		against string
	}{
		{goal{"w", "us", []string{"a", "b"}, "IOPS", 1}, 1.5, "b"},
		{goal{"w", "us", []string{"a", "b"}, "CPU", 1}, 0.6, "a"},
		{goal{"w", "us", nil, "CPU", 1}, 6, ""},
		{goal{"w", "us", []string{"a", "broken"}, "IOPS", 1}, math.NaN(), "broken"},
		{goal{"other", "us", []string{"a"}, "IOPS", 1}, math.NaN(), "a"},
	} {
		got, against := r.reached(c.g)
		if math.Abs(got-c.want) > 1e-9 || math.IsNaN(got) != math.IsNaN(c.want) || against != c.against {
			t.Errorf("%+v: %v against %q, want %v against %q", c.g, got, against, c.want, c.against)
		}
	}
}

// A comparison with a run that others have disturbed says so.
func TestDisturbed(t *testing.T) {
	r := &report{MaxForeign: 0.1, Rows: []row{
		{Workload: "4k-randread-q1", Target: tgtdRdwr, Median: &sample{IOPS: 1}},
		{Workload: "4k-randread-q1", Target: tgtdAio, Median: &sample{IOPS: 2, Foreign: 0.2}},
		{Workload: "4k-randread-q1", Target: ourFile, Median: &sample{IOPS: 3}},
	}}
	if text := r.markdown(); !strings.Contains(text, "| 1.50 × | yes, disturbed |") {
		t.Errorf("report:\n%s", text)
	}
	r.Rows[1].Median.Foreign = 0.1
	if text := r.markdown(); !strings.Contains(text, "| 1.50 × | yes |") {
		t.Errorf("report:\n%s", text)
	}
}

func TestMedian(t *testing.T) {
	if median(nil) != nil {
		t.Error("a median of nothing")
	}
	m := median([]sample{{IOPS: 3, P99: 1}, {IOPS: 1, P99: 9}, {IOPS: 2, P99: 5}})
	if m.IOPS != 2 || m.P99 != 5 {
		t.Errorf("of three: %+v", m)
	}
	if m := median([]sample{{IOPS: 1}, {IOPS: 4}}); m.IOPS != 2.5 {
		t.Errorf("of two: %+v", m)
	}
}

func TestParseProc(t *testing.T) {
	cpu, err := parseProcessCPU("7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0")
	if err != nil || cpu != 2 {
		t.Errorf("of a process: %v, %v; want 2", cpu, err)
	}
	m, err := parseMachine("cpu  100 0 200 300 400 0 50 50 0 0\ncpu0 1 2\n")
	if err != nil || m.busy != 4 || m.total != 11 {
		t.Errorf("of the machine: %+v, %v; want 4 of 11", m, err)
	}
	for _, bad := range []string{"", "7 (a) S 1", "cpu 1 2 3"} {
		if _, err := parseProcessCPU(bad); err == nil {
			t.Errorf("%q is a process", bad)
		}
		if _, err := parseMachine(bad); err == nil {
			t.Errorf("%q is a machine", bad)
		}
	}
	if v, err := field("VmPeak: 1 kB\nVmHWM:\t 2048 kB\n", "VmHWM:"); err != nil || v != 2048 {
		t.Errorf("field = %v, %v", v, err)
	}
}

func TestCongestionOf(t *testing.T) {
	known := []string{"reno", "bbr", "cubic"}
	line := func(local, peer, algorithm string) string {
		return "ESTAB 0 0 " + local + " " + peer + " ts sack " + algorithm + " wscale:7,7 rto:201\n"
	}
	server, client := "127.0.0.1:3260", "127.0.0.1:5000"
	for want, text := range map[string]string{
		"":                         line(server, client, "cubic"),
		"cubic":                    line(server, client, "cubic") + line(client, server, "cubic"),
		"server bbr, client cubic": line(client, server, "cubic") + line(server, client, "bbr"),
	} {
		if got := congestionOf(text, known, server); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
}

func TestIntoPage(t *testing.T) {
	if _, err := intoPage("no markers", "tables"); err == nil {
		t.Error("a page without markers is taken")
	}
}

// A server that does not listen is told about, and its port is free afterwards.
func TestServerThatEnds(t *testing.T) {
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{name: "x", port: port, log: filepath.Join(t.TempDir(), "log")}
	if err := s.run(t.Context(), "sh", "-c", "echo because; exit 3"); err == nil || !strings.Contains(err.Error(), "because") {
		t.Errorf("run = %v, want what it said", err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("tcp", s.addr())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
