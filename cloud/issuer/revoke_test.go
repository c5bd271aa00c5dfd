package issuer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/station/board"
)

func TestRenewal(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.Policy.Validity, l.Policy.Renew = 90*24*time.Hour, 30*24*time.Hour
	l.Restart(t)
	first := l.MustIssue(t, "")
	l.Now = l.Now.Add(70 * 24 * time.Hour)
	if again := l.MustIssue(t, ""); !issuertest.Equal(again, first) {
		t.Error("a plain request renewed")
	}
	challenge := l.Challenge()
	second := l.MustIssue(t, challenge)
	if issuertest.Equal(second, first) {
		t.Fatal("a fresh request near the end did not renew")
	}
	for range 2 {
		if again := l.MustIssue(t, challenge); !issuertest.Equal(again, second) {
			t.Error("the retry of a renewal gave another certificate")
		}
	}
	// Both are active until the overlap ends, so that a device can change over.
	l.Settled(t)
	if len(l.Registrar.Active) != 2 || len(l.Sweep(t, true)) != 0 {
		t.Errorf("%d are active", len(l.Registrar.Active))
	}
	l.Now = l.Now.Add(8 * 24 * time.Hour)
	if found := l.Sweep(t, false); len(found) != 1 || found[0].Action != issuer.Withdraw || len(l.Registrar.Active) != 2 {
		t.Errorf("%+v", found)
	}
	if found := l.Sweep(t, true); len(found) != 1 || found[0].Issuance.Reason != issuer.Superseded {
		t.Errorf("%+v", found)
	}
	l.Settled(t)
	if _, ok := l.Registrar.Active[sha256.Sum256(second.Leaf)]; !ok || len(l.Registrar.Active) != 1 {
		t.Error("not the renewed one alone is active")
	}
	// The first challenge does not come back.
	l.Now = l.Now.Add(-8 * 24 * time.Hour)
	l.Set(func(e *board.Enrolment) { e.Epoch = 3 })
	if _, err := l.Issue(t, challenge); !errors.Is(err, issuer.ChallengeReplayed) {
		t.Errorf("a replayed challenge: %v", err)
	}
	l.Claims.Stored = nil
}

func TestRevoke(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.MustIssue(t, "")
	had, err := l.Issuer.Revoke(t.Context(), l.Board.ID, 0, issuer.KeyCompromise)
	if err != nil || len(had) != 1 || had[0].State != issuer.Revoked || had[0].Reason != issuer.KeyCompromise {
		t.Fatalf("%+v, %v", had, err)
	}
	l.Settled(t)
	if len(l.Registrar.Active) != 0 {
		t.Error("it is still active")
	}
	if _, err := l.Issue(t, l.Challenge()); !errors.Is(err, issuer.CertificateRevoked) {
		t.Errorf("another one: %v", err)
	}
	if had, err = l.Issuer.Revoke(t.Context(), l.Board.ID, 0, issuer.Unspecified); err != nil || had[0].Reason != issuer.KeyCompromise {
		t.Errorf("revoked twice: %+v, %v", had, err)
	}
	epoch, err := l.Issuer.NextEpoch(t.Context(), l.Board.ID)
	if err != nil || epoch != 2 {
		t.Fatal(epoch, err)
	}
	l.Set(func(e *board.Enrolment) { e.Epoch = epoch })
	l.MustIssue(t, "")
	l.Settled(t)
	if len(l.Registrar.Active) != 1 {
		t.Error("the operator's grant gave nothing")
	}
}

// Whatever breaks while a certificate is revoked, it is not answered any more,
// and a sweep brings it to its end.
func TestRevokeGoesOn(t *testing.T) {
	for _, step := range []string{"before deactivate", "after deactivate", "before replace", "after replace"} {
		t.Run(step, func(t *testing.T) {
			l := issuertest.NewRegisteredEnv(t, catest.Local(t))
			l.MustIssue(t, "")
			l.Registrar.Fault = issuertest.Once(step)
			l.Claims.Fault = issuertest.Once(step)
			if _, err := l.Issuer.Revoke(t.Context(), l.Board.ID, 0, issuer.KeyCompromise); err == nil {
				t.Fatal("a failure was reported as success")
			}
			l.Registrar.Fault, l.Claims.Fault = nil, nil
			if step != "before replace" { // there nothing was done yet
				if _, err := l.Issue(t, ""); !errors.Is(err, issuer.CertificateRevoked) {
					t.Errorf("answered meanwhile: %v", err)
				}
			}
			l.Set(func(e *board.Enrolment) { e.State = board.Revoked })
			l.Restart(t)
			l.Sweep(t, true)
			l.Settled(t)
			if len(l.Registrar.Active) != 0 {
				t.Error("it is still active")
			}
			for _, i := range l.Claims.Snapshot() {
				if i.State != issuer.Revoked {
					t.Errorf("%+v", i)
				}
			}
		})
	}
}

