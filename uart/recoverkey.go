package uart

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"filippo.io/nistec"
)

// signed is one challenge with the board's answer.
type signed struct {
	message []byte
	r, s    *big.Int
}

// errNoCommonKey: caused by noise on the line or by a dishonest board.
var errNoCommonKey = fmt.Errorf("%w: its signatures do not belong to one key", ErrNoProof)

var hashes = []struct {
	name string
	sum  func([]byte) []byte
}{
	{"sha1", func(m []byte) []byte { d := sha1.Sum(m); return d[:] }},
	{"sha256", func(m []byte) []byte { d := sha256.Sum256(m); return d[:] }},
}

// recoverKey returns the one P-256 key that verifies every answer (SEC 1,
// 4.1.6). One signature yields two to four candidate keys, so the first two
// answers must share one, and the others confirm it. The hash is found the same
// way, because no firmware reports which hash it used.
func recoverKey(answers []signed) (spki []byte, proof *Proof, err error) {
	if len(answers) < 3 {
		return nil, nil, fmt.Errorf("%w: %d signatures, want 3 or more", ErrNoProof, len(answers))
	}
	for _, hash := range hashes {
		first := candidateKeys(hash.sum(answers[0].message), answers[0].r, answers[0].s)
		second := candidateKeys(hash.sum(answers[1].message), answers[1].r, answers[1].s)
		for point := range first {
			if !second[point] {
				continue
			}
			key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), []byte(point))
			if err != nil {
				continue
			}
			proof := &Proof{Method: "sign-msg", Hash: hash.name}
			for _, a := range answers {
				der, err := asn1.Marshal(struct{ R, S *big.Int }{a.r, a.s})
				if err != nil || !ecdsa.VerifyASN1(key, hash.sum(a.message), der) {
					return nil, nil, errNoCommonKey
				}
				proof.Nonces = append(proof.Nonces, a.message)
				proof.Signatures = append(proof.Signatures, der)
			}
			spki, err := x509.MarshalPKIXPublicKey(key)
			if err != nil {
				return nil, nil, fmt.Errorf("encoding the recovered key: %w", err)
			}
			return spki, proof, nil
		}
	}
	return nil, nil, errNoCommonKey
}

// candidateKeys returns the keys, as uncompressed points, under which (r, s)
// signs the digest.
func candidateKeys(digest []byte, r, s *big.Int) map[string]bool {
	params := elliptic.P256().Params()
	n, p := params.N, params.P
	out := map[string]bool{}
	if r.Sign() <= 0 || s.Sign() <= 0 || r.Cmp(n) >= 0 || s.Cmp(n) >= 0 {
		return out
	}
	z := new(big.Int).SetBytes(digest[:min(len(digest), 32)])
	inverse := new(big.Int).ModInverse(r, n)
	u1 := new(big.Int).Mul(z, inverse)
	u1.Neg(u1).Mod(u1, n) // of the base point
	u2 := new(big.Int).Mul(s, inverse)
	u2.Mod(u2, n) // of the point that r came from
	base, err := nistec.NewP256Point().ScalarBaseMult(u1.FillBytes(make([]byte, 32)))
	if err != nil {
		return out
	}
	// r is the x coordinate of a point, reduced by the order; nearly always
	// nothing was lost.
	for x := new(big.Int).Set(r); x.Cmp(p) < 0; x.Add(x, n) {
		for _, sign := range []byte{2, 3} {
			compressed := append([]byte{sign}, x.FillBytes(make([]byte, 32))...)
			point, err := nistec.NewP256Point().SetBytes(compressed)
			if err != nil {
				break // no point has this x
			}
			if point, err = nistec.NewP256Point().ScalarMult(point, u2.FillBytes(make([]byte, 32))); err != nil {
				break
			}
			if b := point.Add(point, base).Bytes(); len(b) == 65 {
				out[string(b)] = true
			}
		}
	}
	return out
}

// parseSignature reads what is documented (DER) and what is possible (64 raw
// bytes: r, s).
func parseSignature(b []byte) (r, s *big.Int, encoding string, err error) {
	var der struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(b, &der); err == nil && len(rest) == 0 && der.R.Sign() > 0 && der.S.Sign() > 0 {
		return der.R, der.S, "der", nil
	}
	if len(b) == 64 {
		return new(big.Int).SetBytes(b[:32]), new(big.Int).SetBytes(b[32:]), "raw", nil
	}
	return nil, nil, "", errors.New("neither DER nor 64 raw bytes")
}

// p256Prefix makes a SubjectPublicKeyInfo of an uncompressed point (RFC 5480).
var p256Prefix = []byte("\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00")

// parsePoint reads a P-256 key in any of the documented forms, and returns its
// SubjectPublicKeyInfo and the name of the form: "point" (65 bytes, X9.63),
// "xy" (64) or "spki" (91).
func parsePoint(b []byte) (spki []byte, form string, err error) {
	switch {
	case len(b) == 65:
		form = "point"
	case len(b) == 64:
		b, form = append([]byte{4}, b...), "xy"
	case len(b) == 91 && bytes.HasPrefix(b, p256Prefix):
		b, form = b[len(p256Prefix):], "spki"
	default:
		return nil, "", fmt.Errorf("a key of %d bytes, in none of the documented forms", len(b))
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
	if err != nil {
		return nil, "", errors.New("the key is not a point of P-256")
	}
	if spki, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return nil, "", fmt.Errorf("encoding the key: %w", err)
	}
	return spki, form, nil
}
