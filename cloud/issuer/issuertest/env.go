package issuertest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"iter"
	"sync"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/station/board"
)

// Env is one factory and one issuer, with one enrolled board.
type Env struct {
	Config   issuer.Config // of issuer
	Station  Station
	Board    Board
	Registry *Registry
	Claims   *Claims
	CA       *CountingCA
	Policy   issuer.Policy
	Issuer   *issuer.Issuer
}

func NewEnv(t testing.TB, ca issuer.CA) *Env {
	t.Helper()
	w := &Env{
		Station: NewStation(t, SKU, "line3-a"), Board: NewBoard(t),
		Registry: &Registry{}, Claims: &Claims{}, CA: &CountingCA{CA: ca},
	}
	w.Policy = issuer.Policy{SKU: SKU, Stations: []board.Verifier{w.Station.Verifier}}
	w.Registry.Put(Enrolment(t, w.Board.Record(t, w.Station), w.Station))
	w.Open(t, w.Claims)
	t.Cleanup(func() { w.check(t) })
	return w
}

func (w *Env) Open(t testing.TB, claims issuer.Claims) {
	t.Helper()
	var err error
	w.Config = issuer.Config{
		Policy: w.Policy, Registry: w.Registry, CAs: map[string]issuer.CA{CAName: w.CA}, Claims: claims,
	}
	w.Issuer, err = issuer.New(w.Config)
	if err != nil {
		t.Fatal(err)
	}
}

// check looks at all that is stored: every claim is of an enrolled board, and
// what is finished is its certificate; for each claim at most one certificate
// was ever signed.
func (w *Env) check(t testing.TB) {
	t.Helper()
	check := issuer.NewCertificateCheck(w.CA.Profile())
	stored := w.Claims.Snapshot()
	serials := map[issuer.Serial]string{}
	for id, issuance := range stored {
		if other, ok := serials[issuance.Claim.Serial]; ok {
			t.Errorf("the claims %s and %s have one serial", id, other)
		}
		serials[issuance.Claim.Serial] = id
		item, ok := w.Registry.Items[issuance.Claim.Device]
		if !ok || item.Key.Fingerprint() != issuance.Claim.Fingerprint {
			t.Errorf("claim %s is of no enrolled board", id)
			continue
		}
		if issuance.Certificate == nil {
			continue
		}
		at := time.Now()
		if at.Before(issuance.Claim.NotBefore) { // the test's clock was ahead
			at = issuance.Claim.NotBefore
		}
		if err := check.Check(*issuance.Certificate, issuance.Claim, at); err != nil {
			t.Errorf("claim %s: %v", id, err)
		}
	}
	signed := map[string]bool{}
	for leaf := range w.CA.Issued {
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

// fakeRegistrar is where devices connect. Each call can fail before or after it
// took effect.
type fakeRegistrar struct {
	Mu     sync.Mutex
	Active map[[32]byte]board.DeviceID
	Fault  func(step string) error
}

func (f *fakeRegistrar) step(name string) error {
	if f.Fault == nil {
		return nil
	}
	return f.Fault(name)
}

func (f *fakeRegistrar) Register(_ context.Context, device board.DeviceID, c issuer.Certificate) error {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if err := f.step("before register"); err != nil {
		return err
	}
	if f.Active == nil {
		f.Active = map[[32]byte]board.DeviceID{}
	}
	f.Active[sha256.Sum256(c.Leaf)] = device
	return f.step("after register")
}

func (f *fakeRegistrar) Deactivate(_ context.Context, _ board.DeviceID, c issuer.Certificate) error {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	if err := f.step("before deactivate"); err != nil {
		return err
	}
	delete(f.Active, sha256.Sum256(c.Leaf))
	return f.step("after deactivate")
}

// RegisteredEnv is a world whose certificates are registered.
type RegisteredEnv struct {
	*Env
	Registrar *fakeRegistrar
	Store     issuer.Claims
	Now       time.Time
}

func NewRegisteredEnv(t testing.TB, ca issuer.CA) *RegisteredEnv {
	t.Helper()
	l := &RegisteredEnv{Env: NewEnv(t, ca), Registrar: &fakeRegistrar{}, Now: time.Now()}
	l.Store = l.Claims
	l.Policy.Challenges = Challenges(t)
	l.Restart(t)
	return l
}

// restart makes an issuer anew, as after a crash.
func (l *RegisteredEnv) Restart(t testing.TB) {
	t.Helper()
	var err error
	l.Config = issuer.Config{
		Policy: l.Policy, Registry: l.Registry, CAs: map[string]issuer.CA{CAName: l.CA}, Claims: l.Store, Registrar: l.Registrar,
		Now: func() time.Time { return l.Now },
	}
	l.Issuer, err = issuer.New(l.Config)
	if err != nil {
		t.Fatal(err)
	}
}

func (l *RegisteredEnv) Set(change func(e *board.Enrolment)) {
	e := l.Registry.Items[l.Board.ID]
	change(&e)
	l.Registry.Put(e)
}

func (l *RegisteredEnv) Sweep(t testing.TB, apply bool) (found []issuer.Finding) {
	t.Helper()
	if err := l.Issuer.Sweep(t.Context(), issuer.SweepOptions{Apply: apply}, func(f issuer.Finding) { found = append(found, f) }); err != nil {
		t.Error(err)
	}
	return found
}

// settled: what is active where devices connect is a certificate that the
// claims call active, and the reverse.
func (l *RegisteredEnv) Settled(t testing.TB) {
	t.Helper()
	live := map[[32]byte]board.DeviceID{}
	for i, err := range l.Store.All(context.WithoutCancel(t.Context())) {
		id := i.Claim.ID()
		if err != nil {
			t.Error(err)
			break
		}
		if i.State == issuer.Live {
			live[sha256.Sum256(i.Certificate.Leaf)] = i.Claim.Device
		}
		if i.State == issuer.Revoking {
			t.Errorf("%s is still being revoked", id)
		}
	}
	for leaf, device := range l.Registrar.Active {
		if live[leaf] != device {
			t.Errorf("a certificate of %s is active, and the claims do not say so", device)
		}
	}
	for leaf, device := range live {
		if _, ok := l.Registrar.Active[leaf]; !ok {
			t.Errorf("a certificate of %s is called active, and is not", device)
		}
	}
}

// issue asks as the board does, with a challenge if it is not empty.
func (l *RegisteredEnv) Issue(t testing.TB, challenge string) (issuer.Certificate, error) {
	t.Helper()
	c := l.Board.CSR()
	if challenge != "" {
		c.Passwords = []string{challenge}
	}
	return l.Issuer.Issue(t.Context(), c.Request(t), CAName)
}

func (l *RegisteredEnv) MustIssue(t testing.TB, challenge string) issuer.Certificate {
	t.Helper()
	c, err := l.Issue(t, challenge)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *RegisteredEnv) Challenge() string {
	text, _ := l.Policy.Challenges.New(l.Now)
	return text
}

// badClaims begin with one that cannot be read.
type BadClaims struct{ *Claims }

func (b BadClaims) All(ctx context.Context) iter.Seq2[issuer.Issuance, error] {
	return func(yield func(issuer.Issuance, error) bool) {
		if yield(issuer.Issuance{}, issuer.ErrBadClaim) {
			b.Claims.All(ctx)(yield)
		}
	}
}
