package issuer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"secretfree/station/board"
)

// Registry is where the factory's records are.
type Registry interface {
	// Lookup returns what is held under a device id, read consistently. An
	// error that wraps board.ErrNotEnrolled says for sure that there is
	// nothing; any other says that it is not known.
	Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error)
}

// Config of an Issuer.
type Config struct {
	Policy   Policy
	Registry Registry
	Claims   Claims
	// CAs by name, of at most 64 characters. A claim remembers its CA's name,
	// and any retry goes to the same, so a name outlives the claims that were
	// made under it.
	CAs map[string]CA
	// Retired are CAs that sign nothing new. What they have signed is still
	// answered, checked and revoked.
	Retired map[string]CA
	// Registrar is where certificates are made known before they are answered;
	// nil if nowhere.
	Registrar Registrar
	// Admit, if set, is asked before a request of a device costs more than
	// reading what it has had; an error means try later. Requests that get the
	// certificate that the device has are not asked about: whoever recorded one
	// must not keep the device from renewing.
	Admit func(board.DeviceID) error
	Now   func() time.Time // nil: time.Now
}

// Issuer issues certificates. Its methods may be called at once.
type Issuer struct {
	config Config
	cas    map[string]CA                // with the retired ones
	checks map[string]*CertificateCheck // by the name of the CA
	locks  deviceLocks
}

