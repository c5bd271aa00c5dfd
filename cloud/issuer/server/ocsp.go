package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"secretfree/cloud/issuer"

	"golang.org/x/crypto/ocsp"
)

const (
	// ocspLife is from thisUpdate to nextUpdate.
	ocspLife    = time.Hour
	ocspTimeout = 10 * time.Second
)

// RevocationSigner is a CA whose revocation lists and OCSP answers are signed
// here.
type RevocationSigner interface {
	// Issuing is the certificate of the issuing CA.
	Issuing() *x509.Certificate
	// Signer has the key of the issuing CA; it is used in ctx only.
	Signer(ctx context.Context) crypto.Signer
	// Responder is the delegated OCSP responder at a time: its certificate and
	// key, or nil and the key of the issuing CA.
	Responder(ctx context.Context, now time.Time) (*x509.Certificate, crypto.Signer)
}

// RevocationsConfig of Revocations.
type RevocationsConfig struct {
	Claims issuer.Claims
	// CAs by the names that claims remember.
	CAs map[string]RevocationSigner
	// Sources and Source are as in HandlerConfig. Where devices connect, one
	// source asks for all of them.
	Sources *Limiter
	Source  func(*http.Request) string
	// Log, if set, is told of what could not be answered, in the request's own
	// goroutine.
	Log func(error)
	Now func() time.Time // nil: time.Now
}

// Revocations tells whoever asks which certificates of local CAs are revoked:
// POST /ocsp and GET /ocsp/<base64 of the request> (RFC 6960), and GET
// /crl/<name of the CA>.crl (RFC 5280, 5, in DER). What it tells comes from the
// claims: a certificate is good as soon as it is signed, and revoked as soon as
// that is written down. A claim that nothing was signed for is unknown.
//
// Answers are signed by the issuing CA, or, while its certificate is valid, by
// a delegated responder. They hold no nonce, and are of one certificate: of a
// request for several it is the first.
type Revocations struct {
	config RevocationsConfig
	lists  map[string]*list
}

// NewRevocations checks the configuration.
func NewRevocations(config RevocationsConfig) (*Revocations, error) {
	if config.Claims == nil {
		return nil, errors.New("revocations: they need claims")
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	r := &Revocations{config: config, lists: map[string]*list{}}
	for name := range config.CAs {
		r.lists[name] = &list{}
	}
	return r, nil
}

// Serves reports whether a request is for Revocations. They stand in front of
// any http.ServeMux, which would clean the base64 in a path that it takes for
// folders.
func (r *Revocations) Serves(request *http.Request) bool {
	path := request.URL.Path
	return path == "/ocsp" || strings.HasPrefix(path, "/ocsp/") || strings.HasPrefix(path, "/crl/")
}

func (r *Revocations) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	path := request.URL.EscapedPath()
	name, isList := strings.CutPrefix(path, "/crl/")
	name, named := strings.CutSuffix(name, ".crl")
	get := request.Method == http.MethodGet || request.Method == http.MethodHead
	switch {
	case isList && (!named || r.lists[name] == nil):
		http.NotFound(w, request)
	case isList && get:
		r.serveList(w, request, name)
	case !isList && strings.HasPrefix(path, "/ocsp/") && get:
		r.serveOCSP(w, request, strings.TrimPrefix(path, "/ocsp/"))
	case path == "/ocsp" && request.Method == http.MethodPost:
		r.serveOCSP(w, request, "")
	case path == "/ocsp":
		w.Header().Set("Allow", "POST")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
	default:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
	}
}

func (r *Revocations) admit(request *http.Request) error {
	return admitSource(r.config.Sources, r.config.Source, request)
}

func (r *Revocations) log(err error) {
	if r.config.Log != nil {
		r.config.Log(err)
	}
}

// serveOCSP answers a request that is in the path, or, where that is empty, in
// the body.
func (r *Revocations) serveOCSP(w http.ResponseWriter, request *http.Request, inPath string) {
	w.Header().Set("Content-Type", "application/ocsp-response")
	if err := r.admit(request); err != nil {
		r.log(fmt.Errorf("ocsp: %w", err))
		w.Header().Set("Retry-After", retryAfter)
		_, _ = w.Write(ocsp.TryLaterErrorResponse)
		return
	}
	der, err := readOCSP(w, request, inPath)
	if err != nil {
		_, _ = w.Write(ocsp.MalformedRequestErrorResponse)
		return
	}
	ctx, cancel := context.WithTimeout(request.Context(), ocspTimeout)
	defer cancel()
	now := r.config.Now()
	answer, err := r.OCSP(ctx, der, now)
	switch {
	case errors.Is(err, errNoOCSP):
		_, _ = w.Write(ocsp.MalformedRequestErrorResponse)
	case errors.Is(err, errForeignCA):
		_, _ = w.Write(ocsp.UnauthorizedErrorResponse)
	case err != nil:
		r.log(fmt.Errorf("ocsp: %w", err))
		w.Header().Set("Retry-After", retryAfter)
		_, _ = w.Write(ocsp.TryLaterErrorResponse)
	default:
		if inPath != "" {
			cached(w, now, ocspLife/4) // a revocation is known everywhere after that
		}
		_, _ = w.Write(answer)
	}
}

