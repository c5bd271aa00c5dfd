package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/keyfile"

	"golang.org/x/crypto/ocsp"
)

// told is a world whose revocations are on a real server.
type told struct {
	*issuertest.Env
	revocations *Revocations
	url         string
	mu          sync.Mutex
	errs        []error
	now         time.Time
}

func newTold(t testing.TB, authority *ca.Local) *told {
	t.Helper()
	s := &told{Env: issuertest.NewEnv(t, catest.Local(t)), now: time.Now()}
	var err error
	s.revocations, err = NewRevocations(RevocationsConfig{
		Claims: s.Claims, CAs: map[string]RevocationSigner{issuertest.CAName: authority}, Now: s.clock,
		Log: func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.errs = append(s.errs, err)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.revocations)
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *told) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// pass lets time go by, for the revocations.
func (s *told) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// issue gives the board a certificate.
func (s *told) issue(t testing.TB) *x509.Certificate {
	t.Helper()
	c, err := s.Env.Issuer.Issue(t.Context(), s.Board.CSR().Request(t), issuertest.CAName)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func (s *told) revoke(t testing.TB, reason issuer.Reason) {
	t.Helper()
	if _, err := s.Env.Issuer.Revoke(t.Context(), s.Board.ID, 0, reason); err != nil {
		t.Fatal(err)
	}
}

var ocspRequest = map[string]string{"Content-Type": "application/ocsp-request"}

// status asks for a certificate's, in a path and in a body.
func (s *told) status(t testing.TB, leaf *x509.Certificate, hash crypto.Hash) *ocsp.Response {
	t.Helper()
	issuing := catest.Local(t).Issuing()
	der, err := ocsp.CreateRequest(leaf, issuing, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	var answers []*ocsp.Response
	for _, c := range []struct {
		method, path string
		body         []byte
	}{
		{"POST", "/ocsp", der},
		{"GET", "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(der)), nil},
		{"GET", "/ocsp/" + base64.StdEncoding.EncodeToString(der), nil}, // as careless clients have it
	} {
		response, body := call(t, c.method, s.url+c.path, ocspRequest, c.body)
		if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || kind != "application/ocsp-response" {
			t.Fatalf("%s %s: %s, %s", c.method, c.path, response.Status, kind)
		}
		if cached := response.Header.Get("Cache-Control") == "max-age=900, public, no-transform, must-revalidate"; cached != (c.method == "GET") {
			t.Errorf("%s: Cache-Control: %s", c.method, response.Header.Get("Cache-Control"))
		}
		answer, err := ocsp.ParseResponseForCert([]byte(body), leaf, issuing)
		if err != nil {
			t.Fatal(err)
		}
		if answer.IssuerHash != hash || !answer.NextUpdate.Equal(answer.ThisUpdate.Add(time.Hour)) || !answer.ThisUpdate.Equal(s.now.UTC().Truncate(time.Second)) {
			t.Errorf("%s: %v from %v to %v", c.method, answer.IssuerHash, answer.ThisUpdate, answer.NextUpdate)
		}
		answers = append(answers, answer)
	}
	for _, answer := range answers {
		if answer.Status != answers[0].Status || !answer.RevokedAt.Equal(answers[0].RevokedAt) {
			t.Error("path and body are answered otherwise")
		}
	}
	return answers[0]
}

func TestOCSP(t *testing.T) {
	s := newTold(t, catest.Local(t))
	leaf := s.issue(t)
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		if got := s.status(t, leaf, hash); got.Status != ocsp.Good || got.Certificate != nil {
			t.Errorf("%v: a live one is %d", hash, got.Status)
		}
	}
	// Serials that no claim has.
	for _, serial := range []*big.Int{big.NewInt(1), new(big.Int).Lsh(big.NewInt(1), 130)} {
		other := *leaf
		other.SerialNumber = serial
		if got := s.status(t, &other, crypto.SHA1); got.Status != ocsp.Unknown {
			t.Errorf("serial %v is %d", serial, got.Status)
		}
	}
	// A claim that nothing is signed for, and one that is another CA's.
	approved, err := issuer.Decide(s.Board.CSR().Request(t), ptr(s.Registry.Items[s.Board.ID]), s.Policy, s.now)
	if err != nil {
		t.Fatal(err)
	}
	for _, authority := range []string{issuertest.CAName, "other"} {
		claim := issuertest.NewClaim(t, approved)
		claim.Epoch, claim.CA = 7, authority
		i := issuer.Issuance{Claim: claim, Version: 1, State: issuer.Claimed}
		if authority == "other" {
			i.State, i.Revoked = issuer.Revoked, s.now
		}
		s.Claims.Stored["x"] = i
		other := *leaf
		other.SerialNumber = claim.Serial.Int()
		if got := s.status(t, &other, crypto.SHA1); got.Status != ocsp.Unknown {
			t.Errorf("a claim of %s, %s, is %d", authority, i.State, got.Status)
		}
		delete(s.Claims.Stored, "x")
	}
	s.revoke(t, issuer.KeyCompromise)
	got := s.status(t, leaf, crypto.SHA256)
	if got.Status != ocsp.Revoked || got.RevocationReason != int(issuer.KeyCompromise) || time.Since(got.RevokedAt) > time.Minute {
		t.Errorf("revoked: %+v", got)
	}
	// From when on it must not be answered, and not from when on all were told.
	for id, i := range s.Claims.Snapshot() {
		i.State = issuer.Revoking
		s.Claims.Stored[id] = i
	}
	if got := s.status(t, leaf, crypto.SHA1); got.Status != ocsp.Revoked {
		t.Error("what is being revoked is not")
	}
}

func ptr[T any](v T) *T { return &v }

func TestOCSPRefuses(t *testing.T) {
	s := newTold(t, catest.Local(t))
	leaf := s.issue(t)
	good, err := ocsp.CreateRequest(leaf, catest.Local(t).Issuing(), nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ocsp.CreateRequest(leaf, catest.Local(t).Root(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		method, path string
		body         []byte
		status       int
		want         []byte
	}{
		"garbage":                {"POST", "/ocsp", []byte("hello"), 200, ocsp.MalformedRequestErrorResponse},
		"nothing":                {"POST", "/ocsp", nil, 200, ocsp.MalformedRequestErrorResponse},
		"more than one":          {"POST", "/ocsp", append(bytes.Clone(good), 0), 200, ocsp.MalformedRequestErrorResponse},
		"too large":              {"POST", "/ocsp", make([]byte, issuer.MaxDER+1), 200, ocsp.MalformedRequestErrorResponse},
		"garbage in the path":    {"GET", "/ocsp/%25%25", nil, 200, ocsp.MalformedRequestErrorResponse},
		"too large for the path": {"GET", "/ocsp/" + strings.Repeat("A", issuer.MaxText+1), nil, 200, ocsp.MalformedRequestErrorResponse},
		"of another CA":          {"POST", "/ocsp", foreign, 200, ocsp.UnauthorizedErrorResponse},
		"GET":                    {"GET", "/ocsp", nil, 405, nil},
		"POST to a path":         {"POST", "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(good)), nil, 405, nil},
		"no such list":           {"GET", "/crl/other.crl", nil, 404, nil},
		"no list":                {"GET", "/crl/" + issuertest.CAName, nil, 404, nil},
		"POST to a list":         {"POST", "/crl/" + issuertest.CAName + ".crl", nil, 405, nil},
	} {
		response, body := call(t, c.method, s.url+c.path, ocspRequest, c.body)
		if response.StatusCode != c.status || c.want != nil && body != string(c.want) {
			t.Errorf("%s: %s, %x", name, response.Status, body)
		}
	}
	s.revocations.config.Claims = away{s.Claims}
	if response, body := call(t, "POST", s.url+"/ocsp", ocspRequest, good); body != string(ocsp.TryLaterErrorResponse) || response.Header.Get("Retry-After") == "" || len(s.errs) != 1 || !errors.Is(s.errs[0], issuertest.ErrInjected) {
		t.Errorf("the claims are away: %x, logged %v", body, s.errs)
	}
	s.revocations.config.Sources = NewLimiter(time.Hour, 0)
	if _, body := call(t, "POST", s.url+"/ocsp", ocspRequest, good); body != string(ocsp.TryLaterErrorResponse) {
		t.Errorf("too many: %x", body)
	}
	if response, _ := call(t, "GET", s.url+"/crl/"+issuertest.CAName+".crl", nil, nil); response.StatusCode != 503 || response.Header.Get("Retry-After") == "" {
		t.Errorf("too many lists: %s", response.Status)
	}
	for path, want := range map[string]bool{"/ocsp": true, "/ocsp/a//b": true, "/crl/x": true, "/ocspx": false, "/new": false, "/crl": false} {
		if got := s.revocations.Serves(httptest.NewRequest("GET", path, nil)); got != want {
			t.Errorf("Serves %s: %v", path, got)
		}
	}
	if _, err := NewRevocations(RevocationsConfig{}); err == nil {
		t.Error("no claims are needed")
	}
}

// away is a store of claims that cannot be reached.
type away struct{ issuer.Claims }

func (away) Serial(context.Context, issuer.Serial) (issuer.Issuance, error) {
	return issuer.Issuance{}, issuertest.ErrInjected
}
func (away) All(context.Context) iter.Seq2[issuer.Issuance, error] {
	return func(yield func(issuer.Issuance, error) bool) { yield(issuer.Issuance{}, issuertest.ErrInjected) }
}

// delegate puts a responder into a copy of the shared CA's folder.
func delegate(t *testing.T, change func(*x509.Certificate)) (dir string, open func() (*ca.Local, error)) {
	t.Helper()
	parent, err := catest.Dir()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "ca")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(parent, "ca"))); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(99), Subject: pkix.Name{CommonName: "Test OCSP"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
	}
	change(template)
	authority := catest.Local(t)
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Issuing(), &key.PublicKey, authority.Signer(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := keyfile.Encrypt(key, []byte(catest.Passphrase), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"ocsp.pem": issuer.Certificate{Leaf: der}.LeafPEM(), "ocsp.key": sealed} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, func() (*ca.Local, error) {
		return ca.OpenLocal(ca.LocalConfig{Dir: dir, PassphraseFile: filepath.Join(parent, "passphrase")})
	}
}

func responderOf(t *testing.T, authority *ca.Local) *x509.Certificate {
	t.Helper()
	responder, _ := authority.Responder(t.Context(), time.Now())
	return responder
}

func TestOCSPResponder(t *testing.T) {
	_, open := delegate(t, func(*x509.Certificate) {})
	authority, err := open()
	if err != nil {
		t.Fatal(err)
	}
	s := newTold(t, authority)
	leaf := s.issue(t)
	if got := s.status(t, leaf, crypto.SHA1); got.Status != ocsp.Good || got.Certificate == nil || !got.Certificate.Equal(responderOf(t, authority)) {
		t.Error("the responder did not sign")
	}
	s.pass(2 * time.Hour)
	if got := s.status(t, leaf, crypto.SHA1); got.Status != ocsp.Good || got.Certificate != nil {
		t.Error("the responder signed after its end")
	}
}

func TestOCSPResponderRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		spoil  func(t *testing.T, dir string)
		want   string
	}{
		"for all":     {change: func(c *x509.Certificate) { c.ExtKeyUsage = nil }, want: "not for OCSP signing alone"},
		"for servers": {change: func(c *x509.Certificate) { c.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth }, want: "not for OCSP signing alone"},
		"a CA":        {change: func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, want: "not for OCSP signing alone"},
		"no key": {spoil: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "ocsp.key")); err != nil {
				t.Fatal(err)
			}
		}, want: "ocsp.key"},
		"no certificate": {spoil: func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "ocsp.pem")); err != nil {
				t.Fatal(err)
			}
		}, want: "ocsp.key is there without ocsp.pem"},
		"another key": {spoil: func(t *testing.T, dir string) { replaceFile(t, dir, "ocsp.key", "issuing.key") }, want: "is not that of the certificate in ocsp.pem"},
		"another CA's": {spoil: func(t *testing.T, dir string) {
			replaceFile(t, dir, "ocsp.key", "issuing.key")
			replaceFile(t, dir, "ocsp.pem", "issuing.pem")
		}, want: "is not of the CA in issuing.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change == nil {
				c.change = func(*x509.Certificate) {}
			}
			dir, open := delegate(t, c.change)
			if c.spoil != nil {
				c.spoil(t, dir)
			}
			if _, err := open(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// replaceFile writes one file's content over another.
func replaceFile(t *testing.T, dir, name, from string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, from))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCRL(t *testing.T) {
	s := newTold(t, catest.Local(t))
	leaf := s.issue(t)
	get := func() *x509.RevocationList {
		t.Helper()
		response, body := call(t, "GET", s.url+"/crl/"+issuertest.CAName+".crl", nil, nil)
		if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/pkix-crl" || !strings.HasPrefix(response.Header.Get("Cache-Control"), "max-age=300") {
			t.Fatalf("%s, %v", response.Status, response.Header)
		}
		l, err := x509.ParseRevocationList([]byte(body))
		if err == nil {
			err = l.CheckSignatureFrom(catest.Local(t).Issuing())
		}
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	empty := get()
	if len(empty.RevokedCertificateEntries) != 0 || !empty.NextUpdate.Equal(empty.ThisUpdate.Add(crlLife)) {
		t.Errorf("the first: %d entries, to %v", len(empty.RevokedCertificateEntries), empty.NextUpdate)
	}
	s.revoke(t, issuer.CessationOfOperation)
	if again := get(); !bytes.Equal(again.Raw, empty.Raw) {
		t.Error("within a moment there are two lists")
	}
	s.pass(crlFresh)
	second := get()
	if second.Number.Cmp(empty.Number) <= 0 || len(second.RevokedCertificateEntries) != 1 {
		t.Fatalf("the second has number %v after %v, and %d entries", second.Number, empty.Number, len(second.RevokedCertificateEntries))
	}
	if e := second.RevokedCertificateEntries[0]; e.SerialNumber.Cmp(leaf.SerialNumber) != 0 || e.ReasonCode != int(issuer.CessationOfOperation) || time.Since(e.RevocationTime) > time.Minute {
		t.Errorf("the entry is %+v", e)
	}
	// Not the claims of another CA.
	for id, i := range s.Claims.Snapshot() {
		i.Claim.CA = "other"
		s.Claims.Stored[id+"x"] = i
	}
	s.pass(crlFresh)
	if got := get(); len(got.RevokedCertificateEntries) != 1 {
		t.Errorf("%d entries", len(got.RevokedCertificateEntries))
	}
	for id := range s.Claims.Snapshot() {
		if strings.HasSuffix(id, "x") {
			delete(s.Claims.Stored, id)
		}
	}
	// While no list can be made, the last one that holds is given, and it is
	// not tried with each request.
	s.revocations.config.Claims = away{s.Claims}
	s.pass(crlFresh)
	held := get()
	get()
	if held.Number.Cmp(second.Number) <= 0 || len(s.errs) != 1 || !errors.Is(s.errs[0], issuertest.ErrInjected) {
		t.Errorf("number %v, logged %v", held.Number, s.errs)
	}
	s.pass(crlLife)
	if response, _ := call(t, "GET", s.url+"/crl/"+issuertest.CAName+".crl", nil, nil); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("none holds: %s", response.Status)
	}
	s.revocations.config.Claims = s.Claims
	// On one list beyond its own end, and no longer.
	for _, c := range []struct {
		at   time.Time
		want int
	}{{leaf.NotAfter.Add(crlLife), 1}, {leaf.NotAfter.Add(crlLife + time.Second), 0}} {
		der, err := s.revocations.CRL(t.Context(), issuertest.CAName, c.at)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := x509.ParseRevocationList(der); err != nil || len(l.RevokedCertificateEntries) != c.want {
			t.Errorf("at %v: %d entries, want %d: %v", c.at, len(l.RevokedCertificateEntries), c.want, err)
		}
	}
	if _, err := s.revocations.CRL(t.Context(), "other", s.now); !errors.Is(err, errNoCA) {
		t.Errorf("of another CA: %v", err)
	}
}

