package issuer

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"

	"secretfree/station/board"
)

// Registry is where the factory's records are.
type Registry interface {
	// Lookup returns what is held under a device id, read consistently. An error that wraps
	// board.ErrNotEnrolled says for sure that there is nothing; any other says that it is not known.
	Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error)
}

// CA signs. Any number of callers may use it at once.
type CA interface {
	// Issue makes the certificate of a claim for what was approved: subject, key and extensions are those of
	// Approved, the validity that of the claim. For one claim it gives one certificate, as
	// far as the CA can. The caller checks what it returns; after an error the caller may ask again.
	Issue(ctx context.Context, approved Approved, claim Claim) (Certificate, error)
}

// Config of an Issuer. All fields are required.
type Config struct {
	Policy   Policy
	Registry Registry
	CA       CA
	Claims   Claims
	// Roots are the trust anchors that every certificate must chain to before it leaves.
	Roots []*x509.Certificate
}

// Issuer issues certificates. Its methods may be called at once.
type Issuer struct {
	config Config
	roots  *x509.CertPool
}

// New checks the configuration.
func New(config Config) (*Issuer, error) {
	if err := config.Policy.Check(); err != nil {
		return nil, err
	}
	if config.Registry == nil || config.CA == nil || config.Claims == nil {
		return nil, errors.New("issuer: it needs a registry, a CA and claims")
	}
	if len(config.Roots) == 0 {
		return nil, errors.New("issuer: no root certificate: nothing that a CA returns could be checked")
	}
	i := &Issuer{config: config, roots: x509.NewCertPool()}
	for _, root := range config.Roots {
		i.roots.AddCert(root)
	}
	return i, nil
}

// Issue gives the one certificate of the device, key and generation of a request; repeated, the same one. An
// error that wraps a Refusal is a verdict. Any other says that it could not be done now: asking again goes on
// from where it broke off, and nothing that was signed is lost or signed differently.
func (i *Issuer) Issue(ctx context.Context, request Request) (Certificate, error) {
	enrolment, err := i.lookup(ctx, request)
	if err != nil {
		return Certificate{}, err
	}
	now := time.Now()
	approved, err := Decide(request, enrolment, i.config.Policy, now)
	if err != nil {
		return Certificate{}, err
	}

	proposal, err := newClaim(approved, now)
	if err != nil {
		return Certificate{}, err
	}
	issuance, err := i.config.Claims.Claim(ctx, proposal)
	if err != nil {
		return Certificate{}, fmt.Errorf("claiming the issuance: %w", err)
	}
	claim := issuance.Claim
	if err := claim.covers(approved); err != nil {
		return Certificate{}, err
	}
	if !now.Before(claim.NotAfter) {
		return Certificate{}, fmt.Errorf("%w: on %s", CertificateExpired, claim.NotAfter.Format(time.DateOnly))
	}
	if issuance.Certificate != nil {
		return i.checked(*issuance.Certificate, approved, claim, now)
	}

	fresh, err := i.config.CA.Issue(ctx, approved, claim)
	if err != nil {
		return Certificate{}, fmt.Errorf("asking the CA: %w", err)
	}
	if fresh, err = i.checked(fresh, approved, claim, now); err != nil {
		return Certificate{}, err
	}
	stored, err := i.config.Claims.Finish(ctx, claim, fresh)
	if err != nil {
		return Certificate{}, fmt.Errorf("finishing the issuance: %w", err)
	}
	if bytes.Equal(stored.Leaf, fresh.Leaf) {
		return stored, nil
	}
	return i.checked(stored, approved, claim, now) // another caller was first
}

// Explain looks up the device that a request claims to be, and tells every rule of the decision. The verdicts are
// nil if the registry could not be read.
func (i *Issuer) Explain(ctx context.Context, request Request) ([]Verdict, error) {
	enrolment, err := i.lookup(ctx, request)
	if err != nil {
		return nil, err
	}
	return Explain(request, enrolment, i.config.Policy, time.Now())
}

func (i *Issuer) lookup(ctx context.Context, request Request) (*board.Enrolment, error) {
	device, ok := request.Claimed()
	if !ok {
		return nil, nil // Decide refuses it by name
	}
	enrolment, err := i.config.Registry.Lookup(ctx, device)
	if errors.Is(err, board.ErrNotEnrolled) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up device %s: %w", device, err)
	}
	return &enrolment, nil
}

// ErrWrongCertificate says that a CA, or the store of claims, returned another certificate than the approved
// one. It does not leave.
var ErrWrongCertificate = errors.New("the certificate is not the one that was approved")

func (i *Issuer) checked(c Certificate, approved Approved, claim Claim, now time.Time) (Certificate, error) {
	if err := verifyIssued(c, approved, claim, i.roots, now); err != nil {
		return Certificate{}, fmt.Errorf("%w: %w", ErrWrongCertificate, err)
	}
	return c, nil
}

// verifyIssued compares a certificate with what was approved, field by field.
func verifyIssued(c Certificate, approved Approved, claim Claim, roots *x509.CertPool, now time.Time) error {
	leaf, err := x509.ParseCertificate(c.Leaf)
	if err != nil {
		return fmt.Errorf("parsing it: %w", err)
	}
	key, err := board.NewKey(leaf.PublicKey, leaf.RawSubjectPublicKeyInfo)
	if err != nil || key != approved.key {
		return errors.New("it has another key")
	}
	names := leaf.Subject.Names
	if len(names) != 1 || names[0].Type.String() != oidCommonName || names[0].Value != approved.device.String() {
		return errors.New("its subject is not the device id alone")
	}
	if !leaf.NotBefore.Equal(claim.NotBefore) || !leaf.NotAfter.Equal(claim.NotAfter) {
		return fmt.Errorf("it is valid from %v to %v, want %v to %v", leaf.NotBefore, leaf.NotAfter, claim.NotBefore, claim.NotAfter)
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		return errors.New("its key may be used for more, or for less, than signatures")
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(leaf.UnknownExtKeyUsage) > 0 {
		return errors.New("it is not for client authentication alone")
	}
	for _, extension := range leaf.Extensions {
		if extension.Id.String() == oidSubjectAltName {
			return errors.New("it has alternative names")
		}
	}
	if len(c.Chain) == 0 || len(c.Chain) > maxChain {
		return fmt.Errorf("a chain of %d certificates", len(c.Chain))
	}
	intermediates := x509.NewCertPool()
	for _, der := range c.Chain {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parsing its chain: %w", err)
		}
		intermediates.AddCert(ca)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("its chain: %w", err)
	}
	return nil
}

// template is the profile of a device's certificate (RFC 5280): all that is in it comes from here, bar the
// issuer's name and key identifier.
func (a Approved) template(claim Claim) *x509.Certificate {
	fingerprint := a.key.Fingerprint()
	return &x509.Certificate{
		SerialNumber:          claim.Serial.Int(),
		Subject:               pkix.Name{CommonName: a.device.String()},
		NotBefore:             claim.NotBefore,
		NotAfter:              claim.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,             // and not a CA
		SubjectKeyId:          fingerprint[:20], // RFC 7093, 2, method 4
	}
}
