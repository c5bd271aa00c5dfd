package pki

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Config of a Ceremony.
type Config struct {
	Dir      string // it must be there
	Plan     Plan
	Keys     Keys
	Clients  Clients // wanted only where the plan has something in AWS
	Operator string  // who does it, for the journal
	// Begin, if it is not nil, is told of each step before it is taken.
	Begin func(Step)
}

// Step is one that is left.
type Step struct {
	ID   string `json:"step"`
	Does string `json:"does"`          // in words
	Key  string `json:"key,omitempty"` // that is used or made; its holder has to be there

	run func(context.Context) error
}

// Ceremony is a folder that is open, and locked against others. It is not for
// several callers at once.
type Ceremony struct {
	c       Config
	journal *journal

	// cut is for tests: it is called before and after what is durable, and
	// breaks the step off by an error.
	cut func(what string) error
}

// Open reads what was made in a folder so far, and checks that the files are
// still those. The caller closes it.
func Open(c Config) (*Ceremony, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	j, err := openJournal(c.Dir)
	if err != nil {
		return nil, err
	}
	x := &Ceremony{c: c, journal: j}
	if err := errors.Join(sweep(x.dirs()...), unchanged(c.Dir, j.entries)); err != nil {
		return nil, errors.Join(err, j.close())
	}
	return x, nil
}

// Left lists the steps that are left in a folder, with nothing but reading its
// files: no lock, no key, no network. A folder in which nothing was made yet
// has them all.
func Left(c Config) ([]Step, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	entries, err := ReadJournal(c.Dir)
	if err != nil && !errors.Is(err, ErrNoCeremony) {
		return nil, err
	}
	if err := unchanged(c.Dir, entries); err != nil {
		return nil, err
	}
	return (&Ceremony{c: c, journal: &journal{entries: entries}}).left()
}

func (c Config) check() error {
	if err := c.Plan.Check(); err != nil {
		return err
	}
	if len(c.Operator) == 0 || len(c.Operator) > 200 || strings.ContainsFunc(c.Operator, func(r rune) bool { return r < ' ' }) {
		return fmt.Errorf("the operator's name is %q, want one line", c.Operator)
	}
	return nil
}

// Close frees the folder.
func (x *Ceremony) Close() error { return x.journal.close() }

func (x *Ceremony) dirs() []string {
	dirs := []string{x.c.Dir, filepath.Join(x.c.Dir, "crl")}
	for _, r := range x.c.Plan.Regions {
		dirs = append(dirs, filepath.Join(x.c.Dir, "regions", r.Name))
	}
	return dirs
}

// unchanged checks the files that the journal speaks of. A key may be away, in
// a safe or where it is used.
func unchanged(dir string, entries []Entry) error {
	for _, e := range entries {
		for _, f := range e.Files {
			switch state, err := f.state(dir); {
			case err != nil:
				return err
			case state == "changed", state == "away" && !strings.HasSuffix(f.Name, ".key"):
				return fmt.Errorf("%s is %s since step %s made it on %s: %w", f.Name, state, e.Step, e.Time.Format(time.DateOnly), errConflict)
			}
		}
	}
	return nil
}

