package gateway_test

import (
	"testing"
	"time"

	"blockgate/gateway"
	"blockgate/iscsi/initiator"
)

// Initiators that have nothing to send are told of LUNs that come and go and of
// a disk that has grown.
func TestAnnounce(t *testing.T) {
	g, addr := newGateway(t, gateway.Config{})
	export(t, g, gateway.VolumeConfig{Name: "v", URL: "ram:1M"}, gateway.TargetConfig{Name: name, ACL: gateway.Everyone()})
	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "w", URL: "ram:1M"}))
	ok(t, g.AddTarget(gateway.TargetConfig{Name: name + "2", ACL: gateway.Everyone()}))
	got := make(chan initiator.Async, 16)
	_, err := login(t, addr, initiator.Config{OnAsync: func(a initiator.Async) { got <- a }})
	ok(t, err)
	_, err = login(t, addr, initiator.Config{TargetName: name + "2", OnAsync: func(initiator.Async) { t.Error("another target's announcement") }})
	ok(t, err)
	want := func(what string, lun uint64, asc, ascq byte) {
		t.Helper()
		select {
		case a := <-got:
			// RFC 7143 §11.9.4: a length of two bytes, then sense data in fixed format.
			if a.Event != initiator.AsyncSCSI || a.LUN != initiator.LUN(lun) || len(a.Data) < 16 || a.Data[2+12] != asc || a.Data[2+13] != ascq {
				t.Errorf("%s: %+v", what, a)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing announced", what)
		}
	}
	ok(t, g.MapLUN(name, 3, "w"))
	want("map", 0, 0x3f, 0x0e)
	ok(t, g.ResizeVolume(t.Context(), "w", 2<<20))
	want("resize", 3, 0x2a, 0x09)
	ok(t, g.ResizeVolume(t.Context(), "w", 2<<20)) // nothing new
	ok(t, g.UnmapLUN(name, 3))
	want("unmap", 0, 0x3f, 0x0e)
	if len(got) > 0 {
		t.Errorf("one announcement too many: %+v", <-got)
	}
}
