package daemon

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"blockgate/backing/layer"
	"blockgate/gateway"
	"blockgate/internal/api"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
	"blockgate/iscsi"
	"blockgate/iscsi/server"
	"blockgate/scsi"
)

var _ api.Service = (*Daemon)(nil)

// Apply implements api.Service.
func (d *Daemon) Apply(ctx context.Context, ops []state.Op) (v1.Result, error) {
	// A change once begun is finished: a client that hangs up must not leave it
	// to chance how far it got.
	p, warnings, err := d.st.Change(context.WithoutCancel(ctx), &reconciler{Daemon: d}, origin(ctx),
		func(*state.Snapshot) ([]state.Op, error) { return ops, nil })
	if err != nil {
		return v1.Result{}, err
	}
	d.logChange(p, warnings)
	return v1.Result{Revision: p.New.Revision(), Warnings: warnings}, nil
}

func (d *Daemon) logChange(p *state.Plan, warnings []string) {
	for _, c := range p.Changes {
		d.log.Info("changed", "verb", c.Verb, "kind", c.Kind.Noun(), "name", c.Name)
	}
	for _, w := range warnings {
		d.log.Warn(w)
	}
}

// origin is who a change comes from: the API's caller, or this process.
func origin(ctx context.Context) state.Origin {
	if o, ok := api.OriginOf(ctx); ok {
		return o
	}
	return state.Origin{UID: os.Getuid(), PID: os.Getpid(), Comm: filepath.Base(os.Args[0])}
}

// Volumes implements api.Service.
func (d *Daemon) Volumes(context.Context) []v1.Volume {
	s := d.st.Snapshot()
	running := map[string]gateway.VolumeInfo{}
	for _, i := range d.gw.Volumes() {
		running[i.Name] = i
	}
	exports := map[string][]string{}
	for _, e := range s.Exports() {
		exports[e.Value.Volume] = append(exports[e.Value.Volume], e.Value.Name)
	}
	all := s.Volumes()
	out := make([]v1.Volume, len(all))
	for i, v := range all {
		info, ok := running[v.Value.Name]
		out[i] = d.volume(s, v, exports[v.Value.Name], info, ok)
	}
	return out
}

func (d *Daemon) volume(s *state.Snapshot, v state.Stored[state.Volume], exports []string, i gateway.VolumeInfo, runs bool) v1.Volume {
	out := v1.Volume{Volume: v.Value, Revision: v.Revision, Status: v1.VolumeStatus{
		State: v1.Online, Engine: i.Store.Engine, Location: i.Store.Location, Size: i.Size, BlockSize: v.Value.BlockSize,
		ReadOnly: i.ReadOnly, Thin: i.Thin, SWP: i.WriteProtected, PreventRemoval: i.Locked, Busy: i.Busy,
		LockedBy: i.Store.LockedBy, DirectIO: i.Store.DirectIO,
		UsedBy:  s.UsersOf(v.Value.Name),
		Exports: exports,
	}}
	if h := i.Health; h.State != scsi.HealthOK {
		out.Status.State = v1.Failing
		if h.State == scsi.HealthStalled {
			out.Status.State = v1.Stalled
		}
		out.Status.Health = &v1.Health{State: h.State.String(), Since: h.Since, Reason: h.Reason, Errors: h.Errors, Inside: h.Inside}
	}
	if i.Offline {
		out.Status.State = v1.Offline
	}
	if !runs || i.Pending {
		out.Status.State, out.Status.Error, out.Status.Engine, out.Status.Location = v1.Failed, "it is not running", "", ""
		if tries, next := d.attempted(v.Value.Name); !next.IsZero() {
			out.Status.Attempts, out.Status.NextAttempt = tries, &next
		}
		if e := d.failure(d.volumes, v.Value.Name); e != nil {
			out.Status.Error = e.Reason
		}
	}
	return out
}

// Volume implements api.Service.
func (d *Daemon) Volume(_ context.Context, name string) (v1.Volume, error) {
	s := d.st.Snapshot()
	v, ok := s.Volume(name)
	if !ok {
		return v1.Volume{}, notFound(state.CodeVolumeNotFound, "volume", name)
	}
	info, err := d.gw.Volume(name)
	return d.volume(s, v, s.ExportsOf(v.Value.Name), info, err == nil), nil
}

