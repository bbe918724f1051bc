//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is everything that was measured, and where.
type report struct {
	When       time.Time     `json:"when"`
	Commit     string        `json:"commit"`
	Kernel     string        `json:"kernel"`
	CPU        string        `json:"cpu"`
	Cores      int           `json:"cores"`
	Peers      string        `json:"peers"`
	Rounds     int           `json:"rounds"`
	Duration   time.Duration `json:"duration"` // nanoseconds, of a run
	Size       int64         `json:"size"`     // bytes of the disk
	Shared     bool          `json:"shared"`
	MaxForeign float64       `json:"maxForeign"`
	Took       string        `json:"took"`
	Targets    []presence    `json:"targets"`
	Absent     []absence     `json:"absent,omitempty"`
	Workloads  []workload    `json:"workloads"`
	Rows       []row         `json:"rows"`
}

type presence struct {
	Name       string `json:"name"`
	About      string `json:"about"`
	Congestion string `json:"congestion"` // as seen on its connections
}

type absence struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

func describe(ctx context.Context, o *options) *report {
	r := &report{When: time.Now(), Cores: runtime.NumCPU(), Rounds: o.rounds, Duration: o.duration, Size: o.size, Shared: o.shared, MaxForeign: o.maxForeign}
	said := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return strings.Join(strings.Fields(string(out)), " ")
	}
	r.Commit = said("git", "describe", "--always", "--dirty", "--abbrev=12")
	r.Peers = said("dpkg-query", "-W", "-f", "${Package} ${Version}\n", "tgt", "istgt")
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		r.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(b), "model name\t: ")
		r.CPU, _, _ = strings.Cut(rest, "\n")
	}
	return r
}

func (r *report) row(workload, target string) *row {
	for i := range r.Rows {
		if r.Rows[i].Workload == workload && r.Rows[i].Target == target {
			return &r.Rows[i]
		}
	}
	return nil
}

// figure is a median by the name that goals use.
func (r *report) figure(workload, target, name string) float64 {
	w := r.row(workload, target)
	switch {
	case w == nil || w.Median == nil:
		return math.NaN()
	case name == "CPU":
		return w.Median.ServerCPU
	}
	return w.Median.IOPS
}

// foreign is the share of others: in the median run, and in the worst.
func (r *report) foreign() (median, worst float64) {
	var all []sample
	for _, row := range r.Rows {
		for _, s := range row.Samples {
			all, worst = append(all, s), max(worst, s.Foreign)
		}
	}
	return medianForeign(all), worst
}

func medianForeign(s []sample) float64 {
	if m := median(s); m != nil {
		return m.Foreign
	}
	return 0
}

// markdown is the report to read.
func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("Taken %s at commit %s, in %s.\n\n", r.When.Format("2006-01-02 15:04"), r.Commit, r.Took)
	p("- Machine: %d × %s, Linux %s. Peers: %s.\n", r.Cores, r.CPU, r.Kernel, r.Peers)
	p("- Disk: %d MiB on tmpfs. Medians of %d interleaved rounds of %v.\n", r.Size>>20, r.Rounds, r.Duration)
	same := make(map[string][]string)
	var order []string
	for _, t := range r.Targets {
		if same[t.Congestion] == nil {
			order = append(order, t.Congestion)
		}
		same[t.Congestion] = append(same[t.Congestion], t.Name)
	}
	for _, c := range order {
		p("- Congestion control on both ends, as the connections had it: %s (%s).\n", c, strings.Join(same[c], ", "))
	}
	if r.Shared {
		p("- Without namespaces: on the machine's own loopback.\n")
	}
	m, worst := r.foreign()
	p("- Others used %.0f %% of the machine's CPU in the median run, %.0f %% in the worst.", m*100, worst*100)
	if worst > r.MaxForeign {
		p(" **The machine was not quiet: trust the CPU seconds and the ratios more than the IOPS.**")
	}
	p("\n")
	for _, a := range r.Absent {
		p("- %s is not in it: %s\n", a.Name, oneLine(a.Why))
	}
	r.goalTable(p)
	for _, w := range r.Workloads {
		r.workloadTable(p, w)
	}
	return b.String()
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func (r *report) workloadTable(p func(string, ...any), w workload) {
	base := r.Rows[0].Target
	p("\n### %s\n\n", w.Title)
	p("| target | IOPS | × %[1]s | MB/s | p50 µs | p99 µs | server CPU-s per M I/Os | × %[1]s | server cores | client CPU-s per M I/Os | peak MiB | least–most IOPS | others |\n", base)
	p("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|\n")
	for _, row := range r.Rows {
		if row.Workload != w.Name {
			continue
		}
		m := row.Median
		if row.Failed != "" || m == nil {
			p("| %s | failed: %s |\n", row.Target, oneLine(row.Failed))
			continue
		}
		least, most := math.Inf(1), 0.0
		for _, s := range row.Samples {
			least, most = min(least, s.IOPS), max(most, s.IOPS)
		}
		p("| %s | %s | %s | %s | %s | %s | %.1f | %s | %.2f | %.1f | %s | %s–%s | %.0f %% |\n", row.Target,
			thousands(m.IOPS), ratio(m.IOPS, r.figure(w.Name, base, "IOPS")), thousands(m.MBps), thousands(m.P50), thousands(m.P99),
			m.ServerCPU, ratio(m.ServerCPU, r.figure(w.Name, base, "CPU")), m.ServerCores, m.ClientCPU,
			thousands(m.PeakMiB), thousands(least), thousands(most), m.Foreign*100)
	}
}

