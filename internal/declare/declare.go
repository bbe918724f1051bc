// Package declare is declared state: files that say what shall exist, what of
// the state differs from them, and the state written as such a file.
//
// A file is YAML (JSON is YAML too) of one or more documents. The resources in
// it have the names and fields that they have in the API; what is not known is
// an error that names the line. A document's scope owns what it makes:
//
//	scope: site
//	accounts:
//	  - user: joe
//	    secretFile: joe.secret
//	volumes:
//	  - name: db
//	    url: file:/srv/db.img
//	    size: 10G
//	targets:
//	  - name: iqn.2025-01.io.example:db
//	    luns: [{number: 0, volume: db}]
//	    acl: [{address: 10.0.0.0/24}]
//	    accounts: [joe]
package declare

import (
	"fmt"

	"blockgate/internal/state"
)

// Bounds on files.
const (
	MaxFile  = 64 << 20 // bytes
	maxDepth = 100      // of nested values
)

// Position is a place in a file. The zero Position is unknown.
type Position struct {
	File string
	Line int // from 1
}

func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Set is what one or more files declare.
type Set struct {
	// Configs has one for each scope, in the order of their first appearance.
	Configs []state.Config
	// Where the resources are declared, by the object names of state.Error:
	// `volume "db"`.
	Where map[string]Position
}

// Secrets finds secrets that are kept outside of the files.
type Secrets struct {
	// File reads a file whose name is as it stands in the declaring file, from
	// the directory of that one.
	File func(dir, name string) ([]byte, error)
	// Env looks up an environment variable; "" is none.
	Env func(name string) string
}

func fail(at Position, hint, format string, a ...any) error {
	return &state.Error{Class: state.Usage, Code: state.CodeInvalidFile, Object: at.String(), Reason: state.Reasonf(format, a...), Hint: hint}
}

func object(k state.Kind, name string) string {
	if k == state.KindSystem {
		return "system"
	}
	return fmt.Sprintf("%s %q", k, state.Clip(name))
}
