package scsi

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"blockgate/scsi/sense"
)

// ROD tokens (SPC-4 §5.17.6): 512 bytes that stand for data on a unit.
//
// POPULATE TOKEN is to create a point in time copy, and the stores of a unit need
// not be able to take one. What every unit can do is the type that SPC-4 names
// "change vulnerable": nothing is copied and nothing kept, the data is read when
// the token is used, and the token is cancelled when a command begins to change a
// block that it stands for. So a token gives the data of the moment it was made,
// or TOKEN CANCELLED, and never newer data; "access upon reference", which gives
// whatever is there at the time, is not a type that POPULATE TOKEN may create.
// Changes that do not come through the unit are not seen.
const (
	rodChangeVulnerable = 0x00800001
	rodAnyPointInTime   = 0x0080ffff // in requests: persistent if possible, else change vulnerable
	rodBlockZero        = 0xffff0001 // every byte is zero; needs no POPULATE TOKEN

	rodTokenLen = 512
	rodLength   = rodTokenLen - 8 // ROD TOKEN LENGTH field

	maxTokens        = 1024 // of all units together
	maxTokensPerUnit = 64
	maxTokenRanges   = 128 // block device range descriptors in one command
	maxTokenBytes    = 256 << 20

	optimalTokenBytes = 64 << 20

	// Seconds. A token that is not used for its inactivity timeout expires, and
	// in any case at the end of its life.
	defaultTokenIdle = 60
	maxTokenIdle     = 600
	tokenLife        = 3600
)

// blockRange is a block device range descriptor.
type blockRange struct{ lba, nblocks uint64 }

// tokenState says whether a token is valid.
type tokenState uint8

const (
	tokenValid tokenState = iota
	tokenCancelled
	tokenExpired
	tokenDeleted
)

// rodToken is one token.
type rodToken struct {
	unit   *Unit
	owner  *itl // that populated it: its reservations count when the token is used
	bytes  [rodTokenLen]byte
	ranges []blockRange
	nbytes int64
	// first and end span the blocks of all ranges.
	first, end uint64
	dies       time.Time
	idle       time.Duration

	mu       sync.Mutex // after any Unit.mu
	state    tokenState
	lastUsed time.Time
	inUse    int // commands that read the data now
}

// newToken makes a token for ranges of a unit. idle is in seconds.
func newToken(t *Task, ranges []blockRange, idle uint32) *rodToken {
	u := t.unit
	now := time.Now()
	k := &rodToken{
		unit: u, owner: t.itl, ranges: ranges, first: 1<<64 - 1,
		dies: now.Add(tokenLife * time.Second), idle: time.Duration(idle) * time.Second, lastUsed: now,
	}
	for _, r := range ranges {
		k.nbytes += int64(r.nblocks) << u.blockShift
		if r.nblocks > 0 {
			k.first, k.end = min(k.first, r.lba), max(k.end, r.lba+r.nblocks)
		}
	}
	// The generic format (SPC-4 §5.17.6.5): what is not filled in below is random,
	// the identifier of the token too.
	be, b := binary.BigEndian, k.bytes[:]
	rand.Read(b)
	clear(b[16:256])
	be.PutUint32(b, rodChangeVulnerable)
	be.PutUint32(b[4:], rodLength)
	c := u.cfg.Load()
	creator := b[16:48] // as an identification descriptor
	creator[0], creator[1] = cscdIdentification, byte(c.Type)
	creator[4], creator[5], creator[7] = codeBinary, assocUnit|designatorNAA, 16
	copy(creator[8:], c.NAA[:])
	be.PutUint32(creator[28:], uint32(u.BlockSize()))
	be.PutUint64(b[56:], uint64(k.nbytes))
	be.PutUint32(b[96:], uint32(u.BlockSize()))
	b[101] = byte(u.physicalExp)
	be.PutUint16(b[102:], uint16(u.lowestAligned))
	if u.thin() {
		b[102] |= 0xc0 // LBPME, LBPRZ
	}
	if d := designator(nil, codeUTF8, assocDevice, designatorName, nameString(t.Nexus.cfg.Port.Name)); len(d) <= 128 {
		copy(b[128:], d)
	}
	return k
}

func (k *rodToken) id() uint64 { return binary.BigEndian.Uint64(k.bytes[8:]) }

// invalidate makes a valid token invalid for a reason.
func (k *rodToken) invalidate(reason tokenState) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state == tokenValid {
		k.state = reason
	}
}

// valid says whether the token can be used at a time; when it is too late it
// expires for good.
func (k *rodToken) valid(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state == tokenValid && k.inUse == 0 && (now.After(k.dies) || now.Sub(k.lastUsed) > k.idle) {
		k.state = tokenExpired
	}
	return k.state == tokenValid
}

// use keeps the token from expiring until done; false if it is not valid.
func (k *rodToken) use(now time.Time) bool {
	if !k.valid(now) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.inUse++
	return k.state == tokenValid
}

// done ends a use, from which the inactivity timeout begins anew.
func (k *rodToken) done() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastUsed = time.Now()
	k.inUse--
}

