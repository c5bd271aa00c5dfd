package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"time"

	"secretfree/cloud/issuer/keyfile"
	"secretfree/cloud/issuer/pki"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/config"
)

type pkiCommands struct {
	Init   pkiInit   `cmd:"" help:"Write a ceremony.toml to fill in."`
	Run    pkiRun    `cmd:"" help:"Perform the remaining steps. It can be interrupted and repeated."`
	Status pkiStatus `cmd:"" help:"Show which steps are done and which remain."`
	Report pkiReport `cmd:"" help:"Print everything that was made, by whom and when, for an auditor."`
	CRL    pkiCRL    `cmd:"" name:"crl" help:"Sign new revocation lists of the root and the line, and publish them."`
	Revoke pkiRevoke `cmd:"" help:"Mark the CA of a region, or of the line, as revoked for the next revocation list."`
}

const ceremonyFile = "ceremony.toml"

// ceremonySample is what pki init writes; two %q are the name and the SKU.
const ceremonySample = `# What a ceremony makes: one root, one CA of the product line under it, one issuing CA for each region under that.
# issuerctl pki run --dry-run tells every step before any is taken.

name = %q   # in the names of all certificates
sku  = %q

# For test servers and private endpoints.
# acmpca_endpoint = "http://127.0.0.1:5000"
# iot_endpoint    = "http://127.0.0.1:5000"
# s3_endpoint     = "http://127.0.0.1:5000"

# How long each is valid, from the day it is signed. None outlives the one above it: as the steps may be days apart, leave a margin.
[root]
days = 10950

[line]
days = 9125

[issuing]
days = 7300

# A region's issuing CA, as an encrypted key file: the folder regions/<name> is what issuerd's [ca] dir takes.
[[region]]
name = "us-east-1"
kind = "local"
# iot               = true     # register it with IoT Core in this region
# auto_registration = false    # a device certificate that IoT Core sees for the first time is registered by itself
# template          = ""       # by this provisioning template
# ocsp              = true     # make a key and a certificate for an OCSP responder

# The same, with the key in ACM Private CA: create it there as a subordinate CA first.
# [[region]]
# name       = "eu-west-1"
# aws_region = "eu-west-1"     # if the name is another
# kind       = "acmpca"
# arn        = "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/…"
# iot        = true

# The revocation lists of the root and the line.
[crl]
days = 180
# bucket = "widgiot-crl"       # without one they stay in the folder
# prefix = "crl/"
# region = "us-east-1"

# What stands in the certificates that the root and the line sign.
# [urls]
# root_crl         = "http://crl.example.com/crl/root.crl"
# line_crl         = "http://crl.example.com/crl/line.crl"
# root_certificate = "http://crl.example.com/root.cer"
# line_certificate = "http://crl.example.com/line.cer"
`

type pkiInit struct {
	Dir  string `arg:"" help:"The folder of the ceremony; it is created if missing."`
	Name string `name:"name" required:"" help:"The name in all certificates."`
	SKU  string `name:"sku" required:"" help:"The product line."`
}

func (c *pkiInit) Run(out *cli.Output) error {
	text := fmt.Appendf(nil, ceremonySample, c.Name, c.SKU)
	if err := os.Mkdir(c.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making the ceremony's folder: %w", err)
	}
	name := filepath.Join(c.Dir, ceremonyFile)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	if _, err := loadCeremony(c.Dir); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return out.Print(struct {
		Plan string `json:"plan"`
	}{name}, fmt.Sprintf("Fill in %s, then see what would be done: issuerctl pki run --dry-run %s\n", name, c.Dir))
}

// ceremony is ceremony.toml.
type ceremony struct {
	Name           string   `toml:"name"`
	SKU            string   `toml:"sku"`
	ACMPCAEndpoint string   `toml:"acmpca_endpoint"`
	IoTEndpoint    string   `toml:"iot_endpoint"`
	S3Endpoint     string   `toml:"s3_endpoint"`
	Root           validity `toml:"root"`
	Line           validity `toml:"line"`
	Issuing        validity `toml:"issuing"`
	Region         []struct {
		Name             string `toml:"name"`
		AWSRegion        string `toml:"aws_region"`
		Kind             string `toml:"kind"`
		ARN              string `toml:"arn"`
		IoT              bool   `toml:"iot"`
		AutoRegistration bool   `toml:"auto_registration"`
		Template         string `toml:"template"`
		OCSP             bool   `toml:"ocsp"`
	} `toml:"region"`
	CRL struct {
		Days   int    `toml:"days"`
		Bucket string `toml:"bucket"`
		Prefix string `toml:"prefix"`
		Region string `toml:"region"`
	} `toml:"crl"`
	URLs struct {
		RootCRL         string `toml:"root_crl"`
		LineCRL         string `toml:"line_crl"`
		RootCertificate string `toml:"root_certificate"`
		LineCertificate string `toml:"line_certificate"`
	} `toml:"urls"`
}

