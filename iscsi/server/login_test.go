package server_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
	"blockgate/iscsi/server"
)

func TestLoginThatIsNotFinishedIsClosed(t *testing.T) {
	r := serve(t, options{cfg: func(c *server.Config) { c.LoginTimeout = 50 * time.Millisecond }})
	for i, send := range []func(net.Conn){
		func(net.Conn) {},
		func(nc net.Conn) { nc.Write([]byte{0x43, 0x87}) },
		func(nc net.Conn) {
			var h iscsi.BHS
			h.SetOpcode(iscsi.OpLoginReq, true)
			h.SetDataLen(100)
			nc.Write(h[:])
		},
	} {
		nc := r.raw().Conn()
		send(nc)
		wantClosed(t, nc)
		r.logs.wait(t, i+1, "login failed", "not finished in time")
	}
	if n := r.logs.count(""); n != 3 {
		t.Errorf("%d log lines for three connections", n)
	}
}

func TestWhatIsNotALogin(t *testing.T) {
	r := serve(t, options{})
	long := new(iscsi.BHS)
	long.SetOpcode(iscsi.OpLoginReq, true)
	long.SetDataLen(1<<24 - 1)
	for name, b := range map[string][]byte{
		"HTTP":                   []byte("GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl\r\n\r\n"),
		"a command":              command(1, 1, 0, rw10(0x28, 0, 1), 512, read)[:],
		"zeroes":                 make([]byte, 4096),
		"a login of 16 MiB":      long[:],
		"half a PDU and the end": make([]byte, 7),
	} {
		t.Run(name, func(t *testing.T) {
			before := r.logs.count("login failed")
			nc := r.raw().Conn()
			nc.Write(b)
			nc.(*net.TCPConn).CloseWrite()
			wantClosed(t, nc)
			r.logs.wait(t, before+1, "login failed")
		})
	}
	t.Run("a command in the middle", func(t *testing.T) {
		c := r.raw()
		var h iscsi.BHS
		h.SetOpcode(iscsi.OpLoginReq, true)
		h.SetISID([6]byte{0x80, 1})
		h.SetFlags(iscsi.StageOperational << 2)
		c.Send(&h, nil, iscsi.AppendText(iscsi.AppendText(nil, "InitiatorName", "iqn.test:a"), "TargetName", targetName))
		if p, err := c.Recv(); err != nil || p.Opcode() != iscsi.OpLoginResp || p.StatusClass() != 0 {
			t.Fatalf("%v, %v", p, err)
		}
		c.Send(nop(1, 1), nil, nil)
		p, err := c.Recv()
		if err != nil || p.Opcode() != iscsi.OpLoginResp || p.StatusClass() != 2 || p.StatusDetail() != 0x0b {
			t.Fatalf("want status 020b, got %v, %v", p, err)
		}
		wantClosed(t, c.Conn())
	})
}

// TestRefusalArrives: the answer to a login that is refused is not lost when the
// initiator had sent more than the server reads.
func TestRefusalArrives(t *testing.T) {
	r := serve(t, options{})
	for range 20 {
		c := r.raw()
		var h iscsi.BHS
		h.SetOpcode(iscsi.OpLoginReq, true)
		h.SetISID([6]byte{0x80, 1})
		h.SetFlags(iscsi.StageOperational << 2)
		b := c.Encode(nil, &h, nil, iscsi.AppendText(iscsi.AppendText(nil, "InitiatorName", "iqn.test:a"), "TargetName", "iqn.test:none"))
		if err := c.SendBytes(append(b, make([]byte, 60<<10)...)); err != nil {
			t.Fatal(err)
		}
		p, err := c.Recv()
		if err != nil || p.Opcode() != iscsi.OpLoginResp || p.StatusClass() != 2 {
			t.Fatalf("want a refusal, got %v, %v", p, err)
		}
		if n, err := c.Conn().Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("behind the refusal: %d bytes, %v, want the end", n, err)
		}
		c.Close()
	}
	r.logs.wait(t, 20, "login failed")
}

