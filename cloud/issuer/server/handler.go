// Package server serves an issuer over HTTP: POST /new and /proto, EST, OCSP
// and revocation lists.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"secretfree/cloud/issuer"
)

// The request's headers.
const (
	// HeaderCSR is that of the reference deployment: the base64 of a PEM
	// request.
	HeaderCSR = "device-csr"
	// HeaderChallenge and HeaderSignature are what a device answers to a
	// challenge that does not stand in its request: the challenge, and the
	// base64 of its key's signature over that text (ECDSA in DER, with SHA-256
	// or SHA-1).
	HeaderChallenge = "device-challenge"
	HeaderSignature = "device-sig"
)

const (
	readTimeout  = 10 * time.Second // for a body
	issueTimeout = 25 * time.Second // API Gateway gives up after 29
	retryAfter   = "30"             // seconds
	failureFades = time.Minute
)

// HandlerConfig of a Handler.
type HandlerConfig struct {
	Issuer *issuer.Issuer
	// New and Proto are the names of the CAs behind POST /new and POST /proto.
	New, Proto string
	// Endpoint tells where a device connects with its certificate; part of the
	// answer. nil: nowhere.
	Endpoint func(context.Context) (string, error)
	// Challenges, if set, are made by GET /challenge.
	Challenges *issuer.Challenges
	// Sources, if set, limits each source of requests; Source names it (nil:
	// the address it connects from, of IPv6 the /64).
	Sources *Limiter
	Source  func(*http.Request) string
	// Log, if set, is told of every request, in the request's own goroutine.
	Log func(Decision)
	// Health, if set, tells GET /healthz of what else is wrong, in one line
	// that strangers may read; red, if no certificate can reach a device
	// because of it.
	Health func() (note string, red bool)
}

// Decision is what is logged about a request: never the request itself, nor a
// header of it.
type Decision struct {
	ID      string // correlation id, which the stranger was told as well
	Path    string
	Outcome Outcome
	Device  string         // as claimed; empty if the request claims none that is a device id
	Refusal issuer.Refusal // if malformed or refused
	Err     error          // what lies behind a refusal or failure; not for strangers
	Began   time.Time      // when the headers were there
	Took    time.Duration  // from then to the answer
}

// Outcome of a request.
type Outcome string

// The outcomes. The last three are also the words that a stranger reads.
const (
	Issued    Outcome = "issued" // anew, or the same one again
	Malformed Outcome = "malformed"
	Refused   Outcome = "refused"
	TryLater  Outcome = "try-later"
)

// Stats counts requests since the start.
type Stats struct {
	Issued   uint64
	EST      uint64                    // of Issued, those over EST
	TryLater uint64                    // without Limited
	Limited  uint64                    // of a source or a device that asked too often
	Refused  map[issuer.Refusal]uint64 // malformed ones too
	// Failing is since when every issuance that was tried has ended in
	// TryLater; zero if the last one did not.
	Failing time.Time
}

// Handler serves POST /new and POST /proto, which differ in their CA only, GET
// /challenge, GET /healthz, and EST.
//
// The request comes in the header device-csr (base64 of PEM), or as a body
// application/pkcs10 or application/octet-stream (PEM, DER, or base64 of DER);
// never both. The answer is JSON with the fields certificate, certificateChain
// (both PEM, the chain up to the root) and endpoint. A client whose Accept
// header names text/plain or application/x-pem-file first gets the certificate
// alone, application/pem-certificate-chain (RFC 8555) the certificate and the
// chain.
//
// Strangers learn one of three things: {"error":"malformed"} with 400,
// "refused" with 403, "try-later" with 503 and Retry-After; each with a
// correlation id.
//
// The server in front of it limits the whole of the headers, and the time that
// they take to arrive.
type Handler struct {
	config HandlerConfig
	mux    *http.ServeMux

	mu          sync.Mutex // of what follows
	stats       Stats
	lastFailure time.Time
}

// NewHandler checks the configuration.
func NewHandler(config HandlerConfig) (*Handler, error) {
	if config.Issuer == nil {
		return nil, errors.New("issuer: a handler needs an issuer")
	}
	h := &Handler{config: config, mux: http.NewServeMux(), stats: Stats{Refused: map[issuer.Refusal]uint64{}}}
	h.mux.HandleFunc("POST /new", func(w http.ResponseWriter, r *http.Request) { h.issue(w, r, endpoint{ca: config.New}) })
	h.mux.HandleFunc("POST /proto", func(w http.ResponseWriter, r *http.Request) { h.issue(w, r, endpoint{ca: config.Proto}) })
	h.serveEST()
	h.mux.HandleFunc("GET /healthz", h.health)
	if config.Challenges != nil {
		h.mux.HandleFunc("GET /challenge", h.challenge)
	}
	return h, nil
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// challenge answers {"challenge": text, "expires": RFC 3339}, or the text alone
// to whom Accept asks for text/plain.
func (h *Handler) challenge(w http.ResponseWriter, r *http.Request) {
	d := newDecision(r)
	if !h.admitted(w, r, &d) {
		return
	}
	text, until := h.config.Challenges.New(time.Now())
	if wanted(r.Header.Values("Accept")) == "text/plain" {
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Cache-Control", "no-store")
		_, _ = io.WriteString(w, text)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Challenge string `json:"challenge"`
		Expires   string `json:"expires"`
	}{text, until.Format(time.RFC3339)})
}

