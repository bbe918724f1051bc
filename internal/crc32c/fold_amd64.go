package crc32c

import "golang.org/x/sys/cpu"

// Wide reports that this processor folds. Constant.
var Wide = cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasSSE42

// fold adds p, of one foldBlock or several, to the state of the CRC, which is
// that of Update with all bits inverted.
//
//go:noescape
func fold(state uint32, p []byte) uint32
