package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Difference is one object that differs between two states. Secrets are not in
// it.
type Difference struct {
	Verb Verb   `json:"verb" enum:"create,update,delete"`
	Kind Kind   `json:"kind" enum:"volume,target,lun,acl,account,portal,system,export,nbdportal"`
	Name string `json:"name"`
	// Part is the LUN's number or who the access rule is for.
	Part   string  `json:"part,omitempty"`
	Fields []Field `json:"fields,omitempty"`
}

// Field is one setting before and after; empty where it was not set.
type Field struct {
	Name string `json:"name"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// String is the difference in one line: "~ volume db size 10G -> 20G".
func (d Difference) String() string {
	var b strings.Builder
	b.WriteString(map[Verb]string{Create: "+ ", Update: "~ ", Delete: "- "}[d.Verb])
	b.WriteString(d.Kind.Noun())
	switch d.Kind {
	case KindLUN, KindACL:
		fmt.Fprintf(&b, " %s of target %s", word(d.Part), word(d.Name))
	case KindSystem:
	default:
		b.WriteString(" " + word(d.Name))
	}
	for i, f := range d.Fields {
		if i > 0 && d.Verb == Update {
			b.WriteByte(',')
		}
		switch {
		case d.Verb != Update:
			fmt.Fprintf(&b, " %s=%s", f.Name, word(f.Old+f.New))
		case f.Name == "secret":
			b.WriteString(" secret changed")
		default:
			fmt.Fprintf(&b, " %s %s -> %s", f.Name, shown(f.Old), shown(f.New))
		}
	}
	return b.String()
}

func shown(s string) string {
	if s == "" {
		return "(none)"
	}
	return word(s)
}

// word quotes what would not read as one word.
func word(s string) string {
	if s == "" || strings.ContainsAny(s, " \"'\t\n") || !printable(s) {
		return strconv.Quote(s)
	}
	return s
}

var kindOrder = map[Kind]int{KindSystem: 1, KindPortal: 2, KindAccount: 3, KindVolume: 4, KindTarget: 5, KindNBDPortal: 6, KindExport: 7}

// Differences compares the resources in the images. The order depends on
// nothing but their names.
func Differences(images []Image) ([]Difference, error) {
	images = slices.Clone(images)
	slices.SortFunc(images, func(a, b Image) int {
		return cmp.Or(kindOrder[a.Kind]-kindOrder[b.Kind], cmp.Compare(a.Name, b.Name))
	})
	list := []Difference{}
	for _, img := range images {
		l, err := img.differences()
		if err != nil {
			return nil, &Error{Class: Internal, Code: CodeStateCorrupt, Object: object(img.Kind, img.Name), Reason: err.Error(), Err: err}
		}
		list = append(list, l...)
	}
	return list, nil
}

// Images are the plan's changes, without those that change nothing.
func (p *Plan) Images() ([]Image, error) {
	var list []Image
	for _, c := range p.Changes {
		img := Image{Kind: c.Kind, Name: c.Name}
		var err error
		if c.Verb != Create {
			if img.Old, err = p.Old.image(c.Kind, c.Name); err != nil {
				return nil, err
			}
		}
		if c.Verb != Delete {
			if img.New, err = p.New.image(c.Kind, c.Name); err != nil {
				return nil, err
			}
		}
		if !bytes.Equal(img.Old, img.New) {
			list = append(list, img)
		}
	}
	return list, nil
}

func (i Image) differences() ([]Difference, error) {
	was, err := settings(i.Kind, i.Old)
	if err != nil {
		return nil, err
	}
	is, err := settings(i.Kind, i.New)
	if err != nil {
		return nil, err
	}
	d := Difference{Kind: i.Kind, Name: i.Name, Verb: Update}
	switch {
	case i.Kind == KindSystem:
	case i.Old == nil:
		d.Verb = Create
	case i.New == nil:
		d.Verb = Delete
	}
	d.Fields = compare(was, is, d.Verb)
	var list []Difference
	if len(d.Fields) > 0 || d.Verb != Update {
		list = append(list, d)
	}
	if i.Kind != KindTarget {
		return list, nil
	}
	parts, err := i.parts()
	return append(list, parts...), err
}

// identity and what every resource has are no news when it comes or goes.
var unremarkable = map[string]bool{
	"name": true, "user": true, "address": true, "id": true, "secret": true, "unit.naa": true, "unit.serial": true, "scope": true,
	"unit.type=disk": true, "blockSize=512": true, "group=1": true,
}

func compare(was, is map[string]string, verb Verb) []Field {
	names := map[string]bool{}
	for n := range was {
		names[n] = true
	}
	for n := range is {
		names[n] = true
	}
	var list []Field
	for _, n := range sortedKeys(names) {
		f := Field{Name: n, Old: was[n], New: is[n]}
		if f.Old == f.New {
			continue
		}
		if verb != Update && (unremarkable[n] || unremarkable[n+"="+f.Old+f.New] || strings.HasPrefix(n, "portIds.")) {
			continue
		}
		if n == "secret" {
			f.Old, f.New = "", ""
		}
		list = append(list, f)
	}
	return list
}

// settings flattens a resource to names and values: unit.vendor=BLOCK.
func settings(k Kind, raw json.RawMessage) (map[string]string, error) {
	out := map[string]string{}
	if raw == nil {
		return out, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if k == KindTarget {
		delete(v, "luns")
		delete(v, "acl")
	}
	flatten(out, "", v)
	if s, err := strconv.ParseInt(out["size"], 10, 64); err == nil && k == KindVolume {
		out["size"] = FormatSize(s)
	}
	return out, nil
}

func flatten(out map[string]string, name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if name != "" {
				k = name + "." + k
			}
			flatten(out, k, e)
		}
	case []any:
		var l []string
		for i, e := range v {
			if m, is := e.(map[string]any); is {
				flatten(out, name+"."+strconv.Itoa(i), m)
				continue
			}
			l = append(l, fmt.Sprint(e))
		}
		if l != nil {
			out[name] = strings.Join(l, ",")
		}
	default:
		out[name] = fmt.Sprint(v)
	}
}

// parts are the LUNs and access rules of a target that differ.
func (i Image) parts() ([]Difference, error) {
	var was, is Target
	for _, t := range []struct {
		raw  json.RawMessage
		into *Target
	}{{i.Old, &was}, {i.New, &is}} {
		if t.raw != nil {
			if err := json.Unmarshal(t.raw, t.into); err != nil {
				return nil, err
			}
		}
	}
	var list []Difference
	part := func(k Kind, name string, old, new map[string]string) {
		d := Difference{Kind: k, Name: i.Name, Part: name, Verb: Update}
		switch {
		case old == nil:
			d.Verb = Create
		case new == nil:
			d.Verb = Delete
		}
		if d.Fields = compare(old, new, d.Verb); len(d.Fields) > 0 || d.Verb != Update {
			list = append(list, d)
		}
	}
	luns := map[uint64][2]map[string]string{}
	for n, t := range []*Target{&was, &is} {
		for _, l := range t.LUNs {
			pair := luns[l.Number]
			pair[n] = map[string]string{"volume": l.Volume, "scope": l.Scope}
			luns[l.Number] = pair
		}
	}
	for _, n := range sortedKeys(luns) {
		part(KindLUN, strconv.FormatUint(n, 10), luns[n][0], luns[n][1])
	}
	rules := map[string][2]map[string]string{}
	for n, t := range []*Target{&was, &is} {
		for _, r := range t.ACL {
			var shown []string
			for _, l := range r.LUNs {
				shown = append(shown, strconv.FormatUint(l, 10))
			}
			pair := rules[r.String()]
			pair[n] = map[string]string{"luns": strings.Join(shown, ","), "scope": r.Scope}
			rules[r.String()] = pair
		}
	}
	for _, n := range sortedKeys(rules) {
		part(KindACL, n, rules[n][0], rules[n][1])
	}
	return list, nil
}

// FormatSize writes bytes as ParseSize of package backing reads them, exactly
// and as short as that goes: 10G, 1536M, 1000.
func FormatSize(n int64) string {
	unit := 0
	for n != 0 && n%1024 == 0 && unit < 6 {
		n /= 1024
		unit++
	}
	if unit == 0 {
		return strconv.FormatInt(n, 10)
	}
	return strconv.FormatInt(n, 10) + "KMGTPE"[unit-1:unit]
}
