package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/cloud/awsconfig"
	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
)

// pcaTest is one claim at a fake of ACM PCA.
type pcaTest struct {
	fake   *fakePCA
	faults *faults
	ca     *ACMPCA
	a      issuer.Approved
	claim  issuer.Claim
	memo   *issuertest.MemCAState
}

// onPCA runs a test with a clock of its own.
func onPCA(t *testing.T, test func(t *testing.T, p *pcaTest)) {
	t.Helper()
	awsEnvironment(t)
	synctest.Test(t, func(t *testing.T) {
		p := &pcaTest{fake: newFakePCA(t), memo: &issuertest.MemCAState{}, a: issuertest.Approved(t)}
		var config ACMPCAConfig
		config, p.faults = p.fake.config(t)
		var err error
		if p.ca, err = OpenACMPCA(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		p.claim = issuertest.NewClaim(t, p.a)
		test(t, p)
	})
}

func (p *pcaTest) issue(t *testing.T) (issuer.Certificate, error) {
	t.Helper()
	return p.ca.Issue(t.Context(), p.a, p.claim, p.memo)
}

func (p *pcaTest) mustIssue(t *testing.T) issuer.Certificate {
	t.Helper()
	c, err := p.issue(t)
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, p.ca, c, p.claim)
	return c
}

// Each call fails in each way, once or for a whole request; within the window
// there is one certificate.
func TestPCAWeather(t *testing.T) {
	for name, f := range fates {
		for _, operation := range []string{"IssueCertificate", "GetCertificate"} {
			for _, n := range []int{1, 3} {
				t.Run(name+" "+operation, func(t *testing.T) {
					onPCA(t, func(t *testing.T, p *pcaTest) {
						p.faults.lose(operation, f, n)
						_, err := p.issue(t)
						if (err != nil) != (n == 3) {
							t.Errorf("%d faults: %v", n, err)
						}
						p.faults.clear()
						p.mustIssue(t)
						if p.fake.count() != 1 {
							t.Errorf("%d certificates for one claim", p.fake.count())
						}
					})
				})
			}
		}
	}
}

// An answer that was lost long ago does not block the claim. AWS has then made
// one more, which nobody has.
func TestPCATokenWindow(t *testing.T) {
	for _, test := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {pcaTokenWindow - time.Minute, 1}, {pcaTokenWindow, 2}, {24 * time.Hour, 2}} {
		onPCA(t, func(t *testing.T, p *pcaTest) {
			p.faults.lose("IssueCertificate", lostAnswer, -1)
			if _, err := p.issue(t); err == nil {
				t.Fatal("no answer, and no error")
			}
			time.Sleep(test.after) // of the test's own clock
			p.faults.clear()
			first := p.mustIssue(t)
			if p.fake.count() != test.want {
				t.Errorf("after %v: %d certificates, want %d", test.after, p.fake.count(), test.want)
			}
			time.Sleep(48 * time.Hour)
			if again := p.mustIssue(t); !issuertest.Equal(first, again) {
				t.Error("the ARN is known, and the certificate is another")
			}
		})
	}
}

// The memo is written before the first call of an attempt; if that fails,
// nothing was asked for.
func TestPCAMemoFirst(t *testing.T) {
	onPCA(t, func(t *testing.T, p *pcaTest) {
		p.memo.Fail = func(string) error { return issuer.ErrCAStateChanged }
		if _, err := p.issue(t); !errors.Is(err, issuer.ErrCAStateChanged) {
			t.Errorf("got %v", err)
		}
		if n := p.faults.count("IssueCertificate"); n != 0 {
			t.Errorf("%d calls without a memo", n)
		}
		p.memo.Fail = func(text string) error { // only the ARN is lost
			if strings.Contains(text, "arn:") {
				return issuertest.ErrInjected
			}
			return nil
		}
		if _, err := p.issue(t); !errors.Is(err, issuertest.ErrInjected) {
			t.Errorf("got %v", err)
		}
		p.memo.Fail = nil
		p.mustIssue(t)
		if p.fake.count() != 1 {
			t.Errorf("%d certificates", p.fake.count())
		}
	})
}

