package tgt

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// Exit statuses of tgtadm: errno values of Linux, and 1 for unknown words.
const (
	exitOK       = 0
	exitUnknown  = 1
	exitInvalid  = 22  // EINVAL
	exitNotConn  = 107 // ENOTCONN
	exitTooLarge = 34  // ERANGE; tgtd only
)

// mode and op are the words of --mode and --op.
type (
	mode int
	op   int
)

const (
	modeSystem mode = iota
	modeTarget
	modeUnit
	modePortal
	modeDriver
	modeSession
	modeConnection
	modeAccount
)

// The order is tgt's: one message shows the number.
const (
	opNew op = iota
	opDelete
	opShow
	opBind
	opUnbind
	opUpdate
	opStat
	opStart
	opStop
)

func (m mode) String() string {
	return [...]string{"system", "target", "logicalunit", "portal", "lld", "session", "connection", "account"}[m]
}

func (o op) String() string {
	return [...]string{"new", "delete", "show", "bind", "unbind", "update", "stat", "start", "stop"}[o]
}

func parseMode(s string) (mode, bool) {
	m, ok := map[string]mode{
		"system": modeSystem, "sys": modeSystem, "target": modeTarget, "tgt": modeTarget,
		"logicalunit": modeUnit, "lu": modeUnit, "portal": modePortal, "pt": modePortal,
		"session": modeSession, "sess": modeSession, "connection": modeConnection, "conn": modeConnection,
		"account": modeAccount, "lld": modeDriver,
	}[s]
	return m, ok
}

func parseOp(s string) (op, bool) {
	for o := opNew; o <= opStop; o++ {
		if o.String() == s {
			return o, true
		}
	}
	return 0, false
}

// noLUN is a LUN or session that was not given.
const noID = uint64(math.MaxUint64)

// request is a tgtadm command line.
type request struct {
	given []byte // short names of the options, in order

	mode mode
	op   op

	driver  string // empty: not given, which is iscsi
	tid     int    // -1: not given
	sid     uint64
	cid     uint32
	lun     uint64 // noID: not given
	name    string // empty: not given
	value   string
	hasPair struct{ name, value bool }

	path, bstype, bsopts, bsflags string
	blockSize                     string
	targetName                    string
	address, initiator            string
	hasAddress, hasInitiator      bool
	host                          bool // a legacy bus binding was asked for
	user, password                string
	hasUser, hasPassword          bool
	params                        string
	hasParams                     bool
	deviceType                    string
	force, outgoing, debug        bool
	port                          int
}

func tgtadmOptions() []option {
	return []option{
		{short: 'd', long: "debug"},
		{short: 'h', long: "help"},
		{short: 'V', long: "version"},
		{short: 'L', long: "lld", arg: needArg},
		{short: 'o', long: "op", arg: needArg},
		{short: 'm', long: "mode", arg: needArg},
		{short: 't', long: "tid", arg: needArg},
		{short: 's', long: "sid", arg: needArg},
		{short: 'c', long: "cid", arg: needArg},
		{short: 'l', long: "lun", arg: needArg},
		{short: 'n', long: "name", arg: needArg},
		{short: 'v', long: "value", arg: needArg},
		{short: 'b', long: "backing-store", arg: needArg},
		{short: 'E', long: "bstype", arg: needArg},
		{short: 'S', long: "bsopts", arg: needArg},
		{short: 'f', long: "bsoflags", arg: needArg},
		{short: 'y', long: "blocksize", arg: needArg},
		{short: 'T', long: "targetname", arg: needArg},
		{short: 'I', long: "initiator-address", arg: needArg},
		{short: 'Q', long: "initiator-name", arg: needArg},
		{short: 'u', long: "user", arg: needArg},
		{short: 'p', long: "password", arg: needArg},
		{short: 'H', long: "host", arg: needArg},
		{short: 'F', long: "force", shortArg: swallowArg},
		{short: 'P', long: "params", arg: needArg},
		{short: 'B', long: "bus", arg: needArg},
		{short: 'Y', long: "device-type", arg: needArg},
		{short: 'O', long: "outgoing", shortArg: swallowArg},
		{short: 'C', long: "control-port", arg: needArg},
	}
}

// exit ends a command early with a status; a nil *exit goes on.
type exit struct{ status int }

