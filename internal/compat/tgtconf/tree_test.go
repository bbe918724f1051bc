package tgtconf

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func dump(b *strings.Builder, nodes []*Node, indent string) {
	for _, n := range nodes {
		if !n.Block {
			fmt.Fprintf(b, "%s%s=%q\n", indent, n.Key, n.Value)
			continue
		}
		fmt.Fprintf(b, "%s<%s %q\n", indent, n.Key, n.Value)
		dump(b, n.Nodes, indent+" ")
	}
}

// What is wanted is what Config::General 2.65 makes of the same text.
func TestGrammar(t *testing.T) {
	files := FS(fstest.MapFS{
		"conf.d/1.conf": {Data: []byte("one 1\n")}, "conf.d/2.conf": {Data: []byte("two 2")},
		"conf.d/.hidden": {Data: []byte("h 1\n")}, "conf.d/x": {Data: []byte("x 1\n")}, "conf.d/sub/y": {Data: []byte("y 1\n")},
		"a b.conf": {Data: []byte("blank 1\n")},
	})
	for _, c := range []struct{ name, in, want string }{
		{"separators", "a  b\nc\t= d\ne=f=g\nf a = b\nd =\nkey\n", "a=\"b\"\nc=\"d\"\ne=\"f=g\"\nf=\"a = b\"\nd=\"\"\nkey=\"\"\n"},
		{"quotes", "a \"b c\" d\nb \"x y\"\nc 'x'\nd \"trail  \"\n\"g\" h\n", "a=\"\\\"b c\\\" d\"\nb=\"x y\"\nc=\"'x'\"\nd=\"trail  \"\n\"g\"=\"h\"\n"},
		{"escapes", `a \# x # y` + "\n" + `b x\"y` + "\n" + `c x\\y` + "\n" + `d a\tb` + "\n" + `e \$x`, "a=\"# x\"\nb=\"x\\\"y\"\nc=\"x\\\\y\"\nd=\"a\\\\tb\"\ne=\"$x\"\n"},
		{"comments", "#a\n  # b\nc#d e\n# x \\\ny 1\nn \"a # b\"\n", "c=\"\"\ny=\"1\"\nn=\"\\\"a\"\n"},
		{"long comments", "a 1 /* c */\n/* x */ b 2\n/*\nc 3\n*/ d 4\np /etc/*.conf\n", "a=\"1\"\nb=\"2\"\nd=\"4\"\np=\"/etc/*.conf\"\n"},
		{"continued", "a b\\\n   c\\\n\td\nb x \\\n  y\nz 1\n", "a=\"bcd\"\nb=\"x y\"\nz=\"1\"\n"},
		{"here-document", "a <<EOT\n  x\n  y # z\n  EOT\nb <<  E2\nq\nE2\n", "a=\"x\\ny # z\"\nb=\"q\"\n"},
		{"blocks", "<t \"a b\">\n x 1\n <s /dev/a>\n y 2\n </s>\n</t>\n<t/>\n<t  sp>\n\n   \n</t>\n", "<t \"a b\"\n x=\"1\"\n <s \"/dev/a\"\n  y=\"2\"\n<t \"\"\n<t \"sp\"\n"},
		{"line ends", "a b\r\n<t x>\r\nb c\r\n</t>\r\n", "a=\"b\"\n<t \"x\"\n b=\"c\"\n"},
		{"wrong end tag", "<t a>\nb c\n</u>\nd e\n", "<t \"a\"\n b=\"c\"\nd=\"e\"\n"},
		{"include a pattern", "include /conf.d/*.conf\n", "one=\"1\"\ntwo=\"2\"\n"},
		{"include a pattern without the hidden", "include /conf.d/*\n", "one=\"1\"\ntwo=\"2\"\nx=\"1\"\n"},
		{"include a directory", "include /conf.d\n", "h=\"1\"\none=\"1\"\ntwo=\"2\"\nx=\"1\"\n"},
		{"include in Apache's way", "<<include /conf.d/1.conf>>\nInclude \"/a b.conf\"\n", "one=\"1\"\nblank=\"1\"\n"},
		{"include in a block", "<t a>\n include conf.d/1.conf\n</t>\n", "<t \"a\"\n one=\"1\"\n"},
		{"include once", "include /conf.d/1.conf\ninclude /conf.d/*.conf\n", "one=\"1\"\ntwo=\"2\"\n"},
		{"include nothing", "include /none/*.conf\na 1\n", "a=\"1\"\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := ParseTree(files, "f", []byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			dump(&b, tree.Nodes, "")
			if d := cmp.Diff(c.want, b.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestErrorsNameTheLine(t *testing.T) {
	files := FS(fstest.MapFS{
		"loop": {Data: []byte("a 1\ninclude /loop2\n")}, "loop2": {Data: []byte("<t x>\ninclude /loop\n</t>\n")},
		"open": {Data: []byte("\n<t x>\n")},
	})
	for _, c := range []struct{ in, want string }{
		{"a 1\n<t a>\nb c\n", "f:2: <t a> has no end: </t> is missing"},
		{"a b\n</t>\n", "f:2: </t> closes nothing"},
		{"include /none\n", "f:1: /none: file does not exist"},
		{"include /none", "f:1: /none: file does not exist"},
		{"x 1\ninclude /open\n", "/open:2: <t x> has no end: </t> is missing"},
		{"include\tx[\n", "f:1: the pattern \"x[\" is malformed"},
		{"include \"\"\n", "f:1: include wants a file, a directory or a pattern"},
		{"\n\n= x\n", "f:3: \"= x\": there is no key before the ="},
		{"a <<X\nb\n", "f:1: the text that begins with <<X has no end"},
		{"/* a\nb\n", "f:1: the comment that begins with /* has no end"},
		{"<t\n", "f:1: \"<t\": a block's line ends with >"},
		{"a \xff\n", "f:1: the line is not text"},
		{"a \x00\n", "f:1: the line is not text"},
		{strings.Repeat("<a b>\n", 40), "f:33: blocks are nested more than 32 deep"},
	} {
		_, err := ParseTree(files, "f", []byte(c.in))
		if err == nil || err.Error() != c.want {
			t.Errorf("%.40q: %v, want %s", c.in, err, c.want)
		}
	}
	if _, err := ReadTree(files, "/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	tree, err := ReadTree(files, "/loop")
	if err != nil || len(tree.Warnings) != 1 || tree.Warnings[0].Pos != (Position{"/loop2", 2}) {
		t.Errorf("files that include each other: %v, %v", tree, err)
	}
	if _, err := ParseTree(nil, "f", []byte("include x\n")); err == nil {
		t.Error("an include without a source is taken")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"default-driver iscsi\n<target iqn.a:b>\n backing-store /x\n</target>\n",
		"<target a>\n<backing-store /x>\nlun 3\nparams a=1\n</backing-store>\nincominguser u p\n</target>\n<target a>\n</target>",
		"a <<E\nx\nE\n/* c */ b \"x\\\"\" \\\n y # z\n", "include /d/*\n<<include /d>>\n",
	} {
		f.Add([]byte(s))
	}
	files := FS(fstest.MapFS{"d/1": {Data: []byte("<target z>\n</target>\n")}, "d/2": {Data: []byte("include /d/*\n")}})
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse(files, "f", text)
		if err != nil {
			if e, ok := errors.AsType[*Error](err); !ok || e.Pos.File == "" || e.Reason == "" {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		for _, tg := range c.Targets {
			seen := map[uint64]bool{}
			for _, s := range tg.Stores {
				if tg.Err == nil && seen[s.LUN] {
					t.Fatalf("LUN %d twice in %s", s.LUN, tg.Name)
				}
				seen[s.LUN] = true
			}
		}
	})
}
