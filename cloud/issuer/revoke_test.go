package issuer

import (
	"context"
	"crypto/sha256"
	"errors"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"secretfree/station/board"
)

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

func newLine(t testing.TB) *line {
	t.Helper()
	l := &line{world: newWorld(t), registrar: &fakeRegistrar{}, now: time.Now()}
	l.store = l.claims
	l.policy.Challenges = challenges(t)
	l.restart(t)
	return l
}

// restart makes an issuer anew, as after a crash.
func (l *line) restart(t testing.TB) {
	t.Helper()
	var err error
	l.issuer, err = New(Config{
		Policy: l.policy, Registry: l.registry, CAs: map[string]CA{testCA: l.ca}, Claims: l.store, Registrar: l.registrar,
		Now: func() time.Time { return l.now },
	})
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

func TestRenewal(t *testing.T) {
	l := newLine(t)
	l.policy.Validity, l.policy.Renew = 90*24*time.Hour, 30*24*time.Hour
	l.restart(t)
	first := l.mustIssue(t, "")
	l.now = l.now.Add(70 * 24 * time.Hour)
	if again := l.mustIssue(t, ""); !equal(again, first) {
		t.Error("a plain request renewed")
	}
	challenge := l.challenge()
	second := l.mustIssue(t, challenge)
	if equal(second, first) {
		t.Fatal("a fresh request near the end did not renew")
	}
	for range 2 {
		if again := l.mustIssue(t, challenge); !equal(again, second) {
			t.Error("the retry of a renewal gave another certificate")
		}
	}
	// Both are active until the overlap ends, so that a device can change over.
	l.settled(t)
	if len(l.registrar.active) != 2 || len(l.sweep(t, true)) != 0 {
		t.Errorf("%d are active", len(l.registrar.active))
	}
	l.now = l.now.Add(8 * 24 * time.Hour)
	if found := l.sweep(t, false); len(found) != 1 || found[0].Action != Withdraw || len(l.registrar.active) != 2 {
		t.Errorf("%+v", found)
	}
	if found := l.sweep(t, true); len(found) != 1 || found[0].Issuance.Reason != Superseded {
		t.Errorf("%+v", found)
	}
	l.settled(t)
	if _, ok := l.registrar.active[sha256.Sum256(second.Leaf)]; !ok || len(l.registrar.active) != 1 {
		t.Error("not the renewed one alone is active")
	}
	// The first challenge does not come back.
	l.now = l.now.Add(-8 * 24 * time.Hour)
	l.set(func(e *board.Enrolment) { e.Epoch = 3 })
	if _, err := l.issue(t, challenge); !errors.Is(err, ChallengeReplayed) {
		t.Errorf("a replayed challenge: %v", err)
	}
	l.claims.stored = nil
}

func TestRevoke(t *testing.T) {
	l := newLine(t)
	l.mustIssue(t, "")
	had, err := l.issuer.Revoke(t.Context(), l.board.id, 0, KeyCompromise)
	if err != nil || len(had) != 1 || had[0].State != Revoked || had[0].Reason != KeyCompromise {
		t.Fatalf("%+v, %v", had, err)
	}
	l.settled(t)
	if len(l.registrar.active) != 0 {
		t.Error("it is still active")
	}
	if _, err := l.issue(t, l.challenge()); !errors.Is(err, CertificateRevoked) {
		t.Errorf("another one: %v", err)
	}
	if had, err = l.issuer.Revoke(t.Context(), l.board.id, 0, Unspecified); err != nil || had[0].Reason != KeyCompromise {
		t.Errorf("revoked twice: %+v, %v", had, err)
	}
	epoch, err := l.issuer.NextEpoch(t.Context(), l.board.id)
	if err != nil || epoch != 2 {
		t.Fatal(epoch, err)
	}
	l.set(func(e *board.Enrolment) { e.Epoch = epoch })
	l.mustIssue(t, "")
	l.settled(t)
	if len(l.registrar.active) != 1 {
		t.Error("the operator's grant gave nothing")
	}
}

// Whatever breaks while a certificate is revoked, it is not answered any more, and a sweep brings it to its end.
func TestRevokeGoesOn(t *testing.T) {
	for _, step := range []string{"before deactivate", "after deactivate", "before replace", "after replace"} {
		t.Run(step, func(t *testing.T) {
			l := newLine(t)
			l.mustIssue(t, "")
			l.registrar.fault = once(step)
			l.claims.fault = once(step)
			if _, err := l.issuer.Revoke(t.Context(), l.board.id, 0, KeyCompromise); err == nil {
				t.Fatal("a failure was reported as success")
			}
			l.registrar.fault, l.claims.fault = nil, nil
			if step != "before replace" { // there nothing was done yet
				if _, err := l.issue(t, ""); !errors.Is(err, CertificateRevoked) {
					t.Errorf("answered meanwhile: %v", err)
				}
			}
			l.set(func(e *board.Enrolment) { e.State = board.Revoked })
			l.restart(t)
			l.sweep(t, true)
			l.settled(t)
			if len(l.registrar.active) != 0 {
				t.Error("it is still active")
			}
			for _, i := range l.claims.all() {
				if i.State != Revoked {
					t.Errorf("%+v", i)
				}
			}
		})
	}
}

// A request that is under way when its device is revoked leaves nothing active, whichever comes last.
func TestRevokeWhileIssuing(t *testing.T) {
	l := newLine(t)
	revoked := make(chan error, 1)
	l.registrar.fault = func(step string) error {
		if step != "before register" {
			return nil
		}
		l.registrar.fault = nil
		l.registrar.mu.Unlock() // the registrar takes its time
		_, err := l.issuer.Revoke(context.Background(), l.board.id, 0, KeyCompromise)
		l.registrar.mu.Lock()
		revoked <- err
		return nil
	}
	if _, err := l.issue(t, ""); !errors.Is(err, CertificateRevoked) {
		t.Errorf("answered: %v", err)
	}
	if err := <-revoked; err != nil {
		t.Fatal(err)
	}
	l.settled(t)
	// And if that issuer dies before it has put it right, a sweep does.
	for _, i := range l.claims.all() {
		l.registrar.active[sha256.Sum256(i.Certificate.Leaf)] = l.board.id
	}
	if found := l.sweep(t, true); len(found) != 1 || found[0].Action != Confirm {
		t.Errorf("%+v", found)
	}
	l.settled(t)
}

func TestSweep(t *testing.T) {
	for _, c := range []struct {
		name   string
		set    func(t *testing.T, l *line)
		want   SweepAction
		reason Reason
		active int
	}{
		{"all is well", func(t *testing.T, l *line) { l.mustIssue(t, "") }, "", 0, 1},
		{"signed, and no more", func(t *testing.T, l *line) {
			l.registrar.fault = once("before register")
			if _, err := l.issue(t, ""); err == nil {
				t.Fatal("no failure")
			}
			l.now = l.now.Add(time.Hour)
		}, Register, 0, 1},
		{"signed just now", func(t *testing.T, l *line) {
			l.registrar.fault = once("before register")
			_, _ = l.issue(t, "")
		}, "", 0, 0},
		{"registered, and not written down", func(t *testing.T, l *line) {
			l.registrar.fault = once("after register")
			_, _ = l.issue(t, "")
			l.now = l.now.Add(time.Hour)
		}, Register, 0, 1},
		{"claimed, and no more", func(t *testing.T, l *line) {
			l.ca.before = func() error { return errInjected }
			_, _ = l.issue(t, "")
			l.now = l.now.Add(time.Hour)
		}, Wait, 0, 0},
		{"signed, and the device is held", func(t *testing.T, l *line) {
			l.registrar.fault = once("before register")
			_, _ = l.issue(t, "")
			l.now = l.now.Add(time.Hour)
			l.set(func(e *board.Enrolment) { e.State = board.Held })
		}, "", 0, 0},
		{"revoked in the registry alone", func(t *testing.T, l *line) {
			l.mustIssue(t, "")
			l.set(func(e *board.Enrolment) { e.State = board.Revoked })
		}, Withdraw, KeyCompromise, 0},
		{"scrapped in the registry alone", func(t *testing.T, l *line) {
			l.mustIssue(t, "")
			l.set(func(e *board.Enrolment) { e.State = board.Scrapped })
		}, Withdraw, CessationOfOperation, 0},
		{"the device changed hands", func(t *testing.T, l *line) {
			l.mustIssue(t, "")
			l.set(func(e *board.Enrolment) { e.Epoch = 2 })
		}, Withdraw, AffiliationChanged, 0},
		{"the registry forgot the device", func(t *testing.T, l *line) {
			l.mustIssue(t, "")
			l.registry.mu.Lock()
			defer l.registry.mu.Unlock()
			delete(l.registry.items, l.board.id)
		}, Wait, Unspecified, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLine(t)
			item := l.registry.items[l.board.id]
			c.set(t, l)
			l.registrar.fault, l.ca.before = nil, nil
			before := len(l.registrar.active)
			dry := l.sweep(t, false)
			if len(l.registrar.active) != before {
				t.Error("telling changed something")
			}
			found := l.sweep(t, true)
			if len(found) != len(dry) {
				t.Errorf("told %+v, did %+v", dry, found)
			}
			if c.want == "" != (len(found) == 0) || c.want != "" && (found[0].Action != c.want || found[0].Issuance.Reason != c.reason || found[0].Why == "") {
				t.Errorf("%+v", found)
			}
			if len(l.registrar.active) != c.active {
				t.Errorf("%d are active, want %d", len(l.registrar.active), c.active)
			}
			if c.active > 0 {
				l.settled(t)
			}
			l.registry.put(item)
		})
	}
}

