package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"secretfree/station/board/certreq"
)

const (
	// backdate is how long before it was signed a certificate begins, for
	// clocks that are slow.
	backdate = 5 * time.Minute

	pathRoot, pathLine, pathIssuing = 2, 1, 0

	proofValidity = 24 * time.Hour // of a verification certificate

	certificateType = "CERTIFICATE"
	requestType     = "CERTIFICATE REQUEST"
)

var oidNoCheck = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5} // id-pkix-ocsp-nocheck

func newSerial() *big.Int {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // never fails (crypto/rand)
	return new(big.Int).SetBytes(serial)
}

func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}

// profile is what a certificate has to be.
type profile struct {
	subject    []byte // DER of the name
	public     crypto.PublicKey
	parent     *x509.Certificate // nil: it signs itself
	validity   time.Duration
	pathLength int // of a CA
	responder  bool
	proof      bool // that somebody holds the CA's key
	crl, aia   string
}

func (p profile) ca() bool { return !p.responder && !p.proof }

func nameDER(name pkix.Name) ([]byte, error) { return asn1.Marshal(name.ToRDNSequence()) }

// sign makes the DER. A parent that does not last as long is errOutlives.
func (p profile) sign(signer crypto.Signer, now time.Time) ([]byte, error) {
	id, err := keyID(p.public)
	if err != nil {
		return nil, err
	}
	notBefore := now.UTC().Add(-backdate).Truncate(time.Second)
	notAfter := now.UTC().Truncate(time.Second).Add(p.validity)
	if p.parent != nil {
		if notBefore.Before(p.parent.NotBefore) {
			notBefore = p.parent.NotBefore
		}
		if notAfter.After(p.parent.NotAfter) && !p.ca() {
			notAfter = p.parent.NotAfter // a short one, of no weight
		}
		if !now.Before(p.parent.NotAfter) || notAfter.After(p.parent.NotAfter) {
			return nil, fmt.Errorf("a certificate until %s under %q, which ends on %s: %w; shorten its validity in the plan", notAfter.Format(time.DateOnly),
				p.parent.Subject.CommonName, p.parent.NotAfter.Format(time.DateOnly), errOutlives)
		}
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(), RawSubject: p.subject, NotBefore: notBefore, NotAfter: notAfter,
		BasicConstraintsValid: true, SubjectKeyId: id, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if p.ca() {
		template.IsCA, template.MaxPathLen, template.MaxPathLenZero = true, p.pathLength, p.pathLength == 0
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if p.responder {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
		template.ExtraExtensions = []pkix.Extension{{Id: oidNoCheck, Value: asn1.NullBytes}}
	}
	if p.crl != "" {
		template.CRLDistributionPoints = []string{p.crl}
	}
	if p.aia != "" {
		template.IssuingCertificateURL = []string{p.aia}
	}
	parent := p.parent
	if parent == nil {
		parent = template
	}
	return x509.CreateCertificate(rand.Reader, template, parent, p.public, signer)
}

// check says in what a certificate is not of the profile, with an error that
// wraps errConflict or errOutlives. The validity is only checked to lie within
// the parent's: a plan may have changed it since.
func (p profile) check(c *x509.Certificate, now time.Time) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: the certificate of %q: %s", errConflict, c.Subject.CommonName, fmt.Sprintf(format, args...))
	}
	parent := p.parent
	if parent == nil {
		parent = c
	}
	if !bytes.Equal(c.RawSubject, p.subject) {
		return wrong("its subject is another than planned")
	}
	if !sameKey(c.PublicKey, p.public) {
		return wrong("its key is another")
	}
	if !bytes.Equal(c.RawIssuer, parent.RawSubject) || c.CheckSignatureFrom(parent) != nil {
		return wrong("%q did not sign it", parent.Subject.CommonName)
	}
	if now.After(c.NotAfter) {
		return wrong("it ended on %s", c.NotAfter.Format(time.DateOnly))
	}
	if p.proof {
		return nil // by whatever template the CA has; it is looked at once
	}
	if c.NotAfter.After(parent.NotAfter) || c.NotBefore.Before(parent.NotBefore) {
		return fmt.Errorf("the certificate of %q: %w", c.Subject.CommonName, errOutlives)
	}
	if bits := c.SerialNumber.BitLen(); bits > 128 || bits < 64 {
		return wrong("its serial has %d bits", bits)
	}
	if !c.BasicConstraintsValid || c.IsCA != p.ca() || p.ca() && (c.MaxPathLen != p.pathLength || c.MaxPathLenZero != (p.pathLength == 0)) {
		return wrong("its basic constraints are others than planned")
	}
	usage, extended := x509.KeyUsageCertSign|x509.KeyUsageCRLSign, []x509.ExtKeyUsage(nil)
	if p.responder {
		usage, extended = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
		if !slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidNoCheck) }) {
			return wrong("it does not say that nobody need ask after it")
		}
	}
	if c.KeyUsage != usage || !slices.Equal(c.ExtKeyUsage, extended) || len(c.UnknownExtKeyUsage) > 0 {
		return wrong("its key usage is another than planned")
	}
	return nil
}

