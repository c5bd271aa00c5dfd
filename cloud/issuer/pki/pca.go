package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	pcatypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"
)

// PCA is what is called of ACM Private CA; *acmpca.Client has it.
type PCA interface {
	Installer
	Signer
}

// Installer gives a CA its certificate.
type Installer interface {
	GetCertificateAuthorityCsr(context.Context, *acmpca.GetCertificateAuthorityCsrInput, ...func(*acmpca.Options)) (*acmpca.GetCertificateAuthorityCsrOutput, error)
	GetCertificateAuthorityCertificate(context.Context, *acmpca.GetCertificateAuthorityCertificateInput, ...func(*acmpca.Options)) (*acmpca.GetCertificateAuthorityCertificateOutput, error)
	ImportCertificateAuthorityCertificate(context.Context, *acmpca.ImportCertificateAuthorityCertificateInput, ...func(*acmpca.Options)) (*acmpca.ImportCertificateAuthorityCertificateOutput, error)
}

// Signer has a CA sign.
type Signer interface {
	IssueCertificate(context.Context, *acmpca.IssueCertificateInput, ...func(*acmpca.Options)) (*acmpca.IssueCertificateOutput, error)
	GetCertificate(context.Context, *acmpca.GetCertificateInput, ...func(*acmpca.Options)) (*acmpca.GetCertificateOutput, error)
}

const (
	// patience for a certificate that was asked for. Private CA takes seconds.
	patience = 2 * time.Minute

	maxChain = 8
)

// privateCA is one CA in ACM Private CA.
type privateCA struct {
	PCA
	arn string
}

func (x *Ceremony) pca(ctx context.Context, r Region) (privateCA, error) {
	if x.c.Clients == nil {
		return privateCA{}, errors.New("the plan has something in AWS, and there are no clients for it")
	}
	client, err := x.c.Clients.PCA(ctx, r.location())
	return privateCA{client, r.ARN}, err
}

func (p privateCA) request(ctx context.Context) ([]byte, error) {
	out, err := p.GetCertificateAuthorityCsr(ctx, &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: aws.String(p.arn)})
	if err != nil {
		return nil, fmt.Errorf("fetching the request of %s: %w", p.arn, err)
	}
	return []byte(aws.ToString(out.Csr)), nil
}

// installed says whether the CA has this certificate and chain. It errs if it
// has others.
func (p privateCA) installed(ctx context.Context, issuing *x509.Certificate, chain []*x509.Certificate) (bool, error) {
	out, err := p.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: aws.String(p.arn)})
	_, waiting := errors.AsType[*pcatypes.InvalidStateException](err)
	_, none := errors.AsType[*pcatypes.ResourceNotFoundException](err)
	if waiting || none {
		return false, nil // the import tells them apart, should the CA itself not be there
	}
	if err != nil {
		return false, fmt.Errorf("reading the certificate of %s: %w", p.arn, err)
	}
	c, err := parseCertificate([]byte(aws.ToString(out.Certificate)))
	if err != nil || !c.Equal(issuing) {
		return false, fmt.Errorf("%s has another certificate: %w", p.arn, errConflict)
	}
	there, err := parseChain([]byte(aws.ToString(out.CertificateChain)))
	if err != nil || !slices.EqualFunc(there, chain, (*x509.Certificate).Equal) {
		return false, fmt.Errorf("%s has another chain: %w", p.arn, errConflict)
	}
	return true, nil
}

func parseChain(text []byte) (chain []*x509.Certificate, err error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return chain, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if chain = append(chain, c); len(chain) > maxChain {
			return nil, errors.New("too long a chain")
		}
		text = rest
	}
}

func (p privateCA) install(ctx context.Context, issuing *x509.Certificate, chain []*x509.Certificate) error {
	var text []byte
	for _, c := range chain {
		text = append(text, certificatePEM(c)...)
	}
	_, err := p.ImportCertificateAuthorityCertificate(ctx, &acmpca.ImportCertificateAuthorityCertificateInput{
		CertificateAuthorityArn: aws.String(p.arn), Certificate: certificatePEM(issuing), CertificateChain: text})
	if err != nil {
		return fmt.Errorf("importing the certificate into %s: %w", p.arn, err)
	}
	return nil
}

// ask has the CA sign a request for one day. The token is that of the request:
// asked twice in a few minutes, it signs once.
func (p privateCA) ask(ctx context.Context, request []byte, issuing *x509.Certificate) (arn string, err error) {
	var algorithm pcatypes.SigningAlgorithm
	switch public := issuing.PublicKey.(type) {
	case *rsa.PublicKey:
		algorithm = pcatypes.SigningAlgorithmSha256withrsa
	case *ecdsa.PublicKey:
		if algorithm = pcatypes.SigningAlgorithmSha256withecdsa; public.Curve == elliptic.P384() {
			algorithm = pcatypes.SigningAlgorithmSha384withecdsa
		}
	default:
		return "", fmt.Errorf("%s has a key that this cannot sign with", p.arn)
	}
	out, err := p.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: aws.String(p.arn), Csr: request, SigningAlgorithm: algorithm, IdempotencyToken: aws.String(digest(request)[:32]),
		TemplateArn: aws.String("arn:aws:acm-pca:::template/EndEntityCertificate/V1"),
		Validity:    &pcatypes.Validity{Type: pcatypes.ValidityPeriodTypeDays, Value: aws.Int64(int64(proofValidity / (24 * time.Hour)))}})
	if err != nil {
		return "", fmt.Errorf("asking %s for a certificate: %w", p.arn, err)
	}
	if aws.ToString(out.CertificateArn) == "" {
		return "", fmt.Errorf("%s gave a certificate without a name", p.arn)
	}
	return *out.CertificateArn, nil
}

func (p privateCA) answer(ctx context.Context, arn string) (*x509.Certificate, error) {
	out, err := acmpca.NewCertificateIssuedWaiter(p).WaitForOutput(ctx, &acmpca.GetCertificateInput{
		CertificateAuthorityArn: aws.String(p.arn), CertificateArn: aws.String(arn)}, patience)
	if err != nil {
		return nil, fmt.Errorf("waiting for the certificate %s: %w", arn, err)
	}
	return parseCertificate([]byte(aws.ToString(out.Certificate)))
}
