package initiator

import (
	"bytes"
	"net"
	"testing"

	"blockgate/iscsi"
)

// TestInputFromSocket: PDUs of every length come whole out of a socket that gives
// them in odd pieces; and what the caller queued leaves before each wait.
func TestInputFromSocket(t *testing.T) {
	for _, digest := range []bool{false, true} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		peer, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		lens := []int{0, 1, 48, 4096, directRead - 1, directRead, directRead + 3, 65536, 65536, 65536, 100, 262144, 262144, 5}
		const rounds = 20
		content := func(n int) []byte {
			return bytes.Repeat([]byte{byte(n), byte(n >> 8), 3, 4, 5, 6, 7}, n/7+1)[:n]
		}
		var wire []byte
		for range rounds {
			for _, n := range lens {
				var h iscsi.BHS
				h.SetOpcode(iscsi.OpDataIn, false)
				h.SetDataLen(n)
				wire = append(wire, h[:]...)
				if n == 0 {
					continue
				}
				at := len(wire)
				wire = append(append(wire, content(n)...), make([]byte, iscsi.PadLen(n))...)
				if digest {
					wire = iscsi.AppendDigest(wire, iscsi.UpdateDigest(0, wire[at:]))
				}
			}
		}
		// The peer sends a piece only when it is asked for, as by commands that leave
		// before each wait.
		ask := make(chan struct{}, 1)
		go func() {
			for n := 1; len(wire) > 0; n = n*5%100003 + 1 {
				<-ask
				m := min(n, len(wire))
				if _, err := peer.Write(wire[:m]); err != nil {
					return
				}
				wire = wire[m:]
			}
		}()
		in := newInput(nc)
		in.maxData, in.dataDigest = 1<<20, digest
		in.waits = func() {
			select {
			case ask <- struct{}{}:
			default:
			}
		}
		for range rounds {
			for _, n := range lens {
				var h iscsi.BHS
				if _, err := in.next(&h); err != nil || h.DataLen() != n {
					t.Fatalf("header with %d bytes of data (%v), want %d", h.DataLen(), err, n)
				}
				got := make([]byte, n)
				if err := in.dataInto(got); err != nil || !bytes.Equal(got, content(n)) {
					t.Fatalf("data segment of %d bytes came wrong: %v", n, err)
				}
			}
		}
	}
}
