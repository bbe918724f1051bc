//go:build !linux

package conndrive

const canWritev = false

// vectors is not used here: sending goes through package net.
type vectors struct{}

var vectorPool noVectors

type noVectors struct{}

func (noVectors) Get() any { return new(vectors) }
func (noVectors) Put(any)  {}

func (*vectors) writev(uintptr, [][]byte) (int, error) { panic("not reached: canWritev is false") }

const canReadv = false

// pair is not used here: receiving goes through package net.
type pair struct{}

func (*pair) readv(uintptr, []byte, []byte) (int, error) { panic("not reached: canReadv is false") }
