package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"secretfree/station/board"
)

// past is a device with a life behind it: what it has had, told from now.
type past struct {
	a      Approved
	policy Policy
	now    time.Time
	had    []Issuance
}

// planned is a device that was approved.
func planned(t testing.TB) Approved {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := board.NewKey(private.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	return Approved{device: board.DeviceID{1}, key: key, generation: 1, notBefore: now.Add(-backdate), notAfter: now.Add(DefaultValidity)}
}

// with adds an issuance of an epoch, valid from some days ago to some days
// ahead.
func (p *past) with(t testing.TB, epoch, since, left int, state IssuanceState, challenge string) *past {
	t.Helper()
	const day = 24 * time.Hour
	c, err := newClaim(p.a, 1, "main", p.now)
	if err != nil {
		t.Fatal(err)
	}
	c.Epoch, c.Challenge = epoch, challenge
	c.NotBefore, c.NotAfter = p.now.Add(-time.Duration(since)*day), p.now.Add(time.Duration(left)*day)
	i := Issuance{Claim: c, Version: 1, State: state}
	if state != Claimed {
		i.Certificate = &Certificate{Leaf: []byte{byte(epoch)}}
	}
	if state == Live {
		i.Activated = c.NotBefore
	}
	if state == Revoking || state == Revoked {
		i.Revoked, i.Reason = p.now, KeyCompromise
	}
	p.had = append(p.had, i)
	return p
}

// fresh makes the request answer a challenge; peer makes it come with the
// certificate of an epoch.
func (p *past) fresh(challenge string) *past { p.a.challenge = challenge; return p }
func (p *past) peer(epoch int) *past {
	p.a.peer = &x509.Certificate{Raw: []byte{byte(epoch)}}
	return p
}
func (p *past) floor(epoch int) *past { p.a.epoch = epoch; return p }

func TestPlan(t *testing.T) {
	approved := planned(t)
	for _, c := range []struct {
		name    string
		set     func(t testing.TB, p *past)
		epoch   int
		repeats bool // from an issuance that is there
		refusal Refusal
	}{
		{name: "the first is free", set: func(testing.TB, *past) {}, epoch: 1},
		{name: "a first that an operator put later", set: func(_ testing.TB, p *past) { p.floor(4) }, epoch: 4},
		{name: "a repeat", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Live, "") }, epoch: 1, repeats: true},
		{name: "a repeat of what broke off", set: func(t testing.TB, p *past) { p.with(t, 1, 0, 300, Claimed, "") }, epoch: 1, repeats: true},
		{name: "a repeat of what was signed", set: func(t testing.TB, p *past) { p.with(t, 1, 0, 300, Signed, "") }, epoch: 1, repeats: true},
		{name: "a repeat near the end", set: func(t testing.TB, p *past) { p.with(t, 1, 300, 10, Live, "") }, epoch: 1, repeats: true},
		{name: "fresh, and far from the end", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Live, "").fresh("c") }, epoch: 1, repeats: true},
		{name: "fresh, near the end", set: func(t testing.TB, p *past) { p.with(t, 1, 300, 10, Live, "").fresh("c") }, epoch: 2},
		{name: "fresh, after the end", set: func(t testing.TB, p *past) { p.with(t, 1, 400, -10, Live, "").fresh("c") }, epoch: 2},
		{name: "after the end", set: func(t testing.TB, p *past) { p.with(t, 1, 400, -10, Live, "") }, refusal: CertificateExpired},
		{name: "after the end of what broke off", set: func(t testing.TB, p *past) { p.with(t, 1, 400, -10, Claimed, "") }, epoch: 1, repeats: true},
		{name: "after the end of what was signed", set: func(t testing.TB, p *past) { p.with(t, 1, 400, -10, Signed, "") }, refusal: CertificateExpired},
		{name: "fresh, after the end of what was signed", set: func(t testing.TB, p *past) { p.with(t, 1, 400, -10, Signed, "").fresh("c") }, epoch: 2},
		{name: "after the end of what a CA was asked for", set: func(t testing.TB, p *past) {
			p.with(t, 1, 400, -10, Claimed, "").had[0].CAState = "asked"
		}, refusal: CertificateExpired},
		{name: "a certificate from the future", set: func(t testing.TB, p *past) { p.with(t, 1, -10, 300, Live, "") }, epoch: 1, repeats: true},
		{name: "a signed certificate from the future", set: func(t testing.TB, p *past) { p.with(t, 1, -10, 300, Signed, "") }, epoch: 1, repeats: true},
		{name: "fresh, of a certificate from the future", set: func(t testing.TB, p *past) { p.with(t, 1, -10, 300, Live, "").fresh("c") }, epoch: 2},
		{name: "its own challenge, of a certificate from the future", set: func(t testing.TB, p *past) { p.with(t, 1, -10, 300, Live, "c").fresh("c") }, epoch: 1, repeats: true},
		{name: "what broke off in the future", set: func(t testing.TB, p *past) { p.with(t, 1, -10, 300, Claimed, "") }, epoch: 1, repeats: true},
		{name: "the retry of a renewal", set: func(t testing.TB, p *past) {
			p.with(t, 1, 300, 10, Live, "").with(t, 2, 0, 300, Live, "c").fresh("c")
		}, epoch: 2, repeats: true},
		{name: "the retry of a renewal that broke off", set: func(t testing.TB, p *past) {
			p.with(t, 1, 300, 10, Live, "").with(t, 2, 0, 300, Claimed, "c").fresh("c")
		}, epoch: 2, repeats: true},
		{name: "a retry with a new challenge", set: func(t testing.TB, p *past) {
			p.with(t, 1, 300, 10, Live, "").with(t, 2, 0, 300, Claimed, "c").fresh("d")
		}, epoch: 2, repeats: true},
		{name: "the challenge of an earlier epoch", set: func(t testing.TB, p *past) {
			p.with(t, 1, 300, 10, Live, "c").with(t, 2, 0, 10, Live, "d").fresh("c")
		}, refusal: ChallengeReplayed},
		{name: "the challenge of the last epoch, when another is granted", set: func(t testing.TB, p *past) {
			p.with(t, 1, 1, 300, Live, "c").fresh("c").floor(2)
		}, refusal: ChallengeReplayed},
		{name: "the same challenge cannot open the next epoch", set: func(t testing.TB, p *past) {
			p.with(t, 1, 300, 10, Live, "c").fresh("c")
		}, epoch: 1, repeats: true},
		{name: "an expired challenge of its own", set: func(t testing.TB, p *past) { p.with(t, 1, 400, -1, Live, "c").fresh("c") }, refusal: CertificateExpired},
		{name: "an operator grants the next", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Live, "").floor(2) }, epoch: 2},
		{name: "what was granted is a repeat then", set: func(t testing.TB, p *past) {
			p.with(t, 1, 10, 300, Revoked, "").with(t, 2, 0, 300, Live, "").floor(2)
		}, epoch: 2, repeats: true},
		{name: "revoked", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Revoked, "") }, refusal: CertificateRevoked},
		{name: "being revoked, and fresh", set: func(t testing.TB, p *past) { p.with(t, 1, 300, 10, Revoking, "").fresh("c") }, refusal: CertificateRevoked},
		{name: "revoked, and granted", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Revoked, "").floor(2) }, epoch: 2},
		{name: "with its certificate, early", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Live, "").peer(1) }, epoch: 2},
		{name: "with its certificate, too soon", set: func(t testing.TB, p *past) { p.with(t, 1, 0, 300, Live, "").peer(1) }, epoch: 1, repeats: true},
		{name: "with an old certificate", set: func(t testing.TB, p *past) {
			p.with(t, 1, 300, 100, Live, "").with(t, 2, 10, 300, Live, "").peer(1)
		}, epoch: 2, repeats: true},
		{name: "with its certificate, revoked", set: func(t testing.TB, p *past) { p.with(t, 1, 10, 300, Revoked, "").peer(1) }, refusal: CertificateRevoked},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &past{a: approved, policy: Policy{Validity: 365 * 24 * time.Hour}, now: time.Now()}
			c.set(t, p)
			// What another key or generation had does not count.
			foreign := planned(t)
			foreign.device = approved.device
			other := (&past{a: foreign, now: p.now}).with(t, 9, 10, 300, Live, "x").had
			got, epoch, err := p.a.plan(append(other, p.had...), p.policy, p.now)
			if c.refusal != "" {
				if !errors.Is(err, c.refusal) {
					t.Fatalf("got %v, want %s", err, c.refusal)
				}
				return
			}
			if err != nil || epoch != c.epoch || (got != nil) != c.repeats {
				t.Fatalf("epoch %d, repeats %v, %v; want epoch %d, repeats %v", epoch, got != nil, err, c.epoch, c.repeats)
			}
			if got != nil && (got.Claim.Epoch != epoch || got.Claim.Fingerprint != p.a.key.Fingerprint()) {
				t.Errorf("it goes on from %s", got.Claim.ID())
			}
		})
	}
}