// A request that is under way when its device is revoked leaves nothing active,
// whichever comes last.
func TestRevokeWhileIssuing(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	revoked := make(chan error, 1)
	l.Registrar.Fault = func(step string) error {
		if step != "before register" {
			return nil
		}
		l.Registrar.Fault = nil
		l.Registrar.Mu.Unlock() // the registrar takes its time
		_, err := l.Issuer.Revoke(context.Background(), l.Board.ID, 0, issuer.KeyCompromise)
		l.Registrar.Mu.Lock()
		revoked <- err
		return nil
	}
	if _, err := l.Issue(t, ""); !errors.Is(err, issuer.CertificateRevoked) {
		t.Errorf("answered: %v", err)
	}
	if err := <-revoked; err != nil {
		t.Fatal(err)
	}
	l.Settled(t)
	// And if that issuer dies before it has put it right, a sweep does.
	for _, i := range l.Claims.Snapshot() {
		l.Registrar.Active[sha256.Sum256(i.Certificate.Leaf)] = l.Board.ID
	}
	if found := l.Sweep(t, true); len(found) != 1 || found[0].Action != issuer.Confirm {
		t.Errorf("%+v", found)
	}
	l.Settled(t)
}

func TestSweep(t *testing.T) {
	for _, c := range []struct {
		name   string
		set    func(t *testing.T, l *issuertest.RegisteredEnv)
		want   issuer.SweepAction
		reason issuer.Reason
		active int
	}{
		{"all is well", func(t *testing.T, l *issuertest.RegisteredEnv) { l.MustIssue(t, "") }, "", 0, 1},
		{"signed, and no more", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.Registrar.Fault = issuertest.Once("before register")
			if _, err := l.Issue(t, ""); err == nil {
				t.Fatal("no failure")
			}
			l.Now = l.Now.Add(time.Hour)
		}, issuer.Register, 0, 1},
		{"signed just now", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.Registrar.Fault = issuertest.Once("before register")
			_, _ = l.Issue(t, "")
		}, "", 0, 0},
		{"registered, and not written down", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.Registrar.Fault = issuertest.Once("after register")
			_, _ = l.Issue(t, "")
			l.Now = l.Now.Add(time.Hour)
		}, issuer.Register, 0, 1},
		{"claimed, and no more", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.CA.Before = func() error { return issuertest.ErrInjected }
			_, _ = l.Issue(t, "")
			l.Now = l.Now.Add(time.Hour)
		}, issuer.Wait, 0, 0},
		{"signed, and the device is held", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.Registrar.Fault = issuertest.Once("before register")
			_, _ = l.Issue(t, "")
			l.Now = l.Now.Add(time.Hour)
			l.Set(func(e *board.Enrolment) { e.State = board.Held })
		}, "", 0, 0},
		{"revoked in the registry alone", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.MustIssue(t, "")
			l.Set(func(e *board.Enrolment) { e.State = board.Revoked })
		}, issuer.Withdraw, issuer.KeyCompromise, 0},
		{"scrapped in the registry alone", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.MustIssue(t, "")
			l.Set(func(e *board.Enrolment) { e.State = board.Scrapped })
		}, issuer.Withdraw, issuer.CessationOfOperation, 0},
		{"the device changed hands", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.MustIssue(t, "")
			l.Set(func(e *board.Enrolment) { e.Epoch = 2 })
		}, issuer.Withdraw, issuer.AffiliationChanged, 0},
		{"the registry forgot the device", func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.MustIssue(t, "")
			l.Registry.Mu.Lock()
			defer l.Registry.Mu.Unlock()
			delete(l.Registry.Items, l.Board.ID)
		}, issuer.Wait, issuer.Unspecified, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := issuertest.NewRegisteredEnv(t, catest.Local(t))
			item := l.Registry.Items[l.Board.ID]
			c.set(t, l)
			l.Registrar.Fault, l.CA.Before = nil, nil
			before := len(l.Registrar.Active)
			dry := l.Sweep(t, false)
			if len(l.Registrar.Active) != before {
				t.Error("telling changed something")
			}
			found := l.Sweep(t, true)
			if len(found) != len(dry) {
				t.Errorf("told %+v, did %+v", dry, found)
			}
			if c.want == "" != (len(found) == 0) || c.want != "" && (found[0].Action != c.want || found[0].Issuance.Reason != c.reason || found[0].Why == "") {
				t.Errorf("%+v", found)
			}
			if len(l.Registrar.Active) != c.active {
				t.Errorf("%d are active, want %d", len(l.Registrar.Active), c.active)
			}
			if c.active > 0 {
				l.Settled(t)
			}
			l.Registry.Put(item)
		})
	}
}