func notFound(code, kind, name string) error {
	return &state.Error{Class: state.NotFound, Code: code, Object: fmt.Sprintf("%s %q", kind, name), Reason: "does not exist",
		Hint: fmt.Sprintf("blockgate %s list", kind)}
}

// ResizeVolume implements api.Service. The store grows first and the state
// follows: a crash in between leaves a store larger than the state says, which
// is taken as it is.
func (d *Daemon) ResizeVolume(ctx context.Context, name string, size int64) (v1.Volume, error) {
	v, err := d.Volume(ctx, name)
	if err != nil {
		return v, err
	}
	if v.Status.State == v1.Failed {
		return v, &state.Error{Class: state.Conflict, Code: state.CodeResizeFailed, Object: fmt.Sprintf("volume %q", name),
			Reason: "does not run: " + v.Status.Error, Hint: "blockgate volume retry " + name}
	}
	if size == 0 {
		size, err = d.gw.RefreshVolume(ctx, name)
	} else {
		err = d.gw.ResizeVolume(ctx, name, size)
	}
	if err != nil {
		return v, resizeError(v.Volume, err)
	}
	next := v.Volume
	next.Size = size
	if _, err := d.Apply(ctx, []state.Op{{Verb: state.Update, Kind: state.KindVolume, Volume: &next}}); err != nil {
		return v, err
	}
	return d.Volume(ctx, name)
}

// RetryVolume implements api.Service.
func (d *Daemon) RetryVolume(ctx context.Context, name string) (v1.Volume, error) {
	v, err := d.Volume(ctx, name)
	if err == nil && v.Status.State != v1.Failed && v.Status.Health != nil && v.Status.Health.State == scsi.HealthFailed.String() {
		return d.reopen(context.WithoutCancel(ctx), v)
	}
	if err != nil || v.Status.State != v1.Failed {
		return v, err
	}
	if d.known(name) {
		if e := d.openPending(context.WithoutCancel(ctx), name); e != nil {
			return v, e
		}
		return d.Volume(ctx, name)
	}
	// A put of what is there already goes the way of every change, so that two
	// retries, or a retry and a delete, do not meet.
	_, err = d.Apply(ctx, []state.Op{{Verb: state.Update, Kind: state.KindVolume, IfRevision: v.Revision, Volume: &v.Volume}})
	if err != nil {
		return v, err
	}
	return d.Volume(ctx, name)
}

// Targets implements api.Service.
func (d *Daemon) Targets(context.Context) []v1.Target {
	s := d.st.Snapshot()
	sessions := map[string]int{}
	for _, ss := range d.gw.Sessions() {
		sessions[ss.Target]++
	}
	all := s.Targets()
	out := make([]v1.Target, len(all))
	for i, t := range all {
		out[i] = d.target(t, sessions[t.Value.Name])
	}
	return out
}

// Target implements api.Service.
func (d *Daemon) Target(_ context.Context, name string) (v1.Target, error) {
	t, ok := d.st.Snapshot().Target(name)
	if !ok {
		return v1.Target{}, notFound(state.CodeTargetNotFound, "target", name)
	}
	return d.target(t, d.sessionsOf(name)), nil
}

func (d *Daemon) target(t state.Stored[state.Target], sessions int) v1.Target {
	out := v1.Target{Target: t.Value, Revision: t.Revision, Status: v1.TargetStatus{State: v1.Online, Sessions: sessions}}
	if t.Value.Offline {
		out.Status.State = v1.Offline
	}
	for _, l := range t.Value.LUNs {
		if d.failure(d.volumes, l.Volume) != nil {
			out.Status.FailedLUNs = append(out.Status.FailedLUNs, l.Number)
		}
	}
	return out
}

// LUNs implements api.Service.
func (d *Daemon) LUNs(_ context.Context, name string) ([]v1.LUN, error) {
	s := d.st.Snapshot()
	t, ok := s.Target(name)
	if !ok {
		return nil, notFound(state.CodeTargetNotFound, "target", name)
	}
	out := make([]v1.LUN, 0, len(t.Value.LUNs))
	for _, l := range t.Value.LUNs {
		v, _ := s.Volume(l.Volume)
		info, err := d.gw.Volume(l.Volume)
		out = append(out, v1.LUN{Number: l.Number, Volume: d.volume(s, v, s.ExportsOf(l.Volume), info, err == nil)})
	}
	return out, nil
}

