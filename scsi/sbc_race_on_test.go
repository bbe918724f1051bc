//go:build race

package scsi_test

// raceEnabled: sync.Pool drops buffers at random under the race detector.
const raceEnabled = true
