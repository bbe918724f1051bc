//go:build unix

package tgt

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// readyEnv tells a process that it is the one in the background: on descriptor
// 3 it reports readyWord, or why it failed.
const (
	readyEnv  = "BLOCKGATE_TGTD_READY"
	readyWord = "ready\n"
)

// detach starts the same program again in a session of its own and waits until
// it is ready or has failed.
func detach(ctx context.Context, args []string, stderr io.Writer, getenv func(string) string) int {
	fail := func(err error) int {
		fmt.Fprintf(stderr, "tgtd: cannot go to the background: %v\n", err)
		return 1
	}
	exe, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: append([]string{"tgtd"}, args...), ExtraFiles: []*os.File{w},
		Env:         append(os.Environ(), readyEnv+"=1"),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	for _, k := range []string{"TGT_IPC_SOCKET", "BLOCKGATE_STATE", "XDG_STATE_HOME", "HOME"} {
		if v := getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fail(err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if string(said) == readyWord {
		cmd.Process.Release()
		return 0
	}
	io.WriteString(stderr, strings.TrimSuffix(string(said), readyWord))
	if end := cmd.Wait(); len(said) == 0 {
		fmt.Fprintf(stderr, "tgtd: ended before it was ready: %v\n", first(errText(end), errText(err), "no reason given"))
	}
	return 1
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// runDetached is the process in the background.
func runDetached(ctx context.Context, o *tgtdOptions, getenv func(string) string) int {
	pipe := os.NewFile(3, "ready")
	if pipe == nil {
		return 1
	}
	defer pipe.Close()
	// Programs that the daemon starts must not hold the pipe open, nor take
	// themselves for it.
	syscall.CloseOnExec(3)
	os.Unsetenv(readyEnv)
	if err := os.Chdir("/"); err != nil {
		fmt.Fprintf(pipe, "tgtd: %v\n", err)
		return 1
	}
	// The kernel shall rather end another process than the one that serves
	// disks; without the right to say so it may not.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0o644)
	ready := func() {
		io.WriteString(pipe, readyWord)
		pipe.Close()
	}
	return serve(ctx, o, systemLog(o.logOptions()), pipe, getenv, ready)
}

// systemLog logs to syslog; without one there is no log.
func systemLog(o *slog.HandlerOptions) slog.Handler {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "tgtd")
	if err != nil {
		return slog.DiscardHandler
	}
	return slog.NewTextHandler(w, o)
}
