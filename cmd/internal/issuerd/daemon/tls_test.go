package daemon

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/web"
)

const tlsTop = "listen = \"127.0.0.1:0\"\n[tls]\ncertificate = %q\nkey = %q\n"

// newTLSPlace is one whose issuer serves TLS, with a metrics address.
func newTLSPlace(t testing.TB, more string) (*testEnv, *x509.Certificate) {
	t.Helper()
	p := newTestEnv(t, "", more)
	first := p.pair(t, "tls.crt", "tls.key", "first", time.Hour)
	text, err := os.ReadFile(p.path("issuerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	top := fmt.Sprintf("metrics_listen = \"127.0.0.1:0\"\n"+tlsTop, p.path("tls.crt"), p.path("tls.key"))
	p.write(t, "issuerd.toml", bytes.Replace(text, []byte("\n[registry]"), []byte("\n"+top+"[registry]"), 1))
	return p, first
}

// trusting is a client that opens a connection for each request, as devices do.
func trusting(roots ...*x509.Certificate) *http.Client {
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}}
}

func fetch(t testing.TB, client *http.Client, url string) (status int, body, server string) {
	t.Helper()
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.TLS != nil {
		server = response.TLS.PeerCertificates[0].Subject.CommonName
	}
	return response.StatusCode, string(text), server
}

// A new pair is served without a lost request; a broken one leaves the one
// before, and health and metrics say so.
func TestReload(t *testing.T) {
	p, first := newTLSPlace(t, "[limits]\ndevice_per_minute = 0\nsource_per_minute = 0\n")
	d := p.run(t)
	spare := &testEnv{dir: t.TempDir()}
	second := spare.pair(t, "tls.crt", "tls.key", "second", time.Hour)
	client := trusting(first, second)
	url := "https://" + d.Addr()
	if _, _, server := fetch(t, client, url+"/healthz"); server != "first" {
		t.Fatalf("it serves %s", server)
	}

	der := p.request(t)
	var stop atomic.Bool
	var seen sync.Map
	var under sync.WaitGroup
	for range 4 {
		under.Go(func() {
			for !stop.Load() {
				response, err := client.Post(url+"/new", "application/pkcs10", bytes.NewReader(der))
				if err != nil {
					t.Errorf("a request was lost: %v", err)
					return
				}
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != http.StatusOK {
					t.Errorf("a request was lost: %s, %v", response.Status, err)
					return
				}
				seen.Store(response.TLS.PeerCertificates[0].Subject.CommonName, true)
			}
		})
	}
	until := func(name string) {
		for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); {
			if _, ok := seen.Load(name); ok || t.Failed() {
				return
			}
			fetch(t, client, url+"/challenge")
		}
		t.Errorf("%s is never served", name)
	}
	until("first")
	for _, name := range []string{"tls.crt", "tls.key"} { // one after the other: for a moment they do not fit
		if err := os.Rename(spare.path(name), p.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	until("second")
	stop.Store(true)
	under.Wait()

	p.write(t, "tls.key", []byte("garbage"))
	status, body, server := fetch(t, client, url+"/healthz")
	for limit := time.Now().Add(30 * time.Second); body == "ok\n" && time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		status, body, server = fetch(t, insecure(), url+"/healthz")
	}
	if status != http.StatusOK || body != "ok\nthe new TLS certificate cannot be used; the one before stays\n" || server != "second" {
		t.Errorf("with a broken key: %d, %q by %s", status, body, server)
	}
	if !strings.Contains(p.log.String(), `"message":"the new TLS certificate cannot be used; the one before stays"`) {
		t.Error("the log does not say that it is broken")
	}
	_, metrics, _ := fetch(t, http.DefaultClient, "http://"+d.MetricsAddr()+"/metrics")
	for _, want := range []string{"issuerd_tls_reload_failed 1", fmt.Sprintf("issuerd_tls_not_after_timestamp_seconds %v\n", float64(second.NotAfter.Unix())), "issuerd_limited_total 0", "issuerd_est_issued_total 0"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics have no %s:\n%s", want, metrics)
		}
	}
	p.pair(t, "tls.crt", "tls.key", "third", time.Hour)
	for limit := time.Now().Add(30 * time.Second); body != "ok\n" && time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		_, body, _ = fetch(t, insecure(), url+"/healthz")
	}
	if body != "ok\n" {
		t.Errorf("with a good one again: %q", body)
	}
}

