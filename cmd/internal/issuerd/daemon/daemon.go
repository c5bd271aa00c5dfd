// Package daemon serves an issuer: addresses, sockets of systemd, TLS and the
// log of requests.
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"secretfree/cloud/issuer/server"
	"secretfree/cmd/internal/issuerd"
	"secretfree/cmd/internal/web"
	"secretfree/station/board"
)

// stopLimit is how long requests may take to end when the daemon stops.
const stopLimit = 4 * time.Second

// Connections that are open at once to one address of ours, and how many of
// them are from one address of theirs. Behind proxies all come from few
// machines, so there is no such cap.
const (
	maxConnections = 512
	maxPerAddress  = 64
)

// The names of sockets that systemd may hand over, each in the place of the
// address of that name.
const (
	socketListen  = "listen"
	socketMetrics = "metrics"
)

// maxHeaders is what API Gateway lets pass, in bytes.
const maxHeaders = 10 << 10

// Daemon serves an issuer over HTTP.
type Daemon struct {
	handler *server.Handler
	opened  *issuerd.Components
	pair    *web.KeyPair // nil without TLS
	servers []served
	log     zerolog.Logger

	perAddress int // connections; 0 behind proxies, which are few
}

type served struct {
	server   *http.Server
	listener net.Listener
}

// Open opens the issuer and its addresses. A configuration must come from Load.
// metrics makes the handler that is served at metrics_listen: see package
// metrics.
func Open(ctx context.Context, c issuerd.Config, log zerolog.Logger, metrics func(*Daemon) http.Handler) (_ *Daemon, err error) {
	d, revocations, err := assemble(ctx, c, log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.opened.Close())
		}
	}()
	given, err := web.Sockets(socketListen, socketMetrics)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		for _, l := range given {
			l.Close()
		}
	}()
	if err := d.listen(given, socketListen, "listen", c.Listen, handler(d.handler, revocations), d.pair); err != nil {
		return nil, err
	}
	if c.MetricsListen != "" || given[socketMetrics] != nil {
		if err := d.listen(given, socketMetrics, "metrics_listen", c.MetricsListen, metrics(d), nil); err != nil {
			return nil, errors.Join(err, d.servers[0].listener.Close())
		}
	}
	return d, nil
}

// Check does what Open does, but for the addresses, which a running daemon has.
// It also reads a registry in a folder.
func Check(ctx context.Context, c issuerd.Config, log zerolog.Logger) error {
	d, _, err := assemble(ctx, c, log)
	if err != nil {
		return err
	}
	if c.Registry.Kind == "dir" {
		if _, lookupErr := d.opened.Registry.Lookup(ctx, board.DeviceID{1}); !errors.Is(lookupErr, board.ErrNotEnrolled) && lookupErr != nil {
			err = fmt.Errorf("reading the registry: %w", lookupErr)
		}
	}
	return errors.Join(err, d.opened.Close())
}

// assemble opens all that a daemon needs but its addresses.
func assemble(ctx context.Context, c issuerd.Config, log zerolog.Logger) (_ *Daemon, _ *server.Revocations, err error) {
	i, err := c.OpenIssuer(ctx)
	if err != nil {
		return nil, nil, err
	}
	d := &Daemon{log: log, opened: i}
	if c.Limits.Proxies == 0 {
		d.perAddress = maxPerAddress
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.Close())
		}
	}()
	if c.TLS.Certificate != "" {
		if d.pair, err = web.OpenKeyPair(c.TLS.Certificate, c.TLS.Key, "tls.certificate and tls.key", log); err != nil {
			return nil, nil, err
		}
	}
	doors := i.HandlerConfig(c.Limits)
	doors.Log = d.decided
	if d.pair != nil {
		doors.Health = d.pair.Health
	}
	if d.handler, err = server.NewHandler(doors); err != nil {
		return nil, nil, err
	}
	revocations, err := i.Revocations(c.Limits, func(err error) { d.log.Error().Err(err).Msg("telling what is revoked") })
	if err != nil {
		return nil, nil, err
	}
	return d, revocations, nil
}

