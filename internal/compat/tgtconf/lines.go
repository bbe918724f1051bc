package tgtconf

import (
	"strings"
	"unicode/utf8"
)

// line is one logical line.
type line struct {
	pos           Position
	key, value    string
	opens, closes bool // of a block; both: one that is empty, <key/>
	include       bool
}

// lines cuts a text into logical lines: comments gone, continued lines joined,
// here-documents taken in.
type lines struct {
	file   string
	rest   string
	number int // of the line last taken
}

func newLines(file, text string) *lines {
	text = strings.TrimPrefix(text, "\ufeff")
	return &lines{file: file, rest: text}
}

// raw takes one line of the file, without its end.
func (l *lines) raw() (string, bool) {
	if l.rest == "" {
		return "", false
	}
	s, rest, _ := strings.Cut(l.rest, "\n")
	l.rest = rest
	l.number++
	return strings.TrimSuffix(s, "\r"), true
}

func (l *lines) here() Position { return Position{l.file, l.number} }

// next gives the next logical line, or ok false at the end.
func (l *lines) next() (out line, ok bool, err error) {
	for {
		s, ok := l.raw()
		if !ok {
			return line{}, false, nil
		}
		at := l.here()
		if t := strings.TrimLeft(s, " \t"); strings.HasPrefix(t, "#") {
			continue // a comment is never continued
		} else if strings.HasPrefix(t, "/*") {
			if s, err = l.afterComment(t, at); err != nil {
				return line{}, false, err
			}
		}
		s = l.join(s)
		if strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
			return line{}, false, failf(at, "the line is not text")
		}
		s = strings.Trim(uncomment(s), " \t")
		if s == "" {
			continue
		}
		out, err = l.parse(s, at)
		return out, err == nil, err
	}
}

// afterComment skips a comment between /* and */ that begins a line, and gives
// what follows it on its last line.
func (l *lines) afterComment(s string, at Position) (string, error) {
	s = s[2:]
	for {
		if _, after, found := strings.Cut(s, "*/"); found {
			return after, nil
		}
		var ok bool
		if s, ok = l.raw(); !ok {
			return "", failf(at, "the comment that begins with /* has no end")
		}
	}
}

// join adds the lines that a line is continued on: without the blanks that they
// begin with.
func (l *lines) join(s string) string {
	if !strings.HasSuffix(s, `\`) {
		return s
	}
	var b strings.Builder
	for strings.HasSuffix(s, `\`) {
		b.WriteString(s[:len(s)-1])
		more, ok := l.raw()
		if !ok {
			return b.String()
		}
		s = strings.TrimLeft(more, " \t")
	}
	b.WriteString(s)
	return b.String()
}

// uncomment cuts a comment off: from a # that no backslash precedes, inside
// quotes too, and what is between /* and */ within the line. A pattern such as
// /etc/tgt/*.conf is none: a comment comes after a blank.
func uncomment(s string) string {
	for i := 0; i < len(s); i++ {
		if s[i] == '#' && (i == 0 || s[i-1] != '\\') {
			s = s[:i]
			break
		}
	}
	for i := 0; ; {
		j := strings.Index(s[i:], "/*")
		if j < 0 {
			return s
		}
		j += i
		end := strings.Index(s[j:], "*/")
		if end < 2 || j > 0 && s[j-1] != ' ' && s[j-1] != '\t' {
			i = j + 2
			continue
		}
		s = s[:j] + s[j+end+2:]
		i = j
	}
}

// parse takes a line without comment and blanks around it apart.
func (l *lines) parse(s string, at Position) (line, error) {
	if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") {
		return l.tag(s, at)
	}
	if strings.HasPrefix(s, "<") {
		return line{}, failf(at, "%q: a block's line ends with >", s)
	}
	end := strings.IndexAny(s, " \t=")
	if end < 0 {
		return line{pos: at, key: s}, nil
	}
	out := line{pos: at, key: s[:end]}
	v := strings.TrimLeft(s[end:], " \t")
	if strings.EqualFold(out.key, "include") && !strings.HasPrefix(v, "=") {
		out.include, out.value = true, unquote(v)
		return out, nil
	}
	v = strings.TrimLeft(strings.TrimPrefix(v, "="), " \t")
	if out.key == "" {
		return line{}, failf(at, "%q: there is no key before the =", s)
	}
	if word, ok := strings.CutPrefix(v, "<<"); ok && strings.Trim(word, " \t") != "" {
		text, err := l.hereDocument(strings.Trim(word, " \t"), at)
		out.value = text
		return out, err
	}
	out.value = unescape(unquote(v))
	return out, nil
}

func (l *lines) tag(s string, at Position) (line, error) {
	if in, ok := strings.CutPrefix(s, "<<"); ok {
		in, ok = strings.CutSuffix(in, ">>")
		in = strings.TrimLeft(in, " \t")
		end := strings.IndexAny(in, " \t")
		if !ok || end < 0 || !strings.EqualFold(in[:end], "include") {
			return line{}, failf(at, "%q: want <<include FILE>>", s)
		}
		return line{pos: at, include: true, value: unquote(strings.Trim(in[end:], " \t"))}, nil
	}
	in := strings.Trim(s[1:len(s)-1], " \t")
	if key, ok := strings.CutPrefix(in, "/"); ok {
		return line{pos: at, closes: true, key: strings.Trim(key, " \t")}, nil
	}
	out := line{pos: at, opens: true}
	if head, ok := strings.CutSuffix(in, "/"); ok {
		// <key name/> is a block without content, and </dev/…/> is no name.
		in, out.closes = strings.TrimRight(head, " \t"), true
	}
	end := strings.IndexAny(in, " \t")
	if end < 0 {
		end = len(in)
	}
	out.key, out.value = in[:end], unescape(unquote(strings.Trim(in[end:], " \t")))
	if out.key == "" {
		return line{}, failf(at, "%q: the block has no key", s)
	}
	return out, nil
}

// hereDocument takes the lines up to one that is word, whose indentation is
// taken off each of them.
func (l *lines) hereDocument(word string, at Position) (string, error) {
	var all []string
	for {
		s, ok := l.raw()
		if !ok {
			return "", failf(at, "the text that begins with <<%s has no end", word)
		}
		body := strings.TrimLeft(s, " \t")
		if strings.TrimRight(body, " \t") != word {
			all = append(all, s)
			continue
		}
		indent := s[:len(s)-len(body)]
		for i := range all {
			all[i] = strings.TrimPrefix(all[i], indent)
		}
		text := strings.Join(all, "\n")
		if strings.IndexByte(text, 0) >= 0 || !utf8.ValidString(text) {
			return "", failf(at, "the text is not text")
		}
		return text, nil
	}
}

// unquote takes off the double quotes around a whole value.
func unquote(v string) string {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		return v[1 : len(v)-1]
	}
	return v
}

// unescape takes the backslash off what would mean something else without it:
// a #, a backslash, a quote and a $.
func unescape(v string) string {
	if strings.IndexByte(v, '\\') < 0 {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' && i+1 < len(v) && strings.IndexByte(`#\"$`, v[i+1]) >= 0 {
			i++
		}
		b.WriteByte(v[i])
	}
	return b.String()
}
