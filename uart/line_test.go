package uart

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
)

// Every cut of every spelling of a private key is seen, and nothing innocent
// is.
func TestLeakDetector(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, _ := x509.MarshalECPrivateKey(key)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
	spki, _ := x509.MarshalPKIXPublicKey(key.Public())
	bad := map[string]string{
		"EC":          string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})),
		"PKCS #8":     string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		"encrypted":   "-----BEGIN ENCRYPTED PRIVATE KEY-----",
		"openssl":     "Private-Key: (256 bit)\npriv:\n    00:11",
		"lower case":  "private_key = 1",
		"wrapped":     "PRIVATE \r\n KEY",
		"SEC 1 bare":  base64.StdEncoding.EncodeToString(sec1),
		"PKCS 8 bare": base64.StdEncoding.EncodeToString(pkcs8),
	}
	for name, text := range bad {
		for cut := range len(text) {
			var d leakDetector
			first := d.found([]byte(text[:cut]))
			if !first && !d.found([]byte(text[cut:])) {
				t.Fatalf("%s, cut at %d, is not seen", name, cut)
			}
		}
		var d leakDetector
		seen := false
		for i := range len(text) {
			seen = seen || d.found([]byte{text[i]})
		}
		if !seen {
			t.Errorf("%s, byte by byte, is not seen", name)
		}
	}
	good := "+get:0x4d,0x1f\n\rprivate\n\rPUBLIC KEY\n\r" + string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})) + "private label keys"
	var d leakDetector
	if d.found([]byte(good)) {
		t.Error("something innocent was taken for a private key")
	}
}

// Two good signatures recover the one key, with either hash; a third by another
// key is refused.
func TestRecoverKey(t *testing.T) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	spki, _ := x509.MarshalPKIXPublicKey(key.Public())
	sign := func(key *ecdsa.PrivateKey, hash, message string) signed {
		digest := sha1.Sum([]byte(message))
		d := digest[:]
		if hash == "sha256" {
			wide := sha256.Sum256([]byte(message))
			d = wide[:]
		}
		der, err := ecdsa.SignASN1(rand.Reader, key, d)
		if err != nil {
			t.Fatal(err)
		}
		var s struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(der, &s); err != nil {
			t.Fatal(err)
		}
		return signed{[]byte(message), s.R, s.S}
	}
	for _, hash := range []string{"sha1", "sha256"} {
		for range 32 {
			got, proof, err := recoverKey([]signed{sign(key, hash, "one"), sign(key, hash, "two"), sign(key, hash, "three")})
			if err != nil || string(got) != string(spki) || proof.Hash != hash {
				t.Fatalf("%s: %v, proof %+v", hash, err, proof)
			}
		}
	}
	one, two, three := sign(key, "sha1", "one"), sign(key, "sha1", "two"), sign(key, "sha1", "three")
	zero := signed{[]byte("zero"), new(big.Int), one.s}
	large := signed{[]byte("large"), one.r, elliptic.P256().Params().N}
	for name, answers := range map[string][]signed{
		"two only":             {one, two},
		"the third by another": {one, two, sign(other, "sha1", "three")},
		"the second by other":  {one, sign(other, "sha1", "two"), three},
		"mixed hashes":         {one, sign(key, "sha256", "two"), three},
		"r is 0":               {zero, two, three},
		"s is too large":       {one, large, three},
		"messages exchanged":   {signed{two.message, one.r, one.s}, signed{one.message, two.r, two.s}, three},
	} {
		if _, _, err := recoverKey(answers); !errors.Is(err, ErrNoProof) {
			t.Errorf("%s: %v, want %v", name, err, ErrNoProof)
		}
	}
}

func TestRandomText(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := randomText(21)
		if len(s) != 21 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") != "" {
			t.Fatalf("%q", s)
		}
		if seen[s] {
			t.Fatalf("%q twice", s)
		}
		seen[s] = true
		if text := base64.StdEncoding.EncodeToString([]byte(s)); strings.ContainsAny(text, "+/=") {
			t.Fatalf("%q is %q in base64", s, text)
		}
	}
}

func TestDialectByName(t *testing.T) {
	for _, name := range DialectNames() {
		if d, err := DialectByName(name); err != nil || d.Name() != name {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
	if _, err := DialectByName("at-ti"); err == nil || !strings.Contains(err.Error(), "ti-at") {
		t.Errorf("an unknown dialect: %v", err)
	}
}
