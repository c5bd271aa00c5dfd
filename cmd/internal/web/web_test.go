package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// crowd is a listener whose clients come from where the test says.
type crowd struct {
	next chan net.Conn
	once sync.Once
	end  chan struct{}
}

func newCrowd() *crowd { return &crowd{next: make(chan net.Conn), end: make(chan struct{})} }

func (c *crowd) Accept() (net.Conn, error) {
	select {
	case conn := <-c.next:
		return conn, nil
	case <-c.end:
		return nil, net.ErrClosed
	}
}

func (c *crowd) Close() error   { c.once.Do(func() { close(c.end) }); return nil }
func (c *crowd) Addr() net.Addr { return &net.TCPAddr{} }

type from struct {
	net.Conn
	address string
}

func (f from) RemoteAddr() net.Addr { return address(f.address) }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// come returns what the client sees: a connection that is served, or what it is
// refused with.
func (c *crowd) come(address string) net.Conn {
	near, far := net.Pipe()
	c.next <- from{far, address}
	return near
}

func TestLimit(t *testing.T) {
	const refusal = "too many pages are open"
	for name, c := range map[string]struct {
		cap  Cap
		come []string // who is refused has a "!"
	}{
		"in all":                {Cap{Total: 2}, []string{"192.0.2.1:1", "192.0.2.2:1", "!192.0.2.3:1"}},
		"in all, from one":      {Cap{Total: 2}, []string{"192.0.2.1:1", "192.0.2.1:2", "!192.0.2.1:3"}},
		"from one":              {Cap{Total: 9, PerAddress: 2}, []string{"192.0.2.1:1", "192.0.2.1:2", "!192.0.2.1:3", "192.0.2.2:1"}},
		"from one, mapped":      {Cap{Total: 9, PerAddress: 1}, []string{"192.0.2.1:1", "![::ffff:192.0.2.1]:2"}},
		"from one, with a zone": {Cap{Total: 9, PerAddress: 1}, []string{"[fe80::1%eth0]:1", "![fe80::1%eth1]:1", "[fe80::2%eth0]:1"}},
		"loopback":              {Cap{Total: 3, PerAddress: 1}, []string{"127.0.0.1:1", "127.0.0.1:2", "[::1]:1", "!127.0.0.1:3"}},
		"mapped loopback":       {Cap{Total: 3, PerAddress: 1}, []string{"[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:2"}},
		"without a word":        {Cap{Total: 1, Refusal: "-"}, []string{"192.0.2.1:1", "!192.0.2.1:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			crowd := newCrowd()
			defer crowd.Close()
			switch c.cap.Refusal {
			case "":
				c.cap.Refusal = refusal
			case "-":
				c.cap.Refusal = ""
			}
			log := new(lockedBuffer)
			l := c.cap.Limit(crowd, zerolog.New(log))
			accepted := make(chan net.Conn)
			ended := make(chan error, 1)
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						ended <- err
						return
					}
					accepted <- conn
				}
			}()
			var first net.Conn
			for _, who := range c.come {
				who, refused := strings.CutPrefix(who, "!")
				near := crowd.come(who)
				defer near.Close()
				if !refused {
					served := <-accepted
					if first == nil {
						first = served
					}
					continue
				}
				said, err := io.ReadAll(near)
				if err != nil || strings.Contains(string(said), "503 Service Unavailable") != (c.cap.Refusal != "") || !strings.HasSuffix(strings.TrimSpace(string(said)), c.cap.Refusal) {
					t.Errorf("%s was told %q, %v", who, said, err)
				}
				host, _, _ := net.SplitHostPort(who)
				if !strings.Contains(log.String(), "one was refused") || host == "192.0.2.3" && !strings.Contains(log.String(), host) {
					t.Errorf("the log has %s", log)
				}
			}
			// A place that was given back, even twice, is one place.
			first.Close()
			first.Close()
			near := crowd.come("192.0.2.1:9")
			defer near.Close()
			(<-accepted).Close()
			crowd.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("the end is %v", err)
			}
		})
	}
}

// What a client sees of a real server: one too many reads why.
func TestLimitServed(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(Cap{Total: 1, Refusal: "close some pages"}.Limit(tcp, zerolog.Nop())) }()
	defer func() {
		server.Close()
		<-ended
	}()
	first, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if said, err := io.ReadAll(second); err != nil || !strings.HasPrefix(string(said), "HTTP/1.1 503 ") || !strings.Contains(string(said), "close some pages") {
		t.Errorf("one too many was told %q, %v", said, err)
	}
	// The first is served, to its end.
	if _, err := io.WriteString(first, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(first); err != nil || !strings.HasPrefix(string(said), "HTTP/1.1 404 ") {
		t.Errorf("the first was told %q, %v", said, err)
	}
}

func TestErrorLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		log := ErrorLog(zerolog.New(&b).With().Str("station", "line3-a").Logger())
		for range 100 {
			log.Printf("http: response.WriteHeader on %q\nand a trace", "a stranger's word")
		}
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if len(lines) != burst {
			t.Errorf("100 errors in a moment are %d lines, want %d", len(lines), burst)
		}
		var line struct{ Level, Station, Error, Message string }
		if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
			t.Fatal(err)
		}
		if line.Level != "warn" || line.Station != "line3-a" || line.Error != "http: response.WriteHeader on \"a stranger's word\"\nand a trace" || line.Message != "serving HTTP" {
			t.Errorf("the line is %s", lines[0])
		}
		b.Reset()
		time.Sleep(time.Minute)
		log.Print("again")
		if !strings.Contains(b.String(), "again") {
			t.Error("a minute later nothing is logged")
		}
	})
}
