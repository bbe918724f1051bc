package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"blockgate/backing"
	"blockgate/backing/engines"
	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/daemon"
	"blockgate/internal/state"
	nbdclient "blockgate/nbd/client"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	size, chap, stateDir, name string
	memory                     memoryFlags
	stall, partialBlock        string
	listen, nbd                []string
	tls                        tlsFlags
	readOnly, direct, verbose  bool
	removable, cd              bool
	blockSize                  int
	blockSizeGiven             bool
	command                    []string // after "--"
}

func (a *app) serveCommand() *cobra.Command {
	o := serveOptions{}
	c := &cobra.Command{
		Use: "serve STORE... [-- COMMAND...]", Short: "Export stores as disks in one line",
		Long: `Export stores as the LUNs 0, 1 and so on of one target, until interrupted. A
STORE is a path, or an engine and its place ("ram:1G", "null:1T"). With --size a
file that does not exist is made, sparse; what exists is never cut or
overwritten. No root, no configuration and no kernel module is needed.

It listens on this machine only, on port 3260, unless --listen says otherwise.
With --nbd the disks are NBD exports too, by the names of their volumes, and
without --listen they are only that.
Nothing is kept but the data in the stores, unless --state names a directory:
then the same disks have the same identity the next time.

With a COMMAND after "--" the disks live as long as it runs. It finds their URLs
in BLOCKGATE_URL (the first), BLOCKGATE_URL_0, BLOCKGATE_URL_1 and so on, with
--nbd in BLOCKGATE_NBD_URL and so on; its exit status becomes that of serve.`,
		Example: examples("blockgate serve disk.img --size 10G",
			"blockgate serve a.img b.img --listen 0.0.0.0 --chap joe",
			"blockgate serve disk.img --nbd 127.0.0.1",
			"blockgate serve ram:1G -- sh -c 'qemu-img info $BLOCKGATE_URL'"),
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if n := cmd.ArgsLenAtDash(); n >= 0 {
			if n == len(args) {
				return usage(cmd, "there is no command after --")
			}
			args = args[:n]
		}
		if len(args) == 0 && o.stateDir == "" {
			return usage(cmd, "what shall be served? Name a file, a block device or an engine")
		}
		return nil
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.size, "size", "", "create files, sheepdog volumes and RBD images that do not exist with this size: 512M, 10G, 2T")
	f.StringArrayVar(&o.listen, "listen", nil, "address to listen on (default 127.0.0.1:3260; port 0 takes a free one; repeat for more)")
	f.StringArrayVar(&o.nbd, "nbd", nil, "serve NBD on this address (port 10809 unless it says) or unix:/path; repeat for more")
	f.StringVar(&o.chap, "chap", "", "ask for CHAP: USER:SECRET, or USER to be asked or to take $BLOCKGATE_CHAP_SECRET")
	f.BoolVar(&o.readOnly, "read-only", false, "open the stores read-only; initiators find them write-protected")
	f.BoolVar(&o.direct, "direct", false, "bypass the page cache")
	f.BoolVar(&o.removable, "removable", false, "disks that initiators may eject")
	f.BoolVar(&o.cd, "cd", false, "CD or DVD drives with ISO images in them")
	f.IntVar(&o.blockSize, "block-size", 512, "logical block size in bytes, 512 or 4096")
	stallFlag(c, &o.stall)
	partialBlockFlag(c, &o.partialBlock)
	f.StringVar(&o.name, "name", "", "the target's iSCSI name (default made of this machine's name and the first store's)")
	o.tls.add(c)
	o.memory.add(f)
	f.StringVar(&o.stateDir, "state", "", "keep the setup in this directory")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log what happens")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		o.blockSizeGiven = f.Changed("block-size")
		if n := cmd.ArgsLenAtDash(); n >= 0 {
			args, o.command = args[:n], args[n:]
		}
		if f.Changed("chap") && strings.TrimSpace(o.chap) == "" {
			// As a script's empty variable has it: not a wish for an open target.
			return usage(cmd, "--chap has no user")
		}
		var c daemon.Config
		if err := o.memory.config(cmd, &c); err != nil {
			return err
		}
		return a.serve(cmd.Context(), args, o, c)
	}
	return c
}

