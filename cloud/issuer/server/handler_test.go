package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/station/board"
)

// door is a handler on a real server, with what it logged.
type door struct {
	*issuertest.Env
	handler *Handler
	url     string
	mu      sync.Mutex
	log     []Decision
}

func newDoor(t testing.TB) *door {
	t.Helper()
	d := &door{Env: issuertest.NewEnv(t, catest.Local(t))}
	var err error
	d.handler, err = NewHandler(HandlerConfig{
		Issuer: d.Issuer, New: issuertest.CAName, Proto: issuertest.CAName, Log: d.note,
		Endpoint: func(context.Context) (string, error) { return "iot.example.com", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(d.handler)
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func (d *door) note(decision Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, decision)
}

func (d *door) last(t testing.TB) Decision {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.log) == 0 {
		t.Fatal("nothing was logged")
	}
	return d.log[len(d.log)-1]
}

func call(t testing.TB, method, url string, headers map[string]string, body []byte) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(text)
}

func TestHandlerIssues(t *testing.T) {
	d := newDoor(t)
	c := d.Board.CSR()
	der := c.DER(t)
	pkcs10 := map[string]string{"Content-Type": "application/pkcs10"}
	var first string
	for _, r := range []struct {
		path    string
		headers map[string]string
		body    []byte
	}{
		{"/new", map[string]string{HeaderCSR: c.Header(t)}, nil},
		{"/proto", map[string]string{"Device-CSR": c.Header(t), "Accept": "*/*"}, nil},
		{"/new", pkcs10, der},
		{"/proto", pkcs10, c.PEM(t)},
		{"/new", map[string]string{"Content-Type": "application/pkcs10; charset=us-ascii"}, []byte(base64.StdEncoding.EncodeToString(der))},
	} {
		response, text := call(t, "POST", d.url+r.path, r.headers, r.body)
		if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/json" || response.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%s: %s, %s: %v", r.path, response.Status, text, d.last(t).Err)
		}
		if first == "" {
			first = text
		}
		if text != first {
			t.Errorf("%s answered otherwise than the first", r.path)
		}
		if got := d.last(t); got.Outcome != Issued || got.Device != d.Board.ID.String() || got.Path != r.path || got.Err != nil || len(got.ID) != 16 {
			t.Errorf("logged %+v", got)
		}
	}
	var answer map[string]string
	if err := json.Unmarshal([]byte(first), &answer); err != nil {
		t.Fatal(err)
	}
	if len(answer) != 3 || answer["endpoint"] != "iot.example.com" {
		t.Errorf("the answer has %v", answer)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(catest.Local(t).Root())
	if !intermediates.AppendCertsFromPEM([]byte(answer["certificateChain"])) {
		t.Error("no chain")
	}
	block, rest := pem.Decode([]byte(answer["certificate"]))
	if block == nil || len(rest) > 0 {
		t.Fatalf("certificate: %q", answer["certificate"])
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}

	for accept, want := range map[string]string{
		"text/plain":                                  answer["certificate"],
		"application/x-pem-file":                      answer["certificate"],
		"application/pem-certificate-chain":           answer["certificate"] + answer["certificateChain"],
		"image/png, text/plain;q=0.5":                 answer["certificate"],
		"application/json, text/plain":                first,
		"image/png":                                   first,
		"application/*":                               first,
		"nonsense; ;, application/pem-certificate-ch": first,
	} {
		if response, text := call(t, "POST", d.url+"/proto", map[string]string{HeaderCSR: c.Header(t), "Accept": accept}, nil); text != want {
			t.Errorf("Accept %s: %s, %s", accept, response.Header.Get("Content-Type"), text)
		}
	}
	if s := d.handler.Stats(); s.Issued != uint64(len(d.log)) || s.TryLater != 0 || len(s.Refused) != 0 {
		t.Errorf("%+v after %d", s, len(d.log))
	}
	if len(d.CA.Issued) != 1 {
		t.Errorf("%d certificates", len(d.CA.Issued))
	}
}