func TestSweepUnknownDevices(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.MustIssue(t, "")
	item := l.Registry.Items[l.Board.ID]
	delete(l.Registry.Items, l.Board.ID)
	if found := l.Sweep(t, true); len(found) != 1 || found[0].Action != issuer.Wait || len(l.Registrar.Active) != 1 {
		t.Errorf("%+v, %d are active", found, len(l.Registrar.Active))
	}
	if err := l.Issuer.Sweep(t.Context(), issuer.SweepOptions{Apply: true, Unknown: true}, func(issuer.Finding) {}); err != nil || len(l.Registrar.Active) != 0 {
		t.Errorf("%v, %d are active", err, len(l.Registrar.Active))
	}
	l.Registry.Put(item)
}

// One item that cannot be read does not keep the others from being settled.
func TestSweepGoesOn(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.MustIssue(t, "")
	l.Set(func(e *board.Enrolment) { e.State = board.Revoked })
	l.Store = issuertest.BadClaims{Claims: l.Claims}
	l.Restart(t)
	if err := l.Issuer.Sweep(t.Context(), issuer.SweepOptions{Apply: true}, func(issuer.Finding) {}); !errors.Is(err, issuer.ErrBadClaim) || len(l.Registrar.Active) != 0 {
		t.Errorf("%v, %d are active", err, len(l.Registrar.Active))
	}
	l.Store = l.Claims
	l.Settled(t)
}

