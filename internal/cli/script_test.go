package cli_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"blockgate/backing/curve/nebdfake"
	"blockgate/backing/sheepdog/sheepfake"
	"blockgate/internal/cli"
)

var update = flag.Bool("update", false, "write the help pages in testdata/help anew")

func TestMain(m *testing.M) {
	run := func(args ...string) {
		os.Exit(cli.Main(context.Background(), cli.Env{
			Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		}))
	}
	testscript.Main(m, map[string]func(){
		"blockgate": func() { run(os.Args[1:]...) },
		// What runs behind "serve … --".
		"blockgate-selftest": func() { run("selftest", os.Getenv("BLOCKGATE_URL")) },
	})
}

// flock is a Sheepdog cluster, or what Curve has, of a script.
type flock struct {
	cluster *sheepfake.Cluster
	node    *sheepfake.Sheep
	nebd    *nebdfake.Server
	service *httptest.Server
}

// TestScripts runs testdata/script. Beside testscript's own commands there are
//
//	status N PROGRAM ARGS…   runs a program and wants the exit status N
//	ready                    waits until a daemon says that it is ready
//	urls FILE                sets $URL0, $URL1… and $PORTAL from what serve printed
//	port FILE                sets $PORT to the first port that a list of portals in JSON has
//	subst FILE…              puts the environment's values for $NAME into files
//	sheep [stop|start]       a Sheepdog cluster of one node in memory; $SHEEP is the
//	                         beginning of its volumes' URLs
//	nebd                     a nebd-server at $NEBD with the volume db of user, and the
//	                         snapshot and clone service at $SNAPSHOTS
//	same WORD FILE FILE      wants the same line with WORD in both files
func TestScripts(t *testing.T) {
	type ready struct{}
	type sheep struct{}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			// A relative path keeps within the length of a socket's name.
			dir, err := os.MkdirTemp("", "bg")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			path := filepath.Join(dir, "n")
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				return err
			}
			env.Defer(func() { c.Close() })
			env.Values[ready{}] = c
			f := new(flock)
			env.Values[sheep{}] = f
			env.Defer(func() {
				if f.cluster != nil {
					f.cluster.Close()
				}
				if f.nebd != nil {
					f.service.Close()
					f.nebd.Stop()
				}
			})
			// Only what runs beside the script is told of it: a READY=1
			// of a command that has ended would be taken for the next one's.
			env.Setenv("NOTIFY", "NOTIFY_SOCKET="+path)
			env.Setenv("BLOCKGATE_SOCKET", filepath.Join(dir, "s"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: status N PROGRAM ARGS…")
				}
				got := 0
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					var exit *exec.ExitError
					if !errors.As(err, &exit) {
						ts.Fatalf("%v", err)
					}
					got = exit.ExitCode()
				}
				if strconv.Itoa(got) != args[0] {
					ts.Fatalf("exit status %d, want %s", got, args[0])
				}
			},
			"ready": func(ts *testscript.TestScript, neg bool, args []string) {
				c := ts.Value(ready{}).(*net.UnixConn)
				// A daemon that did not start says nothing.
				if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
					ts.Fatalf("%v", err)
				}
				for buf := make([]byte, 128); ; {
					n, err := c.Read(buf)
					if err != nil {
						ts.Fatalf("%v", err)
					}
					if string(buf[:n]) == "READY=1" {
						return
					}
				}
			},
			"subst": func(ts *testscript.TestScript, neg bool, args []string) {
				for _, name := range args {
					text := os.Expand(ts.ReadFile(name), ts.Getenv)
					ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o644))
				}
			},
			"same": func(ts *testscript.TestScript, neg bool, args []string) {
				line := regexp.MustCompile(`(?m)^.*` + args[0] + `.*$`)
				a, b := line.FindString(ts.ReadFile(args[1])), line.FindString(ts.ReadFile(args[2]))
				if a == "" || a != b {
					ts.Fatalf("%q and %q", a, b)
				}
			},
			"nebd": func(ts *testscript.TestScript, neg bool, args []string) {
				f := ts.Value(sheep{}).(*flock)
				f.nebd = nebdfake.New(nebdfake.Options{})
				f.nebd.Create("cbd:pool//db_user_", 64<<20, 4096)
				sock := filepath.Join(filepath.Dir(ts.Getenv("BLOCKGATE_SOCKET")), "nebd")
				ts.Check(f.nebd.Start(sock))
				f.service = httptest.NewServer(nebdfake.NewSnapshotService(f.nebd, "pool"))
				ts.Setenv("NEBD", sock)
				ts.Setenv("SNAPSHOTS", f.service.Listener.Addr().String())
			},
			"sheep": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) == 1 && args[0] == "stop" {
					ts.Value(sheep{}).(*flock).node.Stop()
					return
				}
				if len(args) == 1 && args[0] == "start" {
					ts.Check(ts.Value(sheep{}).(*flock).node.Start())
					return
				}
				f := ts.Value(sheep{}).(*flock)
				f.cluster = sheepfake.New(sheepfake.Options{Copies: 1, BlockShift: 22})
				sock := filepath.Join(filepath.Dir(ts.Getenv("BLOCKGATE_SOCKET")), "sheep")
				node, err := f.cluster.Start("unix", sock)
				ts.Check(err)
				f.node = node
				ts.Setenv("SHEEP", "sheepdog:unix:"+sock)
			},
			"port": func(ts *testscript.TestScript, neg bool, args []string) {
				m := regexp.MustCompile(`"bound": "[^"]*:(\d+)"`).FindStringSubmatch(ts.ReadFile(args[0]))
				if m == nil {
					ts.Fatalf("no portal is bound")
				}
				ts.Setenv("PORT", m[1])
			},
			"urls": func(ts *testscript.TestScript, neg bool, args []string) {
				out := ts.ReadFile(args[0])
				for i, m := range regexp.MustCompile(`(?m)^url +(\S+)$`).FindAllStringSubmatch(out, -1) {
					ts.Setenv("URL"+strconv.Itoa(i), m[1])
				}
				if m := regexp.MustCompile(`(?m)^portal +iscsi://(\S+)`).FindStringSubmatch(out); m != nil {
					ts.Setenv("PORTAL", m[1])
				}
			},
		},
	})
}

