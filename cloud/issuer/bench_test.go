package issuer

import (
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"secretfree/station/board"
)

// BenchmarkFirstIssue sets the first certificate of a fresh device, from the bytes of its request on and without HTTP, against the least that must be done for
// it: parse the request, check its signature, open the envelope, and sign. What is on top is the decision, among it the
// signatures of the factory's proof, and the check of what the CA returned, with its chain. The registry and the
// claims are in memory. The ratio is our time over the other: 1 is the best.
func BenchmarkFirstIssue(b *testing.B) {
	w := newWorld(b)
	ca := localCA(b)
	var ours, bare time.Duration
	for b.Loop() {
		b.StopTimer()
		device := newSimulated(b)
		item := enrolment(b, device.record(b, w.station), w.station)
		w.registry.put(item)
		der := device.csr().der(b)
		b.StartTimer()

		start := time.Now()
		request, err := ParseRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		issued, err := w.issuer.Issue(b.Context(), request, testCA)
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)

		b.StopTimer()
		leaf, err := x509.ParseCertificate(issued.Leaf)
		if err != nil {
			b.Fatal(err)
		}
		claim := Claim{Serial: Serial(leaf.SerialNumber.FillBytes(make([]byte, 16))), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
		template := Approved{device: device.id, key: item.Key}.template(claim)
		b.StartTimer()

		start = time.Now()
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			b.Fatal(err)
		}
		if err := csr.CheckSignature(); err != nil {
			b.Fatal(err)
		}
		if _, err := board.OpenEnvelope(item.Envelope, w.station.verifier); err != nil {
			b.Fatal(err)
		}
		if _, err := x509.CreateCertificate(nil, template, ca.issuing, csr.PublicKey, ca.key); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(start)
	}
	b.ReportMetric(float64(ours)/float64(bare), "times-bare")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "issue-µs")
}

// BenchmarkUnknownOrWrongKey sets the answer to a request of a board that is not enrolled against that to a request with a wrong key
// for a board that is, over the HTTP handler with the registry in memory, in turn in one run. The ratio is unknown over
// wrong: 1 says that a stopwatch does not tell them apart.
func BenchmarkUnknownOrWrongKey(b *testing.B) {
	w := newWorld(b)
	h, err := NewHandler(HandlerConfig{Issuer: w.issuer, New: testCA, Proto: testCA})
	if err != nil {
		b.Fatal(err)
	}
	stranger := newSimulated(b)
	unknown, wrong := stranger.csr(), stranger.csr()
	wrong.subject = w.board.csr().subject
	var took [2]time.Duration
	values := [2]string{unknown.header(b), wrong.header(b)}
	for i := 0; b.Loop(); i++ {
		for turn := range values {
			which := (turn + i) % 2 // each is as often the first
			request := httptest.NewRequest("POST", "/new", nil)
			request.Header.Set(HeaderCSR, values[which])
			answer := httptest.NewRecorder()
			start := time.Now()
			h.ServeHTTP(answer, request)
			took[which] += time.Since(start)
			if answer.Code != http.StatusForbidden {
				b.Fatal(answer.Code, answer.Body)
			}
		}
	}
	if s := h.Stats().Refused; s[NotEnrolled] == 0 || s[NotEnrolled] != s[KeyMismatch] {
		b.Fatal(s)
	}
	b.ReportMetric(float64(took[0])/float64(took[1]), "ratio")
	b.ReportMetric(float64(took[1].Microseconds())/float64(b.N), "wrong-µs/op")
}
