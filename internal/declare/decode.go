package declare

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"blockgate/backing"
	"blockgate/internal/state"
)

// document is one document as it is written.
type document struct {
	Scope string `json:"scope"`
	declared
}

// parse reads the documents of a file.
func parse(file string, raw []byte) (docs []*ast.DocumentNode, err error) {
	if len(raw) > MaxFile {
		return nil, fail(Position{File: file}, "", "has more than %d bytes", MaxFile)
	}
	raw = bytes.TrimPrefix(raw, []byte("\ufeff")) // YAML 1.2 §5.2: a byte order mark may begin it
	if line := tooDeep(raw); line > 0 {
		return nil, fail(Position{file, line}, "", "values are nested more than %d deep", maxDepth)
	}
	// The parser is a library that reads what people write; whatever it does with
	// a text it did not expect is an error in the text.
	defer func() {
		if r := recover(); r != nil {
			docs, err = nil, fail(Position{File: file}, "", "cannot be read as YAML: %v", r)
		}
	}()
	f, err := parser.ParseBytes(raw, 0)
	if err != nil {
		at, text := Position{File: file}, err.Error()
		var e yaml.Error
		if errors.As(err, &e) {
			text = e.GetMessage()
			if t := e.GetToken(); t != nil && t.Position != nil {
				at.Line = t.Position.Line
			}
		}
		return nil, fail(at, "", "%s", text)
	}
	for _, d := range f.Docs {
		if d != nil && d.Body != nil && d.Body.Type() != ast.CommentType && d.Body.Type() != ast.NullType {
			docs = append(docs, d)
		}
	}
	return docs, nil
}

// tooDeep finds the line where values are nested deeper than any declaration
// is: the parser's depth, and with it its stack, follows the text's.
func tooDeep(raw []byte) int {
	open, line := 0, 0
	for l := range bytes.Lines(raw) {
		line++
		dashes, indent := 0, true
		for _, c := range l {
			switch c {
			case '[', '{':
				open++
			case ']', '}':
				open = max(open-1, 0)
			case ' ', '-', '?', '\t', ':', '!', '&', '*', '|', '>':
				if indent {
					dashes++
				}
				continue
			}
			indent = false
		}
		// Indentation takes a column at least for each level.
		if open > maxDepth || dashes > 2*maxDepth {
			return line
		}
	}
	return 0
}

// decoder fills Go values from a document, strictly: what has no place is an
// error.
type decoder struct {
	file string
	// at are the positions of list elements by their path: "volumes.3".
	at map[string]Position
}

func (d *decoder) position(n ast.Node) Position {
	p := Position{File: d.file}
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		n = m.Values[0]
	}
	if m, ok := n.(*ast.MappingValueNode); ok {
		n = m.Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		p.Line = t.Position.Line
	}
	return p
}

func (d *decoder) decode(n ast.Node, v reflect.Value, path string) error {
	if isNull(n) {
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := d.decode(n, p.Elem(), path); err != nil {
			return err
		}
		v.Set(p)
		return nil
	case reflect.Struct:
		return d.decodeStruct(n, v, path)
	case reflect.Map:
		return d.decodeMap(n, v, path)
	case reflect.Slice:
		seq, ok := n.(*ast.SequenceNode)
		if !ok {
			return d.mismatch(n, path, "a list")
		}
		out := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
		for i, e := range seq.Values {
			at := path + "." + strconv.Itoa(i)
			d.at[at] = d.position(e)
			if isNull(e) {
				return fail(d.position(e), "", "element %d of %s is empty", i+1, path)
			}
			if err := d.decode(e, out.Index(i), at); err != nil {
				return err
			}
		}
		v.Set(out)
		return nil
	}
	return d.decodeScalar(n, v, path)
}

func isNull(n ast.Node) bool {
	_, null := n.(*ast.NullNode)
	return n == nil || null
}

func (d *decoder) mismatch(n ast.Node, path, want string) error {
	at := d.position(n)
	switch n.(type) {
	case *ast.AliasNode, *ast.AnchorNode, *ast.MergeKeyNode, *ast.TagNode:
		return fail(at, "write it out", "%s: anchors, aliases and tags are not understood", path)
	}
	if path == "" {
		path = "the document"
	}
	return fail(at, "", "%s should be %s", path, want)
}