// touches says whether blocks of the token are among those.
func (k *rodToken) touches(lba, nblocks uint64) bool {
	if nblocks == 0 || lba >= k.end || lba < k.first && k.first-lba >= nblocks {
		return false
	}
	for _, r := range k.ranges {
		if r.lba <= lba && lba-r.lba < r.nblocks || lba < r.lba && r.lba-lba < nblocks && r.nblocks > 0 {
			return true
		}
	}
	return false
}

// sense says why the token is not valid, nil if it is.
func (k *rodToken) sense() *sense.Sense {
	k.mu.Lock()
	defer k.mu.Unlock()
	var s sense.Sense
	switch k.state {
	case tokenCancelled:
		s = sense.TokenCancelled()
	case tokenExpired:
		s = sense.TokenExpired()
	case tokenDeleted:
		s = sense.TokenDeleted()
	default:
		return nil
	}
	return &s
}

// tokenStore are the tokens of a copy manager, under its mutex. Invalid ones stay
// for the reason to be told, until they expire or their place is needed.
type tokenStore struct {
	byID map[uint64]*rodToken
	old  []*rodToken // oldest first
}

func newTokenStore() tokenStore { return tokenStore{byID: map[uint64]*rodToken{}} }

// add takes a token in; gone are those that had to make room.
func (s *tokenStore) add(k *rodToken, now time.Time) (gone []*rodToken) {
	for len(s.old) > 0 && (len(s.old) >= maxTokens || now.After(s.old[0].dies)) {
		gone = append(gone, s.old[0])
		s.drop(s.old[0])
	}
	s.byID[k.id()] = k
	s.old = append(s.old, k)
	return gone
}

func (s *tokenStore) drop(k *rodToken) {
	delete(s.byID, k.id())
	s.old = slices.DeleteFunc(s.old, func(o *rodToken) bool { return o == k })
}

// forget drops the tokens of a unit.
func (s *tokenStore) forget(u *Unit) (gone []*rodToken) {
	for _, k := range slices.Clone(s.old) {
		if k.unit == u {
			gone = append(gone, k)
			s.drop(k)
		}
	}
	return gone
}

// addToken makes a token one that can be used; false if its unit has gone.
func (m *CopyManager) addToken(k *rodToken) bool {
	m.mu.Lock()
	_, there := m.units[k.unit]
	var gone []*rodToken
	if there {
		gone = m.tokens.add(k, time.Now())
	}
	m.mu.Unlock()
	for _, o := range gone {
		o.unit.unwatch(o)
	}
	return there
}

// useToken finds a token by the bytes that an initiator sent, and keeps it from
// expiring until done. SPC-4 §5.17.6.5.2 has the order of the checks.
func (m *CopyManager) useToken(b []byte) (*rodToken, *sense.Sense) {
	fail := func(s sense.Sense) (*rodToken, *sense.Sense) { return nil, &s }
	be := binary.BigEndian
	if be.Uint16(b[6:]) != rodLength {
		return fail(sense.TokenLength())
	}
	if kind := be.Uint32(b); kind != rodChangeVulnerable {
		return fail(sense.TokenUnsupportedType())
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	k := m.tokens.byID[be.Uint64(b[8:])]
	switch {
	case k == nil:
		return fail(sense.TokenUnknown())
	case subtle.ConstantTimeCompare(k.bytes[:], b) == 0:
		return fail(sense.TokenCorrupt())
	}
	if !k.use(time.Now()) {
		return nil, k.sense()
	}
	return k, nil
}

// watch has the token cancelled by the next command that changes its blocks; if
// the unit has too many the oldest is cancelled. While a unit has tokens every
// task asks when it starts: those that start at once in Unit.start, those that
// had to wait in Unit.releaseLocked.
func (u *Unit) watch(k *rodToken) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.tokens) >= maxTokensPerUnit {
		u.tokens[0].invalidate(tokenCancelled)
		u.tokens = slices.Delete(u.tokens, 0, 1)
	}
	if len(u.tokens) == 0 {
		u.special.Add(1)
	}
	u.tokens = append(u.tokens, k)
}

// unwatch cancels the token if it is valid, and forgets it.
func (u *Unit) unwatch(k *rodToken) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k.invalidate(tokenCancelled)
	u.keepTokensLocked(func(o *rodToken) bool { return o != k })
}

// cancelTokens cancels all tokens of the unit.
func (u *Unit) cancelTokens() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.keepTokensLocked(func(k *rodToken) bool {
		k.invalidate(tokenCancelled)
		return false
	})
}

// touchTokensLocked cancels the tokens of which the task, which is about to
// start, changes blocks, and forgets those that have expired.
func (u *Unit) touchTokensLocked(t *Task) {
	if len(u.tokens) == 0 {
		return
	}
	var lba, nblocks uint64
	if t.row.Access == AccessWrite {
		lba, nblocks = t.blocks()
	}
	now := time.Now()
	u.keepTokensLocked(func(k *rodToken) bool {
		if k.touches(lba, nblocks) {
			k.invalidate(tokenCancelled)
			return false
		}
		return k.valid(now)
	})
}

func (u *Unit) keepTokensLocked(keep func(*rodToken) bool) {
	if len(u.tokens) == 0 {
		return
	}
	u.tokens = slices.DeleteFunc(u.tokens, func(k *rodToken) bool { return !keep(k) })
	if len(u.tokens) == 0 {
		u.special.Add(-1)
	}
}
