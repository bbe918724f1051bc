package tgt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// wireText is a request of tgt's protocol as tgtadm 1.0.85 sends it.
func wireText(m mode, o op, tid int, lun uint64, text string) []byte {
	b := make([]byte, wireHeader)
	wire.PutUint32(b[atMode:], uint32(m))
	wire.PutUint32(b[atOp:], uint32(o))
	wire.PutUint32(b[atTID:], uint32(int32(tid)))
	wire.PutUint64(b[atLUN:], lun)
	if text != "" {
		text += "\x00"
	}
	wire.PutUint32(b[atLength:], uint32(wireHeader+len(text)))
	return append(b, text...)
}

// talk sends bytes to the control socket and gives all that comes back.
func (w *world) talk(b []byte) (code uint32, text string, err error) {
	w.t.Helper()
	c, err := net.Dial("unix", socketPath(w.getenv, 0))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(b); err != nil {
		return 0, "", err
	}
	all, err := io.ReadAll(c)
	if err != nil || len(all) < wireAnswer {
		return 0, "", fmt.Errorf("%d bytes, %w", len(all), err)
	}
	if n := wire.Uint32(all[4:]); int(n) != len(all) {
		w.t.Errorf("the answer says it has %d bytes and has %d", n, len(all))
	}
	return wire.Uint32(all), strings.TrimSuffix(string(all[wireAnswer:]), "\x00"), nil
}

// TestForeignTgtadm: what tgt's own tgtadm sends is done, and answered with
// tgt's numbers.
func TestForeignTgtadm(t *testing.T) {
	w := newWorld(t)
	file := w.file("a,b.img", 1<<20)
	for _, c := range []struct {
		m    mode
		o    op
		tid  int
		lun  uint64
		text string
		code uint32
	}{
		{modeTarget, opNew, 1, noID, "targetname=iqn.2024-01.com.example:a", 0},
		{modeTarget, opNew, 1, noID, "targetname=iqn.2024-01.com.example:b", 9},
		{modeTarget, opNew, 2, noID, "targetname=a,b", 17},
		{modeTarget, opUpdate, 1, noID, "HeaderDigest=CRC32C,None", 0},
		{modeTarget, opUpdate, 1, noID, "Bogus=1", 17},
		{modeTarget, opDelete, 9, noID, "", 4},
		{modeUnit, opNew, 1, 1, "path=" + file + ",bstype=rdwr,bsopts=a=1,bsoflags=sync,blocksize=512", 0},
		{modeUnit, opNew, 1, 1, "path=" + file, 10},
		{modeUnit, opUpdate, 1, 1, "targetOps vendor_id=X,scsi_sn=Y,", 0},
		{modeUnit, opUpdate, 1, 2, "targetOps vendor_id=X,", 5},
		{modeUnit, opDelete, 1, 7, "", 5},
		{modeTarget, opBind, 1, noID, "initiator-address=10.0.0.0/8,initiator-name=iqn.x:y", 0},
		{modeTarget, opBind, 1, noID, "initiator-address=10.0.0.0/8", 12},
		{modeTarget, opUnbind, 1, noID, "initiator-address=10.0.0.1", 13},
		{modeAccount, opNew, -1, noID, "user=u,4,password=p,user=x", 0},
		{modeAccount, opNew, -1, noID, "user=u,4,password=other", 14},
		{modeAccount, opBind, 1, noID, "user=u,4", 0},
		{modeAccount, opDelete, -1, noID, "", 17}, // tgt's daemon dies of it
		{modePortal, opNew, -1, noID, "portalOps portal=garbage,", 17},
		{modeSystem, opDelete, -1, noID, "", 17},
		{modeSession, opShow, -1, noID, "", 17},
		{mode(8), opShow, -1, noID, "", 17},
		{modeTarget, op(9), 1, noID, "", 17},
	} {
		if code, _, err := w.talk(wireText(c.m, c.o, c.tid, c.lun, c.text)); err != nil || code != c.code {
			t.Errorf("mode %d, op %d, %q: code %d, %v; want %d", c.m, c.o, c.text, code, err, c.code)
		}
	}
	_, shown, err := w.talk(wireText(modeTarget, opShow, -1, noID, ""))
	if err != nil || shown != w.must("--op show --mode target") {
		t.Errorf("the listing differs from that of our own tgtadm, %v:\n%s", err, shown)
	}
	for _, want := range []string{"Backing store path: " + file + "\n", "Backing store flags: sync\n", "SCSI SN: Y\n", "        u,4\n", "        10.0.0.0/8\n        iqn.x:y\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the listing lacks %q:\n%s", want, shown)
		}
	}
}

