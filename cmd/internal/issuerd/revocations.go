package issuerd

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/server"
	"secretfree/cmd/internal/config"
)

// checkURLs refuses what cannot stand in a certificate.
func (c CA) checkURLs(f *config.File, table string) error {
	for _, set := range []struct{ key, value, example string }{{"crl_url", c.CRLURL, "http://crl.example.com/crl/" + c.name() + ".crl"}, {"ocsp_url", c.OCSPURL, "http://ocsp.example.com/ocsp"}} {
		if set.value == "" {
			continue
		}
		u, err := url.Parse(set.value)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" || len(set.value) > 1024 || u.String() != set.value {
			return f.Errorf(table+"."+set.key, fmt.Sprintf("Write a URL such as %q.", set.example), "%s.%s is %q", table, set.key, set.value)
		}
	}
	return nil
}

// Warnings are what a configuration allows and an operator may not want.
func (c Config) Warnings() []string {
	var all []string
	for _, of := range []struct {
		table string
		ca    *CA
	}{{"ca", &c.CA}, {"proto", c.Proto}} {
		if of.ca != nil && of.ca.Kind == "local" && of.ca.CRLURL == "" && of.ca.OCSPURL == "" {
			all = append(all, fmt.Sprintf("[%s] has neither crl_url nor ocsp_url: certificates do not say where it can be asked whether they are revoked. "+
				"Set them before the first certificate is issued.", of.table))
		}
	}
	return all
}

// Revocations tells about the certificates of the CAs that are local; l limits
// who asks.
func (o *Components) Revocations(l Limits, log func(error)) (*server.Revocations, error) {
	c := server.RevocationsConfig{Claims: o.Claims, CAs: map[string]server.RevocationSigner{}, Sources: l.limiter(l.StatusPerMinute), Log: log}
	if l.Proxies > 0 {
		c.Source = l.source
	}
	for name, authority := range o.CAs {
		if local, ok := authority.(*ca.Local); ok && local.HasKey() {
			c.CAs[name] = local
		}
	}
	return server.NewRevocations(c)
}

// CRL makes the revocation list, in DER, of the CA of a name; empty: that of
// [ca].
//
// With an error that wraps issuer.ErrBadClaim there is a list all the same.
func (c Config) CRL(ctx context.Context, name string) (_ []byte, err error) {
	o, err := c.OpenSigner(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if closed := o.Close(); err == nil && closed != nil {
			err = fmt.Errorf("closing the memory of what was issued: %w", closed)
		}
	}()
	r, err := o.Revocations(c.Limits, nil)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = o.New
	}
	return r.CRL(ctx, name, time.Now())
}
