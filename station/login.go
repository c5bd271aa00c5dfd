package station

import (
	"bytes"
	_ "embed"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"secretfree/station/auth"
)

//go:embed login.html
var loginHTML string

//go:embed boards.css
var boardsCSS []byte

// strictPolicy is the Content-Security-Policy of pages that need no script.
const strictPolicy = "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// maxForm caps a form, in bytes.
const maxForm = 4 << 10

func toLogin(w http.ResponseWriter, r *http.Request) {
	q := url.Values{"next": {localPath(r.URL.RequestURI())}}
	if lang := r.URL.Query().Get("lang"); lang != "" {
		q.Set("lang", lang)
	}
	http.Redirect(w, r, "/login?"+q.Encode(), http.StatusSeeOther)
}

// localPath is a path on this station, or / if it is something else: nobody is
// sent elsewhere after logging in.
func localPath(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") ||
		len(next) > 1024 || strings.ContainsAny(next, "\\") || strings.ContainsFunc(next, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "/"
	}
	return next
}

// serveLogin shows the form.
func (s *Station) serveLogin(w http.ResponseWriter, r *http.Request) {
	next := localPath(r.URL.Query().Get("next"))
	if s.auth.Tokens == nil {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	s.loginPage(w, r, http.StatusOK, next, "")
}

func (s *Station) loginPage(w http.ResponseWriter, r *http.Request, code int, next string, problem messageKey) {
	words := s.wordsFor(r)
	s.remember(w, r, words)
	data := struct {
		*catalogue
		Station, Lang, Next, Problem string
	}{words, s.name, words.language, next, ""}
	if problem != "" {
		data.Problem = words.Say(problem)
	}
	s.render(w, code, loginPage, data)
}

// remember keeps the language that a query chose, for the pages that are opened
// next.
func (s *Station) remember(w http.ResponseWriter, r *http.Request, words *catalogue) {
	if r.URL.Query().Get("lang") == words.language {
		http.SetCookie(w, &http.Cookie{Name: "lang", Value: words.language, Path: "/", MaxAge: 365 * 24 * 3600, HttpOnly: true, Secure: s.auth.Secure, SameSite: http.SameSiteStrictMode})
	}
}

// render shows a page that needs no script.
func (s *Station) render(w http.ResponseWriter, code int, page *template.Template, data any) {
	var b bytes.Buffer
	if err := page.Execute(&b, data); err != nil {
		s.log.Error().Err(err).Str("page", page.Name()).Msg("rendering a page")
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", strictPolicy)
	w.WriteHeader(code)
	w.Write(b.Bytes())
}

func serveStyle(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Write(boardsCSS)
}

// loggingIn takes the form: who shows a token gets a cookie that stands for its
// role.
func (s *Station) loggingIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	next := localPath(r.PostForm.Get("next"))
	if s.auth.Tokens == nil {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	role, waits := s.auth.Authenticate(r, strings.TrimSpace(r.PostForm.Get("token")), auth.ByForm)
	switch {
	case waits:
		w.Header().Set("Retry-After", "60")
		s.loginPage(w, r, http.StatusTooManyRequests, next, "login-wait")
		return
	case role == auth.Nobody:
		s.log.Warn().Stringer("client", auth.ClientOf(r)).Msg("a wrong token was shown")
		s.loginPage(w, r, http.StatusUnauthorized, next, "login-wrong")
		return
	}
	http.SetCookie(w, s.auth.Cookie(s.auth.NewSession(role, time.Now()), int(auth.SessionLimit/time.Second)))
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// loggingOut ends a log-in.
func (s *Station) loggingOut(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(s.auth.CookieName()); err == nil && s.auth.Tokens != nil {
		s.auth.Revoke(cookie.Value, time.Now())
	}
	http.SetCookie(w, s.auth.Cookie("", -1))
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

var loginPage = template.Must(template.New("login").Parse(loginHTML))
