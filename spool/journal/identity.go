package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"secretfree/spool/durable"

	"golang.org/x/mod/sumdb/note"
)

// Identity is a station's signing key, in the key format of
// golang.org/x/mod/sumdb/note.
type Identity struct {
	Signer   note.Signer
	Verifier note.Verifier
	Key      string // the public key, one line, as an issuer's [[trusted_station]] takes it
}

// ErrIdentity says that a station's key file cannot be used as it is.
var ErrIdentity = errors.New("the station's key cannot be used")

// LoadIdentity reads dir/station.key, or makes it at the first start, and
// writes dir/station.pub beside it. The key's name is the origin,
// "<sku>/<station>". When it returns nil both files are synced.
func LoadIdentity(dir, origin string) (Identity, error) {
	return LoadIdentityOn(durable.OS{}, dir, origin)
}

func LoadIdentityOn(d durable.Disk, dir, origin string) (Identity, error) {
	path := filepath.Join(dir, "station.key")
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeIdentity(d, dir, origin)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("reading the station's key: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return Identity{}, fmt.Errorf("%w: %s has mode %v; others must not read it: chmod 600 %s", ErrIdentity, path, info.Mode(), path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("reading the station's key: %w", err)
	}
	signer, err := note.NewSigner(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		// The library's error could quote the file.
		return Identity{}, fmt.Errorf("%w: %s is not a key in the form that stationd writes; restore it from a backup", ErrIdentity, path)
	}
	if signer.Name() != origin {
		return Identity{}, fmt.Errorf("%w: %s is the key of %s, this station is %s; set sku and station back, or use another state_dir", ErrIdentity, path, signer.Name(), origin)
	}
	pub, err := os.ReadFile(filepath.Join(dir, "station.pub"))
	if err != nil {
		return Identity{}, fmt.Errorf("reading the station's public key: %w", err)
	}
	key := strings.TrimSpace(string(pub))
	verifier, err := note.NewVerifier(key)
	if err != nil || verifier.Name() != origin || verifier.KeyHash() != signer.KeyHash() {
		return Identity{}, fmt.Errorf("%w: %s does not belong to %s; restore both from one backup", ErrIdentity, filepath.Join(dir, "station.pub"), path)
	}
	return Identity{Signer: signer, Verifier: verifier, Key: key}, nil
}

// OpenIdentity reads the identity that is in dir, whosever it is. It makes
// none.
func OpenIdentity(dir string) (Identity, error) {
	pub, err := os.ReadFile(filepath.Join(dir, "station.pub"))
	if err != nil {
		return Identity{}, fmt.Errorf("reading the station's public key: %w", err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(pub)))
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %s is not a key in the form that stationd writes; restore it from a backup", ErrIdentity, filepath.Join(dir, "station.pub"))
	}
	if _, err := os.Lstat(filepath.Join(dir, "station.key")); err != nil {
		return Identity{}, fmt.Errorf("reading the station's key: %w", err)
	}
	return LoadIdentity(dir, verifier.Name())
}

func makeIdentity(d durable.Disk, dir, origin string) (Identity, error) {
	secret, key, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return Identity{}, fmt.Errorf("making the station's key: %w", err)
	}
	// The public half first: a key file is there only when its public half is.
	if err := durable.WriteFile(d, filepath.Join(dir, "station.pub"), []byte(key+"\n"), 0o644); err != nil {
		return Identity{}, fmt.Errorf("writing the station's public key: %w", err)
	}
	if err := durable.WriteFile(d, filepath.Join(dir, "station.key"), []byte(secret+"\n"), 0o600); err != nil {
		return Identity{}, fmt.Errorf("writing the station's key: %w", err)
	}
	return LoadIdentityOn(d, dir, origin)
}
