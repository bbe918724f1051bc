package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"blockgate/gateway"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
	"blockgate/nbd"
	nbdserver "blockgate/nbd/server"
)

// nbdAccess is what an NBD portal asks of its clients. Its files are read at each
// connection, and once now, so that what is wrong with them is found here.
func nbdAccess(p state.NBDPortal) (nbdserver.Access, error) {
	a := nbdserver.Access{RequireTLS: p.TLS == state.TLSRequired}
	if p.PSKFile != "" {
		f := &keyFile{path: p.PSKFile}
		if err := f.load(); err != nil {
			return a, err
		}
		a.Upgrade = nbdserver.PSK(f.key)
		return a, nil
	}
	if p.CertFile == "" {
		return a, nil
	}
	if _, err := tlsConfig(p); err != nil {
		return a, err
	}
	a.Upgrade = nbdserver.X509(&tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return tlsConfig(p) },
	})
	return a, nil
}

func tlsConfig(p state.NBDPortal) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if p.ClientCAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(p.ClientCAFile)
	if err != nil {
		return nil, err
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", p.ClientCAFile)
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}

func exportConfig(e state.Export) gateway.ExportConfig {
	return gateway.ExportConfig{
		Name: e.Name, Volume: e.Volume, Description: e.Description, ReadOnly: e.ReadOnly, Default: e.Default, ACL: gatewayRules(e.ACL),
	}
}

// startNBDPortal listens, and keeps account of whether that works.
func (d *Daemon) startNBDPortal(ctx context.Context, p state.NBDPortal) (gateway.NBDPortalInfo, *state.Error) {
	access, err := nbdAccess(p)
	var info gateway.NBDPortalInfo
	var e *state.Error
	if err != nil {
		e = &state.Error{Class: state.Refused, Code: state.CodeListenFailed, Object: "NBD portal " + p.Address,
			Reason: "TLS: " + err.Error(), Err: err}
	} else if info, err = d.gw.AddNBDPortal(ctx, gateway.NBDPortalConfig{Address: p.Address, Access: access}); err != nil {
		e = portalError(p.Address, err)
		e.Object = "NBD " + e.Object
	}
	d.note(d.nbdPortals, p.Address, e)
	return info, e
}

// loadNBD starts the exports and NBD portals of the state.
func (d *Daemon) loadNBD(ctx context.Context) {
	s := d.st.Snapshot()
	for _, e := range s.Exports() {
		if err := d.addExport(e.Value); err != nil {
			d.log.Error("export failed", "export", e.Value.Name, "err", err)
		}
	}
	for _, p := range s.NBDPortals() {
		if _, err := d.startNBDPortal(ctx, p.Value); err != nil {
			d.log.Error("NBD portal failed", "portal", p.Value.Address, "err", err.Reason, "code", err.Code)
			continue
		}
		d.log.Info("listening", "nbd", p.Value.Address)
	}
}

// listenNBD serves NBD on addresses for this start: those of Config.NBDPortals.
func (d *Daemon) listenNBD(ctx context.Context, portals []state.NBDPortal) error {
	for _, p := range portals {
		info, err := d.startNBDPortal(ctx, p)
		if err != nil {
			d.note(d.nbdPortals, p.Address, nil)
			return err
		}
		d.mu.Lock()
		d.runtimeNBD[info.Bound] = p
		d.boundNBD = append(d.boundNBD, info)
		d.mu.Unlock()
		d.log.Info("listening", "nbd", info.Bound)
	}
	return nil
}

// BoundNBD are the portals for this start, as they are bound.
func (d *Daemon) BoundNBD() []gateway.NBDPortalInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.boundNBD
}

// addExport exports a volume, also one that is pending. One that the gateway does
// not have is exported when it runs.
func (d *Daemon) addExport(e state.Export) error {
	if d.failure(d.volumes, e.Volume) != nil && !d.known(e.Volume) {
		return nil
	}
	return d.gw.AddExport(exportConfig(e))
}

// addExports exports a volume wherever the state says; dropExports takes that back.
func (d *Daemon) addExports(s *state.Snapshot, volume string) {
	for _, name := range s.ExportsOf(volume) {
		e, _ := s.Export(name)
		if err := d.gw.AddExport(exportConfig(e.Value)); err != nil && !errors.Is(err, gateway.ErrExists) {
			d.log.Error("export failed", "export", name, "err", err)
		}
	}
}

