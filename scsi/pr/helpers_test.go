package pr

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"

	"blockgate/scsi/sense"
)

// memStore is a Store in memory that can be told to fail.
type memStore struct {
	mu    sync.Mutex
	data  []byte
	saves int
	fail  bool // Save fails, leaving the old data
	torn  bool // Save fails, leaving the new data
}

func (m *memStore) Load(context.Context) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.data), nil
}

func (m *memStore) Save(_ context.Context, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves++
	if !m.fail {
		m.data = slices.Clone(data)
	}
	if m.fail || m.torn {
		return errors.New("disk on fire")
	}
	return nil
}

// port is the initiator port called by a letter, "A".
func port(letter byte) Port {
	return Port{Name: "iqn.2026-11.test:" + string(letter|0x20), ISID: [6]byte{0, 2, 0x3d, 0, 0, letter}, HasISID: true}
}

// nexus is "A" (by target port 1) or "A2".
func nexus(s string) Nexus {
	n := Nexus{port(s[0]), 1}
	if len(s) > 1 {
		n.RelPort = uint16(s[1] - '0')
	}
	return n
}

// basicList builds the parameter list of all service actions but REGISTER AND
// MOVE; ids are appended as with SPEC_I_PT.
func basicList(rk, sark uint64, flags byte, ids ...Port) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint64(b, rk)
	binary.BigEndian.PutUint64(b[8:], sark)
	b[20] = flags
	if len(ids) > 0 {
		b[20] |= specIPT
		b = append(b, 0, 0, 0, 0)
		for _, id := range ids {
			b = AppendTransportID(b, id)
		}
		binary.BigEndian.PutUint32(b[24:], uint32(len(b)-28))
	}
	return b
}

const (
	specIPT = 0x08
	allTgPt = 0x04
	aptpl   = 0x01
)

func moveList(rk, sark uint64, flags byte, relPort uint16, to Port) []byte {
	b := make([]byte, 24)
	binary.BigEndian.PutUint64(b, rk)
	binary.BigEndian.PutUint64(b[8:], sark)
	b[17] = flags
	binary.BigEndian.PutUint16(b[18:], relPort)
	b = AppendTransportID(b, to)
	binary.BigEndian.PutUint32(b[20:], uint32(len(b)-24))
	return b
}

func twoPorts() []uint16 { return []uint16{1, 2} }

func open(t testing.TB, store Store) *Reservations {
	t.Helper()
	r, err := New(context.Background(), store, Topology{TargetPorts: twoPorts})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// must performs a command that has to be GOOD.
func must(t testing.TB, r *Reservations, sa byte, typ Type, n string, list []byte) Result {
	t.Helper()
	res := r.Out(context.Background(), sa, byte(typ), nexus(n), list)
	if res.Conflict || res.Sense != nil {
		t.Fatalf("service action %d from %s: conflict %v, %v", sa, n, res.Conflict, res.Sense)
	}
	return res
}

// is reports whether got is that condition, wherever it points to.
func is(got *sense.Sense, want sense.Sense) bool {
	return got != nil && got.Key == want.Key && got.ASC == want.ASC && got.ASCQ == want.ASCQ
}
