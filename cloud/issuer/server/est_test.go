package server

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"

	"github.com/smallstep/pkcs7"
)

var pkcs10 = map[string]string{"Content-Type": "application/pkcs10"}

// certsOnly decodes a body of EST: base64 in one line of a PKCS #7 that holds certificates alone.
func certsOnly(t testing.TB, response *http.Response, body string) []*x509.Certificate {
	t.Helper()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", response.Status, body)
	}
	if kind := response.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/pkcs7-mime") {
		t.Errorf("the type is %s", kind)
	}
	der, err := base64.StdEncoding.DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") {
		t.Fatalf("not base64 in one line: %v: %q", err, body)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if len(p7.Signers) != 0 || len(p7.Content) != 0 {
		t.Error("it holds more than certificates")
	}
	return p7.Certificates
}

func TestESTEnrols(t *testing.T) {
	d := newDoor(t)
	der := d.Board.CSR().DER(t)
	text := base64.StdEncoding.EncodeToString(der)
	wrapped := ""
	for rest := text; rest != ""; {
		n := min(64, len(rest))
		wrapped += rest[:n] + "\r\n"
		rest = rest[n:]
	}
	var first *x509.Certificate
	for name, c := range map[string]struct {
		path string
		body string
	}{
		"in one line":       {"simpleenroll", text},
		"wrapped":           {"simpleenroll", wrapped},
		"under the SKU":     {issuertest.SKU + "/simpleenroll", text},
		"DER, against both": {"simpleenroll", string(der)},
	} {
		t.Run(name, func(t *testing.T) {
			// Whatever it says of the encoding.
			response, body := call(t, "POST", d.url+estPrefix+c.path, map[string]string{"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "binary"}, []byte(c.body))
			got := certsOnly(t, response, body)
			if len(got) != 1 || got[0].Subject.CommonName != d.Board.ID.String() || response.Header.Get("Content-Type") != estCertificates {
				t.Fatalf("%d certificates, %s", len(got), response.Header.Get("Content-Type"))
			}
			if first == nil {
				first = got[0]
			}
			if !first.Equal(got[0]) {
				t.Error("another certificate than before")
			}
			if logged := d.last(t); logged.Outcome != Issued || logged.Path != estPrefix+c.path || logged.Device != d.Board.ID.String() {
				t.Errorf("logged %+v", logged)
			}
		})
	}
	// It is the same issuer as behind POST /new.
	if _, body := call(t, "POST", d.url+"/new", map[string]string{"Content-Type": "application/pkcs10", "Accept": "text/plain"}, der); body != string(issuer.Certificate{Leaf: first.Raw}.LeafPEM()) {
		t.Error("POST /new gives another certificate")
	}
	if s := d.handler.Stats(); s.EST != 4 || s.Issued != 5 {
		t.Errorf("%+v", s)
	}
}

func TestESTCACerts(t *testing.T) {
	d := newDoor(t)
	ca := catest.Local(t)
	response, body := call(t, "GET", d.url+estPrefix+issuertest.SKU+"/cacerts", nil, nil)
	// The CA of these tests wraps the real one, and knows no chain beforehand.
	if got := certsOnly(t, response, body); len(got) != 1 || !got[0].Equal(ca.Root()) {
		t.Errorf("%d certificates, want the root", len(got))
	}
	d.with(t, ca)
	response, body = call(t, "GET", d.url+estPrefix+"cacerts", nil, nil)
	if got := certsOnly(t, response, body); len(got) != 2 || !got[0].Equal(ca.Issuing()) || !got[1].Equal(ca.Root()) {
		t.Errorf("%d certificates, want the issuing CA's and the root", len(got))
	}
	d.with(t, secretive{ca})
	if response, _ = call(t, "GET", d.url+estPrefix+"cacerts", nil, nil); response.StatusCode != http.StatusNotFound {
		t.Errorf("without roots: %s", response.Status)
	}
}

// with puts another CA behind the handler.
func (d *door) with(t *testing.T, ca issuer.CA) {
	t.Helper()
	d.Config.CAs = map[string]issuer.CA{issuertest.CAName: ca}
	var err error
	if d.handler.config.Issuer, err = issuer.New(d.Config); err != nil {
		t.Fatal(err)
	}
}

// secretive is a CA that nobody can check.
type secretive struct{ issuer.CA }

func (secretive) Profile() issuer.Profile { return issuer.Profile{CAControlled: true} }

// What csrattrs asks for gets a certificate where freshness is asked for.
func TestESTCSRAttributes(t *testing.T) {
	d := newDoor(t)
	ask := func() (der []byte, challenge string) {
		response, body := call(t, "GET", d.url+estPrefix+"csrattrs", nil, nil)
		der, err := base64.StdEncoding.DecodeString(body)
		if err != nil || response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/csrattrs" {
			t.Fatalf("%s: %v: %s", response.Status, err, body)
		}
		var all []asn1.RawValue
		if rest, err := asn1.Unmarshal(der, &all); err != nil || len(rest) > 0 {
			t.Fatalf("it cannot be read: %v", err)
		}
		for _, one := range all {
			var a struct {
				Type   asn1.ObjectIdentifier
				Values []string `asn1:"set"`
			}
			if _, err := asn1.Unmarshal(one.FullBytes, &a); err == nil && a.Type.String() == "1.2.840.113549.1.9.7" && len(a.Values) == 1 {
				challenge = a.Values[0]
			}
		}
		return der, challenge
	}
	// SEQUENCE { SEQUENCE { ecPublicKey, SET { prime256v1 } }, ecdsa-with-SHA256 }
	plain := "\x30\x21\x30\x15\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x31\x0a\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"
	if der, challenge := ask(); string(der) != plain || challenge != "" {
		t.Errorf("without challenges: %x", der)
	}
	d.Policy.Challenges, d.Policy.RequireFresh = issuertest.Challenges(t), true
	d.Open(t, d.Claims)
	d.handler.config.Issuer, d.handler.config.Challenges = d.Issuer, d.Policy.Challenges
	der, challenge := ask()
	if challenge == "" || !bytes.Contains(der, []byte(plain[2:])) {
		t.Fatalf("with challenges: %x", der)
	}
	c := d.Board.CSR()
	if response, _ := call(t, "POST", d.url+estPrefix+"simpleenroll", pkcs10, c.DER(t)); response.StatusCode != http.StatusForbidden || d.last(t).Refusal != issuer.NoChallenge {
		t.Errorf("without the challenge: %s, logged %+v", response.Status, d.last(t))
	}
	c.Passwords = []string{challenge}
	response, body := call(t, "POST", d.url+estPrefix+"simpleenroll", pkcs10, c.DER(t))
	certsOnly(t, response, body)
}

// EST answers strangers as the other doors do.
func TestESTRefuses(t *testing.T) {
	d := newDoor(t)
	stranger := issuertest.NewBoard(t).CSR().DER(t)
	der := d.Board.CSR().DER(t)
	for name, c := range map[string]struct {
		path    string
		headers map[string]string
		body    []byte
		status  int
		refusal issuer.Refusal
	}{
		"nothing":                  {"simpleenroll", pkcs10, nil, 400, issuer.NoRequest},
		"in a header":              {"simpleenroll", map[string]string{HeaderCSR: d.Board.CSR().Header(t)}, nil, 400, issuer.NoRequest},
		"a body of JSON":           {"simpleenroll", map[string]string{"Content-Type": "application/json"}, der, 400, issuer.ContentType},
		"12 KB":                    {"simpleenroll", pkcs10, make([]byte, 12<<10), 400, issuer.TooLarge},
		"garbage":                  {"simpleenroll", pkcs10, []byte("hello"), 400, issuer.NotBase64},
		"a stranger":               {"simpleenroll", pkcs10, stranger, 403, issuer.NotEnrolled},
		"to renew, without a peer": {"simplereenroll", pkcs10, der, 403, issuer.NoPeer},
	} {
		t.Run(name, func(t *testing.T) {
			response, body := call(t, "POST", d.url+estPrefix+issuertest.SKU+"/"+c.path, c.headers, c.body)
			logged := d.last(t)
			word := map[int]string{400: "malformed", 403: "refused"}[c.status]
			if response.StatusCode != c.status || logged.Refusal != c.refusal || body != `{"error":"`+word+`","id":"`+logged.ID+"\"}\n" {
				t.Errorf("%s, %s, logged %+v", response.Status, body, logged)
			}
		})
	}
	for name, want := range map[string]int{
		"GET other/cacerts": 404, "POST other/simpleenroll": 404, "POST other/simplereenroll": 404, "GET other/csrattrs": 404, "GET " + issuertest.SKU + "/serverkeygen": 404,
		"POST cacerts": 405, "GET simpleenroll": 405,
	} {
		method, path, _ := strings.Cut(name, " ")
		if response, _ := call(t, method, d.url+estPrefix+path, pkcs10, der); response.StatusCode != want {
			t.Errorf("%s: %s, want %d", name, response.Status, want)
		}
	}
	d.Registry.Err = issuertest.ErrInjected
	response, body := call(t, "POST", d.url+estPrefix+"simpleenroll", pkcs10, der)
	if response.StatusCode != 503 || response.Header.Get("Retry-After") != retryAfter || !strings.HasPrefix(body, `{"error":"try-later"`) {
		t.Errorf("the registry is away: %s, %s", response.Status, body)
	}
	d.Registry.Err = nil
	d.handler.config.Sources = NewLimiter(time.Hour, 1)
	for _, path := range []string{"cacerts", "cacerts", "csrattrs"} { // the first is let through
		response, _ = call(t, "GET", d.url+estPrefix+path, nil, nil)
	}
	if response.StatusCode != 503 || d.handler.Stats().Limited != 2 {
		t.Errorf("too many: %s, %+v", response.Status, d.handler.Stats())
	}
	if response, _ := call(t, "POST", d.url+estPrefix+"simpleenroll", pkcs10, der); response.StatusCode != 503 {
		t.Errorf("too many: %s", response.Status)
	}
	if len(d.Claims.Snapshot()) != 0 {
		t.Error("something was claimed")
	}
}

// Who renews shows a certificate that the device had here.
func TestESTRenews(t *testing.T) {
	w := issuertest.NewEnv(t, catest.Local(t))
	h, err := NewHandler(HandlerConfig{Issuer: w.Issuer, New: issuertest.CAName, Proto: issuertest.CAName})
	if err != nil {
		t.Fatal(err)
	}
	der := w.Board.CSR().DER(t)
	ask := func(operation string, peers ...[]byte) (*httptest.ResponseRecorder, *x509.Certificate) {
		t.Helper()
		request := httptest.NewRequest("POST", estPrefix+operation, bytes.NewReader(der))
		request.Header.Set("Content-Type", "application/pkcs10")
		request.TLS = &tls.ConnectionState{}
		for _, peer := range peers {
			certificate, err := x509.ParseCertificate(peer)
			if err != nil {
				t.Fatal(err)
			}
			request.TLS.PeerCertificates = append(request.TLS.PeerCertificates, certificate)
		}
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, request)
		if answer.Code != http.StatusOK {
			return answer, nil
		}
		return answer, certsOnly(t, answer.Result(), answer.Body.String())[0]
	}
	refused := func(what string, want issuer.Refusal, peers ...[]byte) {
		t.Helper()
		before := h.Stats().Refused[want]
		if answer, _ := ask("simplereenroll", peers...); answer.Code != http.StatusForbidden || h.Stats().Refused[want] != before+1 {
			t.Errorf("%s: %d, %v; want %s", what, answer.Code, h.Stats().Refused, want)
		}
	}
	root := catest.Local(t).Root().Raw
	refused("before the first", issuer.NoPeer, root)
	_, first := ask("simpleenroll")
	refused("no certificate", issuer.NoPeer)
	refused("the CA's", issuer.NoPeer, root)
	refused("its own second", issuer.NoPeer, root, first.Raw)
	other := issuertest.NewBoard(t)
	w.Registry.Put(issuertest.Enrolment(t, other.Record(t, w.Station), w.Station))
	foreign, err := w.Issuer.Issue(t.Context(), other.CSR().Request(t), issuertest.CAName)
	if err != nil {
		t.Fatal(err)
	}
	refused("another device's", issuer.NoPeer, foreign.Leaf)

	if _, again := ask("simplereenroll", first.Raw); !again.Equal(first) {
		t.Error("on its first day it was renewed")
	}
	for id, issuance := range w.Claims.Snapshot() {
		issuance.Activated = issuance.Activated.Add(-24 * time.Hour)
		w.Claims.Stored[id] = issuance
	}
	_, second := ask("simplereenroll", first.Raw)
	if second.Equal(first) {
		t.Error("it was not renewed")
	}
	// The answer was lost: the old one, and a plain request, find the new one.
	if _, again := ask("simplereenroll", first.Raw); !again.Equal(second) {
		t.Error("asked again with the first, it gets another than the second")
	}
	if _, again := ask("simpleenroll"); !again.Equal(second) {
		t.Error("asked again without, it gets another than the second")
	}
	// One that was revoked renews nothing, though another is live.
	for _, issuance := range w.Claims.Snapshot() {
		if issuance.Certificate != nil && bytes.Equal(issuance.Certificate.Leaf, first.Raw) {
			if _, err := w.Issuer.Revoke(t.Context(), issuance.Claim.Device, issuance.Claim.Epoch+1, issuer.Superseded); err != nil {
				t.Fatal(err)
			}
		}
	}
	refused("a revoked one", issuer.CertificateRevoked, first.Raw)
	if _, again := ask("simplereenroll", second.Raw); !again.Equal(second) {
		t.Error("the live one is not given again")
	}
	if len(w.CA.Issued) != 3 {
		t.Errorf("%d certificates were signed", len(w.CA.Issued))
	}
}
