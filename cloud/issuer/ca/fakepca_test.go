package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"secretfree/cloud/issuer"
)

// fakePCA is ACM PCA with one CA, by the rules of its API reference and of its
// user guide.
type fakePCA struct {
	root, ca *x509.Certificate
	rootKey  *ecdsa.PrivateKey
	caKey    *ecdsa.PrivateKey
	withRoot bool // in the chain

	mu       sync.Mutex // covers all below
	disabled bool
	pending  time.Duration // how long a certificate takes
	spoilt   bool          // the last byte of a request arrives changed
	failing  bool          // requests that are accepted fail later
	tokens   map[string]pcaTokenUse
	issued   map[string]*pcaIssued // by ARN
}

type pcaTokenUse struct {
	at      time.Time
	request string
	arn     string
}

type pcaIssued struct {
	leaf    []byte
	serial  string
	ready   time.Time
	failed  bool
	revoked string // the reason
}

const (
	fakeCAARN   = "arn:aws:acm-pca:us-east-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555"
	fakeTokenAt = 5 * time.Minute
)

func newFakePCA(t testing.TB) *fakePCA {
	t.Helper()
	f := &fakePCA{pending: 1500 * time.Millisecond, tokens: map[string]pcaTokenUse{}, issued: map[string]*pcaIssued{}}
	make := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(12 * 365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return certificate, key
	}
	f.root, f.rootKey = make("Fake Root", nil, nil)
	f.ca, f.caKey = make("Fake Issuing", f.root, f.rootKey)
	return f
}

func (f *fakePCA) config(t *testing.T) (ACMPCAConfig, *faults) {
	w := newFaults(f, target)
	return ACMPCAConfig{ARN: fakeCAARN, Roots: []*x509.Certificate{f.root}, test: awsTest{w}}, w
}

type pcaRequest struct {
	CertificateAuthorityArn string
	CertificateArn          string
	CertificateSerial       string
	RevocationReason        string
	Csr                     []byte
	SigningAlgorithm        string
	TemplateArn             string
	IdempotencyToken        string
	Validity                pcaValidity
	ValidityNotBefore       *pcaValidity
	ApiPassthrough          struct {
		Subject *struct {
			CommonName       string
			CustomAttributes []struct{ ObjectIdentifier, Value string }
		}
		Extensions *struct {
			KeyUsage         map[string]bool
			ExtendedKeyUsage []struct{ ExtendedKeyUsageType string }

			SubjectAlternativeNames []struct{ DnsName, UniformResourceIdentifier string }
		}
	}
}

type pcaValidity struct {
	Type  string
	Value int64
}

func (f *fakePCA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer(w, r, func(in pcaRequest) any {
		f.mu.Lock()
		defer f.mu.Unlock()
		if in.CertificateAuthorityArn != fakeCAARN {
			return badRequest("ResourceNotFoundException", "Could not find Certificate Authority.")
		}
		switch target(r) {
		case "IssueCertificate":
			return f.issue(in)
		case "GetCertificate":
			return f.get(in.CertificateArn)
		case "RevokeCertificate":
			return f.revoke(in.CertificateSerial, in.RevocationReason)
		}
		return badRequest("UnknownOperationException", target(r))
	})
}

