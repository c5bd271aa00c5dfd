package cmd_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var namedTest = regexp.MustCompile("`([a-z0-9/-]+)\\.((?:Test|Fuzz|Benchmark)[A-Za-z0-9]+)`")

// The issuer's table of what it does otherwise has a row for each of 17 faults,
// and every test that it names is there.
func TestFaultTable(t *testing.T) {
	text, err := os.ReadFile("../cloud/issuer/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Differences from the published sample\n")
	if !ok {
		t.Fatal("there is no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		number, err := strconv.Atoi(strings.TrimPrefix(cells[0], "| "))
		if err != nil {
			continue
		}
		rows++
		if number != rows || len(cells) != 4 {
			t.Errorf("row %d is numbered %d and has %d cells", rows, number, len(cells))
			continue
		}
		tests := namedTest.FindAllStringSubmatch(cells[3], -1)
		if len(tests) == 0 || len(tests) != strings.Count(cells[3], "`")/2 {
			t.Errorf("row %d: want tests as `package.TestName`: %s", number, cells[3])
		}
		for _, test := range tests {
			if !hasTest(t, test[1], test[2]) {
				t.Errorf("row %d: there is no test %s in %s", number, test[2], test[1])
			}
		}
	}
	if rows != 17 {
		t.Errorf("%d rows", rows)
	}
	if hasTest(t, "cmd", "TestThatThereIsNot") || !hasTest(t, "cmd", "TestFaultTable") {
		t.Error("tests are not found")
	}
}

// The security paper has a row for each of nine promises, each with tests, and
// every test that it names anywhere is there.
func TestPromiseTable(t *testing.T) {
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(text)) {
		tests := namedTest.FindAllStringSubmatch(line, -1)
		for _, test := range tests {
			if !hasTest(t, test[1], test[2]) {
				t.Errorf("there is no test %s in %s", test[2], test[1])
			}
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		number, err := strconv.Atoi(strings.TrimSpace(cells[0]))
		if err != nil {
			continue
		}
		if rows++; number != rows || len(cells) != 4 || len(tests) < 3 || len(tests) != strings.Count(cells[len(cells)-1], "`")/2 {
			t.Errorf("row %d is numbered %d, has %d cells and %d tests: want 4 cells, and in the last 3 tests or more, as `package.TestName`", rows, number, len(cells), len(tests))
		}
	}
	if rows != 9 {
		t.Errorf("%d promises", rows)
	}
}

func hasTest(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(folder), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, []byte("\nfunc "+name+"(")) {
			return true
		}
	}
	return false
}

// No private key, be it encrypted, is in the tree: those of tests are made when
// they run.
func TestNoPrivateKeyInTheTree(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && entry.Name() == ".git" {
			return filepath.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		files++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if found := privateKey(data); found != "" {
			t.Errorf("%s holds a %s", path, found)
		}
		return nil
	})
	if err != nil || files < 100 {
		t.Fatalf("%d files: %v", files, err)
	}
	der := "MEECAQAwEwYHKoZIzj0CAQYIKoZIzj0DAQcEJzAlAgEBBCAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAQ=="
	for _, label := range []string{"PRIVATE KEY", "ENCRYPTED PRIVATE KEY"} {
		if privateKey([]byte("x\n-----BEGIN "+label+"-----\n"+der+"\n-----END "+label+"-----\n")) == "" {
			t.Errorf("a %s is not found", label)
		}
	}
}

// privateKey is the label of the first private key in a text; what only has the
// label of one is none.
func privateKey(data []byte) string {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return ""
		}
		data = rest
		switch block.Type {
		case "ENCRYPTED PRIVATE KEY":
			return block.Type
		case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY":
			_, err8 := x509.ParsePKCS8PrivateKey(block.Bytes)
			_, errEC := x509.ParseECPrivateKey(block.Bytes)
			_, errRSA := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err8 == nil || errEC == nil || errRSA == nil {
				return block.Type
			}
		}
	}
}