// insecure is for what the test asks no certificate of.
func insecure() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

// A change is seen by itself, within a second, and a pair past its end is red.
func TestKeyPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &testEnv{dir: t.TempDir()}
		p.pair(t, "tls.crt", "tls.key", "first", time.Hour)
		var log bytes.Buffer
		pair, err := web.OpenKeyPair(p.path("tls.crt"), p.path("tls.key"), "tls.certificate and tls.key", zerolog.New(&log))
		if err != nil {
			t.Fatal(err)
		}
		serves := func() string {
			c, err := pair.Get(nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Leaf.Subject.CommonName
		}
		if got := serves(); got != "first" {
			t.Fatalf("it serves %s", got)
		}
		p.pair(t, "tls.crt", "tls.key", "second", 2*time.Hour)
		if got := serves(); got != "first" {
			t.Errorf("the files are looked at with each handshake: %s", got)
		}
		time.Sleep(web.LookEvery)
		if got := serves(); got != "second" {
			t.Errorf("a second later it serves %s", got)
		}
		if err := os.Remove(p.path("tls.key")); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(web.LookEvery)
			if got := serves(); got != "second" {
				t.Errorf("without a key it serves %s", got)
			}
		}
		if n := strings.Count(log.String(), `"level":"error"`); n != 1 {
			t.Errorf("%d lines about one change:\n%s", n, &log)
		}
		if note, red := pair.Health(); note == "" || red {
			t.Errorf("health: %q, red %v", note, red)
		}
		time.Sleep(2 * time.Hour)
		if note, red := pair.Health(); !strings.Contains(note, "has expired, and the new one") || !red {
			t.Errorf("health past the end: %q, red %v", note, red)
		}
		p.pair(t, "tls.crt", "tls.key", "third", -time.Minute)
		serves()
		if note, red := pair.Health(); note != "the TLS certificate has expired" || !red {
			t.Errorf("health past the end: %q, red %v", note, red)
		}
		p.pair(t, "tls.crt", "tls.key", "fourth", time.Hour)
		time.Sleep(web.LookEvery)
		if note, _ := pair.Health(); note == "" {
			t.Error("it was seen before a handshake")
		}
		if got := serves(); got != "fourth" {
			t.Errorf("it serves %s", got)
		}
		if note, red := pair.Health(); note != "" || red {
			t.Errorf("health: %q, red %v", note, red)
		}
	})
	if _, err := web.OpenKeyPair("/nowhere", "/nowhere", "tls.certificate and tls.key", zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "tls.certificate and tls.key of the configuration") {
		t.Errorf("without files: %v", err)
	}
}

// A client may show any certificate or none; what is older than TLS 1.2 gets
// nowhere.
func TestTLSClients(t *testing.T) {
	p, first := newTLSPlace(t, "")
	d := p.run(t)
	foreign := &testEnv{dir: t.TempDir()}
	foreign.pair(t, "c.crt", "c.key", "foreign", time.Hour)
	shown, err := tls.LoadX509KeyPair(foreign.path("c.crt"), foreign.path("c.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*tls.Config)
		good   bool
	}{
		"none":    {func(*tls.Config) {}, true},
		"foreign": {func(c *tls.Config) { c.Certificates = []tls.Certificate{shown} }, true},
		"TLS 1.2": {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, true},
		"TLS 1.1": {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, false},
	} {
		client := trusting(first)
		c.change(client.Transport.(*http.Transport).TLSClientConfig)
		response, err := client.Post("https://"+d.Addr()+"/new", "application/pkcs10", bytes.NewReader(p.request(t)))
		if err == nil {
			response.Body.Close()
		}
		if good := err == nil && response.StatusCode == http.StatusOK; good != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
