package stationd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/stationconf"
)

// pair writes a certificate and its key.
func (f *factory) pair(name string) (certificate, key string, leaf *x509.Certificate) {
	return f.pairFor(name, time.Hour)
}

func (f *factory) pairFor(name string, valid time.Duration) (certificate, key string, leaf *x509.Certificate) {
	f.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-2 * time.Hour),
		NotAfter: time.Now().Add(valid), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		f.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		f.t.Fatal(err)
	}
	certificate, key = filepath.Join(f.dir, "tls.crt"), filepath.Join(f.dir, "tls.key")
	f.file(certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	f.file(key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	if leaf, err = x509.ParseCertificate(der); err != nil {
		f.t.Fatal(err)
	}
	return certificate, key, leaf
}

func (f *factory) file(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// A station with TLS and tokens, from its configuration to its answers;
// certificate and tokens change under it.
func TestAccess(t *testing.T) {
	f := newFactory(t)
	certificate, key, first := f.pair("first")
	view, technician := filepath.Join(f.dir, "view"), filepath.Join(f.dir, "technician")
	f.file(view, "view-token-0123456789\n")
	f.file(technician, "tech-token-0123456789\n")
	f.extra = fmt.Sprintf("[access]\ntls_cert = %q\ntls_key = %q\nview_token_file = %q\ntechnician_token_file = %q\n", certificate, key, view, technician)
	d := f.start()
	ask := func(trusted *x509.Certificate, token, method, path string) (int, string) {
		t.Helper()
		pool := x509.NewCertPool()
		pool.AddCert(trusted)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
		request, err := http.NewRequestWithContext(t.Context(), method, "https://"+d.Addr()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		answer, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(body)
	}
	for _, path := range []string{"/", "/status", "/metrics", "/events"} {
		if code, body := ask(first, "", http.MethodGet, path); code != 401 || !strings.Contains(body, "asks for a token") {
			t.Errorf("%s without a token: %d %s", path, code, body)
		}
	}
	for _, path := range []string{"/", "/status", "/metrics"} {
		for _, token := range []string{"view-token-0123456789", "tech-token-0123456789"} {
			if code, _ := ask(first, token, http.MethodGet, path); code != 200 {
				t.Errorf("%s with %s: %d", path, token, code)
			}
		}
	}
	if code, body := ask(first, "", http.MethodGet, "/healthz"); code != 200 || body != `{"ok":true,"reasons":[]}`+"\n" {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if answer, err := http.Get("http://" + d.Addr() + "/healthz"); err == nil {
		answer.Body.Close()
		if answer.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s", answer.Status)
		}
	}

	wait := func(what string, holds func() bool) {
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("there is never %s; the log:\n%s", what, d.log)
			}
		}
	}
	_, _, second := f.pair("second")
	f.file(view, "view-token-of-tomorrow\n")
	wait("the new certificate", func() bool {
		c, err := tls.Dial("tcp", d.Addr(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return false
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Equal(second)
	})
	wait("the new token", func() bool {
		code, _ := ask(second, "view-token-of-tomorrow", http.MethodGet, "/status")
		return code == 200
	})
	if code, _ := ask(second, "view-token-0123456789", http.MethodGet, "/status"); code != 401 {
		t.Errorf("the old token: %d", code)
	}
	if err := os.Chmod(view, 0o644); err != nil {
		t.Fatal(err)
	}
	f.file(key, "garbage")
	wait("what is wrong with them in the log", func() bool {
		if code, _ := ask(second, "view-token-of-tomorrow", http.MethodGet, "/status"); code != 200 {
			t.Errorf("with files that cannot be used, what was before does not stay: %d", code)
		}
		log := d.log.String()
		return strings.Contains(log, "the new tokens cannot be used") && strings.Contains(log, "the new TLS certificate cannot be used")
	})
	for _, said := range []string{"the new tokens cannot be used", "the new TLS certificate cannot be used", "mode 0644", `"page":"https://`} {
		if !strings.Contains(d.log.String(), said) {
			t.Errorf("the log does not say %s:\n%s", said, d.log)
		}
	}
	if strings.Contains(d.log.String(), "token-0123456789") || strings.Contains(d.log.String(), "of-tomorrow") {
		t.Errorf("the log has a token:\n%s", d.log)
	}
	if info, err := os.Stat(filepath.Join(f.state, secretName)); err != nil || info.Mode().Perm() != 0o600 || info.Size() != 32 {
		t.Errorf("the secret of log-ins: %v %v", info, err)
	}
}

// A change of a token is seen by itself.
func TestTokensAreReadAgain(t *testing.T) {
	f := newFactory(t)
	view := filepath.Join(f.dir, "view")
	f.file(view, "view-token-0123456789")
	f.extra = fmt.Sprintf("[access]\nview_token_file = %q\n", view)
	if err := os.MkdirAll(f.state, 0o700); err != nil {
		t.Fatal(err)
	}
	c := f.config()
	g, err := openGate(c, false, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	f.file(view, "view-token-of-tomorrow")
	if got := g.current().View; got != "view-token-0123456789" {
		t.Errorf("the file is looked at for each request: %q", got)
	}
	g.looked = g.looked.Add(-time.Minute)
	if got := g.current().View; got != "view-token-of-tomorrow" {
		t.Errorf("a moment later: %q", got)
	}
	if err := os.Remove(view); err != nil {
		t.Fatal(err)
	}
	g.looked = g.looked.Add(-time.Minute)
	if got := g.current().View; got != "view-token-of-tomorrow" {
		t.Errorf("without the file: %q", got)
	}
	again, err := openGate(f.config(), false, zerolog.Nop())
	if err == nil {
		t.Errorf("a daemon starts without its token: %+v", again)
	}
	f.file(view, "view-token-of-tomorrow")
	again, err = openGate(c, false, zerolog.Nop())
	if err != nil || string(again.secret) != string(g.secret) {
		t.Errorf("another secret after a restart: %v", err)
	}
	f.file(filepath.Join(f.state, secretName), "torn")
	if again, err = openGate(c, false, zerolog.Nop()); err != nil || len(again.secret) != 32 {
		t.Errorf("with a secret that was torn: %v", err)
	}
}

// Where no token can be read, the log says why, and not that there are two
// alike.
func TestTokensUnreadable(t *testing.T) {
	f := newFactory(t)
	view, technician := filepath.Join(f.dir, "view"), filepath.Join(f.dir, "technician")
	g := &gate{config: stationconf.Access{ViewToken: view, TechnicianToken: technician}, seen: map[string]os.FileInfo{}}
	if _, err := g.read(); err == nil || strings.Count(err.Error(), "no such file") != 2 || strings.Contains(err.Error(), "same token") {
		t.Errorf("neither is there: %v", err)
	}
	f.file(view, "view-token-0123456789")
	f.file(technician, "view-token-0123456789\n")
	if _, err := g.read(); err == nil || !strings.Contains(err.Error(), "same token") {
		t.Errorf("two alike: %v", err)
	}
}

// Each file of [access] that cannot be used is refused with line and remedy,
// and no refusal tells what is in it.
func TestAccessFilesAreChecked(t *testing.T) {
	const token = "view-token-0123456789"
	for name, c := range map[string]struct {
		spoil func(f *factory, certificate, key, view, technician string)
		want  string
	}{
		"good":            {func(*factory, string, string, string, string) {}, ""},
		"group may read":  {func(f *factory, _, _, view, _ string) { os.Chmod(view, 0o640) }, "has the mode 0640, so others than its owner may use it: chmod 600"},
		"world may read":  {func(f *factory, _, _, _, tech string) { os.Chmod(tech, 0o604) }, "has the mode 0604"},
		"group may write": {func(f *factory, _, _, view, _ string) { os.Chmod(view, 0o620) }, "has the mode 0620"},
		"missing":         {func(f *factory, _, _, view, _ string) { os.Remove(view) }, "no such file"},
		"short":           {func(f *factory, _, _, view, _ string) { f.file(view, token[:15]+"\n") }, "has 15 characters, want 16 or more"},
		"empty":           {func(f *factory, _, _, view, _ string) { f.file(view, "\n") }, "has 0 characters"},
		"long":            {func(f *factory, _, _, view, _ string) { f.file(view, strings.Repeat("x", 600)) }, "longer than 512"},
		"two":             {func(f *factory, _, _, view, _ string) { f.file(view, token+"\n"+token+"\n") }, "more than one token"},
		"spaces":          {func(f *factory, _, _, view, _ string) { f.file(view, "view token 0123456789") }, "more than one token"},
		"a folder":        {func(f *factory, _, _, view, _ string) { os.Remove(view); os.Mkdir(view, 0o700) }, "not a plain file"},
		"the same":        {func(f *factory, _, _, view, tech string) { f.file(tech, token) }, "the same token. Give each role a token of its own"},
		"key of another": {func(f *factory, certificate, _, _, _ string) {
			text, _ := os.ReadFile(certificate)
			f.pair("other")
			f.file(certificate, string(text))
		}, "belong together"},
		"no certificate":  {func(f *factory, certificate, _, _, _ string) { f.file(certificate, "") }, "Both must be PEM files"},
		"no key is there": {func(f *factory, _, key, _, _ string) { os.Remove(key) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFactory(t)
			certificate, key, _ := f.pair("first")
			view, technician := filepath.Join(f.dir, "view"), filepath.Join(f.dir, "technician")
			f.file(view, token)
			f.file(technician, "tech-token-0123456789")
			f.extra = fmt.Sprintf("[access]\ntls_cert = %q\ntls_key = %q\nview_token_file = %q\ntechnician_token_file = %q\n", certificate, key, view, technician)
			f.config()
			c.spoil(f, certificate, key, view, technician)
			file := filepath.Join(f.dir, "stationd.toml")
			_, err := stationconf.LoadToServe(file)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.HasPrefix(err.Error(), file+":") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), token[:12]) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if _, err := stationconf.Load(file); err != nil {
				t.Errorf("who only wants to know where the station is: %v", err)
			}
		})
	}
}

// A certificate past its end keeps browsers away: the health is red.
func TestExpiredCertificate(t *testing.T) {
	f := newFactory(t)
	certificate, key, _ := f.pairFor("old", -time.Minute)
	f.extra = fmt.Sprintf("[access]\ntls_cert = %q\ntls_key = %q\n", certificate, key)
	d := f.start()
	list := d.health()
	if len(list) != 1 || list[0].Word != "health-certificate" || !strings.Contains(list[0].Detail, "has expired") {
		t.Fatalf("%+v", list)
	}
	sayable(t, list[0])
}
