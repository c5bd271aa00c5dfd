// Stationd puts the hardware identities of the boards on a test fixture on
// record.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/cmd/internal/stationd"
	"secretfree/uart"
)

const defaultConfig = "/etc/secretfree/stationd.toml" // as the tags of the flags have it

type grammar struct {
	cli.Common
	Serve serveCommand `cmd:"" default:"withargs" help:"Serve the slots of the fixture. This is the default command."`
	Init  initCommand  `cmd:"" help:"Write a first configuration: find the serial ports and ask questions."`
}

func (grammar) Manual() cli.Manual {
	return cli.Manual{Section: 8, See: []string{"stationctl(1)", "issuerd(8)"}}
}

func (grammar) Help() string {
	return `Examples:
  stationd init
      Write a first configuration.
  stationd --config /etc/secretfree/stationd.toml
      Serve the slots of the fixture until SIGTERM. Logs go to the standard error.
  stationd --check --config new.toml
      Check a configuration before it is put in place: exit 0, or 1 with file, line and remedy.

A change of the configuration takes a restart, of less than a second: stationd --check, then systemctl restart stationd.
Certificates, tokens and the list of the lot are read again by themselves when their files change.

A first SIGTERM, SIGINT or SIGHUP stops in order, within 5 seconds; a second one cuts it short. No board that has
passed is lost either way.`
}

type serveCommand struct {
	Config string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The configuration (${default})."`
	Check  bool   `name:"check" help:"Check the configuration, print a summary, and exit."`
}

func (s *serveCommand) Run(ctx context.Context, out *cli.Output) error {
	c, err := stationconf.LoadToServe(s.Config)
	if errors.Is(err, fs.ErrNotExist) {
		// As misuse, so that the unit fails once and is not started again and
		// again.
		return fmt.Errorf("%w: there is no configuration %s yet: run stationd init, which writes one, or name another one with --config (%w)", cli.ErrMisuse, s.Config, err)
	}
	if err != nil {
		return err
	}
	if s.Check {
		note := ""
		if os.Geteuid() == 0 && c.Access != (stationconf.Access{}) {
			note = "The files of [access] were read as root; stationctl doctor says whether the station's user may read them too."
		}
		ports, err := uart.List()
		if err != nil {
			fmt.Fprintln(out.People, err) // the configuration is good all the same
		}
		warnings, told := c.PortWarnings(ports), ""
		for _, w := range warnings {
			told += fmt.Sprintf("Warning: slot %s: %s. %s\n", w.Slot, w.Text, w.Remedy)
		}
		return out.Print(struct {
			OK      bool   `json:"ok"`
			Station string `json:"station"`
			SKU     string `json:"sku"`
			Slots   int    `json:"slots"`
			Note    string `json:"note,omitempty"`
			// Warnings are of the settings of ports.
			Warnings []stationconf.PortWarning `json:"warnings,omitempty"`
		}{true, c.Station, c.SKU, len(c.Slots), note, warnings},
			strings.TrimSpace(fmt.Sprintf("%s: good; station %s of SKU %s, %s, registry of kind %s\n%s%s", s.Config, c.Station, c.SKU, cli.Count(len(c.Slots), "slot", "slots"), c.Registry.Kind, told, note))+"\n")
	}
	log, err := stationconf.OpenLog(out.Err, c)
	if err != nil {
		return err
	}
	return stationd.Serve(ctx, c, log)
}

func main() {
	os.Exit(cli.Main("stationd", "Put the hardware identities of boards on record, from a test fixture.", new(grammar), os.Args[1:]))
}
