// Package ca has the certificate authorities of an issuer: a local one (key in
// an encrypted file or in AWS KMS), ACM Private CA and AWS IoT Core, and the
// registrar that makes certificates known to AWS IoT Core.
//
// Start reading at Local, which is the smallest.
package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/keyfile"
)

// The files of a local CA. The root's key is needed only to make another
// issuing CA: take it offline.
const (
	rootCertificateFile    = "root.pem"
	rootKeyFile            = "root.key"
	issuingCertificateFile = "issuing.pem"
	chainFile              = "chain.pem" // the CAs between the two, from the issuing one's up; absent where there are none
	issuingKeyFile         = "issuing.key"
)

// LocalInit says how to make a local CA.
type LocalInit struct {
	Dir  string // must not exist, or be empty
	Name string // in the common names of the root and the issuing CA; at most 48 bytes of printable ASCII
	// Organization and Country (two capital letters) stand in the subjects of
	// both, unless they are empty.
	Organization, Country string
	// Passphrase encrypts the issuing key, RootPassphrase the root's key. If
	// RootPassphrase is empty both take Passphrase.
	Passphrase     []byte
	RootPassphrase []byte
	RootValidity   time.Duration // 0 means 30 years
	Validity       time.Duration // of the issuing CA; 0 means 20 years. It must outlast the devices' certificates

	Iterations int // of PBKDF2; 0 means 600 000, and only tests want others
}

// InitLocal makes a root and an issuing CA, both ECDSA P-256, in a folder of
// their own. The keys are encrypted PKCS #8 (RFC 5958; PBES2 of RFC 8018), as
// `openssl pkey` reads them. All files appear at once and are durable when it
// returns; an existing folder that is not empty is refused and left as it is.
func InitLocal(init LocalInit) error {
	if len(init.Passphrase) == 0 {
		return errors.New("making a CA: the passphrase is empty; a CA's key is never kept in the clear")
	}
	if len(init.Name) == 0 || len(init.Name) > 48 {
		return fmt.Errorf("making a CA: a name of %d bytes, want 1 to 48", len(init.Name))
	}
	for _, c := range []byte(init.Name) {
		if c < ' ' || c > '~' {
			return errors.New("making a CA: its name is not printable ASCII")
		}
	}
	if len(init.Organization) > 64 || strings.ContainsFunc(init.Organization, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("making a CA: its organization is not at most 64 characters of printable ASCII")
	}
	if init.Country != "" && (len(init.Country) != 2 || strings.Trim(init.Country, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "") {
		return fmt.Errorf("making a CA: the country %.20q is not two capital letters, as in ISO 3166", init.Country)
	}
	if len(init.RootPassphrase) == 0 {
		init.RootPassphrase = init.Passphrase
	}
	if init.RootValidity == 0 {
		init.RootValidity = 30 * 365 * 24 * time.Hour
	}
	if init.Validity == 0 {
		init.Validity = 20 * 365 * 24 * time.Hour
	}
	if init.Validity < time.Hour || init.Validity > init.RootValidity {
		return fmt.Errorf("making a CA: a validity of %v under a root of %v, want an hour or more and no more than the root's", init.Validity, init.RootValidity)
	}
	files, err := newLocalCA(init, time.Now())
	if err != nil {
		return fmt.Errorf("making a CA: %w", err)
	}
	if err := keyfile.WriteFolder(init.Dir, files); err != nil {
		return fmt.Errorf("making a CA: %w", err)
	}
	return nil
}

func newLocalCA(init LocalInit, now time.Time) (map[string][]byte, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	issuingKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	notBefore := now.UTC().Add(-5 * time.Minute).Truncate(time.Second)
	ca := func(name string, validity time.Duration, pathLen int, public *ecdsa.PublicKey) (*x509.Certificate, error) {
		spki, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return nil, err
		}
		keyID := sha256.Sum256(spki)
		var serial issuer.Serial
		_, _ = rand.Read(serial[:]) // never fails (crypto/rand)
		subject := pkix.Name{CommonName: name}
		if init.Organization != "" {
			subject.Organization = []string{init.Organization}
		}
		if init.Country != "" {
			subject.Country = []string{init.Country}
		}
		return &x509.Certificate{
			SerialNumber: serial.Int(), Subject: subject,
			NotBefore: notBefore, NotAfter: notBefore.Add(validity).Truncate(time.Second),
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
			MaxPathLen: pathLen, MaxPathLenZero: pathLen == 0, SubjectKeyId: keyID[:20],
		}, nil
	}
	root, err := ca(init.Name+" Root CA", init.RootValidity, 1, &rootKey.PublicKey)
	if err != nil {
		return nil, err
	}
	issuing, err := ca(init.Name+" Issuing CA", init.Validity, 0, &issuingKey.PublicKey)
	if err != nil {
		return nil, err
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	issuingDER, err := x509.CreateCertificate(rand.Reader, issuing, root, &issuingKey.PublicKey, rootKey)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		rootCertificateFile:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}),
		issuingCertificateFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issuingDER}),
	}
	if files[rootKeyFile], err = keyfile.Encrypt(rootKey, init.RootPassphrase, init.Iterations); err != nil {
		return nil, err
	}
	if files[issuingKeyFile], err = keyfile.Encrypt(issuingKey, init.Passphrase, init.Iterations); err != nil {
		return nil, err
	}
	return files, nil
}

