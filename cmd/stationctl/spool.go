package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

type spools struct {
	List    spoolList    `cmd:"" help:"List the journal, one line per entry."`
	Show    spoolShow    `cmd:"" help:"Show an entry, or all entries of a board."`
	Verify  spoolVerify  `cmd:"" help:"Verify the whole journal with only the station's public key."`
	Dead    spoolDead    `cmd:"" help:"List the records that the registry refused for good."`
	Export  spoolExport  `cmd:"" help:"Show a refused record with all evidence."`
	Requeue spoolRequeue `cmd:"" help:"Deliver a refused record once more, after the registry was corrected."`
	Repair  spoolRepair  `cmd:"" help:"Restore damaged entries from copies."`
}

// listed is an entry of the journal in short.
type listed struct {
	Seq         uint64            `json:"seq"`
	Time        time.Time         `json:"time"`
	Kind        journal.Kind      `json:"kind"`
	Result      journal.Result    `json:"result,omitempty"` // of a verdict
	Slot        string            `json:"slot,omitempty"`   // likewise
	Device      board.DeviceID    `json:"device,omitzero"`
	Fingerprint board.Fingerprint `json:"fingerprint,omitzero"`
	Note        string            `json:"note,omitempty"`
}

func list(e journal.Entry) (listed, error) {
	l := listed{Seq: e.Seq, Time: e.Time, Kind: e.Kind}
	switch {
	case e.Segment != nil:
		l.Note = e.Segment.Origin
	case e.Rejection != nil:
		l.Device, l.Fingerprint, l.Note = e.Rejection.Device, e.Rejection.Fingerprint, fmt.Sprintf("of entry %d: %s", e.Rejection.Of, e.Rejection.Reason)
	case e.Lost != nil:
		l.Note = e.Lost.Reason
	case e.Verdict != nil:
		v := e.Verdict
		l.Result, l.Slot, l.Device, l.Fingerprint, l.Note = v.Result, v.Slot, v.Device, v.Fingerprint, v.Reason
		if v.Of != nil {
			l.Note = fmt.Sprintf("of entry %d", *v.Of)
		}
		if v.Result != journal.Passed {
			break
		}
		sealed, err := board.ParseEnvelope(e.Record())
		if err != nil {
			return l, fmt.Errorf("entry %d: %w", e.Seq, err)
		}
		if sealed.Record().Proof == nil {
			l.Note = "without a proof of possession"
		}
	}
	return l, nil
}

func (l listed) text() string {
	device := "-"
	if l.Device.Valid() {
		device = l.Device.String()
	}
	what := cmp.Or(string(l.Result), string(l.Kind))
	return strings.TrimRight(fmt.Sprintf("%8d  %s  %-9s %-4s %-32s %s", l.Seq, l.Time.Format("2006-01-02T15:04:05.000Z"), what, cmp.Or(l.Slot, "-"), device, l.Note), " ") + "\n"
}

type spoolList struct {
	place
	Kind  string  `name:"kind" enum:",passed,repeated,failed,rejection,segment,lost" default:"" placeholder:"KIND" help:"Only verdicts of this result (passed, repeated, failed), or entries of this kind (rejection, segment, lost)."`
	After *uint64 `name:"after" placeholder:"SEQ" help:"Begin after this entry; earlier entries are not read."`
	Limit uint64  `name:"limit" placeholder:"N" help:"Maximum number of entries; the last line shows the --after to continue with. 0 is all."`
}

// more is the last line of a page that another follows.
type more struct {
	Next uint64 `json:"next"` // what --after takes
}

func (spoolList) Help() string {
	return `Examples:
  stationctl spool list --limit 100
      The first 100 entries. If there are more, the last line says which --after goes on; with --json it is {"next":N}.
  stationctl spool list --limit 100 --after 99
      The next 100.`
}

