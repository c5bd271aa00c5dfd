package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	iottypes "github.com/aws/aws-sdk-go-v2/service/iot/types"
)

func (x *Ceremony) regionKeys(r Region) []Step {
	if r.Kind == kindLocal {
		return []Step{x.keyStep(regionStep(r.Name, "key"), regionStep(r.Name, "issuing"))}
	}
	return []Step{{ID: regionStep(r.Name, "csr"), Does: fmt.Sprintf("fetch the request of %s from ACM Private CA and check its signature and key; write regions/%s/issuing.csr", r.ARN, r.Name),
		run: func(ctx context.Context) error { return x.fetchRequest(ctx, r) }}}
}

func (x *Ceremony) regionCertificates(r Region) []Step {
	of := fmt.Sprintf("%q", x.c.Plan.issuingName(r).CommonName)
	if r.Kind == kindACMPCA {
		of = r.ARN
	}
	return []Step{{ID: regionStep(r.Name, "certificate"), Key: LineKey, Does: fmt.Sprintf(
		"sign the certificate of the issuing CA %s, path length %d, for %s, with the line's key; write issuing.pem, chain.pem and root.pem in regions/%s",
		of, pathIssuing, days(x.c.Plan.Issuing), r.Name), run: func(context.Context) error { return x.signIssuing(r) }}}
}

func (x *Ceremony) regionRest(r Region) []Step {
	var steps []Step
	proofKey := ""
	if r.Kind == kindLocal {
		proofKey = regionStep(r.Name, "issuing")
	} else {
		steps = append(steps, Step{ID: regionStep(r.Name, "import"), Does: "import the certificate and its chain into " + r.ARN + ", unless another is there; read it back",
			run: func(ctx context.Context) error { return x.importCertificate(ctx, r) }})
	}
	if r.IoT {
		automatic := "without auto registration"
		if r.AutoRegistration {
			automatic = "with auto registration"
		}
		if r.Template != "" {
			automatic += " by the template " + r.Template
		}
		steps = append(steps,
			Step{ID: regionStep(r.Name, "verification"), Key: proofKey, Does: "get the registration code of IoT Core in " + r.location() +
				" and have the issuing CA sign a certificate for it, for one day", run: func(ctx context.Context) error {
				_, err := x.verification(ctx, r)
				return err
			}},
			Step{ID: regionStep(r.Name, "register"), Key: proofKey, Does: "register the issuing CA with IoT Core in " + r.location() + ", active, " + automatic + "; describe and check it",
				run: func(ctx context.Context) error { return x.register(ctx, r) }})
	}
	if r.OCSP {
		key := regionStep(r.Name, "ocsp")
		steps = append(steps, x.keyStep(regionStep(r.Name, "ocsp-key"), key),
			Step{ID: regionStep(r.Name, "ocsp-certificate"), Key: regionStep(r.Name, "issuing"), Does: fmt.Sprintf(
				"sign the certificate of the OCSP responder %q with the issuing CA's key; write regions/%s/ocsp.pem", x.c.Plan.responderName(r).CommonName, r.Name),
				run: func(context.Context) error { return x.signResponder(r) }})
	}
	return steps
}

