package tgt

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// scan reads a whole command line into "c=value" for options and the words.
func scan(options []option, args []string) (opts, rest []string, err error) {
	g := getopt{options: options, args: args}
	for {
		p, ok, err := g.read()
		if err != nil || !ok {
			return opts, g.words, err
		}
		s := string(rune(p.opt.short))
		if p.opt.arg == needArg {
			s += "=" + p.value
		}
		opts = append(opts, s)
	}
}

func TestGetopt(t *testing.T) {
	for _, c := range []struct {
		args, opts, words string // separated by blanks
		err               string
	}{
		{args: "-t1", opts: "t=1"},
		{args: "-t 1", opts: "t=1"},
		{args: "--tid=1", opts: "t=1"},
		{args: "--tid 1", opts: "t=1"},
		{args: "--ti 1", opts: "t=1"},
		{args: "--tid=", opts: "t="},
		{args: "--param a=b,c=d", opts: "P=a=b,c=d"},
		{args: "--targ x --op show", opts: "T=x o=show"},
		{args: "--lun -1", opts: "l=-1"},
		{args: "--user --password", opts: "u=--password"},
		{args: "-n a -n b", opts: "n=a n=b"},
		{args: "-dhV", opts: "d h V"},
		{args: "-dt5", opts: "d t=5"},
		{args: "a -t 1 b -d c", opts: "t=1 d", words: "a b c"},
		{args: "-t 1 -- -d --tid", opts: "t=1", words: "-d --tid"},
		{args: "- -d", opts: "d", words: "-"},
		{args: "-t --", opts: "t=--"},
		// Short -F and -O: alone, before an option, with a word of tgt's.
		{args: "-F", opts: "F"},
		{args: "-F -t 1", opts: "F t=1"},
		{args: "-F x -t 1", opts: "F t=1"},
		{args: "-Fx -t 1", opts: "F t=1"},
		{args: "-O --user x", opts: "O u=x"},
		{args: "--force --outgoing", opts: "F O"},
		{args: "--force x", opts: "F", words: "x"},
		{args: "-Z", err: "invalid option -- 'Z'"},
		{args: "-dZ", opts: "d", err: "invalid option -- 'Z'"},
		{args: "--bogus=1", err: "unrecognized option '--bogus=1'"},
		{args: "--tid", err: "option '--tid' requires an argument"},
		{args: "--ti", err: "option '--tid' requires an argument"},
		{args: "-t", err: "option requires an argument -- 't'"},
		{args: "--force=1", err: "option '--force' doesn't allow an argument"},
		{args: "--o=show", err: "option '--o=show' is ambiguous; possibilities: '--op' '--outgoing'"},
		{args: "--b x", err: "option '--b' is ambiguous; possibilities: '--backing-store' '--bstype' '--bsopts' '--bsoflags' '--blocksize' '--bus'"},
	} {
		opts, rest, err := scan(tgtadmOptions(), strings.Fields(c.args))
		got := [3]string{strings.Join(opts, " "), strings.Join(rest, " "), ""}
		if err != nil {
			got[2] = err.Error()
		}
		if d := cmp.Diff([3]string{c.opts, c.words, c.err}, got); d != "" {
			t.Errorf("%s: -want +got\n%s", c.args, d)
		}
	}
}

// FuzzGetopt: whatever the words, reading them ends, makes up nothing, and the
// whole command line is refused or carries numbers in their range.
func FuzzGetopt(f *testing.F) {
	for _, s := range []string{
		"--lld\x00iscsi\x00--op\x00new\x00--mode\x00target\x00--tid\x001\x00-T\x00iqn.2013-10.com.example",
		"-oshow\x00-mtgt\x00-t1", "-F\x00x\x00-O", "--o=show", "--\x00-x", "-\x00--=\x00--=x", "-C\x00-1\x00-l\x000x", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		g := getopt{options: tgtadmOptions(), args: args}
		n := 0
		for {
			p, ok, err := g.read()
			if err != nil || !ok {
				break
			}
			if p.value != "" && !strings.Contains(line, p.value) {
				t.Fatalf("value %q is not in %q", p.value, line)
			}
			if n++; n > len(line)+len(args) {
				t.Fatalf("%d options in %q", n, line)
			}
		}
		if len(g.words) > len(args) {
			t.Fatalf("%d words in %q", len(g.words), line)
		}
		var out, errs strings.Builder
		r, end := parseTgtadm(args, &out, &errs)
		if (r == nil) == (end == nil) {
			t.Fatalf("%q: neither a request nor an end, or both", line)
		}
		if end != nil {
			if end.status != 0 && errs.Len() == 0 {
				t.Fatalf("%q ends with %d without a word", line, end.status)
			}
			return
		}
		if r.tid < -1 || r.port < 0 || r.port > 32767 {
			t.Fatalf("%q: tid %d, port %d", line, r.tid, r.port)
		}
		r.check()
	})
}

func TestParseNumber(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit uint64
		want  uint64
		fault numberFault
	}{
		{"7", 10, 7, numberOK}, {" 7", 10, 7, numberOK}, {"+8", 10, 8, numberOK}, {"0x9", 10, 9, numberOK},
		{"010", 10, 8, numberOK}, {"08", 10, 0, numberOK}, {"0x", 10, 0, numberOK}, {"0xg", 10, 0, numberOK}, {"5x", 10, 5, numberOK}, {"-0", 10, 0, numberOK},
		{"11", 10, 0, numberRange}, {"-5", 10, 0, numberRange}, {"0XfF", 255, 255, numberOK},
		{"", 10, 0, numberInvalid}, {"abc", 10, 0, numberInvalid}, {"-", 10, 0, numberInvalid}, {"-1", 10, 0, numberInvalid},
		{" -1", 10, 0, numberInvalid}, {"18446744073709551615", 1<<64 - 1, 0, numberInvalid}, {"99999999999999999999999", 10, 0, numberInvalid},
		{"18446744073709551614", 1<<64 - 1, 1<<64 - 2, numberOK},
	} {
		got, fault := parseNumber(c.text, c.limit)
		if got != c.want || fault != c.fault {
			t.Errorf("parseNumber(%q, %d) = %d, %q, want %d, %q", c.text, c.limit, got, fault, c.want, c.fault)
		}
	}
	for text, want := range map[string]int{"1": 1, "2x": 2, "Yes": 0, "": 0, " -3": -3, "+4": 4, "99999999999": 0} {
		if got := integer(text); got != want {
			t.Errorf("integer(%q) = %d, want %d", text, got, want)
		}
	}
}
