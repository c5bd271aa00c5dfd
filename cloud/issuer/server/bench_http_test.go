package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
)

// BenchmarkUnknownOrWrongKey sets the answer to a request of a board that is
// not enrolled against that to a request with a wrong key for a board that is,
// over the HTTP handler with the registry in memory, in turn in one run. The
// ratio is unknown over wrong: 1 says that a stopwatch does not tell them
// apart.
func BenchmarkUnknownOrWrongKey(b *testing.B) {
	w := issuertest.NewEnv(b, catest.Local(b))
	h, err := NewHandler(HandlerConfig{Issuer: w.Issuer, New: issuertest.CAName, Proto: issuertest.CAName})
	if err != nil {
		b.Fatal(err)
	}
	stranger := issuertest.NewBoard(b)
	unknown, wrong := stranger.CSR(), stranger.CSR()
	wrong.Subject = w.Board.CSR().Subject
	var took [2]time.Duration
	values := [2]string{unknown.Header(b), wrong.Header(b)}
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
	if s := h.Stats().Refused; s[issuer.NotEnrolled] == 0 || s[issuer.NotEnrolled] != s[issuer.KeyMismatch] {
		b.Fatal(s)
	}
	b.ReportMetric(float64(took[0])/float64(took[1]), "ratio")
	b.ReportMetric(float64(took[1].Microseconds())/float64(b.N), "wrong-µs/op")
}
