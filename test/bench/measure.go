//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// sample is what one run has measured.
type sample struct {
	IOPS        float64 `json:"iops"`
	MBps        float64 `json:"mbps"` // 10^6 bytes a second
	P50         float64 `json:"p50"`  // microseconds
	P99         float64 `json:"p99"`
	ServerCPU   float64 `json:"serverCPU"` // seconds per million I/Os
	ClientCPU   float64 `json:"clientCPU"`
	ServerCores float64 `json:"serverCores"` // busy on average
	PeakMiB     float64 `json:"peakMiB"`     // resident, of the server
	Foreign     float64 `json:"foreign"`     // share of the machine's CPU that others used
}

// row is one target under one workload.
type row struct {
	Workload string   `json:"workload"`
	Target   string   `json:"target"`
	Samples  []sample `json:"samples"`
	Median   *sample  `json:"median,omitempty"` // of each figure by itself
	Failed   string   `json:"failed,omitempty"`
}

// measure is the whole bench.
func measure(ctx context.Context, o *options) (err error) {
	loads, err := choose(workloads, o.workloads)
	if err != nil {
		return err
	}
	chosen, err := choose(targets, o.targets)
	if err != nil {
		return err
	}
	begin := time.Now()
	r, err := newRig(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	rep := describe(ctx, o)
	var up []*server
	for _, t := range chosen {
		note("starting %s", t.Name)
		s, err := r.start(ctx, t)
		var seen string
		if err == nil {
			seen, err = r.probe(ctx, t, s)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			note("%s is left out: %v", t.Name, err)
			rep.Absent = append(rep.Absent, absence{t.Name, err.Error()})
			continue
		}
		rep.Targets = append(rep.Targets, presence{t.Name, t.About, seen})
		up = append(up, s)
	}
	if len(up) == 0 {
		return errors.New("no target is up")
	}
	for _, w := range loads {
		rows := make([]row, len(up))
		for i, s := range up {
			rows[i] = row{Workload: w.Name, Target: s.name}
		}
		for round := range o.rounds {
			for i, s := range up {
				m, err := r.quietest(ctx, o, s, w)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					rows[i].Failed = err.Error()
					note("%s %d/%d %s: %v", w.Name, round+1, o.rounds, s.name, err)
					continue
				}
				rows[i].Samples = append(rows[i].Samples, *m)
				note("%s %d/%d %s: %.0f IOPS, %.1f CPU-µs, others %.0f %%", w.Name, round+1, o.rounds, s.name, m.IOPS, m.ServerCPU, m.Foreign*100)
			}
		}
		for i := range rows {
			rows[i].Median = median(rows[i].Samples)
		}
		rep.Workloads = append(rep.Workloads, w)
		rep.Rows = append(rep.Rows, rows...)
	}
	rep.Took = time.Since(begin).Round(time.Second).String()
	if err := rep.save(o); err != nil {
		return err
	}
	for _, row := range rep.Rows {
		if row.Failed != "" {
			return fmt.Errorf("%s under %s: %s", row.Target, row.Workload, row.Failed)
		}
	}
	return nil
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, "# "+format+"\n", args...) }

// command is how to put a workload on a server.
func (r *rig) command(s *server, w workload, d time.Duration) []string {
	i := slices.IndexFunc(targets, func(t target) bool { return t.Name == s.name })
	return targets[i].load(r, s, w, d)
}

// quietest repeats a run that others have disturbed, and takes the least
// disturbed one.
func (r *rig) quietest(ctx context.Context, o *options, s *server, w workload) (*sample, error) {
	var best *sample
	for range 1 + o.retries {
		m, err := r.measure(ctx, s, w, o.duration)
		if err != nil {
			return nil, err
		}
		if best == nil || m.Foreign < best.Foreign {
			best = m
		}
		if best.Foreign <= o.maxForeign {
			break
		}
	}
	return best, nil
}

