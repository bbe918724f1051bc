package gateway_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"blockgate/backing"
	"blockgate/backing/ram"
	"blockgate/gateway"
)

// direct is a store that waits for its medium as how says.
type direct struct {
	*ram.Store
	how string
}

func (d direct) Info() backing.Info { return backing.Info{Engine: "far", DirectIO: d.how} }

// Direct volumes without AIO are named in the log, the first of them, unless that is
// how they were asked for.
func TestDirectWithoutAIOIsLogged(t *testing.T) {
	var reg backing.Registry
	reg.Register("far", func(_ context.Context, how string, _ backing.OpenOptions) (backing.Store, error) {
		s, err := ram.New(1 << 20)
		return direct{s, how}, err
	})
	var log bytes.Buffer
	g, _ := newGateway(t, gateway.Config{Engines: &reg, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for _, v := range []gateway.VolumeConfig{
		{Name: "a", URL: "far:aio", Direct: true},
		{Name: "b", URL: "far:threads", Direct: true, NoAIO: true},
		{Name: "c", URL: "far:threads (no room)", Direct: true},
		{Name: "d", URL: "far:threads (no room)", Direct: true},
	} {
		ok(t, g.AddVolume(t.Context(), v))
	}
	var said []string
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, "Linux AIO") {
			said = append(said, line)
		}
	}
	if len(said) != 1 || !strings.Contains(said[0], "volume=c") || !strings.Contains(said[0], "no room") {
		t.Errorf("the log says %q", said)
	}
}
