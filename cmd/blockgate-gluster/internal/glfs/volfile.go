package glfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// translator is one of a volume's graph, as the volume's file describes it.
type translator struct {
	name, kind string // "vol-write-behind", "performance/write-behind"
	options    map[string]string
}

// maxTranslators bounds what parseVolfile keeps; each brick takes a few.
const maxTranslators = 1 << 16

// parseVolfile reads GlusterFS' description of a volume: blocks of "volume NAME",
// "type KIND", "option KEY VALUE" and "subvolumes NAME…", closed by "end-volume".
func parseVolfile(text []byte) ([]translator, error) {
	var all []translator
	var t *translator
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20) // subvolumes can be many
	line := 0
	fail := func(why string) ([]translator, error) {
		return nil, fmt.Errorf("volume description, line %d: %s", line, why)
	}
	for s.Scan() {
		line++
		word, rest, _ := strings.Cut(strings.TrimSpace(s.Text()), " ")
		rest = strings.TrimSpace(rest)
		switch {
		case word == "" || strings.HasPrefix(word, "#"):
		case word == "volume":
			if t != nil {
				return fail("a translator inside of another")
			}
			if len(all) == maxTranslators {
				return fail("too many translators")
			}
			t = &translator{name: rest, options: map[string]string{}}
		case t == nil:
			return fail("not in a translator")
		case word == "type":
			t.kind = rest
		case word == "option":
			key, value, _ := strings.Cut(rest, " ")
			t.options[key] = strings.TrimSpace(value)
		case word == "subvolumes":
		case word == "end-volume":
			if t.name == "" || t.kind == "" {
				return fail("a translator without name or type")
			}
			all = append(all, *t)
			t = nil
		default:
			return fail("unknown keyword")
		}
	}
	switch {
	case s.Err() != nil:
		return nil, fmt.Errorf("volume description: %w", s.Err())
	case t != nil:
		return fail("it ends inside of a translator")
	case len(all) == 0:
		return nil, errors.New("volume description: it is empty")
	}
	return all, nil
}

// writeBehinds are the translators of a volume that answer writes which no brick
// has seen. direct says that the file is opened with O_DIRECT, which such a
// translator may be told to respect.
func writeBehinds(all []translator, direct bool) []translator {
	var found []translator
	for _, t := range all {
		if t.kind != "performance/write-behind" || isTrue(t.options["pass-through"]) ||
			direct && isTrue(t.options["strict-O_DIRECT"]) {
			continue
		}
		found = append(found, t)
	}
	return found
}

// isTrue reads a truth value as GlusterFS does.
func isTrue(s string) bool {
	switch strings.ToLower(s) {
	case "1", "on", "yes", "true", "enable":
		return true
	}
	return false
}
