package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	iottypes "github.com/aws/aws-sdk-go-v2/service/iot/types"
)

func TestPlanRefuses(t *testing.T) {
	must(t, testPlan().Check())
	for name, c := range map[string]struct {
		spoil func(p *Plan)
		key   string
	}{
		"no name":                  {func(p *Plan) { p.Name = "" }, "name"},
		"a long name":              {func(p *Plan) { p.Name = strings.Repeat("x", 25) }, "name"},
		"no sku":                   {func(p *Plan) { p.SKU = "Widgiot" }, "sku"},
		"a root of no length":      {func(p *Plan) { p.Root = 0 }, "root.days"},
		"a line beyond its root":   {func(p *Plan) { p.Line = p.Root + day }, "line.days"},
		"a region beyond its line": {func(p *Plan) { p.Issuing = p.Line + day }, "issuing.days"},
		"no list":                  {func(p *Plan) { p.CRL.Validity = 0 }, "crl.days"},
		"no bucket's name":         {func(p *Plan) { p.CRL.Bucket = "B" }, "crl.bucket"},
		"an absolute prefix":       {func(p *Plan) { p.CRL.Prefix = "/crl" }, "crl.prefix"},
		"a bucket nowhere":         {func(p *Plan) { p.CRL.Region = "" }, "crl.region"},
		"a list over https":        {func(p *Plan) { p.URLs.LineCRL = "https://x/" }, "urls.line_crl"},
		"no regions":               {func(p *Plan) { p.Regions = nil }, "region"},
		"a region's path":          {func(p *Plan) { p.Regions[0].Name = ".." }, "region[0].name"},
		"a region twice":           {func(p *Plan) { p.Regions[1].Name = "us-east-1" }, "region[1].name"},
		"an AWS region of blanks":  {func(p *Plan) { p.Regions[0].AWS = " " }, "region[0].aws_region"},
		"another kind":             {func(p *Plan) { p.Regions[0].Kind = "hsm" }, "region[0].kind"},
		"a local ARN":              {func(p *Plan) { p.Regions[0].ARN = testARN }, "region[0].arn"},
		"no ARN":                   {func(p *Plan) { p.Regions[1].ARN = "" }, "region[1].arn"},
		"an ARN elsewhere":         {func(p *Plan) { p.Regions[1].AWS = "eu-west-2" }, "region[1].arn"},
		"one CA for two":           {func(p *Plan) { r := p.Regions[1]; r.Name = "b"; p.Regions = append(p.Regions, r) }, "region[2].arn"},
		"OCSP twice":               {func(p *Plan) { p.Regions[1].OCSP = true }, "region[1].ocsp"},
		"settings for nothing":     {func(p *Plan) { p.Regions[1].IoT = false }, "region[1].iot"},
		"a template for nothing":   {func(p *Plan) { p.Regions[1].AutoRegistration = false }, "region[1].template"},
		"no template's name":       {func(p *Plan) { p.Regions[1].Template = "a b" }, "region[1].template"},
		"a long common name":       {func(p *Plan) { p.SKU = strings.Repeat("x", 50) }, "region[0].name"},
	} {
		p := testPlan()
		c.spoil(&p)
		err := p.Check()
		if wrong, ok := errors.AsType[*PlanError](err); !ok || wrong.Key != c.key {
			t.Errorf("%s: %v, want something about %s", name, err, c.key)
		}
	}
	for _, operator := range []string{"", "a\nb", strings.Repeat("x", 201)} {
		c := testConfig(t.TempDir(), nil)
		c.Operator = operator
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "operator") {
			t.Errorf("the operator %q: %v", operator, err)
		}
	}
}

// other is a self-signed CA that nobody planned.
func other(t *testing.T, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	subject, err := nameDER(pkix.Name{CommonName: name})
	must(t, err)
	der, err := profile{subject: subject, public: &key.PublicKey, validity: 3000 * day, pathLength: pathRoot}.sign(key, time.Now())
	must(t, err)
	c, err := x509.ParseCertificate(der)
	must(t, err)
	return c, key
}

