package state

import (
	"maps"
	"testing"

	"pgregory.net/rapid"
)

// A table is a map, and its copies are copies: what is done to one shows in no
// other.
func TestTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tables := []*table[uint16, int]{newTable[uint16, int]()}
		models := []map[uint16]int{{}}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			last := len(tables) - 1
			k := rapid.Uint16Range(0, 600).Draw(t, "key")
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0:
				tables, models = append(tables, tables[last].edit()), append(models, maps.Clone(models[last]))
			case 1, 2, 3:
				tables[last].delete(k)
				delete(models[last], k)
			default:
				v := rapid.Int().Draw(t, "value")
				tables[last].set(k, v)
				models[last][k] = v
			}
		}
		for i, m := range models {
			if got := maps.Collect(tables[i].all()); !maps.Equal(got, m) || tables[i].len() != len(m) || len(tables[i].keys()) != len(m) {
				t.Fatalf("copy %d: %v with %d entries, want %v", i, got, tables[i].len(), m)
			}
			for k := range uint16(601) {
				v, ok := tables[i].find(k)
				if want, there := m[k]; v != want || ok != there || tables[i].get(k) != want {
					t.Fatalf("copy %d: key %d: %d %v, want %d %v", i, k, v, ok, want, there)
				}
			}
		}
	})
}
