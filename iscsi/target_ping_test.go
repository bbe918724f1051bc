package iscsi_test

import (
	"strings"
	"testing"

	"blockgate/iscsi"
)

func TestPings(t *testing.T) {
	l := newRig(t, rigOptions{}).conns[0]
	for range 31 { // one to notice what came before, thirty idle
		l.c.Tick()
	}
	<-l.wake
	l.flush()
	p := l.next()
	if p.Opcode() != iscsi.OpNopIn || p.ITT() != iscsi.ReservedTag || p.TTT() == iscsi.ReservedTag {
		t.Fatalf("% x", p.BHS[:])
	}
	for range 60 {
		l.c.Tick()
	}
	if why := <-l.aborted; !strings.Contains(why, "NOP-In") {
		t.Fatalf("dropped for %q", why)
	}
}
