package station

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/auth"
)

// tokenBurst is how many wrong tokens of one address package auth lets pass.
const tokenBurst = 5

const (
	viewToken = "view-token-0123456789"
	techToken = "tech-token-0123456789"
)

// doors are the kinds of addresses that a station listens on.
func doors() map[string]auth.Access {
	tokens := func() auth.Tokens { return auth.Tokens{View: viewToken, Technician: techToken} }
	secret := []byte("0123456789abcdef")
	return map[string]auth.Access{
		"loopback":             {},
		"loopback with tokens": {Tokens: tokens, Secret: secret},
		"TLS":                  {Network: true, Secure: true},
		"TLS with tokens":      {Network: true, Secure: true, Tokens: tokens, Secret: secret},
		"network with tokens":  {Network: true, Tokens: tokens, Secret: secret},
		"view token alone":     {Network: true, Tokens: func() auth.Tokens { return auth.Tokens{View: viewToken} }, Secret: secret},
		"no token is read":     {Network: true, Tokens: func() auth.Tokens { return auth.Tokens{} }, Secret: secret},
	}
}

func guarded(t *testing.T, a auth.Access) *testStation {
	p := &past{board: BoardHistory{Device: id(1)}}
	return shown(t, func(c *Config) { c.Access, c.History, c.Evidence = a, p, p }, slotState{state: Empty, advice: adviceEmpty})
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// Who has which role, on each kind of address.
func TestRoles(t *testing.T) {
	for name, want := range map[string][3]auth.Role{ // of who shows nothing, the viewers' token, the technicians' token
		"loopback":             {auth.Technician, auth.Technician, auth.Technician},
		"loopback with tokens": {auth.Nobody, auth.Viewer, auth.Technician},
		"TLS":                  {auth.Viewer, auth.Viewer, auth.Viewer},
		"TLS with tokens":      {auth.Nobody, auth.Viewer, auth.Technician},
		"network with tokens":  {auth.Nobody, auth.Viewer, auth.Technician},
		"view token alone":     {auth.Nobody, auth.Viewer, auth.Nobody},
		"no token is read":     {auth.Nobody, auth.Nobody, auth.Nobody},
	} {
		b := guarded(t, doors()[name])
		for i, change := range []func(*http.Request){func(*http.Request) {}, bearer(viewToken), bearer(techToken)} {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			change(r)
			if role, waits := b.auth.Role(r); role != want[i] || waits {
				t.Errorf("%s, %d: role %d, waits %v, want %d", name, i, role, waits, want[i])
			}
		}
		if name == "no token is read" {
			continue
		}
		for _, wrong := range []string{"", " ", viewToken + "x", viewToken[1:], "Bearer", strings.ToUpper(techToken), viewToken + " " + techToken} {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr = "192.0.2.77:5"
			bearer(wrong)(r)
			role, _ := guarded(t, doors()[name]).auth.Role(r)
			if doors()[name].Tokens != nil && role != auth.Nobody {
				t.Errorf("%s: %q has role %d", name, wrong, role)
			}
		}
	}
	short := auth.Access{Network: true, Tokens: func() auth.Tokens { return auth.Tokens{View: "short"} }, Secret: make([]byte, 16)}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	bearer("short")(r)
	if role, _ := guarded(t, short).auth.Role(r); role != auth.Nobody {
		t.Errorf("a token that is too short gives role %d", role)
	}
	if err := (auth.Access{Tokens: func() auth.Tokens { return auth.Tokens{} }, Secret: make([]byte, 15)}).Check(); err == nil || !strings.Contains(err.Error(), "want 16 or more") {
		t.Errorf("a short secret: %v", err)
	}
}

// Every route by every method of every role: what changes something is POST and
// for technicians; what is not for a role is refused by name.
func TestRoutesByRole(t *testing.T) {
	for name, access := range doors() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := guarded(t, access)
				whole := b.Handler()
				routes := append(b.routes(), route{"GET /nothing", auth.Viewer, nil})
				posts := map[string]bool{}
				for _, r := range routes {
					if method, path, _ := strings.Cut(r.pattern, " "); method == http.MethodPost {
						posts[path] = true
						if r.needs != auth.Technician && path != "/login" && path != "/logout" {
							t.Errorf("%s needs role %d, want that of a technician", r.pattern, r.needs)
						}
					} else if method != http.MethodGet {
						t.Errorf("%s: want GET or POST", r.pattern)
					}
				}
				for i, show := range []func(*http.Request){func(*http.Request) {}, bearer(viewToken), bearer(techToken)} {
					probe := httptest.NewRequest(http.MethodGet, "/", nil)
					show(probe)
					role, _ := b.auth.Role(probe)
					wrong := role == auth.Nobody && i > 0 // it shows a token that gives nothing
					for _, rt := range routes {
						registered, path, _ := strings.Cut(rt.pattern, " ")
						path = strings.NewReplacer("{$}", "", "{device}", id(1).String(), "{name}", "x.uart").Replace(path)
						for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, "BREW"} {
							if wrong && method != http.MethodHead {
								continue // one wrong token for each route is enough
							}
							h := whole
							if wrong {
								h = guarded(t, access).Handler() // where nobody has to wait yet
							}
							w := ask(h, method, path, show, func(r *http.Request) {
								ctx, cancel := context.WithTimeout(t.Context(), time.Second)
								t.Cleanup(cancel)
								*r = *r.WithContext(ctx)
							})
							reads := method == http.MethodGet || method == http.MethodHead
							switch {
							case !reads && (method != http.MethodPost || !posts[path]):
								if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
									t.Errorf("role %d: %s %s: %d %q", role, method, path, w.Code, w.Header().Get("Allow"))
								}
							case !reads && path != "/login" && path != "/logout" && role < auth.Technician, reads && registered == http.MethodGet && role < rt.needs:
								code, said := http.StatusForbidden, "technician's token"
								if role == auth.Nobody {
									code, said = http.StatusUnauthorized, "asks for a token"
								}
								if w.Code != code || !strings.Contains(w.Body.String(), said) {
									t.Errorf("role %d: %s %s: %d %s, want %d", role, method, path, w.Code, w.Body, code)
								}
							case w.Code == http.StatusUnauthorized && path != "/login", w.Code == http.StatusForbidden && path != "/login":
								if registered == http.MethodGet || !reads {
									t.Errorf("role %d: %s %s is refused: %d %s", role, method, path, w.Code, w.Body)
								}
							}
						}
					}
				}
			})
		})
	}
}

