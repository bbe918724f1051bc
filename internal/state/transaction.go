package state

// Kind is a kind of resource, or of a part of one that a transaction can
// change by itself.
type Kind string

// Kinds. LUNs and access rules are parts of a target.
const (
	KindVolume  Kind = "volume"
	KindTarget  Kind = "target"
	KindLUN     Kind = "lun"
	KindACL     Kind = "acl"
	KindAccount Kind = "account"
	KindPortal  Kind = "portal"
	KindSystem  Kind = "system"

	KindExport    Kind = "export"
	KindNBDPortal Kind = "nbdportal"
)

// Noun is the kind in people's words.
func (k Kind) Noun() string {
	if k == KindNBDPortal {
		return "NBD portal"
	}
	return string(k)
}

// Verb is what an operation does.
type Verb string

// Verbs.
const (
	Create Verb = "create" // it must not exist
	Update Verb = "update" // it must exist; it is replaced as a whole
	Put    Verb = "put"    // create or update
	Delete Verb = "delete" // it must exist
)

// Op is one step of a transaction. The steps of a transaction see each other's
// effects in their order and take effect all or not at all.
type Op struct {
	Verb Verb `json:"verb" enum:"create,update,put,delete"`
	Kind Kind `json:"kind" enum:"volume,target,lun,acl,account,portal,system,export,nbdportal"`
	// Name is the volume, target, account, portal or export to delete or update; for the
	// kinds lun and acl it is the target. Where a resource is given it may be empty.
	Name string `json:"name,omitempty"`
	// IfRevision, if not 0, is the revision the resource (for lun and acl: the
	// target) must have; otherwise the transaction fails with CodeRevision.
	IfRevision uint64 `json:"ifRevision,omitempty"`
	// Force goes on where the object is in use: a target or LUN with sessions is
	// deleted under them, a mapped volume is unmapped first.
	Force bool `json:"force,omitempty"`
	// Exact takes the owners in the resource as they are. Without it a resource,
	// LUN or rule that names none keeps the one it has.
	Exact bool `json:"exact,omitempty"`

	// What to create or put, by kind. Deleting a lun or acl names it here too.
	Volume  *Volume  `json:"volume,omitempty"`
	Target  *Target  `json:"target,omitempty"`
	LUN     *LUN     `json:"lun,omitempty"`
	ACL     *ACLRule `json:"acl,omitempty"`
	Account *Account `json:"account,omitempty"` // an empty secret keeps the old one
	Portal  *Portal  `json:"portal,omitempty"`
	System  *System  `json:"system,omitempty"`

	Export    *Export    `json:"export,omitempty"`
	NBDPortal *NBDPortal `json:"nbdPortal,omitempty"`
}

// LUNRef names a LUN of a target.
type LUNRef struct {
	Target string `json:"target"`
	Number uint64 `json:"number"`
}

// Change is one resource that a transaction changed. LUNs and access rules show
// as changes of their target.
type Change struct {
	Verb Verb // Create, Update or Delete
	Kind Kind
	Name string
}

// Plan is what leads from one state to the next.
type Plan struct {
	Old, New *Snapshot
	Ops      []Op     // as asked, names filled in
	Changes  []Change // what they amount to, in the order of Ops, without repeats
}
