package issuer_test

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

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
	"secretfree/station/board"
)

func TestIssue(t *testing.T) {
	w := issuertest.NewEnv(t, catest.Local(t))
	request := w.Board.CSR().Request(t)
	first, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(first.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	if got := leaf.Subject.String(); got != "CN="+w.Board.ID.String() {
		t.Errorf("subject %s", got)
	}
	if !leaf.PublicKey.(*ecdsa.PublicKey).Equal(w.Board.Key.Public()) {
		t.Error("another key")
	}
	if leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 || leaf.SerialNumber.BitLen() > 128 || !leaf.BasicConstraintsValid || leaf.IsCA {
		t.Errorf("signature %v, serial %v, basic constraints %v %v", leaf.SignatureAlgorithm, leaf.SerialNumber, leaf.BasicConstraintsValid, leaf.IsCA)
	}
	if len(leaf.SubjectKeyId) != 20 || !bytes.Equal(leaf.AuthorityKeyId, catest.Local(t).Issuing().SubjectKeyId) {
		t.Errorf("key identifiers %x, %x", leaf.SubjectKeyId, leaf.AuthorityKeyId)
	}
	if len(leaf.Extensions) != 5 {
		t.Errorf("%d extensions, want the profile's 5", len(leaf.Extensions))
	}
	// A new request of the same board, with other bytes, gets the same
	// certificate.
	sha256 := w.Board.CSR()
	sha256.SHA256 = true
	for _, again := range []issuer.Request{request, w.Board.CSR().Request(t), sha256.Request(t)} {
		if got, err := w.Issuer.Issue(t.Context(), again, issuertest.CAName); err != nil || !issuertest.Equal(got, first) {
			t.Errorf("a repeat gave another certificate, or %v", err)
		}
	}
	if len(w.CA.Issued) != 1 || w.CA.Issued[string(first.Leaf)] != 1 {
		t.Errorf("%d certificates were signed", len(w.CA.Issued))
	}
	// Nothing of a request is in it but the key.
	rich := issuertest.NewBoard(t)
	w.Registry.Put(issuertest.Enrolment(t, rich.Record(t, w.Station), w.Station))
	c := rich.CSR()
	c.Subject = append(c.Subject, issuertest.Name(oid(2, 5, 4, 10), 19, "Smuggled"))
	c.Extensions = []issuertest.Extension{{ID: oid(1, 2, 3, 4), Critical: true, Value: []byte("Smuggled")}}
	got, err := w.Issuer.Issue(t.Context(), c.Request(t), issuertest.CAName)
	if err != nil || bytes.Contains(got.Leaf, []byte("Smuggled")) {
		t.Errorf("the request shows through, or %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	w := issuertest.NewEnv(t, catest.Local(t))
	stranger := issuertest.NewBoard(t)
	if _, err := w.Issuer.Issue(t.Context(), stranger.CSR().Request(t), issuertest.CAName); !errors.Is(err, issuer.NotEnrolled) {
		t.Errorf("not enrolled: %v", err)
	}
	thief := stranger.CSR()
	thief.Subject[0] = issuertest.CN(w.Board.ID.String())
	if _, err := w.Issuer.Issue(t.Context(), thief.Request(t), issuertest.CAName); !errors.Is(err, issuer.KeyMismatch) {
		t.Errorf("another key under this id: %v", err)
	}
	calls := w.Registry.Calls
	nameless := w.Board.CSR()
	nameless.Subject = nil
	if _, err := w.Issuer.Issue(t.Context(), nameless.Request(t), issuertest.CAName); !errors.Is(err, issuer.NoCN) || w.Registry.Calls != calls {
		t.Errorf("no CN: %v, after %d calls", err, w.Registry.Calls-calls)
	}
	// Whoever can write the table, but does not have a station's key, enrols
	// nobody.
	forged := issuertest.Enrolment(t, w.Board.Record(t, w.Station), w.Station)
	forged.Device, forged.Key = stranger.ID, stranger.BoardKey(t)
	w.Registry.Put(forged)
	if _, err := w.Issuer.Issue(t.Context(), stranger.CSR().Request(t), issuertest.CAName); !errors.Is(err, issuer.RecordMismatch) {
		t.Errorf("a borrowed record: %v", err)
	}
	rogue := issuertest.NewStation(t, issuertest.SKU, "line3-a")
	w.Registry.Put(issuertest.Enrolment(t, stranger.Record(t, rogue), rogue))
	if _, err := w.Issuer.Issue(t.Context(), stranger.CSR().Request(t), issuertest.CAName); !errors.Is(err, issuer.UntrustedRecord) {
		t.Errorf("a forged record: %v", err)
	}
	// A device that has its certificate and is held gets nothing, not even a
	// repeat.
	request := w.Board.CSR().Request(t)
	if _, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName); err != nil {
		t.Fatal(err)
	}
	held := w.Registry.Items[w.Board.ID]
	held.State = board.Held
	w.Registry.Put(held)
	if _, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName); !errors.Is(err, issuer.StateHeld) {
		t.Errorf("held: %v", err)
	}
	if verdicts, err := w.Issuer.Explain(t.Context(), request); !errors.Is(err, issuer.StateHeld) || len(verdicts) == 0 {
		t.Errorf("explained: %v, %v", verdicts, err)
	}
	w.Registry.Err = issuertest.ErrInjected
	if _, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName); !errors.Is(err, issuertest.ErrInjected) {
		t.Errorf("no registry: %v", err)
	} else if outcome, _ := server.Classify(err); outcome != server.TryLater {
		t.Errorf("no registry is %s", outcome)
	}
	if verdicts, err := w.Issuer.Explain(t.Context(), request); !errors.Is(err, issuertest.ErrInjected) || verdicts != nil {
		t.Errorf("explained without a registry: %v, %v", verdicts, err)
	}
	if len(w.CA.Issued) != 1 || len(w.Claims.Snapshot()) != 1 {
		t.Errorf("%d certificates, %d claims", len(w.CA.Issued), len(w.Claims.Snapshot()))
	}
}