func (f *fakePCA) issue(in pcaRequest) any {
	if f.disabled {
		return badRequest("InvalidStateException", "The certificate authority is not in a valid state for issuing certificates.")
	}
	if len(in.IdempotencyToken) > 36 {
		return badRequest("ValidationException", "1 validation error detected: Value at 'idempotencyToken' failed to satisfy constraint")
	}
	if in.SigningAlgorithm != "SHA256WITHECDSA" {
		return badRequest("ValidationException", "The signing algorithm must match the CA's key")
	}
	request, _ := json.Marshal(in)
	if use, ok := f.tokens[in.IdempotencyToken]; ok && in.IdempotencyToken != "" && time.Since(use.at) < fakeTokenAt {
		if use.request != string(request) {
			return badRequest("InvalidArgsException", "the token was used with other arguments")
		}
		return map[string]string{"CertificateArn": use.arn}
	}
	block, _ := pem.Decode(in.Csr)
	if f.spoilt && block != nil {
		block.Bytes[len(block.Bytes)-1] ^= 1
	}
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(in.Csr) > 32768 {
		return badRequest("MalformedCSRException", "The certificate signing request is invalid.")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return badRequest("MalformedCSRException", "The certificate signing request is invalid.")
	}
	template := &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), BasicConstraintsValid: true, RawSubject: csr.RawSubject, DNSNames: csr.DNSNames}
	template.SerialNumber, _ = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	name, known := strings.CutPrefix(in.TemplateArn, "arn:aws:acm-pca:::template/")
	pass := false
	switch {
	case !known:
		return badRequest("InvalidArgsException", "The template is invalid")
	case name == PCAClientAuth:
		pass = true
		fallthrough
	case name == "EndEntityClientAuthCertificate/V1":
		template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case name == PCABlank:
		pass = true
		if e := in.ApiPassthrough.Extensions; e != nil {
			if e.KeyUsage["DigitalSignature"] {
				template.KeyUsage |= x509.KeyUsageDigitalSignature
			}
			for _, usage := range e.ExtendedKeyUsage {
				if usage.ExtendedKeyUsageType == "CLIENT_AUTH" {
					template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
				}
			}
		}
	default:
		return badRequest("InvalidArgsException", "The template is invalid")
	}
	if e := in.ApiPassthrough.Extensions; pass && e != nil {
		for _, name := range e.SubjectAlternativeNames {
			if name.DnsName != "" {
				template.DNSNames = append(template.DNSNames, name.DnsName)
			}
			if name.UniformResourceIdentifier != "" {
				parsed, err := url.Parse(name.UniformResourceIdentifier)
				if err != nil {
					return badRequest("ValidationException", err.Error())
				}
				template.URIs = append(template.URIs, parsed)
			}
		}
	}
	if subject := in.ApiPassthrough.Subject; pass && subject != nil {
		if (subject.CommonName == "") == (len(subject.CustomAttributes) == 0) {
			return badRequest("ValidationException", "Custom attributes cannot be used in combination with standard attributes")
		}
		rdns := pkix.Name{CommonName: subject.CommonName}.ToRDNSequence()
		if subject.CommonName == "" {
			rdns = nil
			for _, a := range subject.CustomAttributes {
				oid := asn1.ObjectIdentifier{}
				for part := range strings.SplitSeq(a.ObjectIdentifier, ".") {
					var n int
					_, _ = fmt.Sscan(part, &n)
					oid = append(oid, n)
				}
				rdns = append(rdns, pkix.RelativeDistinguishedNameSET{{Type: oid, Value: a.Value}})
			}
		}
		template.RawSubject, _ = asn1.Marshal(rdns)
	}
	if in.ValidityNotBefore != nil {
		if in.ValidityNotBefore.Type != "ABSOLUTE" {
			return badRequest("ValidationException", "ValidityNotBefore must be ABSOLUTE")
		}
		template.NotBefore = time.Unix(in.ValidityNotBefore.Value, 0)
	}
	switch in.Validity.Type {
	case "ABSOLUTE":
		template.NotAfter = time.Unix(in.Validity.Value, 0)
	case "DAYS":
		template.NotAfter = time.Now().AddDate(0, 0, int(in.Validity.Value))
	default:
		return badRequest("ValidationException", "Validity")
	}
	if template.NotAfter.After(f.ca.NotAfter) {
		return badRequest("ValidationException", "The certificate validity specified exceeds the certificate authority validity")
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, f.ca, csr.PublicKey, f.caKey)
	if err != nil {
		return badRequest("RequestFailedException", err.Error())
	}
	arn := fakeCAARN + "/certificate/" + hex.EncodeToString(template.SerialNumber.Bytes())
	f.issued[arn] = &pcaIssued{leaf: leaf, serial: colonHex(template.SerialNumber.Bytes()), ready: time.Now().Add(f.pending), failed: f.failing}
	f.tokens[in.IdempotencyToken] = pcaTokenUse{time.Now(), string(request), arn}
	return map[string]string{"CertificateArn": arn}
}

func (f *fakePCA) get(arn string) any {
	i, ok := f.issued[arn]
	switch {
	case !ok:
		return badRequest("ResourceNotFoundException", "Could not find certificate.")
	case time.Now().Before(i.ready):
		return badRequest("RequestInProgressException", "Certificate is not ready yet.")
	case i.failed:
		return badRequest("RequestFailedException", "The request failed.")
	}
	chain := [][]byte{f.ca.Raw}
	if f.withRoot {
		chain = append(chain, f.root.Raw)
	}
	c := issuer.Certificate{Leaf: i.leaf, Chain: chain}
	return map[string]string{"Certificate": string(c.LeafPEM()), "CertificateChain": string(c.ChainPEM())}
}

func (f *fakePCA) revoke(serial, reason string) any {
	for _, i := range f.issued {
		if i.serial != serial {
			continue
		}
		if i.revoked != "" {
			return badRequest("RequestAlreadyProcessedException", "Certificate is already revoked.")
		}
		i.revoked = reason
		return map[string]string{}
	}
	return badRequest("ResourceNotFoundException", "Could not find certificate.")
}

func (f *fakePCA) count() (issued int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.issued)
}

func (f *fakePCA) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}