func TestNextEpoch(t *testing.T) {
	p := &past{a: planned(t), now: time.Now()}
	if got := nextEpoch(nil, board.Enrolment{}); got != 1 {
		t.Error(got)
	}
	if got := nextEpoch(nil, board.Enrolment{Epoch: 3}); got != 3 {
		t.Error(got)
	}
	p.with(t, 1, 1, 1, Live, "").with(t, 5, 1, 1, Revoked, "")
	if got := nextEpoch(p.had, board.Enrolment{Epoch: 3}); got != 6 {
		t.Error(got)
	}
}

func TestChallenges(t *testing.T) {
	c, err := NewChallenges("widgiot", make32(), DefaultChallengeLife)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	text, until := c.New(now)
	if len(text) != challengeLength || len(text) > 64 {
		t.Errorf("%q has %d characters", text, len(text))
	}
	if again, _ := c.New(now); again == text {
		t.Error("twice the same")
	}
	for at, want := range map[time.Time]bool{now: true, until.Add(-time.Second): true, until: false, now.Add(-25 * time.Hour): false} {
		if err := c.check(text, at); (err == nil) != want {
			t.Errorf("%v after it was made: %v", at.Sub(now), err)
		}
	}
	for i := range text {
		bad := []byte(text)
		bad[i] ^= 1
		if c.check(string(bad), now) == nil {
			t.Errorf("character %d may be anything", i)
		}
	}
	for name, make := range map[string]func() (*Challenges, error){
		"a short key": func() (*Challenges, error) { return NewChallenges("widgiot", []byte("k"), time.Minute) },
		"no life":     func() (*Challenges, error) { return NewChallenges("widgiot", make32(), 0) },
		"a long life": func() (*Challenges, error) { return NewChallenges("widgiot", make32(), 25*time.Hour) },
		"no SKU":      func() (*Challenges, error) { return NewChallenges("", make32(), time.Minute) },
		"not a SKU":   func() (*Challenges, error) { return NewChallenges("A b", make32(), time.Minute) },
	} {
		if _, err := make(); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func make32() []byte { return make([]byte, 32) }

func TestTurns(t *testing.T) {
	var all deviceLocks
	device, other := board.DeviceID{1}, board.DeviceID{2}
	back, err := all.take(t.Context(), device)
	if err != nil {
		t.Fatal(err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.take(done, device); !errors.Is(err, context.Canceled) {
		t.Errorf("another request of the device did not wait: %v", err)
	}
	free, err := all.take(t.Context(), other)
	if err != nil {
		t.Fatalf("another device waits: %v", err)
	}
	free()
	next := make(chan func())
	go func() {
		back, err := all.take(t.Context(), device)
		if err != nil {
			t.Error(err)
		}
		next <- back
	}()
	back()
	(<-next)()
	if len(all.devices) != 0 {
		t.Errorf("%d devices are remembered", len(all.devices))
	}
}
