package spool

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// importer is the machine at the other end.
type importer struct {
	ImportConfig
	t *testing.T
}

func newImporter(t *testing.T, stick string, sink Sink, stations ...note.Verifier) *importer {
	t.Helper()
	id, err := ImporterIdentity(filepath.Join(tempDir(t), "importer"), "hq")
	if err != nil {
		t.Fatal(err)
	}
	return &importer{ImportConfig{Media: stick, SKU: "widgiot", Stations: stations, Sink: sink, Identity: id}, t}
}

func (im *importer) run() ([]Imported, error) {
	var all []Imported
	err := ImportMedia(im.t.Context(), im.ImportConfig, func(one Imported) { all = append(all, one) })
	return all, err
}

// mustRun has all bundles taken.
func (im *importer) mustRun() (confirmed, refused int) {
	im.t.Helper()
	all, err := im.run()
	if err != nil {
		im.t.Fatalf("ImportStick: %v", err)
	}
	for _, one := range all {
		if one.Err != nil || one.Left != 0 || one.Confirmed+one.Refused != one.Records || len(one.Refusals) != one.Refused {
			im.t.Fatalf("ImportStick: %+v", one)
		}
		confirmed += one.Confirmed
		refused += one.Refused
	}
	return confirmed, refused
}

func TestImportRefusals(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	k.mustAppend()
	stick, sink := tempDir(t), newMemorySink()
	if _, err := newImporter(t, stick, sink, k.id.Verifier).run(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("an empty stick: %v", err)
	}
	k.export(stick, 0)
	im := newImporter(t, stick, sink, k.id.Verifier)
	im.SKU = "../widgiot"
	if _, err := im.run(); err == nil || !strings.Contains(err.Error(), "is not a name") {
		t.Errorf("a SKU that is none: %v", err)
	}
	im.SKU = "widgiot"
	path := k.bundlePath(stick, run{0, 3})
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-b")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit     func(s string) string
		stations []note.Verifier
		want     error
	}{
		"no key":           {nil, nil, board.ErrUntrusted},
		"another's key":    {nil, []note.Verifier{other.Verifier}, board.ErrUntrusted},
		"a stranger's key": {nil, []note.Verifier{stranger.Verifier}, journal.ErrTampered},
		"a changed record": {func(s string) string { return strings.Replace(s, `"payload":"e`, `"payload":"f`, 1) }, []note.Verifier{k.id.Verifier}, ErrBundle},
		"another origin":   {func(s string) string { return strings.Replace(s, "line3-a\n", "line3-b\n", 1) }, []note.Verifier{k.id.Verifier}, ErrBundle},
		"a newer format":   {func(s string) string { return strings.Replace(s, "bundle 1", "bundle 2", 1) }, []note.Verifier{k.id.Verifier}, board.ErrNewer},
	} {
		im.Stations = c.stations
		if c.edit != nil {
			text := c.edit(string(good))
			if text == string(good) {
				t.Fatalf("%s changes nothing", name)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		all, err := im.run()
		if err != nil || len(all) != 1 || !errors.Is(all[0].Err, c.want) || all[0].Confirmed != 0 || sink.tries != 0 {
			t.Errorf("%s: %+v, %v, want %v", name, all, err, c.want)
		}
		if err := os.WriteFile(path, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if receipts, err := Receipts(stick, "widgiot/line3-a"); err != nil || len(receipts) != 0 {
		t.Errorf("%d receipts for nothing (%v)", len(receipts), err)
	}
	// A key too many does no harm, and what is not a station's folder is not
	// looked at.
	im.Stations = []note.Verifier{other.Verifier, stranger.Verifier, k.id.Verifier}
	if err := errors.Join(os.WriteFile(filepath.Join(stick, "widgiot", "notes.txt"), nil, 0o644), os.Mkdir(filepath.Join(stick, "widgiot", "Line"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if confirmed, _ := im.mustRun(); confirmed != 2 {
		t.Errorf("%d confirmed", confirmed)
	}

	// Two journals under one name.
	copyDir := tempDir(t)
	if err := os.CopyFS(copyDir, os.DirFS(k.dir)); err != nil {
		t.Fatal(err)
	}
	clone := &kit{t: t, dir: copyDir, id: k.id, sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	clone.mustOpen()
	defer clone.spool.Close()
	clone.mustAppend()
	k.mustAppend()
	k.export(stick, 3)
	elsewhere := tempDir(t)
	clone.export(elsewhere, 2)
	if err := os.Rename(k.bundlePath(elsewhere, run{2, 4}), k.bundlePath(stick, run{2, 4})); err != nil {
		t.Fatal(err)
	}
	all, err := im.run()
	if err != nil || len(all) != 3 || all[1].Err != nil || !errors.Is(all[2].Err, journal.ErrFork) {
		t.Errorf("a fork on the stick: %+v, %v", all, err)
	}
}

// A record that a station should never have signed is refused like one that the
// registry refuses: the others are taken.
func TestImportLooksAtPossession(t *testing.T) {
	k := newKit(t)
	k.damaged = true // VerifyDir refuses this journal too
	k.mustAppend()
	r := newRecord(t)
	r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA256, Nonces: [][]byte{make([]byte, 16), bytes.Repeat([]byte{1}, 16)}, Signatures: [][]byte{{1}, {2}}}
	if _, err := k.append(r); err != nil {
		t.Fatal(err)
	}
	k.mustAppend()
	stick, sink := tempDir(t), newMemorySink()
	k.export(stick, 0)
	im := newImporter(t, stick, sink, k.id.Verifier)
	if confirmed, refused := im.mustRun(); confirmed != 2 || refused != 1 || sink.tries != 2 {
		t.Errorf("%d confirmed, %d refused, %d tries", confirmed, refused, sink.tries)
	}
	k.mustApply(im)
	if letters, err := k.spool.DeadLetters(); err != nil || len(letters) != 1 || letters[0].Device != r.Device {
		t.Errorf("%+v, %v", letters, err)
	}
}

// A registry that is away ends the import; what it took until then is in a
// receipt.
func TestImportOutage(t *testing.T) {
	k := newKit(t)
	for range 2*passRecords + 10 {
		k.mustAppend()
	}
	stick, sink := tempDir(t), newMemorySink()
	k.export(stick, 0)
	sink.set(func(_ board.Sealed, try int) (bool, error) {
		if try > passRecords+5 {
			return false, errAway
		}
		return true, nil
	})
	im := newImporter(t, stick, sink, k.id.Verifier)
	all, err := im.run()
	if !errors.Is(err, ErrAway) || !errors.Is(err, errAway) || len(all) != 1 || all[0].Confirmed != passRecords+5 || all[0].Left != passRecords+5 || all[0].Err == nil {
		t.Fatalf("%+v, %v", all, err)
	}
	if sum := k.mustApply(im); sum.Confirmed != passRecords+5 {
		t.Errorf("%+v", sum)
	}
	if seq, waits, err := k.spool.Oldest(); seq != passRecords+6 || !waits || err != nil {
		t.Errorf("Oldest: %d, %v, %v", seq, waits, err)
	}
	// One that cannot be delivered now does not keep the others back.
	sink.set(func(s board.Sealed, _ int) (bool, error) {
		if sink.have[s.Record().Device] == (board.Fingerprint{}) && len(sink.have) == passRecords+7 {
			sink.fault = nil
			return false, errAway
		}
		return true, nil
	})
	all, err = im.run()
	if err != nil || all[0].Left != 1 || !errors.Is(all[0].Err, errAway) {
		t.Errorf("%+v, %v", all, err)
	}
	if confirmed, _ := im.mustRun(); confirmed != 2*passRecords+10 {
		t.Errorf("%d confirmed", confirmed)
	}
	// Stopped by a signal.
	im.Again = true
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errAway)
	if err := ImportMedia(ctx, im.ImportConfig, func(Imported) {}); !errors.Is(err, errAway) || errors.Is(err, ErrAway) {
		t.Errorf("stopped: %v", err)
	}
}

// An import that finds a BatchSink uses it, and does not believe one that
// answers for too few.
func TestImportBatches(t *testing.T) {
	k := newKit(t)
	for range passRecords + 1 {
		k.mustAppend()
	}
	stick := tempDir(t)
	k.export(stick, 0)
	sink := &shortBatch{memorySink: newMemorySink(), short: 1}
	im := newImporter(t, stick, sink, k.id.Verifier)
	if _, err := im.run(); !errors.Is(err, ErrAway) {
		t.Errorf("too few answers: %v", err)
	}
	sink.short = 0
	if confirmed, _ := im.mustRun(); confirmed != passRecords+1 || sink.batches != 3 {
		t.Errorf("%d confirmed in %d batches", confirmed, sink.batches)
	}
}

type shortBatch struct {
	*memorySink
	short   int
	batches int
}

func (s *shortBatch) PutBatch(ctx context.Context, records []board.Sealed) []error {
	s.batches++
	var errs []error
	for _, r := range records[s.short:] {
		errs = append(errs, s.Put(ctx, r))
	}
	return errs
}

// A second importer, with another registry or another key, writes its receipts
// beside the first's. Both go on from their own, and the station applies both.
func TestImportBeside(t *testing.T) {
	k, _ := smallKit(t, 5)
	stick := tempDir(t)
	k.export(stick, 0)
	folder := filepath.Join(stick, "widgiot", "line3-a")
	read := func() map[string]string {
		t.Helper()
		out := map[string]string{}
		files, err := filepath.Glob(filepath.Join(folder, "*.receipt"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			out[file] = string(data)
		}
		return out
	}
	runs, err := listRuns(folder)
	if err != nil || len(runs) == 0 {
		t.Fatal(runs, err)
	}
	first := newImporter(t, stick, k.sink, k.id.Verifier)
	first.mustRun()
	firsts := read()
	if len(firsts) != len(runs) {
		t.Fatalf("%d receipts of %d bundles", len(firsts), len(runs))
	}
	second := newImporter(t, stick, k.sink, k.id.Verifier)
	second.mustRun()
	both := read()
	if len(both) != 2*len(runs) {
		t.Fatalf("%d receipts of two importers and %d bundles", len(both), len(runs))
	}
	for file, text := range firsts {
		if both[file] != text {
			t.Errorf("the second importer has changed %s", file)
		}
	}
	// Both again, and after what is damaged: each finds its own, and writes no
	// other file.
	for file := range both {
		if err := os.WriteFile(file, []byte(both[file][:40]), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, im := range []*importer{first, second} {
			im.mustRun()
		}
		if again := read(); len(again) > len(both)+1 {
			t.Errorf("%d receipts", len(again))
		}
	}
	if n := len(read()); n > 3*len(runs) {
		t.Errorf("%d receipts", n)
	}
	receipts, err := Receipts(stick, "widgiot/line3-a")
	if err != nil || len(receipts) < 2*len(runs) {
		t.Fatalf("%d receipts, %v", len(receipts), err)
	}
	for _, trusted := range []*importer{second, first} {
		for _, receipt := range receipts {
			settled, err := k.spool.ApplyReceipt(receipt.Data, note.VerifierList(trusted.Identity.Verifier))
			if err != nil && !errors.Is(err, ErrReceipt) || err == nil && trusted == first && settled.Confirmed > 0 {
				t.Errorf("%s: %+v, %v", receipt.Path, settled, err)
			}
		}
		if pending := k.spool.Stats().Pending; pending != 0 {
			t.Errorf("%d records wait", pending)
		}
	}
}
