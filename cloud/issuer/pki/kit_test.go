package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	pcatypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	iottypes "github.com/aws/aws-sdk-go-v2/service/iot/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	day     = 24 * time.Hour
	testARN = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testPlan has a region of each kind, and everything that can be made.
func testPlan() Plan {
	return Plan{
		Name: "Widgets", SKU: "widgiot", Root: 3000 * day, Line: 2000 * day, Issuing: 1000 * day,
		Regions: []Region{
			{Name: "us-east-1", Kind: kindLocal, IoT: true, OCSP: true},
			{Name: "europe", AWS: "eu-west-1", Kind: kindACMPCA, ARN: testARN, IoT: true, AutoRegistration: true, Template: "jitp"},
		},
		CRL:  CRLPlan{Validity: 30 * day, Bucket: "widgiot-crl", Prefix: "crl/", Region: "us-east-1"},
		URLs: URLs{RootCRL: "http://crl.example.com/root.crl", LineCRL: "http://crl.example.com/line.crl", RootCertificate: "http://crl.example.com/root.cer", LineCertificate: "http://crl.example.com/line.cer"},
	}
}

var testPassphrases = map[string]string{
	RootKey: "root: correct horse battery", LineKey: "line: correct horse battery",
	"regions/us-east-1/issuing": "region: correct horse battery", "regions/us-east-1/ocsp": "region: correct horse battery",
}

func testKeys(dir string, without ...string) *FileKeys {
	k := &FileKeys{Dir: dir, Passphrases: map[string][]byte{}, iterations: 1}
	for name, passphrase := range testPassphrases {
		k.Passphrases[name] = []byte(passphrase)
	}
	for _, name := range without {
		delete(k.Passphrases, name)
	}
	return k
}

func testConfig(dir string, w *testEnv) Config {
	return Config{Dir: dir, Plan: testPlan(), Keys: testKeys(dir), Clients: w, Operator: "the tests"}
}

// open opens a ceremony that breaks where the world does.
func open(t testing.TB, c Config, w *testEnv) *Ceremony {
	t.Helper()
	x, err := Open(c)
	must(t, err)
	if w != nil {
		x.cut = func(what string) error { return w.event(what) }
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func run(t testing.TB, c Config) {
	t.Helper()
	x := open(t, c, nil)
	must(t, x.Run(t.Context()))
	must(t, x.Close())
}

var errBroken = errors.New("broken off by the test")

// testEnv is AWS as far as a ceremony sees it. It checks what AWS checks.
type testEnv struct {
	breakAt int             // the number of the event that fails; 0: none
	broken  map[string]bool // if it is not nil, each event fails once
	events  []string

	pca     *fakePCA
	iot     map[string]*fakeIoT
	objects map[string][]byte
}

func newTestEnv(t testing.TB) *testEnv {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	w := &testEnv{iot: map[string]*fakeIoT{}, objects: map[string][]byte{}}
	w.pca = &fakePCA{w: w, key: key, subject: pkix.Name{CommonName: "Widgets Europe", Organization: []string{"Widgets"}}, pending: 1,
		tokens: map[string]string{}, issued: map[string]*x509.Certificate{}}
	for _, region := range []string{"us-east-1", "eu-west-1"} {
		w.iot[region] = &fakeIoT{w: w, region: region, code: "code-of-" + region}
	}
	return w
}

// event may be where everything breaks.
func (w *testEnv) event(what string) error {
	w.events = append(w.events, what)
	if len(w.events) == w.breakAt || w.broken != nil && !w.broken[what] {
		if w.broken != nil {
			w.broken[what] = true
		}
		return fmt.Errorf("%s: %w", what, errBroken)
	}
	return nil
}

func (w *testEnv) PCA(_ context.Context, region string) (PCA, error) {
	if region != "eu-west-1" {
		return nil, fmt.Errorf("no CA in %s", region)
	}
	return w.pca, nil
}

func (w *testEnv) IoT(_ context.Context, region string) (IoT, error) { return w.iot[region], nil }

func (w *testEnv) S3(_ context.Context, region string) (Objects, error) { return w, nil }

// call runs a remote call that may fail before it has an effect, and may lose
// its answer after it.
func call[Out any](w *testEnv, name string, do func() (*Out, error)) (*Out, error) {
	if err := w.event("request " + name); err != nil {
		return nil, err
	}
	out, err := do()
	if err != nil {
		return nil, err
	}
	if err := w.event("answer " + name); err != nil {
		return nil, err
	}
	return out, nil
}

// fakePCA is one CA in ACM Private CA.
type fakePCA struct {
	w       *testEnv
	key     *ecdsa.PrivateKey
	subject pkix.Name
	csr     func() ([]byte, error) // nil: its own

	certificate *x509.Certificate
	chain       []byte
	imports     int

	pending int               // how many times a certificate that was asked for is not ready
	tokens  map[string]string // names of certificates
	issued  map[string]*x509.Certificate
	spoil   func(*x509.Certificate) // what is done to the next template
}

func (p *fakePCA) GetCertificateAuthorityCsr(_ context.Context, in *acmpca.GetCertificateAuthorityCsrInput, _ ...func(*acmpca.Options)) (*acmpca.GetCertificateAuthorityCsrOutput, error) {
	return call(p.w, "GetCertificateAuthorityCsr", func() (*acmpca.GetCertificateAuthorityCsrOutput, error) {
		if aws.ToString(in.CertificateAuthorityArn) != testARN {
			return nil, &pcatypes.ResourceNotFoundException{}
		}
		make := p.csr
		if make == nil {
			make = func() ([]byte, error) {
				return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: p.subject, DNSNames: []string{"ask.example.com"}}, p.key)
			}
		}
		der, err := make()
		if err != nil {
			return nil, err
		}
		return &acmpca.GetCertificateAuthorityCsrOutput{Csr: aws.String(string(pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der})))}, nil
	})
}