func TestSweepUnknownDevices(t *testing.T) {
	l := newLine(t)
	l.mustIssue(t, "")
	item := l.registry.items[l.board.id]
	delete(l.registry.items, l.board.id)
	if found := l.sweep(t, true); len(found) != 1 || found[0].Action != Wait || len(l.registrar.active) != 1 {
		t.Errorf("%+v, %d are active", found, len(l.registrar.active))
	}
	if err := l.issuer.Sweep(t.Context(), SweepOptions{Apply: true, Unknown: true}, func(Finding) {}); err != nil || len(l.registrar.active) != 0 {
		t.Errorf("%v, %d are active", err, len(l.registrar.active))
	}
	l.registry.put(item)
}

// One item that cannot be read does not keep the others from being settled.
func TestSweepGoesOn(t *testing.T) {
	l := newLine(t)
	l.mustIssue(t, "")
	l.set(func(e *board.Enrolment) { e.State = board.Revoked })
	l.store = badClaims{l.claims}
	l.restart(t)
	if err := l.issuer.Sweep(t.Context(), SweepOptions{Apply: true}, func(Finding) {}); !errors.Is(err, ErrBadClaim) || len(l.registrar.active) != 0 {
		t.Errorf("%v, %d are active", err, len(l.registrar.active))
	}
	l.store = l.claims
	l.settled(t)
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

// What somebody put among the claims is not made active by a sweep.
func TestSweepChecksWhatItRegisters(t *testing.T) {
	for name, spoil := range map[string]func(l *line, i *Issuance){
		"another device's certificate": func(l *line, i *Issuance) {
			other := newSimulated(t)
			l.registry.put(enrolment(t, other.record(t, l.station), l.station))
			got, err := l.issuer.Issue(t.Context(), other.csr().request(t), testCA)
			if err != nil {
				t.Fatal(err)
			}
			i.Certificate = &got
		},
		"a changed end":    func(_ *line, i *Issuance) { i.Claim.NotAfter = i.Claim.NotAfter.Add(time.Hour) },
		"an unknown CA":    func(_ *line, i *Issuance) { i.Claim.CA = "other" },
		"a replaced key":   func(l *line, i *Issuance) { l.set(func(e *board.Enrolment) { e.Key = newSimulated(t).boardKey(t) }) },
		"a new generation": func(l *line, i *Issuance) { l.set(func(e *board.Enrolment) { e.Generation = 2 }) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t)
			l.registrar.fault = once("before register")
			if _, err := l.issue(t, ""); err == nil {
				t.Fatal("no failure")
			}
			l.registrar.fault = nil
			item := l.registry.items[l.board.id]
			id := ""
			for id = range l.claims.all() {
			}
			i := l.claims.stored[id]
			spoil(l, &i)
			l.claims.stored[id] = i
			active := len(l.registrar.active)
			l.now = l.now.Add(time.Hour)
			var found []Finding
			err := l.issuer.Sweep(t.Context(), SweepOptions{Apply: true}, func(f Finding) { found = append(found, f) })
			if err == nil || len(found) != 1 || found[0].Action != Register || found[0].Err == nil || len(l.registrar.active) != active {
				t.Errorf("%+v, %v, %d are active", found, err, len(l.registrar.active))
			}
			l.registry.put(item)
			l.claims.stored = nil
		})
	}
}