// What a stranger reads is one of three answers, the same to the byte bar the
// id.
func TestHandlerRefuses(t *testing.T) {
	d := newDoor(t)
	c, stranger := d.Board.CSR(), issuertest.NewBoard(t)
	thief := stranger.CSR()
	thief.Subject[0] = issuertest.CN(d.Board.ID.String())
	spliced := stranger.CSR()
	spliced.Public = d.Board.Key.Public()
	spliced.Subject[0] = issuertest.CN(d.Board.ID.String())
	header := func(c issuertest.CSR) map[string]string { return map[string]string{HeaderCSR: c.Header(t)} }
	pkcs10 := map[string]string{"Content-Type": "application/pkcs10"}

	for _, r := range []struct {
		name    string
		headers map[string]string
		body    []byte
		status  int
		refusal issuer.Refusal
	}{
		{"nothing", nil, nil, 400, issuer.NoRequest},
		{"an empty header", map[string]string{HeaderCSR: ""}, nil, 400, issuer.NotOnePEM},
		{"a header and a body", map[string]string{HeaderCSR: c.Header(t), "Content-Type": "application/pkcs10"}, c.DER(t), 400, issuer.TwoRequests},
		{"a header of 12 KB", map[string]string{HeaderCSR: strings.Repeat("QUFB", 3<<10)}, nil, 400, issuer.TooLarge},
		{"a body of 12 KB", pkcs10, make([]byte, 12<<10), 400, issuer.TooLarge},
		{"a body without a type", nil, c.DER(t), 400, issuer.ContentType},
		{"a body of JSON", map[string]string{"Content-Type": "application/json"}, []byte("{}"), 400, issuer.ContentType},
		{"garbage", pkcs10, []byte("hello"), 400, issuer.NotBase64},
		{"not enrolled", header(stranger.CSR()), nil, 403, issuer.NotEnrolled},
		{"another key", header(thief), nil, 403, issuer.KeyMismatch},
		{"a spliced key", header(spliced), nil, 403, issuer.CSRSignature},
	} {
		t.Run(r.name, func(t *testing.T) {
			response, text := call(t, "POST", d.url+"/new", r.headers, r.body)
			logged := d.last(t)
			if response.StatusCode != r.status || logged.Refusal != r.refusal || !errors.Is(logged.Err, r.refusal) {
				t.Errorf("%s, logged %+v", response.Status, logged)
			}
			word := map[int]string{400: "malformed", 403: "refused"}[r.status]
			if want := fmt.Sprintf("{\"error\":%q,\"id\":%q}\n", word, logged.ID); text != want {
				t.Errorf("answered %q, want %q", text, want)
			}
			want := map[string]bool{"Content-Type": true, "Cache-Control": true, "Content-Length": true, "Date": true, "Connection": true}
			for name := range response.Header {
				if !want[name] || name == "Connection" && r.refusal != issuer.TooLarge {
					t.Errorf("an unexpected header %s", name)
				}
			}
			if detail := fmt.Sprint(logged.Err); strings.Contains(detail, "BEGIN") || strings.Contains(detail, "MII") || strings.Contains(detail, "TUlJ") {
				t.Errorf("the log holds the request: %s", detail)
			}
			if d.handler.Stats().Refused[r.refusal] == 0 {
				t.Error("not counted")
			}
		})
	}
	two, err := http.NewRequestWithContext(t.Context(), "POST", d.url+"/new", nil)
	if err != nil {
		t.Fatal(err)
	}
	two.Header[http.CanonicalHeaderKey(HeaderCSR)] = []string{c.Header(t), c.Header(t)}
	if response, err := http.DefaultClient.Do(two); err != nil || response.Body.Close() != nil || response.StatusCode != 400 || d.last(t).Refusal != issuer.TwoRequests {
		t.Errorf("two headers: %v", err)
	}
	two, err = http.NewRequestWithContext(t.Context(), "POST", d.url+"/new", bytes.NewReader(c.DER(t)))
	if err != nil {
		t.Fatal(err)
	}
	two.Header["Content-Type"] = []string{"application/pkcs10", "application/json"}
	if response, err := http.DefaultClient.Do(two); err != nil || response.Body.Close() != nil || response.StatusCode != 400 || d.last(t).Refusal != issuer.ContentType {
		t.Errorf("two content types: %v", err)
	}
	for _, r := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/new", 405}, {"PUT", "/new", 405}, {"DELETE", "/proto", 405}, {"POST", "/healthz", 405}, {"POST", "/", 404}, {"GET", "/new/", 404},
	} {
		if response, text := call(t, r.method, d.url+r.path, header(c), nil); response.StatusCode != r.status {
			t.Errorf("%s %s: %s, %s", r.method, r.path, response.Status, text)
		}
	}
	if len(d.Claims.Snapshot()) != 0 || len(d.CA.Issued) != 0 {
		t.Error("something was claimed or signed")
	}
}

