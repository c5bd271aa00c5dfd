package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool"
	"secretfree/spool/durable"
	"secretfree/station/board"
)

type spoolDead struct{ place }

func (s *spoolDead) Run(ctx context.Context, out *cli.Output) (err error) {
	client, err := s.control()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	list, err := client.List(ctx)
	if err != nil {
		return err
	}
	for _, letter := range list {
		if err := out.Print(letter, fmt.Sprintf("%8d  %s  %s  %s\n", letter.Seq, letter.Time.Format(time.RFC3339), letter.Device, letter.Reason)); err != nil {
			return err
		}
	}
	if len(list) == 0 {
		fmt.Fprintln(out.People, "There are no dead letters.")
	}
	return nil
}

// control is access to a station, whether it runs or not.
func (p place) control() (*control.Client, error) {
	dir, receipts, err := p.station()
	if err != nil {
		return nil, err
	}
	if err := present(dir); err != nil {
		return nil, err
	}
	return control.Open(dir, receipts)
}

type spoolRequeue struct {
	place
	Seq uint64 `arg:"" help:"The number of the entry, as spool dead lists it."`
}

func (s *spoolRequeue) Run(ctx context.Context, out *cli.Output) (err error) {
	client, err := s.control()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if err := client.Requeue(ctx, s.Seq); err != nil {
		return err
	}
	return out.Print(struct {
		Seq uint64 `json:"seq"`
	}{s.Seq}, fmt.Sprintf("Entry %d is delivered once more. If the verdict of the registry is the same, it is a dead letter again.\n", s.Seq))
}

type spoolExport struct {
	place
	Seq uint64 `arg:"" help:"The number of the entry, as spool dead lists it."`
}

func (s *spoolExport) Run(ctx context.Context, out *cli.Output) (err error) {
	client, err := s.control()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	evidence, err := client.Export(ctx, s.Seq)
	if err != nil {
		return err
	}
	pretty, err := json.MarshalIndent(evidence, "", "  ")
	if err != nil {
		return fmt.Errorf("exporting entry %d: %w", s.Seq, err)
	}
	return out.Print(evidence, string(pretty)+"\n")
}

type spoolRepair struct {
	place
	Apply bool   `name:"apply" help:"Restore the entries. Without this flag the command only lists what it would do."`
	From  string `name:"from" placeholder:"DIR" help:"A copy of the state directory with segments to restore from."`
	Key   string `name:"key" placeholder:"FILE" help:"The station's public key; the default is station.pub of the state directory."`
}

// fixed is what becomes of a damaged entry.
type fixed struct {
	Segment uint64     `json:"segment"`
	Seq     uint64     `json:"seq"`
	From    spool.From `json:"from"`
	Device  string     `json:"device,omitempty"`
	Reason  string     `json:"reason,omitempty"`
}

func (s *spoolRepair) Run(ctx context.Context, out *cli.Output) error {
	dir, err := s.dir()
	if err != nil {
		return err
	}
	if err := present(dir); err != nil {
		return err
	}
	if err := control.CheckOwner(dir, os.Geteuid()); err != nil {
		return err
	}
	path := s.Key
	if path == "" {
		path = filepath.Join(dir, "station.pub")
	}
	verifier, err := readKey(path)
	if err != nil {
		return err
	}
	sources, err := s.sources(ctx)
	if err != nil {
		return err
	}
	report, err := spool.Repair(dir, verifier, sources, !s.Apply)
	if errors.Is(err, durable.ErrLocked) {
		return fmt.Errorf("%w: a journal is repaired while its station is stopped", err)
	}
	if err != nil {
		return err
	}
	for _, fix := range report.Fixes {
		f := fixed{Segment: fix.Segment, Seq: fix.Seq, From: fix.From, Reason: fix.Reason}
		if fix.Device.Valid() {
			f.Device = fix.Device.String()
		}
		if err := out.Print(f, fmt.Sprintf("%8d  %-9s %-32s %s\n", f.Seq, f.From, f.Device, f.Reason)); err != nil {
			return err
		}
	}
	for _, aside := range report.Quarantined {
		fmt.Fprintf(out.People, "The damaged file is kept as %s\n", aside)
	}
	for _, path := range report.Checkpoints {
		fmt.Fprintf(out.People, "The checkpoint %s is damaged: the next start makes it again from the journal.\n", path)
	}
	if report.Torn > 0 {
		fmt.Fprintf(out.People, "The last line is not whole (%s): the next start quarantines it.\n", cli.Count(report.Torn, "byte", "bytes"))
	}
	switch {
	case len(report.Damage) == 0 && (report.Torn > 0 || len(report.Checkpoints) > 0):
		fmt.Fprintln(out.People, "The other entries are not damaged.")
	case len(report.Damage) == 0:
		fmt.Fprintln(out.People, "The journal is not damaged.")
	case !s.Apply:
		fmt.Fprintf(out.People, "%d entries would be had back, %d not. Nothing was changed; --apply does it.\n", len(report.Fixes)-report.Left, report.Left)
	default:
		fmt.Fprintf(out.People, "%d entries were had back, %d not.\n", len(report.Fixes)-report.Left, report.Left)
	}
	if report.Left > 0 {
		return cli.ErrShown
	}
	return nil
}

// sources are a copy of the state directory, if one is named, and the archive,
// if a configuration names a registry.
func (s *spoolRepair) sources(ctx context.Context) (spool.Sources, error) {
	var sources spool.Sources
	if s.From != "" {
		if err := present(s.From); err != nil {
			return sources, err
		}
		sources.Segment = func(first uint64) ([]byte, error) {
			return os.ReadFile(filepath.Join(s.From, "journal", fmt.Sprintf("%020d.jsonl", first)))
		}
	}
	if s.StateDir != "" {
		return sources, nil
	}
	copied := sources.Segment
	c, err := stationconf.Load(s.Config)
	if err != nil {
		return sources, err
	}
	if c.Registry.Kind == stationconf.NoRegistry {
		return sources, nil
	}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return sources, fmt.Errorf("opening the registry: %w", err)
	}
	archived := aws.Segment
	if dir != nil {
		archived = dir.Segment
	}
	sources.Segment = func(first uint64) ([]byte, error) {
		if copied != nil {
			if segment, err := copied(first); !errors.Is(err, fs.ErrNotExist) {
				return segment, err
			}
		}
		return archived(ctx, board.Origin(c.SKU, c.Station), first)
	}
	return sources, nil
}
