//go:build !unix

package tgt

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
)

const readyEnv = "BLOCKGATE_TGTD_READY"

func detach(_ context.Context, _ []string, stderr io.Writer, _ func(string) string) int {
	fmt.Fprintln(stderr, "tgtd: this system has no background processes of this kind; use -f")
	return 1
}

func runDetached(context.Context, *tgtdOptions, func(string) string) int { return 1 }

func systemLog(o *slog.HandlerOptions) slog.Handler { return slog.NewTextHandler(os.Stderr, o) }
