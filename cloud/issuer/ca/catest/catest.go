// Package catest has a local CA for the tests of other packages.
package catest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"secretfree/cloud/issuer/ca"
)

// Passphrase of its keys.
const Passphrase = "correct horse"

// Dir is a folder with the files of the CA in ca and its passphrase in the file
// passphrase. All tests of a program share it; TestMain removes it. Its keys
// are stretched less than others, which would be slow.
var Dir = sync.OnceValues(func() (string, error) {
	parent, err := os.MkdirTemp("", "issuer-test-*")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(parent, "passphrase"), []byte(Passphrase+"\n"), 0o600); err != nil {
		return "", err
	}
	return parent, ca.InitLocal(ca.LocalInit{Dir: filepath.Join(parent, "ca"), Name: "Test", Passphrase: []byte(Passphrase), Iterations: 1000})
})

var sharedCA = sync.OnceValues(func() (*ca.Local, error) {
	parent, err := Dir()
	if err != nil {
		return nil, err
	}
	return ca.OpenLocal(ca.LocalConfig{Dir: filepath.Join(parent, "ca"), PassphraseFile: filepath.Join(parent, "passphrase")})
})

// Local is the CA in Dir.
func Local(t testing.TB) *ca.Local {
	t.Helper()
	authority, err := sharedCA()
	if err != nil {
		t.Fatal(err)
	}
	return authority
}