// New checks the configuration.
func New(config Config) (*Issuer, error) {
	if err := config.Policy.Check(); err != nil {
		return nil, err
	}
	if config.Registry == nil || len(config.CAs) == 0 || config.Claims == nil {
		return nil, errors.New("issuer: it needs a registry, a CA and claims")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	i := &Issuer{config: config, cas: maps.Clone(config.CAs), checks: map[string]*CertificateCheck{}}
	for name, ca := range config.Retired {
		if i.cas[name] != nil {
			return nil, fmt.Errorf("issuer: the CA %q is retired, and is not", name)
		}
		i.cas[name] = ca
	}
	for name, ca := range i.cas {
		if name == "" || len(name) > maxCA || ca == nil {
			return nil, fmt.Errorf("issuer: the CA %q has no name, or is none", name)
		}
		profile := ca.Profile()
		if len(profile.Roots) == 0 && !profile.CAControlled {
			return nil, fmt.Errorf("issuer: the CA %q has no root certificate: nothing that it returns could be checked", name)
		}
		i.checks[name] = NewCertificateCheck(profile)
	}
	return i, nil
}

// SKU is the product whose devices get certificates here.
func (i *Issuer) SKU() string { return i.config.Policy.SKU }

// CA is the CA of a name that signs new certificates; nil if there is none.
func (i *Issuer) CA(name string) CA { return i.config.CAs[name] }

// CheckStored compares a stored certificate with its claim and with the CA that
// has the name of the claim's, at the time when it was made. An error that
// wraps ErrWrongCertificate says that this CA did not sign it.
func (i *Issuer) CheckStored(issuance Issuance) error {
	if i.cas[issuance.Claim.CA] == nil {
		return fmt.Errorf("%w: %q", ErrUnknownCA, issuance.Claim.CA)
	}
	if issuance.Certificate == nil {
		return nil
	}
	return i.checked(*issuance.Certificate, issuance.Claim, issuance.Claim.NotBefore)
}

// conflictTries is how often a step is tried again when other requests of the
// same device were first.
const conflictTries = 8

// ErrBusy says that other requests of the same device kept being first. Asking
// again helps.
var ErrBusy = errors.New("other requests of this device are under way")

// Issue gives the one certificate of the device, key, generation and epoch of a
// request; repeated, the same one. A new one is made by the CA of that name. An
// error that wraps a Refusal is a verdict. Any other says that it could not be
// done now: asking again goes on from where it broke off, and nothing that was
// signed is lost.
func (i *Issuer) Issue(ctx context.Context, request Request, ca string) (Certificate, error) {
	if i.config.CAs[ca] == nil {
		return Certificate{}, fmt.Errorf("there is no CA %q", ca)
	}
	enrolment, err := i.lookup(ctx, request)
	if err != nil {
		return Certificate{}, err
	}
	now := i.config.Now()
	approved, err := Decide(request, enrolment, i.config.Policy, now)
	if err != nil {
		return Certificate{}, err
	}
	back, err := i.locks.take(ctx, approved.device)
	if err != nil {
		return Certificate{}, err
	}
	defer back()
	issuance, had, err := i.claim(ctx, approved, ca, now)
	if err != nil {
		return Certificate{}, err
	}
	for range conflictTries {
		next, done, err := i.step(ctx, approved, issuance, ca, now)
		if err != nil {
			return Certificate{}, err
		}
		if done {
			i.revokeSuperseded(ctx, had, now)
			return *next.Certificate, nil
		}
		issuance = next
	}
	return Certificate{}, ErrBusy
}

// claim returns the issuance that a request goes on from, written down before
// anything is signed, and what the device had before.
func (i *Issuer) claim(ctx context.Context, approved Approved, ca string, now time.Time) (_ Issuance, had []Issuance, err error) {
	had, err = i.config.Claims.Issuances(ctx, approved.device)
	if err != nil {
		return Issuance{}, nil, fmt.Errorf("reading what was issued: %w", err)
	}
	known, epoch, err := approved.plan(had, i.config.Policy, now)
	if err != nil {
		return Issuance{}, nil, err
	}
	if known != nil && known.State == Live {
		return *known, had, nil
	}
	if i.config.Admit != nil {
		if err := i.config.Admit(approved.device); err != nil {
			return Issuance{}, nil, err
		}
	}
	if known != nil {
		return *known, had, nil
	}
	proposal, err := i.newClaim(approved, epoch, ca, now)
	if err != nil {
		return Issuance{}, nil, err
	}
	issuance, err := i.config.Claims.Create(ctx, Issuance{Claim: proposal, Version: 1, State: Claimed})
	if err != nil {
		return Issuance{}, nil, fmt.Errorf("claiming the issuance: %w", err)
	}
	return issuance, had, nil
}

// ErrUnknownCA says that a claim is with a CA that this issuer does not have.
var ErrUnknownCA = errors.New("the claim is with a CA that this issuer does not know")

// staleClaim is how old a claim gets for which nothing was asked of a CA.
const staleClaim = time.Hour

// outdated reports whether a claim for which nothing was asked of a CA says
// something else than one of today would.
func (i *Issuer) outdated(c Claim, a Approved, now time.Time) bool {
	return i.config.CAs[c.CA] == nil || now.Before(c.NotBefore) || now.Sub(c.Created) > staleClaim || c.Org != a.org || c.AltName != a.altName ||
		c.NotAfter.Sub(c.NotBefore) > a.notAfter.Sub(a.notBefore) || c.NotAfter.After(i.ends(c.CA, c.NotAfter))
}

// ends is when what a CA signs has to end at the latest, or at, if that is not
// known or later.
func (i *Issuer) ends(ca string, at time.Time) time.Time {
	if limited, ok := i.config.CAs[ca].(interface{ NotAfter() time.Time }); ok && limited.NotAfter().Before(at) {
		return limited.NotAfter()
	}
	return at
}

// newClaim is the claim of what was approved, with an end that its CA outlives.
func (i *Issuer) newClaim(approved Approved, epoch int, ca string, now time.Time) (Claim, error) {
	c, err := newClaim(approved, epoch, ca, now)
	if err != nil {
		return Claim{}, err
	}
	ends := i.ends(ca, c.NotAfter)
	if ends.Before(c.NotAfter) && ends.Before(now.Add(time.Hour)) {
		return Claim{}, fmt.Errorf("the CA %q ends on %s: make a new one, and name this one in [[retired_ca]]", ca, ends.Format(time.DateTime))
	}
	c.NotAfter = ends
	return c, nil
}

// propose puts today's claim in the place of one for which nothing was asked of
// a CA. Who was about to ask is told by the version.
func (i *Issuer) propose(ctx context.Context, approved Approved, issuance Issuance, door string, now time.Time) (Issuance, bool, error) {
	proposal, err := i.newClaim(approved, issuance.Claim.Epoch, door, now)
	if err != nil {
		return Issuance{}, false, err
	}
	proposal.Serial, proposal.Challenge = issuance.Claim.Serial, issuance.Claim.Challenge
	issuance.Claim = proposal
	return i.replace(ctx, issuance)
}

// step takes an issuance one state further. It is done when the certificate may
// be answered.
func (i *Issuer) step(ctx context.Context, approved Approved, issuance Issuance, door string, now time.Time) (_ Issuance, done bool, err error) {
	if err := issuance.Claim.Covers(approved); err != nil {
		return Issuance{}, false, err
	}
	// Nothing was asked of the claim's CA: a request for another CA need not
	// wait for that one.
	if issuance.State == Claimed && issuance.CAState == "" && (issuance.Claim.CA != door || i.outdated(issuance.Claim, approved, now)) {
		return i.propose(ctx, approved, issuance, door, now)
	}
	ca := i.cas[issuance.Claim.CA]
	if ca == nil {
		return Issuance{}, false, fmt.Errorf("%w: %q, of epoch %d; name it in [ca], [proto] or [[retired_ca]], or let the device have another epoch (issuerctl device transfer)",
			ErrUnknownCA, issuance.Claim.CA, issuance.Claim.Epoch)
	}
	if !now.Before(issuance.Claim.NotAfter) {
		return Issuance{}, false, fmt.Errorf("%w: on %s", CertificateExpired, issuance.Claim.NotAfter.Format(time.DateOnly))
	}
	switch issuance.State {
	case Claimed:
		memo := &claimState{claims: i.config.Claims, issuance: issuance}
		fresh, err := ca.Issue(ctx, approved, issuance.Claim, memo)
		issuance = memo.issuance
		if issuance.State != Claimed || errors.Is(err, ErrCAStateChanged) { // another request was first
			return issuance, false, nil
		}
		if err != nil {
			return Issuance{}, false, fmt.Errorf("asking the CA: %w", err)
		}
		if err := i.checked(fresh, issuance.Claim, now); err != nil {
			return Issuance{}, false, err
		}
		issuance.State, issuance.Certificate = Signed, &fresh
		if i.config.Registrar == nil {
			issuance.State, issuance.Activated = Live, now.UTC().Truncate(time.Second)
		}
		return i.replace(ctx, issuance)
	case Signed:
		if err := i.checked(*issuance.Certificate, issuance.Claim, now); err != nil {
			return Issuance{}, false, err
		}
		return i.activate(ctx, issuance, now)
	case Live:
		return issuance, true, i.checked(*issuance.Certificate, issuance.Claim, now)
	}
	return Issuance{}, false, fmt.Errorf("%w: epoch %d, because of %s", CertificateRevoked, issuance.Claim.Epoch, issuance.Reason)
}

// activate registers a certificate that is written down, and notes that it was
// done.
func (i *Issuer) activate(ctx context.Context, issuance Issuance, now time.Time) (Issuance, bool, error) {
	if i.config.Registrar != nil {
		if err := i.config.Registrar.Register(ctx, issuance.Claim.Device, *issuance.Certificate); err != nil {
			return Issuance{}, false, fmt.Errorf("registering the certificate: %w", err)
		}
	}
	next := issuance
	next.State, next.Activated = Live, now.UTC().Truncate(time.Second)
	stored, done, err := i.replace(ctx, next)
	if err == nil && (stored.State == Revoking || stored.State == Revoked) && i.config.Registrar != nil {
		// It was revoked while it was being registered, and that may have come
		// last.
		if err := i.config.Registrar.Deactivate(ctx, stored.Claim.Device, *issuance.Certificate); err != nil {
			return Issuance{}, false, fmt.Errorf("deactivating a certificate that was revoked meanwhile: %w", err)
		}
	}
	return stored, done, err
}

// replace writes the next version of an issuance; done, if it was this one that
// was written, and it may be answered.
func (i *Issuer) replace(ctx context.Context, next Issuance) (Issuance, bool, error) {
	next.Version++
	stored, err := i.config.Claims.Replace(ctx, next)
	if err != nil {
		return Issuance{}, false, fmt.Errorf("writing down the issuance: %w", err)
	}
	return stored, stored.State == Live && next.State == Live && stored.Equal(next), nil
}

// claimMemo is the memo of one issuance.
type claimState struct {
	claims   Claims
	issuance Issuance
}

func (m *claimState) Read() string { return m.issuance.CAState }

func (m *claimState) Write(ctx context.Context, text string) error {
	if len(text) > MaxCAState {
		return fmt.Errorf("a memo of %d bytes, at most %d are kept", len(text), MaxCAState)
	}
	next := m.issuance
	next.CAState = text
	next.Version++
	stored, err := m.claims.Replace(ctx, next)
	if err != nil {
		return fmt.Errorf("writing a memo: %w", err)
	}
	m.issuance = stored
	if !stored.Equal(next) {
		return ErrCAStateChanged
	}
	return nil
}

// Explain looks up the device that a request claims to be, and tells every rule
// of the decision, and then what the device would get. The verdicts are nil if
// the registry, or what was issued, could not be read. It writes nothing.
func (i *Issuer) Explain(ctx context.Context, request Request) ([]Verdict, error) {
	enrolment, err := i.lookup(ctx, request)
	if err != nil {
		return nil, err
	}
	now := i.config.Now()
	approved, t := decide(request, enrolment, i.config.Policy, now, ruleTrace{})
	var had []Issuance
	if t.err == nil {
		if had, err = i.config.Claims.Issuances(ctx, approved.device); err != nil {
			return nil, fmt.Errorf("reading what was issued: %w", err)
		}
	}
	known, epoch, refused := approved.plan(had, i.config.Policy, now)
	t.rule(afterDecide(refused), func() error { return refused })
	verdicts := t.verdicts()
	if t.err == nil {
		detail := fmt.Sprintf("a new certificate, of epoch %d", epoch)
		if known != nil {
			detail = fmt.Sprintf("the certificate of epoch %d again (%s)", epoch, known.State)
		}
		verdicts[len(verdicts)-1].Detail = detail
	}
	return verdicts, t.err
}

// afterDecide is the name of the last rule: what the device has had.
func afterDecide(err error) Refusal {
	if refusal, ok := errors.AsType[Refusal](err); ok {
		return refusal
	}
	return "epoch"
}

// ExplainDevice is Explain without a request, and what the device has had.
func (i *Issuer) ExplainDevice(ctx context.Context, device board.DeviceID) ([]Verdict, []Issuance, error) {
	enrolment, err := i.enrolment(ctx, device)
	if err != nil {
		return nil, nil, err
	}
	had, err := i.config.Claims.Issuances(ctx, device)
	if err != nil {
		return nil, nil, fmt.Errorf("reading what was issued: %w", err)
	}
	verdicts, err := explainDevice(device, enrolment, i.config.Policy, i.config.Now())
	return verdicts, had, err
}

func (i *Issuer) lookup(ctx context.Context, request Request) (*board.Enrolment, error) {
	device, ok := request.Claimed()
	if !ok {
		return nil, nil // Decide refuses it by name
	}
	return i.enrolment(ctx, device)
}

// enrolment is nil if the registry surely holds nothing.
func (i *Issuer) enrolment(ctx context.Context, device board.DeviceID) (*board.Enrolment, error) {
	enrolment, err := i.config.Registry.Lookup(ctx, device)
	if errors.Is(err, board.ErrNotEnrolled) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking up device %s: %w", device, err)
	}
	return &enrolment, nil
}

// ErrWrongCertificate says that a CA, or the store of claims, returned another
// certificate than the approved one. It does not leave.
var ErrWrongCertificate = errors.New("the certificate is not the one that was approved")

// checked compares a certificate with its claim. One that was made while the
// clock was ahead is checked at the time when it begins to be valid.
func (i *Issuer) checked(c Certificate, claim Claim, now time.Time) error {
	if now.Before(claim.NotBefore) {
		now = claim.NotBefore
	}
	if err := i.checks[claim.CA].Check(c, claim, now); err != nil {
		return fmt.Errorf("%w: %w", ErrWrongCertificate, err)
	}
	return nil
}
