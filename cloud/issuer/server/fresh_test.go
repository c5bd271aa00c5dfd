package server

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/station/board"
)

// freshDoor asks every request for a challenge.
func freshDoor(t *testing.T) *door {
	t.Helper()
	d := newDoor(t)
	d.Policy.Challenges, d.Policy.RequireFresh = issuertest.Challenges(t), true
	d.Open(t, d.Claims)
	var err error
	d.handler, err = NewHandler(HandlerConfig{Issuer: d.Issuer, New: issuertest.CAName, Proto: issuertest.CAName, Log: d.note, Challenges: d.Policy.Challenges})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(d.handler)
	t.Cleanup(server.Close)
	d.url = server.URL
	return d
}

func (d *door) challenge(t *testing.T) string {
	t.Helper()
	response, text := call(t, "GET", d.url+"/challenge", nil, nil)
	var answer struct{ Challenge, Expires string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil || response.StatusCode != 200 || response.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%s, %s: %v", response.Status, text, err)
	}
	until, err := time.Parse(time.RFC3339, answer.Expires)
	if err != nil || time.Until(until) > issuer.DefaultChallengeLife || time.Until(until) < issuer.DefaultChallengeLife-time.Minute {
		t.Errorf("it expires at %s", answer.Expires)
	}
	return answer.Challenge
}

func TestFreshRequests(t *testing.T) {
	d := freshDoor(t)
	plain := map[string]string{HeaderCSR: d.Board.CSR().Header(t)}
	if response, _ := call(t, "POST", d.url+"/new", plain, nil); response.StatusCode != 403 || d.last(t).Refusal != issuer.NoChallenge {
		t.Fatalf("a plain request: %s, %+v", response.Status, d.last(t))
	}
	// The text alone, for a device that reads no JSON.
	response, text := call(t, "GET", d.url+"/challenge", map[string]string{"Accept": "text/plain"}, nil)
	if response.StatusCode != 200 || len(text) != 50 || response.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%s, %q", response.Status, text)
	}
	inside := d.Board.CSR()
	inside.Passwords = []string{text}
	if response, text := call(t, "POST", d.url+"/new", map[string]string{HeaderCSR: inside.Header(t)}, nil); response.StatusCode != 200 {
		t.Errorf("in the request: %s, %s, %v", response.Status, text, d.last(t).Err)
	}
	beside := func(challenge, signature string) map[string]string {
		return map[string]string{HeaderCSR: d.Board.CSR().Header(t), HeaderChallenge: challenge, HeaderSignature: signature}
	}
	challenge := d.challenge(t)
	answer := d.Board.Answer(t, challenge, crypto.SHA1)
	if response, text := call(t, "POST", d.url+"/new", beside(challenge, answer), nil); response.StatusCode != 200 {
		t.Errorf("beside the request: %s, %s, %v", response.Status, text, d.last(t).Err)
	}
	for name, c := range map[string]struct {
		challenge, signature string
		status               int
		refusal              issuer.Refusal
	}{
		"without a signature":        {challenge, "", 400, issuer.NoSignature},
		"without a challenge":        {"", answer, 400, issuer.NoSignature},
		"a signature that is none":   {challenge, "???", 400, issuer.NotBase64},
		"a signature of another key": {challenge, issuertest.NewBoard(t).Answer(t, challenge, crypto.SHA1), 403, issuer.ChallengeSignature},
		"a challenge of nobody":      {"sfc1.", answer, 403, issuer.BadChallenge},
		"a challenge far too long":   {string(make([]byte, 65)), answer, 400, issuer.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			h.Set(HeaderCSR, d.Board.CSR().Header(t))
			if c.challenge != "" {
				h.Set(HeaderChallenge, c.challenge)
			}
			if c.signature != "" {
				h.Set(HeaderSignature, c.signature)
			}
			r := httptest.NewRequest("POST", "/new", nil)
			r.Header = h
			w := httptest.NewRecorder()
			d.handler.ServeHTTP(w, r)
			if w.Code != c.status || d.last(t).Refusal != c.refusal {
				t.Errorf("%d, %+v", w.Code, d.last(t))
			}
		})
	}
	r := httptest.NewRequest("POST", "/new", nil)
	r.Header = http.Header{http.CanonicalHeaderKey(HeaderCSR): {d.Board.CSR().Header(t)}, http.CanonicalHeaderKey(HeaderChallenge): {challenge, challenge}}
	w := httptest.NewRecorder()
	if d.handler.ServeHTTP(w, r); w.Code != 400 || d.last(t).Refusal != issuer.TwoRequests {
		t.Errorf("two challenges: %d, %+v", w.Code, d.last(t))
	}
	if len(d.CA.Issued) != 1 {
		t.Errorf("%d certificates", len(d.CA.Issued))
	}
}

