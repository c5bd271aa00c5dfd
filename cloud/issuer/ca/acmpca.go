package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"secretfree/cloud/awsconfig"
	"secretfree/cloud/issuer"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
)

// The templates of ACM PCA that give a device's certificate with a subject that
// is ours.
const (
	// PCAClientAuth is the default. What its certificates are for is fixed at
	// AWS, so that a policy of IAM can hold an issuer to it; it always allows
	// the key to encipher keys too, which means nothing for an elliptic curve.
	PCAClientAuth = "EndEntityClientAuthCertificate_APIPassthrough/V1"
	// PCABlank leaves to the issuer what a certificate is for, and so gives the
	// same extensions as a local CA.
	PCABlank = "BlankEndEntityCertificate_CriticalBasicConstraints_APIPassthrough/V1"
)

const (
	// pcaTokenWindow is how long after the first call of an attempt its token
	// is used again. AWS forgets it after five minutes.
	pcaTokenWindow = 4 * time.Minute
	pcaWait        = 20 * time.Second // for a certificate that was asked for
	pcaFirstDelay  = 200 * time.Millisecond
	pcaMaxDelay    = 2 * time.Second
)

// What ACM PCA says when asking again does not help.
var (
	errMalformedCSR = errors.New("the CA cannot read the request, or its signature")
	errCAState      = errors.New("the CA is not active: enable or renew it")
)

// ACMPCAConfig names a private CA of ACM PCA. On its ARN it needs
// acm-pca:IssueCertificate (with the condition that acm-pca:TemplateArn is the
// template's), acm-pca:GetCertificate and acm-pca:RevokeCertificate.
type ACMPCAConfig struct {
	ARN string // of the CA
	// Roots are the trust anchors. The CA is not asked for them, because then
	// it would vouch for itself.
	Roots            []*x509.Certificate
	Template         string // PCAClientAuth if empty, or PCABlank
	SigningAlgorithm string // of the CA's own key: SHA256WITHECDSA if empty; see acmpca/types.SigningAlgorithm
	Region           string // empty: that of the ARN
	Endpoint         string // empty for AWS's own

	test awsTest
}

// ACMPCA signs at ACM PCA. For one claim it gives one certificate, except where
// the answer to a request was lost and nobody asked again for four minutes:
// then AWS has made one more, which never left it. It is made by OpenACMPCA.
type ACMPCA struct {
	client    *acmpca.Client
	arn       string
	template  string // ARN
	algorithm types.SigningAlgorithm
	profile   issuer.Profile
	blank     bool
}

