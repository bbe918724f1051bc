package tgt

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// adminAction is what tgt-admin is asked for.
type adminAction int

const (
	adminNothing adminAction = iota
	adminExecute
	adminDelete
	adminOffline
	adminReady
	adminUpdate
	adminShow
	adminDump
)

// adminOptions is a tgt-admin command line.
type adminOptions struct {
	action                                adminAction
	value                                 string // ALL, tid=N or a name
	port                                  int
	conf                                  string
	ignoreErrors, force, pretend, verbose bool
}

const defaultConf = "/etc/tgt/targets.conf"

func tgtAdminOptions() []option {
	return []option{
		{short: 'e', long: "execute"},
		{short: 1, long: "delete", arg: needArg},
		{short: 2, long: "offline", arg: needArg},
		{short: 3, long: "ready", arg: needArg},
		{short: 4, long: "update", arg: needArg},
		{short: 's', long: "show"},
		{short: 'C', long: "control-port", arg: needArg},
		{short: 'c', long: "conf", arg: needArg},
		{short: 5, long: "ignore-errors"},
		{short: 'f', long: "force"},
		{short: 'p', long: "pretend"},
		{short: 6, long: "dump"},
		{short: 'v', long: "verbose"},
		{short: 'h', long: "help"},
	}
}

// parseTgtAdmin reads the command line. What it does not know it says and goes
// on, as tgt-admin does.
func parseTgtAdmin(args []string, stdout, stderr io.Writer) (*adminOptions, *exit) {
	o := &adminOptions{conf: defaultConf}
	if len(args) == 0 {
		io.WriteString(stdout, tgtAdminHelp)
		return nil, &exit{exitOK}
	}
	ready, offline, help := false, false, false
	set := func(a adminAction, value string) {
		// One action is carried out; the order of precedence is tgt-admin's.
		if o.action == adminNothing || a < o.action {
			o.action, o.value = a, value
		}
	}
	for g := (&getopt{options: tgtAdminOptions(), args: args}); ; {
		p, ok, err := g.read()
		if err != nil {
			text := err.Error()
			text = strings.Replace(text, "unrecognized option '--", "Unknown option: ", 1)
			text = strings.Replace(text, "invalid option -- '", "Unknown option: ", 1)
			fmt.Fprintln(stderr, strings.TrimSuffix(text, "'"))
			continue
		}
		if !ok {
			break
		}
		switch p.opt.short {
		case 'e':
			set(adminExecute, "")
		case 1:
			set(adminDelete, p.value)
		case 2:
			offline = true
			set(adminOffline, p.value)
		case 3:
			ready = true
			set(adminReady, p.value)
		case 4:
			set(adminUpdate, p.value)
		case 's':
			set(adminShow, "")
		case 6:
			set(adminDump, "")
		case 'C':
			n, fault := parseNumber(p.value, math.MaxInt16)
			if fault != numberOK {
				fmt.Fprintf(stderr, "tgt-admin: control port '%s' is %s\n", p.value, fault)
				return nil, &exit{exitInvalid}
			}
			o.port = int(n)
		case 'c':
			o.conf = p.value
		case 5:
			o.ignoreErrors = true
		case 'f':
			o.force = true
		case 'p':
			o.pretend = true
		case 'v':
			o.verbose = true
		case 'h':
			help = true
		}
	}
	switch {
	case help:
		io.WriteString(stdout, tgtAdminHelp)
		return nil, &exit{exitOK}
	case ready && offline:
		fmt.Fprintln(stdout, "Invalid value (you can't use both ready and offline)!")
		return nil, &exit{1}
	case o.action == adminNothing:
		fmt.Fprintln(stdout, "No action specified.")
		return nil, &exit{exitOK}
	case o.value == "help":
		writeAdminHelp(stdout, o.action)
		return nil, &exit{exitOK}
	}
	return o, nil
}

// byTID reads "tid=N".
func byTID(value string) (tid int, ok bool) {
	text, ok := strings.CutPrefix(value, "tid=")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 32)
	return int(n), err == nil
}

func writeAdminHelp(w io.Writer, a adminAction) {
	word, rule := "", ""
	switch a {
	case adminDelete:
		word = "delete"
		rule = "A target that an initiator is connected to is left alone, unless --force is given.\n"
	case adminUpdate:
		word = "update"
		rule = "A target that an initiator is connected to is left alone, unless --force is given;\n" +
			"with it, sessions go on: what is changed is changed under them.\n"
	case adminOffline:
		word = "offline"
	default:
		word = "ready"
	}
	fmt.Fprintf(w, "      --%[1]s <value>\t\t%[1]s all or selected targets\n%[2]s\nExample usage:\n"+
		"      --%[1]s help\t      - display this help\n      --%[1]s ALL\t      - %[1]s all targets\n"+
		"      --%[1]s tid=4\t      - %[1]s target 4 (target with tid 4)\n"+
		"      --%[1]s iqn.2008-08.com.example:some.target - %[1]s this target\n\n", word, rule)
}

const tgtAdminHelp = `Usage:
tgt-admin [OPTION]...
Configures the targets of a running tgtd after a file, as of tgt ` + compatVersion + `.

  -e, --execute                 make the file's targets that are not there yet, and
                                remove those that the file does not have
      --delete <value>          delete targets
      --offline <value>         put targets in the offline state
      --ready <value>           put targets in the ready state
      --update <value>          make targets what the file says
                                <value> is ALL, tid=N, a target's name, or help
  -s, --show                    show all the targets
  -C, --control-port <N>        the tgtd to talk to (default 0)
  -c, --conf <file>             the file (default ` + defaultConf + `)
      --ignore-errors           go on after an error
  -f, --force                   also act on targets and stores that are in use
  -p, --pretend                 print tgtadm command lines, and change nothing
      --dump                    print the running configuration in the form of the
                                file, without passwords
  -v, --verbose                 print tgtadm command lines for what is done
  -h, --help                    show this help
`
