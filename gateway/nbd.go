package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"blockgate/backing"
	"blockgate/internal/conndrive"
	"blockgate/nbd"
	nbdserver "blockgate/nbd/server"
	"blockgate/scsi"
)

// ExportConfig says how a volume is an NBD export. To the volume's unit an NBD
// client is one more initiator, so that reservations, write protection and resizes
// count for iSCSI and NBD alike.
type ExportConfig struct {
	Name        string // by which clients ask for it
	Volume      string
	Description string // shown to clients
	ReadOnly    bool   // whatever the volume is
	// Default makes it what clients get that ask for no name. Without one, an
	// export that is the only one a client sees is its default.
	Default bool
	// ACL: whoever matches none of the rules cannot see the export. Initiator is
	// here a name that TLS has proved: of a certificate, or of a pre-shared key.
	// LUNs have no meaning.
	ACL []Rule
}

type export struct {
	cfg    atomic.Pointer[ExportConfig]
	volume *volume // under Gateway.mu
	// dev has the volume's unit as long as connections are to the same disk: under
	// Gateway.mu.
	dev *scsi.Device
}

// nbdPort is the relative target port identifier of NBD: persistent reservations
// tell ports apart by it, and no NBD client ever registers one.
const nbdPort = 0xffff

func (c *ExportConfig) check() error {
	if !nbd.ValidName(c.Name) || c.Name == "" || !nbd.ValidName(c.Description) {
		return fmt.Errorf("export %q: a name has 1 to %d bytes of UTF-8, and so has a description", c.Name, nbd.MaxString)
	}
	for i := range c.ACL {
		if err := c.ACL[i].check(); err != nil {
			return fmt.Errorf("export %q: %w", c.Name, err)
		}
	}
	return nil
}

// AddExport makes a volume an NBD export.
func (g *Gateway) AddExport(cfg ExportConfig) error {
	if err := cfg.check(); err != nil {
		return err
	}
	e := &export{dev: g.exportDevice(cfg.Name)}
	e.cfg.Store(&cfg)
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.volumes[cfg.Volume]
	switch {
	case g.closed:
		return ErrClosed
	case g.exports[cfg.Name] != nil:
		return fmt.Errorf("export %q: %w", cfg.Name, ErrExists)
	case v == nil || v.unit == nil:
		return fmt.Errorf("volume %q: %w", cfg.Volume, ErrNotFound)
	}
	if err := e.dev.SetUnit(0, v.unit); err != nil {
		return fmt.Errorf("export %q: %w", cfg.Name, err)
	}
	e.volume = v
	g.exports[cfg.Name] = e
	return nil
}

func (g *Gateway) exportDevice(name string) *scsi.Device {
	return scsi.NewDevice(scsi.DeviceConfig{Name: "nbd:" + name, Logger: g.log})
}

// end takes the unit from those who are connected. What they still send does not
// reach it, nor another that takes its place; Gateway.mu is held.
func (e *export) end() {
	_ = e.dev.RemoveUnit(0) // it may have none
}

// UpdateExport changes an export of the same volume. Connections go on, those of
// clients that may not see it any more are closed, and so are all when it becomes
// read-only or writable, which NBD cannot tell a client.
func (g *Gateway) UpdateExport(cfg ExportConfig) error {
	if err := cfg.check(); err != nil {
		return err
	}
	g.mu.Lock()
	e := g.exports[cfg.Name]
	if e == nil || e.volume.cfg.Name != cfg.Volume {
		g.mu.Unlock()
		return fmt.Errorf("export %q of volume %q: %w", cfg.Name, cfg.Volume, ErrNotFound)
	}
	was := e.cfg.Swap(&cfg)
	g.mu.Unlock()
	g.nbd.CloseConns("the export was changed", func(i nbdserver.ConnInfo) bool {
		return i.Export == cfg.Name && (was.ReadOnly != cfg.ReadOnly ||
			!allowedNBD(cfg.ACL, &nbdserver.Client{Remote: i.Remote, Identity: i.Identity}))
	})
	return nil
}

// RemoveExport closes the export's connections and forgets it; the volume stays.
func (g *Gateway) RemoveExport(name string) error {
	g.mu.Lock()
	e := g.exports[name]
	delete(g.exports, name)
	if e != nil {
		e.end()
	}
	g.mu.Unlock()
	if e == nil {
		return fmt.Errorf("export %q: %w", name, ErrNotFound)
	}
	g.closeExport(name, "the export was removed")
	return nil
}