// handler is what strangers reach.
func handler(handler *server.Handler, revocations *server.Revocations) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if revocations.Serves(r) {
			revocations.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// listen takes the socket of a name that systemd opened, or opens the address.
func (d *Daemon) listen(given map[string]net.Listener, name, key, address string, handler http.Handler, pair *web.KeyPair) (err error) {
	listener := given[name]
	if listener == nil {
		if listener, err = net.Listen("tcp", address); err != nil {
			return fmt.Errorf("opening the address (%s in the configuration): %w", key, err)
		}
	}
	listener = web.Cap{Total: maxConnections, PerAddress: d.perAddress}.Limit(listener, d.log)
	if pair != nil {
		listener = tls.NewListener(listener, tlsConfig(pair))
	}
	d.servers = append(d.servers, served{listener: listener, server: newServer(handler, d.log)})
	return nil
}

// tlsConfig is for a server. Who shows a certificate in the handshake shows
// that it has its key, and no more than that: whether it means anything is for
// the issuer to say.
//
// A short answer is one record: strongSwan's client of EST gives up if the
// second one is not there yet.
func tlsConfig(p *web.KeyPair) *tls.Config {
	return &tls.Config{GetCertificate: p.Get, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert, DynamicRecordSizingDisabled: true}
}

// newServer bounds what a client may take its time for.
func newServer(h http.Handler, log zerolog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 45 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: maxHeaders, ErrorLog: web.ErrorLog(log),
	}
}

// Addr is where requests are taken.
func (d *Daemon) Addr() string { return d.servers[0].listener.Addr().String() }

// Stats are those of the handler.
func (d *Daemon) Stats() server.Stats { return d.handler.Stats() }

// TLS tells when the certificate in use expires, and whether its files have
// changed and cannot be used. It is not ok without TLS.
func (d *Daemon) TLS() (notAfter time.Time, failed, ok bool) {
	if d.pair == nil {
		return time.Time{}, false, false
	}
	notAfter, failed = d.pair.State()
	return notAfter, failed, true
}

// MetricsAddr is where the metrics are; empty if nowhere.
func (d *Daemon) MetricsAddr() string {
	if len(d.servers) < 2 {
		return ""
	}
	return d.servers[1].listener.Addr().String()
}

// Run serves until ctx ends, then lets the requests under way end, for less
// than 5 s, and returns nil. Another error means that an address could not be
// served. It runs once.
func (d *Daemon) Run(ctx context.Context) error {
	ended := make(chan error, len(d.servers))
	var serving sync.WaitGroup
	for _, s := range d.servers {
		serving.Go(func() { ended <- s.server.Serve(s.listener) })
	}
	d.notify(sd.SdNotifyReady)
	d.log.Info().Str("address", d.Addr()).Str("metrics", d.MetricsAddr()).Msg("ready")
	var failed error
	select {
	case <-ctx.Done():
	case err := <-ended:
		failed = fmt.Errorf("serving: %w", err)
	}
	d.notify(sd.SdNotifyStopping)
	d.log.Info().AnErr("cause", context.Cause(ctx)).Msg("stopping")
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	for _, s := range d.servers {
		if err := s.server.Shutdown(bounded); err != nil {
			s.server.Close()
		}
	}
	serving.Wait()
	if err := d.opened.Close(); err != nil {
		d.log.Warn().Err(err).Msg("closing the memory of what was issued")
	}
	d.log.Info().Msg("stopped")
	return failed
}

// decided logs a request.
func (d *Daemon) decided(decision server.Decision) { issuerd.LogDecision(d.log, decision) }

func (d *Daemon) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.Warn().Err(err).Msg("telling systemd: " + state)
	}
}
