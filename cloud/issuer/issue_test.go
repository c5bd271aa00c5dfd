package issuer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

func TestIssue(t *testing.T) {
	w := newWorld(t, localCA(t))
	request := w.board.csr().request(t)
	first, err := w.issuer.Issue(t.Context(), request, testCA)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(first.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if got := leaf.Subject.String(); got != "CN="+w.board.id.String() {
		t.Errorf("subject %s", got)
	}
	if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(w.board.key.Public()) {
		t.Error("another key")
	}
	if leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 || leaf.SerialNumber.BitLen() > 128 || !leaf.BasicConstraintsValid || leaf.IsCA {
		t.Errorf("signature %v, serial %v, basic constraints %v %v", leaf.SignatureAlgorithm, leaf.SerialNumber, leaf.BasicConstraintsValid, leaf.IsCA)
	}
	if len(leaf.SubjectKeyId) != 20 || !bytes.Equal(leaf.AuthorityKeyId, localCA(t).Issuing().SubjectKeyId) {
		t.Errorf("key identifiers %x, %x", leaf.SubjectKeyId, leaf.AuthorityKeyId)
	}
	if len(leaf.Extensions) != 5 {
		t.Errorf("%d extensions, want the profile's 5", len(leaf.Extensions))
	}
	// A new request of the same board, with other bytes, gets the same certificate.
	sha256 := w.board.csr()
	sha256.sha256 = true
	for _, again := range []Request{request, w.board.csr().request(t), sha256.request(t)} {
		if got, err := w.issuer.Issue(t.Context(), again, testCA); err != nil || !equal(got, first) {
			t.Errorf("a repeat gave another certificate, or %v", err)
		}
	}
	if len(w.ca.issued) != 1 || w.ca.issued[string(first.Leaf)] != 1 {
		t.Errorf("%d certificates were signed", len(w.ca.issued))
	}
	// Nothing of a request is in it but the key.
	rich := newSimulated(t)
	w.registry.put(enrolment(t, rich.record(t, w.station), w.station))
	c := rich.csr()
	c.subject = append(c.subject, name(oid(2, 5, 4, 10), 19, "Smuggled"))
	c.extensions = []extension{{ID: oid(1, 2, 3, 4), Critical: true, Value: []byte("Smuggled")}}
	got, err := w.issuer.Issue(t.Context(), c.request(t), testCA)
	if err != nil || bytes.Contains(got.Leaf, []byte("Smuggled")) {
		t.Errorf("the request shows through, or %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	w := newWorld(t, localCA(t))
	stranger := newSimulated(t)
	if _, err := w.issuer.Issue(t.Context(), stranger.csr().request(t), testCA); !errors.Is(err, NotEnrolled) {
		t.Errorf("not enrolled: %v", err)
	}
	thief := stranger.csr()
	thief.subject[0] = cn(w.board.id.String())
	if _, err := w.issuer.Issue(t.Context(), thief.request(t), testCA); !errors.Is(err, KeyMismatch) {
		t.Errorf("another key under this id: %v", err)
	}
	calls := w.registry.calls
	nameless := w.board.csr()
	nameless.subject = nil
	if _, err := w.issuer.Issue(t.Context(), nameless.request(t), testCA); !errors.Is(err, NoCN) || w.registry.calls != calls {
		t.Errorf("no CN: %v, after %d calls", err, w.registry.calls-calls)
	}
	// Whoever can write the table, but does not have a station's key, enrols nobody.
	forged := enrolment(t, w.board.record(t, w.station), w.station)
	forged.Device, forged.Key = stranger.id, stranger.boardKey(t)
	w.registry.put(forged)
	if _, err := w.issuer.Issue(t.Context(), stranger.csr().request(t), testCA); !errors.Is(err, RecordMismatch) {
		t.Errorf("a borrowed record: %v", err)
	}
	rogue := newStation(t, testSKU, "line3-a")
	w.registry.put(enrolment(t, stranger.record(t, rogue), rogue))
	if _, err := w.issuer.Issue(t.Context(), stranger.csr().request(t), testCA); !errors.Is(err, UntrustedRecord) {
		t.Errorf("a forged record: %v", err)
	}
	// A device that has its certificate and is held gets nothing, not even a repeat.
	request := w.board.csr().request(t)
	if _, err := w.issuer.Issue(t.Context(), request, testCA); err != nil {
		t.Fatal(err)
	}
	held := w.registry.items[w.board.id]
	held.State = board.Held
	w.registry.put(held)
	if _, err := w.issuer.Issue(t.Context(), request, testCA); !errors.Is(err, StateHeld) {
		t.Errorf("held: %v", err)
	}
	if verdicts, err := w.issuer.Explain(t.Context(), request); !errors.Is(err, StateHeld) || len(verdicts) == 0 {
		t.Errorf("explained: %v, %v", verdicts, err)
	}
	w.registry.err = errInjected
	if _, err := w.issuer.Issue(t.Context(), request, testCA); !errors.Is(err, errInjected) {
		t.Errorf("no registry: %v", err)
	} else if outcome, _ := classify(err); outcome != TryLater {
		t.Errorf("no registry is %s", outcome)
	}
	if verdicts, err := w.issuer.Explain(t.Context(), request); !errors.Is(err, errInjected) || verdicts != nil {
		t.Errorf("explained without a registry: %v, %v", verdicts, err)
	}
	if len(w.ca.issued) != 1 || len(w.claims.all()) != 1 {
		t.Errorf("%d certificates, %d claims", len(w.ca.issued), len(w.claims.all()))
	}
}

func TestIssueAfterExpiry(t *testing.T) {
	parent := localCA(t) // made outside the bubble, whose clock starts in 2000
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, localCA(t))
		time.Sleep(time.Until(parent.Issuing().NotBefore.Add(time.Hour)))
		w.policy.Validity = 24 * time.Hour
		w.open(t, w.claims)
		request := w.board.csr().request(t)
		first, err := w.issuer.Issue(t.Context(), request, testCA)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		if got, err := w.issuer.Issue(t.Context(), request, testCA); err != nil || !equal(got, first) {
			t.Errorf("within its time: %v", err)
		}
		time.Sleep(2 * time.Hour)
		if _, err := w.issuer.Issue(t.Context(), request, testCA); !errors.Is(err, CertificateExpired) {
			t.Errorf("after its time: %v", err)
		}
		// A deliberate new generation gives a new certificate.
		r := w.board.record(t, w.station)
		r.Generation = 2
		w.registry.put(enrolment(t, r, w.station))
		if got, err := w.issuer.Issue(t.Context(), request, testCA); err != nil || equal(got, first) {
			t.Errorf("in the second generation: %v", err)
		}
		w.claims.stored = nil // the invariants are about certificates that are valid now
	})
}

