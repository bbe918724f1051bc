//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// userHZ is the unit of the times in /proc: USER_HZ, which is 100 on every
// architecture that Linux has for users.
const userHZ = 100

// processCPU is the CPU seconds, user and system, of a process with all its
// threads, those that have ended too.
func processCPU(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessCPU(string(b))
}

func parseProcessCPU(stat string) (float64, error) {
	// The name, in parentheses, may hold spaces and parentheses.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return 0, errors.New("a process's stat is too short")
	}
	user, err1 := strconv.ParseUint(f[11], 10, 64)
	system, err2 := strconv.ParseUint(f[12], 10, 64)
	return float64(user+system) / userHZ, errors.Join(err1, err2)
}

// peakMiB is the most memory that a process has had since forgetPeak.
func peakMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	kib, err := field(string(b), "VmHWM:")
	return kib / 1024, err
}

// forgetPeak makes the present size the peak. Where the kernel refuses, the peak
// is that since the start.
func forgetPeak(pid int) { os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0) }

// availableMemory is in bytes.
func availableMemory() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	kib, err := field(string(b), "MemAvailable:")
	return int64(kib) << 10, err
}

// field is the number after a name at the beginning of a line.
func field(text, name string) (float64, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("there is no %s", name)
}

// machine is the whole machine's CPU time, in seconds over all cores.
type machine struct{ busy, total float64 }

func machineCPU() (machine, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machine{}, err
	}
	return parseMachine(string(b))
}

func parseMachine(stat string) (machine, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return machine{}, errors.New("/proc/stat does not begin with the sum of the CPUs")
	}
	var m machine
	for i, s := range f[1:9] { // guest time is in user time already
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return machine{}, err
		}
		m.total += float64(v) / userHZ
		if i != 3 && i != 4 { // idle, iowait
			m.busy += float64(v) / userHZ
		}
	}
	return m, nil
}