// memoryFlags say how much memory a daemon may take.
type memoryFlags struct{ payload, mapped string }

func (m *memoryFlags) add(f *pflag.FlagSet) {
	f.StringVar(&m.payload, "memory", "", "how much payload of all clients may be in memory (default 1G, at least 16M); RAM volumes do not count")
	f.StringVar(&m.mapped, "mapped", "", "how much of files in the page cache may be mapped to send long reads from there (default 256M, 0 for nothing)")
}

// config puts them into the configuration of a daemon.
func (m *memoryFlags) config(cmd *cobra.Command, c *daemon.Config) error {
	if m.payload != "" {
		n, err := backing.ParseSize(m.payload)
		if err == nil && n < 16<<20 {
			err = fmt.Errorf("%s is not enough: 16M at least", m.payload)
		}
		if err != nil {
			return usage(cmd, "--memory: %v", err)
		}
		c.Memory = n
	}
	if m.mapped != "" {
		n, err := backing.ParseSize(m.mapped)
		if err != nil {
			return usage(cmd, "--mapped: %v", err)
		}
		c.Engines = engines.New(engines.Options{Mapped: n})
	}
	return nil
}

// serve runs a daemon of its own, with what the command line says; c has the
// memory it may take.
func (a *app) serve(ctx context.Context, stores []string, o serveOptions, c daemon.Config) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	s, err := a.newSetup(stores, o)
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	c.StateDir, c.Socket, c.Portals, c.NBDPortals = o.stateDir, a.socket, s.portals, s.nbdPortals
	c.Logger, c.Version, c.Drain, c.DelayReady = a.logger(level), Version(), 5*time.Second, true
	d, err := daemon.Start(ctx, c)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := s.apply(ctx, d); err != nil {
		return err
	}
	d.Admit()
	a.warnings(s.warnings)
	out := a.Stdout
	if len(o.command) > 0 {
		out = a.Stderr // stdout is the command's
	}
	if err := a.announce(ctx, out, d, s); err != nil {
		return err
	}
	if len(o.command) > 0 {
		status, err := a.captive(o.command, s.environment(d), signals)
		if err != nil {
			return err
		}
		a.status = status
		return d.Close()
	}
	d.Ready()
	return d.Run(ctx, signals)
}

func (a *app) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: level}))
}

// setup is what serve is to export.
type setup struct {
	opts    serveOptions
	volumes []state.Volume
	created []bool // the file was not there before
	target  string
	portals []state.Portal
	account *state.Account

	nbdPortals []state.NBDPortal
	served     []v1.Target

	warnings []string
}