// Accounts implements api.Service.
func (d *Daemon) Accounts(context.Context) []v1.Account {
	out := []v1.Account{}
	for _, a := range d.st.Snapshot().Accounts() {
		out = append(out, v1.Account{User: a.Value.User, Revision: a.Revision})
	}
	return out
}

// Portals implements api.Service.
func (d *Daemon) Portals(context.Context) []v1.Portal {
	running := map[string]gateway.PortalInfo{}
	out := []v1.Portal{}
	for _, i := range d.gw.Portals() {
		d.mu.RLock()
		given := d.runtime[i.Bound.String()]
		d.mu.RUnlock()
		if !given {
			running[i.Address] = i
			continue
		}
		p := v1.Portal{Portal: state.Portal{Address: i.Address, Group: int(i.Group), Advertise: i.Advertise, Congestion: i.Congestion}, Bound: i.Bound.String(), Runtime: true}
		p.State, p.Error = d.portalState(true, i.Err, nil, "")
		out = append(out, p)
	}
	for _, s := range d.st.Snapshot().Portals() {
		p := v1.Portal{Portal: s.Value, Revision: s.Revision}
		i, ok := running[s.Value.Address]
		if p.State, p.Error = d.portalState(ok, i.Err, d.portals, s.Value.Address); p.Error == "" {
			p.Bound = i.Bound.String()
		}
		out = append(out, p)
	}
	return out
}

// portalState is the state of a portal of either kind, and what is wrong with it:
// it has failed with err, or does not run because of one of failures.
func (d *Daemon) portalState(runs bool, err error, failures map[string]*state.Error, address string) (st, why string) {
	switch {
	case runs && err == nil:
		return v1.Online, ""
	case runs:
		return v1.Failed, err.Error()
	}
	if e := d.failure(failures, address); e != nil {
		return v1.Failed, e.Reason
	}
	return v1.Failed, "it is not running"
}

// Sessions implements api.Service.
func (d *Daemon) Sessions(_ context.Context, target string) []v1.Session {
	s := d.st.Snapshot()
	out := []v1.Session{}
	for _, i := range d.gw.Sessions() {
		if target != "" && i.Target != target {
			continue
		}
		out = append(out, session(s, i))
	}
	return out
}

func session(s *state.Snapshot, i server.SessionInfo) v1.Session {
	t, _ := s.Target(i.Target)
	out := v1.Session{
		ID: i.ID, TSIH: i.TSIH, Target: i.Target, TargetID: t.Value.ID, Initiator: i.Initiator, Alias: i.Alias,
		ISID: hex.EncodeToString(i.ISID[:]), Discovery: i.Discovery, Started: i.Started, Conns: []v1.Connection{},
		Params: negotiated(i.Params),
	}
	for _, c := range i.Conns {
		out.Conns = append(out.Conns, v1.Connection{
			CID: c.CID, Remote: c.Remote.String(), Local: c.Local.String(), RxBytes: c.RxBytes, TxBytes: c.TxBytes,
			Commands: c.Commands, Responses: c.Responses, DataOutPDU: c.DataOutPDUs, DataInPDU: c.DataInPDUs,
		})
	}
	return out
}

func negotiated(p iscsi.Params) map[string]string {
	yes := func(b bool) string {
		if b {
			return "Yes"
		}
		return "No"
	}
	digest := func(b bool) string {
		if b {
			return "CRC32C"
		}
		return "None"
	}
	return map[string]string{
		"HeaderDigest": digest(p.HeaderDigest), "DataDigest": digest(p.DataDigest),
		"MaxConnections": strconv.Itoa(p.MaxConnections), "InitialR2T": yes(p.InitialR2T), "ImmediateData": yes(p.ImmediateData),
		"MaxRecvDataSegmentLength": strconv.Itoa(p.MaxRecvDataSegment), "MaxXmitDataSegmentLength": strconv.Itoa(p.MaxXmitDataSegment),
		"MaxBurstLength": strconv.Itoa(p.MaxBurst), "FirstBurstLength": strconv.Itoa(p.FirstBurst),
		"MaxOutstandingR2T": strconv.Itoa(p.MaxOutstandingR2T), "DefaultTime2Wait": strconv.Itoa(p.DefaultTime2Wait),
		"DefaultTime2Retain": strconv.Itoa(p.DefaultTime2Retain), "DataPDUInOrder": yes(p.DataPDUInOrder),
		"DataSequenceInOrder": yes(p.DataSequenceInOrder), "ErrorRecoveryLevel": strconv.Itoa(p.ErrorRecoveryLevel),
	}
}

