// Package issuer deviceLocks a certificate signing request from a customer's
// home and the factory's record of that board into a certificate: parse, look
// up, Decide, claim, sign, check, register, finish, answer.
//
// Start reading at Decide, then Approved.plan (what a device gets that has had
// one before), then Issuer.Issue. HTTP, EST and Lambda are shells around them.
// Issuer.Sweep settles what broke off.
package issuer

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"secretfree/station/board"
	"secretfree/station/board/certreq"
)

// DefaultValidity is how long a certificate is valid where the policy does not
// say. It is long, because stock firmware makes plain requests only, and cannot
// renew without an operator.
const DefaultValidity = 10 * 365 * 24 * time.Hour

const maxValidity = 50 * 365 * 24 * time.Hour

// DefaultOverlap is how long a former certificate stays valid beside the one
// that renewed it, where the policy does not say.
const DefaultOverlap = 24 * time.Hour

// backdate is how long before the decision a certificate begins, for devices
// whose clocks are slow.
const backdate = 5 * time.Minute

// Policy is what one SKU allows.
type Policy struct {
	SKU      string           // required
	Stations []board.Verifier // whose records are believed; none means that every request is refused
	// Algorithms of keys that get certificates. None means P-256 alone.
	Algorithms []board.Algorithm
	// RefuseSHA1 refuses requests signed with ECDSA and SHA-1, which is all
	// that stock firmware can do. Such a signature only shows possession of the
	// key; no certificate is ever signed so.
	RefuseSHA1 bool
	// AllowNoProof lets records pass in which the board proved nothing at the
	// factory.
	AllowNoProof bool
	Validity     time.Duration // 0 means DefaultValidity
	// Renew is how long before its end a certificate may be renewed by a fresh
	// request. 0 means a third of Validity.
	Renew time.Duration
	// Overlap is how long a certificate stays valid beside the one that renewed
	// it: a device that fails half-way still has the former one. Then the
	// former one is revoked. 0 means DefaultOverlap.
	Overlap time.Duration
	// Challenges are what makes a request fresh; nil if this issuer makes none.
	Challenges *Challenges
	// RequireFresh refuses every request that answers no challenge. Without it
	// the first certificate of an epoch is free, for firmware that only makes a
	// plain request; the same again as well; any further one needs a fresh
	// request, or an operator.
	RequireFresh bool
	// MinGeneration refuses records of earlier generations; 0 means none.
	MinGeneration int
	// Holds keeps back whole lots.
	Holds []LotHold
	// Organization stands in each subject beside the common name, unless it is
	// empty.
	Organization string
	// AlternativeName is what each certificate has as its one alternative name,
	// with {device} for the device id: a URN, such as
	// urn:dev:ops:widgiot-{device}, or the name of a host. Empty means none; of
	// the request none is taken.
	AlternativeName string
}

// LotHold keeps back the boards that a station read at a time.
type LotHold struct {
	Station  string    // "<sku>/<station>"; empty: all stations
	From, To time.Time // of ReadAt; From is held, To is not; zero: without limit
	Why      string
}

func (h LotHold) holds(r board.Record) bool {
	return (h.Station == "" || h.Station == r.Origin()) && !r.ReadAt.Before(h.From) && (h.To.IsZero() || r.ReadAt.Before(h.To))
}

// Check reports a policy that could never let anything through, or lets through
// too much.
func (p Policy) Check() error {
	if err := board.CheckName(p.SKU); err != nil {
		return fmt.Errorf("policy: the SKU: %w", err)
	}
	if len(p.Stations) == 0 {
		return errors.New("policy: no trusted station: every request would be refused; list the stations' public keys")
	}
	for _, algorithm := range p.Algorithms {
		if !slices.Contains([]board.Algorithm{board.P256, board.P384, board.RSA}, algorithm) {
			return fmt.Errorf("policy: unknown key algorithm %q: want %s, %s or %s", algorithm, board.P256, board.P384, board.RSA)
		}
	}
	if p.Validity != 0 && (p.Validity < time.Hour || p.Validity > maxValidity) {
		return fmt.Errorf("policy: a validity of %v, want 1h to %v", p.Validity, maxValidity)
	}
	if p.Renew < 0 || p.Renew >= p.validity() {
		return fmt.Errorf("policy: renewal %v before the end of a validity of %v", p.Renew, p.validity())
	}
	if p.Overlap < 0 || p.Overlap > maxValidity {
		return fmt.Errorf("policy: an overlap of %v, want 0 to %v", p.Overlap, maxValidity)
	}
	if p.RequireFresh && p.Challenges == nil {
		return errors.New("policy: fresh requests are required, and no challenges are made: every request would be refused")
	}
	for _, hold := range p.Holds {
		if hold.Why == "" || !hold.To.IsZero() && !hold.To.After(hold.From) {
			return errors.New("policy: a hold of a lot needs a reason, and must end after it begins")
		}
	}
	if err := p.checkAlternativeName(); err != nil {
		return err
	}
	if len(p.Organization) > maxOrg || strings.ContainsFunc(p.Organization, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("policy: the organization is not at most 64 characters of printable ASCII")
	}
	return nil
}