// What somebody put among the claims is not made active by a sweep.
func TestSweepChecksWhatItRegisters(t *testing.T) {
	for name, spoil := range map[string]func(l *issuertest.RegisteredEnv, i *issuer.Issuance){
		"another device's certificate": func(l *issuertest.RegisteredEnv, i *issuer.Issuance) {
			other := issuertest.NewBoard(t)
			l.Registry.Put(issuertest.Enrolment(t, other.Record(t, l.Station), l.Station))
			got, err := l.Issuer.Issue(t.Context(), other.CSR().Request(t), issuertest.CAName)
			if err != nil {
				t.Fatal(err)
			}
			i.Certificate = &got
		},
		"a changed end": func(_ *issuertest.RegisteredEnv, i *issuer.Issuance) {
			i.Claim.NotAfter = i.Claim.NotAfter.Add(time.Hour)
		},
		"an unknown CA": func(_ *issuertest.RegisteredEnv, i *issuer.Issuance) { i.Claim.CA = "other" },
		"a replaced key": func(l *issuertest.RegisteredEnv, i *issuer.Issuance) {
			l.Set(func(e *board.Enrolment) { e.Key = issuertest.NewBoard(t).BoardKey(t) })
		},
		"a new generation": func(l *issuertest.RegisteredEnv, i *issuer.Issuance) {
			l.Set(func(e *board.Enrolment) { e.Generation = 2 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := issuertest.NewRegisteredEnv(t, catest.Local(t))
			l.Registrar.Fault = issuertest.Once("before register")
			if _, err := l.Issue(t, ""); err == nil {
				t.Fatal("no failure")
			}
			l.Registrar.Fault = nil
			item := l.Registry.Items[l.Board.ID]
			id := ""
			for id = range l.Claims.Snapshot() {
			}
			i := l.Claims.Stored[id]
			spoil(l, &i)
			l.Claims.Stored[id] = i
			active := len(l.Registrar.Active)
			l.Now = l.Now.Add(time.Hour)
			var found []issuer.Finding
			err := l.Issuer.Sweep(t.Context(), issuer.SweepOptions{Apply: true}, func(f issuer.Finding) { found = append(found, f) })
			if err == nil || len(found) != 1 || found[0].Action != issuer.Register || found[0].Err == nil || len(l.Registrar.Active) != active {
				t.Errorf("%+v, %v, %d are active", found, err, len(l.Registrar.Active))
			}
			l.Registry.Put(item)
			l.Claims.Stored = nil
		})
	}
}

func TestSweepTellsFailures(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.MustIssue(t, "")
	l.Set(func(e *board.Enrolment) { e.State = board.Revoked })
	l.Registrar.Fault = issuertest.Once("before deactivate")
	var found []issuer.Finding
	err := l.Issuer.Sweep(t.Context(), issuer.SweepOptions{Apply: true}, func(f issuer.Finding) { found = append(found, f) })
	if err == nil || len(found) != 1 || !errors.Is(found[0].Err, issuertest.ErrInjected) {
		t.Errorf("%+v, %v", found, err)
	}
	l.Registry.Err = issuertest.ErrInjected
	if err := l.Issuer.Sweep(t.Context(), issuer.SweepOptions{}, func(issuer.Finding) {}); !errors.Is(err, issuertest.ErrInjected) {
		t.Errorf("without a registry: %v", err)
	}
	l.Registry.Err = nil
	l.Sweep(t, true)
	l.Settled(t)
}

// A policy that changes does not lock out who has a certificate, nor who was
// about to get one.
func TestPolicyChanges(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	first := l.MustIssue(t, "")
	l.Policy.Organization, l.Policy.Validity = "Widgets", 24*time.Hour
	l.Restart(t)
	if again := l.MustIssue(t, ""); !issuertest.Equal(again, first) {
		t.Error("another certificate")
	}
	other := issuertest.NewBoard(t)
	l.Registry.Put(issuertest.Enrolment(t, other.Record(t, l.Station), l.Station))
	l.Board = other
	l.CA.Before = func() error { return issuertest.ErrInjected }
	if _, err := l.Issue(t, ""); err == nil {
		t.Fatal("no failure")
	}
	l.CA.Before = nil
	l.Policy.Organization, l.Policy.Validity = "Gadgets", 48*time.Hour
	l.Restart(t)
	l.MustIssue(t, "")
	had, err := l.Claims.Issuances(t.Context(), other.ID)
	if err != nil || len(had) != 1 || had[0].Claim.Org != "Gadgets" || had[0].Claim.NotAfter.Sub(had[0].Claim.NotBefore) != 48*time.Hour {
		t.Errorf("%+v, %v", had, err)
	}
	// A claim that is old, and for which nothing was asked, is made anew; its
	// certificate begins today.
	third := issuertest.NewBoard(t)
	l.Registry.Put(issuertest.Enrolment(t, third.Record(t, l.Station), l.Station))
	l.Board = third
	l.CA.Before = func() error { return issuertest.ErrInjected }
	_, _ = l.Issue(t, "")
	l.CA.Before = nil
	l.Now = l.Now.Add(100 * time.Hour)
	l.MustIssue(t, "")
	had, err = l.Claims.Issuances(t.Context(), third.ID)
	if err != nil || len(had) != 1 || !had[0].Claim.NotAfter.After(l.Now) {
		t.Errorf("%+v, %v", had, err)
	}
	l.Claims.Stored = nil // the invariants are about certificates that are valid now
}

// A certificate ends with its CA, whatever the policy says, and a CA at its end
// signs nothing.
func TestCAEnds(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.Policy.Validity = issuer.MaxValidity
	l.Restart(t)
	config := l.Config
	config.CAs = map[string]issuer.CA{issuertest.CAName: catest.Local(t)}
	var err error
	if l.Issuer, err = issuer.New(config); err != nil {
		t.Fatal(err)
	}
	l.MustIssue(t, "")
	had, err := l.Claims.Issuances(t.Context(), l.Board.ID)
	if err != nil || len(had) != 1 || !had[0].Claim.NotAfter.Equal(catest.Local(t).NotAfter()) {
		t.Errorf("%+v, %v", had, err)
	}
	l.Now = catest.Local(t).NotAfter().Add(-time.Minute)
	other := issuertest.NewBoard(t)
	l.Registry.Put(issuertest.Enrolment(t, other.Record(t, l.Station), l.Station))
	if _, err := l.Issuer.Issue(t.Context(), other.CSR().Request(t), issuertest.CAName); err == nil || !strings.Contains(err.Error(), "retired_ca") {
		t.Errorf("at its end: %v", err)
	}
}

// A CA that is replaced still stands behind what it has signed.
func TestRetiredCA(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.MustIssue(t, "")
	pending := issuertest.NewBoard(t)
	l.Registry.Put(issuertest.Enrolment(t, pending.Record(t, l.Station), l.Station))
	l.CA.Before = func() error { return issuertest.ErrInjected }
	if _, err := l.Issuer.Issue(t.Context(), pending.CSR().Request(t), issuertest.CAName); err == nil {
		t.Fatal("no failure")
	}
	l.CA.Before = nil
	config := l.Config
	config.CAs = map[string]issuer.CA{"next": l.CA}
	forgetful, err := issuer.New(config)
	if err != nil {
		t.Fatal(err)
	}
	request := l.Board.CSR().Request(t)
	if _, err := forgetful.Issue(t.Context(), request, "next"); !errors.Is(err, issuer.ErrUnknownCA) {
		t.Errorf("a CA that nobody knows: %v", err)
	}
	if _, err := forgetful.Revoke(t.Context(), l.Board.ID, 0, issuer.Unspecified); !errors.Is(err, issuer.ErrUnknownCA) {
		t.Errorf("revoking there: %v", err)
	}
	l.Claims.Stored = nil
	l.Registrar.Active = nil
	first := l.MustIssue(t, "")
	l.CA.Before = func() error { return issuertest.ErrInjected }
	_, _ = l.Issuer.Issue(t.Context(), pending.CSR().Request(t), issuertest.CAName)
	l.CA.Before = nil

	config.Retired = map[string]issuer.CA{issuertest.CAName: catest.Local(t)}
	next, err := issuer.New(config)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := next.Issue(t.Context(), request, "next"); err != nil || !issuertest.Equal(again, first) {
		t.Errorf("of a retired CA: %v", err)
	}
	if _, err := next.Issue(t.Context(), pending.CSR().Request(t), "next"); err != nil {
		t.Errorf("what it was not asked for: %v", err)
	}
	if had, err := l.Claims.Issuances(t.Context(), pending.ID); err != nil || len(had) != 1 || had[0].Claim.CA != "next" {
		t.Errorf("%+v, %v", had, err)
	}
	if _, err := next.Issue(t.Context(), request, issuertest.CAName); err == nil {
		t.Error("a door of a retired CA")
	}
	config.Retired = map[string]issuer.CA{"next": catest.Local(t)}
	if _, err := issuer.New(config); err == nil {
		t.Error("retired, and not")
	}
}

// Whatever the clock does, plain repeats give one certificate, or a refusal,
// and open no epoch. Failures break issuances off at every step.
func TestClockOpensNoEpoch(t *testing.T) {
	const histories, requests = 60, 12
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 2))
	for range histories {
		l := issuertest.NewRegisteredEnv(t, catest.Local(t))
		start := l.Now
		fault := func(string) error {
			if random.IntN(10) == 0 {
				return issuertest.ErrInjected
			}
			return nil
		}
		l.Claims.Fault, l.Registrar.Fault = fault, fault
		var first []byte
		for range requests {
			// Up to 12 years back or ahead, or minutes, which is what NTP does.
			away := time.Duration(random.Int64N(24*365*24)-12*365*24) * time.Hour
			if random.IntN(2) == 0 {
				away = time.Duration(random.Int64N(120)-60) * time.Minute
			}
			if start.Add(away).Before(catest.Local(t).Issuing().NotBefore) { // such a CA signs nothing
				away = time.Hour
			}
			l.Now = start.Add(away)
			got, err := l.Issue(t, "")
			if err != nil {
				continue
			}
			if first == nil {
				first = got.Leaf
			}
			if !bytes.Equal(got.Leaf, first) {
				t.Fatalf("another certificate, at %v from the start", away)
			}
		}
		l.Claims.Fault, l.Registrar.Fault = nil, nil
		had, err := l.Store.Issuances(t.Context(), l.Board.ID)
		if err != nil || len(had) > 1 || len(had) == 1 && had[0].Claim.Epoch != 1 {
			t.Fatalf("%d issuances, %v", len(had), err)
		}
		l.Claims.Stored = nil // the invariants are about certificates that are valid now
		l.CA.Issued = nil
	}
}