// No page of a stranger changes anything, whatever it calls itself.
func TestOtherOriginsAreRefused(t *testing.T) {
	b := guarded(t, doors()["loopback"])
	for name, c := range map[string]struct {
		header, value string
		code          int
	}{
		"another site":          {"Sec-Fetch-Site", "cross-site", 403},
		"another port":          {"Sec-Fetch-Site", "same-site", 403},
		"an old browser":        {"Origin", "http://evil.example", 403},
		"an old browser, null":  {"Origin", "null", 403},
		"the page":              {"Sec-Fetch-Site", "same-origin", 303},
		"the page, old browser": {"Origin", "http://127.0.0.1:8080", 303},
		"a program":             {"User-Agent", "curl", 303},
	} {
		w := ask(b.Handler(), http.MethodPost, "/logout", func(r *http.Request) { r.Header.Set(c.header, c.value) })
		if w.Code != c.code || c.code == 403 && !strings.Contains(w.Body.String(), "only pages of this station") {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func login(h http.Handler, token, next string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	return ask(h, http.MethodPost, "/login", append([]func(*http.Request){func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Body = io.NopCloser(strings.NewReader(url.Values{"token": {token}, "next": {next}}.Encode()))
	}}, change...)...)
}

// A log-in gives a cookie that is not the token, lasts for twelve hours, and
// ends by logging out or when the token is another.
func TestLogin(t *testing.T) { synctest.Test(t, testLogin) }

func testLogin(t *testing.T) {
	for _, kind := range []string{"TLS with tokens", "network with tokens"} {
		tokens := auth.Tokens{View: viewToken, Technician: techToken}
		access := doors()[kind]
		access.Tokens = func() auth.Tokens { return tokens }
		b := guarded(t, access)
		h := b.Handler()
		browser := func(r *http.Request) { r.Header.Set("Accept", "text/html,*/*") }
		w := ask(h, http.MethodGet, "/?lang=de", browser)
		if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login?lang=de&next=%2F%3Flang%3Dde" {
			t.Fatalf("a browser without a cookie: %d to %q", w.Code, w.Header().Get("Location"))
		}
		w = ask(h, http.MethodGet, w.Header().Get("Location"))
		if w.Code != 200 || !strings.Contains(w.Body.String(), `name="next" value="/?lang=de"`) || !strings.Contains(w.Body.String(), `<html lang="de">`) || w.Header().Get("Content-Security-Policy") != strictPolicy {
			t.Fatalf("the form: %d %v %s", w.Code, w.Header(), w.Body)
		}
		if w = login(h, "wrong-token-0123456789", "/"); w.Code != http.StatusUnauthorized || len(w.Result().Cookies()) > 0 || strings.Contains(w.Body.String(), "wrong-token") {
			t.Errorf("a wrong token: %d %s", w.Code, w.Body)
		}
		for i, token := range []string{viewToken, techToken} {
			w := login(h, " "+token+"\n", "/boards?q=1")
			cookies := w.Result().Cookies()
			if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/boards?q=1" || len(cookies) != 1 {
				t.Fatalf("logging in: %d %v", w.Code, w.Header())
			}
			c := cookies[0]
			if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Secure != access.Secure || c.MaxAge != 12*3600 || c.Path != "/" || strings.Contains(c.Value, token) {
				t.Errorf("the cookie is %v", c)
			}
			with := func(r *http.Request) { r.AddCookie(c) }
			role := func(h http.Handler) auth.Role {
				if ask(h, http.MethodGet, "/status", with).Code != 200 {
					return auth.Nobody
				}
				var found auth.Role
				probe := httptest.NewRequest(http.MethodGet, "/", nil)
				with(probe)
				found, _ = b.auth.Role(probe)
				return found
			}
			want := []auth.Role{auth.Viewer, auth.Technician}[i]
			if got := role(h); got != want {
				t.Errorf("after logging in: role %d, want %d", got, want)
			}
			restarted := guarded(t, access).Handler()
			if got := role(restarted); got != want {
				t.Errorf("after a restart: role %d, want %d", got, want)
			}
			other := access
			other.Secret = []byte("another secret, of 32 bytes ....")
			if w := ask(guarded(t, other).Handler(), http.MethodGet, "/status", with); w.Code != 401 {
				t.Errorf("on another station: %d", w.Code)
			}
			for at := range c.Value {
				forged := *c
				flip := byte('A')
				if c.Value[at] == flip {
					flip = 'B'
				}
				forged.Value = c.Value[:at] + string(flip) + c.Value[at+1:]
				if at == len(c.Value)-1 {
					continue // of its last character, some bits say nothing
				}
				if w := ask(h, http.MethodGet, "/status", func(r *http.Request) { r.AddCookie(&forged) }); w.Code != 401 {
					t.Fatalf("a cookie with another character at %d: %d", at, w.Code)
				}
			}
			old := tokens
			tokens = auth.Tokens{View: "view-token-is-another", Technician: "tech-token-is-another"}
			if got := role(h); got != auth.Nobody {
				t.Errorf("with other tokens: role %d", got)
			}
			tokens = old
			time.Sleep(12*time.Hour - time.Second)
			if got := role(h); got != want {
				t.Errorf("after almost 12 h: role %d", got)
			}
			time.Sleep(time.Second)
			if got := role(h); got != auth.Nobody {
				t.Errorf("after 12 h: role %d", got)
			}
		}
		c := login(h, techToken, "/").Result().Cookies()[0]
		w = ask(h, http.MethodPost, "/logout", func(r *http.Request) { r.AddCookie(c) })
		if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login" || w.Result().Cookies()[0].MaxAge >= 0 {
			t.Errorf("logging out: %d %v", w.Code, w.Header())
		}
		if w := ask(h, http.MethodGet, "/status", func(r *http.Request) { r.AddCookie(c) }); w.Code != 401 {
			t.Errorf("after logging out the cookie holds: %d", w.Code)
		}
		if logged := b.logged(); strings.Contains(logged, "token-0123456789") || !strings.Contains(logged, "a wrong token was shown") {
			t.Errorf("the log:\n%s", logged)
		}
	}
}

