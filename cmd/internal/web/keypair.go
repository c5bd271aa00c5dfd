package web

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// LookEvery is how often the files are looked at, at the most.
const LookEvery = time.Second

// KeyPair is a server's certificate with its key, read again when their files
// have changed. A pair that cannot be read leaves the one before in its place.
// All methods may be called at once.
type KeyPair struct {
	files [2]string // certificate and key
	log   zerolog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	seen    [2]os.FileInfo
	looked  time.Time
	err     error // of the last reading, if it failed
}

// OpenKeyPair reads a pair of PEM files; keys is how the configuration names
// them, for the error.
func OpenKeyPair(certificate, key, keys string, log zerolog.Logger) (*KeyPair, error) {
	p := &KeyPair{files: [2]string{certificate, key}, log: log}
	p.look(true)
	if p.err != nil {
		return nil, fmt.Errorf("loading %s of the configuration: %w", keys, p.err)
	}
	return p, nil
}

// Get is for tls.Config.GetCertificate.
func (p *KeyPair) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) >= LookEvery {
		p.looked = now
		p.look(false)
	}
	return p.current, nil
}

// look reads the files if they are others than those that were read last, or if
// it must.
func (p *KeyPair) look(must bool) {
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

// Health says what is wrong, and whether clients refuse the server because of
// it.
func (p *KeyPair) Health() (note string, red bool) {
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

// State is until when the pair is valid, and whether the last reading failed.
func (p *KeyPair) State() (notAfter time.Time, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current.Leaf.NotAfter, p.err != nil
}
