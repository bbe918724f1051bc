package state

import (
	"hash/maphash"
	"iter"
	"maps"
	"slices"
)

// table is a map whose copies cost little: a copy shares its parts with the
// original and takes over a part when it changes it. A table that others may
// read is never changed, so it needs no lock; what is being made from it by edit
// belongs to one goroutine.
type table[K comparable, V any] struct {
	seed  maphash.Seed
	parts [tableParts]map[K]V
	own   [tableParts / 64]uint64 // parts that no other table has
	n     int
}

// tableParts: a change copies the list of them and one of them, which makes the
// cost of a change in 10,000 that of 300.
const tableParts = 256

func newTable[K comparable, V any]() *table[K, V] { return &table[K, V]{seed: maphash.MakeSeed()} }

// edit gives a copy that can be changed.
func (t *table[K, V]) edit() *table[K, V] {
	c := *t
	c.own = [tableParts / 64]uint64{}
	return &c
}

func (t *table[K, V]) part(k K) uint64 { return maphash.Comparable(t.seed, k) % tableParts }

func (t *table[K, V]) find(k K) (V, bool) {
	v, ok := t.parts[t.part(k)][k]
	return v, ok
}

// get is find without telling nothing from a zero value.
func (t *table[K, V]) get(k K) V { return t.parts[t.part(k)][k] }

func (t *table[K, V]) writable(i uint64) map[K]V {
	if t.own[i/64]&(1<<(i%64)) == 0 {
		t.own[i/64] |= 1 << (i % 64)
		if t.parts[i] = maps.Clone(t.parts[i]); t.parts[i] == nil {
			t.parts[i] = map[K]V{}
		}
	}
	return t.parts[i]
}

func (t *table[K, V]) set(k K, v V) {
	p := t.writable(t.part(k))
	before := len(p)
	p[k] = v
	t.n += len(p) - before
}

func (t *table[K, V]) delete(k K) {
	i := t.part(k)
	if _, ok := t.parts[i][k]; ok {
		delete(t.writable(i), k)
		t.n--
	}
}

func (t *table[K, V]) len() int { return t.n }

// all goes through the table in no order. Entries that are changed meanwhile
// may be seen as they were or as they are.
func (t *table[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range t.parts {
			for k, v := range t.parts[i] {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

func (t *table[K, V]) keys() []K {
	l := make([]K, 0, t.n)
	for k := range t.all() {
		l = append(l, k)
	}
	return l
}

func sortedNames[V any](t *table[string, V]) []string {
	l := t.keys()
	slices.Sort(l)
	return l
}
