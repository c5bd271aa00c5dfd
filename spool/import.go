package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// ImportConfig is what ImportMedia needs.
type ImportConfig struct {
	Media    string
	SKU      string
	Stations []note.Verifier  // whose bundles are taken
	Sink     Sink             // where their records go; many at once if it is a BatchSink
	Identity journal.Identity // who signs the receipts
	// Again delivers what has a receipt of this identity too. Without it, only
	// what was refused is tried anew.
	Again bool

	disk disk // for tests
}

// Imported says what became of one bundle.
type Imported struct {
	Path        string
	Origin      string // <sku>/<station>, as its folder says
	First, Last uint64
	Records     int
	Confirmed   int // by the registry, now or before
	Refused     int // by the registry, for good
	NoProof     int // records without a proof of possession
	Left        int // records without an answer
	Refusals    []ImportRefusal
	// Err is why the bundle was not taken, or not all of it. Without it there
	// is a receipt beside the bundle that speaks of every record.
	Err error
}

// ImportRefusal is a record that the registry refused for good.
type ImportRefusal struct {
	Seq    uint64
	Device board.DeviceID
	Reason string
}

// ErrAway: the registry took no record at all.
var ErrAway = errors.New("the registry takes no records")

// ImportMedia delivers the bundles of a SKU on a removable medium to a
// registry, under the same conditions under which a station delivers its
// records, and writes a signed receipt beside each, and beside those that other
// importers have written. It believes nothing of the
// medium: a bundle must be of one of the stations and hold what it says, each
// record must be signed by its station and prove possession if it says so. A
// bundle that is not taken does not keep the others back.
//
// each is told what became of a bundle. A registry that is away ends it with
// ErrAway, a removable medium that cannot be written with that error; what was
// answered until then is in the receipts, and to call it again goes on there.
// Whatever is delivered twice changes nothing.
func ImportMedia(ctx context.Context, c ImportConfig, each func(Imported)) error {
	if c.disk == nil {
		c.disk = osDisk{}
	}
	if err := board.CheckName(c.SKU); err != nil {
		return fmt.Errorf("importing: %w", err)
	}
	names, err := os.ReadDir(filepath.Join(c.Media, c.SKU))
	if err != nil {
		return fmt.Errorf("reading the medium: is it mounted, and are there bundles of %s? %w", c.SKU, err)
	}
	for _, name := range names {
		origin := board.Origin(c.SKU, name.Name())
		folder, err := stationFolder(c.Media, origin)
		if err != nil || !name.IsDir() {
			continue // not ours
		}
		im := importing{ImportConfig: c, origin: origin, folder: folder, roots: map[uint64]tlog.Hash{}}
		if err := im.run(ctx, each); err != nil {
			return err
		}
	}
	return nil
}

// importing is one station's folder.
type importing struct {
	ImportConfig
	origin string
	folder string
	roots  map[uint64]tlog.Hash // that the station signed, by size
}

func (im *importing) run(ctx context.Context, each func(Imported)) error {
	runs, err := listRuns(im.folder)
	if err != nil || len(runs) == 0 {
		return err
	}
	release, err := claim(im.folder)
	if err != nil {
		return err
	}
	defer release()
	for _, r := range runs {
		out := Imported{Path: filepath.Join(im.folder, r.name(endBundle)), Origin: im.origin, First: r.first, Last: r.next - 1}
		stop := im.bundle(ctx, r, &out)
		each(out)
		if stop != nil {
			return stop
		}
	}
	return nil
}

// errStopImport wraps what ends the import.
type errStopImport struct{ error }

func (e errStopImport) Unwrap() error { return e.error }

func (im *importing) bundle(ctx context.Context, r run, out *Imported) (stop error) {
	records, err := im.open(r, out.Path)
	out.Records, out.Left = len(records), len(records)
	if err == nil {
		err = im.deliver(ctx, r, records, out)
	}
	if stopped, ok := errors.AsType[errStopImport](err); ok {
		stop = stopped.error
	}
	if stop == nil && out.Left > 0 && err == nil {
		err = fmt.Errorf("%d records had no answer", out.Left)
	}
	out.Err = err
	return stop
}

// importedRecord is a record of a bundle, with what the registry said of it.
type importedRecord struct {
	seq      uint64
	sealed   board.Sealed
	verdict  error // it can never be taken
	err      error // it cannot be taken now
	answered bool
	known    *answer // by an earlier receipt
}

