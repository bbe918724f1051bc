package glfs

import (
	"os"
	"strings"
	"testing"
)

func TestWriteBehindFound(t *testing.T) {
	text, err := os.ReadFile("testdata/v1.vol")
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(old, new string) string {
		s := strings.Replace(string(text), old, new, 1)
		if s == string(text) {
			t.Fatalf("testdata/v1.vol has no %q", old)
		}
		return s
	}
	const kind = "type performance/write-behind\n"
	for _, c := range []struct {
		name, text string
		direct     bool
		want       int
	}{
		{"as it comes", string(text), false, 1},
		{"direct alone", string(text), true, 1},
		{"switched off", replaced(kind, "type performance/none\n"), false, 0},
		{"pass-through", replaced(kind, kind+"    option pass-through true\n"), false, 0},
		{"pass-through off", replaced(kind, kind+"    option pass-through false\n"), false, 1},
		{"strict", replaced(kind, kind+"    option strict-O_DIRECT on\n"), false, 1},
		{"strict and direct", replaced(kind, kind+"    option strict-O_DIRECT on\n"), true, 0},
	} {
		all, err := parseVolfile([]byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := writeBehinds(all, c.direct)
		if len(got) != c.want || c.want == 1 && got[0].name != "v1-write-behind" {
			t.Errorf("%s: %+v, want %d", c.name, got, c.want)
		}
	}
}

func TestParseVolfileErrors(t *testing.T) {
	for text, part := range map[string]string{
		"":                                "empty",
		"volume a\ntype b\n":              "ends inside",
		"volume a\nvolume b\n":            "line 2: a translator inside",
		"type b\n":                        "line 1: not in",
		"volume a\nend-volume\n":          "without name or type",
		"volume a\ntype b\nnonsense\n":    "unknown keyword",
		"volume\ntype b\nend-volume\n":    "without name or type",
		strings.Repeat("x", 2<<20) + "\n": "too long",
	} {
		if all, err := parseVolfile([]byte(text)); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%.30q: %v, %v; want an error with %q", text, all, err, part)
		}
	}
}

func FuzzParseVolfile(f *testing.F) {
	text, err := os.ReadFile("testdata/v1.vol")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("# c\nvolume a\n type b\n option\n option k\n subvolumes x y\nend-volume"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseVolfile(text)
		if err == nil && len(all) == 0 {
			t.Fatal("nothing found, and no error")
		}
		writeBehinds(all, true)
	})
}
