package board

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/json"
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

// Sealed is a valid record with the envelope that holds its encoding and its
// station's signature. Only Seal, ParseEnvelope and OpenEnvelope make one, so
// no caller checks it again. The zero value holds no record.
type Sealed struct {
	record   Record
	envelope []byte
	keyID    string
}

// Record returns the record in the envelope. The caller must not change its
// facts or its proof.
func (s Sealed) Record() Record { return s.record }

// Envelope returns the canonical JSON, at most MaxEnvelope bytes, which the
// caller must not change. It is empty only for the zero value.
func (s Sealed) Envelope() []byte { return s.envelope }

// KeyID names the key that signed the envelope. Of a Sealed that ParseEnvelope
// made, it is a claim.
func (s Sealed) KeyID() string { return s.keyID }

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
	return Sealed{record: r, envelope: envelope, keyID: KeyID(s.Name(), s.KeyHash())}, nil
}

// ParseEnvelope reads the canonical form that Seal writes. It does not check
// the signature: what it returns is what somebody claims.
func ParseEnvelope(envelope []byte) (Sealed, error) {
	sealed, _, err := parseEnvelope(envelope)
	return sealed, err
}

func parseEnvelope(envelope []byte) (Sealed, *dsse.Envelope, error) {
	if len(envelope) > MaxEnvelope {
		return Sealed{}, nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrEnvelope, len(envelope), MaxEnvelope)
	}
	var e dsse.Envelope
	if err := decodeJSON(envelope, &e); err != nil {
		return Sealed{}, nil, fmt.Errorf("%w: %v", ErrEnvelope, err)
	}
	if e.PayloadType != PayloadType {
		return Sealed{}, nil, fmt.Errorf("%w: payload type %.80q, want %q", ErrEnvelope, e.PayloadType, PayloadType)
	}
	if len(e.Signatures) != 1 {
		return Sealed{}, nil, fmt.Errorf("%w: %d signatures, want 1", ErrEnvelope, len(e.Signatures))
	}
	payload, err := base64.StdEncoding.Strict().DecodeString(e.Payload)
	if err != nil {
		return Sealed{}, nil, fmt.Errorf("%w: payload: %v", ErrEnvelope, err)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(e.Signatures[0].Sig)
	if err != nil {
		return Sealed{}, nil, fmt.Errorf("%w: signature: %v", ErrEnvelope, err)
	}
	record, err := ParseRecord(payload)
	if err != nil {
		return Sealed{}, nil, fmt.Errorf("%w: %w", ErrEnvelope, err)
	}
	// Decoders skip line breaks in base64; only the one form may pass.
	e.Payload = base64.StdEncoding.EncodeToString(payload)
	e.Signatures[0].Sig = base64.StdEncoding.EncodeToString(signature)
	again, err := encodeJSON(&e)
	if err != nil || !bytes.Equal(again, envelope) {
		return Sealed{}, nil, fmt.Errorf("%w: not in its one encoding", ErrEnvelope)
	}
	return Sealed{record: record, envelope: bytes.Clone(envelope), keyID: e.Signatures[0].KeyID}, &e, nil
}

// OpenEnvelope reads an envelope and checks that one of the trusted stations
// signed it, and that it speaks for itself: the record's Origin is the name of
// that key. Otherwise the error is ErrUntrusted, ErrEnvelope or ErrRecord;
// ErrNewer for a record of a version that this program does not know.
func OpenEnvelope(envelope []byte, trusted ...Verifier) (Sealed, error) {
	sealed, e, err := parseEnvelope(envelope)
	if err != nil {
		return Sealed{}, err
	}
	if err := sealed.verify(e, trusted); err != nil {
		return Sealed{}, err
	}
	return sealed, nil
}

// Verify checks that one of the trusted stations signed the envelope, and that
// the record's Origin is the name of that key. Otherwise the error wraps
// ErrUntrusted. Verify does not validate the record again.
func (s Sealed) Verify(trusted ...Verifier) error {
	var e dsse.Envelope
	if err := json.Unmarshal(s.envelope, &e); err != nil {
		return fmt.Errorf("%w: %v", ErrEnvelope, err)
	}
	return s.verify(&e, trusted)
}

func (s Sealed) verify(e *dsse.Envelope, trusted []Verifier) error {
	var providers []dsse.Verifier
	for _, v := range trusted {
		if v.Name() == s.record.Origin() && KeyID(v.Name(), v.KeyHash()) == s.keyID {
			providers = append(providers, dsseVerifier{v})
		}
	}
	if len(providers) == 0 {
		return fmt.Errorf("%w: record of %s, key %.100q", ErrUntrusted, s.record.Origin(), s.keyID)
	}
	verifier, err := dsse.NewEnvelopeVerifier(providers...)
	if err != nil {
		return fmt.Errorf("opening an envelope: %w", err)
	}
	if _, err := verifier.Verify(context.Background(), e); err != nil {
		return fmt.Errorf("%w: the signature of %s does not hold", ErrUntrusted, s.keyID)
	}
	return nil
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

// VerifyWithProof checks what an issuer checks: the station's signature, and
// the proof of possession where the record has one.
func (s Sealed) VerifyWithProof(trusted ...Verifier) error {
	if err := s.Verify(trusted...); err != nil {
		return err
	}
	if s.record.Proof == nil {
		return nil
	}
	return s.record.Proof.Verify(s.record.Device, s.record.Key)
}