func TestIssueAfterExpiry(t *testing.T) {
	parent := catest.Local(t) // made outside the bubble, whose clock starts in 2000
	synctest.Test(t, func(t *testing.T) {
		w := issuertest.NewEnv(t, catest.Local(t))
		time.Sleep(time.Until(parent.Issuing().NotBefore.Add(time.Hour)))
		w.Policy.Validity = 24 * time.Hour
		w.Open(t, w.Claims)
		request := w.Board.CSR().Request(t)
		first, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		if got, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName); err != nil || !issuertest.Equal(got, first) {
			t.Errorf("within its time: %v", err)
		}
		time.Sleep(2 * time.Hour)
		if _, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName); !errors.Is(err, issuer.CertificateExpired) {
			t.Errorf("after its time: %v", err)
		}
		// A deliberate new generation gives a new certificate.
		r := w.Board.Record(t, w.Station)
		r.Generation = 2
		w.Registry.Put(issuertest.Enrolment(t, r, w.Station))
		if got, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName); err != nil || issuertest.Equal(got, first) {
			t.Errorf("in the second generation: %v", err)
		}
		w.Claims.Stored = nil // the invariants are about certificates that are valid now
	})
}

// lyingCA signs something else than it was asked to.
type lyingCA struct {
	issuer.CA
	lie func(template *x509.Certificate)
	key any
}

