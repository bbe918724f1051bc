// Package crc32c computes the CRC that iSCSI digests are made of: CRC-32C, by the
// name of Castagnoli (RFC 7143 §13.1).
//
// hash/crc32 has it too, with an instruction that takes eight bytes at a time. Of
// memory that is not in the caches, which is what a disk in memory lends to a read,
// it keeps too few loads on the way. Where the processor has AVX-512 with
// carry-less multiplication of vectors, runs of some length are folded 256 bytes
// at a time instead; everything else is left to hash/crc32.
package crc32c

import "hash/crc32"

// castagnoli uses the processor's CRC instructions; read only after init.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// foldMin is from which length on folding is quicker, in bytes.
const foldMin = 2 * foldBlock

// foldBlock is how much fold takes at a time, in bytes.
const foldBlock = 256

// Update adds p to a CRC in progress; 0 starts one. Safe for concurrent use.
func Update(crc uint32, p []byte) uint32 {
	if Wide && len(p) >= foldMin {
		n := len(p) &^ (foldBlock - 1)
		crc = ^fold(^crc, p[:n])
		p = p[n:]
	}
	return crc32.Update(crc, castagnoli, p)
}