// state is "as made", "changed" or "away".
func (f File) state(dir string) (string, error) {
	if !filepath.IsLocal(f.Name) {
		return "", fmt.Errorf("the journal names a file outside the folder: %w", errConflict)
	}
	data, err := readFile(filepath.Join(dir, filepath.FromSlash(f.Name)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "away", nil
	case err != nil:
		return "", err
	case digest(data) != f.SHA256:
		return "changed", nil
	}
	return "as made", nil
}

// Left is what Run would do.
func (x *Ceremony) Left() ([]Step, error) { return x.left() }

// Run takes all steps that are left, each durable before the next. After any
// error, and after the end of the process at any place, another run goes on. If
// a key's holder has to come the error wraps ErrNoPassphrase and is a
// *StepError that names the key.
func (x *Ceremony) Run(ctx context.Context) error {
	for before := ""; ; {
		left, err := x.left()
		if err != nil || len(left) == 0 {
			return err
		}
		if left[0].ID == before {
			return fmt.Errorf("step %s was taken and is left again", before)
		}
		before = left[0].ID
		if err := x.take(ctx, left[0]); err != nil {
			return err
		}
	}
}

// StepError is why a step was not done.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string { return "step " + e.Step.ID + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

func (x *Ceremony) take(ctx context.Context, s Step) error {
	if err := ctx.Err(); err != nil {
		return &StepError{s, context.Cause(ctx)}
	}
	if x.c.Begin != nil {
		x.c.Begin(s)
	}
	if err := s.run(ctx); err != nil {
		return &StepError{s, err}
	}
	return nil
}

// SignCRLs signs a new list of each authority, RootKey and LineKey, and
// publishes what is not published yet.
func (x *Ceremony) SignCRLs(ctx context.Context, authorities ...string) error {
	for _, a := range authorities {
		if _, err := x.authority(a); err != nil {
			return err
		}
		if err := x.take(ctx, x.crlStep(a)); err != nil {
			return err
		}
	}
	for _, s := range x.publishSteps() {
		if err := x.take(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// Revoke notes that the certificate of a region's issuing CA, or of the line if
// region is empty, is not to be believed any more. It is durable on return;
// what tells the world is the next CRL. Repeated, it changes nothing. A
// revoked CA takes no more steps.
func (x *Ceremony) Revoke(region, reason string) error {
	if _, ok := reasons[reason]; !ok {
		return fmt.Errorf("the reason %q is none of %s", reason, strings.Join(Reasons(), ", "))
	}
	by, of := RootKey, "line-certificate"
	if region != "" {
		by, of = LineKey, regionStep(region, "certificate")
	}
	made := x.journal.made(of)
	if made == nil || made.Certificate == nil {
		return fmt.Errorf("revoking: there is no certificate of step %s", of)
	}
	if r := x.revocation(of); r != nil {
		if r.Reason != reason {
			return fmt.Errorf("revoking: it was revoked on %s for the reason %s already: %w", r.Time.Format(time.DateOnly), r.Reason, errConflict)
		}
		return nil
	}
	return x.note(Entry{Step: "revoke/" + of, Revoked: &Revocation{By: by, Of: of, Serial: made.Certificate.Serial, Reason: reason,
		Time: time.Now().UTC().Truncate(time.Second)}})
}

func (x *Ceremony) revocation(of string) *Revocation {
	if e := x.journal.made("revoke/" + of); e != nil {
		return e.Revoked
	}
	return nil
}

// note appends to the journal what is durable already.
func (x *Ceremony) note(e Entry) error {
	e.Time, e.Operator = time.Now().UTC().Truncate(time.Millisecond), x.c.Operator
	return x.durable("journal "+e.Step, func() error { return x.journal.append(e) })
}

// durable does what is durable when it returns.
func (x *Ceremony) durable(what string, do func() error) error {
	if x.cut != nil {
		if err := x.cut("before " + what); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if x.cut != nil {
		return x.cut("after " + what)
	}
	return nil
}

func (x *Ceremony) path(name string) string {
	return filepath.Join(x.c.Dir, filepath.FromSlash(name))
}

// files gives files their hashes. A key that is no file is left out.
func (x *Ceremony) files(names ...string) ([]File, error) {
	var files []File
	for _, name := range names {
		data, err := readFile(x.path(name))
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(name, ".key") {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, File{name, digest(data)})
	}
	return files, nil
}

// left lists the steps in the order of the package comment.
func (x *Ceremony) left() ([]Step, error) {
	var steps []Step
	add := func(s Step) {
		if x.journal.made(s.ID) == nil {
			steps = append(steps, s)
		}
	}
	p := x.c.Plan
	add(x.keyStep("root-key", RootKey))
	add(Step{ID: "root-certificate", Key: RootKey, run: x.signRoot, Does: fmt.Sprintf("sign the root's own certificate, %q, path length %d, for %s; write root.pem",
		p.rootName().CommonName, pathRoot, days(p.Root))})
	add(x.keyStep("line-key", LineKey))
	add(Step{ID: "line-certificate", Key: RootKey, run: x.signLine, Does: fmt.Sprintf("sign the certificate of the line, %q, path length %d, for %s, with the root's key; write line.pem",
		p.lineName().CommonName, pathLine, days(p.Line))})
	if x.crlDue(RootKey) {
		steps = append(steps, x.crlStep(RootKey))
	}
	if x.crlDue(LineKey) {
		steps = append(steps, x.crlStep(LineKey))
	}
	for _, phase := range []func(Region) []Step{x.regionKeys, x.regionCertificates, x.regionRest} {
		for _, r := range p.Regions {
			if err := x.sameRegion(r); err != nil {
				return nil, err
			}
			if x.revocation("line-certificate") != nil || x.revocation(regionStep(r.Name, "certificate")) != nil {
				continue
			}
			for _, s := range phase(r) {
				add(s)
			}
		}
	}
	return append(steps, x.publishSteps()...), nil
}

func days(d time.Duration) string { return fmt.Sprintf("%d days", d/(24*time.Hour)) }

func regionStep(region, what string) string { return "regions/" + region + "/" + what }

// sameRegion refuses a plan that says something else of a region than when its
// key was settled.
func (x *Ceremony) sameRegion(r Region) error {
	if e := x.journal.made(regionStep(r.Name, "csr")); e != nil && (r.Kind != kindACMPCA || e.AWS["pca"] != r.ARN) {
		return fmt.Errorf("region %s is in ACM Private CA as %s, and the plan says another: %w", r.Name, e.AWS["pca"], errConflict)
	}
	if e := x.journal.made(regionStep(r.Name, "key")); e != nil && r.Kind != kindLocal {
		return fmt.Errorf("region %s has a key of its own, and the plan says that it is of kind %s: %w", r.Name, r.Kind, errConflict)
	}
	return nil
}

func (x *Ceremony) keyStep(id, key string) Step {
	return Step{ID: id, Key: key, Does: fmt.Sprintf("make a key (P-256) for %s, encrypted under its passphrase, in %[1]s.key", key), run: func(context.Context) error {
		if err := x.regionDir(key); err != nil {
			return err
		}
		var public crypto.PublicKey
		err := x.durable("key "+key, func() (err error) {
			public, err = x.c.Keys.Make(key)
			return err
		})
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return err
		}
		files, err := x.files(key + ".key")
		if err != nil {
			return err
		}
		return x.note(Entry{Step: id, Key: base64.StdEncoding.EncodeToString(der), Files: files})
	}}
}

// regionDir makes the folder that something of a region goes to.
func (x *Ceremony) regionDir(name string) error {
	if !strings.HasPrefix(name, "regions/") {
		return nil
	}
	return errors.Join(makeDir(x.path("regions")), makeDir(filepath.Dir(x.path(name))))
}

// public is the public key that a step noted.
func (x *Ceremony) public(step string) (crypto.PublicKey, error) {
	e := x.journal.made(step)
	if e == nil {
		return nil, fmt.Errorf("step %s is not done", step)
	}
	der, err := base64.StdEncoding.DecodeString(e.Key)
	if err != nil {
		return nil, fmt.Errorf("the key of step %s: %w", step, err)
	}
	return x509.ParsePKIXPublicKey(der)
}

// authority is the certificate of the root or the line.
func (x *Ceremony) authority(name string) (*x509.Certificate, error) {
	if name != RootKey && name != LineKey {
		return nil, fmt.Errorf("there is no authority %q", name)
	}
	return x.certificate(name+"-certificate", name+".pem")
}

// certificate reads one that a step made.
func (x *Ceremony) certificate(step, file string) (*x509.Certificate, error) {
	e := x.journal.made(step)
	if e == nil || e.Certificate == nil {
		return nil, fmt.Errorf("step %s is not done", step)
	}
	text, err := readFile(x.path(file))
	if err != nil {
		return nil, err
	}
	c, err := parseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if digest(c.Raw) != e.Certificate.Fingerprint {
		return nil, fmt.Errorf("%s is not the certificate of step %s: %w", file, step, errConflict)
	}
	return c, nil
}

// make signs a certificate into a file, or takes the one that is there, and
// notes it. Others are files beside it that are written before.
func (x *Ceremony) make(step, key, file string, p profile, others map[string][]byte) error {
	now := time.Now()
	var made *x509.Certificate
	text, err := readFile(x.path(file))
	found := err == nil
	switch {
	case found:
		if made, err = parseCertificate(text); err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
	case errors.Is(err, fs.ErrNotExist):
		signer, err := x.c.Keys.Open(key)
		if err != nil {
			return err
		}
		if p.parent != nil && !sameKey(signer.Public(), p.parent.PublicKey) {
			return fmt.Errorf("the key %s is not that of %q: %w", key, p.parent.Subject.CommonName, errConflict)
		}
		der, err := p.sign(signer, now)
		if err != nil {
			return fmt.Errorf("signing %s: %w", file, err)
		}
		if made, err = x509.ParseCertificate(der); err != nil {
			return err
		}
	default:
		return err
	}
	if err := p.check(made, now); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	names := []string{file}
	for name := range others {
		names = append(names, name)
	}
	slices.Sort(names[1:])
	for _, name := range names[1:] {
		if err := x.durable("file "+name, func() error { return writeNew(x.path(name), others[name]) }); err != nil {
			return err
		}
	}
	if err := x.durable("file "+file, func() error { return writeNew(x.path(file), certificatePEM(made)) }); err != nil {
		return err
	}
	files, err := x.files(names...)
	if err != nil {
		return err
	}
	return x.note(Entry{Step: step, Found: found, Files: files, Certificate: describe(made)})
}

func (x *Ceremony) signRoot(context.Context) error {
	public, err := x.public("root-key")
	if err != nil {
		return err
	}
	subject, err := nameDER(x.c.Plan.rootName())
	if err != nil {
		return err
	}
	return x.make("root-certificate", RootKey, "root.pem", profile{subject: subject, public: public, validity: x.c.Plan.Root, pathLength: pathRoot}, nil)
}

func (x *Ceremony) signLine(context.Context) error {
	root, err := x.authority(RootKey)
	if err != nil {
		return err
	}
	public, err := x.public("line-key")
	if err != nil {
		return err
	}
	subject, err := nameDER(x.c.Plan.lineName())
	if err != nil {
		return err
	}
	return x.make("line-certificate", RootKey, "line.pem", profile{subject: subject, public: public, parent: root, validity: x.c.Plan.Line, pathLength: pathLine,
		crl: x.c.Plan.URLs.RootCRL, aia: x.c.Plan.URLs.RootCertificate}, nil)
}