func TestSweepTellsFailures(t *testing.T) {
	l := newLine(t)
	l.mustIssue(t, "")
	l.set(func(e *board.Enrolment) { e.State = board.Revoked })
	l.registrar.fault = once("before deactivate")
	var found []Finding
	err := l.issuer.Sweep(t.Context(), SweepOptions{Apply: true}, func(f Finding) { found = append(found, f) })
	if err == nil || len(found) != 1 || !errors.Is(found[0].Err, errInjected) {
		t.Errorf("%+v, %v", found, err)
	}
	l.registry.err = errInjected
	if err := l.issuer.Sweep(t.Context(), SweepOptions{}, func(Finding) {}); !errors.Is(err, errInjected) {
		t.Errorf("without a registry: %v", err)
	}
	l.registry.err = nil
	l.sweep(t, true)
	l.settled(t)
}

// Two thousand requests of a hundred devices at once, while every remote call fails now and then, before or after it took
// effect, and issuers die and are started again. Devices ask until they have an answer. Then each has one certificate in each
// epoch, the same for all who asked, and after a sweep nothing else is active.
func TestIssueInAStorm(t *testing.T) {
	t.Run("model", func(t *testing.T) {
		l := newLine(t)
		storm(t, l, 2000, func(fault func(string) error) { l.claims.fault = fault })
	})
	t.Run("dir", func(t *testing.T) {
		l := newLine(t)
		_, d := newClaimsDir(t)
		l.store = d
		storm(t, l, 400, func(fault func(string) error) { d.fault = fault })
	})
}

