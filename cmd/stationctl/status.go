package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationd"
	"secretfree/station"
)

type status struct {
	Config  string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The station's configuration, which says where it listens (${default})."`
	Address string `name:"address" placeholder:"HOST:PORT" help:"Where the station listens; no configuration is read then."`
}

const (
	statusLimit = 10 * time.Second
	maxStatus   = 1 << 20
)

func (s *status) Run(ctx context.Context, out *cli.Output) error {
	address := s.Address
	if address == "" {
		c, err := stationd.Load(s.Config)
		if err != nil {
			return err
		}
		address = reachable(c.Listen)
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	body, code, err := get(ctx, address, "/status")
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
	_, health, err := get(ctx, address, "/healthz")
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

func get(ctx context.Context, address, path string) ([]byte, int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return nil, 0, err
	}
	answer, err := http.DefaultClient.Do(request)
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
	}
	return b.String()
}