func (l *lyingCA) Issue(ctx context.Context, a issuer.Approved, claim issuer.Claim, memo issuer.CAState) (issuer.Certificate, error) {
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
	signer := l.CA.(*ca.Local)
	leaf, err := x509.CreateCertificate(rand.Reader, template, signer.Issuing(), public, signer.Signer(ctx))
	return issuer.Certificate{Leaf: leaf, Chain: honest.Chain}, err
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
		out  func(*issuer.Certificate)
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
		{name: "no certificate", want: "parsing it", out: func(c *issuer.Certificate) { c.Leaf = nil }},
		{name: "no chain", want: "no chain", out: func(c *issuer.Certificate) { c.Chain = nil }},
		{name: "a chain too long", want: "a chain of 9", out: func(c *issuer.Certificate) {
			for len(c.Chain) < 9 {
				c.Chain = append(c.Chain, c.Chain[0])
			}
		}},
		{name: "a chain that is garbage", want: "parsing its chain", out: func(c *issuer.Certificate) { c.Chain[0] = []byte("x") }},
		{name: "a chain without the issuing CA", want: "its chain", out: func(c *issuer.Certificate) { c.Chain = c.Chain[1:] }},
		{name: "a damaged signature", want: "its chain", out: func(c *issuer.Certificate) { c.Leaf[len(c.Leaf)-1] ^= 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := issuertest.NewEnv(t, catest.Local(t))
			c.ca.CA = catest.Local(t)
			lying := &issuertest.CountingCA{CA: &c.ca, After: func(out *issuer.Certificate) error {
				if c.out != nil {
					c.out(out)
				}
				return nil
			}}
			config := w.Config
			config.CAs = map[string]issuer.CA{issuertest.CAName: lying}
			crooked, err := issuer.New(config)
			if err != nil {
				t.Fatal(err)
			}
			_, err = crooked.Issue(t.Context(), w.Board.CSR().Request(t), issuertest.CAName)
			if !errors.Is(err, issuer.ErrWrongCertificate) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			for id, issuance := range w.Claims.Snapshot() {
				if issuance.Certificate != nil {
					t.Errorf("%s was finished with it", id)
				}
			}
			// Once the CA is right again, the claim is finished.
			if _, err := w.Issuer.Issue(t.Context(), w.Board.CSR().Request(t), issuertest.CAName); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who can write the table of claims cannot make the issuer hand out another
// certificate.
func TestStoredCertificateIsChecked(t *testing.T) {
	w := issuertest.NewEnv(t, catest.Local(t))
	other := issuertest.NewBoard(t)
	w.Registry.Put(issuertest.Enrolment(t, other.Record(t, w.Station), w.Station))
	for _, b := range []issuertest.Board{w.Board, other} {
		if _, err := w.Issuer.Issue(t.Context(), b.CSR().Request(t), issuertest.CAName); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for id := range w.Claims.Snapshot() {
		ids = append(ids, id)
	}
	a, b := w.Claims.Stored[ids[0]], w.Claims.Stored[ids[1]]
	a.Certificate, b.Certificate = b.Certificate, a.Certificate
	w.Claims.Stored[ids[0]], w.Claims.Stored[ids[1]] = a, b
	if _, err := w.Issuer.Issue(t.Context(), w.Board.CSR().Request(t), issuertest.CAName); !errors.Is(err, issuer.ErrWrongCertificate) {
		t.Errorf("swapped certificates: %v", err)
	}
	w.Claims.Stored = nil
}

// rootless says nothing about what its certificates must chain to.
type rootless struct{ issuer.CA }

func (*rootless) Profile() issuer.Profile { return issuer.Profile{} }

func TestNewRefuses(t *testing.T) {
	w := issuertest.NewEnv(t, catest.Local(t))
	good := w.Config
	for name, spoil := range map[string]func(c *issuer.Config){
		"no registry": func(c *issuer.Config) { c.Registry = nil },
		"no CA":       func(c *issuer.Config) { c.CAs = nil },
		"a nil CA":    func(c *issuer.Config) { c.CAs = map[string]issuer.CA{issuertest.CAName: nil} },
		"no claims":   func(c *issuer.Config) { c.Claims = nil },
		"no root":     func(c *issuer.Config) { c.CAs = map[string]issuer.CA{issuertest.CAName: &rootless{catest.Local(t)}} },
		"no policy":   func(c *issuer.Config) { c.Policy = issuer.Policy{} },
	} {
		c := good
		spoil(&c)
		if _, err := issuer.New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
