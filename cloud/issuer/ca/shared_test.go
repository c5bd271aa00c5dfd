package ca

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

const testPassphrase = "correct horse"

// sharedFolder is a local CA that the tests of this package share; catest has
// the one of other packages.
var sharedFolder = sync.OnceValues(func() (string, error) {
	parent, err := os.MkdirTemp("", "ca-test-*")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(parent, "passphrase"), []byte(testPassphrase+"\n"), 0o600); err != nil {
		return "", err
	}
	return parent, InitLocal(LocalInit{Dir: filepath.Join(parent, "ca"), Name: "Test", Passphrase: []byte(testPassphrase), Iterations: 1000})
})

var sharedLocal = sync.OnceValues(func() (*Local, error) {
	parent, err := sharedFolder()
	if err != nil {
		return nil, err
	}
	return OpenLocal(LocalConfig{Dir: filepath.Join(parent, "ca"), PassphraseFile: filepath.Join(parent, "passphrase")})
})

func localCA(t testing.TB) *Local {
	t.Helper()
	shared, err := sharedLocal()
	if err != nil {
		t.Fatal(err)
	}
	return shared
}

func TestMain(m *testing.M) {
	code := m.Run()
	if parent, err := sharedFolder(); err == nil {
		_ = os.RemoveAll(parent)
	}
	os.Exit(code)
}
