// Package web is what the daemons put around net/http: a cap on open
// connections, a certificate that is read again, and an error log in their own
// format.
package web

import (
	"log"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	burst       = 10 // lines of the error log in a minute; the rest says nothing new
	refuseLimit = time.Second
)

// Cap is how many connections may be open at once. On loopback all clients have
// one address, and only Total counts there.
type Cap struct {
	Total      int
	PerAddress int    // 0: no cap of its own
	Refusal    string // a sentence for one too many, sent as an answer over HTTP; empty: it is closed without a word
}

// Limit caps the connections that l accepts. One too many is refused at once,
// so that it waits for nobody, and logged.
func (c Cap) Limit(l net.Listener, to zerolog.Logger) net.Listener {
	limited := &listener{Listener: l, cap: c, from: map[netip.Addr]int{}, log: sampled(to)}
	if c.Refusal != "" {
		limited.refusal = []byte("HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n" + c.Refusal + "\n")
	}
	return limited
}

type listener struct {
	net.Listener
	cap     Cap
	refusal []byte
	log     zerolog.Logger

	mu   sync.Mutex
	open int
	from map[netip.Addr]int // open ones, by address; not of loopback
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := client(c)
		if l.admit(address) {
			return &conn{Conn: c, release: sync.OnceFunc(func() { l.release(address) })}, nil
		}
		l.log.Warn().Stringer("client", address).Msg("too many connections are open; one was refused")
		if l.refusal != nil {
			c.SetWriteDeadline(time.Now().Add(refuseLimit)) // what was never written to takes this much at once
			c.Write(l.refusal)
		}
		c.Close()
	}
}

// client is who is at the other end; the zero value if it has no address to be
// counted by.
func client(c net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil || at.Addr().IsLoopback() || at.Addr().Unmap().IsLoopback() {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

func (l *listener) admit(address netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.cap.Total || address.IsValid() && l.cap.PerAddress > 0 && l.from[address] >= l.cap.PerAddress {
		return false
	}
	l.open++
	if address.IsValid() {
		l.from[address]++
	}
	return true
}

func (l *listener) release(address netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.from[address]--; l.from[address] <= 0 {
		delete(l.from, address)
	}
}

// conn gives its place back when it is closed.
type conn struct {
	net.Conn
	release func()
}

func (c *conn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http send what it wrote before it closes.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// ErrorLog is for http.Server.ErrorLog: it writes to a daemon's log, and no
// more than a few lines in a minute, since it is strangers who cause them.
func ErrorLog(to zerolog.Logger) *log.Logger { return log.New(errorLog{sampled(to)}, "", 0) }

func sampled(to zerolog.Logger) zerolog.Logger {
	return to.Sample(&zerolog.BurstSampler{Burst: burst, Period: time.Minute})
}

type errorLog struct{ to zerolog.Logger }

func (e errorLog) Write(line []byte) (int, error) {
	e.to.Warn().Str("error", strings.TrimSpace(string(line))).Msg("serving HTTP")
	return len(line), nil
}
