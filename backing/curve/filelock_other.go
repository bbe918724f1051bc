//go:build !linux

package curve

import "os"

// flock does nothing: nebd-server runs on Linux only.
func flock(*os.File) (bool, error) { return true, nil }