func (s *spoolList) Run(out *cli.Output) error {
	dir, err := s.dir()
	if err != nil {
		return err
	}
	if err := present(dir); err != nil {
		return err
	}
	from, shown, last := uint64(0), uint64(0), uint64(0)
	if s.After != nil {
		from = *s.After + 1
	}
	for e, err := range journal.WalkFrom(dir, from) {
		if err != nil {
			return err
		}
		if s.Kind != "" && string(e.Kind) != s.Kind && (e.Verdict == nil || string(e.Verdict.Result) != s.Kind) {
			continue
		}
		if s.Limit > 0 && shown == s.Limit {
			return out.Print(more{last}, fmt.Sprintf("There are more: --after %d\n", last))
		}
		shown, last = shown+1, e.Seq
		l, err := list(e)
		if err != nil {
			return err
		}
		if err := out.Print(l, l.text()); err != nil {
			return err
		}
	}
	return nil
}

// present tells a folder without a journal from an empty journal.
func present(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "journal")); err != nil {
		return fmt.Errorf("%s holds no journal: %w; --state-dir names the folder that the station's configuration has as state_dir", dir, err)
	}
	return nil
}

type spoolShow struct {
	place
	What  string `arg:"" help:"The number of an entry, or a device id of 32 hex digits."`
	Whole bool   `name:"whole" help:"Read the whole journal instead of asking the index where the entries are."`
}

// shown is an entry in full; a record is taken out of its envelope.
type shown struct {
	listed
	Verdict   *journal.Verdict   `json:"verdict,omitempty"` // without the envelope, which stands below
	Record    json.RawMessage    `json:"record,omitempty"`
	SignedBy  string             `json:"signed_by,omitempty"`
	Envelope  json.RawMessage    `json:"envelope,omitempty"`
	Rejection *journal.Rejection `json:"rejection,omitempty"`
	Segment   *journal.Segment   `json:"segment,omitempty"`
	Lost      *journal.Lost      `json:"lost,omitempty"`
}

func (s *spoolShow) Run(ctx context.Context, out *cli.Output) error {
	what, err := parseSelected(s.What)
	if err != nil {
		return fmt.Errorf("%w: %v", cli.ErrMisuse, err)
	}
	dir, err := s.dir()
	if err != nil {
		return err
	}
	if err := present(dir); err != nil {
		return err
	}
	found := false
	for e, err := range s.entries(ctx, dir, what) {
		if err != nil {
			return err
		}
		if !what.is(&e) {
			continue
		}
		found = true
		if err := showEntry(out, e); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("the journal under %s has no %s", dir, s.What)
	}
	return nil
}