func (p *fakePCA) GetCertificateAuthorityCertificate(context.Context, *acmpca.GetCertificateAuthorityCertificateInput, ...func(*acmpca.Options)) (*acmpca.GetCertificateAuthorityCertificateOutput, error) {
	return call(p.w, "GetCertificateAuthorityCertificate", func() (*acmpca.GetCertificateAuthorityCertificateOutput, error) {
		if p.certificate == nil {
			return nil, &pcatypes.InvalidStateException{}
		}
		return &acmpca.GetCertificateAuthorityCertificateOutput{Certificate: aws.String(string(certificatePEM(p.certificate))), CertificateChain: aws.String(string(p.chain))}, nil
	})
}

func (p *fakePCA) ImportCertificateAuthorityCertificate(_ context.Context, in *acmpca.ImportCertificateAuthorityCertificateInput, _ ...func(*acmpca.Options)) (*acmpca.ImportCertificateAuthorityCertificateOutput, error) {
	return call(p.w, "ImportCertificateAuthorityCertificate", func() (*acmpca.ImportCertificateAuthorityCertificateOutput, error) {
		p.imports++
		c, err := parseCertificate(in.Certificate)
		if err != nil {
			return nil, &pcatypes.MalformedCertificateException{}
		}
		subject, err := nameDER(p.subject)
		if err != nil {
			return nil, err
		}
		chain, err := parseChain(in.CertificateChain)
		if err != nil || len(chain) != 2 || !sameKey(c.PublicKey, &p.key.PublicKey) || !bytes.Equal(c.RawSubject, subject) ||
			c.CheckSignatureFrom(chain[0]) != nil || chain[0].CheckSignatureFrom(chain[1]) != nil || chain[1].CheckSignatureFrom(chain[1]) != nil {
			return nil, &pcatypes.CertificateMismatchException{}
		}
		p.certificate, p.chain = c, in.CertificateChain
		return &acmpca.ImportCertificateAuthorityCertificateOutput{}, nil
	})
}