// What is there already, on disk or in AWS, is not taken if it is another.
func TestRunRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		step  string // before which it is spoiled
		spoil func(t *testing.T, x *Ceremony, w *testEnv)
		want  error
		says  string
	}{
		"another root": {"root-certificate", func(t *testing.T, x *Ceremony, _ *testEnv) {
			c, _ := other(t, "Widgets Root CA")
			must(t, writeNew(x.path("root.pem"), certificatePEM(c)))
		}, errConflict, "its key is another"},
		"garbage for a root": {"root-certificate", func(t *testing.T, x *Ceremony, _ *testEnv) {
			must(t, writeNew(x.path("root.pem"), []byte("x")))
		}, nil, "not one PEM block"},
		"a root of another name": {"root-certificate", func(t *testing.T, x *Ceremony, _ *testEnv) {
			c, _ := other(t, "Gadgets Root CA")
			must(t, writeNew(x.path("root.pem"), certificatePEM(c)))
		}, errConflict, "its subject is another"},
		"a line that would outlive the root": {"line-certificate", func(*testing.T, *Ceremony, *testEnv) {
			time.Sleep(1500 * day) // of the bubble
		}, errOutlives, "Widgets Root CA"},
		"a root's key under another passphrase": {"line-certificate", func(t *testing.T, x *Ceremony, _ *testEnv) {
			x.c.Keys.(*FileKeys).open = nil
			x.c.Keys.(*FileKeys).Passphrases[RootKey] = []byte("another: staple battery")
		}, nil, "wrong passphrase"},
		"a list of another": {"crl/root/1", func(t *testing.T, x *Ceremony, _ *testEnv) {
			c, key := other(t, "Widgets Root CA")
			der, err := signCRL(1, nil, c, key, day, time.Now())
			must(t, err)
			must(t, makeDir(x.path("crl")))
			must(t, writeNew(x.path("crl/root-1.crl"), der))
		}, errConflict, "did not sign it"},
		"a list with another number": {"crl/root/1", func(t *testing.T, x *Ceremony, _ *testEnv) {
			root, err := x.authority(RootKey)
			must(t, err)
			key, err := x.c.Keys.Open(RootKey)
			must(t, err)
			der, err := signCRL(7, nil, root, key, day, time.Now())
			must(t, err)
			must(t, makeDir(x.path("crl")))
			must(t, writeNew(x.path("crl/root-1.crl"), der))
		}, errConflict, "is another"},
		"a request with a broken signature": {"regions/europe/csr", func(t *testing.T, _ *Ceremony, w *testEnv) {
			w.pca.csr = func() ([]byte, error) {
				der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: w.pca.subject}, w.pca.key)
				return bytes.Replace(der, []byte("Europe"), []byte("Africa"), 1), err
			}
		}, nil, "its signature"},
		"a request without a name": {"regions/europe/csr", func(_ *testing.T, _ *Ceremony, w *testEnv) { w.pca.subject = pkix.Name{} }, nil, "no subject"},
		"a request with a weak curve": {"regions/europe/csr", func(t *testing.T, _ *Ceremony, w *testEnv) {
			key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			must(t, err)
			w.pca.key = key
		}, nil, "none of P-256"},
		"a request in the root's name": {"regions/europe/csr", func(_ *testing.T, x *Ceremony, w *testEnv) {
			w.pca.subject = x.c.Plan.rootName()
		}, errConflict, "the name or the key of the root"},
		"another request on disk": {"regions/europe/csr", func(t *testing.T, x *Ceremony, _ *testEnv) {
			must(t, x.regionDir("regions/europe/issuing"))
			must(t, writeNew(x.path("regions/europe/issuing.csr"), []byte("x")))
		}, errConflict, "is not the request of"},
		"a CA that has another certificate": {"regions/europe/import", func(t *testing.T, _ *Ceremony, w *testEnv) {
			w.pca.certificate, _ = other(t, "Gadgets")
		}, errConflict, "has another certificate"},
		"a CA that has another chain": {"regions/europe/import", func(t *testing.T, x *Ceremony, w *testEnv) {
			c, err := x.issuing(x.c.Plan.Regions[1])
			must(t, err)
			w.pca.certificate, w.pca.chain = c, certificatePEM(c)
		}, errConflict, "has another chain"},
		"no code": {"regions/europe/verification", func(_ *testing.T, _ *Ceremony, w *testEnv) { w.iot["eu-west-1"].code = "" }, nil, "registration code"},
		"a verification certificate for another name": {"regions/europe/verification", func(t *testing.T, _ *Ceremony, w *testEnv) {
			w.pca.spoil = func(c *x509.Certificate) { c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "another"} }
		}, errConflict, "its subject is another"},
		"a CA in IoT Core that is not named": {"regions/europe/register", func(t *testing.T, x *Ceremony, w *testEnv) {
			c, err := x.issuing(x.c.Plan.Regions[1])
			must(t, err)
			w.iot["eu-west-1"].ca, w.iot["eu-west-1"].silent = c, true
		}, nil, "does not say under what name"},
		"another CA in IoT Core": {"regions/europe/register", described(func(out *iot.DescribeCACertificateOutput) {
			out.CertificateDescription.CertificatePem = aws.String("x")
		}), errConflict, "another certificate"},
		"an inactive CA in IoT Core": {"regions/europe/register", described(func(out *iot.DescribeCACertificateOutput) {
			out.CertificateDescription.Status = iottypes.CACertificateStatusInactive
		}), errConflict, "status is INACTIVE"},
		"a CA in IoT Core without a proof": {"regions/europe/register", described(func(out *iot.DescribeCACertificateOutput) {
			out.CertificateDescription.CertificateMode = iottypes.CertificateModeSniOnly
		}), errConflict, "without a proof"},
		"a CA in IoT Core without auto registration": {"regions/europe/register", described(func(out *iot.DescribeCACertificateOutput) {
			out.CertificateDescription.AutoRegistrationStatus = iottypes.AutoRegistrationStatusDisable
		}), errConflict, "auto registration is false"},
		"a CA in IoT Core with another template": {"regions/europe/register", described(func(out *iot.DescribeCACertificateOutput) {
			out.RegistrationConfig = nil
		}), errConflict, "its template is"},
		"nothing described": {"regions/europe/register", described(func(out *iot.DescribeCACertificateOutput) { out.CertificateDescription = nil }), nil, "as nothing"},
		"another list in the bucket": {"publish/root/1", func(_ *testing.T, _ *Ceremony, w *testEnv) {
			w.objects["crl/root-1.crl"] = []byte("x")
		}, errConflict, "root-1.crl is there already"},
		"a newer list in the bucket": {"publish/root/1", func(t *testing.T, x *Ceremony, w *testEnv) {
			root, err := x.authority(RootKey)
			must(t, err)
			key, err := x.c.Keys.Open(RootKey)
			must(t, err)
			w.objects["crl/root.crl"], err = signCRL(9, nil, root, key, day, time.Now())
			must(t, err)
		}, errConflict, "is list 9"},
		"a list of another in the bucket": {"publish/root/1", func(t *testing.T, x *Ceremony, w *testEnv) {
			c, key := other(t, "Widgets Root CA")
			der, err := signCRL(1, nil, c, key, day, time.Now())
			must(t, err)
			w.objects["crl/root.crl"] = der
		}, errConflict, "did not sign it"},
		"no clients": {"publish/root/1", func(_ *testing.T, x *Ceremony, _ *testEnv) { x.c.Clients = nil }, nil, "no clients"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, w := t.TempDir(), newTestEnv(t)
				x := open(t, testConfig(dir, w), nil)
				for {
					left, err := x.Left()
					must(t, err)
					if left[0].ID == c.step {
						break
					}
					must(t, x.take(t.Context(), left[0]))
				}
				imports := w.pca.imports
				c.spoil(t, x, w)
				err := x.Run(t.Context())
				step, ok := errors.AsType[*StepError](err)
				if !ok || step.Step.ID != c.step || !strings.Contains(err.Error(), c.says) || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%v, want %v at %s with %q", err, c.want, c.step, c.says)
				}
				if x.journal.made(c.step) != nil || w.pca.imports != imports {
					t.Error("it was noted, or imported, all the same")
				}
			})
		})
	}
}