// OpenACMPCA checks the configuration and makes the client. It makes no call.
func OpenACMPCA(ctx context.Context, c ACMPCAConfig) (*ACMPCA, error) {
	fail := func(format string, a ...any) (*ACMPCA, error) {
		return nil, fmt.Errorf("CA in ACM PCA: "+format, a...)
	}
	name, err := arn.Parse(c.ARN)
	if err != nil || name.Service != "acm-pca" || !strings.HasPrefix(name.Resource, "certificate-authority/") || strings.Count(name.Resource, "/") != 1 {
		return fail("%.200q is not the ARN of a certificate authority", c.ARN)
	}
	if len(c.Roots) == 0 {
		return fail("no root certificate: nothing that it returns could be checked")
	}
	if c.Template == "" {
		c.Template = PCAClientAuth
	}
	if c.Template != PCAClientAuth && c.Template != PCABlank {
		return fail("the template %.100q: want %s or %s; others take the subject from the request, or are not for devices", c.Template, PCAClientAuth, PCABlank)
	}
	algorithm := types.SigningAlgorithmSha256withecdsa
	if c.SigningAlgorithm != "" {
		algorithm = ""
		for _, known := range algorithm.Values() {
			if string(known) == c.SigningAlgorithm {
				algorithm = known
			}
		}
		if algorithm == "" {
			return fail("the signing algorithm %.40q: want one of %v", c.SigningAlgorithm, algorithm.Values())
		}
	}
	if c.Region == "" {
		c.Region = name.Region
	}
	if c.Region != name.Region {
		return fail("it is in region %s, not in %s", name.Region, c.Region)
	}
	loaded, _, err := awsconfig.Load(ctx, c.Region)
	if err != nil {
		return fail("%w", err)
	}
	ca := &ACMPCA{
		arn: c.ARN, algorithm: algorithm, blank: c.Template == PCABlank,
		template: "arn:" + name.Partition + ":acm-pca:::template/" + c.Template,
		profile:  issuer.Profile{Roots: c.Roots},
		client: acmpca.NewFromConfig(loaded, func(o *acmpca.Options) {
			o.HTTPSignerV4 = awsconfig.Signer{}
			if c.Endpoint != "" {
				o.BaseEndpoint = aws.String(c.Endpoint)
			}
			if c.test.http != nil {
				o.HTTPClient = c.test.http
			}
		}),
	}
	if !ca.blank {
		ca.profile.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	return ca, nil
}

// Profile is that of the interface CA.
func (ca *ACMPCA) Profile() issuer.Profile { return ca.profile }

// pcaMemo is what is known of the claim's request to ACM PCA.
type pcaMemo struct {
	Version int    `json:"version"`
	Attempt int    `json:"attempt"`       // from 1; each has an idempotency token of its own
	Started string `json:"started"`       // before its first call; like pcaTime
	ARN     string `json:"arn,omitempty"` // of the certificate, once it is known
	started time.Time
}

const pcaMemoVersion = 1

// Object identifiers of X.520.
const (
	oidCommonName   = "2.5.4.3"
	oidOrganization = "2.5.4.10"
)

// pcaTime is the form of times in the state of a claim.
const pcaTime = "2006-01-02T15:04:05Z"

func (m pcaMemo) text() string {
	m.Version = pcaMemoVersion
	m.Started = m.started.UTC().Format(pcaTime)
	text, _ := json.Marshal(m) // strings and numbers
	return string(text)
}

func parsePCAMemo(text string) (pcaMemo, error) {
	var m pcaMemo
	if text == "" {
		return m, nil
	}
	err := json.Unmarshal([]byte(text), &m)
	if err == nil {
		m.started, err = time.Parse(pcaTime, m.Started)
	}
	if err != nil || m.text() != text || m.Attempt < 1 {
		return pcaMemo{}, fmt.Errorf("%w: the memo is not one of ACM PCA: %.200q", issuer.ErrBadClaim, text)
	}
	return m, nil
}

// Issue is that of the interface CA. It waits for the certificate, for up to 20
// seconds.
func (ca *ACMPCA) Issue(ctx context.Context, approved issuer.Approved, claim issuer.Claim, memo issuer.CAState) (issuer.Certificate, error) {
	if err := claim.Covers(approved); err != nil {
		return issuer.Certificate{}, err
	}
	first := memo.Read() == ""
	m, err := parsePCAMemo(memo.Read())
	if err != nil {
		return issuer.Certificate{}, err
	}
	if m.ARN == "" {
		now := time.Now().UTC().Truncate(time.Second)
		if age := now.Sub(m.started); m.Attempt == 0 || age < 0 || age >= pcaTokenWindow {
			m = pcaMemo{Attempt: m.Attempt + 1, started: now}
			if err := memo.Write(ctx, m.text()); err != nil {
				return issuer.Certificate{}, err
			}
		}
		if m.ARN, err = ca.request(ctx, approved, claim, m.Attempt); err != nil {
			if first && refusedRequest(err) {
				// Nothing was ever made for this claim: it may be made anew, as
				// the policy is then.
				return issuer.Certificate{}, errors.Join(err, memo.Write(ctx, ""))
			}
			return issuer.Certificate{}, err
		}
		if err := memo.Write(ctx, m.text()); err != nil {
			return issuer.Certificate{}, err
		}
	}
	certificate, err := ca.wait(ctx, m.ARN)
	if _, failed := errors.AsType[*types.RequestFailedException](err); failed {
		// It will never be there. The next to ask makes another request, in an
		// attempt of its own.
		return issuer.Certificate{}, errors.Join(err, memo.Write(ctx, pcaMemo{Attempt: m.Attempt, started: time.Unix(0, 0)}.text()))
	}
	return certificate, err
}

// refusedRequest reports whether ACM PCA has surely made nothing, because of
// what the request says.
func refusedRequest(err error) bool {
	return slices.Contains([]string{"ValidationException", "InvalidArgsException", "MalformedCSRException"}, awsconfig.Code(err))
}

// pcaToken is the idempotency token of an attempt: 32 characters, of at most 36.
func pcaToken(claim issuer.Claim, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", claim.ID(), claim.Serial, attempt))
	return hex.EncodeToString(sum[:16])
}

// request asks for the certificate of a claim and returns its ARN.
func (ca *ACMPCA) request(ctx context.Context, approved issuer.Approved, claim issuer.Claim, attempt int) (string, error) {
	absolute := func(t time.Time) *types.Validity {
		return &types.Validity{Type: types.ValidityPeriodTypeAbsolute, Value: aws.Int64(t.Unix())}
	}
	pass := &types.ApiPassthrough{Subject: &types.ASN1Subject{CommonName: aws.String(approved.Device().String())}}
	if claim.Org != "" {
		// As custom attributes they keep this order.
		pass.Subject = &types.ASN1Subject{CustomAttributes: []types.CustomAttribute{
			{ObjectIdentifier: aws.String(oidOrganization), Value: aws.String(claim.Org)},
			{ObjectIdentifier: aws.String(oidCommonName), Value: aws.String(approved.Device().String())},
		}}
	}
	if ca.blank {
		pass.Extensions = &types.Extensions{
			KeyUsage:         &types.KeyUsage{DigitalSignature: true},
			ExtendedKeyUsage: []types.ExtendedKeyUsage{{ExtendedKeyUsageType: types.ExtendedKeyUsageTypeClientAuth}},
		}
	}
	if claim.AltName != "" {
		if pass.Extensions == nil {
			pass.Extensions = &types.Extensions{}
		}
		name := types.GeneralName{DnsName: aws.String(claim.AltName)}
		if strings.HasPrefix(claim.AltName, "urn:") {
			name = types.GeneralName{UniformResourceIdentifier: aws.String(claim.AltName)}
		}
		pass.Extensions.SubjectAlternativeNames = []types.GeneralName{name}
	}
	out, err := ca.client.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: aws.String(ca.arn),
		Csr:                     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: approved.CSR()}),
		SigningAlgorithm:        ca.algorithm,
		TemplateArn:             aws.String(ca.template),
		ApiPassthrough:          pass,
		IdempotencyToken:        aws.String(pcaToken(claim, attempt)),
		ValidityNotBefore:       absolute(claim.NotBefore),
		Validity:                absolute(claim.NotAfter),
	})
	if err != nil {
		return "", pcaFault("asking ACM PCA for a certificate", err)
	}
	if aws.ToString(out.CertificateArn) == "" || len(*out.CertificateArn) > issuer.MaxCAState/2 {
		return "", errors.New("asking ACM PCA for a certificate: the answer holds no ARN")
	}
	return *out.CertificateArn, nil
}

