package stationd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/stationconf"
)

// pipes is a listener of connections that need no network, so that time can be
// the test's.
type pipes struct {
	next chan net.Conn
	end  chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.next:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.end); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A client that takes its time with the header, with the next request, or with
// reading, loses its connection.
func TestSlowClients(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, c := range map[string]struct {
		says string
		read bool // the answer
		gone time.Duration
	}{
		"nothing":           {"", false, 5 * time.Second},
		"half a header":     {"GET / HTTP/1.1\r\nHost: loc", false, 5 * time.Second},
		"no second request": {request, true, time.Minute},
		"reads no answer":   {request, false, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := pipes{make(chan net.Conn), make(chan struct{})}
				server := pageServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }), zerolog.Nop())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					server.Serve(l)
				}()
				near, far := net.Pipe()
				gone := make(chan time.Duration, 1)
				start := time.Now()
				l.next <- closing{far, func() { gone <- time.Since(start) }}
				if _, err := io.WriteString(near, c.says); err != nil {
					t.Fatal(err)
				}
				if c.read {
					answer, err := http.ReadResponse(bufio.NewReader(near), nil)
					if err != nil || answer.StatusCode != http.StatusOK {
						t.Fatal(answer, err)
					}
				}
				if took := <-gone; took < c.gone || took > c.gone+time.Second { // net/http may linger for half a second
					t.Errorf("the connection was closed after %v, want %v", took, c.gone)
				}
				near.Close()
				server.Close()
				<-ended
			})
		})
	}
}

type closing struct {
	net.Conn
	closed func()
}

func (c closing) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Whoever keeps connections open keeps none from the station's own work, and is
// told; /events counts as the rest.
func TestConnectionsAreCapped(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	for i := range maxConnections {
		c, err := net.Dial("tcp", d.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i > 0 {
			continue
		}
		fmt.Fprintf(c, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("the events: %q, %v", line, err)
		}
	}
	c, err := net.Dial("tcp", d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if said, err := io.ReadAll(c); err != nil || !strings.Contains(string(said), "503") || !strings.Contains(string(said), "close some pages") {
		t.Errorf("one too many was told %q, %v", said, err)
	}
	if !strings.Contains(d.log.String(), "too many connections") {
		t.Errorf("the log does not tell:\n%s", d.log)
	}
}

// The metrics are behind the same guard as the page; the name that the page
// listens on is always its own.
func TestMetricsAreGuarded(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	ask := func(method, host string) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.Addr()+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = host
		answer, err := http.DefaultClient.Do(request)
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
	for _, c := range []struct {
		method, host string
		code         int
	}{
		{http.MethodGet, "localhost", 200}, {http.MethodHead, "127.0.0.1:8080", 200},
		{http.MethodGet, "evil.example", 421}, {http.MethodPost, "localhost", 405}, {http.MethodDelete, "evil.example", 405},
	} {
		if code, body := ask(c.method, c.host); code != c.code || code != 200 && strings.Contains(body, "stationd_") {
			t.Errorf("%s /metrics of %s: %d %.60s, want %d", c.method, c.host, code, body, c.code)
		}
	}
	if hosts := (stationconf.Config{Listen: "line3-a.factory.example:8080", Hosts: []string{"line3"}}).AllowedHosts(); len(hosts) != 2 || hosts[1] != "line3-a.factory.example" {
		t.Errorf("the hosts are %q", hosts)
	}
	if hosts := (stationconf.Config{Listen: ":8080"}).AllowedHosts(); len(hosts) != 0 {
		t.Errorf("the hosts are %q", hosts)
	}
}

// What net/http has to say, as of a bug in a handler, is in the daemon's log.
func TestServerErrorsAreLogged(t *testing.T) {
	log := new(lockedBuffer)
	server := pageServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug") }), zerolog.New(log))
	l := pipes{make(chan net.Conn), make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	near, far := net.Pipe()
	l.next <- far
	if _, err := io.WriteString(near, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(near); err != nil || len(said) > 0 {
		t.Errorf("the client was told %q, %v", said, err)
	}
	if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 1 || !strings.HasPrefix(lines[0], `{"level":"warn","error":"http: panic serving`) {
		t.Errorf("the log is %q", lines)
	}
	server.Close()
	<-ended
}
