package issuer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"secretfree/station/board"
)

// Claim is the intent to issue one certificate, written down before anything is signed. It fixes all that a CA could
// choose, so that signing twice gives the same certificate.
type Claim struct {
	Device      board.DeviceID
	Fingerprint board.Fingerprint
	Generation  int
	Serial      Serial
	NotBefore   time.Time // UTC, whole seconds
	NotAfter    time.Time
	Created     time.Time // UTC, whole seconds
}

// Serial is the serial number of a certificate: 128 random bits. As text it is 32 lower-case hex digits.
type Serial [16]byte

func (s Serial) String() string { return hex.EncodeToString(s[:]) }

// Int is s as a positive number.
func (s Serial) Int() *big.Int { return new(big.Int).SetBytes(s[:]) }

// ParseSerial reads exactly the form that String prints. Zero is no serial.
func ParseSerial(text string) (Serial, error) {
	var s Serial
	if len(text) == 2*len(s) {
		if _, err := hex.Decode(s[:], []byte(text)); err == nil && s.String() == text && s != (Serial{}) {
			return s, nil
		}
	}
	return Serial{}, errors.New("not a serial (32 lower-case hex digits)")
}

// newClaim proposes a claim for what was approved.
func newClaim(a Approved, now time.Time) (Claim, error) {
	if err := a.check(); err != nil {
		return Claim{}, err
	}
	c := Claim{
		Device: a.device, Fingerprint: a.key.Fingerprint(), Generation: a.generation,
		NotBefore: a.notBefore, NotAfter: a.notAfter, Created: now.UTC().Truncate(time.Second),
	}
	_, _ = rand.Read(c.Serial[:]) // never fails (crypto/rand)
	return c, nil
}

// ID names what may be issued once: this device with this key in this generation.
func (c Claim) ID() string {
	return fmt.Sprintf("%s-%s-%d", c.Device, c.Fingerprint, c.Generation)
}

// covers reports whether c is a claim for a.
func (c Claim) covers(a Approved) error {
	if c.Device != a.device || c.Fingerprint != a.key.Fingerprint() || c.Generation != a.generation {
		return fmt.Errorf("claim %s is not for what was approved", c.ID())
	}
	return nil
}

// Certificate is a certificate with its chain, each in DER.
type Certificate struct {
	Leaf  []byte
	Chain [][]byte // the issuing CA first, the root last
}

// LeafPEM is the certificate alone.
func (c Certificate) LeafPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Leaf})
}

// ChainPEM is the chain, without the certificate.
func (c Certificate) ChainPEM() []byte {
	var out []byte
	for _, der := range c.Chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// Issuance is a claim and, once finished, its certificate.
type Issuance struct {
	Claim       Claim
	Certificate *Certificate // nil as long as the claim is not finished
}

// Claims is the memory of what was issued. Any number of callers, in any number of processes, may use it at
// once. After an error nothing is known; the caller may try again, and will meet what was stored.
type Claims interface {
	// Claim stores the proposal if there is no claim of its ID, and returns what is stored: the proposal, or
	// the claim that was there first. What it returns is durable.
	Claim(ctx context.Context, proposal Claim) (Issuance, error)
	// Finish stores the certificate of a claim that Claim returned, if there is none, and returns the one that is
	// stored. What it returns is durable.
	Finish(ctx context.Context, claim Claim, certificate Certificate) (Certificate, error)
}

// What a store of claims says when what it holds cannot be used. Trying again does not help.
var (
	ErrBadClaim = errors.New("a stored claim cannot be read")
	ErrNoClaim  = errors.New("there is no such claim to finish")
)

// storedClaim is how both back ends write an issuance; the names are those of the table's attributes.
type storedClaim struct {
	ID          string            `json:"claim-id"`
	Device      board.DeviceID    `json:"device-id"`
	Fingerprint board.Fingerprint `json:"key-fingerprint"`
	Generation  int               `json:"generation"`
	Serial      string            `json:"serial"`
	NotBefore   string            `json:"not-before"` // RFC 3339, UTC, seconds
	NotAfter    string            `json:"not-after"`
	Created     string            `json:"created"`
}

func storeClaim(c Claim) storedClaim {
	return storedClaim{
		ID: c.ID(), Device: c.Device, Fingerprint: c.Fingerprint, Generation: c.Generation, Serial: c.Serial.String(),
		NotBefore: c.NotBefore.Format(time.RFC3339), NotAfter: c.NotAfter.Format(time.RFC3339), Created: c.Created.Format(time.RFC3339),
	}
}

// loadClaim reads what is stored under id.
func loadClaim(id string, s storedClaim) (Claim, error) {
	c := Claim{Device: s.Device, Fingerprint: s.Fingerprint, Generation: s.Generation}
	var err error
	if c.Serial, err = ParseSerial(s.Serial); err != nil {
		return Claim{}, fmt.Errorf("%w: %s: %v", ErrBadClaim, id, err)
	}
	for _, field := range []struct {
		to   *time.Time
		text string
	}{{&c.NotBefore, s.NotBefore}, {&c.NotAfter, s.NotAfter}, {&c.Created, s.Created}} {
		if *field.to, err = time.Parse("2006-01-02T15:04:05Z", field.text); err != nil {
			return Claim{}, fmt.Errorf("%w: %s: %v", ErrBadClaim, id, err)
		}
	}
	if s.ID != id || c.ID() != id || !c.Device.Valid() || !c.NotAfter.After(c.NotBefore) {
		return Claim{}, fmt.Errorf("%w: %s: it is of something else, or not valid at any time", ErrBadClaim, id)
	}
	return c, nil
}

// maxChain caps how many certificates a stored chain may have.
const maxChain = 8

// loadCertificate reads the PEM that LeafPEM and ChainPEM write. It does not parse what is in the blocks:
// verifyIssued does.
func loadCertificate(id string, leaf, chain []byte) (Certificate, error) {
	var c Certificate
	for rest := leaf; len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || c.Leaf != nil {
			return Certificate{}, fmt.Errorf("%w: %s: its certificate is not one PEM block", ErrBadClaim, id)
		}
		c.Leaf, rest = block.Bytes, after
	}
	for rest := chain; len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(c.Chain) == maxChain {
			return Certificate{}, fmt.Errorf("%w: %s: its chain is not PEM blocks", ErrBadClaim, id)
		}
		c.Chain, rest = append(c.Chain, block.Bytes), after
	}
	if c.Leaf == nil || string(c.LeafPEM()) != string(leaf) || string(c.ChainPEM()) != string(chain) {
		return Certificate{}, fmt.Errorf("%w: %s: its certificate is not as it was written", ErrBadClaim, id)
	}
	return c, nil
}