// wait waits until a certificate that was asked for is there.
func (ca *ACMPCA) wait(ctx context.Context, arn string) (issuer.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, pcaWait)
	defer cancel()
	for delay := pcaFirstDelay; ; delay = min(2*delay, pcaMaxDelay) {
		out, err := ca.client.GetCertificate(ctx, &acmpca.GetCertificateInput{
			CertificateAuthorityArn: aws.String(ca.arn), CertificateArn: aws.String(arn),
		})
		if err == nil {
			return ca.certificate(aws.ToString(out.Certificate), aws.ToString(out.CertificateChain))
		}
		if _, pending := errors.AsType[*types.RequestInProgressException](err); !pending {
			return issuer.Certificate{}, pcaFault("fetching the certificate from ACM PCA", err)
		}
		select {
		case <-ctx.Done():
			return issuer.Certificate{}, fmt.Errorf("fetching the certificate from ACM PCA: it is still being made: %w", context.Cause(ctx))
		case <-time.After(delay/2 + rand.N(delay)):
		}
	}
}

// certificate reads what ACM PCA answers, and ends the chain with the root if
// it does not.
func (ca *ACMPCA) certificate(leaf, chain string) (issuer.Certificate, error) {
	c, err := issuer.ParseCertificate([]byte(leaf), []byte(chain))
	if err == nil && (c.Leaf == nil || len(c.Chain) == 0) {
		err = errors.New("it or its chain is missing")
	}
	if err != nil {
		return issuer.Certificate{}, fmt.Errorf("fetching the certificate from ACM PCA: %w", err)
	}
	top, err := x509.ParseCertificate(c.Chain[len(c.Chain)-1])
	if err != nil {
		return issuer.Certificate{}, fmt.Errorf("fetching the certificate from ACM PCA: its chain: %w", err)
	}
	for _, root := range ca.profile.Roots {
		if !bytes.Equal(top.Raw, root.Raw) && top.CheckSignatureFrom(root) == nil && len(c.Chain) < issuer.MaxChain {
			c.Chain = append(c.Chain, root.Raw)
			break
		}
	}
	return c, nil
}