// open reads a bundle and checks everything that can be checked without the
// registry.
func (im *importing) open(r run, path string) ([]*importedRecord, error) {
	data, err := readMedia(path, maxBundle)
	if err != nil {
		return nil, err
	}
	b, err := parseBundle(data)
	if err != nil {
		return nil, err
	}
	if b.origin != im.origin || b.first != r.first || b.next() != r.next {
		return nil, fmt.Errorf("%w: it is of %.130q, entries %d to %d, which is not what its name says", ErrBundle, b.origin, b.first, b.next()-1)
	}
	v, signed, err := im.station(&b)
	if err != nil {
		return nil, err
	}
	if root, ok := im.roots[signed.Size]; ok && root != signed.Root {
		return nil, fmt.Errorf("%w: another bundle on the medium has another root over %d entries; find out which machine is %s", journal.ErrFork, signed.Size, im.origin)
	}
	im.roots[signed.Size] = signed.Root
	var records []*importedRecord
	for i, data := range b.entries {
		e, err := journal.ParseEntry(data)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBundle, err)
		}
		if e.Record() == nil {
			continue
		}
		it := &importedRecord{seq: b.first + uint64(i)}
		if it.sealed, err = board.ParseEnvelope(e.Record()); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrBundle, it.seq, err)
		}
		if err := it.sealed.VerifyWithProof(v); err != nil {
			it.answered, it.verdict = true, err // the registry need not be asked
		}
		records = append(records, it)
	}
	return records, nil
}

// station finds which of the stations signed a bundle.
func (im *importing) station(b *bundle) (note.Verifier, journal.Checkpoint, error) {
	err := fmt.Errorf("%w: no key of %s was named", board.ErrUntrusted, im.origin)
	for _, v := range im.Stations {
		if v.Name() != im.origin {
			continue
		}
		signed, _, wrong := b.check(v)
		if wrong == nil {
			return v, signed, nil
		}
		err = wrong
	}
	return nil, journal.Checkpoint{}, err
}

// deliver offers a bundle's records to the registry, and writes the receipt.
func (im *importing) deliver(ctx context.Context, r run, records []*importedRecord, out *Imported) error {
	path, before, err := im.recall(r, records)
	if err != nil {
		return err
	}
	var todo []*importedRecord
	for _, it := range records {
		if it.sealed.Record().Proof == nil {
			out.NoProof++
		}
		if !it.answered && (im.Again || it.known == nil || it.known.refused != nil) {
			todo = append(todo, it)
		}
	}
	failure := im.put(ctx, todo)
	receipt := receipt{origin: im.origin, first: r.first, next: r.next, time: board.Timestamp(time.Now())}
	for _, it := range records {
		a := it.answer()
		if a == nil {
			continue
		}
		out.Left--
		if a.refused == nil {
			out.Confirmed++
		} else {
			out.Refused++
			out.Refusals = append(out.Refusals, ImportRefusal{a.seq, a.device, a.refused.Text})
		}
		receipt.answers = append(receipt.answers, *a)
	}
	if before == nil || !sameAnswers(before.answers, receipt.answers) {
		data, err := receipt.encode(im.Identity.Signer)
		if err == nil {
			if err = durable.WriteFile(im.disk, path, data, 0o644); err != nil {
				err = fmt.Errorf("writing a receipt to the medium: %w", err)
			}
		}
		if err != nil {
			return errStopImport{errors.Join(failure, err)}
		}
	}
	return failure
}

// recall finds the receipt of this identity, and where one is to be written. The
// first importer's has the name of the bundle, that of any other the hash of its
// key besides: a receipt that somebody else signed is never replaced. What is
// nobody's, because it is damaged, is: what is delivered twice changes nothing.
func (im *importing) recall(r run, records []*importedRecord) (path string, before *receipt, err error) {
	first := filepath.Join(im.folder, r.name(endReceipt))
	own := filepath.Join(im.folder, r.name(fmt.Sprintf(".%08x%s", im.Identity.Verifier.KeyHash(), endReceipt)))
	for _, path := range []string{own, first} {
		data, err := readMedia(path, maxReceipt)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if _, err := note.Open(data, note.VerifierList(im.Identity.Verifier)); err != nil {
			_, others := errors.AsType[*note.UnverifiedNoteError](err)
			if path == first && others {
				return own, nil, nil
			}
			return path, nil, nil
		}
		before, err := im.read(data, r, records)
		return path, before, err
	}
	return first, nil, nil
}