// measure is one run.
func (r *rig) measure(ctx context.Context, s *server, w workload, d time.Duration) (*sample, error) {
	pid, self := s.cmd.Process.Pid, os.Getpid()
	forgetPeak(pid)
	before, err := readCPU(pid, self)
	if err != nil {
		return nil, err
	}
	c, err := r.client(ctx, s, r.command(s, w, d), d)
	if err != nil {
		return nil, err
	}
	after, err := readCPU(pid, self)
	if err != nil {
		return nil, fmt.Errorf("the server has gone: %w: %s", err, s.said())
	}
	peak, err := peakMiB(pid)
	if err != nil {
		return nil, err
	}
	served, own := after.server-before.server, after.self-before.self
	millions := float64(c.All.Count) / 1e6
	return &sample{
		IOPS: c.All.IOPS, MBps: c.All.MBps, P50: c.All.P50, P99: c.All.P99,
		ServerCPU: served / millions, ClientCPU: c.cpu / millions, ServerCores: served / c.Seconds, PeakMiB: peak,
		Foreign: max(0, after.busy-before.busy-served-own-c.cpu) / max(after.total-before.total, 0.01),
	}, nil
}

// cpuTimes are CPU seconds so far.
type cpuTimes struct {
	machine
	server, self float64
}

func readCPU(server, self int) (t cpuTimes, err error) {
	var errs [3]error
	t.machine, errs[0] = machineCPU()
	t.server, errs[1] = processCPU(server)
	t.self, errs[2] = processCPU(self)
	return t, errors.Join(errs[:]...)
}

// median takes the median of each figure.
func median(samples []sample) *sample {
	if len(samples) == 0 {
		return nil
	}
	m := samples[0]
	for _, f := range []func(*sample) *float64{
		func(s *sample) *float64 { return &s.IOPS }, func(s *sample) *float64 { return &s.MBps },
		func(s *sample) *float64 { return &s.P50 }, func(s *sample) *float64 { return &s.P99 },
		func(s *sample) *float64 { return &s.ServerCPU }, func(s *sample) *float64 { return &s.ClientCPU },
		func(s *sample) *float64 { return &s.ServerCores }, func(s *sample) *float64 { return &s.PeakMiB },
		func(s *sample) *float64 { return &s.Foreign },
	} {
		var v []float64
		for i := range samples {
			v = append(v, *f(&samples[i]))
		}
		slices.Sort(v)
		*f(&m) = (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
	return &m
}

// probe puts a little load on a server, to see that it works, and looks at the
// congestion control of the connections meanwhile.
func (r *rig) probe(ctx context.Context, t target, s *server) (string, error) {
	const d = 500 * time.Millisecond
	type outcome struct {
		res *clientResult
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		res, err := r.client(ctx, s, t.load(r, s, workloads[1], d), d)
		done <- outcome{res, err}
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	seen := "unknown"
	for {
		select {
		case o := <-done:
			if o.err != nil {
				return "", fmt.Errorf("%w: %s", o.err, s.said())
			}
			return seen, nil
		case <-tick.C:
		}
		if seen != "unknown" {
			continue
		}
		out, err := exec.CommandContext(ctx, "ss", "-tinHO", fmt.Sprintf("( sport = :%d or dport = :%d )", s.port, s.port)).Output()
		available, err2 := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
		if err == nil && err2 == nil {
			if c := congestionOf(string(out), strings.Fields(string(available)), s.addr()); c != "" {
				seen = c
			}
		}
	}
}

// congestionOf reads what ss says of the connections to addr. It is empty unless
// there is one, with both its ends.
func congestionOf(ss string, available []string, addr string) string {
	ends := make(map[bool]string)
	for line := range strings.Lines(ss) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] != "ESTAB" {
			continue
		}
		for _, word := range f[5:] {
			if slices.Contains(available, word) {
				ends[f[3] == addr] = word
			}
		}
	}
	server, client := ends[true], ends[false]
	switch {
	case server == "" || client == "":
		return ""
	case server == client:
		return server
	}
	return "server " + server + ", client " + client
}

// resultPath makes the folder of results.
func resultPath(o *options, name string) (string, error) {
	if err := os.MkdirAll(o.results, 0o755); err != nil {
		return "", err
	}
	return filepath.Join(o.results, name), nil
}
