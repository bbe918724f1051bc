package outside

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// export is a running `blockgate serve`.
type export struct {
	*process
	url  string // of the first LUN
	urls []string
}

var urlPattern = regexp.MustCompile(`iscsi://[^\s"']+/[^\s"'/]+/[0-9]+`)

// serve runs `blockgate serve ARGS…` on a free port and waits until it can be
// used.
func serve(t *testing.T, args ...string) *export {
	t.Helper()
	needsTools(t)
	return serveEnv(t, nil, args...)
}

func serveEnv(t *testing.T, env []string, args ...string) *export {
	t.Helper()
	args = append([]string{"serve", "--listen", "127.0.0.1:0"}, args...)
	p := spawn(t, env, blockgate, args...)
	e := &export{process: p}
	e.url = p.expect(t, &p.out, "URL", 20*time.Second, func(s string) string { return urlPattern.FindString(s) })
	e.connectable(t)
	seen := map[string]bool{}
	for _, u := range urlPattern.FindAllString(p.out.String(), -1) {
		if !seen[u] {
			seen[u] = true
			e.urls = append(e.urls, u)
		}
	}
	return e
}

// connectable waits until the portal accepts, so that a tool that spins on a
// refused port is never started too early.
func (e *export) connectable(t *testing.T) {
	t.Helper()
	eventually(t, 10*time.Second, "a connection to "+e.addr(), func() bool {
		c, err := net.Dial("tcp", e.addr())
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// addr is the portal, iqn the target's name, port the portal's port.
func (e *export) addr() string {
	s, _, _ := strings.Cut(strings.TrimPrefix(e.url, "iscsi://"), "/")
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		s = s[i+1:]
	}
	return s
}

func (e *export) iqn() string {
	f := strings.Split(e.url, "/")
	return f[len(f)-2]
}

func (e *export) port() string {
	_, port, _ := net.SplitHostPort(e.addr())
	return port
}

func (e *export) signal(sig syscall.Signal) { syscall.Kill(e.pid(), sig) }

// rss is the resident memory of a process in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no VmRSS of process %d", pid)
	return 0
}

// freePort is a port of 127.0.0.1 that was free a moment ago, for programs that
// cannot tell which one they chose.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// sparse makes a file of a size without content.
func sparse(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// figure prints a measurement, where run.sh finds it.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("FIGURE "+format, args...)
}