func (a *app) newSetup(stores []string, o serveOptions) (*setup, error) {
	s := &setup{opts: o, target: o.name}
	size, err := parseSize(o.size)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	var own []string // stores that --size says nothing of
	for _, spec := range stores {
		url, err := storeURL(spec)
		if err != nil {
			return nil, err
		}
		v := state.Volume{Name: unique(names, volumeName(url)), URL: url, ReadOnly: o.readOnly, Direct: o.direct, BlockSize: o.blockSize, Stall: o.stall, PartialBlock: o.partialBlock}
		v.Unit.Removable = o.removable
		if o.cd {
			asDisc(&v)
		}
		fresh := false
		switch engineOf(url) {
		case "file":
			v.Size = size
			_, err := os.Stat(strings.TrimPrefix(url, "file:"))
			fresh = os.IsNotExist(err)
			if fresh && v.ReadOnly {
				v.Size = 0
			}
		case "ram", "null": // their names have their sizes
			own = append(own, spec)
		default:
			if !v.ReadOnly {
				v.Size = size // the engine makes the store, or says that it cannot
			}
		}
		s.volumes, s.created = append(s.volumes, v), append(s.created, fresh)
	}
	if size != 0 && len(own) > 0 && len(own) == len(stores) {
		return nil, &state.Error{Class: state.Usage, Code: "usage", Object: fmt.Sprintf("store %q", own[0]),
			Reason: fmt.Sprintf("has its size in its name, and --size %s is for files", o.size), Hint: "leave --size away, or write " + engineOf(s.volumes[0].URL) + ":" + o.size}
	}
	if s.target == "" && len(s.volumes) > 0 {
		s.target = defaultTarget(s.volumes[0].Name)
	}
	if s.target != "" {
		if err := state.CheckISCSIName(s.target); err != nil {
			return nil, err
		}
	}
	if err := s.addNBD(o); err != nil {
		return nil, err
	}
	if len(o.listen) == 0 && len(o.nbd) == 0 {
		o.listen = []string{"127.0.0.1:3260"}
	}
	for _, l := range o.listen {
		addr, err := state.ParsePortal(l)
		if err != nil {
			e := state.ErrorOf(err)
			e.Object = fmt.Sprintf("--listen %q", l)
			return nil, e
		}
		s.portals = append(s.portals, state.Portal{Address: addr, Group: 1})
	}
	if o.chap != "" {
		user, secret, given := strings.Cut(o.chap, ":")
		switch {
		case user == "" || given && secret == "":
			return nil, &state.Error{Class: state.Usage, Code: "usage", Object: "--chap", Reason: "wants USER or USER:SECRET"}
		case !given:
			if secret, err = a.secret(user, false); err != nil {
				return nil, err
			}
		case len(secret) < 12:
			a.note("warning: the CHAP secret has %d characters; initiators want 12 or more, and shorter ones can be guessed", len(secret))
		}
		s.account = &state.Account{User: user, Secret: secret}
		if len(o.command) > 0 && strings.ContainsAny(user+secret, "%@/?") {
			return nil, &state.Error{Class: state.Usage, Code: "usage", Object: "--chap", Reason: "an iSCSI URL cannot carry a user or secret with one of % @ / ?",
				Hint: "use other characters for a command after --"}
		}
	}
	return s, nil
}

// volumeName makes a name of a store's place.
func volumeName(url string) string {
	name := engineOf(url)
	switch {
	case name == "file":
		name = strings.TrimSuffix(filepath.Base(strings.TrimPrefix(url, "file:")), filepath.Ext(url))
	case strings.HasPrefix(name, "nbd"):
		name = "nbd"
		if u, err := nbdclient.ParseURI(url); err == nil && strings.Trim(cleaned(u.Export, ""), "-") != "" {
			name = u.Export
		}
	}
	name = strings.TrimLeft(cleaned(name, "-._"), "-._")
	if name == "" {
		return "disk"
	}
	return name[:min(len(name), 64)]
}

// cleaned keeps ASCII letters, digits and some more, in lower case.
func cleaned(s, more string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', strings.ContainsRune(more, r):
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
}

func unique(taken map[string]bool, name string) string {
	n := name
	for i := 2; taken[n]; i++ {
		n = fmt.Sprintf("%s-%d", name, i)
	}
	taken[n] = true
	return n
}

func defaultTarget(volume string) string {
	host, _ := os.Hostname()
	host, _, _ = strings.Cut(host, ".")
	if host = strings.Trim(cleaned(host, "-"), "-"); host == "" {
		host = "localhost"
	}
	return "iqn.2025-01.io.blockgate:" + host + ":" + strings.ReplaceAll(volume, "_", "-")
}