// admitted answers a request whose source asked too often; it returns false
// then.
func (h *Handler) admitted(w http.ResponseWriter, r *http.Request, d *Decision) bool {
	err := h.admit(r)
	if err != nil {
		h.fail(w, d, err)
	}
	return err == nil
}

// fail answers, counts and logs what went wrong.
func (h *Handler) fail(w http.ResponseWriter, d *Decision, err error) {
	d.Err = err
	d.Outcome, d.Refusal = Classify(err)
	h.finish(d)
	writeError(w, *d)
}

func (h *Handler) admit(r *http.Request) error {
	return admitSource(h.config.Sources, h.config.Source, r)
}

// admitSource counts a request of its source; nil is sourceOf.
func admitSource(sources *Limiter, source func(*http.Request) string, r *http.Request) error {
	if source == nil {
		source = sourceOf
	}
	if name := source(r); !sources.Allow(name, time.Now()) {
		return ErrTooMany{"the source " + name}
	}
	return nil
}

func sourceOf(r *http.Request) string { return SourceName(r.RemoteAddr) }

// SourceName is what the requests from an address are counted under, with or
// without its port: itself, of IPv6 the /64. All that is no address is one
// source.
func SourceName(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return "unknown"
		}
		ip = at.Addr()
	}
	ip = ip.Unmap().WithZone("")
	if !ip.Is6() {
		return ip.String()
	}
	network, err := ip.Prefix(64)
	if err != nil {
		return "unknown"
	}
	return network.String()
}

func newDecision(r *http.Request) Decision {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return Decision{ID: hex.EncodeToString(id[:]), Path: r.URL.Path, Began: time.Now()}
}

// finish counts and logs a decision.
func (h *Handler) finish(d *Decision) {
	d.Took = time.Since(d.Began)
	h.count(*d)
	if h.config.Log != nil {
		h.config.Log(*d)
	}
}

// Stats returns a copy.
func (h *Handler) Stats() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Refused = make(map[issuer.Refusal]uint64, len(h.stats.Refused))
	for name, n := range h.stats.Refused {
		s.Refused[name] = n
	}
	return s
}

// health is red if an issuance failed in the last minute and none succeeded
// since. It fades, because a balancer sends no more requests to what is red,
// and then nothing could turn it green.
func (h *Handler) health(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	red := !h.stats.Failing.IsZero() && time.Since(h.lastFailure) < failureFades
	h.mu.Unlock()
	text := "ok\n"
	if red {
		text = "certificates cannot be issued at present\n"
	}
	if h.config.Health != nil {
		if note, also := h.config.Health(); note != "" {
			text, red = text+note+"\n", red || also
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if red {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = io.WriteString(w, text)
}

// endpoint is what differs where certificates are given.
type endpoint struct {
	ca    string
	est   bool // the forms of EST
	renew bool // only to who shows a certificate that it had
}

func (h *Handler) issue(w http.ResponseWriter, r *http.Request, at endpoint) {
	d := newDecision(r)
	certificate, endpoint, err := h.answer(w, r, at, &d)
	var answer []byte
	if err == nil && at.est {
		answer, err = estCertificate(certificate)
	}
	if err != nil {
		h.fail(w, &d, err)
		return
	}
	d.Outcome = Issued
	h.finish(&d)
	if at.est {
		writeEST(w, estCertificates, answer)
		return
	}
	writeCertificate(w, r, certificate, endpoint)
}

func (h *Handler) answer(w http.ResponseWriter, r *http.Request, at endpoint, d *Decision) (_ issuer.Certificate, endpoint string, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %T\n%s", v, debug.Stack()) // what it says may quote a request
		}
	}()
	if err := h.admit(r); err != nil {
		return issuer.Certificate{}, "", err
	}
	request, err := readRequest(w, r)
	if err == nil && at.est && r.Header.Get(HeaderCSR) != "" {
		err = fmt.Errorf("%w: EST has it in the body", issuer.NoRequest)
	}
	if err != nil {
		return issuer.Certificate{}, "", err
	}
	if at.renew {
		request = request.AsRenewal()
	}
	if device, ok := request.Claimed(); ok {
		d.Device = device.String()
	}
	// A device that hangs up does not stop what was begun: it will come back
	// for it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), issueTimeout)
	defer cancel()
	certificate, err := h.config.Issuer.Issue(ctx, request, at.ca)
	if err == nil && h.config.Endpoint != nil && !at.est {
		if endpoint, err = h.config.Endpoint(ctx); err != nil {
			err = fmt.Errorf("finding out where devices connect: %w", err)
		}
	}
	return certificate, endpoint, err
}

// readBody reads a body of at most limit bytes within readTimeout.
//
// The deadline stays after an error: net/http reads what is left of a body
// before it closes the connection, and without a deadline it would wait for
// ever. It is cleared after the whole body, so that a long issuance does not
// count as a slow client.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	// Where a deadline cannot be set, as under Lambda, the body is here
	// already.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(readTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		_ = control.SetReadDeadline(time.Time{})
	}
	return body, err
}

