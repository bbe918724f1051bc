package tgt

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BenchmarkTargets makes 2,000 targets with a unit and a rule each, command by
// command, and compares the last hundred with the first; then it dumps them.
// Run it with -benchtime 1x.
func BenchmarkTargets(b *testing.B) {
	const n = 2000
	dir := b.TempDir()
	getenv := func(k string) string {
		return map[string]string{"TGT_IPC_SOCKET": filepath.Join(dir, "s"), "BLOCKGATE_STATE": filepath.Join(dir, "state")}[k]
	}
	o, _ := parseTgtd([]string{"--iscsi", "portal=127.0.0.1:0"}, b.Output(), b.Output())
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan int, 1)
	var said bytes.Buffer
	go func() {
		ended <- serve(ctx, o, slog.DiscardHandler, &said, getenv, func() { close(ready) })
	}()
	defer func() {
		cancel()
		<-ended
	}()
	select {
	case <-ready:
	case rc := <-ended:
		ended <- rc
		b.Fatalf("tgtd ended with %d: %s", rc, &said)
	}
	run := func(line string) {
		var out, errs bytes.Buffer
		if rc := RunTgtadm(strings.Fields(line), &out, &errs, getenv); rc != 0 {
			b.Fatalf("%s: %d, %s", line, rc, &errs)
		}
	}
	base := 0
	for b.Loop() {
		var first, last time.Duration
		for i := range n {
			start := time.Now()
			tid := base + i + 1
			run(fmt.Sprintf("--op new --mode target --tid %d -T iqn.2024-01.com.example:t%d", tid, tid))
			run(fmt.Sprintf("--op new --mode logicalunit --tid %d --lun 1 -b x --bstype null", tid))
			run(fmt.Sprintf("--op bind --mode target --tid %d -I ALL", tid))
			switch took := time.Since(start); {
			case i < 100:
				first += took
			case i >= n-100:
				last += took
			}
		}
		base += n
		start := time.Now()
		var out, errs bytes.Buffer
		if rc := RunTgtAdmin([]string{"--dump"}, &out, &errs, getenv); rc != 0 {
			b.Fatalf("--dump: %d, %s", rc, &errs)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "dump-ms")
		b.ReportMetric(float64(first.Microseconds())/300, "first-us/cmd")
		b.ReportMetric(float64(last.Microseconds())/300, "last-us/cmd")
		b.ReportMetric(float64(last)/float64(first), "last/first")
	}
}