func (x *Ceremony) fetchRequest(ctx context.Context, r Region) error {
	if err := x.regionDir(regionStep(r.Name, "issuing")); err != nil {
		return err
	}
	pca, err := x.pca(ctx, r)
	if err != nil {
		return err
	}
	text, err := pca.request(ctx)
	if err != nil {
		return err
	}
	request, err := parseRequest(text)
	if err != nil {
		return fmt.Errorf("the request of %s: %w", r.ARN, err)
	}
	for _, key := range []string{RootKey, LineKey} {
		above, err := x.authority(key)
		if err != nil {
			return err
		}
		if bytes.Equal(request.RawSubject, above.RawSubject) || sameKey(request.Key, above.PublicKey) {
			return fmt.Errorf("the request of %s has the name or the key of the %s: %w", r.ARN, key, errConflict)
		}
	}
	name := regionStep(r.Name, "issuing.csr")
	there, err := readFile(x.path(name))
	if err == nil {
		// A request may be signed afresh each time: what counts is the name and
		// the key.
		old, err := parseRequest(there)
		if err != nil || !bytes.Equal(old.RawSubject, request.RawSubject) || !sameKey(old.Key, request.Key) {
			return fmt.Errorf("%s is there already, and is not the request of %s: %w", name, r.ARN, errConflict)
		}
		text = there
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	found := err == nil
	if err := x.durable("file "+name, func() error { return writeNew(x.path(name), text) }); err != nil {
		return err
	}
	files, err := x.files(name)
	if err != nil {
		return err
	}
	return x.note(Entry{Step: regionStep(r.Name, "csr"), Found: found, Files: files, AWS: map[string]string{"pca": r.ARN}})
}

func (x *Ceremony) signIssuing(r Region) error {
	root, err := x.authority(RootKey)
	if err != nil {
		return err
	}
	line, err := x.authority(LineKey)
	if err != nil {
		return err
	}
	p := profile{parent: line, validity: x.c.Plan.Issuing, pathLength: pathIssuing, crl: x.c.Plan.URLs.LineCRL, aia: x.c.Plan.URLs.LineCertificate}
	if r.Kind == kindLocal {
		if p.public, err = x.public(regionStep(r.Name, "key")); err != nil {
			return err
		}
		if p.subject, err = nameDER(x.c.Plan.issuingName(r)); err != nil {
			return err
		}
	} else {
		text, err := readFile(x.path(regionStep(r.Name, "issuing.csr")))
		if err != nil {
			return err
		}
		request, err := parseRequest(text)
		if err != nil {
			return err
		}
		// All else in the request is its maker's wish; Private CA wants its own
		// subject back to the byte.
		p.public, p.subject = request.Key, request.RawSubject
	}
	return x.make(regionStep(r.Name, "certificate"), LineKey, regionStep(r.Name, "issuing.pem"), p, map[string][]byte{
		regionStep(r.Name, "root.pem"): certificatePEM(root), regionStep(r.Name, "chain.pem"): certificatePEM(line)})
}

func (x *Ceremony) issuing(r Region) (*x509.Certificate, error) {
	return x.certificate(regionStep(r.Name, "certificate"), regionStep(r.Name, "issuing.pem"))
}

func (x *Ceremony) importCertificate(ctx context.Context, r Region) error {
	issuing, err := x.issuing(r)
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, key := range []string{LineKey, RootKey} {
		c, err := x.authority(key)
		if err != nil {
			return err
		}
		chain = append(chain, c)
	}
	pca, err := x.pca(ctx, r)
	if err != nil {
		return err
	}
	there, err := pca.installed(ctx, issuing, chain)
	if err != nil {
		return err
	}
	if !there {
		if err := pca.install(ctx, issuing, chain); err != nil {
			return err
		}
		if there, err = pca.installed(ctx, issuing, chain); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("%s took the certificate and does not show it yet; run again", r.ARN)
		}
	}
	return x.note(Entry{Step: regionStep(r.Name, "import"), AWS: map[string]string{"pca": r.ARN}})
}

func (x *Ceremony) signResponder(r Region) error {
	issuing, err := x.issuing(r)
	if err != nil {
		return err
	}
	public, err := x.public(regionStep(r.Name, "ocsp-key"))
	if err != nil {
		return err
	}
	subject, err := nameDER(x.c.Plan.responderName(r))
	if err != nil {
		return err
	}
	return x.make(regionStep(r.Name, "ocsp-certificate"), regionStep(r.Name, "issuing"), regionStep(r.Name, "ocsp.pem"), profile{
		subject: subject, public: public, parent: issuing, validity: x.c.Plan.Issuing, responder: true}, nil)
}

// IoT is what the registration of a CA calls; *iot.Client has it.
type IoT interface {
	GetRegistrationCode(context.Context, *iot.GetRegistrationCodeInput, ...func(*iot.Options)) (*iot.GetRegistrationCodeOutput, error)
	RegisterCACertificate(context.Context, *iot.RegisterCACertificateInput, ...func(*iot.Options)) (*iot.RegisterCACertificateOutput, error)
	DescribeCACertificate(context.Context, *iot.DescribeCACertificateInput, ...func(*iot.Options)) (*iot.DescribeCACertificateOutput, error)
}

