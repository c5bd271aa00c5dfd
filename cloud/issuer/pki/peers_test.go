package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	pcatypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"secretfree/cloud/issuer/ca"
)

// missing skips a test that needs a peer, and fails it in CI.
func missing(t *testing.T, message string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(message + ", and in CI this peer must be there")
	}
	t.Skip(message)
}

// deviceUnder is a certificate as an issuer gives it, by the key of a region.
func deviceUnder(t *testing.T, issuing *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	subject := pkix.Name{CommonName: "4d1f8e27b3c05a9e61f2d47788aabbcc"}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: newSerial(), Subject: subject, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(day),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}, issuing, &key.PublicKey, key)
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c
}

// A local region is a folder for an issuer, and what is signed there is
// believed up to the root: by Go, and by OpenSSL with the lists.
func TestProfiles(t *testing.T) {
	dir, w := t.TempDir(), newTestEnv(t)
	w.pca.pending = 0
	c := testConfig(dir, w)
	c.Plan.Issuing = 900 * day
	run(t, c)
	x := open(t, c, nil)
	defer x.Close()

	passphrase := filepath.Join(t.TempDir(), "passphrase")
	must(t, os.WriteFile(passphrase, []byte(testPassphrases["regions/us-east-1/issuing"]), 0o600))
	authority, err := ca.OpenLocal(ca.LocalConfig{Dir: x.path("regions/us-east-1"), PassphraseFile: passphrase})
	must(t, err)
	root, err := x.authority(RootKey)
	must(t, err)
	line, err := x.authority(LineKey)
	must(t, err)
	if !authority.Root().Equal(root) {
		t.Error("the issuer trusts another root")
	}
	signer, err := x.c.Keys.Open("regions/us-east-1/issuing")
	must(t, err)
	here, err := x.issuing(c.Plan.Regions[0])
	must(t, err)
	europe, err := x.issuing(c.Plan.Regions[1])
	must(t, err)
	device := deviceUnder(t, here, signer.(*ecdsa.PrivateKey))
	deviceEurope := deviceUnder(t, europe, w.pca.key)

	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, c := range []*x509.Certificate{line, here, europe} {
		between.AddCert(c)
	}
	for _, d := range []*x509.Certificate{device, deviceEurope} {
		chains, err := d.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil || len(chains) != 1 || len(chains[0]) != 4 {
			t.Errorf("%d chains, %v", len(chains), err)
		}
	}
	for name, c := range map[string]*x509.Certificate{"line": line, "here": here, "europe": europe} {
		if !bytes.Equal(c.AuthorityKeyId, map[string]*x509.Certificate{"line": root, "here": line, "europe": line}[name].SubjectKeyId) ||
			len(c.CRLDistributionPoints) != 1 || len(c.IssuingCertificateURL) != 1 {
			t.Errorf("%s does not say where it comes from", name)
		}
	}
	if europe.Subject.CommonName != "Widgets Europe" || len(europe.DNSNames) > 0 {
		t.Error("the certificate has more of the request than its subject, or less")
	}

	openssl, err := exec.LookPath("openssl")
	if err != nil {
		missing(t, "openssl is not installed")
	}
	out := t.TempDir()
	write := func(name string, parts ...[]byte) string {
		t.Helper()
		path := filepath.Join(out, name)
		must(t, os.WriteFile(path, bytes.Join(parts, nil), 0o600))
		return path
	}
	crlPEM := func(authority string) []byte {
		der, err := os.ReadFile(x.path(crlFile(authority, 1)))
		must(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	verify := func(args ...string) {
		t.Helper()
		if said, err := exec.CommandContext(t.Context(), openssl, append([]string{"verify", "-x509_strict", "-CAfile", x.path("root.pem")}, args...)...).CombinedOutput(); err != nil {
			t.Errorf("openssl verify %v: %v\n%s", args, err, said)
		}
	}
	for _, region := range []struct {
		name   string
		device *x509.Certificate
	}{{"us-east-1", device}, {"europe", deviceEurope}} {
		chain := write(region.name+"-chain.pem", certificatePEM(line), mustRead(t, x.path("regions/"+region.name+"/issuing.pem")))
		verify("-purpose", "sslclient", "-untrusted", chain, write(region.name+"-device.pem", certificatePEM(region.device)))
		verify("-crl_check_all", "-CRLfile", write("crls.pem", crlPEM(RootKey), crlPEM(LineKey)), "-untrusted", x.path("line.pem"), x.path("regions/"+region.name+"/issuing.pem"))
	}
	verify("-purpose", "ocsphelper", "-untrusted", write("ocsp-chain.pem", certificatePEM(line), certificatePEM(here)), x.path("regions/us-east-1/ocsp.pem"))
	text, err := exec.CommandContext(t.Context(), openssl, "x509", "-in", x.path("regions/us-east-1/ocsp.pem"), "-noout", "-text").Output()
	must(t, err)
	for _, want := range []string{"OCSP Signing", "OCSP No Check"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("OpenSSL sees no %s in the responder's certificate", want)
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

// With the SDK's own clients, against a server that is not ours.
func TestMoto(t *testing.T) {
	const env = "SECRETFREE_MOTO_ENDPOINT"
	endpoint := os.Getenv(env)
	if endpoint == "" {
		missing(t, env+" is not set: run this under .ci/peers.sh run")
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	ctx, dir := t.Context(), t.TempDir()
	clients := AWS{PCAEndpoint: endpoint, IoTEndpoint: endpoint, S3Endpoint: endpoint}
	loaded, err := load(ctx, "eu-west-1")
	must(t, err)
	pca := acmpca.NewFromConfig(loaded, func(o *acmpca.Options) { o.BaseEndpoint = aws.String(endpoint) })
	created, err := pca.CreateCertificateAuthority(ctx, &acmpca.CreateCertificateAuthorityInput{CertificateAuthorityType: pcatypes.CertificateAuthorityTypeSubordinate,
		CertificateAuthorityConfiguration: &pcatypes.CertificateAuthorityConfiguration{KeyAlgorithm: pcatypes.KeyAlgorithmRsa2048, SigningAlgorithm: pcatypes.SigningAlgorithmSha256withrsa,
			Subject: &pcatypes.ASN1Subject{CommonName: aws.String("Widgets Europe"), Organization: aws.String("Widgets")}}})
	must(t, err)
	c := Config{Dir: dir, Plan: testPlan(), Keys: testKeys(dir), Clients: clients, Operator: "the tests"}
	c.Plan.CRL.Bucket = "crl-" + serialText(newSerial())
	// This server tells nothing of auto registration, whatever was asked for.
	c.Plan.Regions[1].ARN, c.Plan.Regions[1].AutoRegistration, c.Plan.Regions[1].Template = *created.CertificateAuthorityArn, false, ""
	objects, err := clients.S3(ctx, "us-east-1")
	must(t, err)
	_, err = objects.(*s3.Client).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(c.Plan.CRL.Bucket)})
	must(t, err)
	x := open(t, c, nil)
	must(t, x.Run(ctx))

	europe, err := x.issuing(c.Plan.Regions[1])
	must(t, err)
	for _, region := range []string{"us-east-1", "eu-west-1"} {
		core, err := clients.IoT(ctx, region)
		must(t, err)
		step := map[string]string{"us-east-1": "regions/us-east-1/register", "eu-west-1": "regions/europe/register"}[region]
		_, err = core.DescribeCACertificate(ctx, &iot.DescribeCACertificateInput{CertificateId: aws.String(x.journal.made(step).AWS["ca_certificate_id"])})
		must(t, err)
	}

	// What was done and not noted is found again: the journal is cut where the
	// network begins.
	name := filepath.Join(dir, journalFile)
	must(t, x.Close())
	lines := bytes.SplitAfter(mustRead(t, name), []byte("\n"))
	must(t, os.WriteFile(name, bytes.Join(lines[:10], nil), 0o600))
	x = open(t, c, nil)
	must(t, x.Run(ctx))
	again, err := x.issuing(c.Plan.Regions[1])
	must(t, err)
	if !again.Equal(europe) {
		t.Error("another certificate was signed")
	}

	must(t, x.Revoke("europe", "superseded"))
	must(t, x.Run(ctx))
	b := bucket{objects, c.Plan.CRL.Bucket}
	der, _, err := b.get(ctx, "crl/line.crl")
	must(t, err)
	line, err := x.authority(LineKey)
	must(t, err)
	if crl, err := parseCRL(der, line); err != nil || crl.Number != 2 || len(crl.Serials) != 1 {
		t.Errorf("the list is %+v, %v", crl, err)
	}
	if none, _, err := b.get(ctx, "none"); err != nil || none != nil {
		t.Errorf("what is not there: %q, %v", none, err)
	}
	noSecrets(t, tree(t, dir), testKeys(dir))
}
