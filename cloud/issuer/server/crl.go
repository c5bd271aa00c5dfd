package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"sync"
	"time"

	"secretfree/cloud/issuer"
)

const (
	// crlLife is from thisUpdate to nextUpdate: who makes lists with a timer
	// makes them more often.
	crlLife = 24 * time.Hour
	// crlFresh is how long a list is given again before the next one is made.
	crlFresh = 5 * time.Minute
	// crlPause is how long after a list could not be made it is tried again,
	// while an older one holds.
	crlPause   = 30 * time.Second
	crlTimeout = 40 * time.Second // of a daemon's request; for tables that take longer, there is the command
)

// maxUnreadClaims that cannot be read do not end a list.
const maxUnreadClaims = 16

// errNoCA says that no local CA has a name.
var errNoCA = errors.New("there is no local CA of that name")

// CRL makes the revocation list of a CA (RFC 5280, 5, in DER) from all claims:
// those that are revoked, or about to be, until a list's life after the
// certificate has expired. Its number is the time in milliseconds, so that it
// rises whoever makes it. Where claims cannot be read, it gives a list without
// them and an error that wraps ErrBadClaim: one bad claim must not leave all
// without a list.
func (r *Revocations) CRL(ctx context.Context, name string, now time.Time) ([]byte, error) {
	ca := r.config.CAs[name]
	if ca == nil {
		return nil, fmt.Errorf("%w: %s", errNoCA, name)
	}
	template := &x509.RevocationList{
		Number: big.NewInt(now.UnixMilli()), ThisUpdate: now.UTC().Truncate(time.Second), NextUpdate: now.UTC().Truncate(time.Second).Add(crlLife),
	}
	var unread []error
	for issuance, err := range r.config.Claims.All(ctx) {
		if errors.Is(err, issuer.ErrBadClaim) && len(unread) < maxUnreadClaims {
			unread = append(unread, err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading what was issued: %w", err)
		}
		c := issuance.Claim
		if c.CA != name || issuance.State != issuer.Revoking && issuance.State != issuer.Revoked || now.After(c.NotAfter.Add(crlLife)) {
			continue
		}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: c.Serial.Int(), RevocationTime: issuance.Revoked, ReasonCode: int(issuance.Reason),
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.Issuing(), ca.Signer(ctx))
	if err != nil {
		return nil, fmt.Errorf("signing the revocation list: %w", err)
	}
	return der, errors.Join(unread...)
}

// list is the last one of a CA.
type list struct {
	mu     sync.Mutex
	der    []byte
	made   time.Time
	failed time.Time
}

// current makes a list, or gives the last one again. If none can be made, that
// which still holds is given; the error is not nil then.
func (r *Revocations) current(ctx context.Context, name string) (der []byte, made time.Time, err error) {
	l := r.lists[name]
	l.mu.Lock() // and one makes it, for all that wait
	defer l.mu.Unlock()
	now := r.config.Now()
	if l.der != nil && now.Sub(l.made) < crlFresh || l.der != nil && now.Sub(l.made) < crlLife && now.Sub(l.failed) < crlPause {
		return l.der, l.made, nil
	}
	if l.der == nil && now.Sub(l.failed) < crlPause {
		return nil, l.made, errors.New("it could not be made a short time ago")
	}
	fresh, err := r.CRL(ctx, name, now)
	if fresh == nil {
		l.failed = now
		if now.Sub(l.made) >= crlLife {
			l.der = nil
		}
		return l.der, l.made, err
	}
	l.der, l.made = fresh, now
	return l.der, l.made, err
}

func (r *Revocations) serveList(w http.ResponseWriter, request *http.Request, name string) {
	err := r.admit(request)
	var der []byte
	var made time.Time
	if err == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(request.Context()), crlTimeout)
		defer cancel()
		der, made, err = r.current(ctx, name)
	}
	if err != nil {
		r.log(fmt.Errorf("the revocation list of %s: %w", name, err))
	}
	if der == nil {
		w.Header().Set("Retry-After", retryAfter)
		http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Content-Length", strconv.Itoa(len(der)))
	cached(w, made, crlFresh)
	_, _ = w.Write(der)
}
