package board

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// PayloadType is the DSSE payload type of a record.
const PayloadType = "application/vnd.secretfree.record.v1+json"

// MaxEnvelope caps the size of an envelope, in bytes.
const MaxEnvelope = 2 * MaxRecord

// Signer signs with a station's Ed25519 key. A note.Signer of
// golang.org/x/mod/sumdb/note is one. The same key signs checkpoints; the two
// cannot be taken for each other, because what DSSE signs starts with "DSSEv1 "
// and a checkpoint starts with an origin, which has no capitals.
type Signer interface {
	Name() string // the station's Origin
	KeyHash() uint32
	Sign(message []byte) ([]byte, error)
}

// Verifier checks the signatures of one station. A note.Verifier is one.
type Verifier interface {
	Name() string
	KeyHash() uint32
	Verify(message, signature []byte) bool
}

// Sealed is a record with the envelope that holds its encoding and its
// station's signature.
type Sealed struct {
	Record   Record
	Envelope []byte // canonical JSON, at most MaxEnvelope bytes
	KeyID    string // of the key that signed, or claims to have
}

// Errors of opening an envelope.
var (
	ErrEnvelope = errors.New("not an envelope of a record")
	// ErrUntrusted: no trusted key has signed this. It may be forged, or the
	// station is not on the list.
	ErrUntrusted = errors.New("not signed by a trusted station")
)

// KeyID is how envelopes name a station's key: its name, "+", and its note key
// hash in 8 hex digits, which is how the note key format begins.
func KeyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// Seal encodes and signs a record (DSSE v1, one signature). A station can sign
// for itself only: the signer's name must be the record's Origin.
func Seal(r Record, s Signer) (Sealed, error) {
	payload, err := r.Encode()
	if err != nil {
		return Sealed{}, err
	}
	if s.Name() != r.Origin() {
		return Sealed{}, fmt.Errorf("%w: a record of %s cannot be signed by the key of %s", ErrRecord, r.Origin(), s.Name())
	}
	signer, err := dsse.NewEnvelopeSigner(dsseSigner{s})
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing a record: %w", err)
	}
	e, err := signer.SignPayload(context.Background(), PayloadType, payload)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing a record: %w", err)
	}
	envelope, err := encodeJSON(e)
	if err != nil {
		return Sealed{}, fmt.Errorf("sealing a record: %w", err)
	}
	return Sealed{Record: r, Envelope: envelope, KeyID: KeyID(s.Name(), s.KeyHash())}, nil
}

// ParseEnvelope reads the canonical form that Seal writes. It does not check
// the signature: what it returns is what somebody claims.
func ParseEnvelope(envelope []byte) (Sealed, error) {
	_, sealed, err := parseEnvelope(envelope)
	return sealed, err
}

func parseEnvelope(envelope []byte) (*dsse.Envelope, Sealed, error) {
	if len(envelope) > MaxEnvelope {
		return nil, Sealed{}, fmt.Errorf("%w: %d bytes, at most %d are read", ErrEnvelope, len(envelope), MaxEnvelope)
	}
	var e dsse.Envelope
	if err := decodeJSON(envelope, &e); err != nil {
		return nil, Sealed{}, fmt.Errorf("%w: %v", ErrEnvelope, err)
	}
	if e.PayloadType != PayloadType {
		return nil, Sealed{}, fmt.Errorf("%w: payload type %.80q, want %q", ErrEnvelope, e.PayloadType, PayloadType)
	}
	if len(e.Signatures) != 1 {
		return nil, Sealed{}, fmt.Errorf("%w: %d signatures, want 1", ErrEnvelope, len(e.Signatures))
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return nil, Sealed{}, fmt.Errorf("%w: payload: %v", ErrEnvelope, err)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(e.Signatures[0].Sig)
	if err != nil {
		return nil, Sealed{}, fmt.Errorf("%w: signature: %v", ErrEnvelope, err)
	}
	record, err := ParseRecord(payload)
	if err != nil {
		return nil, Sealed{}, fmt.Errorf("%w: %w", ErrEnvelope, err)
	}
	// Decoders skip line breaks in base64; only the one form may pass.
	e.Payload = base64.StdEncoding.EncodeToString(payload)
	e.Signatures[0].Sig = base64.StdEncoding.EncodeToString(signature)
	again, err := encodeJSON(&e)
	if err != nil || !bytes.Equal(again, envelope) {
		return nil, Sealed{}, fmt.Errorf("%w: not in its one encoding", ErrEnvelope)
	}
	return &e, Sealed{Record: record, Envelope: bytes.Clone(envelope), KeyID: e.Signatures[0].KeyID}, nil
}

// OpenEnvelope reads an envelope and checks that one of the trusted stations
// signed it, and that it speaks for itself: the record's Origin is the name of
// that key. Otherwise the error is ErrUntrusted, ErrEnvelope or ErrRecord;
// ErrNewer for a record of a version that this program does not know.
func OpenEnvelope(envelope []byte, trusted ...Verifier) (Sealed, error) {
	e, sealed, err := parseEnvelope(envelope)
	if err != nil {
		return Sealed{}, err
	}
	var providers []dsse.Verifier
	for _, v := range trusted {
		if v.Name() == sealed.Record.Origin() && KeyID(v.Name(), v.KeyHash()) == sealed.KeyID {
			providers = append(providers, dsseVerifier{v})
		}
	}
	if len(providers) == 0 {
		return Sealed{}, fmt.Errorf("%w: record of %s, key %.100q", ErrUntrusted, sealed.Record.Origin(), sealed.KeyID)
	}
	verifier, err := dsse.NewEnvelopeVerifier(providers...)
	if err != nil {
		return Sealed{}, fmt.Errorf("opening an envelope: %w", err)
	}
	if _, err := verifier.Verify(context.Background(), e); err != nil {
		return Sealed{}, fmt.Errorf("%w: the signature of %s does not hold", ErrUntrusted, sealed.KeyID)
	}
	return sealed, nil
}

// dsseSigner and dsseVerifier fit note keys to the envelope library.
type dsseSigner struct{ Signer }

func (s dsseSigner) Sign(_ context.Context, data []byte) ([]byte, error) { return s.Signer.Sign(data) }
func (s dsseSigner) KeyID() (string, error)                              { return KeyID(s.Name(), s.KeyHash()), nil }

type dsseVerifier struct{ v Verifier }

func (v dsseVerifier) Verify(_ context.Context, data, signature []byte) error {
	if !v.v.Verify(data, signature) {
		return ErrUntrusted
	}
	return nil
}
func (v dsseVerifier) KeyID() (string, error)   { return KeyID(v.v.Name(), v.v.KeyHash()), nil }
func (v dsseVerifier) Public() crypto.PublicKey { return nil }