func (p Policy) validity() time.Duration {
	if p.Validity == 0 {
		return DefaultValidity
	}
	return p.Validity
}

func (p Policy) overlap() time.Duration {
	if p.Overlap == 0 {
		return DefaultOverlap
	}
	return p.Overlap
}

func (p Policy) renew() time.Duration {
	if p.Renew == 0 {
		return p.validity() / 3
	}
	return p.Renew
}

// Approved is what may be made into a certificate. Only Decide makes one that
// is not zero, and a CA refuses the zero value; so nothing that was not decided
// on can be signed.
type Approved struct {
	device     board.DeviceID
	key        board.Key
	generation int
	epoch      int       // the first that counts
	notBefore  time.Time // UTC, whole seconds
	notAfter   time.Time
	org        string            // beside the device id in the subject; may be empty
	altName    string            // the one alternative name; may be empty
	csr        string            // DER
	challenge  string            // that it answers; empty if none
	peer       *x509.Certificate // as in Request
	renewal    bool              // as in Request
}

// Device is the subject of the certificate: its one common name.
func (a Approved) Device() board.DeviceID { return a.device }

// Key is the one thing in the certificate that the request brought.
func (a Approved) Key() board.Key { return a.key }

// Generation of the record.
func (a Approved) Generation() int { return a.generation }

// CSR is a fresh copy of the request in DER, for CAs that sign nothing else.
// Its signature was verified; of the rest nothing but the key may get into a
// certificate.
func (a Approved) CSR() []byte { return []byte(a.csr) }

func (a Approved) check() error {
	if !a.device.Valid() || a.key == (board.Key{}) || a.generation < 1 || !a.notAfter.After(a.notBefore) {
		return errors.New("not approved by a decision")
	}
	return nil
}

// Decide is the whole policy. It looks at the request, at what the registry
// holds under the claimed device (nil if nothing), at the policy and at the
// clock, and at nothing else. The error wraps the Refusal of the first rule
// that does not hold.
//
// An unknown device and a wrong key are told apart before any costly check of
// the record, so that they take alike.
func Decide(request Request, enrolment *board.Enrolment, policy Policy, now time.Time) (Approved, error) {
	approved, trace := decide(request, enrolment, policy, now, ruleTrace{})
	return approved, trace.err
}

func decide(request Request, enrolment *board.Enrolment, policy Policy, now time.Time, t ruleTrace) (Approved, ruleTrace) {
	var (
		csr    = request.csr
		names  = request.commonNames()
		key    board.Key
		device board.DeviceID
		item   board.Enrolment
		record board.Record
	)
	if enrolment != nil {
		item = *enrolment
	}
	if t.about != nil { // no request: the record alone
		device, key = *t.about, item.Key
	}

	// The request alone: is it what it says, and does its sender own the key?
	t.ask(KeyType, func() (err error) {
		key, err = allowedKey(csr, policy.Algorithms)
		return err
	})
	t.ask(SignatureAlgorithm, func() error { return allowedSignature(csr, policy.RefuseSHA1) })
	t.ask(CSRSignature, func() error { return csr.CheckSignature() })
	t.ask(NoCN, func() error { return unless(len(names) > 0, "the subject has no common name") })
	t.ask(SeveralCN, func() error { return unless(len(names) <= 1, "the subject has more than one common name") })
	t.ask(CNNotADeviceID, func() (err error) {
		device, err = deviceIDOf(names[0])
		return err
	})
	t.ask(ExtraNames, func() error { return onlyHarmlessNames(request) })
	t.ask(CARequested, func() error { return notForACA(csr) })

	// The registry: is this the key that the factory saw in this board?
	t.require(NotEnrolled, enrolment != nil, "the registry holds nothing under this device id")
	t.require(KeyMismatch, item.Key == key, "the key is not the enrolled one")
	t.require(ItemMismatch, item.Device == device, "the registry's item is of another device")

	// The record: did a station that we trust vouch for it?
	var untrusted error
	t.require(NoEnvelope, len(item.Envelope) > 0, "the registry's item holds no signed record: no station wrote it")
	t.rule(BadRecord, func() error {
		sealed, err := board.OpenEnvelope(item.Envelope, policy.Stations...)
		if errors.Is(err, board.ErrUntrusted) {
			untrusted, err = err, nil
		}
		record = sealed.Record()
		return err
	})
	t.rule(UntrustedRecord, func() error { return untrusted })
	t.require(ForeignSKU, record.SKU == policy.SKU, "the record is of another SKU")
	t.require(RecordMismatch, record.Device == device && record.Key == key && record.Generation == item.Generation,
		"the signed record differs from the request or from the registry's item in device, key or generation")
	t.rule(RecordProof, func() error {
		if record.Proof == nil {
			return unless(policy.AllowNoProof, "the record holds no proof of possession, and the policy asks for one")
		}
		return record.Proof.Verify(device, key)
	})

	// The state: may it have a certificate today?
	t.require(StateHeld, item.State != board.Held, "the device is held")
	t.require(StateScrapped, item.State != board.Scrapped, "the device was scrapped")
	t.require(StateRevoked, item.State != board.Revoked, "the device was revoked")
	t.require(StateUnknown, item.State == board.Active, "the item's state is none of the known ones")
	t.require(GenerationTooOld, record.Generation >= policy.MinGeneration, "the policy wants a later generation")
	t.rule(LotHeld, func() error {
		for _, hold := range policy.Holds {
			if hold.holds(record) {
				return errors.New(hold.Why)
			}
		}
		return nil
	})

	// Freshness: was it made now, and for us?
	challenge, once := request.answered()
	t.ask(SeveralChallenges, func() error { return unless(once, "it answers more than one challenge") })
	var expired error
	t.ask(BadChallenge, func() error {
		if challenge == "" {
			return nil
		}
		err := policy.Challenges.check(challenge, now)
		if errors.Is(err, errExpired) {
			expired, err = err, nil
		}
		return err
	})
	t.ask(ChallengeExpired, func() error { return expired })
	t.ask(ChallengeSignature, func() error { return request.detached.verify(key, policy.RefuseSHA1) })
	t.ask(NoChallenge, func() error {
		return unless(challenge != "" || !policy.RequireFresh, "it answers no challenge, and the policy asks for one")
	})

	if t.err != nil || t.about != nil {
		return Approved{}, t
	}
	notBefore := now.UTC().Add(-backdate).Truncate(time.Second)
	return Approved{
		device: device, key: key, generation: record.Generation, epoch: item.Epoch, org: policy.Organization, altName: policy.alternativeName(device), csr: string(csr.Raw),
		notBefore: notBefore, notAfter: notBefore.Add(policy.validity()).Truncate(time.Second),
		challenge: challenge, peer: request.peer, renewal: request.renewal,
	}, t
}