// An open stream of events ends when what opened it holds no more: a log-out,
// another token, the end of a log-in. It counts as no wrong token.
func TestEventsEndWithTheRole(t *testing.T) {
	for name, end := range map[string]func(b *testStation, tokens *atomic.Pointer[auth.Tokens], cookie *http.Cookie){
		"log-out": func(b *testStation, _ *atomic.Pointer[auth.Tokens], cookie *http.Cookie) {
			ask(b.Handler(), http.MethodPost, "/logout", func(r *http.Request) { r.AddCookie(cookie) })
		},
		"another token": func(_ *testStation, tokens *atomic.Pointer[auth.Tokens], _ *http.Cookie) {
			tokens.Store(&auth.Tokens{View: "view-token-is-another", Technician: "tech-token-is-another"})
		},
		"12 h": func(*testStation, *atomic.Pointer[auth.Tokens], *http.Cookie) {},
	} {
		for _, by := range []string{"cookie", "header"} {
			if by == "header" && name != "another token" {
				continue
			}
			bubble(t, name+" by "+by, func(t *testing.T) {
				var tokens atomic.Pointer[auth.Tokens]
				tokens.Store(&auth.Tokens{View: viewToken, Technician: techToken})
				access := doors()["network with tokens"]
				access.Tokens = func() auth.Tokens { return *tokens.Load() }
				b := newTestStation(t, 1, func(c *Config) { c.Access = access }).run()
				b.await(0, Empty)
				cookie := login(b.Handler(), viewToken, "/").Result().Cookies()[0]
				header := "Cookie: " + cookie.Name + "=" + cookie.Value + "\r\n"
				if by == "header" {
					header = "Authorization: Bearer " + viewToken + "\r\n"
				}
				loggedIn := time.Now()
				if name == "12 h" {
					time.Sleep(auth.SessionLimit - time.Minute)
				}
				stream := b.site().eventsFor(header)
				for range 3 {
					stream.want(heartbeat, "an event", slotIs(0, Empty))
				}
				end(b, &tokens, cookie)
				ended := time.Now()
				if name == "12 h" {
					ended = loggedIn.Add(auth.SessionLimit)
				}
				for {
					_, _, err := stream.next()
					if err == io.EOF && time.Since(ended) <= tick && time.Since(ended) >= 0 {
						break
					}
					if err != nil || time.Since(ended) > tick {
						t.Fatalf("%v after the end: %v", time.Since(ended), err)
					}
				}
			})
		}
	}
}

