package issuer

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"secretfree/station/board"
)

func TestRenewal(t *testing.T) {
	l := newLine(t, localCA(t))
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
	l := newLine(t, localCA(t))
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
			l := newLine(t, localCA(t))
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
	l := newLine(t, localCA(t))
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
			l := newLine(t, localCA(t))
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
	l := newLine(t, localCA(t))
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
	l := newLine(t, localCA(t))
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
			l := newLine(t, localCA(t))
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
	l := newLine(t, localCA(t))
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

// A policy that changes does not lock out who has a certificate, nor who was about to get one.
func TestPolicyChanges(t *testing.T) {
	l := newLine(t, localCA(t))
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
	l := newLine(t, localCA(t))
	l.policy.Validity = MaxValidity
	l.restart(t)
	config := l.config
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
	l := newLine(t, localCA(t))
	l.mustIssue(t, "")
	pending := newSimulated(t)
	l.registry.put(enrolment(t, pending.record(t, l.station), l.station))
	l.ca.before = func() error { return errInjected }
	if _, err := l.issuer.Issue(t.Context(), pending.csr().request(t), testCA); err == nil {
		t.Fatal("no failure")
	}
	l.ca.before = nil
	config := l.config
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
