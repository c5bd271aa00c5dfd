// Package pki makes the certificates above an issuer in a ceremony that may be
// broken off anywhere.
//
// The hierarchy, with the path length of each certificate:
//
//	root (2)                         offline, one
//	└── product line (1)             offline, one for each SKU
//	    ├── issuing, region A (0)    online: an encrypted key file, or a CA in ACM Private CA
//	    └── issuing, region B (0)
//
// A ceremony is a folder. What is to be made stands in a Plan; what was made
// stands in files, and in a journal that is only ever appended to. The steps,
// in their order:
//
//	root-key, root-certificate, line-key, line-certificate
//	crl/root/N, crl/line/N             whenever there is none, it has expired, or a revocation is not in it
//	regions/X/key or regions/X/csr     make the key, or fetch the request of the CA in ACM Private CA
//	regions/X/certificate              sign it with the line's key
//	regions/X/import                   into ACM Private CA, with the chain
//	regions/X/verification, register   prove the CA's key to IoT Core, and register the CA
//	regions/X/ocsp-key, ocsp-certificate
//	publish/root/N, publish/line/N     put the CRL into the bucket
//
// All that need one person or one network stand together: the root's and the
// line's keys are wanted by few steps, and a machine without a network can take
// all steps that sign.
//
// A step's product is durable before the next begins, and each can be taken
// again: Run goes on from whatever it finds. What is already there, on disk or
// in AWS, is taken only if it is what the step would have made; anything else
// is an error that wraps errConflict.
package pki

import (
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/arn"
)

var (
	// errConflict says that what is there is not what the plan or the journal
	// says. It does not go away by itself.
	errConflict = errors.New("not what was to be made")
	// errOutlives says that a certificate would be valid for longer than its
	// parent.
	errOutlives = errors.New("it would outlive its parent")
	// ErrNoPassphrase says that a step signs with a key whose passphrase was
	// not given.
	ErrNoPassphrase = errors.New("its passphrase is wanted")
	// errWeak says that a passphrase protects nothing.
	errWeak = errors.New("the passphrase is weak")
	// errBusy says that another run has the folder.
	errBusy = errors.New("another run has this folder")
	// ErrNoCeremony says that nothing was made in a folder yet.
	ErrNoCeremony = errors.New("nothing was made here yet")
)

// The kinds of a region's issuing CA.
const (
	kindLocal  = "local"  // the folder regions/<name> is one for issuer.OpenLocalCA
	kindACMPCA = "acmpca" // the key is in ACM Private CA
)

// Plan is what is to be made. Its texts stand in names of certificates and
// objects; Check says which it takes.
type Plan struct {
	Name    string // in the common names, at most 24 bytes
	SKU     string
	Root    time.Duration // validity
	Line    time.Duration
	Issuing time.Duration
	Regions []Region
	CRL     CRLPlan
	URLs    URLs
}

// Region is one issuing CA.
type Region struct {
	Name string
	// AWS is the AWS region of Private CA and IoT Core; empty: Name.
	AWS  string
	Kind string // kindLocal or kindACMPCA
	ARN  string // of the CA in ACM Private CA; it must have been created as a subordinate
	// IoT registers the CA with IoT Core.
	IoT              bool
	AutoRegistration bool   // a device certificate that IoT Core sees for the first time is registered by itself
	Template         string // name of a provisioning template for that; empty: none
	// OCSP makes a key and a certificate for a responder. ACM Private CA
	// answers OCSP by itself.
	OCSP bool
}

// location is the AWS region.
func (r Region) location() string {
	if r.AWS != "" {
		return r.AWS
	}
	return r.Name
}

// CRLPlan says how long a CRL of the root or the line is good and where it
// goes.
type CRLPlan struct {
	Validity time.Duration
	Bucket   string // empty: they are signed and stay in the folder
	Prefix   string // of the object names, such as "crl/"
	Region   string // of the bucket
}

// URLs stand in the certificates that the root and the line sign; each may be
// empty.
type URLs struct {
	RootCRL, LineCRL                 string // CRL distribution points
	RootCertificate, LineCertificate string // authority information access
}

const (
	// minValidity and MaxValidity of a certificate.
	minValidity = 24 * time.Hour
	MaxValidity = 100 * 365 * 24 * time.Hour

	maxRegions    = 40
	maxCommonName = 64 // RFC 5280, ub-common-name
)

