package journal

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
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

// LoadIdentity reads dir/station.key and dir/station.pub. The key's name is the
// origin, "<sku>/<station>". At the first start, in a folder without a journal
// and without either file, it makes the key. A missing station.pub is written
// again from station.key; a station.pub that is there is never changed. When
// LoadIdentity returns nil both files are synced.
func LoadIdentity(dir, origin string) (Identity, error) {
	return LoadIdentityOn(durable.OS{}, dir, origin)
}

// LoadIdentityOn is LoadIdentity on another disk.
func LoadIdentityOn(d durable.Disk, dir, origin string) (Identity, error) {
	path := filepath.Join(dir, "station.key")
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mayMakeKey(dir, origin); err != nil {
			return Identity{}, err
		}
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
		return Identity{}, fmt.Errorf("%w: %s is not a key in the form that stationd writes; %s", ErrIdentity, path, withoutKey(dir))
	}
	if signer.Name() != origin {
		return Identity{}, fmt.Errorf("%w: %s is the key of %s, this station is %s; set sku and station back, or use another state_dir", ErrIdentity, path, signer.Name(), origin)
	}
	pubPath := filepath.Join(dir, "station.pub")
	pub, err := os.ReadFile(pubPath)
	if errors.Is(err, fs.ErrNotExist) {
		// A crash at the first start, or somebody removed the file.
		if pub, err = publicOf(string(text)); err != nil {
			return Identity{}, fmt.Errorf("%w: the public key of %s cannot be computed", ErrIdentity, path)
		}
		if err := durable.WriteFile(d, pubPath, pub, 0o644); err != nil {
			return Identity{}, fmt.Errorf("writing the station's public key: %w", err)
		}
	}
	if err != nil {
		return Identity{}, fmt.Errorf("reading the station's public key: %w", err)
	}
	key := strings.TrimSpace(string(pub))
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %s is damaged, %s is not; move station.pub away, and the next start writes it again from station.key", ErrIdentity, pubPath, path)
	}
	if verifier.Name() != origin || verifier.KeyHash() != signer.KeyHash() {
		return Identity{}, fmt.Errorf("%w: %s does not belong to %s; restore both from one backup", ErrIdentity, pubPath, path)
	}
	return Identity{Signer: signer, Verifier: verifier, Key: key}, nil
}

// publicOf computes the content of station.pub from that of station.key.
func publicOf(secret string) ([]byte, error) {
	fields := strings.SplitN(strings.TrimSuffix(secret, "\n"), "+", 5) // PRIVATE+KEY+<name>+<hash>+<base64>
	if len(fields) != 5 {
		return nil, ErrIdentity
	}
	seed, err := base64.StdEncoding.DecodeString(fields[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, ErrIdentity
	}
	public := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	key, err := note.NewEd25519VerifierKey(fields[2], public)
	if err != nil {
		return nil, err
	}
	return []byte(key + "\n"), nil
}

// mayMakeKey refuses to make a key where there was one: another key cannot
// continue the journal, and would hide what was lost.
func mayMakeKey(dir, origin string) error {
	path := filepath.Join(dir, "station.key")
	_, err := os.Lstat(filepath.Join(dir, "station.pub"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the station's public key: %w", err)
	}
	havePub := err == nil
	names, err := os.ReadDir(Dir(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the journal: %w", err)
	}
	_, noIndex := os.Lstat(filepath.Join(dir, "index.bbolt"))
	if !havePub && len(names) == 0 && noIndex != nil {
		return nil
	}
	what := "there was a key in this folder"
	if len(names) > 0 {
		what = "there is a journal in this folder, and no other key can continue it"
	}
	return fmt.Errorf("%w: %s, the private key of %s, is missing; no new key was made, because %s; %s", ErrIdentity, path, origin, what, withoutKey(dir))
}

// withoutKey says where the public key still stands, and what to do when the
// private key is lost.
func withoutKey(dir string) string {
	where := "its public key is nowhere in this folder"
	pub := filepath.Join(dir, "station.pub")
	text, err := os.ReadFile(pub)
	_, bad := note.NewVerifier(strings.TrimSpace(string(text)))
	if err == nil && bad == nil {
		where = "its public key still stands in " + pub
	} else if path, key := keyInJournal(dir); key != "" {
		where = fmt.Sprintf("its public key still stands in the first line of %s: %s", path, key)
	}
	return where + "; restore station.key from a backup; if there is no backup, give the station a new name and an empty state_dir, and keep this folder with its public key: they verify the records that were made until now"
}

// keyInJournal finds the public key in the first line of a segment.
func keyInJournal(dir string) (path, key string) {
	segments, err := ListSegments(dir)
	if err != nil {
		return "", ""
	}
	for _, segment := range segments {
		e, err := ReadEntryAt(dir, Position{Segment: segment.First})
		if err == nil && e.Segment != nil {
			return SegmentPath(dir, segment.First), e.Segment.Key
		}
	}
	return "", ""
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
	secret, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return Identity{}, fmt.Errorf("making the station's key: %w", err)
	}
	// The private half first: LoadIdentity writes the public half from it if a
	// crash leaves it out. A public half alone means that the key was lost.
	if err := durable.WriteFile(d, filepath.Join(dir, "station.key"), []byte(secret+"\n"), 0o600); err != nil {
		return Identity{}, fmt.Errorf("writing the station's key: %w", err)
	}
	return LoadIdentityOn(d, dir, origin)
}
