package vitals

import (
	"testing"
	"time"

	"blockgate/backing"
)

func TestMonitor(t *testing.T) {
	var m Monitor
	var told []backing.State
	stop := m.Notify(func(backing.Change) { told = append(told, m.Health().State) })
	if h := m.Health(); h != (backing.Health{}) || m.Ill() {
		t.Errorf("at first %+v", h)
	}
	m.Set(backing.Healthy, "")
	m.Set(backing.Stalled, "away")
	m.Set(backing.Stalled, "away")
	since := m.Health().Since
	m.Set(backing.Stalled, "still away")
	if h := m.Health(); h.Since != since || h.Reason != "still away" || !m.Ill() {
		t.Errorf("%+v, since was %v", h, since)
	}
	m.Set(backing.Healthy, "")
	m.Set(backing.Failed, "fenced")
	m.Set(backing.Healthy, "") // an answer that came late
	m.Set(backing.Stalled, "away")
	if h := m.Health(); h.State != backing.Failed || h.Reason != "fenced" {
		t.Errorf("%+v", h)
	}
	m.Recover()
	m.Recover()
	stop()
	m.Set(backing.Stalled, "away")
	want := []backing.State{backing.Stalled, backing.Stalled, backing.Healthy, backing.Failed, backing.Healthy}
	if len(told) != len(want) {
		t.Fatalf("told of %v, want %v", told, want)
	}
	for i := range want {
		if told[i] != want[i] {
			t.Errorf("told of %v, want %v", told, want)
		}
	}
}

func TestLimit(t *testing.T) {
	for _, c := range []struct{ location, stall, want time.Duration }{
		{0, 0, time.Minute}, {0, time.Second, time.Second}, {0, -1, Forever},
		{time.Hour, time.Second, time.Hour}, {time.Hour, -1, time.Hour},
	} {
		if got := Limit(c.location, c.stall, time.Minute); got != c.want {
			t.Errorf("Limit(%v, %v) = %v, want %v", c.location, c.stall, got, c.want)
		}
	}
	if time.Until(Deadline(Forever)) < 24*365*time.Hour {
		t.Error("forever ends soon")
	}
}
