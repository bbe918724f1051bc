//go:build linux

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"blockgate/test/bench/limit"
	"blockgate/test/bench/nbdload"
)

// The targets that are measured over NBD, by our own client.
const (
	nbdOurs = "blockgate-nbd"
	nbdkit  = "nbdkit-file"
)

func startBlockgateNBD(ctx context.Context, r *rig, s *server) error {
	return s.run(ctx, r.binary, "serve", r.disk, "--nbd", s.addr(), "--socket", filepath.Join(r.dir, s.name+".sock"))
}

func startNbdkit(ctx context.Context, r *rig, s *server) error {
	return s.run(ctx, "nbdkit", "-f", "-t", "16", "-i", "127.0.0.1", "-p", fmt.Sprint(s.port), "file", r.disk)
}

func nbdLoadOf(export string) func(*rig, *server, workload, time.Duration) []string {
	return func(r *rig, s *server, w workload, d time.Duration) []string {
		return []string{r.self, "nbd-load", fmt.Sprintf("-write=%t", w.Write), fmt.Sprintf("-sequential=%t", w.Sequential),
			fmt.Sprintf("-block-size=%d", w.BlockSize), fmt.Sprintf("-depth=%d", w.Depth), fmt.Sprintf("-connections=%d", w.Sessions),
			fmt.Sprintf("-duration=%v", d), "-export=" + export, s.addr()}
	}
}

// nbdLoad is the process that puts load on an NBD server.
func nbdLoad(ctx context.Context, args []string) error {
	var o limit.Options
	var export string
	f := flag.NewFlagSet("nbd-load", flag.ContinueOnError)
	f.BoolVar(&o.Write, "write", false, "")
	f.BoolVar(&o.Sequential, "sequential", false, "")
	f.IntVar(&o.BlockSize, "block-size", 4096, "bytes")
	f.IntVar(&o.Depth, "depth", 1, "of a connection")
	f.IntVar(&o.Connections, "connections", 1, "")
	f.DurationVar(&o.Duration, "duration", time.Second, "")
	f.StringVar(&export, "export", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	r, err := nbdload.Load(ctx, f.Arg(0), export, o)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
