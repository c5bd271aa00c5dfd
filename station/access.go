package station

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Role is what somebody may do. Each may do what those before it may.
type Role int

// The roles.
const (
	Nobody     Role = iota
	Viewer          // may look
	Technician      // may change something
)

// MinToken and MaxToken are how long a token is, in bytes.
const (
	MinToken = 16
	MaxToken = 512
)

// Tokens are what somebody shows to have a role. One that is empty gives nobody
// its role.
type Tokens struct{ View, Technician string }

// Access says who may look at the page, and who may change something by it. The
// zero value is for an address that only this machine reaches: everybody there
// is a technician.
type Access struct {
	// Network: others reach the address. Without tokens everybody is a viewer
	// there, and nobody a technician.
	Network bool
	// Secure: the page is served by TLS, so that the cookie of a log-in may
	// insist on it.
	Secure bool
	// Tokens, if not nil, gives the tokens that hold now; then who shows none
	// of them has no role, on loopback too: behind a proxy on this machine
	// everybody comes from there. It is called for each request and must be
	// quick.
	Tokens func() Tokens
	// Secret signs the cookies of log-ins, at least 16 random bytes if there
	// are tokens. With the same secret and the same tokens a log-in survives a
	// restart.
	Secret []byte
}

func (a Access) check() error {
	if a.Tokens != nil && len(a.Secret) < 16 {
		return fmt.Errorf("making a station: Access.Secret has %d bytes, want 16 or more", len(a.Secret))
	}
	return nil
}

const (
	sessionLimit = 12 * time.Hour
	maxRevoked   = 1024 // log-ins that were ended and would hold otherwise
	maxAddresses = 1024 // that showed a token lately
	wrongBurst   = 5    // wrong tokens of one address at once
	wrongEvery   = 10 * time.Second
	allBurst     = 60 // wrong tokens of all addresses at once
	allEvery     = time.Second
	maxSame      = 4 // wrong tokens of an address that count once, however often they are shown
)

// authenticator tells who somebody is.
type authenticator struct {
	Access
	origin http.CrossOriginProtection

	mu        sync.Mutex
	revoked   map[[sessionNonce]byte]time.Time // until when they would hold
	addresses map[clientKey]*clientLimiter
	crowd     [ways]*clientLimiter // all for which there was no room in addresses
	all       *rate.Limiter        // of wrong tokens
}

// way is how a token is shown. A program with an old token keeps nobody at the
// same address from logging in.
type way int

const (
	byHeader way = iota
	byForm
	ways
)

// clientKey is an address and a way.
type clientKey struct {
	from netip.Addr
	way  way
}

// clientLimiter is an address that showed a token in one way.
type clientLimiter struct {
	wrong *rate.Limiter
	good  bool     // it has shown a right one
	shown [][]byte // hashes of the wrong ones that came last, the newest first: who shows one again learns nothing
}

// seenBefore tells whether a wrong token was shown lately, and takes note of
// it.
func (v *clientLimiter) seenBefore(hash []byte) bool {
	i := slices.IndexFunc(v.shown, func(h []byte) bool { return hmac.Equal(h, hash) })
	if i < 0 {
		v.shown = slices.Insert(v.shown, 0, hash)
		v.shown = v.shown[:min(len(v.shown), maxSame)]
	}
	return i >= 0
}

func newClientLimiter() *clientLimiter {
	return &clientLimiter{wrong: rate.NewLimiter(rate.Every(wrongEvery), wrongBurst)}
}

func newAuthenticator(a Access) *authenticator {
	return &authenticator{Access: a, revoked: map[[sessionNonce]byte]time.Time{}, addresses: map[clientKey]*clientLimiter{}, crowd: [ways]*clientLimiter{newClientLimiter(), newClientLimiter()},
		all: rate.NewLimiter(rate.Every(allEvery), allBurst)}
}

// role is who sends a request. waits: too many wrong tokens were shown, and no
// token is looked at for a moment; a log-in holds on.
func (d *authenticator) role(r *http.Request) (role Role, waits bool) {
	if d.Tokens == nil {
		if d.Network {
			return Viewer, false
		}
		return Technician, false
	}
	if token, ok := bearerOf(r); ok {
		return d.authenticate(r, token, byHeader)
	}
	if cookie, err := r.Cookie(d.cookieName()); err == nil {
		return d.session(cookie.Value, time.Now()), false
	}
	return Nobody, false
}