func described(spoil func(*iot.DescribeCACertificateOutput)) func(*testing.T, *Ceremony, *testEnv) {
	return func(_ *testing.T, _ *Ceremony, w *testEnv) { w.iot["eu-west-1"].describe = spoil }
}

// A verification certificate that Private CA spoiled is asked for anew; so is
// one for another code, or one that has expired.
func TestVerificationIsAskedForAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		w.pca.spoil = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Minute) }
		x := open(t, testConfig(dir, w), nil)
		if err := x.Run(t.Context()); !errors.Is(err, errConflict) {
			t.Errorf("a certificate for a minute: %v", err)
		}
		for {
			left, err := x.Left()
			must(t, err)
			if left[0].ID == "regions/europe/register" {
				break
			}
			must(t, x.take(t.Context(), left[0]))
		}
		time.Sleep(2 * day) // of the bubble
		w.iot["eu-west-1"].code = "another-code"
		must(t, x.Run(t.Context()))
		if len(w.pca.issued) != 3 || w.iot["eu-west-1"].ca == nil {
			t.Errorf("%d certificates were signed", len(w.pca.issued))
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, w := t.TempDir(), newTestEnv(t)
		x := open(t, testConfig(dir, w), nil)
		if _, err := Open(testConfig(dir, w)); !errors.Is(err, errBusy) {
			t.Errorf("a second run: %v", err)
		}
		must(t, x.Run(t.Context()))
		must(t, x.Close())

		c := testConfig(dir, w)
		c.Plan.Regions[1].ARN = strings.Replace(testARN, "/1", "/9", 1)
		if _, err := Left(c); !errors.Is(err, errConflict) {
			t.Errorf("another CA for a region: %v", err)
		}
		c = testConfig(dir, w)
		c.Plan.Regions[1].Kind, c.Plan.Regions[1].ARN = kindLocal, ""
		if _, err := Left(c); !errors.Is(err, errConflict) {
			t.Errorf("another kind for a region: %v", err)
		}
		c = testConfig(dir, w)
		c.Plan.Regions[0].Kind, c.Plan.Regions[0].ARN, c.Plan.Regions[0].OCSP = kindACMPCA, strings.Replace(testARN, "eu-west-1", "us-east-1", 1), false
		if _, err := Left(c); !errors.Is(err, errConflict) {
			t.Errorf("another kind for a region with a key: %v", err)
		}
		for name, spoil := range map[string]func([]byte) []byte{
			"line.pem":                      func(text []byte) []byte { return append(text, '\n') },
			"root.key":                      func(text []byte) []byte { return append(text, '\n') },
			"crl/line-1.crl":                func([]byte) []byte { return nil },
			"regions/us-east-1/issuing.pem": func([]byte) []byte { return nil },
			journalFile:                     func(text []byte) []byte { return bytes.Replace(text, []byte("the tests"), []byte("an enemy!"), 1) },
		} {
			path := filepath.Join(dir, name)
			text, err := os.ReadFile(path)
			must(t, err)
			must(t, os.Remove(path))
			if spoiled := spoil(bytes.Clone(text)); spoiled != nil {
				must(t, os.WriteFile(path, spoiled, 0o600))
			}
			_, openErr := Open(testConfig(dir, w))
			_, leftErr := Left(testConfig(dir, w))
			if !errors.Is(openErr, errConflict) || !errors.Is(leftErr, errConflict) {
				t.Errorf("%s changed: %v, %v", name, openErr, leftErr)
			}
			must(t, os.WriteFile(path, text, 0o600))
		}
		if _, err := Open(testConfig(filepath.Join(dir, "none"), w)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no folder: %v", err)
		}
	})
}

