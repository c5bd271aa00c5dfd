package issuer

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

const testPassphrase = "correct horse"

// caDir is a local CA that the tests share. Making one is slow by intent, so its keys are stretched less.
var caDir = sync.OnceValues(func() (string, error) {
	parent, err := os.MkdirTemp("", "issuer-test-*")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(parent, "passphrase"), []byte(testPassphrase+"\n"), 0o600); err != nil {
		return "", err
	}
	return parent, InitLocalCA(LocalCAInit{Dir: filepath.Join(parent, "ca"), Name: "Test", Passphrase: []byte(testPassphrase), Iterations: 1000})
})

var sharedCA = sync.OnceValues(func() (*LocalCA, error) {
	parent, err := caDir()
	if err != nil {
		return nil, err
	}
	return OpenLocalCA(LocalCAConfig{Dir: filepath.Join(parent, "ca"), PassphraseFile: filepath.Join(parent, "passphrase")})
})

func localCA(t testing.TB) *LocalCA {
	t.Helper()
	ca, err := sharedCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
