package v1

import (
	"time"

	"blockgate/internal/state"
)

// NBDExport is an NBD export and what has become of it.
type NBDExport struct {
	state.Export
	Revision uint64 `json:"revision"`
	State    string `json:"state"` // online, offline, failed: its volume's
	Error    string `json:"error,omitempty"`
	Size     int64  `json:"size"` // bytes
	Clients  int    `json:"clients"`
}

// NBDPortal is an address that NBD is served on and what has become of it.
type NBDPortal struct {
	state.NBDPortal
	Revision uint64 `json:"revision"`
	State    string `json:"state"` // online, failed
	Error    string `json:"error,omitempty"`
	// Runtime: given on the daemon's command line, not kept.
	Runtime bool `json:"runtime,omitempty"`
	// Bound is the address listened on, with the port chosen for ":0".
	Bound string `json:"bound,omitempty"`
}

// NBDClient is an NBD connection. Rx is what we received.
type NBDClient struct {
	ID       uint64 `json:"id"` // unique while the daemon runs
	Export   string `json:"export"`
	Remote   string `json:"remote"` // "unix" for a client of a Unix socket
	Local    string `json:"local"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// TLS is x509 or psk, empty without TLS; Names are what it has proved.
	TLS          string    `json:"tls,omitempty"`
	Names        []string  `json:"names,omitempty"`
	Replies      string    `json:"replies"` // simple, structured, extended
	Started      time.Time `json:"started"`
	RxBytes      uint64    `json:"rxBytes"`
	TxBytes      uint64    `json:"txBytes"`
	Requests     uint64    `json:"requests"`
	Errors       uint64    `json:"errors"`
	ReadBytes    uint64    `json:"readBytes"`
	WrittenBytes uint64    `json:"writtenBytes"`
}