func (p *fakePCA) IssueCertificate(_ context.Context, in *acmpca.IssueCertificateInput, _ ...func(*acmpca.Options)) (*acmpca.IssueCertificateOutput, error) {
	return call(p.w, "IssueCertificate", func() (*acmpca.IssueCertificateOutput, error) {
		token := aws.ToString(in.IdempotencyToken)
		if p.certificate == nil {
			return nil, &pcatypes.InvalidStateException{}
		}
		if len(token) == 0 || len(token) > 36 || in.SigningAlgorithm != pcatypes.SigningAlgorithmSha384withecdsa || in.Validity.Type != pcatypes.ValidityPeriodTypeDays {
			return nil, &pcatypes.InvalidArgsException{}
		}
		if arn, ok := p.tokens[token]; ok {
			return &acmpca.IssueCertificateOutput{CertificateArn: aws.String(arn)}, nil
		}
		request, err := parseRequest(in.Csr)
		if err != nil {
			return nil, &pcatypes.MalformedCSRException{}
		}
		template := &x509.Certificate{SerialNumber: newSerial(), RawSubject: request.RawSubject, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Duration(*in.Validity.Value) * day), KeyUsage: x509.KeyUsageDigitalSignature}
		if p.spoil != nil {
			p.spoil(template)
			p.spoil = nil
		}
		der, err := x509.CreateCertificate(rand.Reader, template, p.certificate, request.Key, p.key)
		if err != nil {
			return nil, err
		}
		arn := fmt.Sprintf("%s/certificate/%d", testARN, len(p.issued)+1)
		if p.issued[arn], err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
		p.tokens[token] = arn
		return &acmpca.IssueCertificateOutput{CertificateArn: aws.String(arn)}, nil
	})
}

func (p *fakePCA) GetCertificate(_ context.Context, in *acmpca.GetCertificateInput, _ ...func(*acmpca.Options)) (*acmpca.GetCertificateOutput, error) {
	return call(p.w, "GetCertificate", func() (*acmpca.GetCertificateOutput, error) {
		c, ok := p.issued[aws.ToString(in.CertificateArn)]
		if !ok {
			return nil, &pcatypes.ResourceNotFoundException{}
		}
		if p.pending > 0 {
			p.pending--
			return nil, &pcatypes.RequestInProgressException{}
		}
		return &acmpca.GetCertificateOutput{Certificate: aws.String(string(certificatePEM(c)))}, nil
	})
}

// fakeIoT is IoT Core in a region.
type fakeIoT struct {
	w      *testEnv
	region string
	code   string

	id       string // of the one CA that is registered
	ca       *x509.Certificate
	in       *iot.RegisterCACertificateInput
	describe func(*iot.DescribeCACertificateOutput) // what is done to an answer
	silent   bool                                   // it does not name what is there already
}

func (f *fakeIoT) GetRegistrationCode(context.Context, *iot.GetRegistrationCodeInput, ...func(*iot.Options)) (*iot.GetRegistrationCodeOutput, error) {
	return call(f.w, "GetRegistrationCode "+f.region, func() (*iot.GetRegistrationCodeOutput, error) {
		return &iot.GetRegistrationCodeOutput{RegistrationCode: aws.String(f.code)}, nil
	})
}

func (f *fakeIoT) RegisterCACertificate(_ context.Context, in *iot.RegisterCACertificateInput, _ ...func(*iot.Options)) (*iot.RegisterCACertificateOutput, error) {
	return call(f.w, "RegisterCACertificate "+f.region, func() (*iot.RegisterCACertificateOutput, error) {
		ca, err := parseCertificate([]byte(aws.ToString(in.CaCertificate)))
		if err != nil || !ca.IsCA {
			return nil, &iottypes.CertificateValidationException{Message: aws.String("the CA")}
		}
		proof, err := parseCertificate([]byte(aws.ToString(in.VerificationCertificate)))
		if err != nil || proof.Subject.CommonName != f.code {
			return nil, &iottypes.RegistrationCodeValidationException{}
		}
		if proof.CheckSignatureFrom(ca) != nil || time.Now().After(proof.NotAfter) || time.Now().Before(proof.NotBefore) {
			return nil, &iottypes.CertificateValidationException{Message: aws.String("the verification certificate")}
		}
		if f.ca != nil && f.ca.Equal(ca) {
			if f.silent {
				return nil, &iottypes.ResourceAlreadyExistsException{}
			}
			return nil, &iottypes.ResourceAlreadyExistsException{ResourceId: aws.String(f.id)}
		}
		f.ca, f.in, f.id = ca, in, digest(ca.Raw)
		return &iot.RegisterCACertificateOutput{CertificateId: aws.String(f.id)}, nil
	})
}

