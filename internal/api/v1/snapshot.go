package v1

import "time"

// Snapshot is a snapshot of a volume, kept by its engine.
type Snapshot struct {
	Volume string `json:"volume"`
	Name   string `json:"name"`
	// ID is the engine's own name for it.
	ID      string    `json:"id,omitempty"`
	Created time.Time `json:"created"` // as the engine has it
	Size    int64     `json:"size"`    // bytes
	// PauseMs is for how many milliseconds writes were held up for it. Only the
	// answer to its creation tells.
	PauseMs float64 `json:"pauseMs,omitempty"`
}

// Snapshots are the snapshots of several volumes.
type Snapshots struct {
	Snapshots []Snapshot `json:"snapshots"`
	// Warnings name the volumes whose engine could not be asked.
	Warnings []string `json:"warnings,omitempty"`
}

// CreateSnapshot asks for a snapshot of a volume.
type CreateSnapshot struct {
	Name string `json:"name"`
}

// Clone asks for a volume that begins with what a snapshot of another one has.
type Clone struct {
	Name string `json:"name"` // of the new volume
	// Snapshot is the name of the snapshot; it is made first if MakeSnapshot.
	Snapshot     string `json:"snapshot"`
	MakeSnapshot bool   `json:"makeSnapshot,omitempty"`
	// StoreName is what the clone is called in its engine; empty: Name.
	StoreName string `json:"storeName,omitempty"`
}

// Cloned is a volume that was made as a clone.
type Cloned struct {
	Volume
	// Snapshot is the one that was made for it, if any.
	Snapshot *Snapshot `json:"snapshot,omitempty"`
}