func bearerOf(r *http.Request) (token string, ok bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// currentRole is who sent a request that is being answered for long: what a
// log-out, or other tokens, took away meanwhile is gone. It counts no wrong
// token.
func (d *authenticator) currentRole(r *http.Request) Role {
	if token, ok := bearerOf(r); ok && d.Tokens != nil {
		return d.roleOfToken(token)
	}
	role, _ := d.role(r)
	return role
}

// authenticate says what role a token gives. All comparisons take the same
// time, and a right token is refused like a wrong one while its address has to
// wait.
func (d *authenticator) authenticate(r *http.Request, token string, by way) (role Role, waits bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.limiter(clientKey{clientOf(r), by})
	// Strangers cannot lock out who has shown a right token.
	if v.wrong.Tokens() < 1 || !v.good && d.all.Tokens() < 1 {
		return Nobody, true
	}
	if role = d.roleOfToken(token); role == Nobody {
		if !v.seenBefore(d.hash(token)) {
			v.wrong.Allow()
			d.all.Allow()
		}
		return Nobody, false
	}
	v.good = true
	return role, false
}

func (d *authenticator) roleOfToken(token string) Role {
	valid, role := d.Tokens(), Nobody
	if same(token, valid.View) {
		role = Viewer
	}
	if same(token, valid.Technician) {
		role = Technician
	}
	return role
}

func same(shown, valid string) bool {
	a, b := sha256.Sum256([]byte(shown)), sha256.Sum256([]byte(valid))
	return subtle.ConstantTimeCompare(a[:], b[:])&subtle.ConstantTimeLessOrEq(MinToken, len(valid)) == 1
}

// hash is what is remembered of a wrong token: it may be a right one of
// elsewhere.
func (d *authenticator) hash(token string) []byte {
	h := hmac.New(sha256.New, d.Secret)
	fmt.Fprintf(h, "secretfree wrong token %s", token)
	return h.Sum(nil)
}

// limiter is who comes from an address in a way. The caller holds mu.
func (d *authenticator) limiter(from clientKey) *clientLimiter {
	if v := d.addresses[from]; v != nil {
		return v
	}
	if len(d.addresses) >= maxAddresses {
		for address, v := range d.addresses {
			if !v.good && v.wrong.Tokens() >= wrongBurst {
				delete(d.addresses, address)
			}
		}
	}
	if len(d.addresses) >= maxAddresses {
		return d.crowd[from.way]
	}
	v := newClientLimiter()
	d.addresses[from] = v
	return v
}

// clientOf is the address that a request came from; of IPv6 the network, since
// a machine has as many addresses there as it likes.
func clientOf(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	a := at.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

// A session is the value of a log-in's cookie: base64 of when it ends (Unix
// seconds, 8 bytes), the role (1), a nonce, and an HMAC of these whose key
// follows from the secret and the token of the role: another token ends it.
const (
	sessionNonce = 16
	sessionHead  = 8 + 1 + sessionNonce
)

func (d *authenticator) cookieName() string {
	if d.Secure {
		return "__Host-stationd"
	}
	return "stationd"
}

func (d *authenticator) mac(role Role, head []byte) []byte {
	token := d.Tokens().View
	if role == Technician {
		token = d.Tokens().Technician
	}
	key := hmac.New(sha256.New, d.Secret)
	fmt.Fprintf(key, "secretfree log-in %d %s", role, token)
	h := hmac.New(sha256.New, key.Sum(nil))
	h.Write(head)
	return h.Sum(nil)
}

func (d *authenticator) newSession(role Role, now time.Time) string {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, sessionHead), uint64(now.Add(sessionLimit).Unix()))
	head = append(head, byte(role))
	head = append(head, make([]byte, sessionNonce)...)
	rand.Read(head[9:])
	return base64.RawURLEncoding.EncodeToString(append(head, d.mac(role, head)...))
}

