// Stationd puts the hardware identities of the boards on a test fixture on record.
package main

import (
	"context"
	"fmt"
	"os"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationd"
)

type grammar struct {
	cli.Common
	Config string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The configuration (${default})."`
	Check  bool   `name:"check" help:"Check the configuration, say what it means, and exit."`
}

func (grammar) Help() string {
	return `Examples:
  stationd --config /etc/secretfree/stationd.toml
      Serve the slots of the fixture until SIGTERM. Logs go to the standard error.
  stationd --check --config new.toml
      Check a configuration before it is put in place: exit 0, or 1 with file, line and remedy.

A first SIGTERM or SIGINT stops in order, within 5 seconds; a second one cuts it short. No board that has
passed is lost either way.`
}

func (g *grammar) Run(ctx context.Context, out *cli.Output) error {
	c, err := stationd.Load(g.Config)
	if err != nil {
		return err
	}
	if g.Check {
		return out.Print(struct {
			OK      bool   `json:"ok"`
			Station string `json:"station"`
			SKU     string `json:"sku"`
			Slots   int    `json:"slots"`
		}{true, c.Station, c.SKU, len(c.Slots)},
			fmt.Sprintf("%s: good; station %s of SKU %s, %s, registry of kind %s\n", g.Config, c.Station, c.SKU, cli.Count(len(c.Slots), "slot", "slots"), c.Registry.Kind))
	}
	log, err := stationd.NewLog(out.Err, c)
	if err != nil {
		return err
	}
	return stationd.Serve(ctx, c, log)
}

func main() {
	os.Exit(cli.Main("stationd", "Put the hardware identities of boards on record, from a test fixture.", new(grammar), os.Args[1:]))
}
