package outside

import (
	"context"
	"testing"
	"time"

	"blockgate/iscsi/initiator"
)

// config is how our own initiator logs in to e.
func config(e *export) initiator.Config {
	return initiator.Config{Addrs: []string{e.addr()}, TargetName: e.iqn(), LoginTimeout: 20 * time.Second}
}

// rawLogin logs in and gives the bare connection: nothing is read or answered
// unless the test does it.
func rawLogin(t *testing.T, e *export) *initiator.Raw {
	t.Helper()
	r, err := config(e).DialRaw(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}