// openSession checks a cookie; ok is false if it gives nothing.
func (d *authenticator) openSession(value string, now time.Time) (role Role, nonce [sessionNonce]byte, end time.Time, ok bool) {
	data, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil || len(data) != sessionHead+sha256.Size {
		return Nobody, nonce, end, false
	}
	head, mac := data[:sessionHead], data[sessionHead:]
	role = Role(head[8])
	if role != Viewer && role != Technician || !hmac.Equal(mac, d.mac(role, head)) {
		return Nobody, nonce, end, false
	}
	copy(nonce[:], head[9:])
	end = time.Unix(int64(binary.BigEndian.Uint64(head)), 0)
	// The end is bounded by now too: a clock that was set back makes no log-in
	// longer.
	return role, nonce, end, now.Before(end) && end.Sub(now) <= sessionLimit
}

func (d *authenticator) session(value string, now time.Time) Role {
	role, nonce, _, ok := d.openSession(value, now)
	if !ok {
		return Nobody
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ended := d.revoked[nonce]; ended {
		return Nobody
	}
	return role
}

// revoke ends a log-in for as long as this process runs; the browser forgets it
// anyhow.
func (d *authenticator) revoke(value string, now time.Time) {
	_, nonce, end, ok := d.openSession(value, now)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.revoked) >= maxRevoked {
		for n, until := range d.revoked {
			if until.Before(now) || len(d.revoked) >= maxRevoked {
				delete(d.revoked, n)
			}
		}
	}
	d.revoked[nonce] = end
}

type roleKey struct{}

// roleOf is who sends a request that came through guard.
func roleOf(r *http.Request) Role {
	role, _ := r.Context().Value(roleKey{}).(Role)
	return role
}

// accessControl is what every request passes: nobody calls the station by a
// name that is not its own, only GET and HEAD, and POST where posts tells that
// there is something to be changed, only from the station's own pages. Then it
// finds out who it is.
func (s *Station) accessControl(posts func(*http.Request) bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin") // with no-referrer a form of our own has no origin
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method == http.MethodPost && posts(r):
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		if !s.ownHost(r.Host) {
			http.Error(w, "open this page by its address or as localhost, or have its name added to the hosts of the station", http.StatusMisdirectedRequest)
			return
		}
		if err := s.auth.origin.Check(r); err != nil {
			http.Error(w, "only pages of this station may change something", http.StatusForbidden)
			return
		}
		role, waits := s.auth.role(r)
		if waits {
			tooMany(w)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), roleKey{}, role)))
	})
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "60")
	http.Error(w, "too many wrong tokens; wait for a minute", http.StatusTooManyRequests)
}

// admit lets through who has a role.
func (s *Station) admit(needs Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch role := roleOf(r); {
		case role >= needs:
			next.ServeHTTP(w, r)
		case role != Nobody || s.auth.Tokens == nil:
			http.Error(w, "you may look at this station and change nothing: that takes the technician's token", http.StatusForbidden)
		case r.Method == http.MethodGet && r.Header.Get("Authorization") == "" && strings.Contains(r.Header.Get("Accept"), "text/html"):
			toLogin(w, r)
		default:
			if r.Header.Get("Authorization") != "" {
				s.log.Warn().Stringer("client", clientOf(r)).Msg("a wrong token was shown")
			}
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "this station asks for a token: Authorization: Bearer …, or log in at /login", http.StatusUnauthorized)
		}
	})
}

// Guard lets GET and HEAD of those who may look through to next, and nobody who
// calls the station by a name that is not its own.
func (s *Station) Guard(next http.Handler) http.Handler {
	return s.accessControl(func(*http.Request) bool { return false }, s.admit(Viewer, next))
}

// route is something that the station answers.
type route struct {
	pattern string // as http.ServeMux has it, with the method; what GET serves changes nothing
	needs   Role   // Technician for every POST but those of logging in and out
	serve   http.HandlerFunc
}

// serve puts the routes behind the guard.
func (s *Station) serveRoutes(routes []route) http.Handler {
	mux := http.NewServeMux()
	for _, r := range routes {
		mux.Handle(r.pattern, s.admit(r.needs, r.serve))
	}
	mux.Handle("/", s.admit(Viewer, http.HandlerFunc(http.NotFound)))
	return s.accessControl(func(r *http.Request) bool {
		_, pattern := mux.Handler(r)
		return strings.HasPrefix(pattern, http.MethodPost+" ")
	}, mux)
}
