//go:build !amd64

package crc32c

// Wide reports that this processor folds. Constant.
const Wide = false

func fold(uint32, []byte) uint32 { panic("not reached: it does not") }
