// Package auth says who a request to the station's page comes from: tokens,
// log-ins, roles, and a limit of wrong tokens for each client. Start with
// Authenticator.
package auth

import (
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

func (a Access) Check() error {
	if a.Tokens != nil && len(a.Secret) < 16 {
		return fmt.Errorf("making a station: Access.Secret has %d bytes, want 16 or more", len(a.Secret))
	}
	return nil
}

const (
	SessionLimit = 12 * time.Hour
	maxRevoked   = 1024 // log-ins that were ended and would hold otherwise
	maxAddresses = 1024 // that showed a token lately
	wrongBurst   = 5    // wrong tokens of one address at once
	wrongEvery   = 10 * time.Second
	allBurst     = 60 // wrong tokens of all addresses at once
	allEvery     = time.Second
	maxSame      = 4 // wrong tokens of an address that count once, however often they are shown
)

// Authenticator tells who somebody is.
type Authenticator struct {
	Access
	origin http.CrossOriginProtection

	mu        sync.Mutex
	revoked   map[[sessionNonce]byte]time.Time // until when they would hold
	addresses map[clientKey]*clientLimiter
	crowd     [ways]*clientLimiter // all for which there was no room in addresses
	all       *rate.Limiter        // of wrong tokens
}

// Way is how a token is shown. A program with an old token keeps nobody at the
// same address from logging in.
type Way int

const (
	ByHeader Way = iota
	ByForm
	ways
)

// clientKey is an address and a way.
type clientKey struct {
	from netip.Addr
	way  Way
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

func NewAuthenticator(a Access) *Authenticator {
	return &Authenticator{Access: a, revoked: map[[sessionNonce]byte]time.Time{}, addresses: map[clientKey]*clientLimiter{}, crowd: [ways]*clientLimiter{newClientLimiter(), newClientLimiter()},
		all: rate.NewLimiter(rate.Every(allEvery), allBurst)}
}

// Role is who sends a request. waits: too many wrong tokens were shown, and no
// token is looked at for a moment; a log-in holds on.
func (d *Authenticator) Role(r *http.Request) (role Role, waits bool) {
	if d.Tokens == nil {
		if d.Network {
			return Viewer, false
		}
		return Technician, false
	}
	if token, ok := bearerOf(r); ok {
		return d.Authenticate(r, token, ByHeader)
	}
	if cookie, err := r.Cookie(d.CookieName()); err == nil {
		return d.session(cookie.Value, time.Now()), false
	}
	return Nobody, false
}

func bearerOf(r *http.Request) (token string, ok bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// CurrentRole is who sent a request that is being answered for long: what a
// log-out, or other tokens, took away meanwhile is gone. It counts no wrong
// token.
func (d *Authenticator) CurrentRole(r *http.Request) Role {
	if token, ok := bearerOf(r); ok && d.Tokens != nil {
		return d.roleOfToken(token)
	}
	role, _ := d.Role(r)
	return role
}

// Authenticate says what role a token gives. All comparisons take the same
// time, and a right token is refused like a wrong one while its address has to
// wait.
func (d *Authenticator) Authenticate(r *http.Request, token string, by Way) (role Role, waits bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.limiter(clientKey{ClientOf(r), by})
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

func (d *Authenticator) roleOfToken(token string) Role {
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
func (d *Authenticator) hash(token string) []byte {
	h := hmac.New(sha256.New, d.Secret)
	fmt.Fprintf(h, "secretfree wrong token %s", token)
	return h.Sum(nil)
}

// limiter is who comes from an address in a way. The caller holds mu.
func (d *Authenticator) limiter(from clientKey) *clientLimiter {
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

// ClientOf is the address that a request came from; of IPv6 the network, since
// a machine has as many addresses there as it likes.
func ClientOf(r *http.Request) netip.Addr {
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

func (d *Authenticator) CookieName() string {
	if d.Secure {
		return "__Host-stationd"
	}
	return "stationd"
}

func (d *Authenticator) mac(role Role, head []byte) []byte {
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

func (d *Authenticator) NewSession(role Role, now time.Time) string {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, sessionHead), uint64(now.Add(SessionLimit).Unix()))
	head = append(head, byte(role))
	head = append(head, make([]byte, sessionNonce)...)
	rand.Read(head[9:])
	return base64.RawURLEncoding.EncodeToString(append(head, d.mac(role, head)...))
}

// openSession checks a cookie; ok is false if it gives nothing.
func (d *Authenticator) openSession(value string, now time.Time) (role Role, nonce [sessionNonce]byte, end time.Time, ok bool) {
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
	return role, nonce, end, now.Before(end) && end.Sub(now) <= SessionLimit
}

func (d *Authenticator) session(value string, now time.Time) Role {
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

// Revoke ends a log-in for as long as this process runs; the browser forgets it
// anyhow.
func (d *Authenticator) Revoke(value string, now time.Time) {
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

// Cookie holds a log-in for a number of seconds; less than 0 deletes it.
func (d *Authenticator) Cookie(value string, age int) *http.Cookie {
	return &http.Cookie{Name: d.CookieName(), Value: value, Path: "/", MaxAge: age, HttpOnly: true, Secure: d.Secure, SameSite: http.SameSiteStrictMode}
}

// CheckOrigin refuses what another site's page sends.
func (d *Authenticator) CheckOrigin(r *http.Request) error { return d.origin.Check(r) }
