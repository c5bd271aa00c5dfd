package issuer

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// BenchmarkUnknownOrWrongKey sets the answer to a request of a board that is not enrolled against that to a request with a wrong key
// for a board that is, over the HTTP handler with the registry in memory, in turn in one run. The ratio is unknown over
// wrong: 1 says that a stopwatch does not tell them apart.
func BenchmarkUnknownOrWrongKey(b *testing.B) {
	w := newWorld(b, localCA(b))
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