var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,22}[A-Za-z0-9])?$`)
	skuPattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	regionPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
	bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixPattern = regexp.MustCompile(`^(?:[A-Za-z0-9._-]{1,100}/){0,5}$`)
	tmplPattern   = regexp.MustCompile(`^[0-9A-Za-z_-]{1,36}$`)
)

// PlanError is something wrong in a plan. Key names it as the configuration
// does: "line.days", "region[1].arn" (from 0).
type PlanError struct {
	Key, Problem string
}

func (e *PlanError) Error() string { return e.Key + " " + e.Problem }

// Check reports the first thing that is missing or contradictory, as a
// *PlanError.
func (p Plan) Check() error {
	bad := func(key, format string, args ...any) error { return &PlanError{key, fmt.Sprintf(format, args...)} }
	if !namePattern.MatchString(p.Name) {
		return bad("name", "is %q, want 1 to 24 letters, digits, blanks, dots, _ and -", p.Name)
	}
	if !skuPattern.MatchString(p.SKU) {
		return bad("sku", "is %q, want letters a-z, digits and -", p.SKU)
	}
	above, aboveName := MaxValidity, "100 years"
	for _, v := range []struct {
		key   string
		valid time.Duration
	}{{"root.days", p.Root}, {"line.days", p.Line}, {"issuing.days", p.Issuing}} {
		if v.valid < minValidity || v.valid > above {
			return bad(v.key, "is %d, want 1 or more, and no more than %s: no certificate outlives its parent", v.valid/(24*time.Hour), aboveName)
		}
		above, aboveName = v.valid, v.key
	}
	if p.CRL.Validity < minValidity || p.CRL.Validity > MaxValidity {
		return bad("crl.days", "is %d, want 1 or more", p.CRL.Validity/(24*time.Hour))
	}
	if p.CRL.Bucket != "" && !bucketPattern.MatchString(p.CRL.Bucket) {
		return bad("crl.bucket", "is %q, which is no bucket's name", p.CRL.Bucket)
	}
	if !prefixPattern.MatchString(p.CRL.Prefix) {
		return bad("crl.prefix", "is %q, want parts of letters, digits, ., _ and - that each end in /", p.CRL.Prefix)
	}
	if p.CRL.Bucket != "" && !regionPattern.MatchString(p.CRL.Region) {
		return bad("crl.region", "is %q, and the bucket needs one", p.CRL.Region)
	}
	for key, text := range map[string]string{"urls.root_crl": p.URLs.RootCRL, "urls.line_crl": p.URLs.LineCRL,
		"urls.root_certificate": p.URLs.RootCertificate, "urls.line_certificate": p.URLs.LineCertificate} {
		// Not https: whoever verifies a certificate must not need another for
		// it.
		if u, err := url.Parse(text); text != "" && (err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil) {
			return bad(key, "is %q, want a URL http://…", text)
		}
	}
	if len(p.Regions) == 0 || len(p.Regions) > maxRegions {
		return bad("region", "is there %d times, want 1 to %d", len(p.Regions), maxRegions)
	}
	names, arns := map[string]bool{}, map[string]bool{}
	for i, r := range p.Regions {
		key := fmt.Sprintf("region[%d].", i)
		if problem := r.check(); problem != nil {
			return bad(key+problem.Key, "%s", problem.Problem)
		}
		if names[r.Name] {
			return bad(key+"name", "is %q a second time", r.Name)
		}
		if r.ARN != "" && arns[r.ARN] {
			return bad(key+"arn", "is that of another region")
		}
		names[r.Name], arns[r.ARN] = true, true
		if cn := p.issuingName(r).CommonName; len(cn) > maxCommonName {
			return bad(key+"name", "makes the common name %q, which is longer than %d bytes", cn, maxCommonName)
		}
	}
	return nil
}

func (r Region) check() *PlanError {
	switch {
	case !regionPattern.MatchString(r.Name):
		return &PlanError{"name", fmt.Sprintf("is %q, want letters a-z, digits and -", r.Name)}
	case r.AWS != "" && !regionPattern.MatchString(r.AWS):
		return &PlanError{"aws_region", fmt.Sprintf("is %q, want letters a-z, digits and -", r.AWS)}
	case r.Kind != kindLocal && r.Kind != kindACMPCA:
		return &PlanError{"kind", fmt.Sprintf("is %q, want %q or %q", r.Kind, kindLocal, kindACMPCA)}
	case r.Kind == kindLocal && r.ARN != "":
		return &PlanError{"arn", "is only for a region of kind " + kindACMPCA}
	case r.Kind == kindACMPCA && r.OCSP:
		return &PlanError{"ocsp", "is not for a region of kind " + kindACMPCA + ": Private CA answers OCSP itself"}
	case !r.IoT && (r.AutoRegistration || r.Template != ""):
		return &PlanError{"iot", "is not on, and there are settings for it"}
	case r.Template != "" && !r.AutoRegistration:
		return &PlanError{"template", "is used in auto registration only, and that is not on"}
	case r.Template != "" && !tmplPattern.MatchString(r.Template):
		return &PlanError{"template", fmt.Sprintf("is %q, which is no template's name", r.Template)}
	}
	if r.Kind == kindACMPCA {
		a, err := arn.Parse(r.ARN)
		if err != nil || a.Service != "acm-pca" {
			return &PlanError{"arn", fmt.Sprintf("is %q, want arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/ID", r.ARN)}
		}
		if a.Region != r.location() {
			return &PlanError{"arn", fmt.Sprintf("is in %s, and the region is %s", a.Region, r.location())}
		}
	}
	return nil
}

func (p Plan) rootName() pkix.Name { return pkix.Name{CommonName: p.Name + " Root CA"} }
func (p Plan) lineName() pkix.Name { return pkix.Name{CommonName: p.Name + " " + p.SKU + " CA"} }
func (p Plan) issuingName(r Region) pkix.Name {
	return pkix.Name{CommonName: p.Name + " " + p.SKU + " " + r.Name + " Issuing CA"}
}
func (p Plan) responderName(r Region) pkix.Name {
	return pkix.Name{CommonName: p.Name + " " + p.SKU + " " + r.Name + " OCSP"}
}