func TestPCAMemoDamaged(t *testing.T) {
	onPCA(t, func(t *testing.T, p *pcaTest) {
		p.mustIssue(t)
		good := p.memo.Text
		for _, text := range []string{
			"x", good + " ", "{}", strings.Replace(good, `"version":1`, `"version":2`, 1), strings.Replace(good, `"attempt":1`, `"attempt":0`, 1),
			strings.Replace(good, "{", `{"more":1,`, 1), strings.Replace(good, "Z", "+00:00", 1),
		} {
			p.memo.Text = text
			if _, err := p.issue(t); !errors.Is(err, issuer.ErrBadClaim) || !strings.Contains(err.Error(), "the memo is not one of ACM PCA") {
				t.Errorf("%s: %v", text, err)
			}
			if err := p.ca.Revoke(t.Context(), issuer.Issuance{CAState: text}, issuer.Unspecified); !errors.Is(err, issuer.ErrBadClaim) {
				t.Errorf("revoking, %s: %v", text, err)
			}
		}
	})
}

func FuzzPCAMemo(f *testing.F) {
	f.Add(`{"version":1,"attempt":1,"started":"2026-11-24T10:20:30Z"}`)
	f.Add(`{"version":1,"attempt":2,"started":"2026-11-24T10:20:30Z","arn":"arn:aws:acm-pca:us-east-1:1:certificate-authority/1/certificate/2"}`)
	f.Fuzz(func(t *testing.T, text string) {
		if m, err := parsePCAMemo(text); err == nil && text != "" && m.text() != text {
			t.Errorf("%q is read, and written as %q", text, m.text())
		}
		if m, err := parseIoTMemo(text); err == nil && text != "" && m.text() != text {
			t.Errorf("%q is read, and written as %q", text, m.text())
		}
	})
}

// A certificate that takes too long is waited for, but not for ever; the next
// request goes on waiting.
func TestPCAWaitIsBounded(t *testing.T) {
	onPCA(t, func(t *testing.T, p *pcaTest) {
		p.fake.pending = 30 * time.Second
		start := time.Now()
		_, err := p.issue(t)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "still being made") || time.Since(start) != pcaWait {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if n := p.faults.count("GetCertificate"); n < 8 || n > 40 {
			t.Errorf("asked %d times in %v", n, pcaWait)
		}
		p.mustIssue(t)
		if p.fake.count() != 1 {
			t.Errorf("%d certificates", p.fake.count())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, err := p.ca.Issue(ctx, p.a, issuertest.NewClaim(t, p.a), &issuertest.MemCAState{}); err == nil || time.Since(start) != time.Second {
			t.Errorf("a caller with a second: %v after %v", err, time.Since(start))
		}
	})
}

// A request that fails at AWS after it was accepted is made again, in another
// attempt.
func TestPCARequestFailed(t *testing.T) {
	onPCA(t, func(t *testing.T, p *pcaTest) {
		p.fake.failing = true
		_, err := p.issue(t)
		if _, failed := errors.AsType[*types.RequestFailedException](err); !failed {
			t.Errorf("got %v", err)
		}
		p.fake.failing = false
		p.mustIssue(t)
	})
}

func TestPCARefusals(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(p *pcaTest)
		is    error
		want  string
	}{
		{"disabled", func(p *pcaTest) { p.fake.disabled = true }, errCAState, "InvalidStateException"},
		{"broken signature", func(p *pcaTest) { p.fake.spoilt = true }, errMalformedCSR, "MalformedCSRException"},
		{"outlives the CA", func(p *pcaTest) { p.claim.NotAfter = p.fake.ca.NotAfter.Add(time.Second) }, nil, "exceeds the certificate authority validity"},
		{"unknown CA", func(p *pcaTest) { p.ca.arn += "0" }, nil, "ResourceNotFoundException"},
		{"unknown certificate", func(p *pcaTest) {
			p.memo.Text = pcaMemo{Attempt: 1, started: p.claim.Created, ARN: "arn:other"}.text()
		}, nil, "ResourceNotFoundException"},
		{"throttled for long", func(p *pcaTest) { p.faults.lose("IssueCertificate", throttled, -1) }, nil, "ThrottlingException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			onPCA(t, func(t *testing.T, p *pcaTest) {
				test.spoil(p)
				_, err := p.issue(t)
				if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if p.fake.count() != 0 {
					t.Error("a certificate was made")
				}
			})
		})
	}
}