// A device whose certificate was made while the clock was ahead gets it again
// after the clock was set right, and another one for a challenge.
func TestClockWasAhead(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	right := l.Now
	l.Now = right.AddDate(1, 0, 0)
	ahead := l.MustIssue(t, "")
	l.Now = right
	if again := l.MustIssue(t, ""); !issuertest.Equal(again, ahead) {
		t.Error("a repeat gave another certificate")
	}
	if other := l.MustIssue(t, l.Challenge()); issuertest.Equal(other, ahead) {
		t.Error("a challenge gave the certificate that nobody takes yet")
	}
}

// A renewal leaves the former certificate active for the overlap, and not
// longer: the device's next request revokes it, or a sweep does. What fails of
// that fails no request.
func TestRenewalRevokesFormer(t *testing.T) {
	for _, c := range []struct {
		name    string
		overlap time.Duration
		later   time.Duration // after the renewal
		finish  func(t *testing.T, l *issuertest.RegisteredEnv)
		want    issuer.IssuanceState
	}{
		{"a repeat within the overlap", 0, 23 * time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) { l.MustIssue(t, "") }, issuer.Live},
		{"a repeat after the overlap", 0, 24 * time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) { l.MustIssue(t, "") }, issuer.Revoked},
		{"a sweep within the overlap", 0, 23 * time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) { l.Sweep(t, true) }, issuer.Live},
		{"a sweep after the overlap", 0, 24 * time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) { l.Sweep(t, true) }, issuer.Revoked},
		{"a shorter overlap", time.Hour, time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) { l.MustIssue(t, "") }, issuer.Revoked},
		{"a longer overlap", 48 * time.Hour, 47 * time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) { l.MustIssue(t, ""); l.Sweep(t, true) }, issuer.Live},
		{"nothing else", 0, 0, func(t *testing.T, l *issuertest.RegisteredEnv) { l.MustIssue(t, "") }, issuer.Live},
		{"a failure, then a sweep", 0, 25 * time.Hour, func(t *testing.T, l *issuertest.RegisteredEnv) {
			l.Registrar.Fault = issuertest.Once("before deactivate")
			l.MustIssue(t, "")
			l.Registrar.Fault = nil
			l.Sweep(t, true)
		}, issuer.Revoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := issuertest.NewRegisteredEnv(t, catest.Local(t))
			l.Policy.Validity, l.Policy.Renew, l.Policy.Overlap = 30*24*time.Hour, 29*24*time.Hour, c.overlap
			l.Restart(t)
			first := l.MustIssue(t, "")
			l.Now = l.Now.Add(2 * 24 * time.Hour)
			second := l.MustIssue(t, l.Challenge())
			if issuertest.Equal(first, second) {
				t.Fatal("it was not renewed")
			}
			l.Now = l.Now.Add(c.later)
			c.finish(t, l)
			had, err := l.Store.Issuances(t.Context(), l.Board.ID)
			if err != nil || len(had) != 2 || had[0].State != c.want || had[1].State != issuer.Live {
				t.Fatalf("%+v, %v", had, err)
			}
			if c.want == issuer.Revoked && had[0].Reason != issuer.Superseded {
				t.Errorf("revoked because of %v", had[0].Reason)
			}
			l.Settled(t)
			if again := l.MustIssue(t, ""); !issuertest.Equal(again, second) {
				t.Error("a repeat gives another certificate")
			}
		})
	}
}

