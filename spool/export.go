package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// A removable medium carries the journals of stations to where the registry can
// be reached, and the registry's answers back: FORMAT.md has its files. It is
// pulled out at any moment.

var (
	bundleName = regexp.MustCompile(`^([0-9]{20})-([0-9]{20})\.bundle$`)
	// receiptName is of the first importer's receipt, or of that of another one,
	// with the hash of its key.
	receiptName = regexp.MustCompile(`^[0-9]{20}-[0-9]{20}(\.[0-9a-f]{8})?\.receipt$`)
)

const (
	endBundle  = ".bundle"
	endReceipt = ".receipt"
	endDamaged = ".damaged"
)

// run is a run of entries, as the name of a file on a removable medium says it.
type run struct{ first, next uint64 }

func (r run) name(ending string) string {
	return fmt.Sprintf("%020d-%020d%s", r.first, r.next-1, ending)
}

// stationFolder is where a station's bundles are on a removable medium. An
// origin that is none could lead anywhere.
func stationFolder(media, origin string) (string, error) {
	sku, station, _ := strings.Cut(origin, "/")
	if err := errors.Join(board.CheckName(sku), board.CheckName(station)); err != nil {
		return "", fmt.Errorf("%.130q is not the name of a station: %w", origin, err)
	}
	return filepath.Join(media, sku, station), nil
}

// listRuns lists the bundles in a folder, by their first entry.
func listRuns(dir string) ([]run, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the medium: %w", err)
	}
	var runs []run
	for _, name := range names {
		m := bundleName.FindStringSubmatch(name.Name())
		if m == nil {
			continue
		}
		first, err := strconv.ParseUint(m[1], 10, 62)
		last, err2 := strconv.ParseUint(m[2], 10, 62)
		if err == nil && err2 == nil && first <= last {
			runs = append(runs, run{first, last + 1})
		}
	}
	slices.SortFunc(runs, func(a, b run) int { return strings.Compare(a.name(endBundle), b.name(endBundle)) })
	return runs, nil
}

// readMedia reads a file of at most limit bytes. One that is longer is cut
// behind that, and is refused by whoever parses it.
func readMedia(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the medium: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading the medium: %w", err)
	}
	return data, nil
}

// claim keeps others from writing into a folder on a removable medium.
func claim(dir string) (release func() error, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the medium: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is in use by another export or import", durable.ErrLocked, dir)
		}
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f.Close, nil
}

// Exported says what is on a removable medium after Export.
type Exported struct {
	Verified int    // bundles that were there and hold
	Damaged  int    // files that were there and do not hold; each is kept with the ending .damaged
	Written  int    // bundles
	Entries  uint64 // in them
	Records  uint64 // of those
	Signed   uint64 // entries under the newest checkpoint, which are all that can be exported
	Unsigned uint64 // entries behind it
	Unread   uint64 // entries that are damaged, and are missing on the medium until the journal is repaired
}

// Export writes the journal under dir, from an entry on and as far as it is
// signed, to a removable medium, as bundles that ImportMedia delivers. It
// writes what is not there yet, so to call it again goes on where it ended. All
// bundles of the station that are there are checked first: what does not hold
// is set aside and written anew, and one that the station's key signed over
// another journal is ErrFork or ErrBehind, one of another key under this name
// ErrForeign; then nothing is written. It takes no lock on the journal, but
// reads all of it, and keeps 64 bytes in memory for each entry. When it returns
// nil, what it wrote is synced.
func Export(dir string, v note.Verifier, media string, from uint64) (Exported, error) {
	return exportTo(osDisk{}, dir, v, media, from)
}

