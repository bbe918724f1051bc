package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"blockgate/internal/api/client"
	"blockgate/internal/state"
)

func (a *app) nbdCommand() *cobra.Command {
	return noun(&cobra.Command{
		Use: "nbd", Short: "NBD: volumes for NBD clients",
		Long: `The same volumes that are LUNs of targets can be NBD exports, also at the same
time: to a volume an NBD client is one more initiator, whom reservations and
write protection stop too. A volume is shown to NBD clients only when it was
exported, and only to those that a rule allows.`,
		Example: examples("blockgate nbd listen 127.0.0.1", "blockgate nbd export db --allow 10.0.0.0/24", "blockgate nbd list"),
	}, a.nbdListen(), a.nbdUnlisten(), a.nbdExport(), a.nbdUnexport(), a.nbdAllow(), a.nbdDeny(), a.nbdList(), a.nbdClients(), a.nbdClose())
}

// tlsFlags are the flags of what serves NBD.
type tlsFlags struct {
	cert, key, clientCA, psk string
	optional                 bool
}

func (t *tlsFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&t.cert, "tls-cert", "", "NBD: demand TLS, with this certificate (PEM)")
	f.StringVar(&t.key, "tls-key", "", "NBD: the certificate's key (PEM)")
	f.StringVar(&t.clientCA, "tls-client-ca", "", "NBD: demand client certificates of these authorities (PEM)")
	f.StringVar(&t.psk, "tls-psk", "", "NBD: demand TLS with pre-shared keys of this file, as psktool writes it")
	f.BoolVar(&t.optional, "tls-optional", false, "NBD: serve also clients that do not start TLS")
}

// portal makes an NBD portal of an address and the flags.
func (t *tlsFlags) portal(address string) (state.NBDPortal, error) {
	addr, err := state.ParseNBDPortal(address)
	if err != nil {
		return state.NBDPortal{}, err
	}
	p := state.NBDPortal{Address: addr}
	for _, f := range []struct {
		from string
		to   *string
	}{{t.cert, &p.CertFile}, {t.key, &p.KeyFile}, {t.clientCA, &p.ClientCAFile}, {t.psk, &p.PSKFile}} {
		if f.from == "" {
			continue
		}
		if *f.to, err = filepath.Abs(f.from); err != nil {
			return p, err
		}
	}
	switch {
	case t.optional:
		p.TLS = state.TLSOptional
	case p.CertFile != "" || p.PSKFile != "":
		p.TLS = state.TLSRequired
	}
	return p, nil
}

func (a *app) nbdListen() *cobra.Command {
	var t tlsFlags
	c := &cobra.Command{
		Use: "listen ADDRESS", Short: "Serve NBD on an address, now and after every start",
		Long: `Serve NBD on an IP address, with port 10809 unless it names another, or on a Unix
socket (unix:/path), which only the daemon's user can reach. Without TLS
everything can be read on its way, and an address is all that rules can go by.`,
		Args: args(1, 1),
		Example: examples("blockgate nbd listen 127.0.0.1", "blockgate nbd listen unix:/run/blockgate/nbd.sock",
			"blockgate nbd listen 0.0.0.0 --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			p, err := t.portal(args[0])
			if err != nil {
				return err
			}
			r, err := c.CreateNBDPortal(ctx, p)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("serving NBD on %s", p.Address)
		}),
	}
	c.Flags().SortFlags = false
	t.add(c)
	return c
}

func (a *app) nbdUnlisten() *cobra.Command {
	return &cobra.Command{
		Use: "unlisten ADDRESS", Short: "Stop serving on an address; connections go on", Args: args(1, 1),
		Example: examples("blockgate nbd unlisten 127.0.0.1", "blockgate nbd unlisten unix:/run/blockgate/nbd.sock", "blockgate nbd list"),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			addr, err := state.ParseNBDPortal(args[0])
			if err != nil {
				return err
			}
			r, err := c.DeleteNBDPortal(ctx, addr)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("NBD is not served on %s any more", addr)
		}),
	}
}

