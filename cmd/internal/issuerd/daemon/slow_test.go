package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/issuerd"
	"secretfree/cmd/internal/web/webtest"
)

// opened is a daemon that is not run, with its TLS certificate.
func openedForSlowClients(t *testing.T, more string) *Daemon {
	t.Helper()
	p := newTestEnv(t, "listen = \"127.0.0.1:0\"", more)
	p.pair(t, "tls.crt", "tls.key", "first", 24*time.Hour)
	c, err := issuerd.Load(p.path("issuerd.toml"))
	if err != nil {
		t.Fatal(err)
	}
	c.TLS = issuerd.TLS{Certificate: p.path("tls.crt"), Key: p.path("tls.key")}
	d, err := Open(t.Context(), c, zerolog.New(io.Discard), showMetrics)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range d.servers {
			_ = s.listener.Close()
		}
		_ = d.opened.Close()
	})
	return d
}

// However slow a client is, wherever it stops, its connection ends within a
// limit, and others are served meanwhile.
func TestSlowClients(t *testing.T) {
	post := func(path, kind, body string) webtest.Request {
		return webtest.Request{Name: "POST " + path, Body: body,
			Head: fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", path, kind, len(body))}
	}
	chunked := webtest.Request{Name: "chunked POST /new", Body: "5\r\nhello\r\n0\r\n\r\n",
		Head: "POST /new HTTP/1.1\r\nHost: x\r\nContent-Type: application/pkcs10\r\nTransfer-Encoding: chunked\r\n\r\n"}
	unread := webtest.Request{Name: "GET with a body", Body: "hello", Head: "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"}
	nowhere := webtest.Request{Name: "POST to nowhere", Body: "hello", Head: "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"}
	large := post("/new", "application/pkcs10", string(make([]byte, 20_000)))
	large.Name = "a body too large"
	requests := []webtest.Request{
		post("/new", "application/pkcs10", "no request"), post("/proto", "application/pkcs10", "no request"), chunked, unread, nowhere,
		post("/.well-known/est/simpleenroll", "application/pkcs10", "no request"), post("/.well-known/est/simplereenroll", "application/pkcs10", "no request"),
		post("/ocsp", "application/ocsp-request", "no request"),
		{Name: "GET /challenge", Head: "GET /challenge HTTP/1.1\r\nHost: x\r\n\r\n"},
		{Name: "GET /crl", Head: "GET /crl/local.crl HTTP/1.1\r\nHost: x\r\n\r\n"},
	}
	other := webtest.Request{Name: "GET /challenge", Head: "GET /challenge HTTP/1.1\r\nHost: x\r\n\r\n"}
	limits := webtest.Limits{Header: 5 * time.Second, Body: 15 * time.Second, Answer: 45 * time.Second, Idle: time.Minute}
	for name, more := range map[string]string{"direct": "[limits]\nsource_per_minute = 0\nstatus_per_minute = 0\n", "behind proxies": "[limits]\nproxies = 1\nsource_per_minute = 0\nstatus_per_minute = 0\n"} {
		t.Run(name, func(t *testing.T) {
			d := openedForSlowClients(t, more)
			now := time.Now()
			serve := func() *http.Server { return newServer(d.servers[0].server.Handler, zerolog.New(io.Discard)) }
			webtest.SlowClients(t, now, serve, limits, requests, other)
		})
	}
}

// A TLS handshake that stops ends within a limit, and HTTP/2 is not spoken.
func TestSlowHandshakes(t *testing.T) {
	d := openedForSlowClients(t, "")
	pair, err := d.pair.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	wrap := func(l net.Listener) net.Listener { return tls.NewListener(l, tlsConfig(d.pair)) }
	webtest.SlowHandshakes(t, time.Now(), func() *http.Server { return newServer(d.servers[0].server.Handler, zerolog.New(io.Discard)) }, wrap,
		&tls.Config{RootCAs: roots, ServerName: "localhost"}, 5*time.Second)
}
