package v1

import (
	"time"

	"blockgate/internal/state"
)

// CommandHeader is the HTTP header in which a client says what command line it
// carries out, escaped as in a URL's path. It is for the history alone.
const CommandHeader = "Blockgate-Command"

// Declare asks to make the state what configs declare, all or nothing.
type Declare struct {
	Configs []state.Config `json:"configs"`
	// DryRun changes nothing and tells what would be changed.
	DryRun bool `json:"dryRun,omitempty"`
	// Force also takes away what initiators with sessions use.
	Force bool `json:"force,omitempty"`
	// Adopt takes over objects that were made by hand.
	Adopt bool `json:"adopt,omitempty"`
}

// Declared is what was changed, or would be.
type Declared struct {
	Revision    uint64             `json:"revision"`
	Differences []state.Difference `json:"differences"`
	Warnings    []string           `json:"warnings,omitempty"`
	// Refusal, of a dry run, is why the change would be refused.
	Refusal *Problem `json:"refusal,omitempty"`
}

// Rollback asks to make the resources what they were at a revision.
type Rollback struct {
	// Revision; 0: before the last change.
	Revision uint64 `json:"revision,omitempty"`
	DryRun   bool   `json:"dryRun,omitempty"`
	Force    bool   `json:"force,omitempty"`
}

// Export chooses what of the state is exported.
type Export struct {
	// Scopes, if not nil, are those wanted; "" is what was made by hand.
	Scopes     []string `json:"scopes,omitempty"`
	Secrets    bool     `json:"secrets,omitempty"`
	NoIdentity bool     `json:"noIdentity,omitempty"`
}

// Change is one change in the history.
type Change struct {
	Revision uint64    `json:"revision"` // that it made
	Before   uint64    `json:"before"`   // and that it was made from
	Time     time.Time `json:"time"`
	state.Origin
	Created int `json:"created"`
	Changed int `json:"changed"`
	Deleted int `json:"deleted"`
	// Incomplete: the change was too large for the history to keep.
	Incomplete  bool               `json:"incomplete,omitempty"`
	Differences []state.Difference `json:"differences,omitempty"`
}
