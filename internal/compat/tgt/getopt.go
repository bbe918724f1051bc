package tgt

import (
	"fmt"
	"strings"
)

// argKind says whether an option has an argument.
type argKind int

const (
	noArg argKind = iota
	needArg
	// swallowArg is for the short options that tgt declares, by mistake, with an
	// argument: they work without one, and a word that follows is dropped, so that
	// command lines written for either reading work.
	swallowArg
)

// option is one option with its short and long name; either may be absent.
type option struct {
	short byte
	long  string
	arg   argKind
	// shortArg, if not noArg, replaces arg for the short form.
	shortArg argKind
}

func (o *option) kind(short bool) argKind {
	if short && o.shortArg != noArg {
		return o.shortArg
	}
	return o.arg
}

// parsed is one option of a command line.
type parsed struct {
	opt   *option
	value string // of an option with an argument
}

// getopt reads a command line as getopt_long of the C library does: options and
// other words in any order, "--" ends the options, long names may be
// abbreviated as long as they are unambiguous, short ones clustered. Its zero
// value is ready once options and args are set.
type getopt struct {
	options []option
	args    []string

	next    int      // index of the next word
	cluster string   // what is left of a word of short options
	ended   bool     // "--" was seen
	words   []string // what is not an option, in order
}

// read gives the next option, or ok false at the end; then words is complete.
// The error is worded as getopt_long's, without the program's name.
func (g *getopt) read() (p parsed, ok bool, err error) {
	if g.cluster != "" {
		return g.readShort()
	}
	for ; g.next < len(g.args); g.next++ {
		w := g.args[g.next]
		switch {
		case g.ended || len(w) < 2 || w[0] != '-':
			g.words = append(g.words, w)
		case w == "--":
			g.ended = true
		case w[1] == '-':
			g.next++
			return g.readLong(w[2:])
		default:
			g.next++
			g.cluster = w[1:]
			return g.readShort()
		}
	}
	return parsed{}, false, nil
}

func (g *getopt) readShort() (parsed, bool, error) {
	c := g.cluster[0]
	g.cluster = g.cluster[1:]
	o := g.short(c)
	if o == nil {
		return parsed{}, false, fmt.Errorf("invalid option -- '%c'", c)
	}
	kind := o.kind(true)
	if kind == noArg {
		return parsed{opt: o}, true, nil
	}
	rest := g.cluster
	g.cluster = ""
	switch {
	case rest != "":
	case kind == swallowArg:
		if g.next < len(g.args) && !strings.HasPrefix(g.args[g.next], "-") {
			g.next++
		}
	case g.next < len(g.args):
		rest = g.args[g.next]
		g.next++
	default:
		return parsed{}, false, fmt.Errorf("option requires an argument -- '%c'", c)
	}
	if kind == swallowArg {
		rest = ""
	}
	return parsed{o, rest}, true, nil
}

func (g *getopt) readLong(w string) (parsed, bool, error) {
	name, value, given := strings.Cut(w, "=")
	o, err := g.long(name, w)
	if err != nil {
		return parsed{}, false, err
	}
	switch {
	case o.arg == noArg && given:
		return parsed{}, false, fmt.Errorf("option '--%s' doesn't allow an argument", o.long)
	case o.arg == needArg && !given:
		if g.next >= len(g.args) {
			return parsed{}, false, fmt.Errorf("option '--%s' requires an argument", o.long)
		}
		value = g.args[g.next]
		g.next++
	}
	return parsed{o, value}, true, nil
}

func (g *getopt) short(c byte) *option {
	for i := range g.options {
		if g.options[i].short == c && c != 0 {
			return &g.options[i]
		}
	}
	return nil
}

// long finds an option by its name or an unambiguous beginning of it; whole is
// the word as given, for the message.
func (g *getopt) long(name, whole string) (*option, error) {
	var found []*option
	for i := range g.options {
		o := &g.options[i]
		if o.long == "" {
			continue
		}
		if o.long == name {
			return o, nil
		}
		if strings.HasPrefix(o.long, name) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("unrecognized option '--%s'", whole)
	case 1:
		return found[0], nil
	}
	var names strings.Builder
	for _, o := range found {
		fmt.Fprintf(&names, " '--%s'", o.long)
	}
	return nil, fmt.Errorf("option '--%s' is ambiguous; possibilities:%s", whole, names.String())
}