// What the CA refuses because of the claim leaves no memo: the claim may be
// made anew, as the policy is then. Once it was asked for something, it stays.
func TestPCARefusesTheClaim(t *testing.T) {
	onPCA(t, func(t *testing.T, p *pcaTest) {
		good := p.claim
		p.claim.NotAfter = p.fake.ca.NotAfter.Add(time.Second)
		if _, err := p.issue(t); err == nil || p.memo.Text != "" {
			t.Errorf("%v, and the memo is %q", err, p.memo.Text)
		}
		p.claim = good
		p.faults.lose("IssueCertificate", lostAnswer, -1)
		if _, err := p.issue(t); err == nil || p.memo.Text == "" {
			t.Errorf("%v, and the memo is %q", err, p.memo.Text)
		}
		p.faults.clear()
		noted := p.memo.Text
		p.claim.NotAfter = p.fake.ca.NotAfter.Add(time.Second)
		if _, err := p.issue(t); err == nil || p.memo.Text != noted {
			t.Errorf("%v, and the memo is %q", err, p.memo.Text)
		}
		p.claim = good
		p.mustIssue(t)
	})
}

func TestPCARevokes(t *testing.T) {
	for reason, want := range pcaReasons {
		onPCA(t, func(t *testing.T, p *pcaTest) {
			c := p.mustIssue(t)
			i := issuer.Issuance{Claim: p.claim, CAState: p.memo.Text, Certificate: &c}
			p.faults.lose("RevokeCertificate", lostAnswer, 1)
			if err := p.ca.Revoke(t.Context(), i, reason); err != nil {
				t.Fatal(err)
			}
			for _, issued := range p.fake.issued {
				if issued.revoked != string(want) {
					t.Errorf("revoked because of %q, want %q", issued.revoked, want)
				}
			}
			p.fake.set(func() { clear(p.fake.issued) })
			if err := p.ca.Revoke(t.Context(), i, reason); err == nil || !strings.Contains(err.Error(), "ResourceNotFoundException") {
				t.Errorf("one that the CA does not know: %v", err)
			}
		})
	}
}

func TestColonHex(t *testing.T) {
	if got := colonHex(big.NewInt(0x01f00a).Bytes()); got != "01:f0:0a" {
		t.Errorf("got %s", got)
	}
}

