package declare

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"blockgate/internal/state"
)

func itoa(i int) string { return strconv.Itoa(i) }

// Encode writes configs as YAML, one document for each. Reading it gives the
// same again.
func Encode(configs []state.Config) []byte {
	var b strings.Builder
	for i, c := range configs {
		if i > 0 {
			b.WriteString("---\n")
		}
		if c.Scope != "" {
			b.WriteString("scope: " + scalar(c.Scope) + "\n")
		}
		d := declared{Portals: c.Portals, Volumes: c.Volumes, Targets: c.Targets, LUNs: c.LUNs, ACL: c.ACL, System: c.System, NBDPortals: c.NBDPortals, Exports: c.Exports}
		for _, a := range c.Accounts {
			d.Accounts = append(d.Accounts, account{Account: a})
		}
		encodeStruct(&b, reflect.ValueOf(d), "", "")
	}
	return []byte(b.String())
}

// MarshalYAML writes any value that has a JSON form as YAML.
func MarshalYAML(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return yaml.JSONToYAML(raw)
}

// encodeStruct writes the fields, the first behind first and the others behind
// indent.
func encodeStruct(b *strings.Builder, v reflect.Value, first, indent string) (wrote bool) {
	lead := first
	for _, f := range fieldsOf(v.Type()) {
		e := v.FieldByIndex(f.index)
		if f.omitEmpty && empty(e) {
			continue
		}
		var val strings.Builder
		if !encodeValue(&val, e, indent) {
			continue
		}
		b.WriteString(lead + f.name + ":" + val.String())
		lead, wrote = indent, true
	}
	return wrote
}

func empty(v reflect.Value) bool {
	if k := v.Kind(); k == reflect.Slice || k == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

// encodeValue writes what comes behind "name:", with its line's end.
func encodeValue(b *strings.Builder, v reflect.Value, indent string) (wrote bool) {
	deeper := indent + "  "
	switch v.Kind() {
	case reflect.Pointer:
		return encodeValue(b, v.Elem(), indent)
	case reflect.Struct:
		b.WriteString("\n")
		if !encodeStruct(b, v, deeper, deeper) {
			b.Reset()
			b.WriteString(" {}\n")
			return v.Type() == reflect.TypeFor[state.System]()
		}
	case reflect.Map:
		b.WriteString("\n")
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int {
			if a.CanInt() {
				return int(a.Int() - b.Int())
			}
			return strings.Compare(a.String(), b.String())
		})
		for _, k := range keys {
			fmt.Fprintf(b, "%s%s: %s\n", deeper, encodeScalar(k), encodeScalar(v.MapIndex(k)))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Struct {
			var l []string
			for i := range v.Len() {
				l = append(l, encodeScalar(v.Index(i)))
			}
			b.WriteString(" [" + strings.Join(l, ", ") + "]\n")
			return true
		}
		b.WriteString("\n")
		for i := range v.Len() {
			e := v.Index(i)
			if oneLine(e.Type()) {
				b.WriteString(deeper + "- " + flow(e) + "\n")
			} else if !encodeStruct(b, e, deeper+"- ", deeper+"  ") {
				b.WriteString(deeper + "- {}\n")
			}
		}
	default:
		b.WriteString(" " + encodeScalar(v) + "\n")
	}
	return true
}

func oneLine(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[state.LUN](), reflect.TypeFor[state.ACLRule](), reflect.TypeFor[state.PlacedLUN](), reflect.TypeFor[state.PlacedRule]():
		return true
	}
	return false
}

func flow(v reflect.Value) string {
	var l []string
	for _, f := range fieldsOf(v.Type()) {
		e := v.FieldByIndex(f.index)
		if f.omitEmpty && empty(e) {
			continue
		}
		if e.Kind() == reflect.Slice {
			var in []string
			for i := range e.Len() {
				in = append(in, encodeScalar(e.Index(i)))
			}
			l = append(l, f.name+": ["+strings.Join(in, ", ")+"]")
			continue
		}
		l = append(l, f.name+": "+encodeScalar(e))
	}
	return "{" + strings.Join(l, ", ") + "}"
}

func encodeScalar(v reflect.Value) string {
	switch v.Kind() {
	case reflect.String:
		return scalar(v.String())
	case reflect.Int64:
		return state.FormatSize(v.Int())
	}
	return fmt.Sprint(v.Interface())
}

// plain are texts that mean themselves anywhere in YAML, and no number, truth
// value or null, in any of its versions.
var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./+@-]*(:[A-Za-z0-9_./+@-]+)*$`)

func scalar(s string) string {
	if plain.MatchString(s) {
		switch strings.ToLower(s) {
		case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		default:
			return s
		}
	}
	// A JSON string is a YAML one.
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(s) != nil {
		return `""` // strings always encode
	}
	return strings.TrimSuffix(b.String(), "\n")
}