// TestControlEnds: a daemon that is told to end through tgt's protocol answers
// first, and does not wait for peers that say nothing.
func TestControlEnds(t *testing.T) {
	w := newWorld(t)
	quiet, err := net.Dial("unix", socketPath(w.getenv, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	half, err := net.Dial("unix", socketPath(w.getenv, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	half.Write(wireText(modeTarget, opShow, -1, noID, "")[:50])
	start := time.Now()
	if code, _, err := w.talk(wireText(modeSystem, opDelete, -1, noID, "")); err != nil || code != 0 {
		t.Fatalf("code %d, %v", code, err)
	}
	if rc := w.stop(); rc != 0 || time.Since(start) > 5*time.Second {
		t.Errorf("tgtd ended with %d after %v", rc, time.Since(start))
	}
	// tgt's tgtadm waits until the socket refuses, and for ever if it is gone.
	if _, err := net.Dial("unix", socketPath(w.getenv, 0)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the end the socket says %v", err)
	}
}

// TestControlGarbage: what is no request is not answered, and hurts nobody.
func TestControlGarbage(t *testing.T) {
	w := newWorld(t)
	long, short := wireText(modeTarget, opShow, -1, noID, ""), wireText(modeTarget, opShow, -1, noID, "")
	wire.PutUint32(long[atLength:], 1<<30)
	wire.PutUint32(short[atLength:], 3)
	unended := wireText(modeTarget, opShow, -1, noID, "")
	copy(unended[atDriver:atLength], bytes.Repeat([]byte{'x'}, 64))
	command := func(text string) []byte {
		b := wireText(0, 0, 0, 0, text)
		wire.PutUint32(b, wireCommand)
		return b
	}
	for _, b := range [][]byte{long, short} {
		if code, text, err := w.talk(b); err == nil {
			t.Errorf("answered with %d, %q", code, text)
		}
	}
	tooLong := wireText(modeUnit, opNew, 1, 1, "path="+strings.Repeat("x", wireLimit))
	for _, b := range [][]byte{tooLong, unended, command("{"), command("[]")} {
		if code, _, err := w.talk(b); err != nil || code != 17 {
			t.Errorf("code %d, %v", code, err)
		}
	}
	w.must("--op show --mode sys")
}

// TestControlCrowd: many peers at once, of both protocols, are all served.
func TestControlCrowd(t *testing.T) {
	w := newWorld(t)
	w.must("--op new --mode target --tid 1 -T iqn.2024-01.com.example:a")
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if code, text, err := w.talk(wireText(modeTarget, opShow, -1, noID, "")); err != nil || code != 0 || !strings.HasPrefix(text, "Target 1: ") {
				t.Errorf("code %d, %q, %v", code, text, err)
			}
		})
		wg.Go(func() {
			if out, stderr, rc := w.adm("--op", "show", "--mode", "target"); rc != 0 || !strings.HasPrefix(out, "Target 1: ") {
				t.Errorf("status %d, %q, %q", rc, out, stderr)
			}
		})
	}
	wg.Wait()
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(wireText(modeUnit, opNew, 1, 1, "path=/a,b,bstype=rdwr,bsopts=x=1,bsoflags=sync,blocksize=512"))
	f.Add(wireText(modeTarget, opBind, 1, noID, "initiator-address=10.0.0.1,initiator-name=iqn.x"))
	f.Add(wireText(modeUnit, opUpdate, 1, 1, "targetOps path=/x,online=1,"))
	f.Add(wireText(modeAccount, opNew, -1, noID, "user=a,password=b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < wireHeader {
			return
		}
		r, err := decodeRequest(b)
		if err == nil {
			r.check() // must not panic
		}
	})
}
