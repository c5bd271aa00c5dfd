package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

// caBackend is a CA with what a test may ask of it.
type caBackend struct {
	ca    CA
	same  bool       // for one claim it always gives the same bytes
	count func() int // certificates that it ever made; nil if it keeps none
	one   bool       // however many ask at once, it makes one
	// revoked tells the reason of a certificate that is revoked at the CA, or is empty; nil if revocation is not the CA's.
	revoked func(leaf []byte) string
}

// caBackends are all CAs. A fake runs on a clock of the test's own.
func caBackends() map[string]struct {
	ownClock bool
	prepare  func(t *testing.T)
	open     func(t *testing.T) caBackend
} {
	type backend = struct {
		ownClock bool
		prepare  func(t *testing.T)
		open     func(t *testing.T) caBackend
	}
	return map[string]backend{
		"local": {false, func(*testing.T) {}, func(t *testing.T) caBackend { return caBackend{ca: localCA(t), same: true} }},
		"local-kms-fake": {false, awsEnvironment, func(t *testing.T) caBackend {
			return caBackend{ca: kmsCAWith(t, KMSConfig{KeyID: fakeSigningKey, test: awsTest{newWeather(newFakeKMS(t), target)}})}
		}},
		"local-kms-moto": {false, func(t *testing.T) { motoEndpoint(t) }, func(t *testing.T) caBackend {
			return caBackend{ca: kmsCA(t)}
		}},
		"acmpca-fake": {true, awsEnvironment, func(t *testing.T) caBackend { return pcaBackend(t, newFakePCA(t), PCAClientAuth) }},
		"acmpca-fake-blank": {true, awsEnvironment, func(t *testing.T) caBackend {
			f := newFakePCA(t)
			f.withRoot = true
			return pcaBackend(t, f, PCABlank)
		}},
		"iotcore-fake": {true, awsEnvironment, func(t *testing.T) caBackend {
			f := newFakeIoT()
			config, _ := f.config()
			ca, err := OpenIoTCore(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			return caBackend{ca: ca, same: true, count: f.count, revoked: func(leaf []byte) string {
				if sum := sha256.Sum256(leaf); f.status(hex.EncodeToString(sum[:])) == "REVOKED" {
					return "REVOKED"
				}
				return ""
			}}
		}},
	}
}

func pcaBackend(t *testing.T, f *fakePCA, template string) caBackend {
	config, _ := f.config(t)
	config.Template = template
	ca, err := OpenACMPCA(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return caBackend{ca: ca, same: true, one: true, count: f.count, revoked: func(leaf []byte) string {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, i := range f.issued {
			if bytes.Equal(i.leaf, leaf) {
				return i.revoked
			}
		}
		return ""
	}}
}

func onEveryCA(t *testing.T, test func(t *testing.T, b caBackend)) {
	for name, backend := range caBackends() {
		t.Run(name, func(t *testing.T) {
			backend.prepare(t)
			if !backend.ownClock {
				test(t, backend.open(t))
				return
			}
			synctest.Test(t, func(t *testing.T) { test(t, backend.open(t)) })
		})
	}
}

// mustVerify checks a certificate as the issuer does.
func mustVerify(t *testing.T, ca CA, c Certificate, claim Claim) {
	t.Helper()
	if err := verify(ca, c, claim); err != nil {
		t.Error(err)
	}
}

func verify(ca CA, c Certificate, claim Claim) error {
	return NewCertificateCheck(ca.Profile()).Check(c, claim, time.Now())
}

func TestCAIssues(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		a, memo := approvedFor(t), &memMemo{}
		claim := mustClaim(t, a)
		first, err := b.ca.Issue(t.Context(), a, claim, memo)
		if err != nil {
			t.Fatal(err)
		}
		mustVerify(t, b.ca, first, claim)
		again, err := b.ca.Issue(t.Context(), a, claim, memo)
		if err != nil {
			t.Fatal(err)
		}
		mustVerify(t, b.ca, again, claim)
		if b.same && !equal(first, again) {
			t.Error("the same claim gave another certificate")
		}
		if b.count != nil && b.count() != 1 {
			t.Errorf("%d certificates were made for one claim", b.count())
		}
	})
}

// What a request has beside its key and its name is not copied.
func TestCACopiesNothing(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		st, device := newStation(t, testSKU, "line3-a"), newSimulated(t)
		item := enrolment(t, device.record(t, st), st)
		request := device.csr()
		request.subject = append(request.subject, name([]int{2, 5, 4, 10}, 19, "Mallory"), name([]int{2, 5, 4, 6}, 19, "XX"))
		a, err := Decide(request.request(t), &item, Policy{SKU: testSKU, Stations: []board.Verifier{st.verifier}, Organization: "Widgets"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		claim := mustClaim(t, a)
		c, err := b.ca.Issue(t.Context(), a, claim, &memMemo{})
		if err != nil {
			t.Fatal(err)
		}
		mustVerify(t, b.ca, c, claim)
	})
}

