package board

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// Algorithm names a type of key, as policies list it.
type Algorithm string

// The algorithms that ParseKey knows. A CC32xx has P-256; the others are for
// policies that allow devices of other makes.
const (
	P256 Algorithm = "P-256"
	P384 Algorithm = "P-384"
	RSA  Algorithm = "RSA" // 2048 to 8192 bits
)

// ErrKey says that something is not a public key that a record can hold.
var ErrKey = errors.New("not an acceptable public key")

const maxSPKI = 2048 // an RSA key of 8192 bits takes 1062

// Key is a public key that was checked: its point is on its curve, its encoding
// is the one DER form. Keys are equal if == says so. The zero value is no key.
type Key struct {
	spki      string
	algorithm Algorithm
}

// ParseKey reads a SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7). Any other
// encoding of the same key is refused, so that one key has one fingerprint.
func ParseKey(spki []byte) (Key, error) {
	if len(spki) > maxSPKI {
		return Key{}, fmt.Errorf("%w: %d bytes of SubjectPublicKeyInfo, at most %d are read", ErrKey, len(spki), maxSPKI)
	}
	public, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return Key{}, fmt.Errorf("%w: %v", ErrKey, err)
	}
	return NewKey(public, spki)
}

// NewKey checks a parsed public key. If spki is not nil, it must be the key's
// one DER form.
func NewKey(public crypto.PublicKey, spki []byte) (Key, error) {
	var algorithm Algorithm
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256():
			algorithm = P256
		case elliptic.P384():
			algorithm = P384
		default:
			return Key{}, fmt.Errorf("%w: curve %s, want P-256 or P-384", ErrKey, public.Curve.Params().Name)
		}
		if _, err := public.ECDH(); err != nil { // checks that the point is on the curve
			return Key{}, fmt.Errorf("%w: %v", ErrKey, err)
		}
	case *rsa.PublicKey:
		algorithm = RSA
		if public.N.Sign() <= 0 {
			return Key{}, fmt.Errorf("%w: the RSA modulus is not a positive number", ErrKey)
		}
		if bits := public.N.BitLen(); bits < 2048 || bits > 8192 {
			return Key{}, fmt.Errorf("%w: RSA of %d bits, want 2048 to 8192", ErrKey, bits)
		}
		if public.E < 3 || public.E%2 == 0 {
			return Key{}, fmt.Errorf("%w: RSA exponent %d", ErrKey, public.E)
		}
	default:
		return Key{}, fmt.Errorf("%w: %T, want ECDSA or RSA", ErrKey, public)
	}
	canonical, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Key{}, fmt.Errorf("%w: %v", ErrKey, err)
	}
	if spki != nil && !bytes.Equal(canonical, spki) {
		return Key{}, fmt.Errorf("%w: not the canonical encoding", ErrKey)
	}
	return Key{spki: string(canonical), algorithm: algorithm}, nil
}

// ParseKeyPEM reads one PUBLIC KEY block of PEM with nothing but white space
// around it.
func ParseKeyPEM(text []byte) (Key, error) {
	text = bytes.TrimSpace(text)
	block, rest := pem.Decode(text)
	// The decoder steps over what it cannot read and takes the next block.
	if block == nil || block.Type != "PUBLIC KEY" || len(block.Headers) > 0 || len(rest) > 0 ||
		!bytes.HasPrefix(text, []byte("-----BEGIN ")) || bytes.Count(text, []byte("-----BEGIN ")) != 1 {
		return Key{}, fmt.Errorf("%w: not one PEM block PUBLIC KEY", ErrKey)
	}
	return ParseKey(block.Bytes)
}

// SPKI returns a fresh copy of the DER.
func (k Key) SPKI() []byte { return []byte(k.spki) }

// PEM returns the key as a PUBLIC KEY block.
func (k Key) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.SPKI()})
}

// Public returns the key for use with the standard library; nil for the zero
// Key.
func (k Key) Public() crypto.PublicKey {
	public, err := x509.ParsePKIXPublicKey(k.SPKI())
	if err != nil {
		return nil
	}
	return public
}

// Algorithm is the type of the key; empty for the zero Key.
func (k Key) Algorithm() Algorithm { return k.algorithm }

// Fingerprint is the SHA-256 of the SubjectPublicKeyInfo.
func (k Key) Fingerprint() Fingerprint { return sha256.Sum256([]byte(k.spki)) }

// Fingerprint identifies a public key. As text it is 64 lower-case hex digits.
type Fingerprint [sha256.Size]byte

// ParseFingerprint reads exactly the form that String prints.
func ParseFingerprint(s string) (Fingerprint, error) {
	var f Fingerprint
	if len(s) == 2*len(f) {
		if _, err := hex.Decode(f[:], []byte(s)); err == nil && f.String() == s {
			return f, nil
		}
	}
	return Fingerprint{}, errors.New("not a fingerprint (64 lower-case hex digits)")
}

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText writes the 64 hex digits.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is ParseFingerprint.
func (f *Fingerprint) UnmarshalText(text []byte) (err error) {
	*f, err = ParseFingerprint(string(text))
	return err
}
