package issuer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"slices"
	"time"

	"secretfree/station/board"
)

// Claim is the intent to issue one certificate, written down before anything is
// signed. It fixes all that a CA could choose, so that signing twice gives the
// same certificate.
type Claim struct {
	Device      board.DeviceID
	Fingerprint board.Fingerprint
	Generation  int
	Epoch       int       // from 1; each has one certificate
	CA          string    // the name of the CA that signs; any retry goes to the same
	Serial      Serial    // for a CA that lets it be chosen
	NotBefore   time.Time // UTC, whole seconds
	NotAfter    time.Time
	Org         string    // beside the device id in the subject; may be empty
	AltName     string    // the one alternative name: a URN or the name of a host; may be empty
	Created     time.Time // UTC, whole seconds
	Challenge   string    // that the request answered; empty if none was asked for
}

// subject of the certificate.
func (c Claim) Subject() pkix.Name {
	name := pkix.Name{CommonName: c.Device.String()}
	if c.Org != "" {
		name.Organization = []string{c.Org}
	}
	return name
}

// Serial is the serial number of a certificate: 128 random bits. As text it is
// 32 lower-case hex digits.
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
func newClaim(a Approved, epoch int, ca string, now time.Time) (Claim, error) {
	if err := a.check(); err != nil {
		return Claim{}, err
	}
	c := Claim{
		Device: a.device, Fingerprint: a.key.Fingerprint(), Generation: a.generation, Epoch: epoch, CA: ca,
		NotBefore: a.notBefore, NotAfter: a.notAfter, Org: a.org, AltName: a.altName, Created: now.UTC().Truncate(time.Second), Challenge: a.challenge,
	}
	_, _ = rand.Read(c.Serial[:]) // never fails (crypto/rand)
	return c, nil
}

// ID names what may be issued once: this device with this key in this
// generation and epoch.
func (c Claim) ID() string { return c.Device.String() + "/" + c.SortKey() }

// sortKey puts the claims of a device in the order of their generations and
// epochs.
func (c Claim) SortKey() string {
	return fmt.Sprintf("%06d-%06d-%s", c.Generation, c.Epoch, c.Fingerprint)
}

