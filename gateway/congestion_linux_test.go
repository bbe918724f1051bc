package gateway_test

import (
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"blockgate/gateway"
)

// TestCongestion: connections have the congestion control of their portal.
func TestCongestion(t *testing.T) {
	allowed, err := os.ReadFile("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
	if err != nil {
		t.Skip(err)
	}
	system, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		t.Skip(err)
	}
	names := strings.Fields(string(allowed))
	other := names[0]
	gw, err := gateway.New(gateway.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	want := map[string]string{"-": strings.TrimSpace(string(system)), other: other}
	if strings.Contains(string(allowed), gateway.DefaultCongestion) {
		want[""] = gateway.DefaultCongestion
	}
	for name, want := range want {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := gw.AddListener(ln, gateway.PortalConfig{Congestion: name}); err != nil {
			t.Fatal(err)
		}
		// What the listener has, its connections get.
		raw, err := ln.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var got string
		raw.Control(func(fd uintptr) { got, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) })
		if got = strings.TrimRight(got, "\x00"); err != nil || got != want {
			t.Errorf("a portal with %q has %q (%v), want %q", name, got, err, want)
		}
	}
	if _, err := gw.AddPortal(t.Context(), gateway.PortalConfig{Address: "127.0.0.1:0", Congestion: "nosuch"}); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("an unknown congestion control gives %v", err)
	}
}
