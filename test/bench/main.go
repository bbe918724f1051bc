//go:build linux

// Command bench measures targets side by side: tgtd with its rdwr and aio
// stores, istgt and Blockgate export the same RAM-backed file on loopback,
// Blockgate also a RAM store, and a plain server of the same sizes shows what
// loopback carries at best. "blockgate bench" is the client for all of them.
//
// It runs in namespaces of its own: a private network whose loopback uses one
// congestion control on both ends of every connection (see isolate.go), a private
// /dev/shm, and a process namespace that takes every server along when it ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the command line's.
type options struct {
	binary     string // blockgate
	other      string // another one, to compare it with
	size       int64  // bytes of the disk
	rounds     int
	duration   time.Duration // of one run
	workloads  string
	targets    string
	maxForeign float64 // a run above this is repeated
	retries    int
	congestion string
	shared     bool // no namespaces
	results    string
	doc        string
	limit      time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var child *childError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.As(err, &child):
		os.Exit(child.status)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "limit-server":
			return limitServer(ctx, args[1:])
		case "limit-load":
			return limitLoad(ctx, args[1:])
		case "nbd-load":
			return nbdLoad(ctx, args[1:])
		}
	}
	inside := len(args) > 0 && args[0] == insideArgument
	if inside {
		args = args[1:]
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("it took more than -limit %v", o.limit))
	defer cancel()
	switch {
	case o.shared:
		return measure(ctx, o)
	case !inside:
		return isolate(ctx, args)
	}
	if err := settle(ctx, o.congestion); err != nil {
		return err
	}
	return measure(ctx, o)
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	var size, quick = 4096, false
	f.StringVar(&o.binary, "blockgate", "bin/blockgate", "the binary to measure")
	f.StringVar(&o.other, "other", "", "another blockgate binary to measure beside it: targets other-file, other-ram")
	f.IntVar(&size, "size", size, "MiB of the disk; twice that and 1 GiB must be free")
	f.IntVar(&o.rounds, "rounds", 3, "rounds; figures are medians over them")
	f.DurationVar(&o.duration, "duration", 3*time.Second, "of one run, up to a minute")
	f.StringVar(&o.workloads, "workloads", "", "comma list: "+strings.Join(names(workloads), ", "))
	f.StringVar(&o.targets, "targets", "", "comma list: "+strings.Join(names(targets), ", "))
	f.Float64Var(&o.maxForeign, "max-foreign", 0.10, "repeat a run if others used more of the machine's CPU than this share")
	f.IntVar(&o.retries, "retries", 2, "how often; the quietest run counts")
	f.StringVar(&o.congestion, "congestion", "cubic", "TCP congestion control of both ends")
	f.BoolVar(&o.shared, "shared", false, "without namespaces: the machine's own loopback, congestion control and /dev/shm")
	f.StringVar(&o.results, "results", "bin/bench", "folder for result.md and result.json")
	f.StringVar(&o.doc, "doc", "", "put the tables into this page too, between its markers")
	f.DurationVar(&o.limit, "limit", 40*time.Minute, "end then, come what may")
	f.BoolVar(&quick, "quick", false, "about two minutes: 2 rounds of 1 s, a disk of 1 GiB, no repetitions")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if quick {
		def(given["rounds"], &o.rounds, 2)
		def(given["duration"], &o.duration, time.Second)
		def(given["size"], &size, 1024)
		def(given["retries"], &o.retries, 0)
	}
	o.size = int64(size) << 20
	switch {
	case size < 64 || size > 1<<20:
		return nil, errors.New("-size is 64 MiB to 1 TiB")
	case o.rounds < 1 || o.rounds > 100 || o.retries < 0 || o.retries > 10:
		return nil, errors.New("-rounds is 1 to 100, -retries 0 to 10")
	case o.duration < 100*time.Millisecond || o.duration > time.Minute:
		return nil, errors.New("-duration is 100 ms to a minute")
	}
	return o, nil
}

// def sets what a flag did not.
func def[T any](given bool, p *T, v T) {
	if !given {
		*p = v
	}
}