// Where a certificate says that it can be asked about.
// One claim that cannot be read does not leave all without a list.
func TestCRLOfWhatCanBeRead(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.MustIssue(t, "")
	had, err := l.Issuer.Revoke(t.Context(), l.Board.ID, 0, issuer.KeyCompromise)
	if err != nil {
		t.Fatal(err)
	}
	var logged []error
	r, err := NewRevocations(RevocationsConfig{
		Claims: issuertest.BadClaims{Claims: l.Claims}, CAs: map[string]RevocationSigner{issuertest.CAName: catest.Local(t)}, Log: func(err error) { logged = append(logged, err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	der, err := r.CRL(t.Context(), issuertest.CAName, time.Now())
	if !errors.Is(err, issuer.ErrBadClaim) {
		t.Errorf("it says nothing: %v", err)
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest("GET", "/crl/"+issuertest.CAName+".crl", nil))
	if w.Code != 200 || len(logged) == 0 || !errors.Is(logged[0], issuer.ErrBadClaim) {
		t.Errorf("%d, logged %v", w.Code, logged)
	}
	for _, der := range [][]byte{der, w.Body.Bytes()} {
		list, err := x509.ParseRevocationList(der)
		if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(had[0].Claim.Serial.Int()) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	}
}

func TestLocalCAURLs(t *testing.T) {
	parent, err := catest.Dir()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.OpenLocal(ca.LocalConfig{
		Dir: filepath.Join(parent, "ca"), PassphraseFile: filepath.Join(parent, "passphrase"),
		CRLURL: "http://x.example/crl/main.crl", OCSPURL: "http://x.example/ocsp",
	})
	if err != nil {
		t.Fatal(err)
	}
	w := issuertest.NewEnv(t, catest.Local(t))
	w.CA.CA = authority
	s := &told{Env: w}
	leaf := s.issue(t)
	if len(leaf.CRLDistributionPoints) != 1 || leaf.CRLDistributionPoints[0] != "http://x.example/crl/main.crl" || len(leaf.OCSPServer) != 1 || leaf.OCSPServer[0] != "http://x.example/ocsp" {
		t.Errorf("it has %v and %v", leaf.CRLDistributionPoints, leaf.OCSPServer)
	}
	if leaf = newTold(t, catest.Local(t)).issue(t); len(leaf.CRLDistributionPoints)+len(leaf.OCSPServer)+len(leaf.IssuingCertificateURL) != 0 {
		t.Error("it has URLs that nobody set")
	}
}

// openssl is a program that most who check certificates have.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no openssl, and CI must have it")
		}
		t.Skip("there is no openssl: nobody else looks at what was made")
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// OpenSSL believes both, of the issuing CA and of a delegated responder.
func TestRevocationsOpenSSL(t *testing.T) {
	_, open := delegate(t, func(*x509.Certificate) {})
	delegated, err := open()
	if err != nil {
		t.Fatal(err)
	}
	for name, authority := range map[string]*ca.Local{"the issuing CA": catest.Local(t), "a responder": delegated} {
		t.Run(name, func(t *testing.T) {
			s := newTold(t, authority)
			leaf := s.issue(t)
			dir := t.TempDir()
			file := func(name string, data []byte) string {
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				return path
			}
			of := func(c *x509.Certificate) []byte { return issuer.Certificate{Leaf: c.Raw}.LeafPEM() }
			root, issuing, cert := file("root.pem", of(authority.Root())), file("issuing.pem", of(authority.Issuing())), file("leaf.pem", of(leaf))
			both := file("both.pem", append(of(authority.Root()), of(authority.Issuing())...))
			ask := func(hash string) string {
				return openssl(t, "ocsp", "-"+hash, "-issuer", issuing, "-cert", cert, "-CAfile", root, "-verify_other", issuing, "-url", s.url+"/ocsp")
			}
			list := func() string {
				_, body := call(t, "GET", s.url+"/crl/"+issuertest.CAName+".crl", nil, nil)
				path := file("list.crl", []byte(body))
				out := openssl(t, "crl", "-inform", "DER", "-in", path, "-CAfile", both, "-noout", "-text")
				if !strings.Contains(out, "verify OK") {
					t.Errorf("openssl crl: %s", out)
				}
				block := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte(body)})
				return out + file("list.pem", block)
			}
			for _, hash := range []string{"sha1", "sha256"} {
				if out := ask(hash); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, cert+": good") {
					t.Errorf("openssl ocsp: %s", out)
				}
			}
			if out := list(); !strings.Contains(out, "No Revoked Certificates") {
				t.Errorf("openssl crl: %s", out)
			}
			check := []string{"verify", "-CAfile", root, "-untrusted", issuing, "-crl_check", "-CRLfile", filepath.Join(dir, "list.pem"), cert}
			if out := openssl(t, check...); !strings.Contains(out, ": OK") {
				t.Errorf("openssl verify: %s", out)
			}
			s.revoke(t, issuer.KeyCompromise)
			s.pass(crlFresh)
			out := list()
			if !strings.Contains(out, "Key Compromise") || !strings.Contains(strings.ToLower(strings.ReplaceAll(out, ":", "")), leaf.SerialNumber.Text(16)) {
				t.Errorf("openssl crl: %s", out)
			}
			later := fmt.Sprint(s.now.Add(time.Minute).Unix()) // the list is of then
			refused, err := exec.CommandContext(t.Context(), "openssl", append([]string{"verify", "-attime", later}, check[1:]...)...).CombinedOutput()
			if err == nil || !strings.Contains(string(refused), "certificate revoked") {
				t.Errorf("openssl verify: %v: %s", err, refused)
			}
			s.pass(-crlFresh)
			if out := ask("sha256"); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, cert+": revoked") || !strings.Contains(out, "Reason: keyCompromise") {
				t.Errorf("openssl ocsp: %s", out)
			}
		})
	}
}

