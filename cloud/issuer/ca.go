package issuer

import (
	"context"
	"crypto/x509"

	"secretfree/station/board"
)

// CA signs. Any number of callers may use it at once.
type CA interface {
	// Issue makes the certificate of a claim for what was approved: subject,
	// key and extensions are those of Approved, the validity that of the claim.
	// For one claim it gives one certificate, as far as the CA can; what it
	// needs for that it writes into the memo before it does what cannot be
	// repeated. The caller checks what it returns; after an error the caller
	// may ask again.
	Issue(ctx context.Context, approved Approved, claim Claim, memo CAState) (Certificate, error)
	// Profile says what can be expected of its certificates.
	Profile() Profile
	// Revoke sees to it that the certificate is on the CA's next revocation
	// list. Revoking again is no error.
	Revoke(ctx context.Context, issuance Issuance, reason Reason) error
}

// Profile says what a CA's certificates are compared with before they leave.
type Profile struct {
	// Roots are the trust anchors that every certificate must chain to. None
	// only if Foreign.
	Roots []*x509.Certificate
	// Foreign: the CA itself chooses subject, validity and extensions, and no
	// chain is known, as AWS IoT Core's own CA does. The key is compared all
	// the same; the certificate must be valid now, not be a CA's, and name no
	// other device.
	CAControlled bool
	// KeyUsage is what the CA always allows besides signatures, such as
	// x509.KeyUsageKeyEncipherment.
	KeyUsage x509.KeyUsage
}

// CAState is what a CA has written down about one claim: text of at most
// MaxCAState bytes, empty at first.
type CAState interface {
	Read() string
	// Write replaces what Read returned, durably. If another caller wrote
	// meanwhile it returns ErrCAStateChanged, and Read gives what that one
	// wrote.
	Write(ctx context.Context, text string) error
}

// MaxCAState caps a memo, in bytes.
const MaxCAState = 2048

// Registrar makes certificates known where devices connect. Any number of
// callers may use it at once.
type Registrar interface {
	// Register sees to it that the certificate is known, with all that the
	// device needs there, and active. It is active last. Every step that was
	// done before, and only that, counts as done; after an error the caller may
	// ask again.
	Register(ctx context.Context, device board.DeviceID, certificate Certificate) error
	// Deactivate sees to it that the certificate is not active. One that is not
	// known there is no error.
	Deactivate(ctx context.Context, device board.DeviceID, certificate Certificate) error
}

// Reason of a revocation; the numbers are those of RFC 5280, 5.3.1.
type Reason int

// The reasons that are used.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	AffiliationChanged   Reason = 3 // the device changed hands
	Superseded           Reason = 4
	CessationOfOperation Reason = 5 // scrapped
)

var reasonNames = map[Reason]string{
	Unspecified: "unspecified", KeyCompromise: "key-compromise", AffiliationChanged: "affiliation-changed",
	Superseded: "superseded", CessationOfOperation: "cessation-of-operation",
}

func (r Reason) String() string { return reasonNames[r] }

func ParseReason(text string) (Reason, bool) {
	for reason, name := range reasonNames {
		if name == text {
			return reason, true
		}
	}
	return 0, false
}
