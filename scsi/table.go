package scsi

import (
	"cmp"
	"slices"
	"sync"

	"blockgate/scsi/sense"
)

// table is the command table in the form in which it is looked up.
type table struct {
	rows []Command // by opcode and service action
	ops  [256][]*Command
}

// The table never changes; it is built at the first use, since its rows name
// handlers that name the table.
var shared struct {
	once  sync.Once
	table *table
}

func sharedTable() *table {
	shared.once.Do(func() { shared.table = buildTable() })
	return shared.table
}

func buildTable() *table {
	t := &table{rows: slices.Concat(spcCommands(), reserveCommands(), aluaCommands(), copyCommands(), sbcCommands())}
	slices.SortStableFunc(t.rows, func(a, b Command) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.SA, b.SA))
	})
	for i := range t.rows {
		r := &t.rows[i]
		t.ops[r.Op] = append(t.ops[r.Op], r)
	}
	return t
}

// Commands is the whole table, sorted by opcode and service action. The slice is
// the caller's; what the rows point to is not to be changed.
func Commands() []Command { return slices.Clone(sharedTable().rows) }

// offers reports whether the unit has the command.
func (u *Unit) offers(c *Command) bool {
	return c.Types&u.typeBit != 0 && (c.Supported == nil || c.Supported(u))
}

// find looks up the row for a CDB on the unit. Without one it gives the sense
// data to answer with.
func (tb *table) find(u *Unit, cdb []byte) (*Command, sense.Sense, bool) {
	if len(cdb) == 0 {
		return nil, sense.InvalidOpcode(), false
	}
	op := cdb[0]
	if u.absent && op != opInquiry && op != opRequestSense && op != opReportLUNs {
		return nil, sense.LUNotSupported(), false
	}
	var haveSA bool
	for _, r := range tb.ops[op] {
		if !u.offers(r) {
			continue
		}
		if r.SA != NoSA {
			haveSA = true
			if len(cdb) < 2 || int(cdb[1]&0x1f) != r.SA {
				continue
			}
		}
		if len(cdb) < len(r.Usage) {
			return nil, sense.InvalidFieldInCDB(len(cdb), -1), false
		}
		return r, sense.Sense{}, true
	}
	if haveSA {
		return nil, sense.InvalidFieldInCDB(1, 4), false
	}
	return nil, sense.InvalidOpcode(), false
}
