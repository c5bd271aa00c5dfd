package cloud

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The registry's clock is known after any answer, also one that refuses.
func TestServerTime(t *testing.T) {
	setAWSEnv(t)
	date := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if date != "" {
			w.Header().Set("Date", date)
		} else {
			w.Header()["Date"] = nil
		}
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	a := onceAWS(t, server.URL, server.URL)
	put := func() {
		if err := a.Put(t.Context(), sealed(t, 1, 1)); err == nil {
			t.Fatal("a server that refuses everything has taken a record")
		}
	}
	for _, unknown := range []string{"", "yesterday", "2026-11-29T12:00:00Z"} {
		date = unknown
		put()
		if got, _, ok := a.ServerTime(); ok {
			t.Errorf("the date %q is %v", unknown, got)
		}
	}
	want := time.Date(2031, time.May, 4, 3, 2, 1, 0, time.UTC)
	date = want.Format(http.TimeFormat)
	before := time.Now()
	put()
	if got, at, ok := a.ServerTime(); !ok || !got.Equal(want) || at.Before(before) || time.Since(at) < 0 {
		t.Errorf("%v at %v, %v", got, at, ok)
	}
	date = ""
	put()
	if got, _, ok := a.ServerTime(); !ok || !got.Equal(want) {
		t.Errorf("an answer without a date: %v, %v", got, ok)
	}
}
