package tlspsk

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxKeys bounds a file of keys.
const maxKeys = 100_000

// ReadKeys reads a file of keys as GnuTLS's psktool writes it: USER:KEY on each
// line, the key in hexadecimal digits. Empty lines and such that begin with # are
// left out. The error names the file and the line, never a key.
func ReadKeys(path string) (map[string][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	keys, err := ParseKeys(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// ParseKeys is ReadKeys of what r gives.
func ParseKeys(r io.Reader) (map[string][]byte, error) {
	keys := make(map[string][]byte)
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimRight(s.Text(), "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ':')
		if i <= 0 || i > maxIdentity {
			return nil, fmt.Errorf("line %d: want USER:KEY", n)
		}
		key, err := hex.DecodeString(line[i+1:])
		if err != nil || len(key) < MinKey {
			return nil, fmt.Errorf("line %d: want a key of at least %d hexadecimal digits behind the colon", n, 2*MinKey)
		}
		if _, dup := keys[line[:i]]; dup {
			return nil, fmt.Errorf("line %d: user %q has a key already", n, line[:i])
		}
		if len(keys) == maxKeys {
			return nil, fmt.Errorf("more than %d users", maxKeys)
		}
		keys[line[:i]] = key
	}
	return keys, s.Err()
}
