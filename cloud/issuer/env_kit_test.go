package issuer

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"iter"
	"sync"
	"testing"
	"time"

	"secretfree/station/board"
)

// world is one factory and one issuer, with one enrolled board.
type world struct {
	config   Config // of issuer
	station  station
	board    simulated
	registry *memRegistry
	claims   *memClaims
	ca       *countingCA
	policy   Policy
	issuer   *Issuer
}

func newWorld(t testing.TB, ca CA) *world {
	t.Helper()
	w := &world{
		station: newStation(t, testSKU, "line3-a"), board: newSimulated(t),
		registry: &memRegistry{}, claims: &memClaims{}, ca: &countingCA{CA: ca},
	}
	w.policy = Policy{SKU: testSKU, Stations: []board.Verifier{w.station.verifier}}
	w.registry.put(enrolment(t, w.board.record(t, w.station), w.station))
	w.open(t, w.claims)
	t.Cleanup(func() { w.check(t) })
	return w
}

func (w *world) open(t testing.TB, claims Claims) {
	t.Helper()
	var err error
	w.config = Config{
		Policy: w.policy, Registry: w.registry, CAs: map[string]CA{testCA: w.ca}, Claims: claims,
	}
	w.issuer, err = New(w.config)
	if err != nil {
		t.Fatal(err)
	}
}

// check looks at all that is stored: every claim is of an enrolled board, and what is finished is its certificate;
// for each claim at most one certificate was ever signed.
func (w *world) check(t testing.TB) {
	t.Helper()
	check := NewCertificateCheck(w.ca.Profile())
	stored := w.claims.all()
	serials := map[Serial]string{}
	for id, issuance := range stored {
		if other, ok := serials[issuance.Claim.Serial]; ok {
			t.Errorf("the claims %s and %s have one serial", id, other)
		}
		serials[issuance.Claim.Serial] = id
		item, ok := w.registry.items[issuance.Claim.Device]
		if !ok || item.Key.Fingerprint() != issuance.Claim.Fingerprint {
			t.Errorf("claim %s is of no enrolled board", id)
			continue
		}
		if issuance.Certificate == nil {
			continue
		}
		if err := check.Check(*issuance.Certificate, issuance.Claim, time.Now()); err != nil {
			t.Errorf("claim %s: %v", id, err)
		}
	}
	signed := map[string]bool{}
	for leaf := range w.ca.issued {
		certificate, err := x509.ParseCertificate([]byte(leaf))
		if err != nil {
			t.Error(err)
			continue
		}
		serial := certificate.SerialNumber.String()
		if signed[serial] {
			t.Errorf("serial %s was signed with two contents", serial)
		}
		signed[serial] = true
	}
}

// fakeRegistrar is where devices connect. Each call can fail before or after it took effect.
type fakeRegistrar struct {
	mu     sync.Mutex
	active map[[32]byte]board.DeviceID
	fault  func(step string) error
}

func (f *fakeRegistrar) step(name string) error {
	if f.fault == nil {
		return nil
	}
	return f.fault(name)
}

func (f *fakeRegistrar) Register(_ context.Context, device board.DeviceID, c Certificate) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step("before register"); err != nil {
		return err
	}
	if f.active == nil {
		f.active = map[[32]byte]board.DeviceID{}
	}
	f.active[sha256.Sum256(c.Leaf)] = device
	return f.step("after register")
}

func (f *fakeRegistrar) Deactivate(_ context.Context, _ board.DeviceID, c Certificate) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step("before deactivate"); err != nil {
		return err
	}
	delete(f.active, sha256.Sum256(c.Leaf))
	return f.step("after deactivate")
}

// line is a world whose certificates are registered.
type line struct {
	*world
	registrar *fakeRegistrar
	store     Claims
	now       time.Time
}

func newLine(t testing.TB, ca CA) *line {
	t.Helper()
	l := &line{world: newWorld(t, ca), registrar: &fakeRegistrar{}, now: time.Now()}
	l.store = l.claims
	l.policy.Challenges = challenges(t)
	l.restart(t)
	return l
}

// restart makes an issuer anew, as after a crash.
func (l *line) restart(t testing.TB) {
	t.Helper()
	var err error
	l.config = Config{
		Policy: l.policy, Registry: l.registry, CAs: map[string]CA{testCA: l.ca}, Claims: l.store, Registrar: l.registrar,
		Now: func() time.Time { return l.now },
	}
	l.issuer, err = New(l.config)
	if err != nil {
		t.Fatal(err)
	}
}

func (l *line) set(change func(e *board.Enrolment)) {
	e := l.registry.items[l.board.id]
	change(&e)
	l.registry.put(e)
}

func (l *line) sweep(t testing.TB, apply bool) (found []Finding) {
	t.Helper()
	if err := l.issuer.Sweep(t.Context(), SweepOptions{Apply: apply}, func(f Finding) { found = append(found, f) }); err != nil {
		t.Error(err)
	}
	return found
}

// settled: what is active where devices connect is a certificate that the claims call active, and the reverse.
func (l *line) settled(t testing.TB) {
	t.Helper()
	live := map[[32]byte]board.DeviceID{}
	for i, err := range l.store.All(context.WithoutCancel(t.Context())) {
		id := i.Claim.ID()
		if err != nil {
			t.Error(err)
			break
		}
		if i.State == Live {
			live[sha256.Sum256(i.Certificate.Leaf)] = i.Claim.Device
		}
		if i.State == Revoking {
			t.Errorf("%s is still being revoked", id)
		}
	}
	for leaf, device := range l.registrar.active {
		if live[leaf] != device {
			t.Errorf("a certificate of %s is active, and the claims do not say so", device)
		}
	}
	for leaf, device := range live {
		if _, ok := l.registrar.active[leaf]; !ok {
			t.Errorf("a certificate of %s is called active, and is not", device)
		}
	}
}

// issue asks as the board does, with a challenge if it is not empty.
func (l *line) issue(t testing.TB, challenge string) (Certificate, error) {
	t.Helper()
	c := l.board.csr()
	if challenge != "" {
		c.passwords = []string{challenge}
	}
	return l.issuer.Issue(t.Context(), c.request(t), testCA)
}

func (l *line) mustIssue(t testing.TB, challenge string) Certificate {
	t.Helper()
	c, err := l.issue(t, challenge)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *line) challenge() string {
	text, _ := l.policy.Challenges.New(l.now)
	return text
}

// badClaims begin with one that cannot be read.
type badClaims struct{ *memClaims }

func (b badClaims) All(ctx context.Context) iter.Seq2[Issuance, error] {
	return func(yield func(Issuance, error) bool) {
		if yield(Issuance{}, ErrBadClaim) {
			b.memClaims.All(ctx)(yield)
		}
	}
}
