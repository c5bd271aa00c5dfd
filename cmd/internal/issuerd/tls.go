package issuerd

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// lookEvery is how often the files are looked at, at the most.
const lookEvery = time.Second

// keyPair is the server's certificate with its key, read again when their files have changed. A pair that cannot be read leaves the
// one before in its place.
type keyPair struct {
	files [2]string // certificate and key
	log   zerolog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	seen    [2]os.FileInfo
	looked  time.Time
	err     error // of the last reading, if it failed
}

// openKeyPair reads the pair that [tls] names.
func openKeyPair(c TLS, log zerolog.Logger) (*keyPair, error) {
	p := &keyPair{files: [2]string{c.Certificate, c.Key}, log: log}
	p.look(true)
	if p.err != nil {
		return nil, fmt.Errorf("loading tls.certificate and tls.key of the configuration: %w", p.err)
	}
	return p, nil
}

// config is for a server. Who shows a certificate in the handshake shows that it has its key, and no more than that: whether it means
// anything is for the issuer to say.
//
// A short answer is one record: strongSwan's client of EST gives up if the second one is not there yet.
func (p *keyPair) config() *tls.Config {
	return &tls.Config{GetCertificate: p.get, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert, DynamicRecordSizingDisabled: true}
}

func (p *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) >= lookEvery {
		p.looked = now
		p.look(false)
	}
	return p.current, nil
}

// reload reads the files, changed or not.
func (p *keyPair) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look(true)
}

// look reads the files if they are others than those that were read last, or if it must.
func (p *keyPair) look(must bool) {
	var now [2]os.FileInfo
	var err error
	for i, name := range p.files {
		if now[i], err = os.Stat(name); err != nil {
			break // LoadX509KeyPair says it
		}
	}
	if !must && same(now, p.seen) {
		return
	}
	p.seen = now // before the reading: what changes meanwhile is seen by the next look
	pair, err := tls.LoadX509KeyPair(p.files[0], p.files[1])
	p.err = err
	switch {
	case err != nil && p.current != nil:
		p.log.Error().Err(err).Time("not_after", p.current.Leaf.NotAfter).Msg("the new TLS certificate cannot be used; the one before stays")
	case err == nil:
		p.current = &pair
		p.log.Info().Time("not_after", pair.Leaf.NotAfter).Msg("TLS certificate loaded")
	}
}

func same(a, b [2]os.FileInfo) bool {
	for i := range a {
		switch {
		case (a[i] == nil) != (b[i] == nil):
			return false
		case a[i] != nil && (!os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size()):
			return false
		}
	}
	return true
}

// health says what is wrong, and whether clients refuse the server because of it.
func (p *keyPair) health() (note string, red bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ended := time.Now().After(p.current.Leaf.NotAfter)
	switch {
	case ended && p.err != nil:
		return "the TLS certificate has expired, and the new one cannot be used", true
	case ended:
		return "the TLS certificate has expired", true
	case p.err != nil:
		return "the new TLS certificate cannot be used; the one before stays", false
	}
	return "", false
}

// state is until when the pair is valid, and whether the last reading failed.
func (p *keyPair) state() (notAfter time.Time, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current.Leaf.NotAfter, p.err != nil
}