var pcaReasons = map[issuer.Reason]types.RevocationReason{
	issuer.Unspecified: types.RevocationReasonUnspecified, issuer.KeyCompromise: types.RevocationReasonKeyCompromise,
	issuer.AffiliationChanged: types.RevocationReasonAffiliationChanged, issuer.Superseded: types.RevocationReasonSuperseded,
	issuer.CessationOfOperation: types.RevocationReasonCessationOfOperation,
}

// Revoke is that of the interface CA. AWS writes the revocation list, about
// half an hour later. A certificate that was asked for and never fetched is
// fetched first.
func (ca *ACMPCA) Revoke(ctx context.Context, issuance issuer.Issuance, reason issuer.Reason) error {
	m, err := parsePCAMemo(issuance.CAState)
	if err != nil {
		return err
	}
	certificate := issuance.Certificate
	if certificate == nil {
		if m.ARN == "" {
			return nil // nothing was answered, and so nothing left AWS
		}
		fetched, err := ca.wait(ctx, m.ARN)
		if _, failed := errors.AsType[*types.RequestFailedException](err); failed {
			return nil
		}
		if err != nil {
			return err
		}
		certificate = &fetched
	}
	leaf, err := x509.ParseCertificate(certificate.Leaf)
	if err != nil {
		return fmt.Errorf("revoking at ACM PCA: %w", err)
	}
	_, err = ca.client.RevokeCertificate(ctx, &acmpca.RevokeCertificateInput{
		CertificateAuthorityArn: aws.String(ca.arn), CertificateSerial: aws.String(colonHex(leaf.SerialNumber.Bytes())),
		RevocationReason: pcaReasons[reason],
	})
	if _, done := errors.AsType[*types.RequestAlreadyProcessedException](err); err != nil && !done {
		return pcaFault("revoking at ACM PCA", err)
	}
	return nil
}

// colonHex is a number as openssl and ACM PCA write it.
func colonHex(number []byte) string {
	return strings.ReplaceAll(fmt.Sprintf("% x", number), " ", ":")
}

func pcaFault(doing string, err error) error {
	fault := awsconfig.Fault(doing, err)
	if _, ok := errors.AsType[*types.MalformedCSRException](err); ok {
		return fmt.Errorf("%w: %w", errMalformedCSR, fault)
	}
	if _, ok := errors.AsType[*types.InvalidStateException](err); ok {
		return fmt.Errorf("%w: %w", errCAState, fault)
	}
	return fault
}
