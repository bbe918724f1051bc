package gateway_test

import (
	"testing"

	"blockgate/gateway"
	"blockgate/scsi"
)

// A volume of which only the store is said is what its store can be.
func TestDefaultUnit(t *testing.T) {
	g, _ := newGateway(t, gateway.Config{})
	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "plain", URL: "ram:1M"}))
	thick := gateway.DefaultUnit()
	thick.Provisioning = scsi.ProvisioningFull
	ok(t, g.AddVolume(t.Context(), gateway.VolumeConfig{Name: "thick", URL: "ram:1M", Unit: thick}))
	for name, want := range map[string]bool{"plain": true, "thick": false} {
		v, err := g.Volume(name)
		ok(t, err)
		if v.Thin != want {
			t.Errorf("volume %s: thin %v", name, v.Thin)
		}
	}
}
