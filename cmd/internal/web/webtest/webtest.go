// Package webtest tests how long a server waits for slow clients.
package webtest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Limits are how long a server may wait in each phase of a connection.
type Limits struct {
	Header, Body, Answer, Idle time.Duration
}

// Request is one whole request, as bytes. The server must answer it.
type Request struct {
	Name string
	Head string // up to and with the empty line
	Body string
}

// Listener hands connections of a test to a server.
type Listener struct {
	next chan net.Conn
	end  chan struct{}
	once sync.Once
}

// NewListener is for one server.
func NewListener() *Listener { return &Listener{next: make(chan net.Conn), end: make(chan struct{})} }

// Accept is that of net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.end:
		return nil, net.ErrClosed
	}
}

// Close is that of net.Listener.
func (l *Listener) Close() error { l.once.Do(func() { close(l.end) }); return nil }

// Addr is that of net.Listener.
func (l *Listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// Dial connects to the server.
func (l *Listener) Dial() net.Conn {
	near, far := net.Pipe()
	l.next <- far
	return near
}

// slack is how long net/http may linger after a limit.
const slack = time.Second

// SlowClients stops every request at each of its bytes, sends it byte by byte,
// leaves the answer unread, and stays silent after it. The server must close
// each of these connections within its limit, and answer the request other
// meanwhile. serve makes a server anew; it is called in a bubble of
// testing/synctest whose clock starts at now.
func SlowClients(t *testing.T, now time.Time, serve func() *http.Server, limits Limits, requests []Request, other Request) {
	t.Helper()
	bubble := func(name string, test func(t *testing.T, l *Listener)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(now)) // a bubble starts in the year 2000
				l, server := NewListener(), serve()
				var serving sync.WaitGroup
				serving.Go(func() { _ = server.Serve(l) })
				test(t, l)
				server.Close()
				serving.Wait()
			})
		})
	}
	for _, r := range requests {
		whole := r.Head + r.Body
		bubble(r.Name+" stopped at each byte", func(t *testing.T, l *Listener) {
			var clients sync.WaitGroup
			for n := range len(whole) {
				limit := limits.Header
				if n >= len(r.Head) {
					limit = limits.Body
				}
				c := l.Dial()
				clients.Go(func() {
					if _, err := io.WriteString(c, whole[:n]); err != nil {
						t.Errorf("after %d bytes: %v", n, err)
					}
					mustClose(t, c, limit, fmt.Sprintf("stopped after %d of %d bytes", n, len(whole)))
				})
			}
			mustAnswer(t, l, other)
			clients.Wait()
		})
		bubble(r.Name+" byte by byte", func(t *testing.T, l *Listener) {
			c := l.Dial()
			var writing sync.WaitGroup
			writing.Go(func() {
				for n := range len(whole) {
					if _, err := io.WriteString(c, whole[n:n+1]); err != nil {
						return
					}
					time.Sleep(limits.Header / 8)
				}
			})
			mustClose(t, c, limits.Body, "byte by byte")
			writing.Wait()
		})
		bubble(r.Name+" with the answer unread", func(t *testing.T, l *Listener) {
			c := l.Dial()
			start := time.Now()
			if _, err := io.WriteString(c, whole); err != nil {
				t.Fatal(err)
			}
			mustAnswer(t, l, other)
			// A write to a connection that the other side has closed fails.
			_ = c.SetWriteDeadline(start.Add(limits.Answer + limits.Idle))
			for err := error(nil); err == nil; {
				time.Sleep(slack)
				_, err = io.WriteString(c, " ")
			}
			if took := time.Since(start); took > limits.Answer+2*slack {
				t.Errorf("the answer was held for %v, want %v", took, limits.Answer)
			}
		})
		bubble(r.Name+" and no other request", func(t *testing.T, l *Listener) {
			c := l.Dial()
			if _, err := io.WriteString(c, whole); err != nil {
				t.Fatal(err)
			}
			buffered := bufio.NewReader(c)
			if _, err := readAnswer(buffered); err != nil {
				t.Fatal(err)
			}
			mustClose(t, c, limits.Idle, "after an answer")
		})
	}
}

