package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/fixtures"
	"secretfree/station/board"
)

// testEnv is a factory that has enrolled one board, and what an issuer needs: a
// registry, a CA, claims, a station's key.
type testEnv struct {
	root     string // of the package; the folder stations is in it
	registry string
	config   string
	board    *fixtures.Board
	other    *fixtures.Board // with a key of its own, and enrolled nowhere
}

func newTestEnv(t testing.TB) *testEnv {
	t.Helper()
	dir := t.TempDir()
	w := &testEnv{root: filepath.Join(dir, "task"), board: newBoard(), other: newBoard()}
	secret, public, err := note.GenerateKey(rand.Reader, board.Origin("widgiot", "line3-a"))
	must(t, err)
	signer, err := note.NewSigner(secret)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(w.root, "stations"), 0o700))
	must(t, os.WriteFile(filepath.Join(w.root, "stations", "line3-a.pub"), []byte(public+"\n"), 0o600))

	w.registry = filepath.Join(dir, "registry")
	must(t, cloud.InitDir(w.registry))
	store, err := cloud.OpenDir(cloud.DirConfig{Path: w.registry})
	must(t, err)
	sealed, err := board.Seal(record(t, w.board), signer)
	must(t, err)
	must(t, store.Put(t.Context(), sealed))

	passphrase := filepath.Join(dir, "ca.pass")
	must(t, os.WriteFile(passphrase, []byte("correct horse battery staple"), 0o600))
	caDir := filepath.Join(dir, "ca")
	must(t, ca.InitLocal(ca.LocalInit{Dir: caDir, Name: "Widgiot", Passphrase: []byte("correct horse battery staple")}))
	claimsDir := filepath.Join(dir, "claims")
	must(t, claims.InitDir(claimsDir))
	w.config = fmt.Sprintf(`sku = "widgiot"
endpoint = "mqtt.example.invalid"
[registry]
kind = "dir"
dir = %q
[ca]
kind = "local"
dir = %q
passphrase_file = %q
[issuance]
dir = %q
`, w.registry, caDir, passphrase, claimsDir)
	return w
}

func newBoard() *fixtures.Board {
	return &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey()}
}

// record is what a station writes down about a board.
func record(t testing.TB, b *fixtures.Board) board.Record {
	t.Helper()
	key, err := board.NewKey(b.Key.Public(), nil)
	must(t, err)
	r := board.Record{
		SKU: "widgiot", Station: "line3-a", Device: b.Device, Key: key, Generation: 1,
		ReadAt: time.Now().UTC().Truncate(time.Millisecond), Proof: &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA1},
	}
	for range 2 {
		nonce := make([]byte, 20)
		_, _ = rand.Read(nonce)
		signature, err := b.Signature(nonce)
		must(t, err)
		r.Proof.Nonces, r.Proof.Signatures = append(r.Proof.Nonces, nonce), append(r.Proof.Signatures, signature)
	}
	return r
}

// csr is the header of a request of a board for a device.
func csr(t testing.TB, b *fixtures.Board, device string) string {
	t.Helper()
	text, err := b.CSR(device, x509.ECDSAWithSHA1)
	must(t, err)
	return base64.StdEncoding.EncodeToString(text)
}

// env is the environment of a function.
func (w *testEnv) env(role, require string) map[string]string {
	return map[string]string{roleSetting: role, configSetting: w.config, requireSetting: require}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func getenv(env map[string]string) func(string) string {
	return func(key string) string { return env[key] }
}

func writeStation(t testing.TB, root, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(root, "stations"), 0o700))
	must(t, os.WriteFile(filepath.Join(root, "stations", "a.pub"), []byte(text), 0o600))
}
