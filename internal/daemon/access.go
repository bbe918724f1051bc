package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"blockgate/gateway"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
	"blockgate/scsi"
)

// The asymmetric access states of a target's port groups are no resource:
// initiators set them too, by SET TARGET PORT GROUPS, and a configuration that is
// applied anew must not undo a failover. They are kept beside the resources.

// accessRecord is one port group as it is kept. Groups that nobody has touched
// are left out.
type accessRecord struct {
	Group     uint16 `json:"group"`
	State     string `json:"state"`
	Preferred bool   `json:"preferred,omitempty"`
	Status    uint8  `json:"status,omitempty"` // STATUS CODE, SPC-4 §6.37
}

// addTargetConfig is a target that is added: with the access states that were
// kept.
func (d *Daemon) addTargetConfig(ctx context.Context, s *state.Snapshot, t state.Target) gateway.TargetConfig {
	c := d.targetConfig(s, t)
	kept := d.st.Access(t.Name)
	data, err := kept.Load(ctx)
	if err == nil {
		c.PortGroups, err = decodeAccess(data)
	}
	if err != nil {
		// The data are safe in any state; a path too many is better than none.
		d.log.Error("access states lost: all paths are active/optimized", "target", t.Name, "err", err)
		c.PortGroups = nil
	}
	c.SaveALUA = func(ctx context.Context, groups []scsi.PortGroup) error {
		data, err := encodeAccess(groups)
		if err != nil {
			return err
		}
		return kept.Save(ctx, data)
	}
	return c
}

func decodeAccess(data []byte) ([]scsi.PortGroup, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var list []accessRecord
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	out := make([]scsi.PortGroup, len(list))
	for i, r := range list {
		s, err := scsi.ParseAccessState(r.State)
		if err != nil {
			return nil, err
		}
		out[i] = scsi.PortGroup{Tag: r.Group, State: s, Preferred: r.Preferred, Status: scsi.AccessStatus(r.Status)}
	}
	return out, nil
}

func encodeAccess(groups []scsi.PortGroup) ([]byte, error) {
	var list []accessRecord
	for _, p := range groups {
		if p.State != scsi.ActiveOptimized || p.Preferred || p.Status != scsi.StatusNone {
			list = append(list, accessRecord{p.Tag, p.State.String(), p.Preferred, uint8(p.Status)})
		}
	}
	if list == nil {
		return nil, nil
	}
	return json.Marshal(list)
}

// accessStatus names the status codes.
var accessStatus = map[scsi.AccessStatus]string{
	scsi.StatusExplicit: "initiator", scsi.StatusImplicit: "administrator",
}

// PortGroups implements api.Service.
func (d *Daemon) PortGroups(_ context.Context, target string) ([]v1.PortGroup, error) {
	list, err := d.gw.PortGroups(target)
	if err != nil {
		return nil, accessError(target, 0, err)
	}
	out := make([]v1.PortGroup, len(list))
	for i, p := range list {
		out[i] = v1.PortGroup{Group: p.Tag, State: p.State.String(), Preferred: p.Preferred, ChangedBy: accessStatus[p.Status], Ports: p.Ports}
	}
	return out, nil
}

// SetPortGroup implements api.Service.
func (d *Daemon) SetPortGroup(ctx context.Context, target string, group uint16, set v1.SetPortGroup) ([]v1.PortGroup, error) {
	list, err := d.gw.PortGroups(target)
	if err != nil {
		return nil, accessError(target, group, err)
	}
	for _, p := range list {
		if p.Tag != group {
			continue
		}
		if set.State != "" {
			if p.State, err = scsi.ParseAccessState(set.State); err != nil {
				return nil, &state.Error{Class: state.Usage, Code: state.CodeInvalidValue, Object: fmt.Sprintf("state %q", set.State),
					Reason: "is not an asymmetric access state",
					Hint:   "use active/optimized, active/non-optimized, standby, unavailable, offline or transitioning"}
			}
		}
		if set.Preferred != nil {
			p.Preferred = *set.Preferred
		}
		if err := d.gw.SetPortGroup(context.WithoutCancel(ctx), target, group, p.State, p.Preferred); err != nil {
			return nil, accessError(target, group, err)
		}
		d.log.Info("access state set", "target", target, "group", group, "state", p.State, "preferred", p.Preferred)
		return d.PortGroups(ctx, target)
	}
	return nil, accessError(target, group, fmt.Errorf("portal group %d: %w", group, gateway.ErrNotFound))
}

func accessError(target string, group uint16, err error) error {
	switch {
	case !errors.Is(err, gateway.ErrNotFound):
		return &state.Error{Class: state.Internal, Code: state.CodeStateFailed, Object: fmt.Sprintf("portal group %d of target %q", group, target),
			Reason: reason(err), Err: err}
	case group == 0:
		return notFound(state.CodeTargetNotFound, "target", target)
	}
	return &state.Error{Class: state.NotFound, Code: state.CodePortalNotFound, Object: fmt.Sprintf("portal group %d of target %q", group, target),
		Reason: "does not exist, or has no portal", Hint: "blockgate target group list " + target}
}