func allowedKey(csr *certreq.Request, allowed []board.Algorithm) (board.Key, error) {
	if csr == nil {
		return board.Key{}, errors.New("no request")
	}
	if csr.KeyErr != nil {
		return board.Key{}, csr.KeyErr
	}
	key, err := board.NewKey(csr.Key, csr.SPKI)
	if err != nil {
		return board.Key{}, err
	}
	if len(allowed) == 0 {
		allowed = []board.Algorithm{board.P256}
	}
	if !slices.Contains(allowed, key.Algorithm()) {
		return board.Key{}, fmt.Errorf("the policy does not allow %s", key.Algorithm())
	}
	return key, nil
}

func allowedSignature(csr *certreq.Request, refuseSHA1 bool) error {
	switch csr.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return nil
	case x509.ECDSAWithSHA1:
		return unless(!refuseSHA1, "the policy does not allow SHA-1")
	}
	return fmt.Errorf("the algorithm %s is not accepted", csr.SignatureOID)
}

// Object identifiers (X.520; RFC 2985; RFC 5280, 4.2.1).
const (
	oidCommonName         = "2.5.4.3"
	oidSurname            = "2.5.4.4"
	oidCountry            = "2.5.4.6"
	oidLocality           = "2.5.4.7"
	oidState              = "2.5.4.8"
	oidOrganization       = "2.5.4.10"
	oidOrganizationalUnit = "2.5.4.11"
	oidEmail              = "1.2.840.113549.1.9.1"
	oidChallengePassword  = "1.2.840.113549.1.9.7"
	oidSubjectAltName     = "2.5.29.17"
	oidBasicConstraints   = "2.5.29.19"
)

// onlyHarmlessNames lets the attributes pass that the boards' own firmware
// fills in. They are ignored: no part of the subject is copied. Any other
// attribute, and any alternative name, is somebody's attempt at another
// identity.
func onlyHarmlessNames(request Request) error {
	for _, a := range request.csr.Subject {
		switch a.Type {
		case oidCommonName, // counted by rules of its own
			oidSurname, oidCountry, oidLocality, oidState, oidOrganization, oidOrganizationalUnit, oidEmail:
		default:
			return fmt.Errorf("the subject has an attribute %s", a.Type)
		}
	}
	if request.csr.ExtensionsErr != nil { // names may stand in them
		return request.csr.ExtensionsErr
	}
	for _, extension := range request.csr.Extensions {
		if extension.ID == oidSubjectAltName { // even if no name in it is of a kind that we know
			return errors.New("alternative names are requested")
		}
	}
	return nil
}

// notForACA refuses a request that asks for more than a device gets. Other
// extensions are ignored.
func notForACA(csr *certreq.Request) error {
	for _, extension := range csr.Extensions {
		if extension.ID != oidBasicConstraints {
			continue
		}
		var constraints struct {
			IsCA       bool `asn1:"optional"`
			MaxPathLen int  `asn1:"optional,default:-1"`
		}
		if rest, err := asn1.Unmarshal(extension.Value, &constraints); err != nil || len(rest) > 0 {
			return errors.New("basic constraints that cannot be read")
		}
		return unless(!constraints.IsCA, "a CA certificate is requested")
	}
	return nil
}

func unless(ok bool, otherwise string) error {
	if !ok {
		return errors.New(otherwise)
	}
	return nil
}
