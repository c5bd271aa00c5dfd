package station

import (
	"bytes"
	"crypto/sha256"
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
	"unicode/utf8"

	"secretfree/station/auth"
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

// policy lets a page load what comes from the station itself, and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; " +
	"form-action 'self'; frame-ancestors 'none'"

// pages is what the handler of a station serves from.
type pages struct {
	*Station
	template *template.Template
	assets   assets
	made     []byte    // hash of all that is built in
	began    time.Time // what the times of events count from
}

// Handler serves the page (/), its events (/events), /status, /healthz, what
// the page needs (/assets/), and what changes something, /scan, /lot and
// /acknowledge, behind Guard. The server around it sets the time-outs and caps
// for requests, and one for writing an answer: the endless stream of events
// sets its own.
func (s *Station) Handler() http.Handler {
	return s.serveRoutes(s.routes())
}

// routes are all that the station answers, but for what cmd adds behind Guard.
func (s *Station) routes() []route {
	p, err := s.newPages()
	if err != nil {
		panic(fmt.Sprintf("the station's own page: %v", err)) // it is built in, so this is a bug
	}
	return append(s.historyRoutes(), []route{
		{"GET /{$}", auth.Viewer, p.servePage},
		{"GET /events", auth.Viewer, p.serveEvents},
		{"GET /assets/", auth.Viewer, p.assets.ServeHTTP},
		{"GET /status", auth.Viewer, func(w http.ResponseWriter, r *http.Request) {
			status, _ := s.snapshot(s.wordsFor(r))
			writeJSON(w, http.StatusOK, status)
		}},
		{"GET /healthz", auth.Nobody, s.serveHealth},
		{"GET /login", auth.Nobody, s.serveLogin},
		{"POST /login", auth.Nobody, s.loggingIn},
		{"POST /logout", auth.Nobody, s.loggingOut},
		{"POST /scan", auth.Technician, s.serveScan},
		{"POST /lot", auth.Technician, s.serveLot},
		{"POST /acknowledge", auth.Technician, s.serveAcknowledge},
		{"GET /boards.css", auth.Nobody, serveStyle},
	}...)
}

func (s *Station) newPages() (*pages, error) {
	files, err := loadAssets()
	if err != nil {
		return nil, err
	}
	t, err := template.New("page").Funcs(template.FuncMap{
		"asset":  files.address,
		"groups": groups,
		"spaced": Scanned.spaced,
		"choose": func(yes bool, one, other string) string {
			if yes {
				return one
			}
			return other
		},
		"clock": func(t time.Time) string { return t.Local().Format("15:04") },
	}).Parse(pageHTML)
	if err != nil {
		return nil, err
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%s%v", pageHTML, files.addresses) // maps print sorted
	for _, language := range Languages() {
		fmt.Fprintf(hash, "%v", s.languages[language].sentences)
	}
	return &pages{Station: s, template: t, assets: files, made: hash.Sum(nil), began: time.Now()}, nil
}

// build says whether a page that is open is of this program and of the settings
// of now.
func (p *pages) build() string {
	hash := sha256.Sum256(fmt.Appendf(nil, "%x%+v", p.made, p.settings.page))
	return fmt.Sprintf("%x", hash[:8])
}

// ownHost guards against DNS rebinding: a stranger's page can make its own name
// point here, but not an address or localhost.
func (s *Station) ownHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "localhost" || s.settings.hosts[host]
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

// serveHealth answers {"ok", "reasons"}: 200, or 503 when work is due and not
// moving. Who may not look gets no reasons.
func (s *Station) serveHealth(w http.ResponseWriter, r *http.Request) {
	code, reasons := http.StatusOK, []string{}
	if err := s.Health(); err != nil {
		code, reasons = http.StatusServiceUnavailable, strings.Split(err.Error(), "\n")
	}
	if roleOf(r) < auth.Viewer {
		reasons = []string{}
	}
	writeJSON(w, code, struct {
		OK      bool     `json:"ok"`
		Reasons []string `json:"reasons"`
	}{code == http.StatusOK, reasons})
}

// view is what the template of the page shows.
type view struct {
	Status
	Notices    []noticeView // with what the page needs besides
	Failing    []failing    // for the bar that stays in sight
	SKU        string
	Language   string // its code
	Native     string // its name in itself
	Languages  []language
	Catalogue  *catalogue
	Setup      setup
	Layout     string // classes
	Technician bool   // may scan
	Typing     bool   // a page of a form alone, for a browser without script: it does not load itself again
	Contacts   []string
	LogOut     bool // somebody is logged in
	Blank      noticeView
}

// Word is a sentence whose key is put together.
func (v view) Word(key string) string { return v.Catalogue.Say(messageKey(key)) }

type noticeView struct {
	Notice
	Key     string // the word, and which one it is of those with this word
	Summary string
}

type language struct{ Code, Name string }

// failing is a slot that shows FAIL.
type failing struct {
	Index int // its place on the page
	Name  string
}

// setup is what the script starts from.
type setup struct {
	Build      string            `json:"build"`
	Lang       string            `json:"lang"`
	Sound      bool              `json:"sound"`
	StaleAfter int64             `json:"staleAfter"` // ms
	Words      map[string]string `json:"words"`
}

func (p *pages) servePage(w http.ResponseWriter, r *http.Request) {
	c := p.wordsFor(r)
	status, _ := p.snapshot(c)
	settings := p.settings.page
	if r.URL.Query().Get("lang") == c.language { // chosen, and to be remembered
		http.SetCookie(w, &http.Cookie{
			Name: "lang", Value: c.language, Path: "/", MaxAge: 365 * 24 * 3600, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil, HttpOnly: true,
		})
	}
	v := view{
		Status: status, SKU: p.sku, Language: c.language, Native: c.Say("page-native"), Catalogue: c, Layout: c.layout(len(status.Slots)),
		Technician: roleOf(r) >= auth.Technician, LogOut: p.auth.Tokens != nil && roleOf(r) != auth.Nobody, Typing: r.URL.Query().Has("type"), Blank: noticeView{Summary: c.Say("page-detail")},
		Setup: setup{Build: p.build(), Lang: c.language, Sound: settings.Sound, StaleAfter: staleAfter.Milliseconds(), Words: map[string]string{}},
	}
	for _, key := range []string{
		"state-absent", "state-empty", "state-reading", "state-passed", "state-failed", "cloud-confirmed", "cloud-waiting", "cloud-rejected",
		"page-again", "page-lot", "page-lot-name", "page-scan-waits", "page-scan-waits-slot", "page-scan-read", "page-scan-lost", "page-told-passed", "page-told-failed",
		"page-sound-on", "page-sound-off", "page-sound-touch", "page-screen-full", "page-screen-leave",
	} {
		v.Setup.Words[key] = c.sentences[messageKey(key)] // with its places for arguments
	}
	for _, reason := range Reasons() {
		key := "reason-" + messageKey(reason)
		v.Setup.Words[string(key)] = c.sentences[key]
	}
	if v.Typing {
		v.Layout = "typing"
	}
	seen := map[string]int{}
	for _, n := range status.Notices {
		seen[n.Word]++
		v.Notices = append(v.Notices, noticeView{n, fmt.Sprintf("%s.%d", n.Word, seen[n.Word]), c.Say("page-detail")})
	}
	for i, slot := range status.Slots {
		if slot.State == Failed {
			v.Failing = append(v.Failing, failing{i, slot.Name})
		}
	}
	for _, code := range Languages() {
		v.Languages = append(v.Languages, language{code, p.languages[code].Say("page-native")})
	}
	if settings.ContactIT != "" {
		v.Contacts = append(v.Contacts, c.Say("contact-it", settings.ContactIT))
	}
	if settings.ContactQuality != "" {
		v.Contacts = append(v.Contacts, c.Say("contact-quality", settings.ContactQuality))
	}
	var b bytes.Buffer
	if err := p.template.Execute(&b, v); err != nil {
		p.log.Error().Err(err).Msg("rendering the page")
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	w.Write(b.Bytes())
}

// layout is how tiles are laid out and how large their words are: page.css has
// a class for each.
func (c *catalogue) layout(slots int) string {
	class := "many"
	for _, n := range []int{1, 2, 3, 4, 6, 8, 9, 12, 16} {
		if slots <= n {
			class = fmt.Sprintf("n%d", n)
			break
		}
	}
	if slots > 6 {
		class += " dense"
	}
	switch n := max(utf8.RuneCountInString(c.Say("state-passed")), utf8.RuneCountInString(c.Say("state-failed"))); {
	case n <= 4:
		class += " short"
	case n <= 6:
		class += " middling"
	}
	return class
}

// groups cuts a device id into fours, for people who compare it with a label.
func groups(id string) []string {
	var out []string
	for len(id) > 4 {
		out, id = append(out, id[:4]), id[4:]
	}
	return append(out, id)
}

// serveEvents sends the status whenever it changes, and as a heartbeat
// (text/event-stream, WHATWG HTML 9.2). A slow client gets the newest status,
// not every one. The id of an event is the build of the page, a dot, and ms
// since the handler was made: a page that slept can tell an event that waited
// for it from a new one. It ends with the client, with Run, or within a second
// when the client may not look any more.
func (p *pages) serveEvents(w http.ResponseWriter, r *http.Request) {
	select {
	case p.streams <- struct{}{}:
		defer func() { <-p.streams }()
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
	words := p.wordsFor(r)
	var last []byte
	var sent time.Time
	for p.auth.CurrentRole(r) >= auth.Viewer {
		status, changed := p.snapshot(words)
		data, err := json.Marshal(status)
		if err != nil {
			p.log.Error().Err(err).Msg("encoding the status")
			return
		}
		// At the next tick it could be too late.
		if !bytes.Equal(data, last) || time.Since(sent)+tick > heartbeat {
			if err := control.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				return
			}
			if _, err := fmt.Fprintf(w, "retry: 1000\nid: %s.%d\ndata: %s\n\n", p.build(), time.Since(p.began).Milliseconds(), data); err != nil {
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
		case <-p.stopping:
			return
		}
	}
}
