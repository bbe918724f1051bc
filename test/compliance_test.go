package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"blockgate/scsi"
)

// TestCompliance holds docs/compliance.md against the code: every command is in
// it, and every test, dialogue and file that it names exists.
func TestCompliance(t *testing.T) {
	raw, err := os.ReadFile("../docs/compliance.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([0-9A-F]{2}h[^|]*)\|`).FindAllStringSubmatch(doc, -1) {
		for op := range strings.SplitSeq(m[1], ",") {
			if op = strings.TrimSpace(op); listed[op] {
				t.Errorf("%s is listed twice", op)
			}
			listed[strings.TrimSpace(op)] = true
		}
	}
	for _, c := range scsi.Commands() {
		op := fmt.Sprintf("%02Xh", c.Op)
		if c.SA != scsi.NoSA {
			op += fmt.Sprintf("/%02Xh", c.SA)
		}
		if !listed[op] {
			t.Errorf("%s, %s, is not in docs/compliance.md", op, c.Name)
		}
		delete(listed, op)
	}
	for op := range listed {
		t.Errorf("there is no command %s", op)
	}

	tests, dialogues := map[string]bool{}, map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "..":
			return fs.SkipDir
		case strings.HasSuffix(path, "_test.go"):
			src, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range function.FindAllSubmatch(src, -1) {
				tests[string(m[1])] = true
			}
		case strings.HasSuffix(path, ".txt") && strings.Contains(filepath.ToSlash(path), "/testdata/"):
			dialogues[strings.TrimSuffix(filepath.Base(path), ".txt")] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(doc, -1) {
		if !tests[name] {
			t.Errorf("there is no %s", name)
		}
	}
	for _, m := range regexp.MustCompile(`dialogue (\w+)`).FindAllStringSubmatch(doc, -1) {
		if !dialogues[m[1]] {
			t.Errorf("there is no dialogue %s", m[1])
		}
	}
	for _, name := range regexp.MustCompile(`[\w/]+\.go\b`).FindAllString(doc, -1) {
		if _, err := os.Stat(filepath.Join("../scsi", name)); err != nil {
			if _, err := os.Stat(filepath.Join("..", name)); err != nil {
				t.Errorf("there is no file %s", name)
			}
		}
	}
}
