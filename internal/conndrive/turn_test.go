package conndrive_test

import (
	"bytes"
	"sync"
	"testing"

	"blockgate/internal/conndrive"
)

// TestTurns: peers that wait for each answer, several at a time, are all answered,
// whoever's turn it is; and a connection ends while it waits in place.
func TestTurns(t *testing.T) {
	for _, network := range []string{"tcp", "unix", "tls"} {
		t.Run(network, func(t *testing.T) {
			var turn conndrive.Turn
			var peers sync.WaitGroup
			for range 3 {
				server, client := pair(t, network)
				c := conndrive.New(server)
				c.Share(&turn)
				e := newEcho(c.SendsWithoutWaiting())
				e.conn = c
				c.Attach(e)
				ended := make(chan error, 1)
				go func() { ended <- c.Run(nil) }()
				peers.Go(func() {
					for i := range 500 {
						want := payload(1 + i%300)
						if _, err := client.Write(frame(wayNow, want)); err != nil {
							t.Error(err)
							return
						}
						if got, err := readFrame(client); err != nil || !bytes.Equal(got, want) {
							t.Errorf("frame %d came back wrong: %v", i, err)
							return
						}
					}
					client.Close()
					if err := <-ended; err == nil {
						t.Error("the reader gave no reason for its end")
					}
				})
			}
			peers.Wait()
		})
	}
}