// Covers reports whether c is a claim for a, and a was approved. Every CA asks
// before it signs.
func (c Claim) Covers(a Approved) error {
	if err := a.check(); err != nil {
		return err
	}
	if c.Device != a.device || c.Fingerprint != a.key.Fingerprint() || c.Generation != a.generation || c.Epoch < a.epoch {
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

// Issuance is a claim and what became of it.
type Issuance struct {
	Claim       Claim
	Version     int // counts what was written; from 1
	State       IssuanceState
	CAState     string       // of the CA
	Certificate *Certificate // nil in the state Claimed, and where nothing was signed before it was revoked
	Activated   time.Time    // UTC, whole seconds; zero if it never was
	Revoked     time.Time    // since when it is Revoking or Revoked
	Reason      Reason       // of that
}

// equal reports whether two issuances are stored alike.
func (i Issuance) Equal(o Issuance) bool {
	a, b := i.Claim, o.Claim
	times := a.NotBefore.Equal(b.NotBefore) && a.NotAfter.Equal(b.NotAfter) && a.Created.Equal(b.Created) &&
		i.Activated.Equal(o.Activated) && i.Revoked.Equal(o.Revoked)
	a.NotBefore, a.NotAfter, a.Created = b.NotBefore, b.NotAfter, b.Created
	if a != b || !times || i.Version != o.Version || i.State != o.State || i.CAState != o.CAState || i.Reason != o.Reason {
		return false
	}
	if i.Certificate == nil || o.Certificate == nil {
		return i.Certificate == o.Certificate
	}
	return bytes.Equal(i.Certificate.Leaf, o.Certificate.Leaf) && slices.EqualFunc(i.Certificate.Chain, o.Certificate.Chain, bytes.Equal)
}

// IssuanceState is how far an issuance has come.
type IssuanceState string

// The states. A retry goes on from Claimed and Signed. From Revoking it only
// goes on to Revoked.
const (
	Claimed  IssuanceState = "claimed"  // nothing is known to be signed
	Signed   IssuanceState = "signed"   // the certificate is here, and may be on its way to where devices connect
	Live     IssuanceState = "active"   // it is registered, and was or may be answered
	Revoking IssuanceState = "revoking" // it must not be answered; CA and registrar have yet to be told
	Revoked  IssuanceState = "revoked"
)

// Claims is the memory of what was issued. Any number of callers, in any number
// of processes, may use it at once. After an error nothing is known; the caller
// may try again, and will meet what was stored.
type Claims interface {
	// Issuances returns all of a device in ascending order of generation and
	// epoch, read consistently.
	Issuances(ctx context.Context, device board.DeviceID) ([]Issuance, error)
	// Create stores an issuance of version 1 if there is none with the ID of
	// its claim, and returns what is stored: this one, or the one that was
	// there first. What it returns is durable.
	Create(ctx context.Context, issuance Issuance) (Issuance, error)
	// Replace stores the next version of an issuance if the stored one is of
	// the version before, and returns what is stored: this one, or what another
	// caller made of it. What it returns is durable. ErrNoClaim: there is none.
	Replace(ctx context.Context, next Issuance) (Issuance, error)
	// Serial finds the issuance whose claim has a serial, or ErrNoClaim.
	Serial(ctx context.Context, serial Serial) (Issuance, error)
	// All gives every issuance once. What is written meanwhile may be missing.
	// After one that cannot be read (ErrBadClaim) it goes on; any other error
	// is the last.
	All(ctx context.Context) iter.Seq2[Issuance, error]
}

// What a store of claims says when what it holds cannot be used. Trying again
// does not help.
var (
	ErrBadClaim = errors.New("a stored claim cannot be read")
	ErrNoClaim  = errors.New("there is no such claim")
)

// ErrCAStateChanged says that another caller wrote a memo first.
var ErrCAStateChanged = errors.New("the memo of the claim was changed by another request")

const (
	maxEpoch = 999_999
	maxCA    = 64 // bytes of a CA's name
	maxOrg   = 64
)

// check reports what no issuance can be.
func (i Issuance) Check() error {
	c := i.Claim
	revoked := i.State == Revoking || i.State == Revoked
	switch {
	case !c.Device.Valid() || c.Serial == (Serial{}):
		return errors.New("it has no device or no serial")
	case c.Generation < 1 || c.Generation > maxEpoch || c.Epoch < 1 || c.Epoch > maxEpoch || i.Version < 1:
		return errors.New("its generation, epoch or version is out of range")
	case c.CA == "" || len(c.CA) > maxCA || len(c.Org) > maxOrg || len(c.Challenge) > maxChallenge || len(i.CAState) > MaxCAState:
		return errors.New("its CA, challenge or memo is missing or too long")
	case c.AltName != "" && checkAltName(c.AltName) != nil:
		return checkAltName(c.AltName)
	case !c.NotAfter.After(c.NotBefore) || c.NotBefore.IsZero() || c.Created.IsZero():
		return errors.New("it is not valid at any time")
	case i.State != Claimed && i.State != Signed && i.State != Live && !revoked:
		return fmt.Errorf("the state %.40q", i.State)
	case (i.State == Claimed) && i.Certificate != nil || (i.State == Signed || i.State == Live) && i.Certificate == nil:
		return errors.New("its state and its certificate do not go together")
	case revoked == i.Revoked.IsZero() || i.State == Live && i.Activated.IsZero() || (i.State == Claimed || i.State == Signed) && !i.Activated.IsZero():
		return errors.New("its state and its times do not go together")
	}
	return nil
}

// maxChain caps how many certificates a stored chain may have.
const MaxChain = 8

// ParseCertificate reads the PEM that LeafPEM and ChainPEM write. It does not
// parse what is in the blocks: CertificateCheck does.
func ParseCertificate(leaf, chain []byte) (Certificate, error) {
	var c Certificate
	for rest := leaf; len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || c.Leaf != nil {
			return Certificate{}, errors.New("its certificate is not one PEM block")
		}
		c.Leaf, rest = block.Bytes, after
	}
	for rest := chain; len(rest) > 0; {
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(c.Chain) == MaxChain {
			return Certificate{}, errors.New("its chain is not PEM blocks")
		}
		c.Chain, rest = append(c.Chain, block.Bytes), after
	}
	return c, nil
}
