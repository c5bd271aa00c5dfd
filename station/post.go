package station

import (
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"secretfree/station/auth"
)

// serveScan takes the form fields text and slot; see Scan.
func (s *Station) serveScan(w http.ResponseWriter, r *http.Request) {
	refusal := func(err error) messageKey {
		if errors.Is(err, errPartial) {
			return "scan-partial"
		}
		return "scan-refused"
	}
	s.take(w, r, refusal, func(field func(string) string) error { return s.Scan(field("text"), field("slot")) })
}

// serveLot takes the form fields name and planned; see BeginLot. planned may be
// empty.
func (s *Station) serveLot(w http.ResponseWriter, r *http.Request) {
	s.take(w, r, func(error) messageKey { return "lot-refused" }, func(field func(string) string) error {
		planned := 0
		if text := strings.TrimSpace(field("planned")); text != "" {
			n, err := strconv.ParseUint(text, 10, 31)
			if err != nil {
				return errors.New("planned is no number of boards")
			}
			planned = int(n)
		}
		return s.BeginLot(strings.TrimSpace(field("name")), planned)
	})
}

// serveAcknowledge takes the form field slot; see Acknowledge.
func (s *Station) serveAcknowledge(w http.ResponseWriter, r *http.Request) {
	s.take(w, r, func(error) messageKey { return "acknowledge-refused" }, func(field func(string) string) error {
		slot := field("slot")
		err := s.Acknowledge(slot)
		if err == nil {
			s.log.Info().Str("slot", slot).Stringer("client", auth.ClientOf(r)).Msg("a leak is acknowledged on the page")
		}
		return err
	})
}

// take hands the fields of a form over. A browser without a script is sent back
// to the page; whoever accepts JSON gets 204. A form that is refused has 422
// and the sentence of its refusal; the log says more.
func (s *Station) take(w http.ResponseWriter, r *http.Request, refusal func(error) messageKey, do func(field func(string) string) error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		http.Error(w, "send a form (application/x-www-form-urlencoded)", http.StatusUnsupportedMediaType)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		code := http.StatusBadRequest
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "this form cannot be read", code)
		return
	}
	scripted := strings.Contains(r.Header.Get("Accept"), "application/json")
	if err := do(r.PostForm.Get); err != nil {
		s.log.Warn().Str("path", r.URL.Path).Err(err).Msg("what was sent is refused")
		word := refusal(err)
		text := s.wordsFor(r).Say(word)
		if !scripted {
			http.Error(w, text, http.StatusUnprocessableEntity)
			return
		}
		writeJSON(w, http.StatusUnprocessableEntity, struct {
			Word string `json:"word"`
			Text string `json:"text"`
		}{string(word), text})
		return
	}
	if scripted {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Location", "/")
	w.WriteHeader(http.StatusSeeOther)
}
