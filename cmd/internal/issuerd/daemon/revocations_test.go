package daemon

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/crypto/ocsp"

	"secretfree/cloud/issuer"
	"secretfree/cmd/internal/issuerd"
)

// The daemon answers for its CA what stands in the certificate, before any
// cleaning of paths.
func TestDaemonRevocations(t *testing.T) {
	p := newTestEnv(t, `listen = "127.0.0.1:0"`, "")
	text, err := os.ReadFile(p.path("issuerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "issuerd.toml", bytes.Replace(text, []byte(`kind = "local"`), []byte("kind = \"local\"\nname = \"main\"\ncrl_url = \"http://crl.example.com/crl/main.crl\"\nocsp_url = \"http://ocsp.example.com/ocsp\""), 1))
	d := p.run(t)
	get := func(path string) []byte {
		t.Helper()
		response, err := http.Get("http://" + d.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", path, response.Status, err)
		}
		return body
	}
	response, err := http.Post("http://"+d.Addr()+"/new", "application/pkcs10", bytes.NewReader(p.request(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Certificate, CertificateChain string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	parse := func(text string) *x509.Certificate {
		block, _ := pem.Decode([]byte(text))
		if block == nil {
			t.Fatalf("no certificate: %q", text)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	leaf, issuing := parse(answer.Certificate), parse(answer.CertificateChain)
	if strings.Join(append(leaf.CRLDistributionPoints, leaf.OCSPServer...), " ") != "http://crl.example.com/crl/main.crl http://ocsp.example.com/ocsp" {
		t.Errorf("it names %v and %v", leaf.CRLDistributionPoints, leaf.OCSPServer)
	}
	der, err := ocsp.CreateRequest(leaf, issuing, nil)
	if err != nil {
		t.Fatal(err)
	}
	status := func() int {
		// Two strokes in a row are in the base64 of some request or other; a
		// mux would answer with another place.
		body := get("/ocsp/" + base64.StdEncoding.EncodeToString(der))
		parsed, err := ocsp.ParseResponseForCert(body, leaf, issuing)
		if err != nil {
			t.Fatal(err)
		}
		return parsed.Status
	}
	if status() != ocsp.Good {
		t.Error("it is not good")
	}
	if _, err := d.opened.Revoke(t.Context(), p.device, 0, issuer.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	if status() != ocsp.Revoked {
		t.Error("it is not revoked")
	}
	served, err := x509.ParseRevocationList(get("/crl/main.crl"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := issuerd.Load(p.path("issuerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.CRL(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(made)
	if err != nil {
		t.Fatal(err)
	}
	if len(served.RevokedCertificateEntries) != 1 || len(list.RevokedCertificateEntries) != 1 || list.Number.Cmp(served.Number) <= 0 {
		t.Errorf("%d and %d entries, numbers %v and %v", len(served.RevokedCertificateEntries), len(list.RevokedCertificateEntries), served.Number, list.Number)
	}
	if _, err := c.CRL(t.Context(), "other"); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("of another CA: %v", err)
	}
}
