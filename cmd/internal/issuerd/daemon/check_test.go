package daemon

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"secretfree/cloud"
	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cmd/internal/issuerd"
)

// A check finds what a start finds, and both find all that the configuration
// names and that cannot be used.
func TestCheckIsAStart(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, p *testEnv, c *issuerd.Config)
		is    error  // that the error wraps, if there is one
		start bool   // whether the daemon starts all the same
		want  string // a remedy, or what the remedy is about; empty: all is well
	}{
		"all is well": {func(*testing.T, *testEnv, *issuerd.Config) {}, nil, true, ""},
		"a wrong passphrase": {func(t *testing.T, p *testEnv, c *issuerd.Config) {
			p.write(t, "wrong", []byte("another"))
			c.CA.PassphraseFile = p.path("wrong")
		}, nil, false, "wrong passphrase"},
		"no passphrase":    {func(_ *testing.T, p *testEnv, c *issuerd.Config) { c.CA.PassphraseFile = p.path("none") }, os.ErrNotExist, false, "passphrase"},
		"no CA folder":     {func(_ *testing.T, p *testEnv, c *issuerd.Config) { c.CA.Dir = p.path("none") }, os.ErrNotExist, false, "opening the CA"},
		"no claims folder": {func(_ *testing.T, p *testEnv, c *issuerd.Config) { c.Issuance.Dir = p.path("none") }, nil, false, "is not a folder of claims"},
		"no TLS files": {func(_ *testing.T, p *testEnv, c *issuerd.Config) {
			c.TLS = issuerd.TLS{Certificate: p.path("a"), Key: p.path("b")}
		}, os.ErrNotExist, false, "tls.certificate"},
		"no challenge key": {func(_ *testing.T, p *testEnv, c *issuerd.Config) { c.Challenge.KeyFile = p.path("none") }, os.ErrNotExist, false, "challenges"},
		"no registry":      {func(_ *testing.T, p *testEnv, c *issuerd.Config) { c.Registry.Dir = p.path("none") }, cloud.ErrNoRegistry, true, "registry"},
		"a bad retired CA": {func(_ *testing.T, p *testEnv, c *issuerd.Config) {
			c.Retired = []issuerd.CA{{Kind: "local", Name: "old", Dir: p.path("none")}}
		}, os.ErrNotExist, false, "the retired CA old"},
		"the key of another CA": {func(t *testing.T, p *testEnv, c *issuerd.Config) {
			other := newCA(t, p, "other")
			copied := p.path("mixed")
			if err := os.CopyFS(copied, os.DirFS(p.ca)); err != nil {
				t.Fatal(err)
			}
			key, err := os.ReadFile(filepath.Join(other, "issuing.key"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(copied, "issuing.key"), key, 0o600); err != nil {
				t.Fatal(err)
			}
			c.CA.Dir = copied
		}, nil, false, "is not that of the certificate"},
		"a CA that was replaced under its name": {func(t *testing.T, p *testEnv, c *issuerd.Config) {
			d := p.run(t)
			response, err := http.Post("http://"+d.Addr()+"/new", "application/pkcs10", bytes.NewReader(p.request(t)))
			if err != nil || response.StatusCode != http.StatusOK {
				t.Fatal(response, err)
			}
			_ = response.Body.Close()
			c.CA.Dir = newCA(t, p, "other")
		}, issuer.ErrWrongCertificate, false, `name the former one in [[retired_ca]] with name = "local"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := newTestEnv(t, "listen = \"127.0.0.1:0\"", "")
			config, err := issuerd.Load(p.path("issuerd.toml"))
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(t, p, &config)
			check := Check(t.Context(), config, zerolog.Nop())
			d, start := Open(t.Context(), config, zerolog.Nop(), showMetrics)
			if start == nil {
				for _, s := range d.servers {
					_ = s.listener.Close()
				}
				if err := d.opened.Close(); err != nil {
					t.Error(err)
				}
			}
			if (check == nil) != (c.want == "") || (start == nil) != c.start {
				t.Fatalf("check: %v; start: %v", check, start)
			}
			if check != nil && (!strings.Contains(check.Error(), c.want) || c.is != nil && !errors.Is(check, c.is)) {
				t.Errorf("%v, want %q and %v", check, c.want, c.is)
			}
		})
	}
}

// newCA makes another CA with the passphrase of the first.
func newCA(t *testing.T, p *testEnv, name string) string {
	t.Helper()
	dir := p.path(name)
	if err := ca.InitLocal(ca.LocalInit{Dir: dir, Name: "Other", Passphrase: []byte("correct horse"), Iterations: 1000}); err != nil {
		t.Fatal(err)
	}
	return dir
}