// What asks too often is told to come later, and neither is that a failure of
// ours, nor does it keep others out.
func TestLimits(t *testing.T) {
	d := newDoor(t)
	config := d.Config
	devices := NewLimiter(time.Hour, 1)
	config.Admit = func(device board.DeviceID) error {
		if !devices.Allow(device.String(), time.Now()) {
			return ErrTooMany{"the device " + device.String()}
		}
		return nil
	}
	limited, err := issuer.New(config)
	if err != nil {
		t.Fatal(err)
	}
	h, err := NewHandler(HandlerConfig{
		Issuer: limited, New: issuertest.CAName, Proto: issuertest.CAName, Log: d.note, Challenges: issuertest.Challenges(t), Sources: NewLimiter(time.Hour, 4),
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, from string, c issuertest.CSR) int {
		r := httptest.NewRequest(method, path, nil)
		r.RemoteAddr = from
		if method == "POST" {
			r.Header.Set(HeaderCSR, c.Header(t))
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == 503 && w.Header().Get("Retry-After") != retryAfter {
			t.Error("no Retry-After")
		}
		return w.Code
	}
	thief := issuertest.NewBoard(t).CSR()
	thief.Subject[0] = issuertest.CN(d.Board.ID.String())
	for i, c := range []struct {
		method, from string
		csr          issuertest.CSR
		want         int
	}{
		{"POST", "192.0.2.1:1", thief, 403}, // who is refused does not use up what the device may ask
		{"POST", "192.0.2.1:2", d.Board.CSR(), 200},
		{"POST", "192.0.2.1:3", d.Board.CSR(), 200}, // the certificate that it has costs it nothing
		{"GET", "192.0.2.1:4", issuertest.CSR{}, 200},
		{"GET", "192.0.2.1:5", issuertest.CSR{}, 503}, // the source
		{"POST", "192.0.2.1:6", thief, 503},
		{"POST", "192.0.2.2:1", thief, 403},
		{"GET", "[2001:db8::1]:1", issuertest.CSR{}, 200},
		{"GET", "[2001:db8::2]:1", issuertest.CSR{}, 200},
		{"GET", "[2001:db8::3]:1", issuertest.CSR{}, 200},
		{"GET", "[2001:db8::4]:1", issuertest.CSR{}, 200},
		{"GET", "[2001:db8::5]:1", issuertest.CSR{}, 503}, // of one network
		{"GET", "[2001:db8:0:1::5]:1", issuertest.CSR{}, 200},
	} {
		path := map[string]string{"POST": "/new", "GET": "/challenge"}[c.method]
		if got := ask(c.method, path, c.from, c.csr); got != c.want {
			t.Errorf("request %d, of %s: %d, want %d", i, c.from, got, c.want)
		}
	}
	if s := h.Stats(); s.Limited != 3 || s.TryLater != 0 || !s.Failing.IsZero() {
		t.Errorf("%+v", s)
	}
	if _, ok := errors.AsType[ErrTooMany](d.last(t).Err); !ok {
		t.Errorf("logged %+v", d.last(t))
	}
}

// Whoever recorded a request and sends it again and again gets the certificate
// that the device has, and does not keep the device from renewing. What makes
// work is limited by device.
func TestReplayLocksNobodyOut(t *testing.T) {
	l := issuertest.NewRegisteredEnv(t, catest.Local(t))
	l.Policy.Validity, l.Policy.Renew = 30*24*time.Hour, 29*24*time.Hour
	l.Restart(t)
	asked := 0
	l.Config.Admit = func(board.DeviceID) error {
		if asked++; asked > 3 {
			return ErrTooMany{Who: "the device"}
		}
		return nil
	}
	var err error
	if l.Issuer, err = issuer.New(l.Config); err != nil {
		t.Fatal(err)
	}
	for range 15 {
		l.MustIssue(t, "")
	}
	l.Now = l.Now.Add(2 * 24 * time.Hour)
	l.MustIssue(t, l.Challenge())
	if asked != 2 {
		t.Errorf("%d requests were counted, want the first and the renewal", asked)
	}
	// A challenge that was used cannot be used up either.
	other := issuertest.NewBoard(t)
	l.Registry.Put(issuertest.Enrolment(t, other.Record(t, l.Station), l.Station))
	l.CA.Before = func() error { return issuertest.ErrInjected }
	for want := range 3 {
		_, err := l.Issuer.Issue(t.Context(), other.CSR().Request(t), issuertest.CAName)
		_, limited := errors.AsType[ErrTooMany](err)
		if err == nil || limited != (want > 0) {
			t.Errorf("request %d that fails at the CA: %v", want, err)
		}
	}
}

// A certificate is no good to a device that does not know where to go with it.
func TestEndpointIsAway(t *testing.T) {
	d := newDoor(t)
	var away error = issuertest.ErrInjected
	h, err := NewHandler(HandlerConfig{
		Issuer: d.Issuer, New: issuertest.CAName, Proto: issuertest.CAName, Log: d.note,
		Endpoint: func(context.Context) (string, error) { return "iot.example.com", away },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{503, 200} {
		r := httptest.NewRequest("POST", "/new", nil)
		r.Header.Set(HeaderCSR, d.Board.CSR().Header(t))
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%d, want %d: %s", w.Code, want, w.Body)
		}
		away = nil
	}
	if len(d.CA.Issued) != 1 {
		t.Errorf("%d certificates", len(d.CA.Issued))
	}
}

func TestSourceName(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.1:80": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "[2001:db8::1]:443": "2001:db8::/64",
		"2001:db8::1": "2001:db8::/64", "fe80::1%eth0": "fe80::/64", "": "unknown", "@": "unknown", "a, b": "unknown",
	} {
		if got := SourceName(address); got != want {
			t.Errorf("%q is %q, want %q", address, got, want)
		}
	}
}
