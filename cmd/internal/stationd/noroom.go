package stationd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"secretfree/cmd/internal/stationconf"
	"secretfree/cmd/internal/web"
)

// openAgain is how often a station that found no room on its disk tries again.
// It is well below the unit's WatchdogSec.
const openAgain = 2 * time.Second

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// openWithRoom is Open. If the disk of the state directory is full, as when an
// index is to be built anew, the page's address says so until there is room, and
// then the station opens.
func openWithRoom(ctx context.Context, c stationconf.Config, log zerolog.Logger) (*Daemon, error) {
	d, err := Open(ctx, c, log)
	if !isFull(err) {
		return d, err
	}
	l, listenErr := listen(c)
	if listenErr != nil {
		return nil, errors.Join(err, listenErr)
	}
	page := &noRoomPage{dir: c.StateDir, err: err}
	lent := &lentListener{Listener: l, back: make(chan struct{})}
	g := &gate{config: c.Access}
	if c.Access.TLS() {
		var pairErr error
		if g.pair, pairErr = web.OpenKeyPair(c.Access.Certificate, c.Access.Key, "access.tls_cert and access.tls_key", log); pairErr != nil {
			return nil, errors.Join(err, pairErr, l.Close())
		}
	}
	server := pageServer(page, log)
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(g.listen(web.Cap{
			Total: maxConnections, PerAddress: maxPerAddress, Refusal: "too many connections to this station are open: close some pages",
		}.Limit(lent, log)))
	}()
	giveBack := sync.OnceFunc(func() {
		lent.giveBack()
		server.Close()
		<-served
		lent.again()
	})
	defer giveBack()
	log.Error().Err(err).Stringer("page", l.Addr()).Msg("there is no room on the disk of the station: no board can be read; the page says so, and the station starts by itself when there is room")

	// The unit counts as started, so that systemd neither ends it nor starts it
	// again and again; its watchdog is fed until the station is open.
	opening, opened := context.WithCancel(ctx)
	defer opened()
	go feedWatchdog(opening, log)
	ticker := time.NewTicker(openAgain)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, l.Close())
		case <-ticker.C:
		}
		d, err = openAt(ctx, c, log, func() (net.Listener, error) {
			giveBack()
			return l, nil
		})
		if !isFull(err) {
			if err != nil {
				err = errors.Join(err, closeListener(l))
			}
			return d, err
		}
		page.set(err)
	}
}

// closeListener closes one that may be closed already.
func closeListener(l net.Listener) error {
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func feedWatchdog(ctx context.Context, log zerolog.Logger) {
	state := daemon.SdNotifyReady
	ticker := time.NewTicker(openAgain)
	defer ticker.Stop()
	for {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn().Err(err).Msg("telling systemd: " + state)
		}
		state = daemon.SdNotifyWatchdog
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// lentListener is a listener that a server uses for a while: its Close ends what
// the server accepts, and leaves the listener open.
type lentListener struct {
	net.Listener
	back chan struct{}
	once sync.Once
}

func (l *lentListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	select {
	case <-l.back:
		if err == nil {
			err = c.Close() // whoever asked asks again
		}
		return nil, errors.Join(net.ErrClosed, err)
	default:
		return c, err
	}
}

func (l *lentListener) Close() error {
	l.giveBack()
	return nil
}

// giveBack ends an Accept that waits.
func (l *lentListener) giveBack() {
	l.once.Do(func() {
		close(l.back)
		l.deadline(time.Now())
	})
}

// again lets the next user accept.
func (l *lentListener) again() { l.deadline(time.Time{}) }

func (l *lentListener) deadline(t time.Time) {
	if has, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		_ = has.SetDeadline(t) // of an open listener
	}
}

// noRoomPage is what a station shows that has no room to start. It holds nothing
// that needs a log-in.
type noRoomPage struct {
	dir string

	mu  sync.Mutex
	err error
}

func (p *noRoomPage) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

var noRoomHTML = template.Must(template.New("").Parse(`<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>DISK FULL</title>
<body style="font-family:sans-serif;margin:2em"><h1>DISK FULL</h1>
<p><b>Call IT. Do not insert boards.</b></p>
<p>{{.}}</p></body></html>
`))

func (p *noRoomPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	text := fmt.Sprintf("The disk of this station is full, and it cannot start. Make room on the disk of %s; the station then starts by itself. What has passed is in the journal. (%v)", p.dir, p.err)
	p.mu.Unlock()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Retry-After", "5")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	switch r.URL.Path {
	case "/":
		h.Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = noRoomHTML.Execute(w, text) // nobody is there to be told
	case "/status":
		h.Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
	default:
		http.Error(w, text, http.StatusServiceUnavailable)
	}
}
