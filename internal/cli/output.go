package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"blockgate/internal/declare"
)

// table is rows of cells under a head; print aligns them with spaces.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	width := make([]int, len(t.head))
	all := append([][]string{t.head}, t.rows...)
	for _, r := range all {
		for i := range r {
			r[i] = visible(r[i])
		}
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, r := range all {
		var line strings.Builder
		for i, c := range r {
			if c == "" {
				c = "-"
			}
			line.WriteString(c)
			line.WriteString(strings.Repeat(" ", max(width[i]-utf8.RuneCountInString(c), 0)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// visible shows what would move a terminal's cursor, or break a table's line,
// as Go writes it: paths and initiators' names may have any character.
func visible(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 && utf8.ValidString(s) {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// answer prints v as JSON or YAML if that was asked for, and the table
// otherwise. Of an empty one there is the head: an answer, and what would be there.
func (a *app) answer(v any, t func() *table) error {
	switch a.output {
	case "json":
		enc := json.NewEncoder(a.Stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		out, err := declare.MarshalYAML(v)
		if err != nil {
			return err
		}
		_, err = a.Stdout.Write(out)
		return err
	}
	return t().print(a.Stdout)
}

// done says that something was done: a line for people on stderr, nothing on
// stdout, where programs look for answers.
func (a *app) done(format string, v ...any) error {
	if a.output == "table" {
		a.note(format, v...)
	}
	return nil
}

// formatSize shows bytes in binary units, exactly where that is short: 10 GiB,
// 1.5 GiB, 1000 B.
func formatSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	unit, f := -1, float64(n)
	for f >= 1024 && unit < 5 {
		f /= 1024
		unit++
	}
	s := fmt.Sprintf("%.1f", f)
	return fmt.Sprintf("%s %ciB", strings.TrimSuffix(s, ".0"), "KMGTPE"[unit])
}
