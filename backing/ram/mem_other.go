//go:build !linux

package ram

// mapMemory maps nothing: each chunk takes its memory from the heap.
func mapMemory(int, bool) ([]byte, error) { return nil, nil }

func unmapMemory([]byte) {}

// releasePages cannot give parts of a chunk back.
func releasePages(mem []byte) { clear(mem) }

// releaseChunk leaves a whole chunk to the garbage collector.
func releaseChunk([]byte) bool { return true }

// availableMemory is not known here.
func availableMemory() (int64, bool) { return 0, false }
