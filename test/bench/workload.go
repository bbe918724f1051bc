//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

// workload is one kind of load.
type workload struct {
	Name       string `json:"name"`
	Title      string `json:"title"`
	Write      bool   `json:"write"`
	Sequential bool   `json:"sequential"`
	BlockSize  int    `json:"blockSize"` // bytes
	Depth      int    `json:"depth"`     // of each session
	Sessions   int    `json:"sessions"`
	Each       int    `json:"connections,omitempty"` // connections of a session, if the target takes so many; 0: one
	Unbatched  bool   `json:"unbatched,omitempty"`   // the client sends each command by itself
	Digests    bool   `json:"digests,omitempty"`     // CRC32C header and data digests
	asked      bool   // only if it is asked for by name
}

var workloads = []workload{
	{Name: "4k-randread-q1", Title: "4 KiB random reads, depth 1", BlockSize: 4096, Depth: 1, Sessions: 1},
	{Name: "4k-randread-q32", Title: "4 KiB random reads, depth 32", BlockSize: 4096, Depth: 32, Sessions: 1},
	{Name: "4k-randwrite-q32", Title: "4 KiB random writes, depth 32", Write: true, BlockSize: 4096, Depth: 32, Sessions: 1},
	{Name: "64k-read-q16", Title: "64 KiB sequential reads, depth 16", Sequential: true, BlockSize: 64 << 10, Depth: 16, Sessions: 1},
	{Name: "1m-read-q8", Title: "1 MiB sequential reads, depth 8", Sequential: true, BlockSize: 1 << 20, Depth: 8, Sessions: 1},
	{Name: "1m-write-q8", Title: "1 MiB sequential writes, depth 8", Sequential: true, Write: true, BlockSize: 1 << 20, Depth: 8, Sessions: 1},
	{Name: "4k-randread-4x16", Title: "4 KiB random reads, four sessions of depth 16", BlockSize: 4096, Depth: 16, Sessions: 4},
	{Name: "4k-randread-256x4", Title: "4 KiB random reads, 256 sessions of depth 4", BlockSize: 4096, Depth: 4, Sessions: 256, asked: true},
	{Name: "4k-randread-mcs4", Title: "4 KiB random reads, one session of four connections, depth 64", BlockSize: 4096, Depth: 64, Sessions: 1, Each: 4, asked: true},
	{Name: "4k-randread-q32-unbatched", Title: "4 KiB random reads, depth 32, a client that sends each command by itself", BlockSize: 4096, Depth: 32, Sessions: 1, Unbatched: true, asked: true},
	{Name: "4k-randread-q32-digests", Title: "4 KiB random reads, depth 32, header and data digests", BlockSize: 4096, Depth: 32, Sessions: 1, Digests: true, asked: true},
}

func (w workload) name() string    { return w.Name }
func (w workload) byDefault() bool { return !w.asked }

// choice is what can be chosen by name.
type choice interface {
	name() string
	byDefault() bool
}

// names lists what can be chosen.
func names[T choice](all []T) []string {
	var n []string
	for _, v := range all {
		n = append(n, v.name())
	}
	return n
}

// choose takes those of a comma list, in the order of all; an empty list is what
// is measured by default.
func choose[T choice](all []T, list string) ([]T, error) {
	if list == "" {
		return slices.DeleteFunc(slices.Clone(all), func(v T) bool { return !v.byDefault() }), nil
	}
	want := make(map[string]bool)
	for n := range strings.SplitSeq(list, ",") {
		want[strings.TrimSpace(n)] = true
	}
	var chosen []T
	for _, v := range all {
		if want[v.name()] {
			chosen = append(chosen, v)
			delete(want, v.name())
		}
	}
	for n := range want {
		return nil, fmt.Errorf("there is no %q; there are %s", n, strings.Join(names(all), ", "))
	}
	return chosen, nil
}

// The targets' names in results and goals.
const (
	tgtdRdwr    = "tgtd-rdwr"
	tgtdAio     = "tgtd-aio"
	istgt       = "istgt"
	ourFile     = "blockgate-file"
	ourRAM      = "blockgate-ram"
	ourBeside   = "blockgate-ram-beside-slow"
	otherFile   = "other-file"
	otherRAM    = "other-ram"
	limitFile   = "limit-file"
	limitMemory = "limit-memory"
)

// goal is something to reach: subject's figure against the best of others, or
// against a fixed value.
type goal struct {
	workload string
	subject  string
	against  []string
	figure   string // "IOPS" or "CPU"
	factor   float64
}

// goals are what the project asks of the data path.
var goals = []goal{
	{"4k-randread-q1", ourFile, []string{tgtdRdwr, tgtdAio}, "IOPS", 1},
	{"4k-randread-q32", ourFile, []string{tgtdRdwr}, "IOPS", 4},
	{"4k-randread-q32", ourFile, []string{tgtdAio}, "IOPS", 2.5},
	{"4k-randread-q32", ourFile, []string{tgtdRdwr}, "CPU", 0.2},
	{"4k-randread-q32", ourFile, []string{tgtdAio}, "CPU", 0.35},
	{"4k-randwrite-q32", ourFile, []string{tgtdRdwr}, "IOPS", 4},
	{"4k-randwrite-q32", ourFile, []string{tgtdAio}, "IOPS", 2.5},
	{"4k-randwrite-q32", ourFile, []string{tgtdRdwr}, "CPU", 0.2},
	{"4k-randwrite-q32", ourFile, []string{tgtdAio}, "CPU", 0.35},
	{"64k-read-q16", ourFile, []string{tgtdRdwr, tgtdAio}, "IOPS", 1.5},
	{"64k-read-q16", ourFile, []string{istgt}, "IOPS", 1},
	{"1m-read-q8", ourFile, []string{tgtdRdwr, tgtdAio}, "IOPS", 1.5},
	{"1m-read-q8", ourFile, []string{istgt}, "IOPS", 1},
	{"1m-write-q8", ourFile, []string{tgtdRdwr, tgtdAio}, "IOPS", 1.5},
	{"1m-write-q8", ourFile, []string{istgt}, "IOPS", 1},
	{"4k-randread-4x16", ourFile, []string{tgtdRdwr}, "IOPS", 3},
	{"4k-randread-4x16", ourFile, []string{tgtdAio}, "IOPS", 2},
	{"4k-randread-q32-unbatched", ourFile, []string{tgtdRdwr, tgtdAio}, "IOPS", 1.5},
	{"4k-randread-q1", ourRAM, []string{limitMemory}, "IOPS", 0.8},
	{"4k-randread-q32", ourRAM, []string{limitMemory}, "IOPS", 0.5},
	{"4k-randread-4x16", ourRAM, []string{limitMemory}, "IOPS", 0.5},
	{"4k-randread-q32", ourRAM, nil, "CPU", 4},
	{"4k-randread-q32", ourBeside, []string{ourRAM}, "IOPS", 0.9},
	{"4k-randread-q32", nbdOurs, []string{nbdkit}, "IOPS", 2},
	{"4k-randread-q1", nbdOurs, []string{nbdkit}, "IOPS", 1.2},
	{"1m-read-q8", nbdOurs, []string{nbdkit}, "IOPS", 1.2},
}
