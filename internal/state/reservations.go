package state

import (
	"context"
	"encoding/json"
)

// kindReservations keys what units keep of persistent reservations. It is no
// resource: initiators write it, and it goes with its volume.
const kindReservations Kind = "reservations"

// Reservations keeps one volume's persistent reservations (APTPL). It is what
// package scsi/pr wants of a store.
type Reservations struct {
	backend Backend
	key     string
}

// Reservations gives the place for a volume's persistent reservations.
func (s *State) Reservations(volume string) *Reservations {
	return &Reservations{backend: s.backend, key: key(kindReservations, volume)}
}

// Load gives what was saved last, nil if nothing was.
func (r *Reservations) Load(ctx context.Context) ([]byte, error) {
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
func (r *Reservations) Save(ctx context.Context, data []byte) error {
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