func (d *Daemon) findSession(id uint64) (server.SessionInfo, error) {
	for _, s := range d.gw.Sessions() {
		if s.ID == id {
			return s, nil
		}
	}
	return server.SessionInfo{}, &state.Error{Class: state.NotFound, Code: state.CodeSessionNotFound, Object: fmt.Sprintf("session %d", id),
		Reason: "does not exist", Hint: "blockgate session list"}
}

// CloseSession implements api.Service.
func (d *Daemon) CloseSession(_ context.Context, id uint64) error {
	s, err := d.findSession(id)
	if err != nil {
		return err
	}
	for _, c := range s.Conns {
		// One that has gone by itself in the meantime is as good as closed.
		_ = d.gw.CloseConnection(id, c.CID)
	}
	return nil
}

// CloseConnection implements api.Service.
func (d *Daemon) CloseConnection(_ context.Context, id uint64, cid uint16) error {
	if _, err := d.findSession(id); err != nil {
		return err
	}
	if err := d.gw.CloseConnection(id, cid); err != nil {
		return &state.Error{Class: state.NotFound, Code: state.CodeConnNotFound, Object: fmt.Sprintf("connection %d of session %d", cid, id),
			Reason: "does not exist", Hint: "blockgate session list"}
	}
	return nil
}

// System implements api.Service.
func (d *Daemon) System(context.Context) v1.System {
	s := d.st.Snapshot()
	sys := s.System()
	d.mu.RLock()
	failed := len(d.volumes) + len(d.portals) + len(d.nbdPortals)
	d.mu.RUnlock()
	unwell := 0
	for _, i := range d.gw.Volumes() {
		if i.Health.State != scsi.HealthOK {
			unwell++
		}
	}
	return v1.System{
		System: sys.Value, Revision: sys.Revision, Version: d.cfg.Version, PID: os.Getpid(), Started: d.started, StateDir: d.cfg.StateDir,
		Volumes: len(s.Volumes()), Targets: len(s.Targets()), Sessions: len(d.gw.Sessions()), Failed: failed, Unwell: unwell,
	}
}

// Shutdown implements api.Service.
func (d *Daemon) Shutdown(context.Context) error {
	d.stopOnce.Do(func() { close(d.stopping) })
	return nil
}

// Stats implements api.Service. A volume that is a LUN of several targets has the
// same totals at each.
func (d *Daemon) Stats(_ context.Context, target string) []v1.NexusStat {
	out := []v1.NexusStat{}
	for _, t := range d.st.Snapshot().Targets() {
		if target != "" && t.Value.Name != target {
			continue
		}
		for _, l := range t.Value.LUNs {
			v, err := d.gw.Volume(l.Volume)
			if err != nil {
				continue
			}
			out = append(out, v1.NexusStat{
				Target: t.Value.Name, TargetID: t.Value.ID, LUN: l.Number,
				ReadBytes: v.Stats.ReadBytes, ReadCommands: v.Stats.Reads,
				WriteBytes: v.Stats.WrittenBytes, WriteCommands: v.Stats.Writes, Errors: v.Stats.Errors,
			})
		}
	}
	ids := map[string]int{}
	for _, s := range d.gw.SessionStats(target) {
		id, ok := ids[s.Target]
		if !ok {
			t, _ := d.st.Snapshot().Target(s.Target)
			id, ids[s.Target] = t.Value.ID, t.Value.ID
		}
		for _, l := range s.LUNs {
			out = append(out, v1.NexusStat{
				Target: s.Target, TargetID: id, LUN: l.LUN, Session: s.ID,
				ReadBytes: l.In.Bytes, ReadCommands: l.In.Commands,
				WriteBytes: l.Out.Bytes, WriteCommands: l.Out.Commands, Errors: l.Errors,
			})
		}
	}
	return out
}

// Engines implements api.Service.
func (d *Daemon) Engines(context.Context) []v1.Engine {
	out := []v1.Engine{}
	for _, s := range d.gw.Engines() {
		out = append(out, v1.Engine{Scheme: s})
	}
	for _, k := range layer.Kinds() {
		out = append(out, v1.Engine{Scheme: k, Layer: true})
	}
	return out
}