func storm(t *testing.T, l *line, requests int, inject func(func(string) error)) {
	const (
		devices = 100
		workers = 64
	)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	var (
		mu     sync.Mutex
		random = rand.New(rand.NewPCG(uint64(seed), 1))
		calm   bool
	)
	fault := func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if calm || random.IntN(8) > 0 {
			return nil
		}
		return errInjected
	}
	inject(fault)
	l.registry.fault, l.registrar.fault = fault, fault
	l.ca.before = func() error { return fault("") }
	l.ca.after = func(*Certificate) error { return fault("") }
	asks := make([]Request, devices)
	for i := range asks {
		b := newSimulated(t)
		l.registry.put(enrolment(t, b.record(t, l.station), l.station))
		asks[i] = b.csr().request(t)
	}
	// Any number of issuers, in several processes.
	l.restart(t)
	config := l.issuer.config
	issuers := make([]*Issuer, 4)
	for i := range issuers {
		var err error
		if issuers[i], err = New(config); err != nil {
			t.Fatal(err)
		}
	}
	var (
		answers = make([]map[string]bool, devices)
		work    = make(chan int)
		group   sync.WaitGroup
		dead    int
	)
	for i := range answers {
		answers[i] = map[string]bool{}
	}
	for range workers {
		group.Go(func() {
			for n := range work {
				at := n % devices
				for try := 0; ; try++ {
					if try > 500 {
						t.Errorf("device %d has no answer after %d tries", at, try)
						break
					}
					slot := (n + try) % len(issuers)
					mu.Lock()
					issuer := issuers[slot]
					mu.Unlock()
					got, err := issuer.Issue(t.Context(), asks[at], testCA)
					if err == nil {
						mu.Lock()
						answers[at][string(got.Leaf)] = true
						mu.Unlock()
						break
					}
					if outcome, _ := classify(err); outcome != TryLater {
						t.Errorf("device %d was refused: %v", at, err)
						break
					}
					again, newErr := New(config) // it has died with all that it was doing
					mu.Lock()
					dead++
					issuers[slot] = again
					mu.Unlock()
					if newErr != nil {
						t.Error(newErr)
					}
				}
			}
		})
	}
	for n := range requests {
		work <- n
	}
	close(work)
	group.Wait()
	if dead == 0 {
		t.Error("nothing failed")
	}
	calm = true
	for i, of := range answers {
		if len(of) != 1 {
			t.Errorf("device %d got %d certificates", i, len(of))
		}
	}
	stored := 0
	for _, err := range l.store.All(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		stored++
	}
	if stored != devices {
		t.Errorf("%d claims for %d devices", stored, devices)
	}
	checkClaims(t, l.store)
	l.now = l.now.Add(time.Hour)
	l.sweep(t, true)
	l.settled(t)
	if len(l.registrar.active) != devices {
		t.Errorf("%d are active, want %d", len(l.registrar.active), devices)
	}
	t.Logf("%d tries failed for %d requests", dead, requests)
}

