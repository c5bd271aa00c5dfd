// Demo is a factory and a customer's home on one machine: the daemons' own
// code, with simulated boards on pseudo-terminals, a registry in a folder and a
// CA made on the spot.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"secretfree/cmd/internal/cli"
)

type grammar struct {
	cli.Common
	Once   bool   `name:"once" help:"Run all steps, print one line, and exit."`
	Dir    string `name:"dir" placeholder:"DIR" help:"Keep all data in this folder and continue from it. Without it all data is deleted at the end."`
	Listen string `name:"listen" default:"127.0.0.1:0" placeholder:"HOST:PORT" help:"The address of the station's page (${default}: any free port)."`
}

func (grammar) Help() string {
	return `Examples:
  demo
      Walk through the story, then stay up: the page is live, and keys plug boards in and out. Ctrl-C ends it.
  demo --once
      Only the story: exit 0, or 1 with what went wrong.
  demo --dir /tmp/factory --listen 127.0.0.1:8080
      Keep the state, to look at it with stationctl and issuerctl.`
}

// summary is the one line about a story that went well.
type summary struct {
	OK           bool          `json:"ok"`
	Page         string        `json:"page"`
	Records      uint64        `json:"records"`
	Repeats      uint64        `json:"repeats"`
	Refusals     uint64        `json:"refusals"`
	Unplugged    uint64        `json:"unplugged"`
	Certificates int           `json:"certificates"`
	Forgeries    int           `json:"forgeries_refused"`
	Took         time.Duration `json:"took_ns"`
}

func (s summary) text() string {
	return fmt.Sprintf("All as it should be: %d board enrolled, %d seen again, %d refused, %d unplugged; %d certificate, %d forgeries refused; %.1f s.\n",
		s.Records, s.Repeats, s.Refusals, s.Unplugged, s.Certificates, s.Forgeries, s.Took.Seconds())
}

func (g *grammar) Run(ctx context.Context, out *cli.Output) (err error) {
	start := time.Now()
	dir := g.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "secretfree-demo-"); err != nil {
			return fmt.Errorf("making a folder for the demo: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	f, err := openFactory(ctx, dir, g.Listen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()

	fmt.Fprintf(out.People, "secretfree: a factory and a customer's home on this machine.\nThe station's page is http://%s/ and everything is kept in %s\n", f.station.Addr(), dir)
	s := &story{factory: f, out: out.People}
	told, err := s.tell(ctx)
	if err != nil {
		return g.ending(ctx, err)
	}
	told.OK, told.Page, told.Took = true, "http://"+f.station.Addr()+"/", time.Since(start)
	if err := out.Print(told, "\n"+told.text()); err != nil || g.Once {
		return err
	}
	return g.ending(ctx, s.live(ctx, os.Stdin))
}

// ending takes a signal for an orderly end, unless somebody counts on the whole
// story.
func (g *grammar) ending(ctx context.Context, err error) error {
	if ctx.Err() == nil || !errors.Is(context.Cause(ctx), cli.ErrStopped) {
		return err
	}
	if g.Once {
		return fmt.Errorf("the story was not told to its end: %w", context.Cause(ctx))
	}
	return nil
}

func main() {
	os.Exit(cli.Main("demo", "A factory and a customer's home on one machine.", new(grammar), os.Args[1:]))
}
