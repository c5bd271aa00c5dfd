// Issuerd turns a factory's records and the requests of its boards into
// certificates, over HTTP.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
	"secretfree/cmd/internal/issuerd/daemon"
	"secretfree/cmd/internal/issuerd/metrics"
)

type grammar struct {
	cli.Common
	Config string `name:"config" default:"/etc/secretfree/issuerd.toml" placeholder:"FILE" help:"The configuration (${default})."`
	Check  bool   `name:"check" help:"Check the configuration and the files it names, print a summary, and exit."`
}

func (grammar) Manual() cli.Manual {
	return cli.Manual{Section: 8, See: []string{"issuerctl(1)", "stationd(8)"}}
}

func (grammar) Help() string {
	return `Examples:
  issuerd --config /etc/secretfree/issuerd.toml
      Answer POST /new, POST /proto and EST until SIGTERM. Logs go to the standard error.
  issuerd --check --config new.toml
      Check a configuration and all that it names before it is put in place, as a start does: exit 0, or 1 with the
      remedy. Only the addresses are not opened.

A first SIGTERM, SIGINT or SIGHUP lets the requests under way end, within 5 seconds; a second one cuts it short. A
device whose request was cut short asks again and gets the same certificate. The TLS certificate is read again by
itself when its files change. Sockets of systemd are taken by the names listen and metrics.`
}

func (g *grammar) Run(ctx context.Context, out *cli.Output) error {
	c, err := issuerd.Load(g.Config)
	if errors.Is(err, fs.ErrNotExist) {
		// As misuse, so that the unit fails once and is not started again and
		// again.
		return fmt.Errorf("%w: there is no configuration %s yet: write one, as the sample in /usr/share/doc/secretfree-issuer/examples, or name another one with --config (%w)", cli.ErrMisuse, g.Config, err)
	}
	if err != nil {
		return err
	}
	if g.Check {
		if err := daemon.Check(ctx, c, zerolog.Nop()); err != nil {
			return err
		}
		warnings := c.Warnings()
		for _, warning := range warnings {
			fmt.Fprintln(out.People, "Warning: "+warning)
		}
		return out.Print(struct {
			OK       bool   `json:"ok"`
			SKU      string `json:"sku"`
			CA       string `json:"ca"`
			Registry string `json:"registry"`
			Stations int    `json:"trusted_stations"`

			Warnings []string `json:"warnings,omitempty"`
		}{true, c.SKU, c.CA.Kind, c.Registry.Kind, len(c.Stations), warnings},
			fmt.Sprintf("%s: good; SKU %s, CA of kind %s, registry of kind %s, %s\n", g.Config, c.SKU, c.CA.Kind, c.Registry.Kind, cli.Count(len(c.Stations), "trusted station", "trusted stations")))
	}
	log, err := issuerd.OpenLog(out.Err, c)
	if err != nil {
		return err
	}
	d, err := daemon.Open(ctx, c, log, func(d *daemon.Daemon) http.Handler { return metrics.Handler(d) })
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

func main() {
	os.Exit(cli.Main("issuerd", "Issue certificates to boards that a factory has put on record.", new(grammar), os.Args[1:]))
}
