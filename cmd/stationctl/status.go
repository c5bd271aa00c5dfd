package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/station"
)

type status struct {
	Config  string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The station's configuration, for its address (${default})."`
	Address string `name:"address" placeholder:"HOST:PORT" help:"The station's address instead of a configuration, with https:// if it has TLS."`
	Token   string `name:"token-file" placeholder:"FILE" help:"A file with the token; the default is that of [access] in the configuration."`
	CA      string `name:"ca" placeholder:"FILE" help:"CA certificates (PEM) for the station's TLS; the default is the certificate in the configuration, or those of this machine."`
}

const (
	statusLimit = 10 * time.Second
	maxStatus   = 1 << 20
)

func (s *status) Run(ctx context.Context, out *cli.Output) error {
	to, err := s.target()
	if err != nil {
		return err
	}
	address := to.address
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	body, code, err := to.get(ctx, "/status")
	if err != nil {
		return fmt.Errorf("asking the station at %s: %w; is stationd running?", address, err)
	}
	if code != http.StatusOK {
		said, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		return fmt.Errorf("the station at %s answers %d %s: %.200s", address, code, http.StatusText(code), said)
	}
	var shown station.Status
	if err := json.Unmarshal(body, &shown); err != nil {
		return fmt.Errorf("what answers at %s is no station: %w", address, err)
	}
	_, health, err := to.get(ctx, "/healthz")
	if err != nil {
		return fmt.Errorf("asking the station at %s for its health: %w", address, err)
	}
	if err := out.Print(shown, text(shown)); err != nil {
		return err
	}
	if health != http.StatusOK {
		fmt.Fprintln(out.People, "The health of this station is red.")
		return cli.ErrShown
	}
	return nil
}

// reachable is where to reach something that listens on all addresses.
func reachable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// target is a station to ask.
type target struct {
	scheme, address, token string
	client                 *http.Client
}

// target says whom to ask, and how.
func (s *status) target() (target, error) {
	t := target{scheme: "http", address: s.Address}
	verify := &tls.Config{MinVersion: tls.VersionTLS12}
	token := s.Token
	if s.Address == "" {
		c, err := stationconf.Load(s.Config)
		if errors.Is(err, fs.ErrNotExist) {
			return t, fmt.Errorf("there is no configuration %s: name the station's with --config, or where the station listens with --address; stationd init writes one (%w)", s.Config, err)
		}
		if err != nil {
			return t, err
		}
		t.address = reachable(c.Listen)
		if token == "" {
			token = cmp.Or(c.Access.ViewToken, c.Access.TechnicianToken)
		}
		if c.Access.TLS() {
			t.scheme = "https"
			if s.CA == "" {
				if verify, err = only(c.Access.Certificate); err != nil {
					return t, err
				}
			}
		}
	} else if address, ok := strings.CutPrefix(s.Address, "https://"); ok {
		t.scheme, t.address = "https", address
	} else if s.CA != "" {
		t.scheme = "https"
	}
	if s.CA != "" {
		text, err := os.ReadFile(s.CA)
		if err != nil {
			return t, fmt.Errorf("reading the certificates: %w", err)
		}
		verify.RootCAs = x509.NewCertPool()
		if !verify.RootCAs.AppendCertsFromPEM(text) {
			return t, fmt.Errorf("there is no certificate (PEM) in %s", s.CA)
		}
	}
	if token != "" {
		var err error
		if t.token, err = stationconf.ReadToken(token); err != nil {
			return t, fmt.Errorf("reading the token: %w", err)
		}
	}
	t.client = &http.Client{Transport: &http.Transport{TLSClientConfig: verify}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return t, nil
}

// only trusts a certificate that is here as a file, whatever names it has and
// whoever signed it: it is the station's own.
func only(file string) (*tls.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the station's certificate: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("there is no certificate (PEM) in %s", file)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, VerifyConnection: func(c tls.ConnectionState) error {
		if !bytes.Equal(c.PeerCertificates[0].Raw, block.Bytes) {
			return fmt.Errorf("the station shows another certificate than that in %s", file)
		}
		return nil
	}}, nil
}

func (t target) get(ctx context.Context, path string) ([]byte, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.scheme+"://"+t.address+path, nil)
	if err != nil {
		return nil, 0, err
	}
	if t.token != "" {
		request.Header.Set("Authorization", "Bearer "+t.token)
	}
	answer, err := t.client.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxStatus))
	return body, answer.StatusCode, err
}

func text(s station.Status) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s   %s\n", s.Station, s.Cloud)
	for _, slot := range s.Slots {
		fmt.Fprintf(&b, "%-8s %-8s %-32s %-18s %s\n", slot.Name, slot.State, slot.Device, slot.Reason, slot.Advice)
	}
	for _, notice := range s.Notices {
		fmt.Fprintln(&b, notice.Text)
		if notice.Detail != "" {
			fmt.Fprintln(&b, "    "+notice.Detail)
		}
	}
	return b.String()
}
