package stationconf

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"secretfree/cmd/internal/config"
	"secretfree/station/auth"
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

func (a Access) HasTokens() bool { return a.ViewToken != "" || a.TechnicianToken != "" }

// TokenFiles are the keys and files of the tokens that there are.
func (a Access) TokenFiles() map[string]string {
	files := map[string]string{}
	for key, name := range map[string]string{"access.view_token_file": a.ViewToken, "access.technician_token_file": a.TechnicianToken} {
		if name != "" {
			files[key] = name
		}
	}
	return files
}

// OnNetwork tells whether others than this machine reach an address.
func OnNetwork(listen string) bool {
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
	case OnNetwork(listen) && !a.TLS() && !a.HasTokens():
		return f.Errorf("listen", fmt.Sprintf("Write %q to keep the page on this machine; or add a table [access] with tls_cert and tls_key, or with view_token_file and technician_token_file, better with all four.", DefaultListen),
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
	for key, name := range a.TokenFiles() {
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
	text, err := io.ReadAll(io.LimitReader(file, auth.MaxToken+3))
	if err != nil {
		return "", err
	}
	token := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(token) < auth.MinToken:
		return "", fmt.Errorf("the token in %s has %d characters, want %d or more", name, len(token), auth.MinToken)
	case len(token) > auth.MaxToken:
		return "", fmt.Errorf("the token in %s is longer than %d characters", name, auth.MaxToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("%s holds more than one token of printable ASCII characters without spaces", name)
	}
	return token, nil
}