func (g *Gateway) closeExport(name, reason string) {
	g.nbd.CloseConns(reason, func(i nbdserver.ConnInfo) bool { return i.Export == name })
}

// ExportInfo describes an export.
type ExportInfo struct {
	ExportConfig
	Clients int // connections
}

// Exports describes the exports by name.
func (g *Gateway) Exports() []ExportInfo {
	clients := map[string]int{}
	for _, c := range g.nbd.Conns() {
		clients[c.Export]++
	}
	g.mu.RLock()
	out := make([]ExportInfo, 0, len(g.exports))
	for name, e := range g.exports {
		out = append(out, ExportInfo{ExportConfig: *e.cfg.Load(), Clients: clients[name]})
	}
	g.mu.RUnlock()
	slices.SortFunc(out, func(a, b ExportInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// NBDClients lists the NBD connections, oldest first.
func (g *Gateway) NBDClients() []nbdserver.ConnInfo { return g.nbd.Conns() }

// CloseNBDClient closes one NBD connection.
func (g *Gateway) CloseNBDClient(id uint64) error {
	if g.nbd.CloseConns("closed by the administrator", func(i nbdserver.ConnInfo) bool { return i.ID == id }) == 0 {
		return fmt.Errorf("NBD connection %d: %w", id, ErrNotFound)
	}
	return nil
}

// swapExportsLocked puts the unit that a volume has now under its exports.
func (g *Gateway) swapExportsLocked(v *volume, another bool) {
	for name, e := range g.exports {
		if e.volume != v {
			continue
		}
		if another {
			// Other data or other blocks. An initiator would be told; an NBD client
			// cannot be, and what it sends meanwhile is not meant for them.
			e.end()
			e.dev = g.exportDevice(name)
		}
		if err := e.dev.SetUnit(0, v.unit); err != nil {
			g.log.Error("gateway: export lost", "export", name, "err", err)
		}
		if another {
			g.closeExport(name, "the volume became another one")
		}
	}
}

// exportOf names an export of the volume, if there is one.
func (g *Gateway) exportOfLocked(v *volume) string {
	for name, e := range g.exports {
		if e.volume == v {
			return name
		}
	}
	return ""
}

// nbdDirectory is what the NBD server sees of the gateway.
type nbdDirectory struct{ g *Gateway }

var _ nbdserver.Directory = nbdDirectory{}

// Exports implements nbdserver.Directory.
func (d nbdDirectory) Exports(c *nbdserver.Client) []nbd.ServerEntry {
	d.g.mu.RLock()
	defer d.g.mu.RUnlock()
	var l []nbd.ServerEntry
	for name, e := range d.g.exports {
		if cfg := e.cfg.Load(); allowedNBD(cfg.ACL, c) {
			l = append(l, nbd.ServerEntry{Name: name, Description: cfg.Description})
		}
	}
	slices.SortFunc(l, func(a, b nbd.ServerEntry) int { return strings.Compare(a.Name, b.Name) })
	return l
}

// Export implements nbdserver.Directory.
func (d nbdDirectory) Export(name string, c *nbdserver.Client) (nbdserver.Export, error) {
	d.g.mu.RLock()
	defer d.g.mu.RUnlock()
	e := d.g.exports[name]
	if name == "" {
		e = d.g.defaultExportLocked(c)
	}
	if e == nil || !allowedNBD(e.cfg.Load().ACL, c) {
		if name == "" {
			return nil, &nbdserver.Refusal{Type: nbd.RepErrUnknown, Reason: "there is no default export"}
		}
		return nil, &nbdserver.Refusal{Type: nbd.RepErrUnknown, Reason: fmt.Sprintf("there is no export %q", name)}
	}
	cfg, v := e.cfg.Load(), e.volume
	if _, none := v.store.(noMedium); none || v.pending() || v.unit.Config().Offline {
		return nil, &nbdserver.Refusal{Type: nbd.RepErrShutdown, Reason: fmt.Sprintf("the volume of export %q is not ready", cfg.Name)}
	}
	return &nbdserver.UnitExport{
		Name: cfg.Name, Description: cfg.Description, ReadOnly: cfg.ReadOnly, Device: e.dev,
		Port:       scsi.TargetPort{Name: "nbd:" + cfg.Name, RelID: nbdPort},
		FastZeroes: backing.CapsOf(v.store)&(backing.CapDiscard|backing.CapWriteZeroes) != 0,
	}, nil
}

func (g *Gateway) defaultExportLocked(c *nbdserver.Client) *export {
	var only *export
	n := 0
	for _, e := range g.exports {
		cfg := e.cfg.Load()
		if !allowedNBD(cfg.ACL, c) {
			continue
		}
		if cfg.Default {
			return e
		}
		only = e
		n++
	}
	if n != 1 {
		return nil
	}
	return only
}

// allowedNBD tells whether any rule matches the client.
func allowedNBD(rules []Rule, c *nbdserver.Client) bool {
	return slices.ContainsFunc(rules, func(r Rule) bool {
		switch {
		case r.All:
			return true
		case r.Initiator != "":
			return c.Identity != nil && slices.ContainsFunc(c.Identity.Names, func(n string) bool { return glob(r.Initiator, n) })
		}
		t, ok := c.Remote.(*net.TCPAddr)
		return ok && r.Network.Contains(t.AddrPort().Addr().Unmap().WithZone(""))
	})
}

// NBDPortalConfig says where to listen for NBD.
type NBDPortalConfig struct {
	// Address is "ip:port", "[ip6]:port" or "unix:/path"; port 0 takes a free one.
	Address string
	// Access is what it asks of clients.
	Access nbdserver.Access
}

type nbdPortal struct {
	cfg   NBDPortalConfig
	bound string
	ln    net.Listener
	err   error // why it serves no more; under Gateway.mu
}

// NBDPortalInfo describes an address that NBD is served on.
type NBDPortalInfo struct {
	Address string
	Bound   string // with the port that was chosen
	Err     error  // not nil: it has failed since
}

// AddNBDPortal listens for NBD clients.
func (g *Gateway) AddNBDPortal(ctx context.Context, cfg NBDPortalConfig) (NBDPortalInfo, error) {
	ln, err := listenNBD(ctx, cfg.Address)
	if err != nil {
		return NBDPortalInfo{}, fmt.Errorf("NBD portal %s: %w", cfg.Address, err)
	}
	p := &nbdPortal{cfg: cfg, ln: ln, bound: ln.Addr().String()}
	if strings.HasPrefix(cfg.Address, unixPrefix) {
		p.bound = cfg.Address
	}
	name := cfg.Address
	if ap, err := netip.ParseAddrPort(name); err == nil && ap.Port() == 0 {
		name = p.bound // two on port 0 are two portals
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		err = ErrClosed
	case g.nbdPortals[name] != nil:
		err = fmt.Errorf("NBD portal %s: %w", name, ErrExists)
	}
	if err != nil {
		ln.Close()
		return NBDPortalInfo{}, err
	}
	g.nbdPortals[name] = p
	g.serving.Go(func() {
		err := g.nbd.Serve(&gate{Listener: ln, g: g}, cfg.Access)
		if !errors.Is(err, nbdserver.ErrClosed) {
			g.log.Error("gateway: NBD portal failed", "portal", name, "err", err)
			g.mu.Lock()
			p.err = err
			g.mu.Unlock()
		}
	})
	return NBDPortalInfo{Address: cfg.Address, Bound: p.bound}, nil
}

const unixPrefix = "unix:"

func listenNBD(ctx context.Context, address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, unixPrefix); ok {
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
		return conndrive.ListenPrivate(ctx, path)
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, errors.New("neither an IP address with a port nor unix:/path")
	}
	network := "tcp4"
	if ap.Addr().Is6() {
		network = "tcp6"
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, network, address)
}

// removeStale removes a socket that nobody listens on any more.
func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// RemoveNBDPortal stops listening; connections that came in there go on. address
// is the configured or the bound one.
func (g *Gateway) RemoveNBDPortal(address string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, p := range g.nbdPortals {
		if name == address || p.bound == address {
			delete(g.nbdPortals, name)
			return p.ln.Close()
		}
	}
	return fmt.Errorf("NBD portal %s: %w", address, ErrNotFound)
}

// NBDPortals describes the addresses that NBD is served on.
func (g *Gateway) NBDPortals() []NBDPortalInfo {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]NBDPortalInfo, 0, len(g.nbdPortals))
	for _, p := range g.nbdPortals {
		out = append(out, NBDPortalInfo{Address: p.cfg.Address, Bound: p.bound, Err: p.err})
	}
	slices.SortFunc(out, func(a, b NBDPortalInfo) int { return strings.Compare(a.Bound, b.Bound) })
	return out
}
