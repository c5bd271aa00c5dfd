package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationd"
	"secretfree/spool"
)

type spoolPrune struct {
	Config string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The station's configuration, which names its state directory and its registry (${default})."`
	Apply  bool   `name:"apply" help:"Do it. Without this flag it is only said what would be done."`
	Days   *int   `name:"days" placeholder:"N" help:"How old a segment must be; without it the days of [retention] in the configuration."`
}

func (spoolPrune) Help() string {
	return `Only whole segments go, of which the registry has confirmed every record and which are in the archive. Both are asked once
more before a segment is removed. What stays is a summary, a sixth of its size, by which every board in it is known
as before: a repeat passes, a conflict is refused, and the journal can be checked. A proof for such a board needs its
segment back: stationctl spool repair --restore SEQ.

Examples:
  stationctl spool prune --days 90
      What would go, and why the rest stays.
  stationctl spool prune --days 90 --apply
      Exit 0 also if nothing could go. The station may run.
  days = 90 in [retention] of the configuration
      The station does it by itself.`
}

// pruned is a segment, and what becomes of it.
type pruned struct {
	spool.Prunable
	Days int `json:"days"`
}

func (s *spoolPrune) Run(ctx context.Context, out *cli.Output) (err error) {
	c, err := stationd.Load(s.Config)
	if err != nil {
		return err
	}
	days := c.Retention.Days
	if s.Days != nil {
		days = *s.Days
	}
	if days <= 0 {
		return fmt.Errorf("%w: the configuration keeps everything; say with --days how old a segment must be, at least 1", cli.ErrMisuse)
	}
	receipts, err := c.Receipts()
	if err != nil {
		return err
	}
	if err := present(c.StateDir); err != nil {
		return err
	}
	control, err := stationd.OpenControl(c.StateDir, receipts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	outside := func() (spool.Sink, spool.Archive, error) { return stationd.Outside(ctx, c) }
	var bytes int64
	gone := 0
	from := uint64(0)
	for again := true; again; {
		list, err := control.Prune(ctx, time.Duration(days)*24*time.Hour, from, s.Apply, outside)
		again = false
		for _, p := range list {
			if again {
				break // the rest is for the next call, and what stays before it is not looked at again
			}
			switch again, from = p.Pruned, p.Last+1; {
			case p.Kept != "":
				err = errors.Join(err, out.Print(pruned{p, days}, fmt.Sprintf("%8d to %-8d stays: %s\n", p.First, p.Last, p.Kept)))
			case p.Pruned || !s.Apply:
				bytes += p.Bytes
				gone++
				err = errors.Join(err, out.Print(pruned{p, days}, fmt.Sprintf("%8d to %-8d %s\n", p.First, p.Last, map[bool]string{true: "pruned", false: "would be pruned"}[p.Pruned])))
			}
		}
		if err != nil {
			return err
		}
	}
	if s.Apply {
		fmt.Fprintf(out.People, "Pruned: %s, %s.\n", cli.Count(gone, "segment", "segments"), cli.Size(bytes))
	} else {
		fmt.Fprintf(out.People, "Would be pruned: %s, %s. Nothing was changed; --apply does it.\n", cli.Count(gone, "segment", "segments"), cli.Size(bytes))
	}
	return nil
}
