package board

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	_ "crypto/sha1" // what stock firmware signs with; possession evidence only, never a certificate
	_ "crypto/sha256"
	"errors"
	"fmt"
)

// ProofMethod names how a board proved that it owns its key, and so what a signature covers.
type ProofMethod string

// ProofSignMsg: each signature is ECDSA in DER (RFC 3279, 2.2.3) over the hash of one nonce. It takes at
// least two nonces: the key is recovered from the signatures themselves, and from a single one
// a key can be recovered that nobody owns.
const ProofSignMsg ProofMethod = "sign-msg"

// Hash names the hash function under a signature.
type Hash string

// The hashes that boards use.
const (
	SHA1   Hash = "sha1"
	SHA256 Hash = "sha256"
)

// Proof shows, with the key of its record and nothing else, that the board owned the private key when
// it was read: the station chose the nonces at random and the board signed them.
type Proof struct {
	Method     ProofMethod `json:"method"`
	Hash       Hash        `json:"hash"`
	Nonces     [][]byte    `json:"nonces"`
	Signatures [][]byte    `json:"signatures"`
}

// ErrProof says that a proof of possession does not hold.
var ErrProof = errors.New("proof of possession does not hold")

const (
	minNonce  = 12 // bytes
	maxNonce  = 128
	maxSig    = 1024
	maxProofs = 8
)

func (h Hash) sum(message []byte) ([]byte, error) {
	var f crypto.Hash
	switch h {
	case SHA1:
		f = crypto.SHA1
	case SHA256:
		f = crypto.SHA256
	default:
		return nil, fmt.Errorf("%w: unknown hash %q", ErrProof, h)
	}
	w := f.New()
	w.Write(message)
	return w.Sum(nil), nil
}

// check looks at the form alone.
func (p *Proof) check() error {
	if p.Method != ProofSignMsg {
		return fmt.Errorf("%w: unknown method %q", ErrProof, p.Method)
	}
	if _, err := p.Hash.sum(nil); err != nil {
		return err
	}
	if len(p.Nonces) < 2 || len(p.Nonces) > maxProofs || len(p.Nonces) != len(p.Signatures) {
		return fmt.Errorf("%w: %d nonces and %d signatures, want 2 to %d of each", ErrProof, len(p.Nonces), len(p.Signatures), maxProofs)
	}
	for i, nonce := range p.Nonces {
		if len(nonce) < minNonce || len(nonce) > maxNonce {
			return fmt.Errorf("%w: a nonce of %d bytes, want %d to %d", ErrProof, len(nonce), minNonce, maxNonce)
		}
		if len(p.Signatures[i]) == 0 || len(p.Signatures[i]) > maxSig {
			return fmt.Errorf("%w: a signature of %d bytes", ErrProof, len(p.Signatures[i]))
		}
		for _, other := range p.Nonces[:i] {
			if bytes.Equal(nonce, other) {
				return fmt.Errorf("%w: the same nonce twice", ErrProof)
			}
		}
	}
	return nil
}

// Verify checks every signature of p under key.
func (p *Proof) Verify(key Key) error {
	if err := p.check(); err != nil {
		return err
	}
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("%w: method %s needs an ECDSA key", ErrProof, p.Method)
	}
	for i, nonce := range p.Nonces {
		digest, err := p.Hash.sum(nonce)
		if err != nil {
			return err
		}
		if !ecdsa.VerifyASN1(public, digest, p.Signatures[i]) {
			return fmt.Errorf("%w: signature %d of %d is not by this key", ErrProof, i+1, len(p.Nonces))
		}
	}
	return nil
}
