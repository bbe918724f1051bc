package tgtconf

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Node is a directive, or a block of them.
type Node struct {
	Pos   Position
	Key   string
	Value string // of a block: its name, which may be empty
	Block bool
	Nodes []*Node // of a block, in order
}

// Tree is what the files say, in order, included files in place.
type Tree struct {
	Nodes []*Node
	// Files are those that were read, in order.
	Files []string
	// Warnings are places that were understood in the way Config::General does,
	// but probably not as their author meant.
	Warnings []*Error
}

// ReadTree reads a file and what it includes. Errors are *Error; that of a file
// which is not there is also fs.ErrNotExist.
func ReadTree(src Source, name string) (*Tree, error) {
	p := newParser(src)
	if err := p.file(name, Position{File: name}, &p.tree.Nodes, 0); err != nil {
		return nil, err
	}
	return p.tree, nil
}

// ParseTree is ReadTree for a text that is there already. src serves its
// includes; nil refuses them.
func ParseTree(src Source, name string, text []byte) (*Tree, error) {
	p := newParser(src)
	p.tree.Files = append(p.tree.Files, name)
	if err := p.text(name, text, &p.tree.Nodes, 0); err != nil {
		return nil, err
	}
	return p.tree, nil
}

func newParser(src Source) *parser { return &parser{src: src, tree: &Tree{}, read: map[string]bool{}} }

type parser struct {
	src   Source
	tree  *Tree
	read  map[string]bool
	total int
}

func (p *parser) warn(at Position, format string, a ...any) {
	p.tree.Warnings = append(p.tree.Warnings, failf(at, format, a...))
}

// file appends what a file says to out; at is where it is asked for.
func (p *parser) file(name string, at Position, out *[]*Node, depth int) error {
	if p.read[name] {
		p.warn(at, "%s was read already and is not read again", name)
		return nil
	}
	if depth > maxDepth || len(p.read) >= maxFiles {
		return failf(at, "too many files are included in each other")
	}
	p.read[name] = true
	b, err := p.src.ReadFile(name)
	if err != nil {
		return asError(at, err)
	}
	if p.total += len(b); p.total > maxTotal {
		return failf(at, "the files have more than %d bytes together", maxTotal)
	}
	p.tree.Files = append(p.tree.Files, name)
	return p.text(name, b, out, depth)
}

func (p *parser) include(name string, at Position, out *[]*Node, depth int) error {
	if p.src == nil {
		return failf(at, "include: there are no other files here")
	}
	if name == "" {
		return failf(at, "include wants a file, a directory or a pattern")
	}
	files, err := p.src.Files(name)
	if err != nil {
		return asError(at, err)
	}
	several := len(files) != 1 || files[0] != name
	for _, f := range files {
		err := p.file(f, at, out, depth+1)
		// Between the listing and the reading a file may go: others delete theirs
		// while we read (Cinder does).
		if several && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// open is a block whose end has not come yet.
type open struct {
	node *Node
	out  *[]*Node // where the next directive goes
}

func (p *parser) text(name string, text []byte, out *[]*Node, depth int) error {
	lines := newLines(name, string(text))
	blocks := []open{{nil, out}}
	for {
		l, ok, err := lines.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		in := blocks[len(blocks)-1]
		switch {
		case l.include:
			if err := p.include(l.value, l.pos, in.out, depth+len(blocks)-1); err != nil {
				return err
			}
		case l.opens:
			if len(blocks) > maxDepth {
				return failf(l.pos, "blocks are nested more than %d deep", maxDepth)
			}
			n := &Node{Pos: l.pos, Key: l.key, Value: l.value, Block: true}
			*in.out = append(*in.out, n)
			if !l.closes {
				blocks = append(blocks, open{n, &n.Nodes})
			}
		case l.closes:
			if in.node == nil {
				return failf(l.pos, "</%s> closes nothing", l.key)
			}
			if l.key != in.node.Key {
				p.warn(l.pos, "</%s> closes <%s> of line %d", l.key, in.node.title(), in.node.Pos.Line)
			}
			blocks = blocks[:len(blocks)-1]
		default:
			*in.out = append(*in.out, &Node{Pos: l.pos, Key: l.key, Value: l.value})
		}
	}
	if n := blocks[len(blocks)-1].node; n != nil {
		return failf(n.Pos, "<%s> has no end: </%s> is missing", n.title(), n.Key)
	}
	return nil
}

func (n *Node) title() string { return strings.TrimRight(fmt.Sprintf("%s %s", n.Key, n.Value), " ") }
