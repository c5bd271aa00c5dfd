package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What keeps a station from starting with its [access] is found before it is
// started, and no finding tells what is in a file.
func TestAccessFiles(t *testing.T) {
	const token = "view-token-0123456789"
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	certificate := func(valid time.Duration) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "line3-a"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(valid)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
		must(t, err)
		key, err := x509.MarshalPKCS8PrivateKey(private)
		must(t, err)
		must(t, os.WriteFile(at("crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
		must(t, os.WriteFile(at("key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	}
	// Another user than the one who owns the files, and whom root asks for.
	other := func(e *exam) { e.UID, e.owner = 0, owner{name: "stationd", uid: uint32(os.Getuid()) + 1, ok: true} }
	for name, c := range map[string]struct {
		spoil      func()
		as         func(*exam)
		want, text string
	}{
		"right":               {func() {}, func(*exam) {}, "ok access", "can be used"},
		"open to all":         {func() { must(t, os.Chmod(at("view"), 0o644)) }, func(*exam) {}, "fail access", "mode 0644"},
		"missing":             {func() { must(t, os.Remove(at("technician"))) }, func(*exam) {}, "fail access", "no such file"},
		"the same token":      {func() { must(t, os.WriteFile(at("technician"), []byte(token), 0o600)) }, func(*exam) {}, "fail access", "have the same token"},
		"no key":              {func() { must(t, os.WriteFile(at("key"), nil, 0o600)) }, func(*exam) {}, "fail access", "loading access.tls_cert"},
		"expired":             {func() { certificate(-time.Minute) }, func(*exam) {}, "fail access", "has expired"},
		"expires soon":        {func() { certificate(13 * 24 * time.Hour) }, func(*exam) {}, "warn access", "expires at"},
		"owned by another":    {func() {}, other, "fail access", "stationd may not read access.view_token_file"},
		"in a private folder": {func() { must(t, os.Chmod(at("crt"), 0o644)); must(t, os.Chmod(dir, 0o700)) }, other, "fail access", "by the owner and mode of " + dir},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.Chmod(dir, 0o755))
			certificate(365 * 24 * time.Hour)
			for name, text := range map[string]string{"view": token, "technician": "tech-token-0123456789"} {
				must(t, os.WriteFile(at(name), []byte(text), 0o600))
				must(t, os.Chmod(at(name), 0o600))
			}
			p := newPatient(t)
			p.rest = fmt.Sprintf("[registry]\nkind = \"dir\"\ndir = %q\n[access]\ntls_cert = %q\ntls_key = %q\nview_token_file = %q\ntechnician_token_file = %q\n", p.registry, at("crt"), at("key"), at("view"), at("technician"))
			c.spoil()
			e := p.exam()
			c.as(e)
			found := e.checkAccess(t.Context())
			want(t, found, c.want, c.text)
			for _, r := range found {
				if strings.Contains(fmt.Sprintf("%+v", r), "token-0123456789") {
					t.Errorf("a token is told: %+v", r)
				}
			}
			if c.want == "fail access" && name != "owned by another" && name != "in a private folder" {
				want(t, p.examine(), "fail access", c.text)
			}
		})
	}
	if found := newPatient(t).exam().checkAccess(t.Context()); len(found) > 0 {
		t.Errorf("without [access]: %+v", found)
	}
	// Who may not read them is told to ask as somebody who may.
	e := &exam{Config: Config{Machine: Machine{UID: 4242}}, owner: owner{name: "stationd", uid: 1, ok: true}}
	r, hidden := e.hidden("access.view_token_file", at("view"), fs.ErrPermission)
	if !hidden || !strings.Contains(r.Remedy, "sudo -u 'stationd'") {
		t.Errorf("%+v", r)
	}
	want(t, []Result{r}, "warn access", "may not be read by this user")
	e.UID = 0
	if _, hidden := e.hidden("access.view_token_file", at("view"), fs.ErrPermission); hidden {
		t.Error("root is told to be root")
	}
}