// apply makes the daemon's state what the command line says, in one transaction.
// What a state directory has already keeps its identity.
func (s *setup) apply(ctx context.Context, d *daemon.Daemon) error {
	known, names := map[string]v1.Volume{}, map[string]bool{}
	for _, v := range d.Volumes(ctx) {
		known[v.URL], names[v.Name] = v, true
	}
	var ops []state.Op
	var luns []state.LUN
	for i := range s.volumes {
		v := &s.volumes[i]
		luns = append(luns, state.LUN{Number: uint64(i), Volume: v.Name})
		old, ok := known[v.URL]
		if !ok {
			v.Name = unique(names, v.Name)
			luns[i].Volume = v.Name
			ops = append(ops, state.Op{Verb: state.Create, Kind: state.KindVolume, Volume: v})
			continue
		}
		luns[i].Volume = old.Name
		if old.Status.State == v1.Failed {
			if _, err := d.RetryVolume(ctx, old.Name); err != nil {
				return err
			}
			old, _ = d.Volume(ctx, old.Name)
		}
		if v.Size != 0 && v.Size != old.Status.Size {
			return &state.Error{Class: state.Conflict, Code: state.CodeOpenFailed, Object: fmt.Sprintf("volume %q", old.Name),
				Reason: fmt.Sprintf("exists with %d bytes, not the %d asked for", old.Status.Size, v.Size), Hint: "leave --size away to take it as it is"}
		}
		next := old.Volume
		next.ReadOnly = v.ReadOnly || old.Unit.Type == "cd"
		next.Unit.Removable = v.Unit.Removable
		if v.Stall != "" {
			next.Stall = v.Stall
		}
		if v.PartialBlock != "" {
			next.PartialBlock = v.PartialBlock
		}
		switch {
		case v.Unit.Type == "cd":
			next.Unit.Type, next.BlockSize = "cd", 2048
		case s.opts.blockSizeGiven:
			next.BlockSize = v.BlockSize
		}
		if next.ReadOnly != old.ReadOnly || next.BlockSize != old.BlockSize || next.Unit.Removable != old.Unit.Removable || next.Stall != old.Stall || next.PartialBlock != old.PartialBlock || next.Unit.Type != old.Unit.Type {
			ops = append(ops, state.Op{Verb: state.Update, Kind: state.KindVolume, Volume: &next})
		}
		v.Name = old.Name
	}
	if s.account != nil {
		ops = append(ops, state.Op{Verb: state.Put, Kind: state.KindAccount, Account: s.account})
	}
	if len(s.volumes) > 0 {
		t := state.Target{Name: s.target, ACL: []state.ACLRule{{All: true}}}
		if old, err := d.Target(ctx, s.target); err == nil {
			t = old.Target
		}
		t.LUNs = luns
		if s.account != nil {
			t.Accounts = []string{s.account.User}
		}
		ops = append(ops, state.Op{Verb: state.Put, Kind: state.KindTarget, Target: &t})
	}
	ops = append(ops, s.exports(d)...)
	if len(ops) > 0 {
		done, err := d.Apply(ctx, ops)
		if err != nil {
			return err
		}
		s.warnings = done.Warnings
	}
	for _, v := range d.Volumes(ctx) {
		if v.Status.State == v1.Failed {
			s.warnings = append(s.warnings, fmt.Sprintf("volume %q is not ready: %s%s", v.Name, v.Status.Error, attempts(&v.Status)))
		}
	}
	for _, t := range d.Targets(ctx) {
		if s.target == "" || t.Name == s.target {
			s.served = append(s.served, t)
		}
	}
	if len(s.served) == 0 {
		return &state.Error{Class: state.Usage, Code: "usage", Object: "state " + s.opts.stateDir, Reason: "has no target yet",
			Hint: "name what shall be served: blockgate serve disk.img --size 10G --state " + s.opts.stateDir}
	}
	return nil
}