func (d *Daemon) dropExports(s *state.Snapshot, volume string) {
	for _, name := range s.ExportsOf(volume) {
		if err := d.gw.RemoveExport(name); err != nil && !errors.Is(err, gateway.ErrNotFound) {
			d.log.Error("export not removed", "export", name, "err", err)
		}
	}
}

// nbdPortalsStep goes first, as portalsStep does.
func (r *reconciler) nbdPortalsStep(ctx context.Context, p *state.Plan) error {
	stop := func(name string) {
		if r.failure(r.nbdPortals, name) == nil {
			if err := r.gw.RemoveNBDPortal(name); err != nil {
				r.warnings = append(r.warnings, err.Error())
			}
		}
		r.note(r.nbdPortals, name, nil)
	}
	start := func(s *state.Snapshot, name string) *state.Error {
		now, _ := s.NBDPortal(name)
		_, e := r.startNBDPortal(context.WithoutCancel(ctx), now.Value)
		return e
	}
	return each(p, state.KindNBDPortal, func(c state.Change) error {
		if c.Verb != state.Create {
			stop(c.Name)
			r.back(func() {
				if e := start(p.Old, c.Name); e != nil {
					r.log.Error("NBD portal failed", "portal", c.Name, "err", e)
				}
			})
		}
		if c.Verb == state.Delete {
			return nil
		}
		if e := start(p.New, c.Name); e != nil {
			r.note(r.nbdPortals, c.Name, nil)
			return e
		}
		r.back(func() { stop(c.Name) })
		return nil
	})
}

func (r *reconciler) exportsStep(_ context.Context, p *state.Plan) error {
	return each(p, state.KindExport, func(c state.Change) error {
		now, _ := p.New.Export(c.Name)
		old, _ := p.Old.Export(c.Name)
		if c.Verb == state.Delete {
			return nil // see removeExports
		}
		if err := r.changeExport(old.Value, now.Value); err != nil {
			return &state.Error{Class: state.Refused, Code: state.CodeInvalidValue, Object: fmt.Sprintf("export %q", c.Name), Reason: err.Error(), Err: err}
		}
		r.back(func() {
			if err := r.changeExport(now.Value, old.Value); err != nil {
				r.log.Error("export not put back as it was", "export", c.Name, "err", err)
			}
		})
		return nil
	})
}

// changeExport goes from one export to another of the same name; either may be
// none.
func (r *reconciler) changeExport(from, to state.Export) error {
	if from.Name != "" && from.Volume == to.Volume {
		err := r.gw.UpdateExport(exportConfig(to))
		if errors.Is(err, gateway.ErrNotFound) && r.failure(r.volumes, to.Volume) != nil {
			return nil
		}
		return err
	}
	if from.Name != "" {
		if err := r.gw.RemoveExport(from.Name); err != nil && !errors.Is(err, gateway.ErrNotFound) {
			return err
		}
	}
	if to.Name == "" {
		return nil
	}
	return r.addExport(to)
}

// removeExports is the part of removeStep that goes before the volumes.
func (r *reconciler) removeExports(p *state.Plan) {
	each(p, state.KindExport, func(c state.Change) error {
		if c.Verb == state.Delete {
			if err := r.gw.RemoveExport(c.Name); err != nil && !errors.Is(err, gateway.ErrNotFound) {
				r.log.Error("export not removed", "export", c.Name, "err", err)
			}
		}
		return nil
	})
}

// clientsOf counts the NBD connections by export.
func (d *Daemon) clientsOf() map[string]int {
	n := map[string]int{}
	for _, c := range d.gw.NBDClients() {
		n[c.Export]++
	}
	return n
}

func exportActive(name, why string, clients int) error {
	many := "s"
	if clients == 1 {
		many = ""
	}
	return &state.Error{Class: state.Conflict, Code: state.CodeExportActive, Object: fmt.Sprintf("export %q", name),
		Reason: fmt.Sprintf("%s%d NBD client%s", why, clients, many), Hint: "see them: blockgate nbd clients; or go on with --force"}
}