func TestHandlerTriesLater(t *testing.T) {
	for name, spoil := range map[string]func(d *door){
		"the registry is away": func(d *door) { d.Registry.Err = issuertest.ErrInjected },
		"the claims are away":  func(d *door) { d.Claims.Fault = issuertest.Once("before create") },
		"the CA is away":       func(d *door) { d.CA.Before = func() error { return issuertest.ErrInjected } },
		"the CA is wrong":      func(d *door) { d.CA.After = func(c *issuer.Certificate) error { c.Chain = nil; return nil } },
		"the CA panics":        func(d *door) { d.CA.Before = func() error { panic(issuertest.ErrInjected) } },
		"finishing fails":      func(d *door) { d.Claims.Fault = issuertest.Once("before replace") },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(t)
			spoil(d)
			headers := map[string]string{HeaderCSR: d.Board.CSR().Header(t)}
			response, text := call(t, "POST", d.url+"/new", headers, nil)
			logged := d.last(t)
			if response.StatusCode != 503 || response.Header.Get("Retry-After") != retryAfter || logged.Outcome != TryLater || logged.Err == nil {
				t.Errorf("%s, logged %+v", response.Status, logged)
			}
			if want := fmt.Sprintf("{\"error\":\"try-later\",\"id\":%q}\n", logged.ID); text != want {
				t.Errorf("answered %q, want %q", text, want)
			}
			if response, _ := call(t, "GET", d.url+"/healthz", nil, nil); response.StatusCode != 503 {
				t.Errorf("healthz: %s", response.Status)
			}
			d.Registry.Err, d.Claims.Fault, d.CA.Before, d.CA.After = nil, nil, nil, nil
			if response, text := call(t, "POST", d.url+"/new", headers, nil); response.StatusCode != 200 {
				t.Errorf("later: %s, %s", response.Status, text)
			}
			if response, text := call(t, "GET", d.url+"/healthz", nil, nil); response.StatusCode != 200 || text != "ok\n" {
				t.Errorf("healthz later: %s", response.Status)
			}
			if s := d.handler.Stats(); s.TryLater != 1 || s.Issued != 1 || !s.Failing.IsZero() {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestHealthFades(t *testing.T) {
	catest.Local(t) // outside the bubble
	synctest.Test(t, func(t *testing.T) {
		w := issuertest.NewEnv(t, catest.Local(t))
		w.Registry.Err = issuertest.ErrInjected
		h, err := NewHandler(HandlerConfig{Issuer: w.Issuer, New: issuertest.CAName, Proto: issuertest.CAName})
		if err != nil {
			t.Fatal(err)
		}
		health := func() int {
			answer := httptest.NewRecorder()
			h.ServeHTTP(answer, httptest.NewRequest("GET", "/healthz", nil))
			return answer.Code
		}
		if health() != 200 {
			t.Error("red at the start")
		}
		request := httptest.NewRequest("POST", "/new", nil)
		request.Header.Set(HeaderCSR, w.Board.CSR().Header(t))
		h.ServeHTTP(httptest.NewRecorder(), request)
		if health() != 503 {
			t.Error("green after a failure")
		}
		time.Sleep(failureFades)
		if health() != 200 || h.Stats().Failing.IsZero() {
			t.Error("still red after a minute, or forgotten")
		}
	})
}

// A device that hangs up finds its certificate finished when it comes back.
func TestHandlerFinishesWhatItBegan(t *testing.T) {
	w := issuertest.NewEnv(t, catest.Local(t))
	h, err := NewHandler(HandlerConfig{Issuer: w.Issuer, New: issuertest.CAName, Proto: issuertest.CAName})
	if err != nil {
		t.Fatal(err)
	}
	ctx, hangUp := context.WithCancel(t.Context())
	w.CA.Before = func() error { hangUp(); return nil }
	request := httptest.NewRequest("POST", "/new", nil).WithContext(ctx)
	request.Header.Set(HeaderCSR, w.Board.CSR().Header(t))
	h.ServeHTTP(httptest.NewRecorder(), request)
	for id, issuance := range w.Claims.Snapshot() {
		if issuance.Certificate == nil {
			t.Errorf("%s is not finished", id)
		}
	}
	if len(w.Claims.Snapshot()) != 1 {
		t.Error("nothing was claimed")
	}
}

// A body that breaks off is malformed, and claims nothing.
func TestHandlerBodyBreaksOff(t *testing.T) {
	d := newDoor(t)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	der := d.Board.CSR().DER(t)
	if _, err := fmt.Fprintf(conn, "POST /new HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\nContent-Length: %d\r\n\r\n%s", len(der)+1, der); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != 400 || d.last(t).Refusal != issuer.NoRequest {
		t.Errorf("%s, logged %+v", response.Status, d.last(t))
	}
}

func TestHandlerAtOnce(t *testing.T) {
	d := newDoor(t)
	header := d.Board.CSR().Header(t)
	answers := make([]string, 16)
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			_, answers[i] = call(t, "POST", d.url+"/new", map[string]string{HeaderCSR: header}, nil)
		})
	}
	wg.Wait()
	for i := range answers {
		if answers[i] != answers[0] || !strings.Contains(answers[i], "BEGIN CERTIFICATE") {
			t.Errorf("answer %d: %s", i, answers[i])
		}
	}
}