// announce prints what is served and how to use it.
func (a *app) announce(ctx context.Context, w io.Writer, d *daemon.Daemon, s *setup) error {
	var b strings.Builder
	for i, v := range s.volumes {
		info, err := d.Volume(ctx, v.Name)
		if err != nil {
			return err
		}
		var how []string
		if s.created[i] {
			how = append(how, "created, sparse")
		}
		if info.Status.ReadOnly {
			how = append(how, "read-only")
		}
		if engineOf(v.URL) == "ram" {
			how = append(how, "gone when this ends")
		}
		extra := ""
		if len(how) > 0 {
			extra = " (" + strings.Join(how, ", ") + ")"
		}
		fmt.Fprintf(&b, "volume   %-8s %s %s%s\n", v.Name, v.URL, formatSize(info.Status.Size), extra)
	}
	for _, t := range s.served {
		if len(d.Bound()) == 0 {
			break // only NBD is served, and no initiator can come
		}
		var luns []string
		for _, l := range t.LUNs {
			luns = append(luns, fmt.Sprintf("lun %d = %s", l.Number, l.Volume))
		}
		fmt.Fprintf(&b, "target   %s  %s\n", t.Name, strings.Join(luns, ", "))
	}
	open := false
	for _, p := range d.Bound() {
		reach := "loopback only; --listen 0.0.0.0 --chap USER for the network"
		if !p.Bound.Addr().IsLoopback() {
			reach, open = "reachable from the network", true
		}
		fmt.Fprintf(&b, "portal   iscsi://%s  (%s)\n", p.Bound, reach)
	}
	s.announceNBDPortals(&b, d)
	s.announceURLs(&b, d)
	if a.socket != "" {
		fmt.Fprintf(&b, "admin    unix:%s\n", a.socket)
	}
	s.announceUse(&b, d)
	if len(s.opts.command) == 0 {
		keep := "; add --state DIR to keep this setup"
		if s.opts.stateDir != "" {
			keep = "; the setup is kept in " + s.opts.stateDir
		}
		fmt.Fprintf(&b, "Ctrl-C stops%s.\n", keep)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	a.warnOpenNBD(d)
	for _, t := range s.served {
		if open && len(t.Accounts) == 0 {
			for _, r := range t.ACL {
				if r.All {
					a.note("warning: everyone who reaches the portal can read and write %s; ask for a secret with --chap USER", t.Name)
				}
			}
		}
	}
	return nil
}

func (a *app) daemonCommand() *cobra.Command {
	var stateDir string
	var memory memoryFlags
	var listen, nbd []string
	var verbose bool
	c := &cobra.Command{
		Use: "daemon", Short: "Run the daemon",
		Long: `Run the daemon in the foreground: it serves what its state says and does what
the other commands ask of it. Everything they change is kept at once. The first
SIGTERM or SIGINT asks initiators to log out and waits for them; the second ends
it at once.`,
		Args: args(0, 0),
		Example: examples("blockgate daemon", "blockgate daemon --state /var/lib/blockgate --socket /run/blockgate/blockgate.sock",
			"blockgate daemon --state ./state --socket ./sock --listen 127.0.0.1:3260"),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&stateDir, "state", "", "directory of the state (default $BLOCKGATE_STATE, or "+shown(a.defaultState())+")")
	f.StringArrayVar(&listen, "listen", nil, "listen here too, for this start only (see: blockgate portal add)")
	f.StringArrayVar(&nbd, "nbd", nil, "serve NBD here too, for this start only (see: blockgate nbd listen)")
	memory.add(f)
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(signals)
		if stateDir == "" {
			if stateDir = a.Getenv("BLOCKGATE_STATE"); stateDir == "" {
				stateDir = a.defaultState()
			}
		}
		var portals []state.Portal
		for _, l := range listen {
			addr, err := state.ParsePortal(l)
			if err != nil {
				return err
			}
			portals = append(portals, state.Portal{Address: addr, Group: 1})
		}
		var nbdPortals []state.NBDPortal
		for _, l := range nbd {
			p, err := new(tlsFlags).portal(l)
			if err != nil {
				return err
			}
			nbdPortals = append(nbdPortals, p)
		}
		level := slog.LevelInfo
		if verbose {
			level = slog.LevelDebug
		}
		var cfg daemon.Config
		if err := memory.config(cmd, &cfg); err != nil {
			return err
		}
		c := a.client()
		cfg.StateDir, cfg.Socket, cfg.Portals, cfg.NBDPortals = stateDir, c.Socket(), portals, nbdPortals
		cfg.Logger, cfg.Version = a.logger(level), Version()
		d, err := daemon.Start(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		a.hint(d, c)
		return d.Run(cmd.Context(), signals)
	}
	return c
}

// hint tells the next step to whoever starts a daemon for the first time.
func (a *app) hint(d *daemon.Daemon, c *client.Client) {
	if len(d.Portals(context.Background())) == 0 && len(d.NBDPortals(context.Background())) == 0 {
		a.note("note: no portal yet, so nobody can connect; next: blockgate portal add 127.0.0.1 --socket %s", c.Socket())
	}
}