// Local signs with a key in memory, or with a signer that keeps it elsewhere.
// It is made by OpenLocal.
type Local struct {
	key     crypto.Signer // of an ECDSA key
	issuing *x509.Certificate
	chain   []*x509.Certificate // between the two, from the issuing one's up
	root    *x509.Certificate

	responder       *responder // of OCSP; nil if the issuing CA answers itself
	crlURL, ocspURL string
}

// LocalConfig says where a local CA is. Only root.pem, issuing.pem and
// issuing.key need to be there, and chain.pem where the root did not sign the
// issuing CA itself.
type LocalConfig struct {
	Dir            string
	PassphraseFile string // see keyfile.Passphrase
	// Signer has the issuing CA's key, if issuing.key has not: a *KMSSigner.
	// Certificates of one claim then have one serial number but differ in their
	// signatures.
	Signer crypto.Signer
	// Keyless opens the certificates alone, for who checks and revokes. It
	// signs nothing.
	Keyless bool
	// CRLURL and OCSPURL stand in every certificate, if they are not empty:
	// where others find out whether it is revoked. To change them changes what
	// a claim that was cut short is signed with.
	CRLURL, OCSPURL string
}

// OpenLocal reads and checks what InitLocal wrote, or a folder like it.
func OpenLocal(config LocalConfig) (*Local, error) {
	ca := &Local{key: config.Signer, crlURL: config.CRLURL, ocspURL: config.OCSPURL}
	var err error
	var passphrase []byte
	if !config.Keyless && (ca.key == nil || config.PassphraseFile != "") { // with a signer, for the responder's key
		if passphrase, err = keyfile.Passphrase(config.PassphraseFile); err != nil {
			return nil, fmt.Errorf("opening the CA: %w", err)
		}
	}
	if ca.root, err = keyfile.Certificate(filepath.Join(config.Dir, rootCertificateFile)); err != nil {
		return nil, fmt.Errorf("opening the CA: %w", err)
	}
	if ca.issuing, err = keyfile.Certificate(filepath.Join(config.Dir, issuingCertificateFile)); err != nil {
		return nil, fmt.Errorf("opening the CA: %w", err)
	}
	if ca.chain, err = keyfile.Chain(filepath.Join(config.Dir, chainFile)); err != nil {
		return nil, fmt.Errorf("opening the CA: %w", err)
	}
	where := "of the signer"
	if config.Keyless {
		ca.key = keyless{ca.issuing.PublicKey}
	}
	if ca.key == nil {
		where = "in " + issuingKeyFile
		if ca.key, err = keyfile.Read(filepath.Join(config.Dir, issuingKeyFile), passphrase); err != nil {
			return nil, fmt.Errorf("opening the CA: %w", err)
		}
	}
	if public, ok := ca.key.Public().(*ecdsa.PublicKey); !ok || !public.Equal(ca.issuing.PublicKey) {
		return nil, fmt.Errorf("opening the CA: the key %s is not that of the certificate in %s", where, issuingCertificateFile)
	}
	if !ca.issuing.IsCA || ca.issuing.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("opening the CA: the certificate in %s is not that of a CA", issuingCertificateFile)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	between := x509.NewCertPool()
	for _, certificate := range ca.chain {
		between.AddCert(certificate)
	}
	paths, err := ca.issuing.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("opening the CA: %s under %s: %w", issuingCertificateFile, rootCertificateFile, err)
	}
	// What is sent with a certificate is this chain, in this order.
	whole := ca.Chain()
	if !slices.ContainsFunc(paths, func(path []*x509.Certificate) bool { return slices.EqualFunc(path, whole, (*x509.Certificate).Equal) }) {
		return nil, fmt.Errorf("opening the CA: %s does not hold just the CAs between %s and %s, each before the one that signed it",
			chainFile, issuingCertificateFile, rootCertificateFile)
	}
	if config.Keyless {
		return ca, nil
	}
	if ca.responder, err = readResponder(config, passphrase, ca.issuing); err != nil {
		return nil, fmt.Errorf("opening the CA: its responder of OCSP: %w", err)
	}
	return ca, nil
}

