package cli

import (
	"strings"
	"testing"
)

func TestTableHasOneLineARow(t *testing.T) {
	tab := &table{head: []string{"STORE", "X"}}
	tab.add("file:/a\n\x1b[2Jb ü \"q\" \xff", "")
	tab.add("file:/c", "y")
	var b strings.Builder
	if err := tab.print(&b); err != nil {
		t.Fatal(err)
	}
	want := `STORE                         X
file:/a\n\x1b[2Jb ü "q" \xff  -
file:/c                       y
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}