func TestPassphrases(t *testing.T) {
	for _, weak := range []string{"", "nopass", "short", "nopassnopass", "NoPass-NoPass!", "passwordpassword", "Password12345", "changeit-changeit", "aaaaaaaaaaaaaaaa", "abababababababab",
		"1234567890123", "abcdefghijklmnop", "widgiot-issuer-root"} {
		err := CheckPassphrase([]byte(weak))
		if !errors.Is(err, errWeak) || weak != "" && strings.Contains(err.Error(), weak) && weak != "short" {
			t.Errorf("%q: %v", weak, err)
		}
		dir := t.TempDir()
		k := testKeys(dir)
		k.Passphrases[RootKey] = []byte(weak)
		if _, err := k.Make(RootKey); !errors.Is(err, errWeak) {
			t.Errorf("a key under %q: %v", weak, err)
		}
		if files := tree(t, dir); len(files) > 0 {
			t.Errorf("a key under %q was made", weak)
		}
	}
	for _, good := range []string{"correct horse battery staple", "b3Vyc2VjcmV0aXNub3RoZXJl", "839201746529"} {
		if err := CheckPassphrase([]byte(good)); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	k := testKeys(t.TempDir())
	k.Passphrases[LineKey] = k.Passphrases["regions/us-east-1/issuing"]
	if _, err := k.Make(LineKey); !errors.Is(err, errWeak) || !strings.Contains(err.Error(), "the same passphrase") {
		t.Errorf("one passphrase for two: %v", err)
	}
	k = testKeys(t.TempDir(), LineKey)
	if _, err := k.Open(LineKey); !errors.Is(err, ErrNoPassphrase) {
		t.Errorf("no passphrase: %v", err)
	}
	if _, err := k.Open(RootKey); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no key: %v", err)
	}
}

func FuzzJournal(f *testing.F) {
	e := Entry{Seq: 1, Time: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), Operator: "a <b>", Step: "crl/root/1", Files: []File{{"a", "b"}},
		Certificate: &Certificate{}, CRL: &CRL{Serials: []string{}}, Revoked: &Revocation{}, AWS: map[string]string{"b": "c", "a": "b"}}
	line, err := e.encode()
	must(f, err)
	e2 := Entry{Seq: 2, Previous: digest(line)}
	second, err := e2.encode()
	must(f, err)
	f.Add(line)
	f.Add(append(bytes.Clone(line), second...))
	f.Add([]byte(`{"seq":1}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		entries, _, torn, err := parseJournal(text)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			line, err := e.encode()
			must(t, err)
			again = append(again, line...)
		}
		if !bytes.Equal(again, text[:len(text)-torn]) {
			t.Errorf("what parses encodes to other bytes: %q", again)
		}
	})
}

func TestJournalRefuses(t *testing.T) {
	e := Entry{Seq: 1, Step: "a"}
	line, err := e.encode()
	must(t, err)
	for name, text := range map[string]string{
		"no entry": "x\n", "an unknown field": `{"seq":1,"x":1}` + "\n", "another form": " " + string(line),
		"the same line twice": string(line) + string(line), "no beginning": strings.Replace(string(line), `"seq":1`, `"seq":2`, 1),
	} {
		if _, _, _, err := parseJournal([]byte(text)); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