// fuzzedCA is the same in each of the processes that a fuzzer starts.
func fuzzedCA(f *testing.F) fuzzSigner {
	f.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Fuzzed"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(nil, template, template, &key.PublicKey, key)
	if err != nil {
		f.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		f.Fatal(err)
	}
	return fuzzSigner{certificate, key}
}

// fuzzSigner is a CA with its key in memory.
type fuzzSigner struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

func (f fuzzSigner) Issuing() *x509.Certificate           { return f.certificate }
func (f fuzzSigner) Signer(context.Context) crypto.Signer { return f.key }
func (f fuzzSigner) Responder(context.Context, time.Time) (*x509.Certificate, crypto.Signer) {
	return nil, f.key
}

// Whatever is asked, what is answered is signed, and about the serial that was
// asked for; what is claimed of nothing is unknown.
func FuzzOCSP(f *testing.F) {
	authority := fuzzedCA(f)
	r, err := NewRevocations(RevocationsConfig{Claims: &issuertest.Claims{}, CAs: map[string]RevocationSigner{issuertest.CAName: authority}})
	if err != nil {
		f.Fatal(err)
	}
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: big.NewInt(4711)}, authority.Issuing(), &ocsp.RequestOptions{Hash: hash})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Add([]byte("0"))
	now := time.Now()
	f.Fuzz(func(t *testing.T, der []byte) {
		answer, err := r.OCSP(t.Context(), der, now)
		if err != nil {
			if !errors.Is(err, errNoOCSP) && !errors.Is(err, errForeignCA) {
				t.Fatal(err)
			}
			return
		}
		asked, err := ocsp.ParseRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ocsp.ParseResponse(answer, authority.Issuing())
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != ocsp.Unknown || got.SerialNumber.Cmp(asked.SerialNumber) != 0 {
			t.Errorf("serial %v is %d, asked for %v", got.SerialNumber, got.Status, asked.SerialNumber)
		}
	})
}