// checkClients refuses to take away what NBD clients use.
func (r *reconciler) checkClients(p *state.Plan) error {
	clients := r.clientsOf()
	if len(clients) == 0 || r.force {
		return nil
	}
	if !r.declared {
		for _, op := range p.Ops {
			if op.Kind == state.KindExport && op.Verb == state.Delete && !op.Force && clients[op.Name] > 0 {
				return exportActive(op.Name, "has ", clients[op.Name])
			}
		}
		return nil
	}
	for _, c := range p.Changes {
		switch {
		case c.Kind == state.KindExport && c.Verb == state.Delete && clients[c.Name] > 0:
			return exportActive(c.Name, "would be deleted, while it has ", clients[c.Name])
		case c.Kind == state.KindVolume && c.Verb == state.Update:
			old, _ := p.Old.Volume(c.Name)
			now, _ := p.New.Volume(c.Name)
			why := replaced(old.Value, now.Value)
			for _, name := range p.Old.ExportsOf(c.Name) {
				if why != "" && clients[name] > 0 {
					return exportActive(name, fmt.Sprintf("has a volume that %s, while it has ", why), clients[name])
				}
			}
		}
	}
	return nil
}

// Exports implements api.Service.
func (d *Daemon) Exports(context.Context) []v1.NBDExport {
	clients := d.clientsOf()
	out := []v1.NBDExport{}
	for _, e := range d.st.Snapshot().Exports() {
		x := v1.NBDExport{Export: e.Value, Revision: e.Revision, State: v1.Online, Clients: clients[e.Value.Name]}
		i, err := d.gw.Volume(e.Value.Volume)
		switch why := d.failure(d.volumes, e.Value.Volume); {
		case why != nil:
			x.State, x.Error = v1.Failed, why.Reason
		case err != nil:
			x.State, x.Error = v1.Failed, err.Error()
		case i.Offline:
			x.State = v1.Offline
		}
		if err == nil {
			x.Size = i.Size
		}
		out = append(out, x)
	}
	return out
}

// NBDPortals implements api.Service.
func (d *Daemon) NBDPortals(context.Context) []v1.NBDPortal {
	running := map[string]gateway.NBDPortalInfo{}
	out := []v1.NBDPortal{}
	for _, i := range d.gw.NBDPortals() {
		d.mu.RLock()
		given, runtime := d.runtimeNBD[i.Bound]
		d.mu.RUnlock()
		if !runtime {
			running[i.Address] = i
			continue
		}
		p := v1.NBDPortal{NBDPortal: given, Bound: i.Bound, Runtime: true}
		p.State, p.Error = d.portalState(true, i.Err, nil, "")
		out = append(out, p)
	}
	for _, s := range d.st.Snapshot().NBDPortals() {
		p := v1.NBDPortal{NBDPortal: s.Value, Revision: s.Revision}
		i, ok := running[s.Value.Address]
		if p.State, p.Error = d.portalState(ok, i.Err, d.nbdPortals, s.Value.Address); p.Error == "" {
			p.Bound = i.Bound
		}
		out = append(out, p)
	}
	return out
}

var nbdModes = map[nbd.Mode]string{nbd.Simple: "simple", nbd.Structured: "structured", nbd.Extended: "extended"}

// NBDClients implements api.Service.
func (d *Daemon) NBDClients(context.Context) []v1.NBDClient {
	out := []v1.NBDClient{}
	for _, c := range d.gw.NBDClients() {
		x := v1.NBDClient{
			ID: c.ID, Export: c.Export, Remote: c.Remote.String(), Local: c.Local.String(), ReadOnly: c.ReadOnly,
			Replies: nbdModes[c.Mode], Started: c.Started, RxBytes: c.RxBytes, TxBytes: c.TxBytes,
			Requests: c.Requests, Errors: c.Errors, ReadBytes: c.ReadBytes, WrittenBytes: c.WrittenBytes,
		}
		if c.Remote.Network() == "unix" {
			x.Remote = "unix"
		}
		if c.Identity != nil {
			x.TLS, x.Names = c.Identity.Method, c.Identity.Names
		}
		out = append(out, x)
	}
	return out
}

// CloseNBDClient implements api.Service.
func (d *Daemon) CloseNBDClient(_ context.Context, id uint64) error {
	if err := d.gw.CloseNBDClient(id); err != nil {
		return &state.Error{Class: state.NotFound, Code: state.CodeSessionNotFound, Object: fmt.Sprintf("NBD client %d", id),
			Reason: "does not exist", Hint: "blockgate nbd clients"}
	}
	return nil
}
