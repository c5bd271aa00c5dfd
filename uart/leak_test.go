package uart

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// must is the DER of something that can be encoded.
func must(der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return der
}

// sec1 is an EC private key with or without its optional parts.
func sec1(key *ecdsa.PrivateKey, curve asn1.ObjectIdentifier, public bool) []byte {
	k := struct {
		Version int
		Key     []byte
		Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
		Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
	}{Version: 1, Key: must(key.Bytes()), Curve: curve}
	if public {
		point := must(key.PublicKey.Bytes())
		k.Public = asn1.BitString{Bytes: point, BitLength: 8 * len(point)}
	}
	return must(asn1.Marshal(k))
}

// Private keys in base64 are seen without a header, in every form that
// libraries write, however they are wrapped and cut.
func TestLeakDetectorBase64(t *testing.T) {
	oids := map[elliptic.Curve]asn1.ObjectIdentifier{elliptic.P256(): {1, 2, 840, 10045, 3, 1, 7}, elliptic.P384(): {1, 3, 132, 0, 34}, elliptic.P521(): {1, 3, 132, 0, 35}}
	keys := map[string][]byte{}
	for curve, oid := range oids {
		name := curve.Params().Name
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[name+", SEC 1"] = must(x509.MarshalECPrivateKey(key))
		keys[name+", SEC 1, no public key"] = sec1(key, oid, false)
		keys[name+", SEC 1, no curve"] = sec1(key, nil, true)
		keys[name+", SEC 1, bare"] = sec1(key, nil, false)
		keys[name+", PKCS #8"] = must(x509.MarshalPKCS8PrivateKey(key))
		for inner, bare := range map[string][]byte{"no public key": sec1(key, nil, false), "curve": sec1(key, oid, false)} {
			keys[name+", PKCS #8, "+inner] = must(asn1.Marshal(struct {
				Version   int
				Algorithm pkix.AlgorithmIdentifier
				Key       []byte
			}{0, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, Parameters: asn1.RawValue{FullBytes: must(asn1.Marshal(oid))}}, bare}))
		}
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	keys["Ed25519"] = must(x509.MarshalPKCS8PrivateKey(ed))
	x, _ := ecdh.X25519().GenerateKey(rand.Reader)
	keys["X25519"] = must(x509.MarshalPKCS8PrivateKey(x))
	for _, bits := range []int{1024, 2048} {
		key := rsaKey(t, bits)
		keys[fmt.Sprintf("RSA %d, PKCS #1", bits)] = x509.MarshalPKCS1PrivateKey(key)
		keys[fmt.Sprintf("RSA %d, PKCS #8", bits)] = must(x509.MarshalPKCS8PrivateKey(key))
	}
	for name, der := range keys {
		text := base64.StdEncoding.EncodeToString(der)
		start := text[:min(len(text), 40)]
		for cut := range len(start) {
			var d leakDetector
			if first := d.found([]byte(start[:cut])); !first && !d.found([]byte(start[cut:])) {
				t.Fatalf("%s, cut at %d, is not seen: %s", name, cut, start[:24])
			}
		}
		for _, width := range []int{1, 4, 7, 64} {
			var d leakDetector
			var wrapped bytes.Buffer
			for rest := text; rest != ""; rest = rest[min(width, len(rest)):] {
				fmt.Fprintf(&wrapped, "%s\n\r", rest[:min(width, len(rest))])
			}
			if !d.found(wrapped.Bytes()) {
				t.Errorf("%s, wrapped at %d, is not seen", name, width)
			}
		}
	}
}

// rsaKey makes a key of a size that the library would call too small, too.
func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Whatever a board may print of its public half is no leak: keys, requests with
// subjects of every length, certificates and signatures, in base64 at every
// alignment.
func TestLeakDetectorIgnoresPublicData(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, key := range map[string]crypto.Signer{"P-256": p256, "P-384": p384, "P-521": p521, "Ed25519": ed, "RSA": rsaKey(t, 2048)} {
		public := map[string][]byte{"SPKI": must(x509.MarshalPKIXPublicKey(key.Public()))}
		if k, ok := key.Public().(*rsa.PublicKey); ok {
			public["PKCS #1"] = x509.MarshalPKCS1PublicKey(k)
		}
		if k, ok := key.(*ecdsa.PrivateKey); ok {
			for i := range 64 {
				digest := make([]byte, 32)
				rand.Read(digest)
				public[fmt.Sprint("signature ", i)] = must(ecdsa.SignASN1(rand.Reader, k, digest))
			}
		}
		step := 9
		if name == "P-256" {
			step = 1
		}
		for n := 0; n < 70; n += step {
			subject := pkix.Name{}
			if n > 0 {
				subject.CommonName = strings.Repeat("0", n-1)
			}
			public[fmt.Sprint("CSR ", n)] = must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key))
		}
		for serial := range int64(4) {
			template := &x509.Certificate{SerialNumber: big.NewInt(serial + 1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now(), IsCA: true, BasicConstraintsValid: true}
			public[fmt.Sprint("certificate ", serial)] = must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
		}
		for what, der := range public {
			for shift := range 3 {
				text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), der...))
				var d leakDetector
				if d.found([]byte(text)) {
					t.Errorf("%s, %s, shifted by %d, is taken for a private key:\n%s", name, what, shift, text)
				}
			}
			var d leakDetector
			if d.found(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC THING", Bytes: der})) {
				t.Errorf("%s, %s, as PEM, is taken for a private key", name, what)
			}
		}
	}
	var d leakDetector
	if noise := base64.StdEncoding.EncodeToString(must(randomBytes(1 << 20))); d.found([]byte(noise)) {
		t.Error("noise is taken for a private key")
	}
}

func randomBytes(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := rand.Read(b)
	return b, err
}