type validity struct {
	Days int `toml:"days"`
}

// days is no more than a Duration holds: any that are too many stay too many.
func days(n int) time.Duration {
	const day = 24 * time.Hour
	return time.Duration(max(-1, min(n, int(pki.MaxValidity/day)+1))) * day
}

// loadCeremony reads the plan in a folder and checks it.
func loadCeremony(dir string) (pki.Config, error) {
	var c ceremony
	file, err := config.Load(filepath.Join(dir, ceremonyFile), &c)
	if err != nil {
		return pki.Config{}, err
	}
	p := pki.Plan{
		Name: c.Name, SKU: c.SKU, Root: days(c.Root.Days), Line: days(c.Line.Days), Issuing: days(c.Issuing.Days),
		CRL:  pki.CRLPlan{Validity: days(c.CRL.Days), Bucket: c.CRL.Bucket, Prefix: c.CRL.Prefix, Region: c.CRL.Region},
		URLs: pki.URLs{RootCRL: c.URLs.RootCRL, LineCRL: c.URLs.LineCRL, RootCertificate: c.URLs.RootCertificate, LineCertificate: c.URLs.LineCertificate},
	}
	for _, r := range c.Region {
		p.Regions = append(p.Regions, pki.Region{Name: r.Name, AWS: r.AWSRegion, Kind: r.Kind, ARN: r.ARN, IoT: r.IoT,
			AutoRegistration: r.AutoRegistration, Template: r.Template, OCSP: r.OCSP})
	}
	if err := p.Check(); err != nil {
		if wrong, ok := errors.AsType[*pki.PlanError](err); ok {
			return pki.Config{}, file.Errorf(wrong.Key, "Correct it; issuerctl pki init writes an example.", "%v", wrong)
		}
		return pki.Config{}, err
	}
	return pki.Config{Dir: dir, Plan: p, Clients: pki.AWS{PCAEndpoint: c.ACMPCAEndpoint, IoTEndpoint: c.IoTEndpoint, S3Endpoint: c.S3Endpoint}, Operator: "-"}, nil
}

// ceremonyFlags are those of the commands that change a folder.
type ceremonyFlags struct {
	Dir      string `arg:"" help:"The folder of the ceremony."`
	Operator string `name:"operator" placeholder:"NAME" help:"Who performs the steps, for the report; the default is the user and the machine."`
}

func (c ceremonyFlags) load(out *cli.Output) (pki.Config, error) {
	p, err := loadCeremony(c.Dir)
	if err != nil {
		return p, err
	}
	if p.Operator = c.Operator; p.Operator == "" {
		p.Operator = operator()
	}
	p.Begin = func(s pki.Step) { fmt.Fprintf(out.People, "%s: %s\n", s.ID, s.Does) }
	return p, nil
}

func operator() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

// offlineFlags give the passphrases of the keys that are in a safe.
type offlineFlags struct {
	RootPassphraseFile string `name:"root-passphrase-file" placeholder:"FILE" help:"A file with the passphrase of the root key; needed only when that key signs."`
	LinePassphraseFile string `name:"line-passphrase-file" placeholder:"FILE" help:"A file with the passphrase of the line's key; needed only when that key signs."`
}

func (f offlineFlags) keys(dir string, regions map[string]string) (*pki.FileKeys, error) {
	files := map[string]string{pki.RootKey: f.RootPassphraseFile, pki.LineKey: f.LinePassphraseFile}
	for region, file := range regions {
		files["regions/"+region+"/issuing"], files["regions/"+region+"/ocsp"] = file, file
	}
	keys := &pki.FileKeys{Dir: dir, Passphrases: map[string][]byte{}}
	for name, file := range files {
		if file == "" {
			continue
		}
		passphrase, err := keyfile.Passphrase(file)
		if err != nil {
			return nil, err
		}
		keys.Passphrases[name] = passphrase
	}
	return keys, keys.Check()
}

type pkiRun struct {
	ceremonyFlags
	offlineFlags
	RegionPassphraseFile map[string]string `name:"region-passphrase-file" placeholder:"REGION=FILE" help:"A file with the passphrase of a region's keys, if they are files. May be repeated."`
	DryRun               bool              `name:"dry-run" help:"Only list the remaining steps; change nothing."`
}

