package daemon_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/daemon"
	"blockgate/internal/declare"
	"blockgate/internal/state"
)

// childState names the state directory of a daemon that is a process of its
// own: the test binary started again.
const childState = "BLOCKGATE_TEST_STATE"

func child(dir string) int {
	d, err := daemon.Start(context.Background(), daemon.Config{StateDir: dir, Socket: filepath.Join(dir, "s")})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	<-d.Stopping()
	d.Close()
	return 0
}

// spawn starts the daemon as a process and gives what kills it.
func spawn(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childState+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill() // SIGKILL
			cmd.Wait()
		}
	}
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("daemon: %q, %v", line, err)
	}
	return kill
}

// script is a sequence of changes of every kind, each once; files are made in dir.
func script(dir string, n int) []func(context.Context, *client.Client) error {
	var list []func(context.Context, *client.Client) error
	one := func(op state.Op) {
		list = append(list, func(ctx context.Context, c *client.Client) error { _, err := c.Apply(ctx, op); return err })
	}
	for i := 0; len(list) < n; i++ {
		volume, target := fmt.Sprintf("v%d", i), fmt.Sprintf("iqn.2025-01.io.example:t%d", i)
		one(state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: &state.Volume{Name: volume, URL: "file:" + filepath.Join(dir, volume), Size: 1 << 20}})
		one(state.Op{Verb: state.Create, Kind: state.KindTarget, Target: &state.Target{Name: target, ACL: []state.ACLRule{{All: true}}}})
		one(state.Op{Verb: state.Create, Kind: state.KindLUN, Name: target, LUN: &state.LUN{Number: 1, Volume: volume}})
		list = append(list, func(ctx context.Context, c *client.Client) error {
			_, err := c.ResizeVolume(ctx, volume, 2<<20)
			return err
		})
		// A declaration of several objects, which replaces those of the last one.
		list = append(list, func(ctx context.Context, c *client.Client) error {
			cfg := state.Config{Scope: "site"}
			cfg.Accounts = []state.Account{{User: "joe", Secret: fmt.Sprintf("correct-horse-%d", i)}}
			for j := range 4 {
				name := fmt.Sprintf("site%d-%d", i, j)
				cfg.Volumes = append(cfg.Volumes, state.Volume{Name: name, URL: "file:" + filepath.Join(dir, name), Size: 1 << 20})
				cfg.Targets = append(cfg.Targets, state.Target{Name: "iqn.2025-01.io.example:" + name, Accounts: []string{"joe"}, LUNs: []state.LUN{{Number: 0, Volume: name}}})
			}
			_, err := c.Declare(ctx, v1.Declare{Configs: []state.Config{cfg}})
			return err
		})
		if i%3 == 2 {
			list = append(list, func(ctx context.Context, c *client.Client) error {
				_, err := c.Rollback(ctx, v1.Rollback{})
				return err
			})
		}
		one(state.Op{Verb: state.Delete, Kind: state.KindTarget, Name: target})
	}
	return list[:n]
}

// what is the state as the outside sees it, and whether all of it runs.
func what(t *testing.T, c *client.Client) string {
	t.Helper()
	for _, v := range must(c.Volumes(t.Context()))(t) {
		if v.Status.State != v1.Online {
			t.Fatalf("volume %s is %s: %s", v.Name, v.Status.State, v.Status.Error)
		}
		// A store grows before the state says so.
		if v.Status.Size < v.Size {
			t.Fatalf("volume %s has %d bytes, the state says %d", v.Name, v.Status.Size, v.Size)
		}
	}
	return string(declare.Encode(must(c.Export(t.Context(), v1.Export{Secrets: true, NoIdentity: true}))(t)))
}

// kill -9 in the midst of a change leaves the state before it or after it, and
// the change can be made, or made again.
func TestKilled(t *testing.T) {
	const changes = 200
	kills := 8
	switch {
	case longer():
		kills = 60
	case testing.Short():
		kills = 2
	}
	// What each change leads to, told by a daemon that nobody kills.
	data := t.TempDir()
	_, c := start(t, "")
	states := []string{what(t, c)}
	for i, f := range script(data, changes) {
		if err := f(t.Context(), c); err != nil {
			t.Fatalf("change %d: %v", i+1, err)
		}
		states = append(states, what(t, c))
	}

	dir, err := os.MkdirTemp("", "bg") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data2 := t.TempDir()
	same := strings.NewReplacer(data2, data)
	list := script(data2, changes)
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	kill := spawn(t, dir)
	c = client.New(filepath.Join(dir, "s"))
	defer c.Close()
	at, before, after, answered := 0, 0, 0, 0
	took := time.Millisecond // the last change
	for round := range kills {
		last := (round + 1) * changes / (kills + 1)
		for ; at < last; at++ {
			began := time.Now()
			if err := list[at](t.Context(), c); err != nil {
				t.Fatalf("seed %d: change %d: %v", seed, at+1, err)
			}
			took = time.Since(began)
		}
		// The next change, and the end somewhere in it.
		done := make(chan error, 1)
		go func() { done <- list[at](context.WithoutCancel(t.Context()), c) }()
		select {
		case <-done: // too late for this change; then it is there for certain
			kill()
			at++
			last = -1
		case <-time.After(time.Duration(rng.Int64N(int64(took)*3/2 + 1))):
			kill()
			if err := <-done; err == nil {
				at++
				last = -1
			}
		}
		c.Close()
		kill = spawn(t, dir)
		got := same.Replace(what(t, c))
		switch {
		case got == states[at] && last < 0:
			answered++
		case got == states[at]:
			before++
		case last >= 0 && got == states[at+1]:
			after++
			at++
		default:
			t.Fatalf("seed %d: after change %d (answered: %v) the state is neither before nor after:\n%s", seed, at, last < 0, cmp.Diff(states[at], got))
		}
	}
	for ; at < changes; at++ {
		if err := list[at](t.Context(), c); err != nil {
			t.Fatalf("seed %d: change %d: %v", seed, at+1, err)
		}
	}
	if d := cmp.Diff(states[changes], same.Replace(what(t, c))); d != "" {
		t.Errorf("seed %d: in the end:\n%s", seed, d)
	}
	t.Logf("%d times killed: %d times the state was before the change, %d times after it without an answer, %d times the answer was faster", kills, before, after, answered)
}