func (a *app) nbdExport() *cobra.Command {
	e, allow := state.Export{}, []string(nil)
	c := &cobra.Command{
		Use: "export VOLUME", Short: "Export a volume",
		Long: `Export a volume to NBD clients, under its own name or another. Nobody can use it
until a rule allows it: everyone ("all"), an address or network, or, of clients
with TLS, a name of their certificate or the identity of their key ("*" stands
for any characters).`,
		Args: args(1, 1),
		Example: examples("blockgate nbd export db --allow 10.0.0.0/24", "blockgate nbd export db --name golden --read-only --allow all",
			"blockgate nbd export db --allow '*.hosts.example'"),
		ValidArgsFunction: a.complete(volumeNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			e.Volume = args[0]
			if e.Name == "" {
				e.Name = args[0]
			}
			for _, who := range allow {
				e.ACL = append(e.ACL, parseRule(who))
			}
			r, err := c.CreateExport(ctx, e)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			if len(allow) == 0 {
				return a.done("volume %q is exported as %q; next: blockgate nbd allow %s 127.0.0.1", e.Volume, e.Name, e.Name)
			}
			return a.done("volume %q is exported as %q", e.Volume, e.Name)
		}),
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&e.Name, "name", "", "what clients ask for (default the volume's name)")
	f.StringArrayVar(&allow, "allow", nil, "who may use it: all, an address, a network, a name (repeat for more)")
	f.BoolVar(&e.ReadOnly, "read-only", false, "refuse writes of NBD clients")
	f.BoolVar(&e.Default, "default", false, "what clients get that ask for no name")
	f.StringVar(&e.Description, "description", "", "a text for those who list the exports")
	return c
}

func (a *app) nbdUnexport() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "unexport NAME", Short: "End an export; the volume stays", Args: args(1, 1),
		Example:           examples("blockgate nbd unexport db", "blockgate nbd unexport db --force", "blockgate nbd list"),
		ValidArgsFunction: a.complete(exportNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.DeleteExport(ctx, args[0], force)
			if err != nil {
				return err
			}
			a.warnings(r.Warnings)
			return a.done("export %q is gone", args[0])
		}),
	}
	c.Flags().BoolVar(&force, "force", false, "also when it has clients, which are disconnected")
	return c
}

// changeExport reads an export, changes it and writes it back.
func changeExport(ctx context.Context, c *client.Client, name string, change func(*state.Export) error) error {
	for try := 0; ; try++ {
		l, err := c.Exports(ctx)
		if err != nil {
			return err
		}
		found := false
		for _, x := range l {
			if x.Name != name {
				continue
			}
			found = true
			if err := change(&x.Export); err != nil {
				return err
			}
			_, err = c.Apply(ctx, state.Op{Verb: state.Update, Kind: state.KindExport, IfRevision: x.Revision, Export: &x.Export})
		}
		if !found {
			return &state.Error{Class: state.NotFound, Code: state.CodeExportNotFound, Object: fmt.Sprintf("export %q", name),
				Reason: "does not exist", Hint: "blockgate nbd list"}
		}
		if e := state.ErrorOf(err); e != nil && e.Code == state.CodeRevision && try < 10 {
			continue
		}
		return err
	}
}

func (a *app) nbdAllow() *cobra.Command {
	return &cobra.Command{
		Use: "allow NAME WHO", Short: "Let clients use an export", Args: args(2, 2),
		Example: examples("blockgate nbd allow db 10.0.0.7", "blockgate nbd allow db all", "blockgate nbd allow db '*.hosts.example'"),

		ValidArgsFunction: a.complete(exportNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			err := changeExport(ctx, c, args[0], func(e *state.Export) error {
				e.ACL = append(e.ACL, parseRule(args[1]))
				return nil
			})
			if err != nil {
				return err
			}
			return a.done("%s may use export %q", args[1], args[0])
		}),
	}
}

func (a *app) nbdDeny() *cobra.Command {
	return &cobra.Command{
		Use: "deny NAME WHO", Short: "Take a rule away; clients that only it allowed are disconnected", Args: args(2, 2),
		Example: examples("blockgate nbd deny db all", "blockgate nbd deny db 10.0.0.0/24", "blockgate nbd list"),

		ValidArgsFunction: a.complete(exportNames),
		RunE: a.call(func(ctx context.Context, c *client.Client, args []string) error {
			rule := parseRule(args[1])
			err := changeExport(ctx, c, args[0], func(e *state.Export) error {
				for i, r := range e.ACL {
					if r.String() == rule.String() {
						e.ACL = append(e.ACL[:i:i], e.ACL[i+1:]...)
						return nil
					}
				}
				return &state.Error{Class: state.NotFound, Code: state.CodeACLNotFound, Object: fmt.Sprintf("export %q", args[0]),
					Reason: fmt.Sprintf("has no access rule %s", rule), Hint: "blockgate nbd list"}
			})
			if err != nil {
				return err
			}
			return a.done("the rule %s of export %q is gone", args[1], args[0])
		}),
	}
}