// HasKey is false if ca was opened without its key.
func (ca *Local) HasKey() bool {
	_, without := ca.key.(keyless)
	return !without
}

// keyless stands for a key that is elsewhere.
type keyless struct{ public crypto.PublicKey }

func (k keyless) Public() crypto.PublicKey { return k.public }

func (keyless) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errKeyless }

var errKeyless = errors.New("the CA was opened without its key")

// Root is the trust anchor of all that ca signs.
func (ca *Local) Root() *x509.Certificate { return ca.root }

// Issuing is the certificate of the issuing CA.
func (ca *Local) Issuing() *x509.Certificate { return ca.issuing }

// Signer is the issuing CA's key, for what is signed in ctx.
func (ca *Local) Signer(ctx context.Context) crypto.Signer {
	if inKMS, ok := ca.key.(*KMSSigner); ok {
		return inKMS.in(ctx)
	}
	return ca.key
}

// Chain is that of the interface Chained.
func (ca *Local) Chain() []*x509.Certificate {
	return slices.Concat([]*x509.Certificate{ca.issuing}, ca.chain, []*x509.Certificate{ca.root})
}

// NotAfter is when the issuing CA expires; no certificate outlives it.
func (ca *Local) NotAfter() time.Time { return ca.issuing.NotAfter }

// Issue signs the certificate of the claim. For one claim the bytes are always
// the same: nothing in it is chosen here, and the signature is deterministic
// (RFC 6979), unless a signer of the configuration makes it.
func (ca *Local) Issue(ctx context.Context, approved issuer.Approved, claim issuer.Claim, _ issuer.CAState) (issuer.Certificate, error) {
	if err := claim.Covers(approved); err != nil {
		return issuer.Certificate{}, err
	}
	if claim.Serial == (issuer.Serial{}) {
		return issuer.Certificate{}, errors.New("the claim has no serial")
	}
	if claim.NotAfter.After(ca.issuing.NotAfter) {
		return issuer.Certificate{}, fmt.Errorf("the certificate would outlive the issuing CA (%s); make a new one, or shorten the policy's validity",
			ca.issuing.NotAfter.Format(time.DateOnly))
	}
	template := template(approved, claim)
	if ca.crlURL != "" {
		template.CRLDistributionPoints = []string{ca.crlURL}
	}
	if ca.ocspURL != "" {
		template.OCSPServer = []string{ca.ocspURL}
	}
	switch {
	case strings.HasPrefix(claim.AltName, "urn:"):
		name, err := url.Parse(claim.AltName)
		if err != nil {
			return issuer.Certificate{}, fmt.Errorf("the alternative name of the claim: %w", err)
		}
		template.URIs = []*url.URL{name}
	case claim.AltName != "":
		template.DNSNames = []string{claim.AltName}
	}
	leaf, err := x509.CreateCertificate(nil, template, ca.issuing, approved.Key().Public(), ca.Signer(ctx))
	if err != nil {
		return issuer.Certificate{}, fmt.Errorf("signing the certificate: %w", err)
	}
	out := issuer.Certificate{Leaf: leaf}
	for _, certificate := range ca.Chain() {
		out.Chain = append(out.Chain, certificate.Raw)
	}
	return out, nil
}

// Profile is that of the interface CA.
func (ca *Local) Profile() issuer.Profile { return issuer.Profile{Roots: []*x509.Certificate{ca.root}} }

// Revoke is that of the interface CA. There is nothing to do: the next
// revocation list is made from the claims.
func (ca *Local) Revoke(context.Context, issuer.Issuance, issuer.Reason) error { return nil }

// template is the profile of a device's certificate (RFC 5280): all that is in
// it comes from here, bar the issuer's name and key identifier.
func template(approved issuer.Approved, claim issuer.Claim) *x509.Certificate {
	fingerprint := approved.Key().Fingerprint()
	return &x509.Certificate{
		SerialNumber:          claim.Serial.Int(),
		Subject:               claim.Subject(),
		NotBefore:             claim.NotBefore,
		NotAfter:              claim.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,             // and not a CA
		SubjectKeyId:          fingerprint[:20], // RFC 7093, 2, method 4
	}
}