// A policy that changes does not lock out who has a certificate, nor who was about to get one.
func TestPolicyChanges(t *testing.T) {
	l := newLine(t)
	first := l.mustIssue(t, "")
	l.policy.Organization, l.policy.Validity = "Widgets", 24*time.Hour
	l.restart(t)
	if again := l.mustIssue(t, ""); !equal(again, first) {
		t.Error("another certificate")
	}
	other := newSimulated(t)
	l.registry.put(enrolment(t, other.record(t, l.station), l.station))
	l.board = other
	l.ca.before = func() error { return errInjected }
	if _, err := l.issue(t, ""); err == nil {
		t.Fatal("no failure")
	}
	l.ca.before = nil
	l.policy.Organization, l.policy.Validity = "Gadgets", 48*time.Hour
	l.restart(t)
	l.mustIssue(t, "")
	had, err := l.claims.Issuances(t.Context(), other.id)
	if err != nil || len(had) != 1 || had[0].Claim.Org != "Gadgets" || had[0].Claim.NotAfter.Sub(had[0].Claim.NotBefore) != 48*time.Hour {
		t.Errorf("%+v, %v", had, err)
	}
	// A claim that is old, and for which nothing was asked, is made anew; its certificate begins today.
	third := newSimulated(t)
	l.registry.put(enrolment(t, third.record(t, l.station), l.station))
	l.board = third
	l.ca.before = func() error { return errInjected }
	_, _ = l.issue(t, "")
	l.ca.before = nil
	l.now = l.now.Add(100 * time.Hour)
	l.mustIssue(t, "")
	had, err = l.claims.Issuances(t.Context(), third.id)
	if err != nil || len(had) != 1 || !had[0].Claim.NotAfter.After(l.now) {
		t.Errorf("%+v, %v", had, err)
	}
	l.claims.stored = nil // the invariants are about certificates that are valid now
}

// A certificate ends with its CA, whatever the policy says, and a CA at its end signs nothing.
func TestCAEnds(t *testing.T) {
	l := newLine(t)
	l.policy.Validity = maxValidity
	l.restart(t)
	config := l.issuer.config
	config.CAs = map[string]CA{testCA: localCA(t)}
	var err error
	if l.issuer, err = New(config); err != nil {
		t.Fatal(err)
	}
	l.mustIssue(t, "")
	had, err := l.claims.Issuances(t.Context(), l.board.id)
	if err != nil || len(had) != 1 || !had[0].Claim.NotAfter.Equal(localCA(t).NotAfter()) {
		t.Errorf("%+v, %v", had, err)
	}
	l.now = localCA(t).NotAfter().Add(-time.Minute)
	other := newSimulated(t)
	l.registry.put(enrolment(t, other.record(t, l.station), l.station))
	if _, err := l.issuer.Issue(t.Context(), other.csr().request(t), testCA); err == nil || !strings.Contains(err.Error(), "retired_ca") {
		t.Errorf("at its end: %v", err)
	}
}

// A CA that is replaced still stands behind what it has signed.
func TestRetiredCA(t *testing.T) {
	l := newLine(t)
	l.mustIssue(t, "")
	pending := newSimulated(t)
	l.registry.put(enrolment(t, pending.record(t, l.station), l.station))
	l.ca.before = func() error { return errInjected }
	if _, err := l.issuer.Issue(t.Context(), pending.csr().request(t), testCA); err == nil {
		t.Fatal("no failure")
	}
	l.ca.before = nil
	config := l.issuer.config
	config.CAs = map[string]CA{"next": l.ca}
	forgetful, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	request := l.board.csr().request(t)
	if _, err := forgetful.Issue(t.Context(), request, "next"); !errors.Is(err, ErrUnknownCA) {
		t.Errorf("a CA that nobody knows: %v", err)
	}
	if _, err := forgetful.Revoke(t.Context(), l.board.id, 0, Unspecified); !errors.Is(err, ErrUnknownCA) {
		t.Errorf("revoking there: %v", err)
	}
	l.claims.stored = nil
	l.registrar.active = nil
	first := l.mustIssue(t, "")
	l.ca.before = func() error { return errInjected }
	_, _ = l.issuer.Issue(t.Context(), pending.csr().request(t), testCA)
	l.ca.before = nil

	config.Retired = map[string]CA{testCA: localCA(t)}
	next, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := next.Issue(t.Context(), request, "next"); err != nil || !equal(again, first) {
		t.Errorf("of a retired CA: %v", err)
	}
	if _, err := next.Issue(t.Context(), pending.csr().request(t), "next"); err != nil {
		t.Errorf("what it was not asked for: %v", err)
	}
	if had, err := l.claims.Issuances(t.Context(), pending.id); err != nil || len(had) != 1 || had[0].Claim.CA != "next" {
		t.Errorf("%+v, %v", had, err)
	}
	if _, err := next.Issue(t.Context(), request, testCA); err == nil {
		t.Error("a door of a retired CA")
	}
	config.Retired = map[string]CA{"next": localCA(t)}
	if _, err := New(config); err == nil {
		t.Error("retired, and not")
	}
}