// Nobody is sent to another place after logging in.
func TestLocalPath(t *testing.T) {
	for next, want := range map[string]string{
		"/": "/", "/boards?q=ab&lang=de": "/boards?q=ab&lang=de", "": "/", "boards": "/", "//evil.example": "/", "http://evil.example/": "/", "/\\evil.example": "/",
		"\\\\evil.example": "/", "javascript:alert(1)": "/", "/a\r\nSet-Cookie: x": "/", "/ b": "/", "/" + strings.Repeat("x", 2000): "/", "///evil.example": "/", "/%zz": "/",
	} {
		if got := localPath(next); got != want {
			t.Errorf("%q: %q, want %q", next, got, want)
		}
	}
}

// After a few wrong tokens even a right one has to wait, with the same answer;
// a log-in goes on, and so does who comes from elsewhere.
func TestWrongTokensAreLimited(t *testing.T) { synctest.Test(t, testWrongTokens) }

func testWrongTokens(t *testing.T) {
	b := guarded(t, doors()["network with tokens"])
	h := b.Handler()
	from := func(address string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = address } }
	cookie := login(h, techToken, "/", from("192.0.2.1:1")).Result().Cookies()[0]
	guesses := 0
	guess := func() string {
		guesses++
		return fmt.Sprintf("guess-0123456789-%d", guesses)
	}
	for i := range tokenBurst {
		if w := ask(h, http.MethodGet, "/status", bearer(guess()), from("192.0.2.1:1")); w.Code != 401 {
			t.Fatalf("guess %d: %d", i, w.Code)
		}
	}
	wrong := ask(h, http.MethodGet, "/status", bearer(guess()), from("192.0.2.1:2"))
	right := ask(h, http.MethodGet, "/status", bearer(techToken), from("192.0.2.1:3"))
	if wrong.Code != 429 || right.Code != 429 || wrong.Body.String() != right.Body.String() || right.Header().Get("Retry-After") == "" {
		t.Errorf("too many: %d %s and %d %s", wrong.Code, wrong.Body, right.Code, right.Body)
	}
	// The form has guesses of its own.
	if w := login(h, techToken, "/", from("192.0.2.1:4")); w.Code != http.StatusSeeOther {
		t.Errorf("the form: %d", w.Code)
	}
	for range tokenBurst {
		login(h, guess(), "/", from("192.0.2.1:4"))
	}
	if w := login(h, techToken, "/", from("192.0.2.1:4")); w.Code != 429 {
		t.Errorf("the form after guesses: %d", w.Code)
	}
	if w := ask(h, http.MethodGet, "/status", from("192.0.2.1:4"), func(r *http.Request) { r.AddCookie(cookie) }); w.Code != 200 {
		t.Errorf("a log-in from that address: %d", w.Code)
	}
	if w := ask(h, http.MethodGet, "/status", bearer(viewToken), from("192.0.2.2:1")); w.Code != 200 {
		t.Errorf("another address: %d", w.Code)
	}
	time.Sleep(time.Minute)
	if w := ask(h, http.MethodGet, "/status", bearer(techToken), from("192.0.2.1:5")); w.Code != 200 {
		t.Errorf("a moment later: %d", w.Code)
	}
	// Many addresses together, each with few guesses; the map of addresses
	// stays small.
	limited := 0
	for i := range 5000 {
		w := ask(h, http.MethodGet, "/status", bearer(guess()), from(fmt.Sprintf("[2001:db8:%x::1]:1", i)))
		if w.Code == 429 {
			limited++
		}
	}
	if limited < 4900 {
		t.Errorf("%d of 5000 guesses were limited", limited)
	}
	if w := ask(h, http.MethodGet, "/status", bearer(viewToken), from("192.0.2.2:1")); w.Code != 200 {
		t.Errorf("who has shown a right token is locked out: %d", w.Code)
	}
	if w := ask(h, http.MethodGet, "/status", bearer(viewToken), from("192.0.2.9:1")); w.Code != 429 {
		t.Errorf("a stranger with a right token, meanwhile: %d", w.Code)
	}
}