// entries yields the entries that may be meant: one by its number, those of a
// device where the index says that they are. Without an index it yields all.
func (s *spoolShow) entries(ctx context.Context, dir string, what selected) iter.Seq2[journal.Entry, error] {
	if s.Whole {
		return journal.Walk(dir)
	}
	seqs := []uint64{what.seq}
	if what.device.Valid() {
		var err error
		if seqs, err = entriesOf(ctx, dir, what.device); err != nil {
			return journal.Walk(dir)
		}
	}
	var found []journal.Entry
	for _, seq := range seqs {
		e, err := journal.FindEntry(dir, journal.Position{Offset: -1}, seq)
		if err != nil { // it is damaged, or not there: Walk says which
			return journal.Walk(dir)
		}
		found = append(found, e)
	}
	return func(yield func(journal.Entry, error) bool) {
		for _, e := range found {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// entriesOf asks the station that runs, or the index of one that is stopped.
func entriesOf(ctx context.Context, dir string, device board.DeviceID) ([]uint64, error) {
	client, err := control.Open(dir, nil)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Entries(ctx, device)
}

func showEntry(out *cli.Output, e journal.Entry) error {
	l, err := list(e)
	if err != nil {
		return err
	}
	full := shown{listed: l, Rejection: e.Rejection, Segment: e.Segment, Lost: e.Lost}
	if e.Verdict != nil {
		body := *e.Verdict
		body.Record = nil
		full.Verdict = &body
	}
	if record := e.Record(); record != nil {
		sealed, err := board.ParseEnvelope(record)
		if err != nil {
			return err
		}
		if full.Record, err = sealed.Record().Encode(); err != nil {
			return err
		}
		full.SignedBy, full.Envelope = sealed.KeyID(), record
	}
	pretty, err := json.MarshalIndent(full, "", "  ")
	if err != nil {
		return fmt.Errorf("showing entry %d: %w", e.Seq, err)
	}
	return out.Print(full, string(pretty)+"\n")
}

// selected is what somebody wants to see: a device, or else an entry.
type selected struct {
	device board.DeviceID
	seq    uint64
}

func (s selected) is(e *journal.Entry) bool {
	switch {
	case !s.device.Valid():
		return e.Seq == s.seq
	case e.Rejection != nil:
		return e.Rejection.Device == s.device
	}
	return e.Verdict != nil && e.Verdict.Device == s.device
}

func parseSelected(what string) (s selected, err error) {
	if s.device, err = board.ParseDeviceID(what); err == nil {
		return s, nil
	}
	if s.seq, err = strconv.ParseUint(what, 10, 63); err != nil {
		return s, fmt.Errorf("%q is neither the number of an entry nor a device id (32 lower-case hex digits)", what)
	}
	s.device = board.DeviceID{}
	return s, nil
}

type spoolVerify struct {
	place
	Key string `name:"key" placeholder:"FILE" help:"The station's public key. The default is station.pub of the state directory, which a person who can change the journal can change too."`
}

const maxKeyFile = 4 << 10

func (s *spoolVerify) Run(out *cli.Output) error {
	dir, err := s.dir()
	if err != nil {
		return err
	}
	if err := present(dir); err != nil {
		return err
	}
	path := s.Key
	if path == "" {
		path = filepath.Join(dir, "station.pub")
		fmt.Fprintf(out.People, "The key is the journal's own, %s: this finds damage, not a forger. Use --key with a key from elsewhere.\n", path)
	}
	verifier, err := readKey(path)
	if err != nil {
		return err
	}
	indexed, err := spool.IndexedEntries(dir)
	if err != nil {
		// Without the index, which is the station's while it runs, the
		// checkpoints alone tell where the journal ends.
		indexed = nil
	}
	report, err := journal.VerifyDirKnowing(dir, verifier, indexed)
	if err != nil {
		return fmt.Errorf("the journal under %s does not hold: %w", dir, err)
	}
	text := fmt.Sprintf("The journal of %s holds: %s, of them %s, %s, %s; under a signed checkpoint: %d.\n",
		verifier.Name(), cli.Count(report.Entries, "entry", "entries"), cli.Count(report.Records, "record", "records"),
		cli.Count(report.Repeats, "repeat", "repeats"), cli.Count(report.Failed, "failed board", "failed boards"), report.Signed)
	if report.Rejections > 0 {
		text += fmt.Sprintf("Answers of the registry that a record is refused, or is taken after all: %d.\n", report.Rejections)
	}
	if report.NoProof > 0 {
		text += fmt.Sprintf("Records without a proof of possession: %d.\n", report.NoProof)
	}
	if report.Torn > 0 {
		text += fmt.Sprintf("The last line is not whole (%s): it is being written, or was cut short. The next start quarantines it.\n", cli.Count(report.Torn, "byte", "bytes"))
	}
	return out.Print(struct {
		OK         bool   `json:"ok"`
		Station    string `json:"station"`
		Entries    uint64 `json:"entries"`
		Records    uint64 `json:"records"`
		Repeats    uint64 `json:"repeats"`
		Failed     uint64 `json:"failed"`
		Rejections uint64 `json:"rejections"`
		NoProof    uint64 `json:"no_proof"`
		Signed     uint64 `json:"signed"`
		Torn       int64  `json:"torn_bytes"`
	}{true, verifier.Name(), report.Entries, report.Records, report.Repeats, report.Failed, report.Rejections, report.NoProof, report.Signed, report.Torn}, text)
}

func readKey(path string) (note.Verifier, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the station's public key: %w", err)
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("reading the station's public key: %s is larger than %d bytes", path, maxKeyFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the station's public key: %w", err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, fmt.Errorf("reading the station's public key: %s is not one line as in station.pub: %w", path, err)
	}
	return verifier, nil
}
