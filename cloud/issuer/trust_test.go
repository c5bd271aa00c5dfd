package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"
)

// authority is one certificate of a chain, with its key.
type authority struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// certified signs a template; without an issuer it is a root.
func certified(t *testing.T, template x509.Certificate, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var serial Serial
	_, _ = rand.Read(serial[:])
	template.SerialNumber = serial.Int()
	parent, signer := &template, key
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key}
}

func TestTrust(t *testing.T) {
	start := time.Now().Truncate(time.Second)
	ca := func(name string, hours int, by *authority) *authority {
		return certified(t, x509.Certificate{
			Subject: pkix.Name{CommonName: name}, NotBefore: start, NotAfter: start.Add(time.Duration(hours) * time.Hour),
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte(name),
		}, by)
	}
	device := func(by *authority) *x509.Certificate {
		return certified(t, x509.Certificate{
			Subject: pkix.Name{CommonName: "device"}, NotBefore: start, NotAfter: start.Add(100 * time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
		}, by).Certificate
	}
	root := ca("root", 30, nil)
	upper := ca("upper", 10, root)
	lower := ca("lower", 20, upper)
	impostor := ca("lower", 20, ca("root", 30, nil)) // all that it does not have is the key
	other := ca("other", 20, upper)
	chain := func(of ...*authority) (out [][]byte) {
		for _, a := range of {
			out = append(out, a.Raw)
		}
		return out
	}
	whole := chain(lower, upper, root)
	soon := start.Add(time.Hour)
	verified := func(t *testing.T) *trust {
		t.Helper()
		trusted := newTrust([]*x509.Certificate{root.Certificate})
		for range 2 { // a second device meets what the first left
			if err := trusted.verify(device(lower), whole, soon); err != nil {
				t.Fatal(err)
			}
		}
		if trusted.last.Load() == nil {
			t.Fatal("the chain was not remembered: this test looks at half of it")
		}
		return trusted
	}
	for _, test := range []struct {
		name  string
		leaf  *x509.Certificate
		chain [][]byte
		now   time.Time
		why   string
	}{
		{"another key under the same name", device(impostor), whole, soon, "ECDSA verification failure"},
		{"another CA, that this chain lacks", device(other), whole, soon, "unknown authority"},
		{"the chain of an impostor", device(impostor), chain(impostor, upper, root), soon, "unknown authority"},
		{"no chain", device(lower), nil, soon, "it has no chain"},
		{"no certificate in the chain", device(lower), [][]byte{lower.Raw, upper.Raw, []byte("x")}, soon, "parsing its chain"},
		{"a link is missing", device(lower), chain(lower, root), soon, "unknown authority"},
		{"a CA of the middle has expired", device(lower), whole, start.Add(11 * time.Hour), "expired"},
		{"before all of it", device(lower), whole, start.Add(-time.Hour), "not yet valid"},
	} {
		t.Run(test.name, func(t *testing.T) {
			// What is refused is refused before and after the chain was seen,
			// in the same words.
			first := newTrust([]*x509.Certificate{root.Certificate}).verify(test.leaf, test.chain, test.now)
			later := verified(t).verify(test.leaf, test.chain, test.now)
			if first == nil || later == nil || first.Error() != later.Error() || !strings.Contains(later.Error(), test.why) {
				t.Errorf("at first %v, with a chain seen before %v, want both to say %q", first, later, test.why)
			}
		})
	}
	t.Run("the CA signs with a new certificate", func(t *testing.T) {
		trusted := verified(t)
		if err := trusted.verify(device(other), chain(other, upper, root), soon); err != nil {
			t.Error(err)
		}
		if err := trusted.verify(device(lower), whole, soon); err != nil {
			t.Error(err)
		}
	})
	t.Run("the lower CA is the first to end", func(t *testing.T) {
		brief := ca("brief", 5, upper)
		trusted := newTrust([]*x509.Certificate{root.Certificate})
		leaf, sent := device(brief), chain(brief, upper, root)
		if err := trusted.verify(leaf, sent, soon); err != nil {
			t.Fatal(err)
		}
		if err := trusted.verify(leaf, sent, start.Add(6*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after its end: %v, want expired", err)
		}
	})
}