// A program that goes on showing an old token guesses nothing: neither it nor
// who logs in at the same address has to wait.
func TestOldTokenIsNoGuess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := guarded(t, doors()["loopback with tokens"])
		h := b.Handler()
		for i := range 1000 {
			if w := ask(h, http.MethodGet, "/metrics", bearer("view-token-of-last-year")); w.Code != 401 {
				t.Fatalf("scrape %d: %d", i, w.Code)
			}
			if w := ask(h, http.MethodGet, "/metrics", bearer("view-token-of-another")); w.Code != 401 {
				t.Fatalf("another's scrape %d: %d", i, w.Code)
			}
		}
		if w := ask(h, http.MethodGet, "/status", bearer(techToken)); w.Code != 200 {
			t.Errorf("a right token: %d", w.Code)
		}
		if w := login(h, techToken, "/"); w.Code != http.StatusSeeOther {
			t.Errorf("logging in: %d", w.Code)
		}
	})
}

// A load balancer learns whether all is well, and no more.
func TestHealthzWithoutToken(t *testing.T) {
	b := guarded(t, doors()["TLS with tokens"])
	b.refused = ReasonDiskFull
	h := b.Handler()
	if w := ask(h, http.MethodGet, "/healthz"); w.Code != 503 || w.Body.String() != `{"ok":false,"reasons":[]}`+"\n" {
		t.Errorf("without a token: %d %s", w.Code, w.Body)
	}
	if w := ask(h, http.MethodGet, "/healthz", bearer(viewToken)); w.Code != 503 || !strings.Contains(w.Body.String(), "disk-full") {
		t.Errorf("with a token: %d %s", w.Code, w.Body)
	}
	if w := ask(h, http.MethodGet, "/healthz", bearer(viewToken+"x")); w.Body.String() != `{"ok":false,"reasons":[]}`+"\n" {
		t.Errorf("with a wrong token: %d %s", w.Code, w.Body)
	}
}

// What cmd puts behind Guard is for who may look.
func TestGuardAsksForTheRole(t *testing.T) {
	b := guarded(t, doors()["TLS with tokens"])
	h := b.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "metrics") }))
	for token, want := range map[string]int{"": 401, viewToken: 200, techToken: 200, "guess-0123456789abc": 401} {
		if w := ask(h, http.MethodGet, "/metrics", func(r *http.Request) {
			if token != "" {
				bearer(token)(r)
			}
		}); w.Code != want {
			t.Errorf("%q: %d, want %d", token, w.Code, want)
		}
	}
	if w := ask(h, http.MethodPost, "/metrics", bearer(techToken)); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
}

// No route changes anything when it is got, whatever stands in its query: what
// the station shows is the same afterwards.
func TestGetChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := guarded(t, auth.Access{})
		h := b.Handler()
		shows := func() string {
			text, err := json.Marshal(b.Status())
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		before := shows()
		for _, r := range b.routes() {
			_, path, _ := strings.Cut(r.pattern, " ")
			path = strings.NewReplacer("{$}", "", "{device}", id(1).String(), "{name}", "x.uart").Replace(path)
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				ask(h, method, path+"?text=4d1f8e27b3c05a9e61f2d47788aabbcc&name=WO-1&planned=5&action=start&slot=A&token=x", func(r *http.Request) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					t.Cleanup(cancel)
					*r = *r.WithContext(ctx)
				})
				if after := shows(); after != before {
					t.Fatalf("%s %s changes %s to %s", method, path, before, after)
				}
			}
		}
		// The same station does change by POST: the comparison can see it.
		w := ask(h, http.MethodPost, "/lot", func(r *http.Request) {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Body = io.NopCloser(strings.NewReader("name=WO-1&planned=5"))
		})
		if after := shows(); after == before {
			t.Errorf("POST /lot changes nothing: %d %s", w.Code, w.Body)
		}
	})
}
