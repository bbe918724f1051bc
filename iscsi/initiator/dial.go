package initiator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"blockgate/iscsi"
)

// maxRedirects is how many times in a row a target may say that it moved.
const maxRedirects = 4

// Dial logs in to a target; a login that the target refuses is an
// *iscsi.LoginError. The session has Config.Connections connections, or
// as many as the target allows if that is fewer.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	cfg = cfg.filled()
	if cfg.TargetName == "" {
		return nil, fmt.Errorf("%w: no target name", ErrCommand)
	}
	p := *cfg.Params
	p.MaxConnections = max(p.MaxConnections, cfg.Connections)
	cfg.Params = &p
	s := &Session{cfg: cfg, log: cfg.Logger}
	lead, addr, err := connect(ctx, cfg, 0, 0, s)
	if err != nil {
		return nil, err
	}
	s.start(lead, addr)
	for len(s.conns) < min(cfg.Connections, s.params.MaxConnections) {
		r, addr, err := connect(ctx, cfg, uint16(len(s.conns)), s.tsih, s)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("connection %d: %w", len(s.conns)+1, err)
		}
		if err := s.add(r, addr); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// start makes the session from its leading connection.
func (s *Session) start(r *Raw, addr string) {
	s.params, s.tsih = r.Params, r.TSIH
	s.cmdSN, s.expCmdSN, s.maxCmdSN = r.CmdSN, r.ExpCmdSN, r.MaxCmdSN
	s.add(r, addr)
}

// add takes a connection in full feature phase into the session. It fails if
// the session has ended meanwhile.
func (s *Session) add(r *Raw, addr string) error {
	c := newConn(s, uint16(len(s.conns)), r, addr)
	// What holds for the session was settled by the leading login.
	c.params = s.params
	c.params.HeaderDigest, c.params.DataDigest = r.Params.HeaderDigest, r.Params.DataDigest
	c.params.MaxRecvDataSegment, c.params.MaxXmitDataSegment = r.Params.MaxRecvDataSegment, r.Params.MaxXmitDataSegment
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		c.nc.Close()
		return s.err
	}
	s.conns = append(s.conns, c)
	s.running.Add(1)
	go c.write()
	go c.read()
	return nil
}

// connect opens connection cid and logs it in, following redirections. s, if not
// nil, is the session whose command number it takes.
func connect(ctx context.Context, cfg Config, cid, tsih uint16, s *Session) (*Raw, string, error) {
	if len(cfg.Addrs) == 0 {
		return nil, "", fmt.Errorf("%w: no portal address", ErrCommand)
	}
	addr := cfg.Addrs[int(cid)%len(cfg.Addrs)]
	for range maxRedirects {
		r, to, err := loginAt(ctx, cfg, addr, cid, tsih, s)
		if to == "" {
			return r, addr, err
		}
		cfg.Logger.Info("target moved", "target", cfg.TargetName, "from", addr, "to", to)
		addr = to
	}
	return nil, addr, fmt.Errorf("login to %s: redirected more than %d times", cfg.TargetName, maxRedirects)
}

// loginAt makes one attempt; moved is where the target says it is, if it does.
func loginAt(ctx context.Context, cfg Config, addr string, cid, tsih uint16, s *Session) (r *Raw, moved string, err error) {
	ctx, stop := context.WithTimeoutCause(ctx, cfg.LoginTimeout, errors.New("login took longer than "+cfg.LoginTimeout.String()))
	defer stop()
	nc, err := cfg.Dialer(ctx, addr)
	if err != nil {
		return nil, "", fmt.Errorf("connect to %s: %w", addr, err)
	}
	r = NewRaw(nc)
	if s != nil {
		r.CmdSN = s.loginSN()
	}
	// The end of ctx interrupts reads and writes.
	unhook := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = r.login(cfg, cid, tsih)
	if !unhook() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return r, "", nil
	}
	nc.Close()
	var refused *iscsi.LoginError
	if errors.As(err, &refused) {
		// A portal group tag may follow the address.
		moved, _, _ = strings.Cut(refused.TargetAddress, ",")
	} else if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	what := cfg.TargetName
	if what == "" {
		what = "discovery"
	}
	return nil, moved, fmt.Errorf("login to %s at %s: %w", what, addr, err)
}

// loginSN is the CmdSN that a login request carries.
func (s *Session) loginSN() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == 0 {
		return rand.Uint32()
	}
	return s.cmdSN
}

// DialRaw logs in and gives the connection in full feature phase: for tests that
// begin where the login ends.
func (cfg Config) DialRaw(ctx context.Context) (*Raw, error) {
	cfg = cfg.filled()
	r, _, err := connect(ctx, cfg, 0, 0, nil)
	return r, err
}

// Discover asks a portal for its targets (SendTargets=All in a discovery
// session). Config.TargetName must be empty.
func Discover(ctx context.Context, cfg Config) ([]iscsi.TargetRecord, error) {
	cfg = cfg.filled()
	if cfg.TargetName != "" {
		return nil, fmt.Errorf("%w: a discovery session has no target name", ErrCommand)
	}
	// Some targets refuse digests here; a list of names needs none.
	cfg.HeaderDigests, cfg.DataDigests = []string{"None"}, []string{"None"}
	s := &Session{cfg: cfg, log: cfg.Logger}
	r, addr, err := connect(ctx, cfg, 0, 0, s)
	if err != nil {
		return nil, err
	}
	s.start(r, addr)
	defer s.Close()
	answer, err := s.Text(ctx, []byte("SendTargets=All\x00"))
	if err != nil {
		return nil, fmt.Errorf("discovery at %s: %w", addr, err)
	}
	kvs, err := iscsi.ParseText(answer, maxText)
	if err != nil {
		return nil, fmt.Errorf("discovery at %s: %w", addr, protocolErrorf("%v", err))
	}
	targets, err := iscsi.ParseTargets(kvs)
	if err != nil {
		return nil, fmt.Errorf("discovery at %s: %w", addr, protocolErrorf("%v", err))
	}
	// The targets are known; how the session ends changes nothing.
	if err := s.Logout(ctx); err != nil {
		cfg.Logger.Info("logout after discovery", "addr", addr, "err", err)
	}
	return targets, nil
}

// LocalAddr is the near end of the leading connection.
func (s *Session) LocalAddr() net.Addr { return s.conns[0].nc.LocalAddr() }