func TestOpenACMPCARefuses(t *testing.T) {
	awsEnvironment(t)
	fake := newFakePCA(t)
	for _, test := range []struct {
		spoil func(c *ACMPCAConfig)
		want  string
	}{
		{func(c *ACMPCAConfig) { c.ARN = "main" }, "not the ARN of a certificate authority"},
		{func(c *ACMPCAConfig) { c.ARN += "/certificate/1" }, "not the ARN of a certificate authority"},
		{func(c *ACMPCAConfig) { c.ARN = strings.Replace(c.ARN, "acm-pca", "acm", 1) }, "not the ARN of a certificate authority"},
		{func(c *ACMPCAConfig) { c.Roots = nil }, "no root certificate"},
		{func(c *ACMPCAConfig) { c.Template = "EndEntityClientAuthCertificate/V1" }, "others take the subject from the request"},
		{func(c *ACMPCAConfig) { c.Template = "EndEntityCertificate_APIPassthrough/V1" }, "not for devices"},
		{func(c *ACMPCAConfig) { c.SigningAlgorithm = "SHA1WITHRSA" }, "want one of [SHA256WITHECDSA"},
		{func(c *ACMPCAConfig) { c.Region = "eu-west-1" }, "in region us-east-1, not in eu-west-1"},
	} {
		config, _ := fake.config(t)
		test.spoil(&config)
		if _, err := OpenACMPCA(t.Context(), config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
}

// moto proves the shape of the requests, and that the chain of a CA under an
// offline root verifies. It ignores validity and template: the issuer refuses
// what it makes.
func TestPCAOnMoto(t *testing.T) {
	endpoint := motoEndpoint(t)
	fake := newFakePCA(t) // for its root
	loaded, _, err := awsconfig.Load(t.Context(), testRegion)
	if err != nil {
		t.Fatal(err)
	}
	client := acmpca.NewFromConfig(loaded, func(o *acmpca.Options) { o.BaseEndpoint = aws.String(endpoint) })
	created, err := client.CreateCertificateAuthority(t.Context(), &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityType: types.CertificateAuthorityTypeSubordinate,
		CertificateAuthorityConfiguration: &types.CertificateAuthorityConfiguration{
			KeyAlgorithm: types.KeyAlgorithmEcPrime256v1, SigningAlgorithm: types.SigningAlgorithmSha256withecdsa,
			Subject: &types.ASN1Subject{CommonName: aws.String("Issuing"), Organization: aws.String("Widgets")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := client.GetCertificateAuthorityCsr(t.Context(), &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: created.CertificateAuthorityArn})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificateRequest(mustPEM(t, *csr.Csr))
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), RawSubject: parsed.RawSubject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}, fake.root, parsed.PublicKey, fake.rootKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.ImportCertificateAuthorityCertificate(t.Context(), &acmpca.ImportCertificateAuthorityCertificateInput{
		CertificateAuthorityArn: created.CertificateAuthorityArn,
		Certificate:             issuer.Certificate{Leaf: issuing}.LeafPEM(), CertificateChain: issuer.Certificate{Leaf: fake.root.Raw}.LeafPEM(),
	}); err != nil {
		t.Fatal(err)
	}
	ca, err := OpenACMPCA(t.Context(), ACMPCAConfig{
		ARN: *created.CertificateAuthorityArn, Roots: []*x509.Certificate{fake.root}, SigningAlgorithm: "SHA512WITHRSA", Endpoint: endpoint,
	})
	if err != nil {
		t.Fatal(err)
	}
	a, memo := issuertest.Approved(t), &issuertest.MemCAState{}
	claim := issuertest.NewClaim(t, a)
	first, err := ca.Issue(t.Context(), a, claim, memo)
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Chain) != 2 || !bytes.Equal(first.Chain[0], issuing) || !bytes.Equal(first.Chain[1], fake.root.Raw) {
		t.Errorf("a chain of %d", len(first.Chain))
	}
	if again, err := ca.Issue(t.Context(), a, claim, memo); err != nil || !issuertest.Equal(first, again) {
		t.Errorf("again: %v", err)
	}
	refused := func(c issuer.Certificate, claim issuer.Claim, want string) {
		t.Helper()
		if err := verify(ca, c, claim); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	refused(first, claim, "it is valid from ")
	// Were the validity right, the usage would still be wrong.
	leaf, err := x509.ParseCertificate(first.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	claim.NotBefore, claim.NotAfter = leaf.NotBefore, leaf.NotAfter
	refused(first, claim, "its key may be used for more, or for less, than signatures")
	ca.template = "arn:aws:acm-pca:::template/EndEntityCertificate/V1"
	second, err := ca.Issue(t.Context(), a, claim, &issuertest.MemCAState{})
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err = x509.ParseCertificate(second.Leaf); err != nil {
		t.Fatal(err)
	}
	claim.NotBefore, claim.NotAfter = leaf.NotBefore, leaf.NotAfter
	refused(second, claim, "it is not for client authentication alone")
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool(fake.root), Intermediates: pool(mustParse(t, second.Chain[0]))}); err != nil {
		t.Errorf("its chain: %v", err)
	}
	for range 2 {
		if err := ca.Revoke(t.Context(), issuer.Issuance{Claim: claim, CAState: memo.Text, Certificate: &first}, issuer.KeyCompromise); err != nil {
			t.Error(err)
		}
	}
}

func mustPEM(t *testing.T, text string) []byte {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) > 0 {
		t.Fatalf("not one PEM block of a request: %q", text)
	}
	return block.Bytes
}

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func pool(certificates ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}
