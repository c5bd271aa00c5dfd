package issuer

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"secretfree/station/board"
)

// CertificateCheck compares the certificates of one CA with their claims. Any
// number of callers may use it at once.
type CertificateCheck struct {
	profile Profile
	trust   *trust
}

// NewCertificateCheck is for the certificates of a CA with a profile.
func NewCertificateCheck(profile Profile) *CertificateCheck {
	return &CertificateCheck{profile: profile, trust: newTrust(profile.Roots)}
}

// Check compares a certificate with its claim, field by field, and verifies its
// chain up to a root of the profile.
func (k *CertificateCheck) Check(c Certificate, claim Claim, now time.Time) error {
	leaf, err := x509.ParseCertificate(c.Leaf)
	if err != nil {
		return fmt.Errorf("parsing it: %w", err)
	}
	key, err := board.NewKey(leaf.PublicKey, leaf.RawSubjectPublicKeyInfo)
	if err != nil || key.Fingerprint() != claim.Fingerprint {
		return errors.New("it has another key")
	}
	if leaf.IsCA {
		return errors.New("it is a CA's")
	}
	if len(c.Chain) > MaxChain {
		return fmt.Errorf("a chain of %d certificates", len(c.Chain))
	}
	if k.profile.CAControlled {
		return verifyForeign(leaf, claim, now)
	}
	subject, err := asn1.Marshal(claim.Subject().ToRDNSequence())
	if err != nil {
		return fmt.Errorf("encoding the subject: %w", err)
	}
	if !sameSubject(leaf.RawSubject, subject) {
		return errors.New("its subject is not the device's")
	}
	if !leaf.NotBefore.Equal(claim.NotBefore) || !leaf.NotAfter.Equal(claim.NotAfter) {
		return fmt.Errorf("it is valid from %v to %v, want %v to %v", leaf.NotBefore, leaf.NotAfter, claim.NotBefore, claim.NotAfter)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature|k.profile.KeyUsage {
		return errors.New("its key may be used for more, or for less, than signatures")
	}
	if len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(leaf.UnknownExtKeyUsage) > 0 {
		return errors.New("it is not for client authentication alone")
	}
	if !hasAltName(leaf, claim.AltName) {
		return errors.New("it has other alternative names than its claim")
	}
	return k.trust.verify(leaf, c.Chain, now)
}

// foreignName is the subject that AWS IoT Core gives where it takes none from a
// request.
const foreignName = "AWS IoT Certificate"

func verifyForeign(leaf *x509.Certificate, claim Claim, now time.Time) error {
	if name := leaf.Subject.CommonName; name != claim.Device.String() && name != foreignName {
		return errors.New("its subject is another's")
	}
	if now.Before(leaf.NotBefore) || !now.Before(leaf.NotAfter) {
		return fmt.Errorf("it is valid from %v to %v, and not now", leaf.NotBefore, leaf.NotAfter)
	}
	return nil
}

// attribute is one AttributeTypeAndValue of a distinguished name. The value
// stays raw, because decoders fold the string types into one.
type attribute struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

type relativeNameSET []attribute // the suffix tells encoding/asn1 that it is a SET OF

// sameSubject compares two distinguished names, but not the string types of
// their values: CAs choose these.
func sameSubject(a, b []byte) bool {
	var x, y []relativeNameSET
	if rest, err := asn1.Unmarshal(a, &x); err != nil || len(rest) > 0 {
		return false
	}
	if rest, err := asn1.Unmarshal(b, &y); err != nil || len(rest) > 0 {
		return false
	}
	return slices.EqualFunc(x, y, func(x, y relativeNameSET) bool {
		return slices.EqualFunc(x, y, func(x, y attribute) bool {
			return x.Type.Equal(y.Type) && bytes.Equal(x.Value.Bytes, y.Value.Bytes)
		})
	})
}