func (a *app) nbdList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the exports and where they are served", Args: args(0, 0),
		Example: examples("blockgate nbd list", "blockgate nbd list -o json", "blockgate nbd list -o yaml"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			exports, err := c.Exports(ctx)
			if err != nil {
				return err
			}
			portals, err := c.NBDPortals(ctx)
			if err != nil {
				return err
			}
			err = a.answer(map[string]any{"exports": exports, "portals": portals}, func() *table {
				t := &table{head: []string{"EXPORT", "VOLUME", "SIZE", "MODE", "STATE", "ALLOWED", "CLIENTS"}}
				for _, e := range exports {
					mode, st := "rw", e.State
					if e.ReadOnly {
						mode = "ro"
					}
					if e.Default {
						mode += ",default"
					}
					if e.Error != "" {
						st += ": " + e.Error
					}
					var who []string
					for _, r := range e.ACL {
						who = append(who, strings.Replace(r.String(), "ALL", "all", 1))
					}
					t.add(e.Name, e.Volume, formatSize(e.Size), mode, st, strings.Join(who, " "), fmt.Sprint(e.Clients))
				}
				return t
			})
			if err != nil || a.output != "table" {
				return err
			}
			for _, p := range portals {
				addr, st := p.Address, p.State
				if p.Bound != "" {
					addr = p.Bound
				}
				if p.Error != "" {
					st += ": " + p.Error
				}
				tls := "no TLS"
				if p.TLS != "" {
					tls = "TLS " + p.TLS
				}
				a.note("served on %s (%s, %s)", addr, st, tls)
			}
			if len(portals) == 0 {
				a.note("served nowhere; next: blockgate nbd listen 127.0.0.1")
			}
			return nil
		}),
	}
}

func (a *app) nbdClients() *cobra.Command {
	return &cobra.Command{
		Use: "clients", Short: "List the NBD connections", Args: args(0, 0),
		Example: examples("blockgate nbd clients", "blockgate nbd clients -o json", "blockgate nbd close 3"),
		RunE: a.call(func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.NBDClients(ctx)
			if err != nil {
				return err
			}
			return a.answer(l, func() *table {
				t := &table{head: []string{"ID", "FROM", "NAME", "EXPORT", "SINCE", "REQUESTS", "ERRORS", "READ", "WRITTEN"}}
				for _, x := range l {
					name := strings.Join(x.Names, " ")
					if name == "" && x.TLS != "" {
						name = "(TLS)"
					}
					t.add(fmt.Sprint(x.ID), x.Remote, name, x.Export, x.Started.Format(time.DateTime), fmt.Sprint(x.Requests),
						fmt.Sprint(x.Errors), formatSize(int64(x.ReadBytes)), formatSize(int64(x.WrittenBytes)))
				}
				return t
			})
		}),
	}
}

func (a *app) nbdClose() *cobra.Command {
	c := &cobra.Command{
		Use: "close ID", Short: "Close an NBD connection", Args: args(1, 1),
		Long:    `Close a connection. A client may connect again unless a rule keeps it out.`,
		Example: examples("blockgate nbd close 3", "blockgate nbd clients", "blockgate nbd deny db all"),
	}
	c.RunE = a.call(func(ctx context.Context, cl *client.Client, args []string) error {
		id, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return usage(c, "%q is not a connection's number", args[0])
		}
		if _, err := cl.CloseNBDClient(ctx, id); err != nil {
			return err
		}
		return a.done("NBD connection %d closed", id)
	})
	return c
}

func exportNames(ctx context.Context, c *client.Client) (names []string) {
	l, err := c.Exports(ctx)
	if err != nil {
		return nil
	}
	for _, e := range l {
		names = append(names, e.Name)
	}
	return names
}
