// Package test holds what is checked of the house as a whole.
package test

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// layers gives each part of the house its place: a package may import packages
// of a lower number, and of its own folder. Test files may import anything.
var layers = []struct {
	prefix string
	layer  int
}{
	{"internal/bufpool", 0},
	{"internal/crc32c", 0},
	{"internal/budget", 0},
	{"internal/aio", 1},
	{"internal/conndrive", 1},
	{"internal/connset", 2},
	{"internal/rangelock", 1},
	{"internal/sendq", 1},
	{"internal/tlspsk", 1},
	{"nbd", 2}, // the protocol and its client, which a backing store is made of
	{"backing", 3},
	{"scsi/sense", 3},
	{"scsi/pr", 4},
	{"scsi", 5},
	{"iscsi", 6},
	{"iscsi/server", 7},
	{"iscsi/initiator", 7},
	{"nbd/server", 7},
	{"backing/plugin/side", 8}, // the plugin process: serves a store by NBD
	{"internal/state", 7},
	{"gateway", 8},
	{"internal/declare", 8},
	{"internal/tools", 8},
	{"internal/api/v1", 8},
	{"internal/api/client", 9},
	{"internal/api", 9},
	{"internal/daemon", 10},
	{"internal/compat", 11},
	{"internal/cli", 12},
	{"cmd", 13},
	{"examples", 13},
}

// public packages depend on the standard library and golang.org/x only.
var public = []string{"backing", "scsi", "iscsi", "nbd", "gateway", "internal/bufpool", "internal/crc32c"}

func layerOf(pkg string) (prefix string, layer int) {
	best := ""
	layer = -1
	for _, l := range layers {
		if (pkg == l.prefix || strings.HasPrefix(pkg, l.prefix+"/")) && len(l.prefix) > len(best) {
			best, layer = l.prefix, l.layer
		}
	}
	return best, layer
}

func imports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "blockgate/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	m := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		m[strings.TrimPrefix(f[0], "blockgate/")] = f[1:]
	}
	return m
}

func TestImportsGoOneWay(t *testing.T) {
	for pkg, list := range imports(t) {
		if strings.HasPrefix(pkg, "test") {
			continue
		}
		prefix, layer := layerOf(pkg)
		if layer < 0 {
			t.Errorf("package %s has no place in the house: give it one in layers", pkg)
			continue
		}
		for _, imp := range list {
			local, ok := strings.CutPrefix(imp, "blockgate/")
			if !ok {
				continue
			}
			p, l := layerOf(local)
			if l >= layer && p != prefix {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports go one way", pkg, layer, local, l)
			}
		}
	}
}

func TestPublicPackagesNeedOnlyTheStandardLibrary(t *testing.T) {
	for pkg, list := range imports(t) {
		for _, p := range public {
			// A conformance suite for tests is no part of what is embedded.
			if pkg == "backing/storetest" || pkg != p && !strings.HasPrefix(pkg, p+"/") {
				continue
			}
			for _, imp := range list {
				first, _, _ := strings.Cut(imp, "/")
				if strings.Contains(first, ".") && !strings.HasPrefix(imp, "golang.org/x/") {
					t.Errorf("public package %s imports %s", pkg, imp)
				}
			}
		}
	}
}

// What needs a dynamic loader is in the plugins' processes; the main binary is
// static and stays so.
func TestMainBinaryHasNoPlugins(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "blockgate/cmd/blockgate").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(pkg, "github.com/ebitengine/") || strings.HasPrefix(pkg, "blockgate/cmd/blockgate-") {
			t.Errorf("cmd/blockgate needs %s", pkg)
		}
	}
}

func TestNoExitBelowMain(t *testing.T) {
	eachGoFile(t, func(path, text string) {
		// An example is short, and may say so in a helper.
		if strings.HasPrefix(path, "examples/") || strings.HasSuffix(path, "_test.go") {
			return
		}
		if !strings.Contains(text, "os.Exit(") && !strings.Contains(text, "log.Fatal") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && file.Name.Name == "main" && f.Recv == nil && f.Name.Name == "main" {
				continue
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := s.X.(*ast.Ident)
				if ok && (x.Name == "os" && s.Sel.Name == "Exit" || x.Name == "log" && strings.HasPrefix(s.Sel.Name, "Fatal")) {
					t.Errorf("%s ends the process outside of a main function: %s.%s", path, x.Name, s.Sel.Name)
				}
				return true
			})
		}
	})
}

func TestTestsDoNotSleep(t *testing.T) {
	eachGoFile(t, func(path, text string) {
		// In a synctest bubble time is fake, and Sleep is how a test waits for it.
		if strings.HasSuffix(path, "_test.go") && path != "test/house_test.go" &&
			strings.Contains(text, "time.Sleep(") && !strings.Contains(text, "testing/synctest") {
			t.Errorf("%s sleeps: wait for the event, or use testing/synctest", path)
		}
	})
}

// maxLines is where a file probably holds more than one idea.
const maxLines = 600

func TestFileLengths(t *testing.T) {
	eachGoFile(t, func(path, text string) {
		if n := strings.Count(text, "\n"); n > maxLines {
			t.Errorf("%s has %d lines; one idea each, at most about %d", path, n, maxLines)
		}
	})
}

func TestEveryPackageIsDocumented(t *testing.T) {
	docs := make(map[string]bool)
	eachGoFile(t, func(path, text string) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		dir := filepath.Dir(path)
		docs[dir] = docs[dir] || hasPackageComment(text)
	})
	for dir, ok := range docs {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}

func hasPackageComment(text string) bool {
	prev := ""
	s := bufio.NewScanner(strings.NewReader(text))
	for s.Scan() {
		if strings.HasPrefix(s.Text(), "package ") {
			return strings.HasPrefix(prev, "//") && !strings.HasPrefix(prev, "//go:") || strings.HasSuffix(prev, "*/")
		}
		prev = s.Text()
	}
	return false
}

func eachGoFile(t *testing.T, fn func(path, text string)) {
	t.Helper()
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "bin" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		b, err := fs.ReadFile(root, path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		fn(path, string(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
