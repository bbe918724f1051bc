package tgt

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

func (a *admin) system() error {
	switch a.op {
	case opShow:
		return a.showSystem()
	case opUpdate:
		err := a.changeSystem(func(s *state.System) error { return setSystem(s, a.name, a.value) })
		if err == nil && a.name == "iSNS" && a.value == "On" {
			a.note(noISNS)
		}
		return err
	case opStat:
		return a.stat(func(statRow) bool { return true }, "")
	}
	return a.stop()
}

// noISNS is said to those who turn iSNS on.
const noISNS = "iSNS=On has no effect: targets are not registered with iSNS servers; initiators find them by SendTargets"

// setSystem does one "system update". Names and values match in case, as in tgt.
func setSystem(s *state.System, name, value string) error {
	keep := func(v string) error {
		if s.Params == nil {
			s.Params = map[string]string{}
		}
		s.Params[name] = v
		return nil
	}
	switch name {
	case "State":
		if value != "ready" && value != "offline" {
			return refuse("State is ready or offline, not %q", value)
		}
		s.Offline = value == "offline"
		return nil
	case "debug":
		if value != "on" && value != "off" {
			return refuse("debug is on or off, not %q", value)
		}
		s.Debug = value == "on"
		return nil
	case "iSNSServerIP":
		return keep(value)
	case "iSNSServerPort":
		n, rest, ok := leadingNumber(value)
		if !ok || rest == value || n > 65535 {
			return refuse("iSNSServerPort=%q is not a port", value)
		}
		return keep(strconv.FormatUint(n, 10))
	case "iSNS":
		// On is taken, and said to have no effect: tgt-admin would make no target at
		// all if its first command failed. The listing goes on saying Off.
		if value == "On" || value == "Off" {
			return nil
		}
		return refuse("iSNS is On or Off, not %q", value)
	case "iSNSAccessControl":
		if value == "Off" {
			return nil
		}
		// Without it, initiators would come in that are kept out now.
		return refuse("%s=%s: iSNS servers are not asked who has access; the targets' own rules are what counts", name, value)
	}
	return refuse("there is no system setting %q", name)
}

// stop asks the daemon to end, unless there are targets.
func (a *admin) stop() error {
	sys, err := a.api.System(a.ctx)
	if err != nil {
		return err
	}
	if sys.Targets > 0 {
		return refuse("there are %d targets; delete them first, or send SIGTERM to process %d, which keeps them for the next start", sys.Targets, sys.PID)
	}
	if _, err := a.api.Shutdown(a.ctx); err != nil {
		return err
	}
	return nil
}

// waitEnd waits until the daemon's socket refuses.
func waitEnd(ctx context.Context, socket string) error {
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		c, err := net.DialTimeout("unix", socket, time.Second)
		if err != nil {
			return nil
		}
		c.Close()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &failure{message: msgUnknown, detail: "tgtd was asked to end and still answers"}
		}
	}
}

// lld is about drivers: there is iSCSI. Stopped, which it can be without targets, it
// takes no connections, and commands that name it do not find it.
func (a *admin) lld() error {
	sys, err := a.api.System(a.ctx)
	if err != nil {
		return err
	}
	switch {
	case a.op == opStart && a.driver == "iser":
		return &failure{message: msgUnknown, detail: "iSER is not served"}
	case a.driver == "iser" && a.op == opStop:
		return nil
	case a.op == opStop && sys.Targets > 0:
		return fail(msgDriverBusy)
	case a.op == opStart || a.op == opStop:
		return a.setDriver(sys.Stopped(), a.op == opStop)
	}
	targets, err := a.api.Targets(a.ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(targets, func(x, y v1.Target) int { return cmp.Compare(x.ID, y.ID) })
	fmt.Fprintf(a.out, "LLDs:\n    iscsi: %s\n", driverState(&sys.System))
	for _, t := range targets {
		fmt.Fprintf(a.out, "        Target %d: %s\n", t.ID, t.Name)
	}
	fmt.Fprintln(a.out, "    iser: error")
	return nil
}

func (a *admin) setDriver(is, stopped bool) error {
	if is == stopped {
		return nil
	}
	return a.changeSystem(func(s *state.System) error {
		delete(s.Params, state.ParamDriver)
		if !stopped {
			return nil
		}
		if s.Params == nil {
			s.Params = map[string]string{}
		}
		s.Params[state.ParamDriver] = state.DriverStopped
		return nil
	})
}
