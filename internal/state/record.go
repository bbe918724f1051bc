package state

import (
	"context"
	"encoding/json"
	"slices"
)

// Kinds of records: what initiators make the gateway keep. They are no
// resources, and go with the volume or the target that they are about.
const (
	kindReservations Kind = "reservations" // of a volume: persistent reservations
	kindSanitize     Kind = "sanitize"     // of a volume: an operation that has not ended well
	kindAccess       Kind = "access"       // of a target: the states of its port groups
)

// records are the kinds that go with a resource.
var records = map[Kind][]Kind{
	KindVolume: {kindReservations, kindSanitize},
	KindTarget: {kindAccess},
}

func isRecord(k Kind) bool {
	for _, l := range records {
		if slices.Contains(l, k) {
			return true
		}
	}
	return false
}

// Record keeps one value for one unit or target. It is what packages scsi and
// scsi/pr want of a store. Safe for concurrent use.
type Record struct {
	backend Backend
	key     string
}

// Reservations gives the place for a volume's persistent reservations.
func (s *State) Reservations(volume string) *Record { return s.record(kindReservations, volume) }

// Sanitize gives the place where a volume's unfinished or failed sanitize
// operation is remembered.
func (s *State) Sanitize(volume string) *Record { return s.record(kindSanitize, volume) }

// Access gives the place for the asymmetric access states of a target's port
// groups.
func (s *State) Access(target string) *Record { return s.record(kindAccess, target) }

func (s *State) record(k Kind, name string) *Record {
	return &Record{backend: s.backend, key: key(k, name)}
}

// Load gives what was saved last, nil if nothing was.
func (r *Record) Load(ctx context.Context) ([]byte, error) {
	it, ok, err := r.backend.Get(ctx, r.key)
	if err != nil || !ok {
		return nil, err
	}
	var data []byte
	if err := json.Unmarshal(it.Value, &data); err != nil {
		return nil, &Error{Class: Internal, Code: CodeStateCorrupt, Object: "state key " + r.key, Reason: err.Error(), Err: err}
	}
	return data, nil
}

// Save returns when data is durable in place of what was there; empty data
// deletes it.
func (r *Record) Save(ctx context.Context, data []byte) error {
	if len(data) == 0 {
		_, err := r.backend.Txn(ctx, Txn{Delete: []string{r.key}})
		return err
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return err
	}
	_, err = r.backend.Txn(ctx, Txn{Put: []Item{{Key: r.key, Value: raw}}})
	return err
}
