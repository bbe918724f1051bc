package tgt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"strings"

	"blockgate/internal/api/client"
	v1 "blockgate/internal/api/v1"
	"blockgate/internal/state"
)

const setupLUNHelp = `usage:
	tgt-setup-lun -n tgt_name -d dev -b bs_name -B block_size -t transport -C control_port [initiator_IP1 initiator_IP2 ...]
defaults:
	backing store: rdwr
	transport: iscsi
	initiator: ALL
	control port: -
examples:
	tgt-setup-lun -n tgt-1 -d /dev/sdb1 192.168.1.2
	tgt-setup-lun -n tgt-2 -d /tmp/null -b null
	tgt-setup-lun -n tgt-3 -d ~/disk3.bin -b rdwr 192.168.1.2 192.168.1.3
`

// RunTgtSetupLUN carries out one tgt-setup-lun command line (without the
// program's name): a target with one unit in one step. It returns 0 or 1.
// getenv is asked for TGT_IPC_SOCKET.
func RunTgtSetupLUN(args []string, stdout, stderr io.Writer, getenv func(string) string) int {
	var name, device, bstype, blockSize string
	transport, port := "iscsi", 0
	if len(args) == 0 {
		io.WriteString(stdout, setupLUNHelp)
		return 1
	}
	g := &getopt{args: args, options: []option{
		{short: 'n', arg: needArg}, {short: 'd', arg: needArg}, {short: 'b', arg: needArg}, {short: 'B', arg: needArg},
		{short: 't', arg: needArg}, {short: 'C', arg: needArg}, {short: 'h', long: "help"},
	}}
	bad := func(format string, a ...any) int {
		fmt.Fprintf(stdout, "Error: "+format+"\n", a...)
		return 1
	}
	for {
		p, ok, err := g.read()
		if err != nil {
			fmt.Fprintf(stderr, "tgt-setup-lun: %v\n", err)
			return 1
		}
		if !ok {
			break
		}
		switch p.opt.short {
		case 'n':
			name = p.value
		case 'd':
			device = p.value
		case 'b':
			bstype = p.value
		case 'B':
			blockSize = p.value
		case 't':
			transport = p.value
		case 'C':
			n, fault := parseNumber(p.value, math.MaxInt16)
			if fault != numberOK {
				return bad("control port '%s' is %s", p.value, fault)
			}
			port = int(n)
		case 'h':
			io.WriteString(stdout, setupLUNHelp)
			return 0
		}
	}
	switch {
	case device == "":
		return bad("a device is mandatory")
	case name == "":
		return bad("a target name is mandatory")
	}
	fmt.Fprintf(stdout, "Using transport: %s\n", transport)
	if !strings.HasPrefix(name, "iqn") {
		host, err := os.Hostname()
		if err != nil {
			return bad("the name of this machine is not known: %v", err)
		}
		name = "iqn.2001-04.com." + host + "-" + name
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := client.New(socketPath(getenv, port))
	defer c.Close()
	s := &setup{
		admin: &admin{request: &request{lun: 1, path: device, bstype: bstype, blockSize: blockSize, deviceType: "disk"}, ctx: ctx, api: c},
		name:  name, rules: g.words, out: stdout,
	}
	if transport != "iscsi" {
		report(stderr, fail(msgNoDriver))
		return bad("failed to create target (name=%s): transport %s", name, transport)
	}
	if err := s.run(); err != nil {
		if e, ok := errors.AsType[*ended](err); ok {
			return e.status
		}
		report(stderr, err)
		return 1
	}
	for _, n := range s.notes {
		note(stderr, n)
	}
	return 0
}

// setup makes a target with one unit.
type setup struct {
	*admin
	name  string
	rules []string // addresses; none: ALL
	out   io.Writer
}

func (s *setup) run() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	s.dir = dir
	for try := 0; ; try++ {
		list, err := s.api.Targets(s.ctx)
		if err != nil {
			return err
		}
		ids := map[int]bool{}
		for _, t := range list {
			if t.Name == s.name {
				fmt.Fprintf(s.out, "Error: target named %s already exists\n", s.name)
				return &ended{1}
			}
			ids[t.ID] = true
		}
		s.tid = 1
		for id := range maps.Keys(ids) {
			s.tid = max(s.tid, id+1)
		}
		err = s.make(try == 0)
		if e := state.ErrorOf(err); e == nil || e.Code != state.CodeTargetIDExists || try == 20 {
			return err
		}
	}
}

func (s *setup) make(first bool) error {
	target := &state.Target{Name: s.name, ID: s.tid, ControllerLUN0: true, LUNs: []state.LUN{{Number: s.lun}}}
	for _, r := range s.rules {
		target.ACL = append(target.ACL, state.ACLRule{Address: r})
	}
	from := strings.Join(s.rules, " ")
	if len(s.rules) == 0 {
		target.ACL, from = []state.ACLRule{{All: true}}, "all initiators"
	}
	if first {
		fmt.Fprintf(s.out, "Creating new target (name=%s, tid=%d)\nAdding a logical unit (%s) to target, tid=%d\n", s.name, s.tid, s.path, s.tid)
		if s.bstype != "" {
			fmt.Fprintf(s.out, "Setting backing store type: %s\n", s.bstype)
		}
	}
	noUnit := func(err error) error {
		fmt.Fprintf(s.out, "Error: failed to add a logical unit (%s) to target, tid=%d\n", s.path, s.tid)
		return err
	}
	v, err := s.newVolume()
	if err != nil {
		return noUnit(err)
	}
	res, err := s.create(v, target)
	s.warn(res)
	switch e := state.ErrorOf(err); {
	case e == nil:
	case e.Object == fmt.Sprintf("volume %q", v.Name):
		return noUnit(err)
	default:
		return err
	}
	fmt.Fprintf(s.out, "Accepting connections from %s\n", from)
	return nil
}

// create makes the target with its volume. As with tgtadm, a store that may only
// be read is served so, and one that is served already gets another path.
func (s *setup) create(v *state.Volume, target *state.Target) (v1.Result, error) {
	ops := []state.Op{{Verb: state.Create, Kind: state.KindVolume, Volume: v}, {Verb: state.Create, Kind: state.KindTarget, Target: target}}
	for try := 0; ; try++ {
		target.LUNs[0].Volume = v.Name
		res, err := s.api.Apply(s.ctx, ops...)
		e := state.ErrorOf(err)
		switch {
		case e == nil || try == 3:
			return res, err
		case e.Code == state.CodeVolumeExists: // of an earlier target with this number
			v.Name = freshVolumeName(s.tid, s.lun)
		case e.Code == state.CodeOpenFailed && !v.ReadOnly && refusesWrites(e):
			v.ReadOnly, v.Unit.ReadOnly = true, true
		case e.Code == state.CodeOpenFailed && e.Class == state.Conflict:
			served, err2 := s.servedAs(v)
			if err2 != nil {
				return res, err
			}
			target.LUNs[0].Volume = served.Name
			if res, err = s.api.Apply(s.ctx, ops[1]); err == nil {
				s.noteShared(v, served)
			}
			return res, err
		default:
			return res, err
		}
	}
}
