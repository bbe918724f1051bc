package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"blockgate/backing"
	"blockgate/internal/api/client"
	"blockgate/internal/state"
	"blockgate/internal/tools"
)

func (a *app) portalCommand() *cobra.Command {
	add, remove := a.portalAdd(), &cobra.Command{
		Use: "remove ADDRESS", Short: "Stop listening on an address; sessions go on", Args: args(1, 1),
		Example: examples("blockgate portal remove 10.0.0.1:3260", "blockgate portal remove [2001:db8::1]:3260", "blockgate portal list"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.DeletePortal(ctx, args[0])
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("portal %s removed", args[0])
		}),
	}
	list := &cobra.Command{
		Use: "list", Short: "List the portals", Args: args(0, 0),
		Example: examples("blockgate portal list", "blockgate portal list -o json", "blockgate portal list -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Portals(ctx)
			if err != nil {
				return err
			}
			return a.answer(l, func() *table {
				t := &table{head: []string{"ADDRESS", "GROUP", "STATE", "ADVERTISED", "KEPT"}}
				for _, p := range l {
					st, kept, addr := p.State, "yes", p.Address
					if p.Error != "" {
						st += ": " + p.Error
					}
					if p.Runtime {
						kept = "no"
					}
					if p.Bound != "" {
						addr = p.Bound
					}
					t.add(addr, fmt.Sprint(p.Group), st, p.Advertise, kept)
				}
				return t
			})
		}),
	}
	return noun(&cobra.Command{
		Use: "portal", Short: "Portals: addresses that initiators connect to",
		Long: `A portal is an address and port to listen on. Portals with one group tag are
ways to the same target port; a target may be restricted to groups.`,
		Example: examples("blockgate portal add 127.0.0.1", "blockgate portal add 10.0.0.1:3260 --group 2", "blockgate portal list"),
	}, add, remove, list)
}

func (a *app) portalAdd() *cobra.Command {
	p := state.Portal{}
	c := &cobra.Command{
		Use: "add ADDRESS", Short: "Listen on an address, now and after every start",
		Long: `Listen on an IP address, with port 3260 unless it names another. 0.0.0.0 and
[::] stand for all addresses of their kind.`,
		Args:    args(1, 1),
		Example: examples("blockgate portal add 127.0.0.1", "blockgate portal add [2001:db8::1]:3260", "blockgate portal add 10.0.0.1 --advertise san.example:3260"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			var err error
			if p.Address, err = state.ParsePortal(args[0]); err != nil {
				return err
			}
			r, err := c.CreatePortal(ctx, p)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("listening on %s", p.Address)
		}),
	}
	f := c.Flags()
	f.SortFlags = false
	f.IntVar(&p.Group, "group", 1, "target portal group tag")
	f.StringVar(&p.Advertise, "advertise", "", "HOST:PORT to name in discovery answers, for portals behind NAT")
	f.StringVar(&p.Congestion, "congestion", "", "TCP congestion control of its connections; - leaves the system's (default cubic)")
	return c
}

func (a *app) sessionCommand() *cobra.Command {
	var target string
	list := &cobra.Command{
		Use: "list", Short: "List the sessions", Args: args(0, 0),
		Example: examples("blockgate session list", "blockgate session list --target iqn.2025-01.io.example:db", "blockgate session list -o json"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Sessions(ctx, target)
			if err != nil {
				return err
			}
			if a.output == "table" && target == "" {
				if n, err := c.NBDClients(ctx); err == nil && len(n) > 0 {
					defer a.note("over NBD: %d more, see blockgate nbd clients", len(n))
				}
			}
			return a.answer(l, func() *table {
				t := &table{head: []string{"ID", "INITIATOR", "FROM", "TARGET", "SINCE", "COMMANDS", "READ", "WRITTEN"}}
				for _, s := range l {
					from, cmds, rx, tx := "", uint64(0), uint64(0), uint64(0)
					for i, k := range s.Conns {
						if i == 0 {
							from = k.Remote
						}
						cmds, rx, tx = cmds+k.Commands, rx+k.RxBytes, tx+k.TxBytes
					}
					if n := len(s.Conns); n > 1 {
						from += fmt.Sprintf(" (%d connections)", n)
					}
					name := s.Target
					if s.Discovery {
						name = "discovery"
					}
					t.add(fmt.Sprint(s.ID), s.Initiator, from, name, s.Started.Format(time.DateTime), fmt.Sprint(cmds), formatSize(int64(tx)), formatSize(int64(rx)))
				}
				return t
			})
		}),
	}
	list.Flags().StringVar(&target, "target", "", "only those of this target")
	closing := &cobra.Command{
		Use: "close ID [CONNECTION]", Short: "Close a session, or one of its connections", Args: args(1, 2),
		Long:    `Close a session. An initiator logs in again unless a rule or CHAP keeps it out.`,
		Example: examples("blockgate session close 12", "blockgate session close 12 0", "blockgate session list"),
	}
	closing.RunE = a.call(func(ctx context.Context, c *client.Client, args []string) error {
		id, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return usage(closing, "%q is not a session's number", args[0])
		}
		if len(args) == 2 {
			cid, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil {
				return usage(closing, "%q is not a connection's number", args[1])
			}
			_, err = c.CloseConnection(ctx, id, uint16(cid))
			return err
		}
		if _, err := c.CloseSession(ctx, id); err != nil {
			return err
		}
		return a.done("session %d closed", id)
	})
	return noun(&cobra.Command{
		Use: "session", Short: "Sessions: who is logged in",
		Example: examples("blockgate session list", "blockgate session list -o json", "blockgate session close 12"),
	}, list, closing)
}