// BenchmarkIssue measures a whole issuance, from the HTTP request to the
// answer's last byte with registry and claims in memory, against the bare work
// that no issuer can do without: parse, verify, sign. The ratio is bare ÷
// whole, both taken in turn in one run: 1 would mean that all the rest is free.
func BenchmarkIssue(b *testing.B) {
	w := issuertest.NewEnv(b, catest.Local(b))
	h, err := NewHandler(HandlerConfig{Issuer: w.Issuer, New: issuertest.CAName, Proto: issuertest.CAName})
	if err != nil {
		b.Fatal(err)
	}
	c := w.Board.CSR()
	c.SHA256 = true
	der, header := c.DER(b), c.Header(b)
	item := w.Registry.Items[w.Board.ID]
	policy := issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{w.Station.Verifier}}
	ca := catest.Local(b)
	var bare, whole time.Duration
	for b.Loop() {
		w.Claims.Stored, w.CA.Issued = nil, nil // each issuance is a first one

		start := time.Now()
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || csr.CheckSignature() != nil {
			b.Fatal("the request does not hold")
		}
		template := issuertest.DeviceTemplate(w.Board.ID, item.Key, issuer.Serial{1}, start, start.Add(policy.Validity))
		if _, err := x509.CreateCertificate(nil, template, ca.Issuing(), csr.PublicKey, ca.Signer(b.Context())); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(start)

		start = time.Now()
		request := httptest.NewRequest("POST", "/new", nil)
		request.Header.Set(HeaderCSR, header)
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, request)
		whole += time.Since(start)
		if answer.Code != http.StatusOK {
			b.Fatal(answer.Body)
		}
	}
	b.ReportMetric(float64(bare)/float64(whole), "ratio")
	b.ReportMetric(float64(bare.Microseconds())/float64(b.N), "bare-µs/op")
	b.ReportMetric(float64(whole.Microseconds())/float64(b.N), "whole-µs/op")
}

func TestNewHandlerRefuses(t *testing.T) {
	if _, err := NewHandler(HandlerConfig{}); err == nil {
		t.Error("a handler without an issuer")
	}
}