// mustClose waits until the server closes a connection, whatever it answers
// before.
func mustClose(t *testing.T, c net.Conn, limit time.Duration, when string) {
	t.Helper()
	start := time.Now()
	_ = c.SetReadDeadline(start.Add(10 * limit))
	_, err := io.Copy(io.Discard, c)
	if took := time.Since(start); err != nil || took > limit+slack {
		t.Errorf("%s: closed after %v (%v), want %v", when, took, err, limit)
	}
	_ = c.Close()
}

// mustAnswer sends one whole request, which must be answered at once.
func mustAnswer(t *testing.T, l *Listener, r Request) {
	t.Helper()
	c := l.Dial()
	defer c.Close()
	start := time.Now()
	go func() { _, _ = io.WriteString(c, r.Head+r.Body) }()
	status, err := readAnswer(bufio.NewReader(c))
	if took := time.Since(start); err != nil || status >= http.StatusInternalServerError || took > slack {
		t.Errorf("%s is answered %d after %v, %v, while others are slow", r.Name, status, took, err)
	}
}

func readAnswer(from *bufio.Reader) (status int, err error) {
	response, err := http.ReadResponse(from, nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// SlowHandshakes stops TLS handshakes of clients at each of their bytes. The
// server must close each of these connections within the limit, answer a whole
// handshake meanwhile, and speak no HTTP/2, whose streams have no limits here.
func SlowHandshakes(t *testing.T, now time.Time, serve func() *http.Server, wrap func(net.Listener) net.Listener, client *tls.Config, limit time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		l, server := NewListener(), serve()
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(wrap(l)) })
		client = client.Clone()
		client.Time = time.Now
		client.NextProtos = []string{"h2", "http/1.1"}
		handshake := func(stop int) (sent int, state tls.ConnectionState, err error) {
			c := &stopping{Conn: l.Dial(), left: stop}
			_ = c.SetDeadline(time.Now().Add(10 * limit))
			start := time.Now()
			secured := tls.Client(c, client)
			err = secured.Handshake()
			if stop >= 0 {
				if err == nil { // of TLS 1.3, the client's end comes first
					_, err = secured.Read(make([]byte, 1))
				}
				if took := time.Since(start); err == nil || took > limit+slack {
					t.Errorf("a handshake stopped after %d bytes: %v after %v, want an end after %v", stop, err, took, limit)
				}
			}
			_ = c.Conn.Close()
			return c.sent, secured.ConnectionState(), err
		}
		whole, state, err := handshake(-1)
		if err != nil || state.NegotiatedProtocol == "h2" || whole == 0 {
			t.Fatalf("a whole handshake: %v, protocol %q", err, state.NegotiatedProtocol)
		}
		var clients sync.WaitGroup
		for n := 0; n < whole-1; n += max(1, whole/200) {
			clients.Go(func() { _, _, _ = handshake(n) })
		}
		if _, _, err := handshake(-1); err != nil {
			t.Errorf("a whole handshake while others are slow: %v", err)
		}
		clients.Wait()
		server.Close()
		serving.Wait()
	})
}

// stopping passes so many bytes on, and drops the others. Negative: all pass.
type stopping struct {
	net.Conn
	left, sent int
}

func (s *stopping) Write(p []byte) (int, error) {
	s.sent += len(p)
	if s.left < 0 {
		return s.Conn.Write(p)
	}
	pass := p[:min(len(p), s.left)]
	s.left -= len(pass)
	if len(pass) == 0 {
		return len(p), nil
	}
	if _, err := s.Conn.Write(pass); err != nil {
		return 0, err
	}
	return len(p), nil
}
