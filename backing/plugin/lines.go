package plugin

import (
	"bytes"
	"log/slog"
	"sync"
	"time"
)

// Bounds of what a program may write to the log.
const (
	maxLine   = 1000 // bytes; what a line has beyond that is left out
	lineBurst = 100  // lines at once
	lineEvery = 100 * time.Millisecond
)

// lines logs what a program writes to its standard error, line by line.
type lines struct {
	log *slog.Logger

	mu      sync.Mutex
	line    []byte
	last    string
	tokens  float64
	at      time.Time
	dropped int
}

// Write takes all of p; it never fails, so that the program goes on.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		part, after, whole := bytes.Cut(rest, []byte{'\n'})
		if room := maxLine - len(l.line); room > 0 {
			l.line = append(l.line, part[:min(room, len(part))]...)
		}
		if whole {
			l.flush()
		}
		rest = after
	}
	return len(p), nil
}

// end logs a last line without an end, and how many were left out.
func (l *lines) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	if l.dropped > 0 {
		l.log.Warn("plugin wrote too much", "lines", l.dropped)
		l.dropped = 0
	}
}

// flush is called with mu held.
func (l *lines) flush() {
	text := string(bytes.TrimSpace(l.line))
	l.line = l.line[:0]
	if text == "" {
		return
	}
	l.last = text
	now := time.Now()
	if l.at.IsZero() {
		l.tokens = lineBurst
	} else {
		l.tokens = min(lineBurst, l.tokens+float64(now.Sub(l.at))/float64(lineEvery))
	}
	l.at = now
	if l.tokens < 1 {
		l.dropped++
		return
	}
	l.tokens--
	if l.dropped > 0 {
		l.log.Warn("plugin wrote too much", "lines", l.dropped)
		l.dropped = 0
	}
	l.log.Warn(text)
}

func (l *lines) lastLine() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
