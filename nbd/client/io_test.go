package client_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"blockgate/nbd"
	"blockgate/nbd/client"
	"blockgate/nbd/client/nbdfake"
)

// blocky is a server that takes whole blocks of 4 KiB, at most 16 at a time.
var blocky = nbdfake.Options{
	Flags: nbdfake.All, Mode: nbd.Structured, Allocation: true, Size: 1 << 20,
	BlockSize: &nbd.BlockSize{Min: 4096, Preferred: 4096, MaxPayload: 64 << 10},
}

// watchRequests collects what arrives.
func watchRequests(srv *nbdfake.Server) (seen func() []nbd.Request) {
	var mu sync.Mutex
	var l []nbd.Request
	srv.SetFault(func(r nbd.Request) nbdfake.Fault {
		mu.Lock()
		defer mu.Unlock()
		l = append(l, r)
		return nbdfake.Fault{}
	})
	return func() []nbd.Request {
		mu.Lock()
		defer mu.Unlock()
		was := l
		l = nil
		return was
	}
}

// Requests keep to the server's size constraints, whatever is asked for.
func TestSizeConstraints(t *testing.T) {
	srv := start(t, blocky)
	seen := watchRequests(srv)
	c := open(t, quick(srv))
	p := make([]byte, 300<<10)
	for i := range p {
		p[i] = byte(i*7) | 1
	}
	ok(t, c.WriteAt(t.Context(), p, 1000, nbd.FlagFUA))
	got := make([]byte, len(p))
	ok(t, c.ReadAt(t.Context(), got, 1000))
	if !bytes.Equal(got, p) {
		t.Error("content differs")
	}
	ok(t, c.WriteZeroes(t.Context(), 5000, 10000, 0))
	clear(p[4000:14000])
	ok(t, c.ReadAt(t.Context(), got, 1000))
	if !bytes.Equal(got, p) {
		t.Error("content differs after zeroing")
	}
	ok(t, c.Trim(t.Context(), 4097, 8192, 0))
	ok(t, c.Trim(t.Context(), 1, 4094, 0)) // no whole block: nothing to do
	ok(t, c.Cache(t.Context(), 5000, 1))
	counts := map[nbd.Command]int{}
	for _, r := range seen() {
		counts[r.Type]++
		if (r.Offset|r.Length)%4096 != 0 || r.Length == 0 || (r.Type == nbd.CmdRead || r.Type == nbd.CmdWrite) && r.Length > 64<<10 {
			t.Errorf("%v of %d bytes at %d", r.Type, r.Length, r.Offset)
		}
		if r.Type == nbd.CmdTrim && (r.Offset != 8192 || r.Length != 4096) {
			t.Errorf("trimmed %d bytes at %d", r.Length, r.Offset)
		}
	}
	if counts[nbd.CmdTrim] != 1 || counts[nbd.CmdCache] != 1 || counts[nbd.CmdWriteZeroes] != 1 {
		t.Errorf("requests: %v", counts)
	}
}

// Flags arrive as they were given.
func TestFlags(t *testing.T) {
	srv := start(t, modern)
	seen := watchRequests(srv)
	c := open(t, quick(srv))
	ctx := t.Context()
	for _, k := range []struct {
		do   func() error
		want nbd.CommandFlags
	}{
		{func() error { return c.WriteAt(ctx, make([]byte, 10), 0, 0) }, 0},
		{func() error { return c.WriteAt(ctx, make([]byte, 10), 0, nbd.FlagFUA|nbd.FlagDF) }, nbd.FlagFUA},
		{func() error { return c.WriteZeroes(ctx, 0, 10, nbd.FlagNoHole) }, nbd.FlagNoHole},
		{func() error { return c.WriteZeroes(ctx, 0, 10, nbd.FlagFastZero|nbd.FlagFUA) }, nbd.FlagFastZero | nbd.FlagFUA},
		{func() error { return c.Trim(ctx, 0, 10, nbd.FlagFUA) }, nbd.FlagFUA},
	} {
		ok(t, k.do())
		if l := seen(); len(l) != 1 || l[0].Flags != k.want {
			t.Errorf("arrived: %+v, want flags %#x", l, k.want)
		}
	}
	srv.SetFault(func(nbd.Request) nbdfake.Fault { return nbdfake.Fault{Kind: nbdfake.Refuse, Errno: nbd.ENOTSUP} })
	is(t, c.WriteZeroes(ctx, 0, 10, nbd.FlagFastZero), client.ErrNotSupported)
	is(t, c.WriteZeroes(ctx, 0, 10, 0), nbd.ENOTSUP)
}