func (c *pkiRun) Run(ctx context.Context, out *cli.Output) (err error) {
	p, err := c.load(out)
	if err != nil {
		return err
	}
	keys, err := c.keys(c.Dir, c.RegionPassphraseFile)
	if err != nil {
		return err
	}
	for region := range c.RegionPassphraseFile {
		if !hasRegion(p.Plan, region) {
			return fmt.Errorf("%w: --region-passphrase-file %s=…: the plan has no such region", cli.ErrMisuse, region)
		}
	}
	p.Keys = keys
	if c.DryRun {
		left, err := pki.Left(p)
		if err != nil {
			return err
		}
		return showLeft(out, left)
	}
	x, err := pki.Open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	if err := wanted(x.Run(ctx)); err != nil {
		return err
	}
	return out.Print(struct {
		Done bool `json:"done"`
	}{true}, "All is done. Take root.key and line.key offline; issuerctl pki report tells what was made.\n")
}

func hasRegion(p pki.Plan, name string) bool {
	for _, r := range p.Regions {
		if r.Name == name {
			return true
		}
	}
	return false
}

// wanted adds to an error the flag that it calls for.
func wanted(err error) error {
	step, ok := errors.AsType[*pki.StepError](err)
	if !ok || !errors.Is(err, pki.ErrNoPassphrase) {
		return err
	}
	flag := "--region-passphrase-file REGION=FILE"
	switch step.Step.Key {
	case pki.RootKey:
		flag = "--root-passphrase-file FILE"
	case pki.LineKey:
		flag = "--line-passphrase-file FILE"
	}
	return fmt.Errorf("%w: give %s; all before is done and stays", err, flag)
}

func showLeft(out *cli.Output, left []pki.Step) error {
	for _, s := range left {
		text := fmt.Sprintf("left  %s: %s", s.ID, s.Does)
		if s.Key != "" {
			text += "; wants the key " + s.Key
		}
		if err := out.Print(s, text+"\n"); err != nil {
			return err
		}
	}
	if len(left) == 0 {
		fmt.Fprintln(out.People, "Nothing is left to do.")
	}
	return nil
}

type pkiStatus struct {
	Dir string `arg:"" help:"The folder of the ceremony."`
}

func (c *pkiStatus) Run(out *cli.Output) error {
	p, err := loadCeremony(c.Dir)
	if err != nil {
		return err
	}
	entries, err := pki.ReadJournal(c.Dir)
	if err != nil && !errors.Is(err, pki.ErrNoCeremony) {
		return err
	}
	left, err := pki.Left(p)
	if err != nil {
		return err
	}
	for _, e := range entries {
		text := fmt.Sprintf("done  %s: on %s by %s", e.Step, e.Time.Format(time.DateTime), e.Operator)
		if e.CRL != nil {
			text += "; next by " + e.CRL.NextUpdate.Format(time.DateTime)
		}
		if err := out.Print(struct {
			Step     string    `json:"step"`
			Done     time.Time `json:"done"`
			Operator string    `json:"operator"`
		}{e.Step, e.Time, e.Operator}, text+"\n"); err != nil {
			return err
		}
	}
	return showLeft(out, left)
}

type pkiReport struct {
	Dir string `arg:"" help:"The folder of the ceremony."`
}

func (c *pkiReport) Run(out *cli.Output) error {
	lines, err := pki.Report(c.Dir)
	if err != nil {
		return err
	}
	for _, l := range lines {
		var text bytes.Buffer
		if err := l.WriteText(&text); err != nil {
			return err
		}
		if err := out.Print(l, text.String()); err != nil {
			return err
		}
	}
	return nil
}

type pkiCRL struct {
	ceremonyFlags
	offlineFlags
	Of string `name:"of" enum:"root,line,both" default:"both" help:"The CA: root, line or both (${default})."`
}

func (c *pkiCRL) Run(ctx context.Context, out *cli.Output) (err error) {
	p, err := c.load(out)
	if err != nil {
		return err
	}
	keys, err := c.keys(c.Dir, nil)
	if err != nil {
		return err
	}
	p.Keys = keys
	x, err := pki.Open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	authorities := []string{pki.RootKey, pki.LineKey}
	if c.Of != "both" {
		authorities = []string{c.Of}
	}
	return wanted(x.SignCRLs(ctx, authorities...))
}

type pkiRevoke struct {
	ceremonyFlags
	Region string `name:"region" xor:"of" required:"" help:"The region whose issuing CA is revoked."`
	Line   bool   `name:"line" xor:"of" required:"" help:"Revoke the CA of the line, and with it all regions."`
	Reason string `name:"reason" required:"" placeholder:"REASON" help:"key-compromise, ca-compromise, affiliation-changed, superseded, cessation, privilege-withdrawn or unspecified."`
}

func (c *pkiRevoke) Run(out *cli.Output) (err error) {
	p, err := c.load(out)
	if err != nil {
		return err
	}
	x, err := pki.Open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	if err := x.Revoke(c.Region, c.Reason); err != nil {
		return err
	}
	return out.Print(struct {
		Region string `json:"region,omitempty"`
		Reason string `json:"reason"`
	}{c.Region, c.Reason}, "It is noted. Now sign the list that tells it: issuerctl pki run\n")
}
