package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"unicode"

	"secretfree/cloud/issuer/keyfile"
)

// The names of the two keys that are offline. Those of a region are
// regions/<name>/issuing and regions/<name>/ocsp.
const (
	RootKey = "root"
	LineKey = "line"
)

// Keys holds the private keys: files here, and a token or a module where
// somebody has one.
type Keys interface {
	// Make makes the key of a name, ECDSA P-256, and returns its public half.
	// It is durable on return; if it is there already it is kept.
	Make(name string) (crypto.PublicKey, error)
	// Open returns the key of a name. An error that wraps ErrNoPassphrase says
	// that its holder has to come.
	Open(name string) (crypto.Signer, error)
}

// FileKeys keeps keys as files, <name>.key in a folder: encrypted PKCS #8, each
// under a passphrase of its own. It is not for several callers at once. A file
// may be away while its key is not wanted.
type FileKeys struct {
	Dir string
	// Passphrases by the name of the key. Those that are not given are asked
	// for by ErrNoPassphrase when they are wanted.
	Passphrases map[string][]byte

	iterations int // see keyfile.Encrypt
	open       map[string]crypto.Signer
}

// Check refuses passphrases that are weak (errWeak), and one that is both the
// root's or the line's and another's.
func (k *FileKeys) Check() error {
	for name, passphrase := range k.Passphrases {
		if err := CheckPassphrase(passphrase); err != nil {
			return fmt.Errorf("the key %s: %w", name, err)
		}
		for _, offline := range []string{RootKey, LineKey} {
			if name != offline && bytes.Equal(passphrase, k.Passphrases[offline]) {
				return fmt.Errorf("the keys %s and %s have the same passphrase: %w", offline, name, errWeak)
			}
		}
	}
	return nil
}

const minPassphrase = 12

// CheckPassphrase refuses what is guessed at once: what is shorter than 12
// bytes, repeats itself, counts, or is made of a well-known word. The error
// wraps errWeak and does not hold the passphrase.
func CheckPassphrase(passphrase []byte) error {
	if len(passphrase) < minPassphrase {
		return fmt.Errorf("%w: it is shorter than %d bytes; make one with: openssl rand -base64 33", errWeak, minPassphrase)
	}
	rest := strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) {
			return unicode.ToLower(r)
		}
		return -1 // what is put around a word makes it no better
	}, string(passphrase))
	different := map[byte]bool{}
	for _, b := range passphrase {
		different[b] = true
	}
	for _, word := range []string{"nopass", "password", "passphrase", "passwort", "changeit", "changeme", "secret", "qwertyuiop", "qwerty", "letmein", "default",
		"admin", "root", "issuer", "widgiot", "test"} {
		rest = strings.ReplaceAll(rest, word, "")
	}
	if len(different) < 6 || steps(passphrase) || len(rest) == 0 && digitsAndWords(passphrase) {
		return fmt.Errorf("%w: it repeats itself, counts, or is made of a well-known word; make one with: openssl rand -base64 33", errWeak)
	}
	return nil
}

// steps says whether most bytes are next to the one before.
func steps(text []byte) bool {
	n := 0
	for i := 1; i < len(text); i++ {
		if d := int(text[i]) - int(text[i-1]); d >= -1 && d <= 1 {
			n++
		}
	}
	return n > len(text)*3/4
}

// digitsAndWords says whether there is a letter, so that well-known words are
// all there is beside digits and signs.
func digitsAndWords(text []byte) bool {
	return bytes.ContainsFunc(text, unicode.IsLetter)
}

// Make is that of Keys.
func (k *FileKeys) Make(name string) (crypto.PublicKey, error) {
	passphrase, err := k.passphrase(name)
	if err != nil {
		return nil, err
	}
	signer, err := k.Open(name)
	if err == nil {
		return signer.Public(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key %s: %w", name, err)
	}
	text, err := keyfile.Encrypt(key, passphrase, k.iterations)
	if err != nil {
		return nil, fmt.Errorf("making the key %s: %w", name, err)
	}
	if err := writeNew(k.path(name), text); err != nil {
		return nil, fmt.Errorf("making the key %s: %w", name, err)
	}
	k.keep(name, key)
	return key.Public(), nil
}

// Open is that of Keys.
func (k *FileKeys) Open(name string) (crypto.Signer, error) {
	if key := k.open[name]; key != nil {
		return key, nil
	}
	passphrase, err := k.passphrase(name)
	if err != nil {
		return nil, err
	}
	key, err := keyfile.Read(k.path(name), passphrase)
	if err != nil {
		return nil, fmt.Errorf("opening the key %s: %w", name, err)
	}
	k.keep(name, key)
	return key, nil
}

func (k *FileKeys) path(name string) string {
	return filepath.Join(k.Dir, filepath.FromSlash(name)+".key")
}

func (k *FileKeys) keep(name string, key crypto.Signer) {
	if k.open == nil {
		k.open = map[string]crypto.Signer{}
	}
	k.open[name] = key
}

func (k *FileKeys) passphrase(name string) ([]byte, error) {
	if err := k.Check(); err != nil {
		return nil, err
	}
	passphrase, ok := k.Passphrases[name]
	if !ok {
		return nil, fmt.Errorf("the key %s: %w", name, ErrNoPassphrase)
	}
	return passphrase, nil
}
