package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"time"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool/reconcile"
	"secretfree/station/board"
)

type reconcileCommand struct {
	Config   string `name:"config" default:"/etc/secretfree/stationd.toml" placeholder:"FILE" help:"The station's configuration, which names its state directory and its registry (${default})."`
	StateDir string `name:"state-dir" placeholder:"DIR" help:"A copy of the state directory, to compare it with the registry of the configuration."`
	Key      string `name:"key" placeholder:"FILE" help:"The station's public key; the default is station.pub of the state directory."`
	Repair   bool   `name:"repair" help:"Enrol the records that the journal proves and the registry lacks. Existing items are not changed."`
	Show     int    `name:"show" default:"50" placeholder:"N" help:"Maximum number of differences of each kind in the text output; --json lists all (${default})."`
}

func (reconcileCommand) Help() string {
	return `Compares the journal of a station with the table, the public keys and the guards of its registry, device by device,
and counts them by station and day. The station may run meanwhile; what still waits in its queue is missing in the
registry, and is delivered by itself.

The kinds of differences:
  missing    in the journal, not in the table
  unknown    in the table under this station's name, not in its journal
  key        in both, with different keys
  unsigned   the item has no signed record
  envelope   the item's signed record is not one of the journal
  item       an attribute of the item contradicts the item's own signed record
  object     the public key is not stored, or the object has another content
  guard      the guard of the key is missing, or names a device that does not have the key
  damaged    something in the registry cannot be read

--repair puts records that are missing, public keys that are not stored, and guards that are missing beside a good
item, to the registry itself, under the conditions under which the station does, so that the verdict is known at
once, also of a station that does not run. It needs a signed checkpoint over the record. It reads again what it
has mended, and the counts are those after it. Contradictions are for a person: the line below each says who can
mend it, and the command.

Examples:
  stationctl reconcile
      Exit 0 if journal and registry say the same, 1 if they differ.
  stationctl reconcile --repair
      Exit 0 if they say the same after the repair.
  stationctl reconcile --json | grep '"kind":"unknown"'
  stationctl reconcile --config stationd.toml --state-dir /mnt/backup/stationd --key line3-a.pub
      What a copy of a journal says.`
}

// repairableRegistry is a registry that can be compared and repaired.
type repairableRegistry interface {
	reconcile.Registry
	reconcile.Repairer
}

// registryLister marks the errors of a registry for the comparison.
type registryLister struct{ from reconcile.Registry }

func (c registryLister) Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error) {
	e, err := c.from.Lookup(ctx, device)
	return e, mark(err)
}

func (c registryLister) PublicKey(ctx context.Context, key board.KeyBinding) ([]byte, error) {
	content, err := c.from.PublicKey(ctx, key)
	return content, mark(err)
}

func (c registryLister) KeyOwner(ctx context.Context, key board.Fingerprint) (board.DeviceID, error) {
	owner, err := c.from.KeyOwner(ctx, key)
	return owner, mark(err)
}

func (c registryLister) Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error] {
	return markUnreadable(c.from.Enrolments(ctx))
}

func (c registryLister) Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return markUnreadable(c.from.Objects(ctx))
}

func (c registryLister) Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return markUnreadable(c.from.Guards(ctx))
}

// markUnreadable adds reconcile.ErrUnreadable to the errors of a listing that
// are about one entry.
func markUnreadable[T any](list iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for item, err := range list {
			if !yield(item, mark(err)) {
				return
			}
		}
	}
}

func mark(err error) error {
	if _, wrong := errors.AsType[*cloud.Mismatch](err); wrong {
		return fmt.Errorf("%w: %w", reconcile.ErrContradicts, err)
	}
	if errors.Is(err, cloud.ErrDamaged) && !errors.Is(err, cloud.ErrNoRegistry) {
		return fmt.Errorf("%w: %w", reconcile.ErrUnreadable, err)
	}
	return err
}

// difference is one thing in which journal and registry differ.
type difference struct {
	Kind   reconcile.DifferenceKind `json:"kind"`
	Device string                   `json:"device,omitempty"`
	Key    string                   `json:"key,omitempty"`
	Seq    *uint64                  `json:"seq,omitempty"`
	Mended bool                     `json:"mended"`
	Detail string                   `json:"detail,omitempty"`
	Remedy string                   `json:"remedy,omitempty"` // who can mend it, and how
	repair bool                     // reconcile --repair is the remedy
}

func (d difference) text() string {
	device, entry, mended := d.Device, "-", ""
	if device == "" {
		device = "-"
	}
	if d.Seq != nil {
		entry = fmt.Sprint(*d.Seq)
	}
	if d.Mended {
		mended = "  mended"
	}
	if d.Detail != "" {
		mended += "  " + d.Detail
	}
	text := fmt.Sprintf("%-9s %8s  %-32s%s\n", d.Kind, entry, device, mended)
	if d.Remedy != "" && !d.repair {
		text += "          " + d.Remedy + "\n"
	}
	return text
}

// counted is what there is of a station and a day.
type counted struct {
	Station   string `json:"station"`
	Day       string `json:"day"`
	Records   int    `json:"records"`
	Items     int    `json:"items"`
	Objects   int    `json:"objects"`
	Guards    int    `json:"guards"`
	Elsewhere int    `json:"elsewhere"`
}

