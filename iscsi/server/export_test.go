package server

import (
	"time"

	"blockgate/internal/connset"
)

// SetTick makes the connections' seconds shorter. Before Serve.
func (s *Server) SetTick(d time.Duration) {
	cfg := s.setConfig()
	cfg.Every = d
	s.conns = connset.New(cfg)
}

// Entries counts what the session table holds, ended sessions included.
func (s *Server) Entries() (tsihs, nexuses int) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	return len(s.table.byTSIH), len(s.table.byNexus)
}