func (x *Ceremony) iot(ctx context.Context, r Region) (IoT, error) {
	if x.c.Clients == nil {
		return nil, errors.New("the plan has something in AWS, and there are no clients for it")
	}
	return x.c.Clients.IoT(ctx, r.location())
}

// spare is how long a verification certificate that is used again must still be
// valid.
const spare = time.Hour

// verification gives a certificate of the issuing CA whose common name is the
// registration code: the one that is there, if it still is for that code, or a
// new one. Its key is used for nothing and is not kept.
func (x *Ceremony) verification(ctx context.Context, r Region) (*x509.Certificate, error) {
	core, err := x.iot(ctx, r)
	if err != nil {
		return nil, err
	}
	issuing, err := x.issuing(r)
	if err != nil {
		return nil, err
	}
	out, err := core.GetRegistrationCode(ctx, &iot.GetRegistrationCodeInput{})
	if err != nil {
		return nil, fmt.Errorf("getting the registration code: %w", err)
	}
	code := aws.ToString(out.RegistrationCode)
	if code == "" || len(code) > maxCommonName {
		return nil, fmt.Errorf("IoT Core answered with the registration code %q", code)
	}
	subject, err := nameDER(pkix.Name{CommonName: code})
	if err != nil {
		return nil, err
	}
	name, step := regionStep(r.Name, "verification.pem"), regionStep(r.Name, "verification")
	p := profile{subject: subject, parent: issuing, validity: proofValidity, proof: true}
	if text, err := readFile(x.path(name)); err == nil {
		if c, err := parseCertificate(text); err == nil {
			p.public = c.PublicKey
			if p.check(c, time.Now().Add(spare)) == nil {
				return c, x.noteOnce(step, c)
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var made *x509.Certificate
	if r.Kind == kindLocal {
		made, err = x.proveLocally(r, p)
	} else {
		made, err = x.proveByPCA(ctx, r, p)
	}
	if err != nil {
		return nil, err
	}
	if err := p.withKey(made.PublicKey).check(made, time.Now()); err != nil {
		return nil, fmt.Errorf("the verification certificate: %w", err)
	}
	if err := x.durable("file "+name, func() error { return replace(x.path(name), certificatePEM(made)) }); err != nil {
		return nil, err
	}
	return made, x.noteOnce(step, made)
}

func (p profile) withKey(public crypto.PublicKey) profile {
	p.public = public
	return p
}

// noteOnce notes a certificate that is not kept for good: its file may be
// written over, and is not of the journal.
func (x *Ceremony) noteOnce(step string, c *x509.Certificate) error {
	if e := x.journal.made(step); e != nil && e.Certificate != nil && e.Certificate.Fingerprint == digest(c.Raw) {
		return nil
	}
	return x.note(Entry{Step: step, Certificate: describe(c)})
}

func (x *Ceremony) proveLocally(r Region, p profile) (*x509.Certificate, error) {
	signer, err := x.c.Keys.Open(regionStep(r.Name, "issuing"))
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := p.withKey(&key.PublicKey).sign(signer, time.Now())
	if err != nil {
		return nil, fmt.Errorf("signing the verification certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// proveByPCA asks ACM Private CA. The request is kept until the answer is, so
// that a repeated question is the same.
func (x *Ceremony) proveByPCA(ctx context.Context, r Region, p profile) (*x509.Certificate, error) {
	pca, err := x.pca(ctx, r)
	if err != nil {
		return nil, err
	}
	name, asked := regionStep(r.Name, "verification.csr"), regionStep(r.Name, "verification-asked")
	text, err := readFile(x.path(name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if request, err := parseRequest(text); err != nil || !bytes.Equal(request.RawSubject, p.subject) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: p.subject}, key)
		if err != nil {
			return nil, err
		}
		text = pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der})
		if err := x.durable("file "+name, func() error { return replace(x.path(name), text) }); err != nil {
			return nil, err
		}
	}
	arn := ""
	if e := x.journal.made(asked); e != nil && e.AWS["csr"] == digest(text) {
		arn = e.AWS["certificate"]
	} else {
		if arn, err = pca.ask(ctx, text, p.parent); err != nil {
			return nil, err
		}
		if err := x.note(Entry{Step: asked, AWS: map[string]string{"certificate": arn, "csr": digest(text)}}); err != nil {
			return nil, err
		}
	}
	made, err := pca.answer(ctx, arn)
	if err != nil {
		return nil, err
	}
	request, err := parseRequest(text)
	if err != nil {
		return nil, err
	}
	if err := p.withKey(request.Key).check(made, time.Now().Add(spare)); err != nil {
		// It is of no more use, or never was: the next run asks anew.
		return nil, errors.Join(fmt.Errorf("the verification certificate of %s: %w", arn, err), os.Remove(x.path(name)))
	}
	return made, nil
}

func (x *Ceremony) register(ctx context.Context, r Region) error {
	issuing, err := x.issuing(r)
	if err != nil {
		return err
	}
	proof, err := x.verification(ctx, r)
	if err != nil {
		return err
	}
	core, err := x.iot(ctx, r)
	if err != nil {
		return err
	}
	input := &iot.RegisterCACertificateInput{CaCertificate: aws.String(string(certificatePEM(issuing))), VerificationCertificate: aws.String(string(certificatePEM(proof))),
		SetAsActive: true, AllowAutoRegistration: r.AutoRegistration}
	if r.Template != "" {
		input.RegistrationConfig = &iottypes.RegistrationConfig{TemplateName: aws.String(r.Template)}
	}
	id := ""
	out, err := core.RegisterCACertificate(ctx, input)
	if exists, ok := errors.AsType[*iottypes.ResourceAlreadyExistsException](err); ok {
		if id = aws.ToString(exists.ResourceId); id == "" {
			return fmt.Errorf("IoT Core has this CA, and does not say under what name: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("registering the CA: %w", err)
	} else {
		id = aws.ToString(out.CertificateId)
	}
	described, err := core.DescribeCACertificate(ctx, &iot.DescribeCACertificateInput{CertificateId: aws.String(id)})
	if err != nil {
		return fmt.Errorf("describing the CA %s: %w", id, err)
	}
	if err := registered(r, issuing, described); err != nil {
		return fmt.Errorf("the CA %s in IoT Core: %w", id, err)
	}
	return x.note(Entry{Step: regionStep(r.Name, "register"), AWS: map[string]string{"ca_certificate_id": id, "ca_certificate_arn": aws.ToString(described.CertificateDescription.CertificateArn),
		"region": r.location()}})
}

// registered says in what a CA is registered otherwise than planned.
func registered(r Region, issuing *x509.Certificate, out *iot.DescribeCACertificateOutput) error {
	d := out.CertificateDescription
	if d == nil {
		return errors.New("it is described as nothing")
	}
	c, err := parseCertificate([]byte(aws.ToString(d.CertificatePem)))
	if err != nil || !c.Equal(issuing) {
		return fmt.Errorf("%w: it has another certificate", errConflict)
	}
	if d.Status != iottypes.CACertificateStatusActive {
		return fmt.Errorf("%w: its status is %s", errConflict, d.Status)
	}
	if d.CertificateMode == iottypes.CertificateModeSniOnly {
		return fmt.Errorf("%w: it is registered without a proof of its key", errConflict)
	}
	if automatic := d.AutoRegistrationStatus == iottypes.AutoRegistrationStatusEnable; automatic != r.AutoRegistration {
		return fmt.Errorf("%w: auto registration is %t, and planned is %t", errConflict, automatic, r.AutoRegistration)
	}
	template := ""
	if out.RegistrationConfig != nil {
		template = aws.ToString(out.RegistrationConfig.TemplateName)
	}
	if template != r.Template {
		return fmt.Errorf("%w: its template is %q, and planned is %q", errConflict, template, r.Template)
	}
	return nil
}