func TestCARefusesWhatWasNotApproved(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		a, other := approvedFor(t), approvedFor(t)
		if _, err := b.ca.Issue(t.Context(), Approved{}, mustClaim(t, a), &memMemo{}); err == nil || !strings.Contains(err.Error(), "not approved") {
			t.Errorf("nothing approved: %v", err)
		}
		if _, err := b.ca.Issue(t.Context(), a, mustClaim(t, other), &memMemo{}); err == nil || !strings.Contains(err.Error(), "is not for what was approved") {
			t.Errorf("another's claim: %v", err)
		}
		if b.count != nil && b.count() != 0 {
			t.Errorf("%d certificates were made", b.count())
		}
	})
}

func TestCAContextOver(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		a := approvedFor(t)
		claim, memo := mustClaim(t, a), &memMemo{}
		if _, local := b.ca.(*LocalCA); !local || !b.same { // in memory there is nothing to wait for
			if _, err := b.ca.Issue(ctx, a, claim, memo); err == nil {
				t.Error("it signed in a context that is over")
			}
		}
		c, err := b.ca.Issue(t.Context(), a, claim, memo)
		if err != nil {
			t.Fatal(err)
		}
		mustVerify(t, b.ca, c, claim)
	})
}

func TestCARevokes(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		a, memo := approvedFor(t), &memMemo{}
		claim := mustClaim(t, a)
		c, err := b.ca.Issue(t.Context(), a, claim, memo)
		if err != nil {
			t.Fatal(err)
		}
		i := Issuance{Claim: claim, Version: 2, State: Revoking, Memo: memo.text, Certificate: &c, Revoked: claim.Created, Reason: KeyCompromise}
		for range 2 {
			if err := b.ca.Revoke(t.Context(), i, KeyCompromise); err != nil {
				t.Fatal(err)
			}
			if b.revoked != nil && b.revoked(c.Leaf) == "" {
				t.Error("it is not revoked")
			}
		}
		// One that was made and whose answer never was written down.
		other := approvedFor(t)
		claim, memo = mustClaim(t, other), &memMemo{}
		if c, err = b.ca.Issue(t.Context(), other, claim, memo); err != nil {
			t.Fatal(err)
		}
		if err := b.ca.Revoke(t.Context(), Issuance{Claim: claim, Version: 2, State: Revoking, Memo: memo.text}, Superseded); err != nil {
			t.Fatal(err)
		}
		if b.revoked != nil && b.revoked(c.Leaf) == "" {
			t.Error("it is not revoked by its memo")
		}
		// And nothing at all.
		if err := b.ca.Revoke(t.Context(), Issuance{Claim: claim, Version: 2, State: Revoking}, Superseded); err != nil {
			t.Error(err)
		}
	})
}

// Sixteen requests at once get one certificate.
func TestCAConcurrent(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		w := newCAWorld(t, b.ca, nil)
		var group sync.WaitGroup
		leaves := make([]Certificate, 16)
		for n := range leaves {
			group.Go(func() {
				for { // another request may be under way for long
					c, err := w.issue(t)
					if err == nil {
						leaves[n] = c
						return
					}
					if !errors.Is(err, ErrBusy) {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		for _, c := range leaves {
			if !equal(c, leaves[0]) {
				t.Error("two certificates were answered")
			}
		}
		if b.one && b.count() != 1 {
			t.Errorf("%d certificates were made", b.count())
		}
	})
}

// caWorld is an issuer with one enrolled board and one CA.
type caWorld struct {
	board  simulated
	claims *memClaims
	issuer *Issuer
	csr    []byte
}

func newCAWorld(t *testing.T, ca CA, registrar Registrar) *caWorld {
	t.Helper()
	st := newStation(t, testSKU, "line3-a")
	w := &caWorld{board: newSimulated(t), claims: &memClaims{}}
	registry := &memRegistry{}
	registry.put(enrolment(t, w.board.record(t, st), st))
	w.csr = w.board.csr().der(t)
	var err error
	w.issuer, err = New(Config{
		Policy: Policy{SKU: testSKU, Stations: []board.Verifier{st.verifier}}, Registry: registry,
		CAs: map[string]CA{testCA: ca}, Claims: w.claims, Registrar: registrar,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *caWorld) issue(t *testing.T) (Certificate, error) {
	t.Helper()
	request, err := ParseRequest(w.csr)
	if err != nil {
		t.Fatal(err)
	}
	return w.issuer.Issue(t.Context(), request, testCA)
}

// kmsCA is a local CA whose issuing key is in KMS.
func kmsCA(t *testing.T) *LocalCA {
	t.Helper()
	return kmsCAWith(t, motoKey(t, motoEndpoint(t), "ECC_NIST_P256", "SIGN_VERIFY"))
}

func kmsCAWith(t *testing.T, key KMSConfig) *LocalCA {
	t.Helper()
	signer, err := OpenKMSSigner(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	parent := newFakePCA(t) // for its root
	template := *parent.ca
	der, err := x509.CreateCertificate(nil, &template, parent.root, signer.Public(), parent.rootKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, raw := range map[string][]byte{rootCertificateFile: parent.root.Raw, issuingCertificateFile: der} {
		if err := writeSynced(filepath.Join(dir, file), Certificate{Leaf: raw}.LeafPEM()); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := OpenLocalCA(LocalCAConfig{Dir: dir, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