// What the server does not offer is not asked for.
func TestNotOffered(t *testing.T) {
	srv := start(t, nbdfake.Options{Flags: nbd.HasFlags, Size: 1 << 20})
	seen := watchRequests(srv)
	c := open(t, quick(srv))
	ctx := t.Context()
	is(t, c.WriteAt(ctx, make([]byte, 10), 0, nbd.FlagFUA), client.ErrNotSupported)
	is(t, c.WriteZeroes(ctx, 0, 10, 0), client.ErrNotSupported)
	is(t, c.Trim(ctx, 0, 10, 0), client.ErrNotSupported)
	is(t, c.Cache(ctx, 0, 10), client.ErrNotSupported)
	is(t, c.BlockStatus(ctx, 0, 10, nil), client.ErrNotSupported)
	is(t, c.ReadAt(ctx, make([]byte, 10), 1<<20-9), client.ErrRange)
	ok(t, c.Flush(ctx))
	cfg := quick(srv)
	cfg.ReadOnly = true
	is(t, open(t, cfg).WriteAt(ctx, make([]byte, 10), 0, 0), client.ErrReadOnly)
	if l := seen(); len(l) != 0 {
		t.Errorf("arrived: %+v", l)
	}
}

// Runs cover what was asked for, however the server cuts them.
func TestBlockStatus(t *testing.T) {
	for _, mode := range []nbd.Mode{nbd.Structured, nbd.Extended} {
		o := blocky
		o.Mode = mode
		c := open(t, quick(start(t, o)))
		for off := int64(0); off < 1<<20; off += 40 << 10 {
			ok(t, c.WriteAt(t.Context(), make([]byte, 4096), off, 0))
		}
		at, allocated := int64(100), int64(0)
		ok(t, c.BlockStatus(t.Context(), at, 1<<20-200, func(off, n int64, state uint64) bool {
			if off != at || n <= 0 {
				t.Errorf("run of %d at %d, want one at %d", n, off, at)
			}
			at = off + n
			if state == 0 {
				allocated += n
			}
			return true
		}))
		if at != 1<<20-100 {
			t.Errorf("runs end at %d", at)
		}
		if want := int64(26*4096 - 100); allocated != want {
			t.Errorf("%d bytes allocated, want %d", allocated, want)
		}
	}
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	keys := filepath.Join(dir, "keys")
	k := strings.Repeat("ab", 32)
	ok(t, os.WriteFile(keys, []byte("alice:"+k+"\nbob:"+k+"\n"), 0o600))
	ok(t, os.WriteFile(filepath.Join(dir, "ca-cert.pem"), []byte("nothing"), 0o600))
	for s, want := range map[string]string{
		"nbds://alice@h/?tls-psk-file=" + keys:              "",
		"nbds://h/?tls-psk-file=" + keys:                    "2 users",
		"nbds://carol@h/?tls-psk-file=" + keys:              "carol",
		"nbds://h/?tls-psk-file=" + keys + "x":              "no such file",
		"nbds://h/?tls-certificates=" + dir:                 "no certificate",
		"nbds://h/?tls-certificates=" + dir + "x":           "no such file",
		"nbds+unix:///?socket=/s":                           "tls-hostname",
		"nbds+unix:///?socket=/s&tls-hostname=localhost":    "",
		"nbds+unix:///?socket=/s&tls-psk-file=" + keys + "": "2 users",
	} {
		u, err := client.ParseURI(s)
		ok(t, err)
		cfg, err := u.Config()
		if want == "" && (err != nil || cfg.Secure == nil) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
		if err != nil && strings.Contains(err.Error(), k) {
			t.Errorf("%s: the error has a key in it", s)
		}
	}
}
