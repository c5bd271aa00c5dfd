package ca

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

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/keyfile"
	"secretfree/station/board"
)

// caBackend is a CA with what a test may ask of it.
type caBackend struct {
	ca    issuer.CA
	same  bool       // for one claim it always gives the same bytes
	count func() int // certificates that it ever made; nil if it keeps none
	one   bool       // however many ask at once, it makes one
	// revoked tells the reason of a certificate that is revoked at the CA, or
	// is empty; nil if revocation is not the CA's.
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
			return caBackend{ca: kmsCAWith(t, KMSConfig{KeyID: fakeSigningKey, test: awsTest{newFaults(newFakeKMS(t), target)}})}
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
func mustVerify(t *testing.T, ca issuer.CA, c issuer.Certificate, claim issuer.Claim) {
	t.Helper()
	if err := verify(ca, c, claim); err != nil {
		t.Error(err)
	}
}

func verify(ca issuer.CA, c issuer.Certificate, claim issuer.Claim) error {
	return issuer.NewCertificateCheck(ca.Profile()).Check(c, claim, time.Now())
}

func TestCAIssues(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		a, memo := issuertest.Approved(t), &issuertest.MemCAState{}
		claim := issuertest.NewClaim(t, a)
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
		if b.same && !issuertest.Equal(first, again) {
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
		st, device := issuertest.NewStation(t, issuertest.SKU, "line3-a"), issuertest.NewBoard(t)
		item := issuertest.Enrolment(t, device.Record(t, st), st)
		request := device.CSR()
		request.Subject = append(request.Subject, issuertest.Name([]int{2, 5, 4, 10}, 19, "Mallory"), issuertest.Name([]int{2, 5, 4, 6}, 19, "XX"))
		a, err := issuer.Decide(request.Request(t), &item, issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{st.Verifier}, Organization: "Widgets"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		claim := issuertest.NewClaim(t, a)
		c, err := b.ca.Issue(t.Context(), a, claim, &issuertest.MemCAState{})
		if err != nil {
			t.Fatal(err)
		}
		mustVerify(t, b.ca, c, claim)
	})
}

func TestCARefusesWhatWasNotApproved(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		a, other := issuertest.Approved(t), issuertest.Approved(t)
		if _, err := b.ca.Issue(t.Context(), issuer.Approved{}, issuertest.NewClaim(t, a), &issuertest.MemCAState{}); err == nil || !strings.Contains(err.Error(), "not approved") {
			t.Errorf("nothing approved: %v", err)
		}
		if _, err := b.ca.Issue(t.Context(), a, issuertest.NewClaim(t, other), &issuertest.MemCAState{}); err == nil || !strings.Contains(err.Error(), "is not for what was approved") {
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
		a := issuertest.Approved(t)
		claim, memo := issuertest.NewClaim(t, a), &issuertest.MemCAState{}
		if _, local := b.ca.(*Local); !local || !b.same { // in memory there is nothing to wait for
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
		a, memo := issuertest.Approved(t), &issuertest.MemCAState{}
		claim := issuertest.NewClaim(t, a)
		c, err := b.ca.Issue(t.Context(), a, claim, memo)
		if err != nil {
			t.Fatal(err)
		}
		i := issuer.Issuance{Claim: claim, Version: 2, State: issuer.Revoking, CAState: memo.Text, Certificate: &c, Revoked: claim.Created, Reason: issuer.KeyCompromise}
		for range 2 {
			if err := b.ca.Revoke(t.Context(), i, issuer.KeyCompromise); err != nil {
				t.Fatal(err)
			}
			if b.revoked != nil && b.revoked(c.Leaf) == "" {
				t.Error("it is not revoked")
			}
		}
		// One that was made and whose answer never was written down.
		other := issuertest.Approved(t)
		claim, memo = issuertest.NewClaim(t, other), &issuertest.MemCAState{}
		if c, err = b.ca.Issue(t.Context(), other, claim, memo); err != nil {
			t.Fatal(err)
		}
		if err := b.ca.Revoke(t.Context(), issuer.Issuance{Claim: claim, Version: 2, State: issuer.Revoking, CAState: memo.Text}, issuer.Superseded); err != nil {
			t.Fatal(err)
		}
		if b.revoked != nil && b.revoked(c.Leaf) == "" {
			t.Error("it is not revoked by its memo")
		}
		// And nothing at all.
		if err := b.ca.Revoke(t.Context(), issuer.Issuance{Claim: claim, Version: 2, State: issuer.Revoking}, issuer.Superseded); err != nil {
			t.Error(err)
		}
	})
}

// Sixteen requests at once get one certificate.
func TestCAConcurrent(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		w := newCAEnv(t, b.ca, nil)
		var group sync.WaitGroup
		leaves := make([]issuer.Certificate, 16)
		for n := range leaves {
			group.Go(func() {
				for { // another request may be under way for long
					c, err := w.issue(t)
					if err == nil {
						leaves[n] = c
						return
					}
					if !errors.Is(err, issuer.ErrBusy) {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		for _, c := range leaves {
			if !issuertest.Equal(c, leaves[0]) {
				t.Error("two certificates were answered")
			}
		}
		if b.one && b.count() != 1 {
			t.Errorf("%d certificates were made", b.count())
		}
	})
}

// The alternative name is that of the claim, and of the request none, at every
// CA that lets it be chosen.
func TestCAAlternativeName(t *testing.T) {
	for name, setting := range map[string]string{"URN": "urn:dev:ops:widgiot-{device}", "host": "{device}.devices.example.com", "none": ""} {
		t.Run(name, func(t *testing.T) {
			onEveryCA(t, func(t *testing.T, b caBackend) {
				w := newCAEnv(t, b.ca, nil)
				w.config.Policy.AlternativeName = setting
				var err error
				if w.issuer, err = issuer.New(w.config); err != nil {
					t.Fatal(err)
				}
				c, err := w.issue(t)
				if err != nil {
					t.Fatal(err)
				}
				if again, err := w.issue(t); err != nil || !issuertest.Equal(c, again) {
					t.Errorf("a retry: %v", err)
				}
				if b.ca.Profile().CAControlled {
					return
				}
				leaf := mustParse(t, c.Leaf)
				var got []string
				for _, u := range leaf.URIs {
					got = append(got, u.String())
				}
				got = append(append(got, leaf.DNSNames...), leaf.EmailAddresses...)
				want := strings.ReplaceAll(setting, "{device}", w.board.ID.String())
				if strings.Join(got, ",") != want || len(leaf.IPAddresses) > 0 {
					t.Errorf("it has the names %q, want %q", got, want)
				}
			})
		})
	}
}

// A renewal revokes the former certificate at every CA after the overlap, and
// not before it.
func TestCARenewal(t *testing.T) {
	onEveryCA(t, func(t *testing.T, b caBackend) {
		w := newCAEnv(t, b.ca, nil)
		ahead := time.Duration(0)
		w.config.Now = func() time.Time { return time.Now().Add(ahead) }
		w.config.Policy.Validity, w.config.Policy.Renew, w.config.Policy.Overlap = 30*24*time.Hour, 30*24*time.Hour-time.Minute, time.Hour
		w.config.Policy.Challenges = issuertest.Challenges(t)
		var err error
		if w.issuer, err = issuer.New(w.config); err != nil {
			t.Fatal(err)
		}
		first, err := w.issue(t)
		if err != nil {
			t.Fatal(err)
		}
		ahead = 2 * time.Minute
		text, _ := w.config.Policy.Challenges.New(w.config.Now())
		fresh := w.board.CSR()
		fresh.Passwords = []string{text}
		second, err := w.issuer.Issue(t.Context(), fresh.Request(t), issuertest.CAName)
		if err != nil || issuertest.Equal(first, second) {
			t.Fatalf("it was not renewed: %v", err)
		}
		revoked := func() bool {
			had, err := w.claims.Issuances(t.Context(), w.board.ID)
			if err != nil || len(had) != 2 {
				t.Fatalf("%d issuances, %v", len(had), err)
			}
			if there := b.revoked != nil && b.revoked(first.Leaf) != ""; b.revoked != nil && there != (had[0].State == issuer.Revoked) {
				t.Errorf("the claim is %s, at the CA revoked %v", had[0].State, there)
			}
			return had[0].State == issuer.Revoked
		}
		if _, err := w.issue(t); err != nil || revoked() {
			t.Errorf("within the overlap: %v, revoked %v", err, revoked())
		}
		ahead += time.Hour
		if again, err := w.issue(t); err != nil || !issuertest.Equal(again, second) || !revoked() {
			t.Errorf("after the overlap: %v, revoked %v", err, revoked())
		}
	})
}

// caEnv is an issuer with one enrolled board and one CA.
type caEnv struct {
	board  issuertest.Board
	claims *issuertest.Claims
	config issuer.Config // of issuer
	issuer *issuer.Issuer
	csr    []byte
}

func newCAEnv(t *testing.T, ca issuer.CA, registrar issuer.Registrar) *caEnv {
	t.Helper()
	st := issuertest.NewStation(t, issuertest.SKU, "line3-a")
	w := &caEnv{board: issuertest.NewBoard(t), claims: &issuertest.Claims{}}
	registry := &issuertest.Registry{}
	registry.Put(issuertest.Enrolment(t, w.board.Record(t, st), st))
	w.csr = w.board.CSR().DER(t)
	var err error
	w.config = issuer.Config{
		Policy: issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{st.Verifier}}, Registry: registry,
		CAs: map[string]issuer.CA{issuertest.CAName: ca}, Claims: w.claims, Registrar: registrar,
	}
	w.issuer, err = issuer.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *caEnv) issue(t *testing.T) (issuer.Certificate, error) {
	t.Helper()
	request, err := issuer.ParseRequest(w.csr)
	if err != nil {
		t.Fatal(err)
	}
	return w.issuer.Issue(t.Context(), request, issuertest.CAName)
}

// kmsCA is a local CA whose issuing key is in KMS.
func kmsCA(t *testing.T) *Local {
	t.Helper()
	return kmsCAWith(t, motoKey(t, motoEndpoint(t), "ECC_NIST_P256", "SIGN_VERIFY"))
}

func kmsCAWith(t *testing.T, key KMSConfig) *Local {
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
		if err := keyfile.WriteSynced(filepath.Join(dir, file), issuer.Certificate{Leaf: raw}.LeafPEM()); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := OpenLocal(LocalConfig{Dir: dir, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