// pairs are the keys and values of a mapping, each key once.
func (d *decoder) pairs(n ast.Node, path string) (keys []string, values map[string]*ast.MappingValueNode, err error) {
	var list []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		list = m.Values
	case *ast.MappingValueNode:
		list = []*ast.MappingValueNode{m}
	default:
		return nil, nil, d.mismatch(n, path, "a mapping (name: value)")
	}
	values = make(map[string]*ast.MappingValueNode, len(list))
	for _, p := range list {
		key, ok := text(p.Key)
		if !ok {
			return nil, nil, d.mismatch(p.Key, path, "a mapping with plain names")
		}
		if _, twice := values[key]; twice {
			return nil, nil, fail(d.position(p), "", "%s is there twice", join(path, key))
		}
		keys, values[key] = append(keys, key), p
	}
	return keys, values, nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (d *decoder) decodeStruct(n ast.Node, v reflect.Value, path string) error {
	keys, values, err := d.pairs(n, path)
	if err != nil {
		return err
	}
	fields := fieldsOf(v.Type())
	for _, key := range keys {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == key })
		if i < 0 {
			what := "a document"
			if parts := strings.Split(path, "."); path != "" {
				what = parts[0]
			}
			return fail(d.position(values[key]), nearest(key, fields), "there is no field %q in %s", key, what)
		}
		if err := d.decode(values[key].Value, v.FieldByIndex(fields[i].index), join(path, key)); err != nil {
			return err
		}
	}
	// Forgotten, it would make a disk without a medium. Who wants that says so.
	if url := values["url"]; v.Type() == reflect.TypeFor[state.Volume]() && (url == nil || isNull(url.Value)) {
		return fail(d.position(n), `for example url: file:/srv/disk.img; a unit without a medium has url: ""`, "%s has no url", path)
	}
	return nil
}

// field is a field of a struct, or of one embedded in it, as it is called in files.
type field struct {
	name      string
	index     []int
	omitEmpty bool
}

func fieldsOf(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Tag.Get("yaml") == "-" {
			continue
		}
		if f.Anonymous {
			for _, in := range fieldsOf(f.Type) {
				in.index = append([]int{i}, in.index...)
				list = append(list, in)
			}
			continue
		}
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		list = append(list, field{name, []int{i}, strings.Contains(rest, "omitempty")})
	}
	return list
}

// nearest is a hint for a misspelt field.
func nearest(key string, fields []field) string {
	for _, f := range fields {
		if strings.EqualFold(f.name, key) || strings.EqualFold(f.name, key+"s") || strings.EqualFold(f.name+"s", key) {
			return "did you mean " + f.name + "?"
		}
	}
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
	}
	return "there are: " + strings.Join(names, ", ")
}

func (d *decoder) decodeMap(n ast.Node, v reflect.Value, path string) error {
	keys, values, err := d.pairs(n, path)
	if err != nil {
		return err
	}
	out := reflect.MakeMapWithSize(v.Type(), len(keys))
	for _, key := range keys {
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if err := d.decodeScalar(values[key].Key, k, path); err != nil {
			return err
		}
		if isNull(values[key].Value) {
			return fail(d.position(values[key]), "", "%s has no value", join(path, key))
		}
		if err := d.decodeScalar(values[key].Value, e, join(path, key)); err != nil {
			return err
		}
		out.SetMapIndex(k, e)
	}
	v.Set(out)
	return nil
}

// text is a scalar as it was written, or as it was meant if it was quoted: a
// serial number of digits keeps its zeros.
func text(n ast.Node) (string, bool) {
	switch s := n.(type) {
	case *ast.StringNode:
		return s.Value, true
	case *ast.LiteralNode:
		return s.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return strings.TrimSpace(n.GetToken().Value), true
	}
	return "", false
}

func quoted(n ast.Node) bool {
	t := n.GetToken()
	return t != nil && (t.Type == token.SingleQuoteType || t.Type == token.DoubleQuoteType)
}

func (d *decoder) decodeScalar(n ast.Node, v reflect.Value, path string) error {
	s, ok := text(n)
	want := "a text"
	switch v.Kind() {
	case reflect.String:
		if ok {
			v.SetString(s)
		}
	case reflect.Bool:
		want = "true or false"
		b, is := n.(*ast.BoolNode)
		if ok = is; ok {
			v.SetBool(b.Value)
		}
	case reflect.Int64: // sizes, the only ones
		want = "a size, for example 10G"
		size, err := backing.ParseSize(s)
		if ok = ok && err == nil; ok {
			v.SetInt(size)
		}
	case reflect.Int:
		want = "a whole number"
		i, err := strconv.ParseInt(s, 10, 64)
		if ok = ok && err == nil && !quoted(n) && i >= math.MinInt32 && i <= math.MaxInt32; ok {
			v.SetInt(i)
		}
	default:
		bits := v.Type().Bits()
		want = fmt.Sprintf("a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-bits))
		i, err := strconv.ParseUint(s, 10, bits)
		if ok = ok && err == nil && !quoted(n); ok {
			v.SetUint(i)
		}
	}
	if !ok {
		return d.mismatch(n, path, want)
	}
	return nil
}