// TestHelp keeps the help pages as they were last looked at.
func TestHelp(t *testing.T) {
	pages := [][]string{{}}
	for _, p := range strings.Split("serve,daemon,volume,volume create,volume list,volume show,volume set,volume resize,volume clone,volume retry,volume delete,"+
		"snapshot,snapshot create,snapshot list,snapshot delete,"+
		"target,target create,target list,target show,target set,target delete,target group,target group list,target group set,lun,lun add,lun remove,lun list,portal,portal add,portal remove,portal list,"+
		"initiator,initiator allow,initiator deny,initiator list,account,account create,account list,account delete,"+
		"nbd,nbd listen,nbd unlisten,nbd export,nbd unexport,nbd allow,nbd deny,nbd list,nbd clients,nbd close,"+
		"apply,diff,export,import,history,rollback,"+
		"session,session list,session close,engine,engine list,status,selftest,bench,ls,version,completion", ",") {
		pages = append(pages, strings.Fields(p))
	}
	for _, page := range pages {
		name := strings.Join(append([]string{"blockgate"}, page...), "-")
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			status := cli.Main(t.Context(), cli.Env{
				Args: append(page, "--help"), Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" },
			})
			if status != 0 || errs.Len() > 0 {
				t.Fatalf("status %d, stderr %q", status, errs.String())
			}
			// Three examples, each a command that exists.
			_, rest, _ := strings.Cut(out.String(), "Examples:\n")
			ex, _, _ := strings.Cut(rest, "\n\n")
			if n := strings.Count(ex, "blockgate "); n < 3 {
				t.Errorf("%d examples", n)
			}
			got := regexp.MustCompile(`\(default \$[^)]*\)`).ReplaceAllString(out.String(), "(default DEPENDS)")
			file := filepath.Join("testdata/help", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("help has changed (go test -update, and review):\n%s", got)
			}
		})
	}
}
