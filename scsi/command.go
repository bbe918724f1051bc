package scsi

import "blockgate/scsi/sense"

// Access is what a command does to the medium.
type Access uint8

// Kinds of access.
const (
	AccessNone  Access = iota
	AccessRead         // reads the medium or its state
	AccessWrite        // changes the medium: refused on a write-protected unit
)

// Dir is the direction of a command's data.
type Dir uint8

// Data directions.
const (
	DirNone Dir = iota
	DirIn
	DirOut
)

// Reserve says how a command fares on an I_T nexus that does not hold the
// reservation (SPC-4 §5.13, table 54 and following; SBC-3 table 12).
type Reserve uint8

// Reservation classes.
const (
	ResAllowed   Reserve = iota // runs under every reservation (INQUIRY, REPORT LUNS, …)
	ResRead                     // conflicts with exclusive access, runs under write exclusive
	ResWrite                    // conflicts with every type
	ResAllowedPR                // runs under persistent reservations, conflicts with RESERVE(6/10) of another
	ResOwn                      // the handler decides (PERSISTENT RESERVE OUT, RELEASE)
)

// ALUA flags say in which asymmetric access states a command runs besides
// active/optimized and active/non-optimized, where all do (SPC-4 §5.15.2).
type ALUA uint8

// States in which a command also runs.
const (
	InStandby ALUA = 1 << iota
	InUnavailable
	InTransition
	InOffline
)

// Types is a set of peripheral device types that have a command.
type Types uint8

// Device types (SPC-4 table 142).
const (
	TypeDisk       Types = 1 << iota // 00h direct access block device
	TypeCD                           // 05h CD/DVD
	TypeController                   // 0Ch storage array controller
	TypeWLUN                         // 1Eh well known logical unit
	AnyType        = TypeDisk | TypeCD | TypeController | TypeWLUN
)

// NoSA marks a command without service actions.
const NoSA = -1

// Command is one row of the table.
type Command struct {
	Name string // the standard's name, for errors, logs and docs
	Op   byte
	SA   int // service action, NoSA if none
	// Usage has one byte for each byte of the CDB: a 1 bit where the device
	// server looks at the bit (SPC-4 §6.35.3). Byte 0 is the opcode; the bits of
	// the service action field are given by SA and set here too. A CDB with a 1
	// where Usage has 0 gets INVALID FIELD IN CDB, unless the row is Lenient.
	Usage   []byte
	Lenient bool // reserved bits are ignored, as initiators in the field expect

	Types   Types
	Dir     Dir
	Access  Access
	Reserve Reserve
	ALUA    ALUA
	// NoUA: runs before a pending unit attention is reported (SAM-5 §5.14).
	NoUA bool
	// Medium: the handler waits for the store, so it runs on a goroutine that
	// may block unless the store is prompt.
	Medium bool
	// Waits: the handler may wait also if the store is prompt (it flushes), or
	// without Medium for something else than the store, so it never runs on the
	// transport's goroutine.
	Waits bool
	// Supported says whether this unit has the command; nil means that it has.
	// A unit whose store cannot unmap does not have UNMAP.
	Supported func(u *Unit) bool
	// OutLen gives the number of data-out bytes the CDB asks for; nil with
	// Dir == DirOut is a programming error. A *sense.Sense ends the command before
	// any data is asked for.
	OutLen func(t *Task) (int64, *sense.Sense)
	// Range gives the blocks the command touches, for tasks that must not
	// overlap others (COMPARE AND WRITE, ORWRITE). nil: none.
	Range func(t *Task) (lba, nblocks uint64)
	// Exclusive: no other task may touch the same blocks meanwhile.
	Exclusive bool
	// Short takes the place of the row, of which it differs in how it runs, for
	// data-out that ends inside a block. Optional.
	Short *Command
	// Try runs the command without waiting for a medium, before Run is
	// considered; false means that nothing happened. Optional.
	Try func(t *Task) bool
	// Lend runs the command, without waiting, so that its data-in stays in the
	// store's memory (backing.Lender); false means that nothing happened. Only
	// called on units that have such a store. Optional.
	Lend func(t *Task) bool
	// Begin readies the command for a store that carries it out by itself (see
	// start.go); false means that nothing happened. Only called on units that have
	// such a store. Optional.
	Begin func(t *Task) bool
	// Run executes the command: it sets data and ends with t.Status Good, or
	// calls t.Fail. It returns when the command is done; t's context ends when
	// the task is aborted.
	Run func(t *Task)
}
