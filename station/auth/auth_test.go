package auth

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

const (
	viewToken = "view-token-0123456789"
	techToken = "tech-token-0123456789"
)

func newAuthenticator(t *testing.T) *Authenticator {
	t.Helper()
	a := Access{Network: true, Secure: true, Secret: make([]byte, 32), Tokens: func() Tokens { return Tokens{View: viewToken, Technician: techToken} }}
	if err := a.Check(); err != nil {
		t.Fatal(err)
	}
	return NewAuthenticator(a)
}

// request shows a token, from an address.
func request(token, from string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/status", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	r.RemoteAddr = from
	return r
}

// Whatever strangers send, little is remembered of it, and no token.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(t)
		for i := range 5 * maxAddresses {
			a.Role(request(fmt.Sprintf("guess-%d-0123456789", i), fmt.Sprintf("[2001:db8:%x::1]:1", i)))
		}
		if n := len(a.addresses); n > maxAddresses {
			t.Errorf("%d addresses are remembered", n)
		}
		for i := range 100 {
			time.Sleep(wrongEvery)
			a.Role(request(fmt.Sprintf("another-guess-%d-0123456789", i), "192.0.2.1:1"))
		}
		for _, v := range a.addresses {
			if len(v.shown) > maxSame || len(v.shown) > 0 && len(v.shown[0]) != 32 {
				t.Errorf("%d are remembered", len(v.shown))
			}
		}
		for i := range 3 * maxRevoked {
			a.Revoke(a.NewSession(Viewer, time.Now().Add(time.Duration(i))), time.Now())
		}
		if n := len(a.revoked); n > maxRevoked {
			t.Errorf("%d log-ins that ended are remembered", n)
		}
	})
}

// CurrentRole may be asked as often as a stream wants: it counts no wrong token.
func TestCurrentRoleCountsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(t)
		for i := range 100 {
			if role := a.CurrentRole(request(fmt.Sprintf("guess-%d-0123456789", i), "192.0.2.1:1")); role != Nobody {
				t.Fatalf("a guess has the role %d", role)
			}
		}
		if role, waits := a.Role(request(techToken, "192.0.2.1:1")); role != Technician || waits {
			t.Errorf("a right token after them: role %d, waits %t", role, waits)
		}
		if role, waits := a.Role(request(viewToken, "192.0.2.1:1")); role != Viewer || waits {
			t.Errorf("the other one: role %d, waits %t", role, waits)
		}
		for i := range wrongBurst + 1 {
			a.Role(request(fmt.Sprintf("another-%d-0123456789", i), "192.0.2.2:1"))
		}
		if _, waits := a.Role(request(techToken, "192.0.2.2:1")); !waits {
			t.Error("after wrong tokens a stranger need not wait: this test sees nothing")
		}
	})
}
