package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/keyfile"
)

// Where .ci/bench-issuer.sh has put the other issuers.
const (
	cfsslSetting  = "SECRETFREE_CFSSL"
	stepCASetting = "SECRETFREE_STEP_CA"
)

// BenchmarkHTTPCfssl sets first certificates of fresh devices against cfssl
// serve with a CA in files, over HTTP. Neither has a memory; cfssl has no
// registry, and takes every name. Asked: 1.2 or more.
func BenchmarkHTTPCfssl(b *testing.B) {
	program := peer(b, cfsslSetting)
	factory := issuertest.NewStation(b, issuertest.SKU, "line3-a")
	ours := startServed(b, factory, served{})
	compare(b, factory, ours, ours.asked(), startCfssl(b, program), "of-cfssl")
}

// BenchmarkHTTPSStepCA sets them against step-ca without a database, over
// HTTPS, which it cannot do without. Its tokens, which stand for the decision,
// are made beforehand. Asked: 2 or more.
func BenchmarkHTTPSStepCA(b *testing.B) {
	program := peer(b, stepCASetting)
	factory := issuertest.NewStation(b, issuertest.SKU, "line3-a")
	ours := startServed(b, factory, served{TLS: tlsFolder(b)})
	compare(b, factory, ours, ours.asked(), startStepCA(b, program, ""), "of-step-ca")
}

// BenchmarkHTTPSDurable sets them, with claims on the disk, against step-ca
// with its bbolt database on the same disk. Asked: 2 or more.
func BenchmarkHTTPSDurable(b *testing.B) {
	program := peer(b, stepCASetting)
	factory := issuertest.NewStation(b, issuertest.SKU, "line3-a")
	store := filepath.Join(b.TempDir(), "claims")
	if err := claims.InitDir(store); err != nil {
		b.Fatal(err)
	}
	ours := startServed(b, factory, served{TLS: tlsFolder(b), Claims: store})
	compare(b, factory, ours, ours.asked(), startStepCA(b, program, filepath.Join(b.TempDir(), "db")), "of-step-ca")
}

// peer is the program of another issuer. Building them takes minutes, so they
// are missing more often than not.
func peer(b *testing.B, setting string) string {
	b.Helper()
	program := os.Getenv(setting)
	if program == "" {
		b.Skipf("%s names no program: run .ci/bench-issuer.sh, which builds it", setting)
	}
	return program
}