func exportTo(d disk, dir string, v note.Verifier, media string, from uint64) (out Exported, err error) {
	text, err := os.ReadFile(journal.CheckpointPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return out, fmt.Errorf("%w: there is no checkpoint", journal.ErrUnsigned)
	}
	if err != nil {
		return out, fmt.Errorf("reading the checkpoint: %w", err)
	}
	signed, err := journal.ParseCheckpoint(text, v)
	if err != nil {
		return out, fmt.Errorf("%s: %w", journal.CheckpointPath(dir), err)
	}
	h, err := journal.ReadHashes(dir, signed.Size, func(_ journal.Position, seq uint64, _ []byte) error {
		if seq >= signed.Size {
			out.Unsigned++
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	if h.Incomplete {
		return out, fmt.Errorf("%w: %s", journal.ErrUnsigned, journal.Unprovable)
	}
	if root, err := tlog.TreeHash(int64(signed.Size), h); err != nil || root != signed.Root {
		return out, fmt.Errorf("%w: its first %d entries have another root than was signed", journal.ErrTampered, signed.Size)
	}
	folder, err := stationFolder(media, v.Name())
	if err != nil {
		return out, err
	}
	if err := makeFolder(d, media, folder); err != nil {
		return out, err
	}
	release, err := claim(folder)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, release()) }()
	out.Signed = signed.Size
	e := &exporting{Exported: out, disk: d, folder: folder, v: v, hashes: h, from: from, size: signed.Size, bundle: bundle{origin: v.Name(), checkpoint: text}}
	err = e.readExisting()
	if err == nil {
		err = e.run(dir)
	}
	return e.Exported, err
}

// makeFolder makes a station's folder on a removable medium that is there.
func makeFolder(d disk, media, folder string) error {
	if _, err := os.ReadDir(media); err != nil {
		return fmt.Errorf("is the medium mounted? %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("making a folder on the medium: %w", err)
	}
	if err := errors.Join(
		d.SyncDir(filepath.Dir(folder)),
		d.SyncDir(media),
	); err != nil {
		return fmt.Errorf("making a folder on the medium: %w", err)
	}
	return nil
}

type exporting struct {
	Exported
	disk   disk
	folder string
	v      note.Verifier
	hashes *journal.Hashes
	from   uint64
	size   uint64 // of the journal that is signed
	there  []run  // on the medium, in order
	bundle bundle // that is being filled
	bytes  int
	// records of the bundle that is being filled
	records uint64
}

// readExisting checks what is on the medium.
func (e *exporting) readExisting() error {
	runs, err := listRuns(e.folder)
	if err != nil {
		return err
	}
	var damaged []string
	for _, r := range runs {
		path := filepath.Join(e.folder, r.name(endBundle))
		data, err := readMedia(path, maxBundle)
		if err != nil {
			return err
		}
		err = e.compare(r, data)
		if errors.Is(err, ErrBundle) {
			damaged = append(damaged, path)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		e.there = append(e.there, r)
		e.Verified++
	}
	for _, path := range damaged {
		if err := errors.Join(e.disk.Rename(path, path+endDamaged), e.disk.SyncDir(e.folder)); err != nil {
			return fmt.Errorf("setting a damaged bundle aside: %w", err)
		}
		e.Damaged++
	}
	return nil
}

// compare checks a bundle that is on the medium: whether it holds, and whether
// it is of this journal.
func (e *exporting) compare(r run, data []byte) error {
	b, err := parseBundle(data)
	if err != nil {
		return err
	}
	if _, err := note.Open(b.checkpoint, note.VerifierList(e.v)); err != nil {
		if unknown, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
			return fmt.Errorf("%w: it is signed by %.200q, not by the key of this station", journal.ErrForeign, signers(unknown.Note))
		}
		return fmt.Errorf("%w: %v", ErrBundle, err)
	}
	signed, _, err := b.check(e.v)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrBundle, err) // its signature holds, so it is no other station's
	}
	if b.first != r.first || b.next() != r.next {
		return fmt.Errorf("%w: it holds entries %d to %d", ErrBundle, b.first, b.next()-1)
	}
	if signed.Size > e.size {
		return fmt.Errorf("%w: it is signed over %d entries, this journal over %d; if another machine runs as %s, stop one of them", journal.ErrBehind, signed.Size, e.size, e.v.Name())
	}
	root, err := tlog.TreeHash(int64(signed.Size), e.hashes)
	if err != nil {
		return fmt.Errorf("comparing with the journal: %w", err)
	}
	if root != signed.Root {
		return fmt.Errorf("%w: it differs within the first %d entries; if another machine runs as %s, stop one of them", journal.ErrFork, signed.Size, e.v.Name())
	}
	return nil
}

// run writes what is not there.
func (e *exporting) run(dir string) error {
	segments, err := journal.ListSegments(dir)
	if err != nil {
		return err
	}
	s := journal.NewScan(dir)
	s.Visit = e.visit
	s.Damaged = func(d journal.Damage) error {
		for seq := max(d.First, e.from); seq < min(d.Next, e.size); seq++ {
			if !e.have(seq) {
				e.Unread++
			}
		}
		return e.flush()
	}
	if err := s.Run(segments); err != nil {
		return err
	}
	return e.flush()
}

func (e *exporting) have(seq uint64) bool {
	for len(e.there) > 0 && e.there[0].next <= seq {
		e.there = e.there[1:]
	}
	return len(e.there) > 0 && e.there[0].first <= seq
}

func (e *exporting) visit(at journal.Position, seq uint64, data []byte) error {
	if seq < e.from || seq >= e.size || e.have(seq) {
		return e.flush()
	}
	if len(e.bundle.entries) == bundleEntries || e.bytes+len(data) > bundleSize {
		if err := e.flush(); err != nil {
			return err
		}
	}
	r, err := journal.Summarize(at, seq, data, nil)
	if err != nil {
		return journal.AsDamage(err)
	}
	if r.IsRecord() {
		e.records++
	}
	if len(e.bundle.entries) == 0 {
		e.bundle.first = seq
	}
	e.bundle.entries = append(e.bundle.entries, bytes.Clone(data))
	e.bytes += len(data)
	return nil
}

// flush writes the bundle that was filled.
func (e *exporting) flush() (err error) {
	if len(e.bundle.entries) == 0 {
		return nil
	}
	r := run{e.bundle.first, e.bundle.next()}
	if e.bundle.beside, err = e.hashes.RangeProof(0, e.size, r.first, r.next); err != nil {
		return fmt.Errorf("proving entries %d to %d: %w", r.first, r.next-1, err)
	}
	if err := durable.WriteFile(e.disk, filepath.Join(e.folder, r.name(endBundle)), e.bundle.encode(), 0o644); err != nil {
		return fmt.Errorf("writing entries %d to %d to the medium: %w; what was written before them is good, and to export again goes on there", r.first, r.next-1, err)
	}
	e.Written++
	e.Entries += r.next - r.first
	e.Records += e.records
	e.bundle.entries, e.bytes, e.records = nil, 0, 0
	return nil
}

// Receipt is a file on a removable medium that says it is one.
type Receipt struct {
	Path string
	Data []byte // not checked in any way
}

// Receipts reads what came back for a station on a removable medium, of every
// importer, by the first entry.
func Receipts(media, origin string) ([]Receipt, error) {
	folder, err := stationFolder(media, origin)
	if err != nil {
		return nil, err
	}
	names, err := os.ReadDir(folder) // in order
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the medium: %w", err)
	}
	var out []Receipt
	for _, name := range names {
		if !receiptName.MatchString(name.Name()) {
			continue
		}
		path := filepath.Join(folder, name.Name())
		data, err := readMedia(path, maxReceipt)
		if err != nil {
			return nil, err
		}
		out = append(out, Receipt{path, data})
	}
	return out, nil
}