func (a *app) engineCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "engine", Short: "Engines: kinds of stores",
		Example: examples("blockgate engine list", "blockgate engine list -o json", "blockgate volume create scratch ram:1G"),
	}, &cobra.Command{
		Use: "list", Short: "List the kinds of stores that the daemon has, and the layers for them", Args: args(0, 0),
		Example: examples("blockgate engine list", "blockgate engine list -o json", "blockgate engine list -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Engines(ctx)
			if err != nil {
				return err
			}
			return a.answer(l, func() *table {
				t := &table{head: []string{"NAME", "USE"}}
				for _, e := range l {
					use := "volume create NAME " + place(e.Scheme)
					if e.Layer {
						use = "volume create NAME STORE --layer " + e.Scheme
					}
					t.add(e.Scheme, use)
				}
				return t
			})
		}),
	})
}

// place is how a store of an engine is written.
func place(scheme string) string {
	switch scheme {
	case "file":
		return "/PATH"
	case "ram", "null":
		return scheme + ":SIZE"
	case "nbd", "nbds":
		return scheme + "://HOST/EXPORT"
	case "nbd+unix", "nbds+unix":
		return "'" + scheme + ":///EXPORT?socket=PATH'"
	case "gluster":
		return "gluster:VOLUME@HOST/PATH"
	case "rbd":
		return "rbd:POOL/IMAGE"
	case "sheepdog":
		return "sheepdog:HOST:PORT:VDI"
	case "curve":
		return "curve:cbd:POOL//PATH_USER_"
	}
	return scheme + ":PLACE"
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the daemon is", Args: args(0, 0),
		Long: `Show how the daemon is. The exit status is 6 when something has failed, or a
volume's store is stalled or failing.`,
		Example: examples("blockgate status", "blockgate status -o json", "blockgate status -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			s, err := c.System(ctx)
			if err != nil {
				return err
			}
			if s.Failed > 0 || s.Unwell > 0 {
				a.status = int(state.Refused)
			}
			return a.answer(s, func() *table {
				t := &table{head: []string{"VOLUMES", "TARGETS", "SESSIONS", "FAILED", "UNWELL", "PID", "SINCE", "STATE", "VERSION"}}
				t.add(fmt.Sprint(s.Volumes), fmt.Sprint(s.Targets), fmt.Sprint(s.Sessions), fmt.Sprint(s.Failed), fmt.Sprint(s.Unwell), fmt.Sprint(s.PID),
					s.Started.Format(time.DateTime), s.StateDir, s.Version)
				return t
			})
		}),
	}
}

// toolError gives the tools' errors a class.
func toolError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tools.ErrUsage):
		return &state.Error{Class: state.Usage, Code: "usage", Reason: err.Error(), Err: err}
	case errors.Is(err, tools.ErrMismatch):
		return &state.Error{Class: state.Internal, Code: "data_mismatch", Reason: err.Error(), Err: err}
	case errors.Is(err, tools.ErrSelftest):
		return &state.Error{Class: state.Internal, Code: "selftest_failed", Reason: err.Error(), Err: err}
	}
	return &state.Error{Class: state.Refused, Code: "target_failed", Reason: err.Error(), Err: err}
}