// freePort is one that was free a moment ago: these programs do not tell which
// one they took.
func freePort(b *testing.B) int {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// answering waits until a server takes connections.
func answering(b *testing.B, address string) {
	b.Helper()
	for until := time.Now().Add(30 * time.Second); ; {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(until) {
			b.Fatalf("nothing answers at %s: %v (SECRETFREE_BENCH_OUTPUT=1 shows what the server says)", address, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// peerCA writes a root and an issuing CA with P-256 keys, as ca.Local has them,
// with the keys in the clear.
func peerCA(b *testing.B) (dir string) {
	b.Helper()
	dir = filepath.Join(b.TempDir(), "ca")
	if err := ca.InitLocal(ca.LocalInit{Dir: dir, Name: "Peer", Passphrase: []byte("x"), RootValidity: 1e18, Validity: 9e17, Iterations: 1}); err != nil {
		b.Fatal(err)
	}
	key, err := keyfile.Read(filepath.Join(dir, "issuing.key"), []byte("x"))
	if err != nil {
		b.Fatal(err)
	}
	writeKey(b, filepath.Join(dir, "issuing.key"), key)
	return dir
}

func writeKey(b *testing.B, path string, key *ecdsa.PrivateKey) {
	b.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		b.Fatal(err)
	}
	writeFile(b, path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func writeFile(b *testing.B, path string, text []byte) {
	b.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		b.Fatal(err)
	}
}

func writeJSONFile(b *testing.B, path string, v any) {
	b.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		b.Fatal(err)
	}
	writeFile(b, path, text)
}

// tlsFolder is for an issuer over HTTPS: a key as step-ca makes for itself.
func tlsFolder(b *testing.B) string {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 24),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	writeKey(b, filepath.Join(dir, "tls.key"), key)
	writeFile(b, filepath.Join(dir, "tls.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return dir
}

func startCfssl(b *testing.B, program string) asked {
	b.Helper()
	dir, port := peerCA(b), strconv.Itoa(freePort(b))
	config := filepath.Join(dir, "config.json")
	writeJSONFile(b, config, map[string]any{"signing": map[string]any{"default": map[string]any{
		"usages": []string{"digital signature", "client auth"}, "expiry": "87600h",
	}}})
	startServer(b, nil, program, "serve", "-address", "127.0.0.1", "-port", port, "-config", config, "-loglevel", "5",
		"-ca", filepath.Join(dir, "issuing.pem"), "-ca-key", filepath.Join(dir, "issuing.key"))
	address := net.JoinHostPort("127.0.0.1", port)
	answering(b, address)
	return asked{
		name: "cfssl", url: "http://" + address + "/api/v1/cfssl/sign", client: process{}.client, certificate: jsonField("result", "certificate"),
		body: func(d fresh) (string, []byte) {
			return "application/json", jsonBody("certificate_request", string(d.pem))
		},
	}
}

// startStepCA starts it with a provisioner of the kind JWK; db is a file for
// bbolt, or empty.
func startStepCA(b *testing.B, program, db string) asked {
	b.Helper()
	dir, port := peerCA(b), strconv.Itoa(freePort(b))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		b.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", port)
	config := map[string]any{
		"root": filepath.Join(dir, "root.pem"), "crt": filepath.Join(dir, "issuing.pem"), "key": filepath.Join(dir, "issuing.key"),
		"address": address, "dnsNames": []string{"127.0.0.1"},
		"authority": map[string]any{
			"claims": map[string]any{"maxTLSCertDuration": "87600h", "defaultTLSCertDuration": "87600h"},
			"provisioners": []any{map[string]any{"type": "JWK", "name": "bench", "key": map[string]any{
				"use": "sig", "kty": "EC", "kid": "bench", "crv": "P-256", "alg": "ES256", "x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
			}}},
		},
	}
	if db != "" {
		config["db"] = map[string]any{"type": "bbolt", "dataSource": db}
	}
	file := filepath.Join(dir, "ca.json")
	writeJSONFile(b, file, config)
	startServer(b, []string{"STEPPATH=" + dir}, program, file)
	answering(b, address)
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err != nil {
		b.Fatal(err)
	}
	roots.AppendCertsFromPEM(text)
	url := "https://" + address + "/1.0/sign"
	return asked{
		name: "step-ca", url: url, client: process{roots: &tls.Config{RootCAs: roots}}.client, certificate: jsonField("crt"),
		body: func(d fresh) (string, []byte) {
			return "application/json", jsonBody("csr", string(d.pem), "ott", oneTimeToken(b, key, url, d.ID.String()))
		},
	}
}

// oneTimeToken is a JWT (ES256) for one certificate.
func oneTimeToken(b *testing.B, key *ecdsa.PrivateKey, audience, subject string) string {
	b.Helper()
	id := make([]byte, 32)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	store, err := json.Marshal(map[string]any{
		"iss": "bench", "aud": audience, "sub": subject, "sans": []string{subject}, "jti": hex.EncodeToString(id),
		"iat": time.Now().Unix(), "nbf": time.Now().Unix() - 1, "exp": time.Now().Add(5 * time.Minute).Unix(),
	})
	if err != nil {
		b.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString(jsonBody("alg", "ES256", "kid", "bench", "typ", "JWT")) + "." + base64.RawURLEncoding.EncodeToString(store)
	digest := sha256.Sum256([]byte(text))
	der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		b.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(rawSignature(b, der))
}

// jsonBody is an object of strings, given in pairs.
func jsonBody(pairs ...string) []byte {
	object := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		object[pairs[i]] = pairs[i+1]
	}
	text, _ := json.Marshal(object) // strings always encode
	return text
}

// rawSignature is r and s, 32 bytes each, of a signature in DER.
func rawSignature(b *testing.B, der []byte) []byte {
	b.Helper()
	var signature struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &signature); err != nil {
		b.Fatal(err)
	}
	raw := make([]byte, 64)
	signature.R.FillBytes(raw[:32])
	signature.S.FillBytes(raw[32:])
	return raw
}