// cached lets an answer be kept for a time (RFC 5019, 6.2).
func cached(w http.ResponseWriter, now time.Time, life time.Duration) {
	w.Header().Set("Cache-Control", "max-age="+strconv.Itoa(int(life.Seconds()))+", public, no-transform, must-revalidate")
	w.Header().Set("Last-Modified", now.UTC().Format(http.TimeFormat))
	w.Header().Set("Expires", now.Add(life).UTC().Format(http.TimeFormat))
}

func readOCSP(w http.ResponseWriter, request *http.Request, inPath string) ([]byte, error) {
	if inPath == "" {
		return readBody(w, request, issuer.MaxDER)
	}
	if len(inPath) > issuer.MaxText {
		return nil, errNoOCSP
	}
	text, err := url.PathUnescape(inPath)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(text)
}

// Why OCSP gives no answer that is signed.
var (
	errNoOCSP    = errors.New("it is no request of OCSP")
	errForeignCA = errors.New("the certificate is of another CA")
)

// OCSP answers a request, both in DER.
func (r *Revocations) OCSP(ctx context.Context, der []byte, now time.Time) ([]byte, error) {
	request, err := ocsp.ParseRequest(der)
	if err != nil || request.SerialNumber == nil || !request.HashAlgorithm.Available() {
		return nil, fmt.Errorf("%w: %v", errNoOCSP, err)
	}
	name, ca := r.issuerOf(request)
	if ca == nil {
		return nil, errForeignCA
	}
	answer := ocsp.Response{
		Status: ocsp.Unknown, SerialNumber: request.SerialNumber, IssuerHash: request.HashAlgorithm,
		ThisUpdate: now.UTC().Truncate(time.Second), NextUpdate: now.UTC().Truncate(time.Second).Add(ocspLife),
	}
	if serial, ok := serialOf(request.SerialNumber); ok {
		issuance, err := r.config.Claims.Serial(ctx, serial)
		switch {
		case errors.Is(err, issuer.ErrNoClaim):
		case err != nil:
			return nil, fmt.Errorf("looking up serial %s: %w", serial, err)
		case issuance.Claim.CA != name:
		case issuance.State == issuer.Revoking || issuance.State == issuer.Revoked:
			answer.Status, answer.RevokedAt, answer.RevocationReason = ocsp.Revoked, issuance.Revoked, int(issuance.Reason)
		case issuance.Certificate != nil:
			answer.Status = ocsp.Good
		}
	}
	responder, key := ca.Responder(ctx, now)
	answer.Certificate = responder
	if responder == nil {
		responder = ca.Issuing()
	}
	out, err := ocsp.CreateResponse(ca.Issuing(), responder, answer, key)
	if err != nil {
		return nil, fmt.Errorf("signing the answer: %w", err)
	}
	return out, nil
}

// issuerOf finds the CA that a request names by hashes.
func (r *Revocations) issuerOf(request *ocsp.Request) (string, RevocationSigner) {
	for name, ca := range r.config.CAs {
		if string(hashed(request.HashAlgorithm, ca.Issuing().RawSubject)) == string(request.IssuerNameHash) &&
			string(hashed(request.HashAlgorithm, publicBits(ca.Issuing()))) == string(request.IssuerKeyHash) {
			return name, ca
		}
	}
	return "", nil
}

func hashed(h crypto.Hash, data []byte) []byte {
	sum := h.New()
	sum.Write(data)
	return sum.Sum(nil)
}

// publicBits is the BIT STRING of a certificate's key.
func publicBits(c *x509.Certificate) []byte {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(c.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil
	}
	return spki.Key.RightAlign()
}

// serialOf is false for a number that no claim can have.
func serialOf(n *big.Int) (issuer.Serial, bool) {
	var s issuer.Serial
	if n.Sign() <= 0 || n.BitLen() > 8*len(s) {
		return s, false
	}
	n.FillBytes(s[:])
	return s, true
}
