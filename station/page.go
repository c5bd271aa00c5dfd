package station

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

//go:embed page.html
var pageHTML string

const (
	maxStreams = 64              // event streams at once
	tick       = time.Second     // how often a stream looks for changes outside the slots
	heartbeat  = 3 * time.Second // a stream is never silent for longer
	staleAfter = 8 * time.Second // then the page takes the connection for lost
	writeLimit = 5 * time.Second // for one event; a client that is slower is dropped
)

// Handler serves the page (/), its events (/events), /status and /healthz, behind Guard. The server around it sets
// the time-outs and caps for requests, and one for writing an answer: the endless stream of events sets its own.
func (s *Station) Handler() http.Handler {
	page := template.Must(template.New("page").Funcs(template.FuncMap{
		"say":    func(key word) string { return say(key) },
		"groups": groups,
	}).Parse(pageHTML))
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { s.servePage(w, page) })
	mux.HandleFunc("/events", s.serveEvents)
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, s.Status()) })
	mux.HandleFunc("/healthz", s.serveHealth)
	return s.Guard(mux)
}

// Guard lets GET and HEAD through to next, and nobody who calls the station by a name that is not its own.
func (s *Station) Guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		case !s.ownHost(r.Host):
			http.Error(w, "open this page by its address or as localhost, or have its name added to the hosts of the station", http.StatusMisdirectedRequest)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// ownHost guards against DNS rebinding: a stranger's page can make its own name point here, but not an
// address or localhost.
func (s *Station) ownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "localhost" || s.hosts[host]
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(body, '\n')) // a client that went away is its own problem
}

// serveHealth answers {"ok", "reasons"}: 200, or 503 when work is due and not moving.
func (s *Station) serveHealth(w http.ResponseWriter, _ *http.Request) {
	code, reasons := http.StatusOK, []string{}
	if err := s.Health(); err != nil {
		code, reasons = http.StatusServiceUnavailable, strings.Split(err.Error(), "\n")
	}
	writeJSON(w, code, struct {
		OK      bool     `json:"ok"`
		Reasons []string `json:"reasons"`
	}{code == http.StatusOK, reasons})
}

func (s *Station) servePage(w http.ResponseWriter, page *template.Template) {
	words := map[string]string{}
	for _, key := range []word{"state-absent", "state-empty", "state-reading", "state-passed", "state-failed", "cloud-confirmed", "cloud-waiting"} {
		words[string(key)] = say(key)
	}
	nonce := rand.Text()
	var b bytes.Buffer
	err := page.Execute(&b, struct {
		Status
		SKU, Nonce string
		Words      map[string]string
		StaleAfter int64
	}{s.Status(), s.sku, nonce, words, staleAfter.Milliseconds()})
	if err != nil {
		s.log.Error().Err(err).Msg("rendering the page")
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; style-src 'nonce-%s'; script-src 'nonce-%[1]s'; connect-src 'self'; "+
		"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", nonce))
	w.Write(b.Bytes())
}

// groups cuts a device id into fours, for people who compare it with a label.
func groups(id string) []string {
	var out []string
	for len(id) > 4 {
		out, id = append(out, id[:4]), id[4:]
	}
	return append(out, id)
}

// serveEvents sends the status whenever it changes, and as a heartbeat (text/event-stream, WHATWG HTML 9.2). A slow client
// gets the newest status, not every one. It ends with the client or with Run.
func (s *Station) serveEvents(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		http.Error(w, "too many pages are open; close some", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	if r.Method == http.MethodHead {
		return
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var last []byte
	var sent time.Time
	for {
		status, changed := s.snapshot()
		data, err := json.Marshal(status)
		if err != nil {
			s.log.Error().Err(err).Msg("encoding the status")
			return
		}
		// At the next tick it could be too late.
		if !bytes.Equal(data, last) || time.Since(sent)+tick > heartbeat {
			if err := control.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return
			}
			if _, err := fmt.Fprintf(w, "retry: 1000\ndata: %s\n\n", data); err != nil {
				return
			}
			if err := control.Flush(); err != nil {
				return
			}
			last, sent = data, time.Now()
		}
		select {
		case <-changed:
		case <-ticker.C:
		case <-r.Context().Done():
			return
		case <-s.stopping:
			return
		}
	}
}