func sameKey(a, b crypto.PublicKey) bool {
	equal, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && equal.Equal(b)
}

// describe is what the journal says of a certificate.
func describe(c *x509.Certificate) *Certificate {
	key := c.PublicKeyAlgorithm.String()
	switch public := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		key = public.Curve.Params().Name
	case *rsa.PublicKey:
		key = fmt.Sprintf("RSA-%d", public.N.BitLen())
	}
	return &Certificate{
		Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: serialText(c.SerialNumber), Fingerprint: digest(c.Raw), Key: key,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), CA: c.IsCA, PathLength: max(c.MaxPathLen, 0),
	}
}

func serialText(n *big.Int) string { return fmt.Sprintf("%032x", n) }

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: c.Raw})
}

func onePEM(text []byte, label string) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != label || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("it is not one PEM block %s", label)
	}
	return block.Bytes, nil
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	der, err := onePEM(text, certificateType)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// parseRequest reads and checks the request of a CA: its signature, its key,
// and that it has a name.
func parseRequest(text []byte) (*certreq.Request, error) {
	der, err := onePEM(text, requestType)
	if err != nil {
		return nil, err
	}
	request, err := certreq.Parse(der)
	if err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("its signature: %w", err)
	}
	if len(request.Subject) == 0 {
		return nil, errors.New("it has no subject, and a CA needs one")
	}
	for _, attribute := range request.Subject { // they become the CA's name as they are
		if _, ok := attribute.Text(); !ok {
			return nil, fmt.Errorf("the attribute %s of its subject is not well-formed text", attribute.Type)
		}
	}
	switch public := request.Key.(type) {
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P256() || public.Curve == elliptic.P384() {
			return request, nil
		}
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits >= 2048 && bits <= 8192 && public.E >= 65537 {
			return request, nil
		}
	}
	return nil, errors.New("its key is none of P-256, P-384, and RSA of 2048 bits or more")
}

// reasons are those of RFC 5280 that a CA's certificate can have.
var reasons = map[string]int{
	"unspecified": 0, "key-compromise": 1, "ca-compromise": 2, "affiliation-changed": 3, "superseded": 4, "cessation": 5, "privilege-withdrawn": 9,
}

// Reasons lists what Revoke takes.
func Reasons() []string {
	names := make([]string, 0, len(reasons))
	for name := range reasons {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func signCRL(number uint64, revoked []Revocation, by *x509.Certificate, signer crypto.Signer, validity time.Duration, now time.Time) ([]byte, error) {
	this := now.UTC().Truncate(time.Second)
	next := this.Add(validity)
	if next.After(by.NotAfter) {
		next = by.NotAfter
	}
	if !next.After(this) {
		return nil, fmt.Errorf("%q ended on %s and signs no more lists", by.Subject.CommonName, by.NotAfter.Format(time.DateOnly))
	}
	template := &x509.RevocationList{Number: new(big.Int).SetUint64(number), ThisUpdate: this, NextUpdate: next}
	for _, r := range revoked {
		serial, err := hex.DecodeString(r.Serial)
		if err != nil {
			return nil, err
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(serial), RevocationTime: r.Time, ReasonCode: reasons[r.Reason]})
	}
	return x509.CreateRevocationList(rand.Reader, template, by, signer)
}

func parseCRL(der []byte, by *x509.Certificate) (*CRL, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if err := list.CheckSignatureFrom(by); err != nil {
		return nil, fmt.Errorf("%w: %q did not sign it: %v", errConflict, by.Subject.CommonName, err)
	}
	if list.Number == nil || !list.Number.IsUint64() {
		return nil, fmt.Errorf("%w: its number", errConflict)
	}
	crl := &CRL{Number: list.Number.Uint64(), ThisUpdate: list.ThisUpdate.UTC(), NextUpdate: list.NextUpdate.UTC(), Serials: []string{}}
	for _, e := range list.RevokedCertificateEntries {
		crl.Serials = append(crl.Serials, serialText(e.SerialNumber))
	}
	return crl, nil
}