// lyingCA signs something else than it was asked to.
type lyingCA struct {
	CA
	lie func(template *x509.Certificate)
	key any
}

func (l *lyingCA) Issue(ctx context.Context, a Approved, claim Claim, memo Memo) (Certificate, error) {
	honest, err := l.CA.Issue(ctx, a, claim, memo)
	if err != nil {
		return honest, err
	}
	template, err := x509.ParseCertificate(honest.Leaf)
	if err != nil {
		return honest, err
	}
	template.RawSubject = nil // it would go before Subject
	if l.lie != nil {
		l.lie(template)
	}
	public := a.Key().Public()
	if l.key != nil {
		public = l.key
	}
	signer := l.CA.(*LocalCA)
	leaf, err := x509.CreateCertificate(rand.Reader, template, signer.Issuing(), public, signer.Signer(ctx))
	return Certificate{Leaf: leaf, Chain: honest.Chain}, err
}

func TestWhatDoesNotLeave(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		want string
		ca   lyingCA
		out  func(*Certificate)
	}{
		{name: "another key", want: "another key", ca: lyingCA{key: &other.PublicKey}},
		{name: "another subject", want: "subject", ca: lyingCA{lie: func(c *x509.Certificate) { c.Subject.CommonName = "x" }}},
		{name: "more subject", want: "subject", ca: lyingCA{lie: func(c *x509.Certificate) { c.Subject.Organization = []string{"x"} }}},
		{name: "two subjects", want: "subject", ca: lyingCA{lie: func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: oid(2, 5, 4, 3), Value: "x"}}
		}}},
		{name: "a longer life", want: "valid from", ca: lyingCA{lie: func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Hour) }}},
		{name: "an earlier start", want: "valid from", ca: lyingCA{lie: func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-time.Hour) }}},
		{name: "a CA", want: "it is a CA's", ca: lyingCA{lie: func(c *x509.Certificate) { c.IsCA = true }}},
		{name: "key encipherment", want: "used for more", ca: lyingCA{lie: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }}},
		{name: "server authentication", want: "client authentication", ca: lyingCA{lie: func(c *x509.Certificate) {
			c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}}},
		{name: "any use", want: "client authentication", ca: lyingCA{lie: func(c *x509.Certificate) { c.ExtKeyUsage = nil }}},
		{name: "an alternative name", want: "alternative names", ca: lyingCA{lie: func(c *x509.Certificate) { c.DNSNames = []string{"x"} }}},
		{name: "an unknown critical extension", want: "its chain", ca: lyingCA{lie: func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: oid(1, 2, 3), Critical: true, Value: []byte{5, 0}}}
		}}},
		{name: "no certificate", want: "parsing it", out: func(c *Certificate) { c.Leaf = nil }},
		{name: "no chain", want: "no chain", out: func(c *Certificate) { c.Chain = nil }},
		{name: "a chain too long", want: "a chain of 9", out: func(c *Certificate) {
			for len(c.Chain) < 9 {
				c.Chain = append(c.Chain, c.Chain[0])
			}
		}},
		{name: "a chain that is garbage", want: "parsing its chain", out: func(c *Certificate) { c.Chain[0] = []byte("x") }},
		{name: "a chain without the issuing CA", want: "its chain", out: func(c *Certificate) { c.Chain = c.Chain[1:] }},
		{name: "a damaged signature", want: "its chain", out: func(c *Certificate) { c.Leaf[len(c.Leaf)-1] ^= 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, localCA(t))
			c.ca.CA = localCA(t)
			lying := &countingCA{CA: &c.ca, after: func(out *Certificate) error {
				if c.out != nil {
					c.out(out)
				}
				return nil
			}}
			config := w.config
			config.CAs = map[string]CA{testCA: lying}
			crooked, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			_, err = crooked.Issue(t.Context(), w.board.csr().request(t), testCA)
			if !errors.Is(err, ErrWrongCertificate) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			for id, issuance := range w.claims.all() {
				if issuance.Certificate != nil {
					t.Errorf("%s was finished with it", id)
				}
			}
			// Once the CA is right again, the claim is finished.
			if _, err := w.issuer.Issue(t.Context(), w.board.csr().request(t), testCA); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who can write the table of claims cannot make the issuer hand out another certificate.
func TestStoredCertificateIsChecked(t *testing.T) {
	w := newWorld(t, localCA(t))
	other := newSimulated(t)
	w.registry.put(enrolment(t, other.record(t, w.station), w.station))
	for _, b := range []simulated{w.board, other} {
		if _, err := w.issuer.Issue(t.Context(), b.csr().request(t), testCA); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for id := range w.claims.all() {
		ids = append(ids, id)
	}
	a, b := w.claims.stored[ids[0]], w.claims.stored[ids[1]]
	a.Certificate, b.Certificate = b.Certificate, a.Certificate
	w.claims.stored[ids[0]], w.claims.stored[ids[1]] = a, b
	if _, err := w.issuer.Issue(t.Context(), w.board.csr().request(t), testCA); !errors.Is(err, ErrWrongCertificate) {
		t.Errorf("swapped certificates: %v", err)
	}
	w.claims.stored = nil
}

// rootless says nothing about what its certificates must chain to.
type rootless struct{ CA }

func (*rootless) Profile() Profile { return Profile{} }

func TestNewRefuses(t *testing.T) {
	w := newWorld(t, localCA(t))
	good := w.config
	for name, spoil := range map[string]func(c *Config){
		"no registry": func(c *Config) { c.Registry = nil },
		"no CA":       func(c *Config) { c.CAs = nil },
		"a nil CA":    func(c *Config) { c.CAs = map[string]CA{testCA: nil} },
		"no claims":   func(c *Config) { c.Claims = nil },
		"no root":     func(c *Config) { c.CAs = map[string]CA{testCA: &rootless{localCA(t)}} },
		"no policy":   func(c *Config) { c.Policy = Policy{} },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
