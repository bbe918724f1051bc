// Command blockgate turns any storage into an iSCSI SAN disk. Called by the
// name of a tool that it replaces (tgtd, tgtadm, tgt-admin), or with that name as its first
// argument, it speaks that tool's command line.
package main

import (
	"context"
	"os"
	"path/filepath"

	"blockgate/internal/cli"
	"blockgate/internal/compat/tgt"
)

func main() {
	personalities := map[string]func(context.Context, []string) int{
		"tgtd": func(ctx context.Context, args []string) int {
			return tgt.RunTgtd(ctx, args, os.Stdout, os.Stderr, os.Getenv)
		},
		"tgt-admin": func(_ context.Context, args []string) int {
			return tgt.RunTgtAdmin(args, os.Stdout, os.Stderr, os.Getenv)
		},
		"tgt-setup-lun": func(_ context.Context, args []string) int {
			return tgt.RunTgtSetupLUN(args, os.Stdout, os.Stderr, os.Getenv)
		},
		"tgtimg": func(_ context.Context, args []string) int {
			return tgt.RunTgtimg(args, os.Stdout, os.Stderr)
		},
		"tgtadm": func(_ context.Context, args []string) int {
			return tgt.RunTgtadm(args, os.Stdout, os.Stderr, os.Getenv)
		},
	}
	ctx := context.Background()
	name := filepath.Base(os.Args[0])
	if run, ok := personalities[name]; ok {
		// What is started again in the background is named after the binary;
		// service scripts look for the tool's own name.
		os.WriteFile("/proc/self/comm", []byte(name), 0)
		os.Exit(run(ctx, os.Args[1:]))
	}
	os.Exit(cli.Main(ctx, cli.Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		Personalities: personalities,
	}))
}