func (f *fakeIoT) DescribeCACertificate(_ context.Context, in *iot.DescribeCACertificateInput, _ ...func(*iot.Options)) (*iot.DescribeCACertificateOutput, error) {
	return call(f.w, "DescribeCACertificate "+f.region, func() (*iot.DescribeCACertificateOutput, error) {
		if f.ca == nil || aws.ToString(in.CertificateId) != f.id {
			return nil, &iottypes.ResourceNotFoundException{}
		}
		out := &iot.DescribeCACertificateOutput{RegistrationConfig: f.in.RegistrationConfig, CertificateDescription: &iottypes.CACertificateDescription{
			CertificateArn: aws.String("arn:aws:iot:::cacert/" + f.id), CertificateId: aws.String(f.id), CertificatePem: f.in.CaCertificate,
			Status: iottypes.CACertificateStatusInactive, CertificateMode: iottypes.CertificateModeDefault, AutoRegistrationStatus: iottypes.AutoRegistrationStatusDisable,
		}}
		if f.in.SetAsActive {
			out.CertificateDescription.Status = iottypes.CACertificateStatusActive
		}
		if f.in.AllowAutoRegistration {
			out.CertificateDescription.AutoRegistrationStatus = iottypes.AutoRegistrationStatusEnable
		}
		if f.describe != nil {
			f.describe(out)
		}
		return out, nil
	})
}

func (w *testEnv) PutObject(_ context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	return call(w, "PutObject "+*in.Key, func() (*s3.PutObjectOutput, error) {
		there, ok := w.objects[*in.Key]
		if ok && in.IfNoneMatch != nil || in.IfMatch != nil && (!ok || digest(there) != *in.IfMatch) {
			return nil, &awshttp.ResponseError{ResponseError: &smithyhttp.ResponseError{
				Response: &smithyhttp.Response{Response: &http.Response{StatusCode: http.StatusPreconditionFailed}}, Err: errors.New("PreconditionFailed")}}
		}
		if in.IfNoneMatch == nil && in.IfMatch == nil {
			return nil, errors.New("a put without a condition")
		}
		data, err := io.ReadAll(in.Body)
		if err != nil {
			return nil, err
		}
		w.objects[*in.Key] = data
		return &s3.PutObjectOutput{}, nil
	})
}

func (w *testEnv) GetObject(_ context.Context, in *s3.GetObjectInput, _ ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	return call(w, "GetObject "+*in.Key, func() (*s3.GetObjectOutput, error) {
		data, ok := w.objects[*in.Key]
		if !ok {
			return nil, &s3types.NoSuchKey{}
		}
		return &s3.GetObjectOutput{Body: io.NopCloser(bytes.NewReader(data)), ETag: aws.String(digest(data))}, nil
	})
}

// tree is all files below a folder.
func tree(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[name], err = os.ReadFile(path)
		return err
	}))
	return files
}

// noSecrets looks for private keys and passphrases in everything that was
// written or said.
func noSecrets(t testing.TB, files map[string][]byte, keys *FileKeys) {
	t.Helper()
	var secrets [][]byte
	for _, passphrase := range testPassphrases {
		secrets = append(secrets, []byte(passphrase))
	}
	for name := range maps.Keys(keys.Passphrases) {
		signer, err := keys.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		scalar, err := signer.(*ecdsa.PrivateKey).Bytes()
		must(t, err)
		der, err := x509.MarshalPKCS8PrivateKey(signer)
		must(t, err)
		text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		secrets = append(secrets, scalar, fmt.Appendf(nil, "%x", scalar), fmt.Appendf(nil, "%d", scalar), bytes.Split(text, []byte("\n"))[2])
	}
	for name, data := range files {
		for _, secret := range secrets {
			if bytes.Contains(data, secret) {
				t.Errorf("%s holds a secret", name)
			}
		}
		rest := data
		for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != certificateType && block.Type != requestType && block.Type != "ENCRYPTED PRIVATE KEY" {
				t.Errorf("%s holds %s", name, block.Type)
			}
		}
		if strings.HasPrefix(filepath.Base(name), temp) {
			t.Errorf("%s was left behind", name)
		}
	}
}