// read takes the answers of a receipt; nil if it does not speak of these records.
func (im *importing) read(data []byte, r run, records []*importedRecord) (*receipt, error) {
	before, _, err := openReceipt(data, note.VerifierList(im.Identity.Verifier))
	if errors.Is(err, board.ErrNewer) {
		return nil, err
	}
	if err != nil || before.origin != im.origin || before.first != r.first || before.next != r.next {
		return nil, nil
	}
	of := map[uint64]*importedRecord{}
	for _, it := range records {
		of[it.seq] = it
	}
	for _, a := range before.answers {
		it := of[a.seq]
		if it == nil || it.sealed.Record().Device != a.device || it.sealed.Record().Fingerprint() != a.key {
			return nil, nil
		}
	}
	for i := range before.answers {
		of[before.answers[i].seq].known = &before.answers[i]
	}
	return &before, nil
}

func sameAnswers(a, b []answer) bool {
	return slices.EqualFunc(a, b, func(x, y answer) bool {
		return x.seq == y.seq && (x.refused == nil) == (y.refused == nil) && (x.refused == nil || x.refused.Reason == y.refused.Reason && x.refused.Text == y.refused.Text)
	})
}

// answer is what stands in the receipt; nil if there is no answer.
func (it *importedRecord) answer() *answer {
	if !it.answered {
		return it.known
	}
	a := &answer{seq: it.seq, device: it.sealed.Record().Device, key: it.sealed.Record().Fingerprint()}
	if it.verdict != nil {
		a.refused = refusal(it.verdict)
	}
	return a
}

// put offers records to the registry, a batch at a time. If all of a batch fail
// it is the registry that is away.
func (im *importing) put(ctx context.Context, records []*importedRecord) error {
	var first error
	for batch := range slices.Chunk(records, passRecords) {
		if ctx.Err() != nil {
			return errStopImport{context.Cause(ctx)}
		}
		errs := im.putBatch(ctx, batch)
		good, stopped := 0, ctx.Err() != nil
		for i, it := range batch {
			switch err := errs[i]; {
			case err == nil:
				it.answered = true
			case permanent(err):
				it.answered, it.verdict = true, err
			default:
				it.err = fmt.Errorf("entry %d, device %s: %w", it.seq, it.sealed.Record().Device, err)
				if first == nil {
					first = it.err
				}
				continue
			}
			good++
		}
		if stopped {
			return errStopImport{context.Cause(ctx)}
		}
		if good == 0 {
			return errStopImport{fmt.Errorf("%w: %w; to import again goes on there", ErrAway, batch[0].err)}
		}
	}
	return first
}

func (im *importing) putBatch(ctx context.Context, batch []*importedRecord) []error {
	var records []board.Sealed
	for _, it := range batch {
		records = append(records, it.sealed)
	}
	return putAll(ctx, im.Sink, records)
}

// putAll puts records to a registry, and returns an error for each. When the
// first few fail, the rest is not tried.
func putAll(ctx context.Context, sink Sink, records []board.Sealed) []error {
	errs := make([]error, len(records))
	if many, ok := sink.(BatchSink); ok && len(records) > 0 {
		bounded, cancel := context.WithTimeout(ctx, putLimit)
		defer cancel()
		if got := many.PutBatch(bounded, records); len(got) == len(records) {
			return got
		}
		for i := range errs {
			errs[i] = fmt.Errorf("the registry did not answer for each of %d records", len(records))
		}
		return errs
	}
	failed := 0
	for i, record := range records {
		if failed == i && failed >= outageAfter {
			errs[i] = fmt.Errorf("not tried, as others failed: %w", errs[0])
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, putLimit)
		if errs[i] = sink.Put(bounded, record); errs[i] != nil && !permanent(errs[i]) {
			failed++
		}
		cancel()
	}
	return errs
}

// ImporterIdentity reads the key with which an importer signs receipts from
// dir, or makes it at first use, with the name "import/<name>". Its public
// half, dir/station.pub, is what a station's configuration takes as a trusted
// key for receipts.
func ImporterIdentity(dir, name string) (journal.Identity, error) {
	if err := board.CheckName(name); err != nil {
		return journal.Identity{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return journal.Identity{}, fmt.Errorf("making the importer's folder: %w", err)
	}
	return journal.LoadIdentity(dir, board.Origin("import", name))
}
