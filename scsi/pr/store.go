package pr

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Store keeps one logical unit's reservations through a restart. Its calls come
// one at a time. A call ends when ctx does.
type Store interface {
	// Load gives what was last saved, nothing if that was never or nothing.
	Load(ctx context.Context) ([]byte, error)
	// Save returns nil when data is durable in place of what was saved before;
	// empty data means that nothing is to be kept. After an error either the old
	// or the new data may be there, never a mixture. data belongs to the caller
	// and is not changed by it later.
	Save(ctx context.Context, data []byte) error
}

// What is saved. The generation is not: it is 0 after a power on whatever APTPL
// says (SPC-4 §6.15.2). That anything is saved means that APTPL is set.
type saved struct {
	Version       int                 `json:"version"`
	Type          Type                `json:"type,omitempty"`
	Holder        *savedNexus         `json:"holder,omitempty"`
	Registrations []savedRegistration `json:"registrations"`
}

type savedNexus struct {
	Initiator string `json:"initiator"`
	ISID      string `json:"isid,omitempty"` // 12 hexadecimal digits
	Port      uint16 `json:"port"`           // relative target port identifier
}

type savedRegistration struct {
	savedNexus
	Key string `json:"key"` // 16 hexadecimal digits
}

const savedVersion = 1

func encodeNexus(n Nexus) savedNexus {
	s := savedNexus{Initiator: n.Initiator.Name, Port: n.RelPort}
	if n.Initiator.HasISID {
		s.ISID = hex.EncodeToString(n.Initiator.ISID[:])
	}
	return s
}

func (s savedNexus) nexus() (Nexus, error) {
	n := Nexus{Initiator: Port{Name: s.Initiator}, RelPort: s.Port}
	if !validName(s.Initiator) {
		return Nexus{}, fmt.Errorf("initiator name %q", s.Initiator)
	}
	if s.ISID != "" {
		b, err := hex.DecodeString(s.ISID)
		if err != nil || len(b) != len(n.Initiator.ISID) {
			return Nexus{}, fmt.Errorf("ISID %q", s.ISID)
		}
		copy(n.Initiator.ISID[:], b)
		n.Initiator.HasISID = true
	}
	return n, nil
}

func encode(s *state) []byte {
	v := saved{Version: savedVersion, Type: s.typ, Registrations: []savedRegistration{}}
	if s.typ != None && !s.typ.AllRegistrants() {
		h := encodeNexus(s.holder)
		v.Holder = &h
	}
	for _, n := range s.order {
		v.Registrations = append(v.Registrations, savedRegistration{encodeNexus(n), fmt.Sprintf("%016x", s.keys[n])})
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return b
}

// decode is strict: state that cannot be trusted wholly is not used at all.
func decode(data []byte) (*state, error) {
	var v saved
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	if v.Version != savedVersion {
		return nil, fmt.Errorf("version %d, this program knows %d", v.Version, savedVersion)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	v = saved{}
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	s := newState()
	s.aptpl = true
	for _, sr := range v.Registrations {
		n, err := sr.nexus()
		if err != nil {
			return nil, err
		}
		key, err := strconv.ParseUint(sr.Key, 16, 64)
		if err != nil || key == 0 {
			return nil, fmt.Errorf("key %q of %v", sr.Key, n)
		}
		if s.keys[n] != 0 {
			return nil, fmt.Errorf("%v is registered twice", n)
		}
		if !s.register(n, key) {
			return nil, fmt.Errorf("more than %d registrations", MaxRegistrations)
		}
	}
	if v.Type == None {
		if v.Holder != nil {
			return nil, errors.New("a holder without reservation")
		}
		return s, nil
	}
	switch {
	case !v.Type.Valid():
		return nil, errors.New(v.Type.String())
	case v.Type.AllRegistrants() != (v.Holder == nil):
		return nil, errors.New("the holder does not fit the reservation's type")
	case len(s.order) == 0:
		return nil, errors.New("a reservation without registration")
	}
	var holder Nexus
	if v.Holder != nil {
		var err error
		if holder, err = v.Holder.nexus(); err != nil {
			return nil, err
		}
		if s.keys[holder] == 0 {
			return nil, fmt.Errorf("the holder %v is not registered", holder)
		}
	}
	s.reserve(holder, v.Type)
	return s, nil
}
