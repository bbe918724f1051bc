package tgt

import (
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"blockgate/internal/state"
)

// tgtdOptions are the command line of tgtd.
type tgtdOptions struct {
	foreground bool // -f
	logger     bool // -D: in the foreground, with the system log
	port       int
	debug      bool
	pidFile    string
	state      string // --state; empty: not given
	portals    []state.Portal
	// Defaults of new targets, empty unless given.
	nopInterval, nopCount string
}

func tgtdOptionTable() []option {
	return []option{
		{short: 'f', long: "foreground"},
		{short: 'D', long: "nodaemonize"},
		{short: 'C', long: "control-port", arg: needArg},
		{short: 't', long: "nr_iothreads", arg: needArg},
		{short: 'p', long: "pid-file", arg: needArg},
		{short: 'd', long: "debug", arg: needArg},
		{short: 'V', long: "version"},
		{short: 'h', long: "help"},
		{short: 1, long: "iscsi", arg: needArg},
		{short: 2, long: "iser", arg: needArg},
		{short: 3, long: "state", arg: needArg},
	}
}

// parseTgtd reads the command line. Paths come back absolute, since a daemon in
// the background leaves its directory.
func parseTgtd(args []string, stdout, stderr io.Writer) (*tgtdOptions, *exit) {
	o := &tgtdOptions{}
	g := getopt{options: tgtdOptionTable(), args: args}
	usage := func(status int, message string) *exit {
		if message != "" {
			fmt.Fprintln(stderr, message)
		}
		fmt.Fprintln(stderr, "Try `tgtd --help' for more information.")
		return &exit{status}
	}
	for {
		p, ok, err := g.read()
		if err != nil {
			return nil, usage(1, "tgtd: "+err.Error())
		}
		if !ok {
			break
		}
		number := func(lowest, highest uint64) (int, *exit) {
			v, fault := parseNumber(p.value, highest)
			if fault == numberOK && v < lowest {
				fault = numberRange
			}
			switch fault {
			case numberOK:
				return int(v), nil
			case numberRange:
				return 0, usage(exitTooLarge, fmt.Sprintf("-%c argument value '%s' %s", p.opt.short, p.value, fault))
			}
			return 0, usage(exitInvalid, fmt.Sprintf("-%c argument value '%s' %s", p.opt.short, p.value, fault))
		}
		var end *exit
		n := 0
		switch p.opt.short {
		case 'f':
			o.foreground = true
		case 'D':
			o.logger = true
		case 'C':
			o.port, end = number(0, math.MaxInt16)
		case 't':
			_, end = number(1, math.MaxInt32)
		case 'd':
			n, end = number(0, 1)
			o.debug = n == 1
		case 'p':
			o.pidFile, err = filepath.Abs(p.value)
		case 3:
			o.state, err = filepath.Abs(p.value)
		case 1:
			err = o.iscsi(p.value)
		case 2:
			fmt.Fprintln(stderr, "tgtd: iSER is not served, --iser has no effect")
		case 'V':
			fmt.Fprintln(stdout, compatVersion)
			return nil, &exit{exitOK}
		case 'h':
			io.WriteString(stdout, tgtdHelp)
			return nil, &exit{exitOK}
		}
		if end != nil {
			return nil, end
		}
		if err != nil {
			return nil, usage(1, "tgtd: "+err.Error())
		}
	}
	for _, w := range g.words { // tgt says nothing of them
		fmt.Fprintf(stderr, "tgtd: the word %q has no effect\n", w)
	}
	return o, nil
}

// iscsi reads the list of --iscsi. Unlike tgt's, a word that is not understood
// and an address that is none are errors: the daemon would listen elsewhere.
func (o *tgtdOptions) iscsi(list string) error {
	for _, part := range strings.Split(list, ",") {
		if part == "" {
			continue
		}
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "portal":
			addr, err := state.ParsePortal(value)
			if err != nil {
				return fmt.Errorf("--iscsi %s: %w", part, err)
			}
			o.portals = append(o.portals, state.Portal{Address: addr, Group: 1})
		case "nop_interval", "nop_count":
			n, fault := parseNumber(value, 3600)
			if fault != numberOK {
				return fmt.Errorf("--iscsi %s: %s", part, fault)
			}
			if key == "nop_interval" {
				o.nopInterval = strconv.FormatUint(n, 10)
			} else {
				o.nopCount = strconv.FormatUint(n, 10)
			}
		default:
			return fmt.Errorf("--iscsi %s: known are portal, nop_interval and nop_count", part)
		}
	}
	return nil
}
