package stationd

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/config"
	"secretfree/cmd/internal/web"
	"secretfree/station"
)

// Access is the table [access]: who may look at the page, and who may change
// something by it.
type Access struct {
	Certificate     string `toml:"tls_cert"`
	Key             string `toml:"tls_key"`
	ViewToken       string `toml:"view_token_file"`
	TechnicianToken string `toml:"technician_token_file"`
}

// TLS tells whether the page is served by TLS.
func (a Access) TLS() bool { return a.Certificate != "" }

func (a Access) tokens() bool { return a.ViewToken != "" || a.TechnicianToken != "" }

// tokenFiles are the keys and files of the tokens that there are.
func (a Access) tokenFiles() map[string]string {
	files := map[string]string{}
	for key, name := range map[string]string{"access.view_token_file": a.ViewToken, "access.technician_token_file": a.TechnicianToken} {
		if name != "" {
			files[key] = name
		}
	}
	return files
}

// onNetwork tells whether others than this machine reach an address.
func onNetwork(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return true
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return !ip.IsLoopback()
	}
	return !strings.EqualFold(host, "localhost")
}

func (a Access) check(f *config.File, listen string) error {
	for _, file := range []struct{ key, name string }{{"tls_cert", a.Certificate}, {"tls_key", a.Key}, {"view_token_file", a.ViewToken}, {"technician_token_file", a.TechnicianToken}} {
		if file.name != "" && !filepath.IsAbs(file.name) {
			return f.Errorf("access."+file.key, "Write the absolute path of the file.", "access.%s is %q", file.key, file.name)
		}
	}
	switch {
	case a.Certificate == "" && a.Key != "":
		return f.Errorf("access.tls_key", "Write access.tls_cert too: the file with the certificate of this key, PEM.", "there is a key and no certificate")
	case a.Certificate != "" && a.Key == "":
		return f.Errorf("access.tls_cert", "Write access.tls_key too: the file with the key of this certificate, PEM.", "there is a certificate and no key")
	case a.ViewToken != "" && a.ViewToken == a.TechnicianToken:
		return f.Errorf("access.technician_token_file", "Give each role a token of its own, in a file of its own.", "viewers and technicians have the same file")
	case onNetwork(listen) && !a.TLS() && !a.tokens():
		return f.Errorf("listen", fmt.Sprintf("Write %q to keep the page on this machine; or add a table [access] with tls_cert and tls_key, or with view_token_file and technician_token_file, better with all four.", defaultListen),
			"listen is %q, which others reach, with neither TLS nor a token", listen)
	}
	return nil
}

// checkFiles reads what [access] names.
func (a Access) checkFiles(f *config.File) error {
	if a.TLS() {
		if _, err := tls.LoadX509KeyPair(a.Certificate, a.Key); err != nil {
			return f.Errorf("access.tls_cert", "Both must be PEM files that the user of stationd may read, and belong together.", "loading access.tls_cert and access.tls_key: %v", err)
		}
	}
	tokens := map[string]string{}
	for key, name := range a.tokenFiles() {
		token, err := ReadToken(name)
		if err != nil {
			return f.Errorf(key, fmt.Sprintf("Make one that only the user of stationd may read: install -m 600 -o stationd /dev/null %s, then openssl rand -hex 16 > %[1]s.", name), "%s: %v", key, err)
		}
		tokens[key] = token
	}
	if view := tokens["access.view_token_file"]; view != "" && view == tokens["access.technician_token_file"] {
		return f.Errorf("access.technician_token_file", "Give each role a token of its own.", "viewers and technicians have the same token")
	}
	return nil
}

// ReadToken reads a file that holds one token, of station.MinToken to
// station.MaxToken printable characters without white space, and that nobody
// but its owner may read. No error quotes it.
func ReadToken(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	switch {
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a plain file", name)
	case info.Mode().Perm()&0o077 != 0:
		return "", fmt.Errorf("%s has the mode %04o, so others than its owner may use it: chmod 600", name, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, station.MaxToken+3))
	if err != nil {
		return "", err
	}
	token := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(token) < station.MinToken:
		return "", fmt.Errorf("the token in %s has %d characters, want %d or more", name, len(token), station.MinToken)
	case len(token) > station.MaxToken:
		return "", fmt.Errorf("the token in %s is longer than %d characters", name, station.MaxToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("%s holds more than one token of printable ASCII characters without spaces", name)
	}
	return token, nil
}

// gate is what [access] comes to in a daemon.
type gate struct {
	config  Access
	network bool
	secret  []byte
	pair    *web.KeyPair // nil without TLS
	log     zerolog.Logger

	mu     sync.Mutex
	tokens station.Tokens
	looked time.Time
	seen   map[string]os.FileInfo // by the name of a file
}

const secretName = "page.key"

// openGate reads the files of [access], for a page that others reach if
// network. The secret of log-ins is in the state directory, so that they
// survive a restart.
func openGate(c Config, network bool, log zerolog.Logger) (*gate, error) {
	g := &gate{config: c.Access, network: network, log: log, seen: map[string]os.FileInfo{}}
	var err error
	if c.Access.TLS() {
		if g.pair, err = web.OpenKeyPair(c.Access.Certificate, c.Access.Key, "access.tls_cert and access.tls_key", log); err != nil {
			return nil, err
		}
	}
	if !c.Access.tokens() {
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
	if err := os.WriteFile(name+".tmp", secret, 0o600); err != nil {
		return nil, err
	}
	return secret, os.Rename(name+".tmp", name)
}

func (g *gate) access() station.Access {
	a := station.Access{Network: g.network, Secure: g.pair != nil, Secret: g.secret}
	if g.config.tokens() {
		a.Tokens = g.current
	}
	return a
}

// current are the tokens, read again when their files have changed.
func (g *gate) current() station.Tokens {
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
	for _, name := range g.config.tokenFiles() {
		now, err := os.Stat(name)
		before := g.seen[name]
		if (err == nil) != (before != nil) || err == nil && (!os.SameFile(now, before) || !now.ModTime().Equal(before.ModTime()) || now.Size() != before.Size() || now.Mode() != before.Mode()) {
			return true
		}
	}
	return false
}

func (g *gate) read() (station.Tokens, error) {
	byKey := map[string]string{}
	var failed []error
	for key, name := range g.config.tokenFiles() {
		info, err := os.Stat(name) // before the reading: what changes meanwhile is seen by the next look
		if err != nil {
			info = nil
		}
		g.seen[name] = info
		token, err := ReadToken(name)
		failed = append(failed, err)
		byKey[key] = token
	}
	t := station.Tokens{View: byKey["access.view_token_file"], Technician: byKey["access.technician_token_file"]}
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