func TestCHAPAndDiscovery(t *testing.T) {
	in, out := iscsi.Account{User: "joe", Secret: "joe's own secret"}, iscsi.Account{User: "target", Secret: "the target's secret"}
	r := serve(t, options{dir: func(d *directory) {
		d.auth = iscsi.AuthPolicy{Incoming: []iscsi.Account{in}, Outgoing: &out}
	}})
	s := r.dial("chap", func(c *initiator.Config) { c.Auth, c.Mutual = &in, &out })
	checkIO(t, s, 0, 0)
	if info := r.srv.Sessions(); len(info) != 1 || info[0].User != "joe" || info[0].Initiator != "iqn.test:chap" || info[0].Target != targetName {
		t.Errorf("%+v", info)
	}
	cfg := r.config("chap")
	var refused *iscsi.LoginError
	if _, err := initiator.Dial(limited(t), cfg); !errors.As(err, &refused) || refused.Status != iscsi.LoginAuthFailed {
		t.Errorf("without an account: %v", err)
	}
	cfg.Auth, cfg.TargetName = &in, ""
	recs, err := initiator.Discover(limited(t), cfg)
	if err != nil || len(recs) != 2 || recs[0].Name != targetName || recs[1].Portals[0] != r.addr+",1" {
		t.Errorf("%+v, %v", recs, err)
	}
	checkIO(t, s, 0, 0)
}

func TestTargetThatIsClosedDuringTheLogin(t *testing.T) {
	// The directory knows the target when the login asks for it, and not any more
	// when the session is in the table.
	var questions atomic.Int32
	r := serve(t, options{dir: func(d *directory) {
		d.gone = func() bool { return questions.Add(1) > 1 }
	}})
	var refused *iscsi.LoginError
	if _, err := initiator.Dial(limited(t), r.config("a")); !errors.As(err, &refused) || refused.Status != iscsi.LoginNotFound {
		t.Errorf("%v", err)
	}
	if n := len(r.srv.Sessions()); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

func TestConnectionsOverTheLimit(t *testing.T) {
	const limit, flood = 20, 2000
	r := serve(t, options{cfg: func(c *server.Config) { c.MaxConnections = limit }})
	s := r.dial("first", nil)
	checkIO(t, s, 0, 0)
	var open []net.Conn
	defer func() {
		for _, nc := range open {
			nc.Close()
		}
	}()
	for range flood {
		nc, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, nc)
	}
	// All but the newest are closed, the session is not, and who means it gets in.
	for i, nc := range open[:flood-limit] {
		nc.SetDeadline(time.Now().Add(patience))
		if _, err := nc.Read(make([]byte, 1)); err == nil {
			t.Fatal("an answer to nothing")
		} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Fatalf("connection %d is left open", i)
		}
	}
	checkIO(t, s, 0, 0)
	second, err := initiator.Dial(limited(t), r.config("second"))
	if err != nil {
		t.Fatal(err)
	}
	checkIO(t, second, 0, 8)
	second.Close()
	if n := r.logs.count("too many connections"); n == 0 || n > flood/20 {
		t.Errorf("%d log lines for %d connections", n, flood)
	}
	if n := r.logs.count("login failed"); n != 0 {
		t.Errorf("%d more lines", n)
	}
}

func TestUnfinishedLoginsHaveALimitOfTheirOwn(t *testing.T) {
	r := serve(t, options{cfg: func(c *server.Config) { c.MaxLogins = 1 }})
	first := r.raw().Conn()
	second := r.raw()
	wantClosed(t, first)
	if err := second.Login(r.config("second")); err != nil {
		t.Fatalf("the newer of two logins: %v", err)
	}
}

// TestSessionsKeepTheirPlaces: without a login that could give way, the newest
// connection is the one that goes.
func TestSessionsKeepTheirPlaces(t *testing.T) {
	r := serve(t, options{cfg: func(c *server.Config) { c.MaxConnections = 1 }})
	s := r.dial("first", nil)
	wantClosed(t, r.raw().Conn())
	checkIO(t, s, 0, 0)
}

func TestThousandsOfLogins(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	r := serve(t, options{})
	for i := range n {
		c := r.raw()
		cfg := r.config(fmt.Sprint("i", i%7)) // every seventh takes over the session of one before
		cfg.ISID = [6]byte{0x80, 0, 0, 0, 0, 1}
		if err := c.Login(cfg); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			c.Close()
		}
	}
	if l := len(r.srv.Sessions()); l > 7 {
		t.Errorf("%d sessions of 7 initiators", l)
	}
}
