package daemon

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud"
	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/cloud/issuer/keyfile"
	"secretfree/cmd/internal/issuerd"
	"secretfree/cmd/internal/issuerd/metrics"
	"secretfree/station/board"
)

const (
	testSKU = "widgiot"
	// childConfig tells a child of the tests that it is a daemon.
	childConfig = "SECRETFREE_TEST_ISSUERD"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(childConfig); name != "" {
		if err := child(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if dir, err := sharedCA(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func showMetrics(d *Daemon) http.Handler { return metrics.Handler(d) }

// child is what cmd/issuerd does, without a command line.
func child(name string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := issuerd.Load(name)
	if err != nil {
		return err
	}
	d, err := Open(ctx, c, zerolog.New(os.Stderr), showMetrics)
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

// sharedCA is a folder with a CA in ca and its passphrase in ca.pass. Its
// issuing key is stretched less, so that it opens at once.
var sharedCA = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "issuerd-test-*")
	if err != nil {
		return "", err
	}
	passphrase := []byte("correct horse")
	if err := os.WriteFile(filepath.Join(dir, "ca.pass"), passphrase, 0o600); err != nil {
		return dir, err
	}
	if err := ca.InitLocal(ca.LocalInit{Dir: filepath.Join(dir, "ca"), Name: "Test", Passphrase: passphrase}); err != nil {
		return dir, err
	}
	return dir, age(filepath.Join(dir, "ca"), passphrase)
})

// age has a CA be a month old, so that its certificates can be.
func age(dir string, passphrase []byte) error {
	root, err := keyfile.Read(filepath.Join(dir, "root.key"), passphrase)
	if err != nil {
		return err
	}
	issuing, err := keyfile.Read(filepath.Join(dir, "issuing.key"), passphrase)
	if err != nil {
		return err
	}
	var parent *x509.Certificate
	for _, of := range []struct {
		file string
		key  *ecdsa.PrivateKey
	}{{"root.pem", root}, {"issuing.pem", issuing}} {
		text, err := os.ReadFile(filepath.Join(dir, of.file))
		if err != nil {
			return err
		}
		block, _ := pem.Decode(text)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		c.NotBefore = c.NotBefore.AddDate(0, -1, 0)
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &of.key.PublicKey, root)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, of.file), issuer.Certificate{Leaf: der}.LeafPEM(), 0o600); err != nil {
			return err
		}
	}
	text, err := keyfile.Encrypt(issuing, passphrase, 1000)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "issuing.key"), text, 0o600)
}

// testEnv is a folder with all that an issuer needs, and one enrolled device
// whose key is in device.key.
type testEnv struct {
	dir    string
	ca     string
	device board.DeviceID
	key    *ecdsa.PrivateKey
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (p *testEnv) path(name string) string { return filepath.Join(p.dir, name) }

func (p *testEnv) write(t testing.TB, name string, data []byte) {
	t.Helper()
	// A file of its own each time: a clock may be too coarse to tell two
	// writings of one.
	if err := os.WriteFile(p.path(".new"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.path(".new"), p.path(name)); err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyPEM(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// newPlace writes issuerd.toml; more stands at its end, and top at its start.
func newTestEnv(t testing.TB, top, more string) *testEnv {
	t.Helper()
	authority, err := sharedCA()
	if err != nil {
		t.Fatal(err)
	}
	p := &testEnv{dir: t.TempDir(), ca: filepath.Join(authority, "ca"), key: newKey(t), log: new(lockedBuffer)}
	_, _ = rand.Read(p.device[:])
	p.write(t, "device.key", keyPEM(t, p.key))
	if err := cloud.InitDir(p.path("registry")); err != nil {
		t.Fatal(err)
	}
	if err := claims.InitDir(p.path("claims")); err != nil {
		t.Fatal(err)
	}
	station := p.enrol(t)
	p.write(t, "issuerd.toml", fmt.Appendf(nil, `sku = %q
endpoint = "mqtt.example.com"
%s
[registry]
kind = "dir"
dir = %q
[ca]
kind = "local"
dir = %q
passphrase_file = %q
[issuance]
dir = %q
[[trusted_station]]
name = %q
key = %q
%s
`, testSKU, top, p.path("registry"), p.ca, filepath.Join(authority, "ca.pass"), p.path("claims"), board.Origin(testSKU, "line3-a"), station, more))
	return p
}

// enrol puts the device on record, and returns the station's public key.
func (p *testEnv) enrol(t testing.TB) string {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, board.Origin(testSKU, "line3-a"))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	key, err := board.NewKey(p.key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := board.Record{SKU: testSKU, Station: "line3-a", Device: p.device, Key: key, Generation: 1, ReadAt: time.Now().UTC().Truncate(time.Millisecond)}
	r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA1}
	for range 2 {
		nonce := make([]byte, 20)
		_, _ = rand.Read(nonce)
		digest := sha1.Sum(nonce)
		signature, err := p.key.Sign(rand.Reader, digest[:], crypto.SHA1)
		if err != nil {
			t.Fatal(err)
		}
		r.Proof.Nonces = append(r.Proof.Nonces, nonce)
		r.Proof.Signatures = append(r.Proof.Signatures, signature)
	}
	sealed, err := board.Seal(r, signer)
	if err != nil {
		t.Fatal(err)
	}
	registry, err := cloud.OpenDir(cloud.DirConfig{Path: p.path("registry")})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Put(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	return public
}

// request is a plain one of the device, in DER.
func (p *testEnv) request(t testing.TB) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: p.device.String()}}, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// pair writes a server's certificate that is its own root, and its key, and
// returns the certificate.
func (p *testEnv) pair(t testing.TB, certificate, key, name string, life time.Duration) *x509.Certificate {
	t.Helper()
	k := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	p.write(t, key, keyPEM(t, k))
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run opens the daemon and runs it until the test ends.
func (p *testEnv) run(t testing.TB) *Daemon {
	t.Helper()
	c, err := issuerd.Load(p.path("issuerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), c, zerolog.New(p.log), showMetrics)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the issuer's log:\n%s", p.log)
		}
	})
	return d
}

// peer is a program that a test needs: without it the test is skipped, but not
// in CI.
func peer(t testing.TB, name, why string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("there is no %s, and CI must have it", name)
	}
	t.Skipf("there is no %s: %s", name, why)
	return ""
}