func readRequest(w http.ResponseWriter, r *http.Request) (issuer.Request, error) {
	body, err := readBody(w, r, issuer.MaxText)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return issuer.Request{}, fmt.Errorf("%w: a body of more than %d bytes", issuer.TooLarge, issuer.MaxText)
	}
	if err != nil {
		return issuer.Request{}, fmt.Errorf("%w: the body broke off: %v", issuer.NoRequest, err)
	}
	request, err := RequestFrom(r.Header, body)
	if err != nil {
		return issuer.Request{}, err
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		request = request.WithPeer(r.TLS.PeerCertificates[0])
	}
	return request, nil
}

func RequestFrom(header http.Header, body []byte) (request issuer.Request, err error) {
	headers := header.Values(HeaderCSR)
	switch {
	case len(headers) == 0 && len(body) == 0:
		return issuer.Request{}, issuer.NoRequest
	case len(headers) > 1 || len(headers) == 1 && len(body) > 0:
		return issuer.Request{}, issuer.TwoRequests
	case len(header.Values(HeaderChallenge)) > 1 || len(header.Values(HeaderSignature)) > 1:
		return issuer.Request{}, fmt.Errorf("%w: two answers to challenges", issuer.TwoRequests)
	case len(headers) == 1:
		request, err = issuer.ParseHeader(headers[0])
	default:
		kinds := header.Values("Content-Type")
		if len(kinds) != 1 { // of two, another reader might take the other
			return issuer.Request{}, fmt.Errorf("%w: %d of them, want one", issuer.ContentType, len(kinds))
		}
		if kind, _, typeErr := mime.ParseMediaType(kinds[0]); typeErr != nil || kind != "application/pkcs10" && kind != "application/octet-stream" {
			return issuer.Request{}, fmt.Errorf("%w: want application/pkcs10 or application/octet-stream", issuer.ContentType)
		}
		request, err = issuer.ParseRequest(body)
	}
	if err != nil {
		return issuer.Request{}, err
	}
	return request.WithSignature(header.Get(HeaderChallenge), header.Get(HeaderSignature))
}

// Classify is the one place that turns an error into what a stranger may know.
func Classify(err error) (Outcome, issuer.Refusal) {
	if err == nil {
		return Issued, ""
	}
	refusal, ok := errors.AsType[issuer.Refusal](err)
	switch {
	case !ok:
		return TryLater, ""
	case refusal.Malformed():
		return Malformed, refusal
	default:
		return Refused, refusal
	}
}

func (h *Handler) count(d Decision) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch d.Outcome {
	case Issued:
		h.stats.Issued++
		if strings.HasPrefix(d.Path, estPrefix) {
			h.stats.EST++
		}
		h.stats.Failing = time.Time{}
	case TryLater:
		if _, limited := errors.AsType[ErrTooMany](d.Err); limited {
			h.stats.Limited++
			return
		}
		h.stats.TryLater++
		h.lastFailure = time.Now()
		if h.stats.Failing.IsZero() {
			h.stats.Failing = h.lastFailure
		}
	default:
		h.stats.Refused[d.Refusal]++
	}
}

func writeError(w http.ResponseWriter, d Decision) {
	status := http.StatusServiceUnavailable
	switch d.Outcome {
	case Malformed:
		status = http.StatusBadRequest
	case Refused:
		status = http.StatusForbidden
	default:
		w.Header().Set("Retry-After", retryAfter)
	}
	writeJSON(w, status, struct {
		Error Outcome `json:"error"`
		ID    string  `json:"id"`
	}{d.Outcome, d.ID})
}

func writeCertificate(w http.ResponseWriter, r *http.Request, c issuer.Certificate, endpoint string) {
	kind := wanted(r.Header.Values("Accept"))
	switch kind {
	case "text/plain", "application/x-pem-file":
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(c.LeafPEM())
	case "application/pem-certificate-chain":
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(append(c.LeafPEM(), c.ChainPEM()...))
	default:
		writeJSON(w, http.StatusOK, struct {
			Certificate      string `json:"certificate"`
			CertificateChain string `json:"certificateChain"`
			Endpoint         string `json:"endpoint"`
		}{string(c.LeafPEM()), string(c.ChainPEM()), endpoint})
	}
}

// wanted is the first media type of Accept that there is an answer in; weights
// are not looked at.
func wanted(accept []string) string {
	for _, entry := range strings.Split(strings.Join(accept, ","), ",") {
		kind, _, err := mime.ParseMediaType(entry)
		if err != nil {
			continue
		}
		switch kind {
		case "text/plain", "application/x-pem-file", "application/pem-certificate-chain", "application/json", "*/*", "application/*":
			return kind
		}
	}
	return "application/json"
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // strings only: they always encode
		status, body = http.StatusServiceUnavailable, []byte(`{"error":"try-later"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