// After a request for one CA failed there, a request for another CA is answered
// by that one: nothing was asked of the first that could be lost.
func TestOtherCAAfterFailure(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	proto := &issuertest.CountingCA{CA: catest.Local(t), Before: func() error { return issuertest.ErrInjected }}
	l.Config.CAs = map[string]issuer.CA{issuertest.CAName: l.CA, "proto": proto}
	var err error
	if l.Issuer, err = issuer.New(l.Config); err != nil {
		t.Fatal(err)
	}
	request := l.Board.CSR().Request(t)
	if _, err := l.Issuer.Issue(t.Context(), request, "proto"); !errors.Is(err, issuertest.ErrInjected) {
		t.Fatalf("no failure: %v", err)
	}
	first, err := l.Issuer.Issue(t.Context(), request, issuertest.CAName)
	if err != nil {
		t.Fatalf("the other CA: %v", err)
	}
	proto.Before = nil
	if again, err := l.Issuer.Issue(t.Context(), request, "proto"); err != nil || !issuertest.Equal(first, again) {
		t.Errorf("another certificate for the same epoch, %v", err)
	}
	had, err := l.Store.Issuances(t.Context(), l.Board.ID)
	if err != nil || len(had) != 1 || had[0].Claim.CA != issuertest.CAName {
		t.Errorf("%+v, %v", had, err)
	}
}
