package declare

import "blockgate/internal/state"

// Importer reads the configuration of another target and says what it would be
// here. It changes nothing and asks no daemon.
type Importer interface {
	// Format is what the configuration is called: "targets.conf".
	Format() string
	// Recognizes tells by the file's name whether this importer is meant.
	Recognizes(path string) bool
	// Import reads the file and what it includes. The config has no scope.
	// Warnings name what has no counterpart, each with its place. What would
	// serve other data, or to others, than the original is an error.
	Import(path string) (Imported, error)
}

// Imported is what an importer made of a configuration.
type Imported struct {
	Config   state.Config
	Warnings []string
	Files    []string // that were read
}
