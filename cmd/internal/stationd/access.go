package stationd

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/stationconf"
	"secretfree/cmd/internal/web"
	"secretfree/spool/durable"
	"secretfree/station/auth"
)

// gate is what [access] comes to in a daemon.
type gate struct {
	config  stationconf.Access
	network bool
	secret  []byte
	pair    *web.KeyPair // nil without TLS
	log     zerolog.Logger

	mu     sync.Mutex
	tokens auth.Tokens
	looked time.Time
	seen   map[string]os.FileInfo // by the name of a file
}

const secretName = "page.key"

// openGate reads the files of [access], for a page that others reach if
// network. The secret of log-ins is in the state directory, so that they
// survive a restart.
func openGate(c stationconf.Config, network bool, log zerolog.Logger) (*gate, error) {
	g := &gate{config: c.Access, network: network, log: log, seen: map[string]os.FileInfo{}}
	var err error
	if c.Access.TLS() {
		if g.pair, err = web.OpenKeyPair(c.Access.Certificate, c.Access.Key, "access.tls_cert and access.tls_key", log); err != nil {
			return nil, err
		}
	}
	if !c.Access.HasTokens() {
		return g, nil
	}
	if g.tokens, err = g.read(); err != nil {
		return nil, fmt.Errorf("reading the tokens of [access]: %w", err)
	}
	g.looked = time.Now()
	if g.secret, err = pageSecret(filepath.Join(c.StateDir, secretName)); err != nil {
		return nil, fmt.Errorf("making the secret of log-ins: %w", err)
	}
	if g.network && g.pair == nil {
		log.Warn().Msg("tokens cross the network unencrypted: give [access] tls_cert and tls_key")
	}
	return g, nil
}

// pageSecret reads the secret, or makes another if there is none that is whole:
// then everybody logs in again.
func pageSecret(name string) ([]byte, error) {
	const size = 32
	secret, err := os.ReadFile(name)
	if err == nil && len(secret) == size {
		return secret, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	secret = make([]byte, size)
	rand.Read(secret)
	return secret, durable.WriteFile(durable.OS{}, name, secret, 0o600)
}

func (g *gate) access() auth.Access {
	a := auth.Access{Network: g.network, Secure: g.pair != nil, Secret: g.secret}
	if g.config.HasTokens() {
		a.Tokens = g.current
	}
	return a
}

// current are the tokens, read again when their files have changed.
func (g *gate) current() auth.Tokens {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.looked) >= web.LookEvery {
		g.looked = now
		if g.changed() {
			g.readAgain()
		}
	}
	return g.tokens
}

func (g *gate) readAgain() {
	tokens, err := g.read()
	if err != nil {
		g.log.Error().Err(err).Msg("the new tokens cannot be used; those before stay")
		return
	}
	if tokens != g.tokens {
		g.tokens = tokens
		g.log.Info().Msg("other tokens hold now; who logged in with the old ones has to log in again")
	}
}

func (g *gate) changed() bool {
	for _, name := range g.config.TokenFiles() {
		now, err := os.Stat(name)
		before := g.seen[name]
		if (err == nil) != (before != nil) || err == nil && (!os.SameFile(now, before) || !now.ModTime().Equal(before.ModTime()) || now.Size() != before.Size() || now.Mode() != before.Mode()) {
			return true
		}
	}
	return false
}

func (g *gate) read() (auth.Tokens, error) {
	byKey := map[string]string{}
	var failed []error
	for key, name := range g.config.TokenFiles() {
		info, err := os.Stat(name) // before the reading: what changes meanwhile is seen by the next look
		if err != nil {
			info = nil
		}
		g.seen[name] = info
		token, err := stationconf.ReadToken(name)
		failed = append(failed, err)
		byKey[key] = token
	}
	t := auth.Tokens{View: byKey["access.view_token_file"], Technician: byKey["access.technician_token_file"]}
	if t.View != "" && t.View == t.Technician {
		failed = append(failed, errors.New("viewers and technicians have the same token"))
	}
	return t, errors.Join(failed...)
}

// listen puts TLS around a listener, if there is a certificate.
func (g *gate) listen(l net.Listener) net.Listener {
	if g.pair == nil {
		return l
	}
	return tls.NewListener(l, &tls.Config{GetCertificate: g.pair.Get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
}

// health says what is wrong with the certificate.
func (g *gate) health() error {
	if g == nil || g.pair == nil {
		return nil
	}
	if note, red := g.pair.Health(); red {
		return errors.New(note)
	}
	return nil
}
