package server

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"secretfree/cloud/issuer"

	"github.com/smallstep/pkcs7"
)

// estPrefix is where EST (RFC 7030, RFC 8951) is served: under it the
// operations, or the SKU and then the operations.
const estPrefix = "/.well-known/est/"

// chained is what a CA may be besides: one whose chain is known before it signs
// anything. Without it a client of EST is given the roots alone.
type chained interface {
	// Chain is that of its certificates: the issuing CA first, the root last.
	Chain() []*x509.Certificate
}

// serveEST adds the operations of EST, which give what POST /new gives, under
// the same rules: it is the same issuer behind them.
//
// A client of EST need not authenticate itself to enrol: the request is signed
// by the key that the factory put on record. To re-enrol it must, in TLS, by a
// certificate that it had here. csrattrs hands out a challenge, as the value
// that challengePassword shall have; who puts it into the request has made a
// fresh one. Bodies are base64 without line breaks, because there are clients
// that read nothing else; what comes in may be wrapped, and its
// Content-Transfer-Encoding is not looked at.
func (h *Handler) serveEST() {
	for pattern, serve := range map[string]http.HandlerFunc{
		"GET %scacerts":       h.estCACerts,
		"GET %scsrattrs":      h.estCSRAttributes,
		"POST %ssimpleenroll": func(w http.ResponseWriter, r *http.Request) { h.issue(w, r, endpoint{ca: h.config.New, est: true}) },
		"POST %ssimplereenroll": func(w http.ResponseWriter, r *http.Request) {
			h.issue(w, r, endpoint{ca: h.config.New, est: true, renew: true})
		},
	} {
		h.mux.HandleFunc(fmt.Sprintf(pattern, estPrefix), serve)
		h.mux.HandleFunc(fmt.Sprintf(pattern, estPrefix+"{sku}/"), func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("sku") != h.config.Issuer.SKU() {
				http.NotFound(w, r)
				return
			}
			serve(w, r)
		})
	}
}

// estCACerts answers the certificates of the CA behind POST /new: its chain.
func (h *Handler) estCACerts(w http.ResponseWriter, r *http.Request) {
	d := newDecision(r)
	if !h.admitted(w, r, &d) {
		return
	}
	ca := h.config.Issuer.CA(h.config.New)
	var chain []*x509.Certificate
	if chained, ok := ca.(chained); ok {
		chain = chained.Chain()
	} else if ca != nil {
		chain = ca.Profile().Roots
	}
	if len(chain) == 0 { // one that keeps its roots to itself
		http.NotFound(w, r)
		return
	}
	var all []byte
	for _, certificate := range chain {
		all = append(all, certificate.Raw...)
	}
	body, err := pkcs7.DegenerateCertificate(all)
	if err != nil {
		h.fail(w, &d, fmt.Errorf("encoding the chain: %w", err))
		return
	}
	writeEST(w, "application/pkcs7-mime", body)
}

// estCSRAttributes answers what a request should have (RFC 7030, 4.5.2): a key
// on P-256, a signature with SHA-256, and the challenge that it can answer.
func (h *Handler) estCSRAttributes(w http.ResponseWriter, r *http.Request) {
	d := newDecision(r)
	if !h.admitted(w, r, &d) {
		return
	}
	challenge := ""
	if h.config.Challenges != nil {
		challenge, _ = h.config.Challenges.New(time.Now())
	}
	body, err := csrAttributes(challenge)
	if err != nil {
		h.fail(w, &d, err)
		return
	}
	writeEST(w, "application/csrattrs", body)
}

func csrAttributes(challenge string) ([]byte, error) {
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
	all := []any{
		attribute{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, []any{asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}}}, // ecPublicKey, P-256
		asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2},                                                                  // ecdsa-with-SHA256
	}
	if challenge != "" {
		// PrintableString: letters, digits and a dot.
		all = append(all, attribute{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, []any{challenge}})
	}
	der, err := asn1.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encoding the attributes: %w", err)
	}
	return der, nil
}

const estCertificates = "application/pkcs7-mime; smime-type=certs-only"

// estCertificate is the certificate alone (RFC 7030, 4.2.3).
func estCertificate(c issuer.Certificate) ([]byte, error) {
	body, err := pkcs7.DegenerateCertificate(c.Leaf)
	if err != nil {
		return nil, fmt.Errorf("encoding the certificate: %w", err)
	}
	return body, nil
}

func writeEST(w http.ResponseWriter, kind string, der []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Transfer-Encoding", "base64") // which RFC 8951 dropped, and older clients look for
	w.Header().Set("Cache-Control", "no-store")
	body := base64.StdEncoding.EncodeToString(der)
	w.Header().Set("Content-Length", strconv.Itoa(len(body))) // some know no chunks
	_, _ = io.WriteString(w, body)
}