func ratio(a, b float64) string {
	if math.IsNaN(b) || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", a/b)
}

// thousands writes a number without decimals and with commas.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (r *report) goalTable(p func(string, ...any)) {
	head := false
	for _, g := range goals {
		got, against := r.reached(g)
		if math.IsNaN(got) {
			continue
		}
		if !head {
			head = true
			p("\n### Against the goals\n\n| workload | what | wanted | measured | reached |\n|---|---|--:|--:|---|\n")
		}
		sign, ok := "≥", got >= g.factor
		if g.figure == "CPU" {
			sign, ok = "≤", got <= g.factor
		}
		what, unit := g.subject+" CPU-µs an I/O", ""
		if against != "" {
			what, unit = fmt.Sprintf("%s %s against %s", g.subject, g.figure, against), " ×"
		}
		verdict := map[bool]string{true: "yes", false: "**no**"}[ok]
		if r.disturbed(g.workload, g.subject, against) {
			verdict += ", disturbed"
		}
		p("| %s | %s | %s %g%s | %.2f%s | %s |\n", g.workload, what, sign, g.factor, unit, got, unit, verdict)
	}
}

// reached is the figure of a goal, and the name of the target that it was
// compared with: the best of those named. NaN: something was not measured.
func (r *report) reached(g goal) (got float64, against string) {
	own := r.figure(g.workload, g.subject, g.figure)
	if g.against == nil {
		return own, ""
	}
	best := math.NaN()
	for _, name := range g.against {
		v := r.figure(g.workload, name, g.figure)
		if math.IsNaN(v) {
			return v, name
		}
		if math.IsNaN(best) || (g.figure == "CPU") == (v < best) {
			best, against = v, name
		}
	}
	return own / best, against
}

// disturbed tells whether others used more than the share allowed while one of
// the targets was measured, so that a comparison says little.
func (r *report) disturbed(workload string, targets ...string) bool {
	for _, name := range targets {
		if w := r.row(workload, name); w != nil && w.Median != nil && w.Median.Foreign > r.MaxForeign {
			return true
		}
	}
	return false
}

// The tables of a page are between these lines.
const (
	docBegin = "<!-- bench: begin -->"
	docEnd   = "<!-- bench: end -->"
)

// intoPage replaces what is between the markers.
func intoPage(page, tables string) (string, error) {
	before, rest, ok := strings.Cut(page, docBegin)
	_, after, ok2 := strings.Cut(rest, docEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("the page lacks the lines %s and %s", docBegin, docEnd)
	}
	return before + docBegin + "\n" + tables + docEnd + after, nil
}

// save prints the report and puts it where it was asked for.
func (r *report) save(o *options) error {
	text := r.markdown()
	fmt.Print(text)
	md, err1 := resultPath(o, "result.md")
	js, err2 := resultPath(o, "result.json")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	j, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(md, []byte(text), 0o644), os.WriteFile(js, append(j, '\n'), 0o644)); err != nil {
		return err
	}
	note("written to %s and %s", md, js)
	if o.doc == "" {
		return nil
	}
	page, err := os.ReadFile(o.doc)
	if err != nil {
		return err
	}
	next, err := intoPage(string(page), text)
	if err != nil {
		return fmt.Errorf("%s: %w", o.doc, err)
	}
	note("tables put into %s", o.doc)
	return os.WriteFile(o.doc, []byte(next), 0o644)
}
