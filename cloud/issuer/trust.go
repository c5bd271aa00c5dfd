package issuer

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// trust checks the chains of one CA. It may be used by many at once.
//
// A CA sends the same chain with all its certificates. What lies above the leaf
// is a matter of these bytes, of the roots and of the time alone, so it is
// verified once, and from then on the leaf under the CA that signed it.
type trust struct {
	roots *x509.CertPool
	last  atomic.Pointer[path]
}

// path is a chain that was verified up to a root.
type path struct {
	chain       [][]byte       // as it was sent
	signer      *x509.CertPool // the CA that signed the leaf, alone
	from, until time.Time      // when every CA of it is valid, both included
}

func newTrust(roots []*x509.Certificate) *trust {
	t := &trust{roots: x509.NewCertPool()}
	for _, root := range roots {
		t.roots.AddCert(root)
	}
	return t
}

// verify checks that a certificate for client authentication, without any
// alternative name, chains to a root.
func (t *trust) verify(leaf *x509.Certificate, chain [][]byte, now time.Time) error {
	if p := t.last.Load(); p != nil && p.covers(chain, now) {
		if _, err := leaf.Verify(clientAuth(p.signer, nil, now)); err == nil {
			return nil
		}
	}
	if len(chain) == 0 {
		return errors.New("it has no chain")
	}
	between := x509.NewCertPool()
	for _, der := range chain {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parsing its chain: %w", err)
		}
		between.AddCert(ca)
	}
	paths, err := leaf.Verify(clientAuth(t.roots, between, now))
	if err != nil {
		return fmt.Errorf("its chain: %w", err)
	}
	t.last.Store(newPath(paths[0][1:], chain))
	return nil
}

func clientAuth(roots, between *x509.CertPool, now time.Time) x509.VerifyOptions {
	return x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

func newPath(above []*x509.Certificate, chain [][]byte) *path {
	p := &path{signer: x509.NewCertPool(), from: above[0].NotBefore, until: above[0].NotAfter}
	p.signer.AddCert(above[0])
	for _, ca := range above[1:] {
		if ca.NotBefore.After(p.from) {
			p.from = ca.NotBefore
		}
		if ca.NotAfter.Before(p.until) {
			p.until = ca.NotAfter
		}
	}
	for _, der := range chain {
		p.chain = append(p.chain, bytes.Clone(der))
	}
	return p
}

func (p *path) covers(chain [][]byte, now time.Time) bool {
	return slices.EqualFunc(p.chain, chain, bytes.Equal) && !now.Before(p.from) && !now.After(p.until)
}