func (a *app) selftestCommand() *cobra.Command {
	o := tools.SelftestOptions{}
	c := &cobra.Command{
		Use: "selftest URL", Short: "Log in to a target and prove that it works",
		Long: `Log in to the unit of an iSCSI URL with the built-in initiator and check what it
says and does. Without --write nothing is changed; with it the end of the unit
is saved, written, read back, and put back as it was.`,
		Args: args(1, 1),
		Example: examples("blockgate selftest iscsi://127.0.0.1:3260/iqn.2025-01.io.example:db/0", "blockgate selftest --write iscsi://10.0.0.1/iqn.2025-01.io.example:db/0",
			"blockgate serve ram:64M -- sh -c 'blockgate selftest --write $BLOCKGATE_URL'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return toolError(tools.Selftest(cmd.Context(), a.Stdout, args[0], o))
		},
	}
	c.Flags().SortFlags = false
	c.Flags().DurationVar(&o.Timeout, "timeout", tools.DefaultSelftestTimeout, "how long a check may take; the write test has six times that")
	c.Flags().BoolVar(&o.Write, "write", false, "also write, at the end of the unit; nobody else may use it meanwhile")
	return c
}

func (a *app) benchCommand() *cobra.Command {
	o := tools.BenchOptions{}
	bs, beside, besideDepth := "", 0, 0
	c := &cobra.Command{
		Use: "bench URL", Short: "Measure a target's speed",
		Long: `Read (and write, if allowed) as fast as the unit of an iSCSI URL lets, and print
operations and bytes a second and how long they took.`,
		Args: args(1, 1),
		Example: examples("blockgate bench iscsi://127.0.0.1:3260/iqn.2025-01.io.example:db/0",
			"blockgate bench --pattern seq --block-size 1M --depth 8 iscsi://10.0.0.1/iqn.2025-01.io.example:db/0",
			"blockgate bench --write-percent 30 --allow-write iscsi://10.0.0.1/iqn.2025-01.io.example:scratch/0"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := parseSize(bs)
			if err == nil && n > 1<<30 {
				err = usage(cmd, "a block of %s is too large", bs)
			}
			if err != nil {
				return err
			}
			o.BlockSize, o.JSON = int(n), a.output == "json"
			if beside >= 0 {
				o.BesideLUN, o.BesideDepth = beside, besideDepth
			}
			return toolError(tools.Bench(cmd.Context(), a.Stdout, args[0], o))
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.Pattern, "pattern", tools.PatternRandom, "rand or seq")
	f.StringVar(&bs, "block-size", "4K", "size of one operation")
	f.IntVar(&o.Depth, "depth", 32, "operations outstanding in each session")
	f.IntVar(&o.Sessions, "sessions", 1, "sessions")
	f.IntVar(&o.Connections, "connections", 1, "connections of each session")
	f.StringArrayVar(&o.Portals, "portal", nil, "another portal of the target; the connections of a session take them in turn (repeat for more)")
	f.DurationVar(&o.Duration, "duration", 10*time.Second, "how long")
	f.BoolVar(&o.Unbatched, "unbatched", false, "send each command by itself, as simple initiators do")
	f.BoolVar(&o.Digests, "digests", false, "CRC32C header and data digests")
	f.IntVar(&beside, "beside", -1, "LUN of a second unit of the target, read meanwhile to see whether it holds the first one up")
	f.IntVar(&besideDepth, "beside-depth", 4, "operations of 4 KiB outstanding on it in each session")
	f.IntVar(&o.WritePercent, "write-percent", 0, "share of writes, 0 to 100")
	f.BoolVar(&o.AllowWrite, "allow-write", false, "allow writes, which destroy what is on the unit")
	return c
}

func (a *app) lsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls URL", Short: "List the targets and LUNs behind a portal",
		Args:    args(1, 1),
		Example: examples("blockgate ls iscsi://127.0.0.1:3260", "blockgate ls iscsi://10.0.0.1/iqn.2025-01.io.example:db", "blockgate ls -o json iscsi://127.0.0.1"),
		RunE: func(cmd *cobra.Command, args []string) error {
			format := tools.FormatTable
			switch a.output {
			case "json":
				format = tools.FormatJSON
			case "yaml":
				return usage(cmd, "ls prints a table or JSON")
			}
			return toolError(tools.List(cmd.Context(), a.Stdout, args[0], format))
		},
	}
}

// engineOf is the engine of a store's URL.
func engineOf(url string) string {
	scheme, _ := backing.SplitURL(url)
	return scheme
}
