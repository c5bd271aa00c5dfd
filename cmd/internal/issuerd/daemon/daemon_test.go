package daemon

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// one is a listener with one connection.
type one struct {
	next chan net.Conn
	end  chan struct{}
}

func (o one) Accept() (net.Conn, error) {
	select {
	case c := <-o.next:
		return c, nil
	case <-o.end:
		return nil, net.ErrClosed
	}
}

func (o one) Close() error   { close(o.end); return nil }
func (o one) Addr() net.Addr { return &net.TCPAddr{} }

// serve has the daemon's server read what a client says, and returns after how
// long the connection was closed.
func serve(log zerolog.Logger, says string) time.Duration {
	server := newServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			panic("a bug")
		}
	}), log)
	l := one{make(chan net.Conn), make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	start := time.Now()
	near, far := net.Pipe()
	l.next <- far
	go io.WriteString(near, says)
	io.Copy(io.Discard, near)
	took := time.Since(start)
	near.Close()
	server.Close()
	<-ended
	return took
}

// A client that takes its time loses its connection, and a bug in a handler is
// in the daemon's log.
func TestServer(t *testing.T) {
	for name, c := range map[string]struct {
		says string
		gone time.Duration
		log  string
	}{
		"nothing":       {"", 5 * time.Second, ""},
		"half a header": {"POST /new HTTP/1.1\r\nHost: x", 5 * time.Second, ""},
		"half a body":   {"POST /new HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", 15 * time.Second, ""},
		"a bug":         {"POST /new HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 0, `{"level":"warn","error":"http: panic serving`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				if took := serve(zerolog.New(&log), c.says); took < c.gone || took > c.gone+time.Second { // net/http may linger for half a second
					t.Errorf("the connection was closed after %v, want %v", took, c.gone)
				}
				if !strings.HasPrefix(log.String(), c.log) || c.log == "" && log.Len() > 0 {
					t.Errorf("the log is %s", &log)
				}
			})
		})
	}
}