// parseTgtadm reads the command line. Messages go to stderr, the answers to
// --help and --version to stdout.
func parseTgtadm(args []string, stdout, stderr io.Writer) (*request, *exit) {
	r := &request{tid: -1, lun: noID, deviceType: "disk"}
	g := getopt{options: tgtadmOptions(), args: args}
	haveMode, haveOp := false, false
	usage := func(format string, a ...any) *exit {
		fmt.Fprintf(stderr, format+"\nTry `tgtadm --help' for more information.\n", a...)
		return &exit{exitInvalid}
	}
	for {
		p, ok, err := g.read()
		if err != nil {
			return nil, usage("tgtadm: %v", err)
		}
		if !ok {
			break
		}
		c := p.opt.short
		r.given = append(r.given, c)
		if limit, isNumber := numberLimit(c); isNumber {
			v, fault := parseNumber(p.value, limit)
			if fault != numberOK {
				return nil, usage("-%c argument value '%s' %s", c, p.value, fault)
			}
			r.setNumber(c, v)
			continue
		}
		switch c {
		case 'h':
			io.WriteString(stdout, tgtadmHelp)
			return nil, &exit{exitOK}
		case 'V':
			fmt.Fprintln(stdout, compatVersion)
			return nil, &exit{exitOK}
		case 'm':
			if r.mode, haveMode = parseMode(p.value); !haveMode {
				fmt.Fprintf(stderr, "tgtadm: unknown mode: %s\n", p.value)
				return nil, &exit{exitUnknown}
			}
		case 'o':
			if r.op, haveOp = parseOp(p.value); !haveOp {
				fmt.Fprintf(stderr, "tgtadm: unknown operation: %s\n", p.value)
				return nil, &exit{exitUnknown}
			}
		case 'B':
			// No driver here has SCSI hosts, so none is on a bus.
			bus, _, _ := strings.Cut(p.value, ",")
			fmt.Fprintf(stderr, "tgtadm: can't find bus: %s\n", bus)
			return nil, &exit{exitInvalid}
		case 'Y':
			if r.deviceType, ok = parseDeviceType(p.value); !ok {
				fmt.Fprintf(stderr, "tgtadm: unknown target type: %s\n", p.value)
				return nil, &exit{exitInvalid}
			}
		default:
			r.setText(c, p.value)
		}
	}
	switch {
	case len(g.words) > 0:
		return nil, usage("tgtadm: unrecognized option '%s'", g.words[0])
	case !haveOp:
		fmt.Fprintln(stderr, "tgtadm: specify the operation type")
	case !haveMode:
		fmt.Fprintln(stderr, "tgtadm: specify the mode")
	default:
		return r, nil
	}
	return nil, &exit{exitInvalid}
}

// numberLimit is the largest value of an option that takes a number.
func numberLimit(c byte) (uint64, bool) {
	switch c {
	case 't':
		return math.MaxInt32, true
	case 'C':
		return math.MaxInt16, true
	case 'c', 'H':
		return math.MaxUint32, true
	case 's', 'l':
		return math.MaxUint64, true
	}
	return 0, false
}

func (r *request) setNumber(c byte, v uint64) {
	switch c {
	case 't':
		r.tid = int(v)
	case 'C':
		r.port = int(v)
	case 'c':
		r.cid = uint32(v)
	case 's':
		r.sid = v
	case 'l':
		r.lun = v
	case 'H':
		r.host = true
	}
}

func (r *request) setText(c byte, v string) {
	switch c {
	case 'd':
		r.debug = true
	case 'L':
		r.driver = v
	case 'n':
		r.name, r.hasPair.name = v, true
	case 'v':
		r.value, r.hasPair.value = v, true
	case 'b':
		r.path = v
	case 'E':
		r.bstype = v
	case 'S':
		r.bsopts = v
	case 'f':
		r.bsflags = v
	case 'y':
		r.blockSize = v
	case 'T':
		r.targetName = v
	case 'I':
		r.address, r.hasAddress = v, true
	case 'Q':
		r.initiator, r.hasInitiator = v, true
	case 'u':
		r.user, r.hasUser = v, true
	case 'p':
		r.password, r.hasPassword = v, true
	case 'F':
		r.force = true
	case 'P':
		r.params, r.hasParams = v, true
	case 'O':
		r.outgoing = true
	}
}

func parseDeviceType(s string) (string, bool) {
	switch s {
	case "disk", "tape", "cd", "changer", "osd", "pt":
		return s, true
	case "ssc":
		return "tape", true
	}
	return "", false
}
