package tgtconf

// Config is the meaning of a configuration. Positions tell where each part
// stands.
type Config struct {
	DefaultDriver string // empty: not given, iscsi
	IgnoreErrors  bool
	ControlPort   int // -1: not given
	// ISNS are iSNSAccessControl, iSNSServerIP, iSNSServerPort and iSNS, as far as
	// given, in the order in which tgt-admin sets them.
	ISNS []Param
	// DiscoveryIncoming and DiscoveryOutgoing guard discovery sessions. Both are
	// nil unless given.
	DiscoveryIncoming, DiscoveryOutgoing *Account

	Targets []*Target // by name, each name once
	Files   []string  // that were read, in order
	// Warnings: directives that are not known, or have no effect.
	Warnings []*Error
}

// Target is a target. Several blocks of one name are one target.
type Target struct {
	Pos    Position // of its first block
	Name   string
	Driver string // empty: not given
	TID    int    // controller_tid; 0: not given

	Stores []*Store // in the order in which tgt-admin makes them
	// Addresses and Names are access rules. Without any address tgt-admin lets
	// ALL in, whatever the names are; OpenToAll says so.
	Addresses, Names []Value
	// Closed: there were addresses, and none of them is of use.
	Closed   bool
	Incoming []Account
	Outgoing *Account
	// Params are iSCSI keys, and at the end "state", by name.
	Params []Param
	// Err is the first thing that is wrong with the target; then the rest of it
	// is not complete. Other targets are not touched by it.
	Err *Error
}

// OpenToAll tells whether any initiator may log in as far as its address is
// concerned.
func (t *Target) OpenToAll() bool { return len(t.Addresses) == 0 && !t.Closed }

// Store is a backing store of a target.
type Store struct {
	Pos    Position
	Path   string
	Direct bool // direct-store: identity is copied from the SCSI device
	// NoMedium: the path is "NONE:…", a removable unit without a medium.
	NoMedium bool
	// LUN is the number; Given tells whether the file has it. Otherwise it is the
	// first that is free from 1.
	LUN   uint64
	Given bool

	DeviceType, Bstype, Bsopts, Bsoflags string // empty: not given
	BlockSize                            string // bytes
	// WriteCache off is set through mode page 8 before all other parameters.
	WriteCache bool
	AllowInUse bool
	// Params are set with --params, one after the other: mode_page first. The
	// name is empty for the directive params, whose value is a list already; there
	// ${tid} and ${lun} stand for the numbers.
	Params []Param
}

// CacheOffPage is the mode_page value by which tgt-admin turns a write cache
// off: the caching page (SBC-3 §6.5.5) with WCE clear.
const CacheOffPage = "8:0:18:0x10:0:0xff:0xff:0:0:0xff:0xff:0xff:0xff:0x80:0x14:0:0:0:0:0:0"

// Param is a name with its value.
type Param struct {
	Pos         Position
	Name, Value string
}

// Value is a value of a directive that may be repeated.
type Value struct {
	Pos  Position
	Text string
}

// Account is a CHAP user with its secret.
type Account struct {
	Pos            Position
	User, Password string
}

// Load reads a configuration and what it includes. An error is an *Error and
// means that nothing can be said of the whole; what is wrong with one target
// alone is in its Err.
func Load(src Source, name string) (*Config, error) {
	t, err := ReadTree(src, name)
	if err != nil {
		return nil, err
	}
	return t.Config()
}

// Parse is Load for a text that is there already; see ParseTree.
func Parse(src Source, name string, text []byte) (*Config, error) {
	t, err := ParseTree(src, name, text)
	if err != nil {
		return nil, err
	}
	return t.Config()
}

// Target finds a target by its name; nil if there is none.
func (c *Config) Target(name string) *Target {
	for _, t := range c.Targets {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// Errors are those of all targets.
func (c *Config) Errors() []*Error {
	var out []*Error
	for _, t := range c.Targets {
		if t.Err != nil {
			out = append(out, t.Err)
		}
	}
	return out
}