func countText(station, day string, d reconcile.DayCount) string {
	return fmt.Sprintf("%-32s %-10s %9d %9d %9d %9d %9d\n", station, day, d.Records, d.Items, d.Objects, d.Guards, d.Elsewhere)
}

// reconciled is the last line.
type reconciled struct {
	OK          bool                             `json:"ok"`
	Station     string                           `json:"station"`
	Records     int                              `json:"records"`
	Items       int                              `json:"items"`
	Objects     int                              `json:"objects"`
	Guards      int                              `json:"guards"`
	Differences int                              `json:"differences"`
	Kinds       map[reconcile.DifferenceKind]int `json:"kinds"`
	Mended      int                              `json:"mended"`
	Remaining   int                              `json:"remaining"`
	Late        int                              `json:"late"`
	Damaged     uint64                           `json:"damaged_entries"`
	Seconds     float64                          `json:"seconds"`
}

func (r *reconcileCommand) Run(ctx context.Context, out *cli.Output) error {
	c, err := stationconf.Load(r.Config)
	if err != nil {
		return err
	}
	aws, folder, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return fmt.Errorf("opening the registry: %w", err)
	}
	var registry repairableRegistry = aws
	if folder != nil {
		registry = folder
	}
	dir := c.StateDir
	if r.StateDir != "" {
		dir = r.StateDir
	}
	if err := present(dir); err != nil {
		return err
	}
	path := r.Key
	if path == "" {
		path = filepath.Join(dir, "station.pub")
	}
	verifier, err := readKey(path)
	if err != nil {
		return err
	}
	fix := remedies{again: r.again()}
	if aws != nil {
		fix.Location = aws.Location()
	} else {
		fix.dir = c.Registry.Dir
	}
	rc := reconcile.Config{Dir: dir, Key: verifier, Registry: registryLister{registry}}
	if r.Repair {
		rc.Repair = registry
	}
	began := time.Now()
	var failed error // to write the output
	shown := map[reconcile.DifferenceKind]int{}
	report, err := reconcile.Run(ctx, rc, func(d reconcile.Difference) {
		shown[d.Kind]++
		if shown[d.Kind] > r.Show && !out.JSON {
			return
		}
		line := difference{Kind: d.Kind, Mended: d.Repaired, Detail: d.Detail}
		if d.Device.Valid() {
			line.Device = d.Device.String()
		}
		if d.Key != (board.Fingerprint{}) {
			line.Key = d.Key.String()
		}
		if d.Entry {
			line.Seq = &d.Seq
		}
		if !d.Repaired {
			line.Remedy, line.repair = fix.of(d)
		}
		failed = errors.Join(failed, out.Print(line, line.text()))
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	return r.summary(out, report, shown, time.Since(began))
}

func (r *reconcileCommand) summary(out *cli.Output, report reconcile.Report, shown map[reconcile.DifferenceKind]int, took time.Duration) error {
	for _, kind := range reconcile.DifferenceKinds() {
		if more := shown[kind] - r.Show; more > 0 && !out.JSON {
			fmt.Fprintf(out.People, "%-9s … and %d more\n", kind, more)
		}
	}
	fmt.Fprintf(out.People, "%-32s %-10s %9s %9s %9s %9s %9s\n", "station", "day", "journal", "table", "keys", "guards", "elsewhere")
	for _, d := range report.Days {
		station, day := d.Station, d.Day
		if station == "" {
			station, day = "(nobody's)", "-"
		}
		if err := out.Print(counted(d), countText(station, day, d)); err != nil {
			return err
		}
	}
	fmt.Fprint(out.People, countText("all", "", report.Total))
	last := reconciled{OK: report.Same(), Station: report.Station, Records: report.Total.Records, Items: report.Total.Items, Objects: report.Total.Objects,
		Guards: report.Total.Guards, Differences: report.Differences(), Kinds: report.Found, Mended: report.Repaired, Remaining: report.Differences() - report.Repaired, Late: report.Late, Seconds: took.Seconds()}
	text := fmt.Sprintf("The journal of %s and the registry say the same.\n", report.Station)
	if report.Differences() > 0 {
		text = fmt.Sprintf("The journal of %s and the registry differ in %s. What the journal proves and the registry lacks is mended by: %s\n", report.Station, cli.Count(report.Differences(), "place", "places"), r.again())
		if r.Repair {
			text = fmt.Sprintf("The journal of %s and the registry differed in %s; mended: %d; left: %d.\n", report.Station, cli.Count(report.Differences(), "place", "places"), report.Repaired, last.Remaining)
		}
	}
	if report.Late > 0 {
		text += fmt.Sprintf("Not looked for, since they came while this ran: %s.\n", cli.Count(report.Late, "record", "records"))
	}
	for _, d := range report.Damage {
		last.Damaged += d.Entries()
	}
	if last.Damaged > 0 {
		text += fmt.Sprintf("The journal is damaged at %s. What was there is not compared, and of which devices it was is unknown: stationctl spool repair.\n", cli.Count(last.Damaged, "entry", "entries"))
	}
	if err := out.Print(last, text); err != nil {
		return err
	}
	if !report.Same() {
		return cli.ErrShown
	}
	return nil
}
