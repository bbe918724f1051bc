package daemon

import (
	"net"
	"testing"

	"blockgate/internal/state"
)

// What a program answers is either nothing, an address that initiators can be
// sent to, or an error.
func FuzzRedirectTo(f *testing.F) {
	for _, s := range []string{"", "\n", "192.0.2.1:3260:Temporary\n", "[2001:db8::1]:1:Permanent", "::1:3260:Temporary", "host::Permanent", "a:b:c", ":", "[x]:1:Temporary"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, answer string) {
		addr, _, err := redirectTo(answer)
		if err != nil || addr == "" {
			if addr != "" {
				t.Fatalf("%q: %q and %v", answer, addr, err)
			}
			return
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatalf("%q: %q: %v", answer, addr, err)
		}
		for name, value := range map[string]string{"RedirectAddress": host, "RedirectPort": port} {
			if _, _, err := state.CanonicalParam(name, value); err != nil {
				t.Fatalf("%q: %q: %v", answer, addr, err)
			}
		}
	})
}
