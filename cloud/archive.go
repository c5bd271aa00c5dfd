package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"secretfree/spool/journal"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// A registry keeps the journals of its stations too, beside the public keys:
//
//	journal/<station>/<first>-<last>.jsonl      a sealed segment: the numbers of its first and last entry
//	journal/<station>/<size>.checkpoint         a signed checkpoint over that many entries
//
// The numbers have 20 digits, so that names sort as numbers do. Nothing there
// is ever replaced.

// MaxSegment caps the size of a segment, in bytes.
const MaxSegment = 64 << 20

const maxCheckpoint = 64 << 10

// Segment is the name of a segment in the archive.
type Segment struct{ First, Last uint64 }

func (s Segment) name() string { return fmt.Sprintf("%020d-%020d.jsonl", s.First, s.Last) }

// Names are read by hand, not by expressions: those take their time at every
// start of every program that has a registry.

func parseSegmentName(name string) (Segment, bool) {
	numbers, isSegment := strings.CutSuffix(name, ".jsonl")
	first, last, isRange := strings.Cut(numbers, "-")
	from, ok := parseSeq(first)
	to, ok2 := parseSeq(last)
	return Segment{from, to}, isSegment && isRange && ok && ok2 && from <= to
}

func isCheckpointName(name string) bool {
	size, ok := strings.CutSuffix(name, ".checkpoint")
	return ok && len(size) == 20 && strings.Trim(size, "0123456789") == ""
}

// parseSeq reads a number of 20 digits.
func parseSeq(text string) (uint64, bool) {
	seq, err := strconv.ParseUint(text, 10, 64) // takes no sign
	return seq, err == nil && len(text) == 20
}

// archiveFolder is where the journal of an origin is kept.
func archiveFolder(origin string) (string, error) {
	if err := checkOrigin(origin); err != nil {
		return "", fmt.Errorf("station %.130q: %w", origin, err)
	}
	_, station, _ := strings.Cut(origin, "/")
	return "journal/" + station + "/", nil
}

// checkpoint is what a signed checkpoint says. Whoever relies on it checks the
// signature too.
type checkpoint struct {
	origin string
	journal.Checkpoint
}

func parseCheckpoint(text []byte) (c checkpoint, err error) {
	if len(text) > maxCheckpoint {
		return c, fmt.Errorf("it is no checkpoint: it has more than %d bytes", maxCheckpoint)
	}
	if c.origin, c.Checkpoint, err = journal.CheckpointOf(text); err != nil {
		return c, fmt.Errorf("it is no checkpoint: %w", err)
	}
	return c, nil
}

// archive is what a back end has to do for the archive's sake. Names are whole.
type archive interface {
	// store makes an object, durably, if there is none. Otherwise it hands what
	// is there to known, and returns what that says.
	store(ctx context.Context, name string, content []byte, known func(io.Reader) error) error
	// list gives the names that start with a prefix, which may end within a
	// name, in order.
	list(ctx context.Context, prefix string) iter.Seq2[string, error]
	// load reads an object of at most limit bytes; an error that is
	// fs.ErrNotExist says that there is none.
	load(ctx context.Context, name string, limit int64) ([]byte, error)
}

func putSegment(ctx context.Context, a archive, origin string, first, last uint64, segment []byte) error {
	folder, err := archiveFolder(origin)
	if err != nil {
		return err
	}
	if first > last || len(segment) > MaxSegment {
		return fmt.Errorf("it has the entries %d to %d in %d bytes; at most %d are stored", first, last, len(segment), MaxSegment)
	}
	name := folder + Segment{first, last}.name()
	// A copy of a station goes on in the same segment, and seals it elsewhere.
	alone := func() error {
		for other, err := range a.list(ctx, fmt.Sprintf("%s%020d-", folder, first)) {
			if err != nil {
				return err
			}
			if other != name {
				return fmt.Errorf("%s is there: %w", other, journal.ErrFork)
			}
		}
		return nil
	}
	if err := alone(); err != nil {
		return err
	}
	if err := a.store(ctx, name, segment, func(stored io.Reader) error {
		same, err := equal(stored, segment)
		if err == nil && !same {
			err = fmt.Errorf("%s has another content: %w", name, journal.ErrFork)
		}
		return err
	}); err != nil {
		return err
	}
	return alone() // the copy may have looked at the same time
}

// equal reads to the end of r or to the first difference.
func equal(r io.Reader, want []byte) (bool, error) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := r.Read(buffer)
		if !bytes.HasPrefix(want, buffer[:n]) {
			return false, nil
		}
		want = want[n:]
		if err == io.EOF {
			return len(want) == 0, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func putCheckpoint(ctx context.Context, a archive, origin string, size uint64, text []byte) error {
	folder, err := archiveFolder(origin)
	if err != nil {
		return err
	}
	c, err := parseCheckpoint(text)
	if err == nil && (c.origin != origin || c.Size != size) {
		err = fmt.Errorf("it is of %.130q over %d entries", c.origin, c.Size)
	}
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s%020d.checkpoint", folder, size)
	return a.store(ctx, name, text, func(r io.Reader) error {
		stored, err := io.ReadAll(io.LimitReader(r, maxCheckpoint+1))
		if err != nil {
			return err
		}
		known, err := parseCheckpoint(stored)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w: %v", name, ErrDamaged, err)
		case known != c:
			return fmt.Errorf("%s is another one: %w", name, journal.ErrFork)
		}
		return nil
	})
}

// segments gives what is archived of an origin's journal, in order.
func segments(ctx context.Context, a archive, origin string) iter.Seq2[Segment, error] {
	return func(yield func(Segment, error) bool) {
		folder, err := archiveFolder(origin)
		if err != nil {
			yield(Segment{}, err)
			return
		}
		for name, err := range a.list(ctx, folder) {
			if err != nil {
				yield(Segment{}, err)
				return
			}
			if s, ok := parseSegmentName(strings.TrimPrefix(name, folder)); ok && !yield(s, nil) {
				return
			}
		}
	}
}

func segment(ctx context.Context, a archive, origin string, first uint64) ([]byte, error) {
	folder, err := archiveFolder(origin)
	if err != nil {
		return nil, err
	}
	var found []string
	for name, err := range a.list(ctx, fmt.Sprintf("%s%020d-", folder, first)) {
		if err != nil {
			return nil, err
		}
		if _, ok := parseSegmentName(strings.TrimPrefix(name, folder)); ok {
			found = append(found, name)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("there is no segment from entry %d on: %w", first, fs.ErrNotExist)
	case 1:
		return a.load(ctx, found[0], MaxSegment)
	}
	return nil, fmt.Errorf("%s are both there: %w", strings.Join(found, " and "), journal.ErrFork)
}

func latestCheckpoint(ctx context.Context, a archive, origin string) ([]byte, error) {
	folder, err := archiveFolder(origin)
	if err != nil {
		return nil, err
	}
	latest := ""
	for name, err := range a.list(ctx, folder) {
		if err != nil {
			return nil, err
		}
		if isCheckpointName(strings.TrimPrefix(name, folder)) {
			latest = name
		}
	}
	if latest == "" {
		return nil, fmt.Errorf("there is no checkpoint: %w", fs.ErrNotExist)
	}
	return a.load(ctx, latest, maxCheckpoint)
}

func archiving(what, origin string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("archive of station %.130s: %s: %w", origin, what, err)
}

// PutSegment stores a sealed segment of a journal, the entries first to last,
// durably. It is idempotent. An error that wraps journal.ErrFork says that
// something else is stored there. It needs s3:PutObject and s3:GetObject on
// journal/*, and s3:ListBucket.
func (a *AWS) PutSegment(ctx context.Context, origin string, first, last uint64, segment []byte) error {
	return archiving(fmt.Sprintf("storing the segment from entry %d on", first), origin, putSegment(ctx, a, origin, first, last, segment))
}

// PutCheckpoint stores a signed checkpoint over the first size entries of a
// journal, durably. It is idempotent; what counts is the root. An error that
// wraps journal.ErrFork says that one of another root is stored there.
func (a *AWS) PutCheckpoint(ctx context.Context, origin string, size uint64, checkpoint []byte) error {
	return archiving(fmt.Sprintf("storing the checkpoint of size %d", size), origin, putCheckpoint(ctx, a, origin, size, checkpoint))
}

// Segments gives the names of all segments of a journal, by their first entry.
// An error ends it.
func (a *AWS) Segments(ctx context.Context, origin string) iter.Seq2[Segment, error] {
	return segments(ctx, a, origin)
}

// Segment reads the segment that starts with an entry. An error that is
// fs.ErrNotExist says that there is none, one that wraps journal.ErrFork that
// there are several. What it says is not checked.
func (a *AWS) Segment(ctx context.Context, origin string, first uint64) ([]byte, error) {
	data, err := segment(ctx, a, origin, first)
	return data, archiving("reading a segment", origin, err)
}

// LatestCheckpoint reads the checkpoint of the greatest size. An error that is
// fs.ErrNotExist says that there is none. Its signature is not checked.
func (a *AWS) LatestCheckpoint(ctx context.Context, origin string) ([]byte, error) {
	data, err := latestCheckpoint(ctx, a, origin)
	return data, archiving("reading the latest checkpoint", origin, err)
}

func (a *AWS) store(ctx context.Context, name string, content []byte, known func(io.Reader) error) error {
	return a.create(ctx, a.slow, name, "text/plain; charset=utf-8", content, known)
}

func (a *AWS) list(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return a.names(ctx, prefix, func(_ context.Context, call func() error) error { return call() })
}

// names is list; each page is fetched by way of fetch.
func (a *AWS) names(ctx context.Context, prefix string, fetch func(ctx context.Context, call func() error) error) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		pages := s3.NewListObjectsV2Paginator(a.s3, &s3.ListObjectsV2Input{Bucket: aws.String(a.config.Bucket), Prefix: aws.String(prefix)})
		for pages.HasMorePages() {
			var page *s3.ListObjectsV2Output
			err := fetch(ctx, func() (err error) {
				if page, err = pages.NextPage(ctx); err != nil {
					return a.fault("listing s3://"+a.config.Bucket+"/"+prefix, err)
				}
				return nil
			})
			if err != nil {
				yield("", err)
				return
			}
			for _, object := range page.Contents {
				if !yield(aws.ToString(object.Key), nil) {
					return
				}
			}
		}
	}
}

func (a *AWS) load(ctx context.Context, name string, limit int64) ([]byte, error) {
	where := "s3://" + a.config.Bucket + "/" + name
	stored, err := a.slow.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(a.config.Bucket), Key: aws.String(name)})
	if _, missing := errors.AsType[*s3types.NoSuchKey](err); missing {
		return nil, fmt.Errorf("%s: %w", where, fs.ErrNotExist)
	}
	if err != nil {
		return nil, a.fault("reading "+where, err)
	}
	defer stored.Body.Close()
	data, err := io.ReadAll(io.LimitReader(stored.Body, limit+1))
	if err != nil {
		return nil, a.fault("reading "+where, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", ErrDamaged, where, limit)
	}
	return data, nil
}

// PutSegment stores a sealed segment of a journal, the entries first to last,
// durably. It is idempotent. An error that wraps journal.ErrFork says that
// something else is stored there.
func (d *Dir) PutSegment(ctx context.Context, origin string, first, last uint64, segment []byte) error {
	err := d.writeArchive(ctx, func(a archive) error { return putSegment(ctx, a, origin, first, last, segment) })
	return d.explain(fmt.Sprintf("storing the segment from entry %d on of station %.130s", first, origin), err)
}

// PutCheckpoint stores a signed checkpoint over the first size entries of a
// journal, durably. It is idempotent; what counts is the root. An error that
// wraps journal.ErrFork says that one of another root is stored there.
func (d *Dir) PutCheckpoint(ctx context.Context, origin string, size uint64, checkpoint []byte) error {
	err := d.writeArchive(ctx, func(a archive) error { return putCheckpoint(ctx, a, origin, size, checkpoint) })
	return d.explain(fmt.Sprintf("storing the checkpoint of size %d of station %.130s", size, origin), err)
}

// Segments gives the names of all segments of a journal, by their first entry.
// An error ends it.
func (d *Dir) Segments(ctx context.Context, origin string) iter.Seq2[Segment, error] {
	return func(yield func(Segment, error) bool) {
		err := d.readArchive(func(a archive) error {
			for s, err := range segments(ctx, a, origin) {
				if err != nil {
					return err
				}
				if !yield(s, nil) {
					return nil
				}
			}
			return nil
		})
		if err != nil {
			yield(Segment{}, d.explain("listing the segments of station "+origin, err))
		}
	}
}

// Segment reads the segment that starts with an entry. An error that is
// fs.ErrNotExist says that there is none, one that wraps journal.ErrFork that
// there are several. What it says is not checked.
func (d *Dir) Segment(ctx context.Context, origin string, first uint64) (data []byte, err error) {
	err = d.readArchive(func(a archive) (err error) {
		data, err = segment(ctx, a, origin, first)
		return err
	})
	return data, d.explain("reading a segment of station "+origin, err)
}

// LatestCheckpoint reads the checkpoint of the greatest size. An error that is
// fs.ErrNotExist says that there is none. Its signature is not checked.
func (d *Dir) LatestCheckpoint(ctx context.Context, origin string) (data []byte, err error) {
	err = d.readArchive(func(a archive) (err error) {
		data, err = latestCheckpoint(ctx, a, origin)
		return err
	})
	return data, d.explain("reading the latest checkpoint of station "+origin, err)
}

func (d *Dir) writeArchive(ctx context.Context, do func(archive) error) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return d.locked(ctx, func(w *writeTxn) error { return do(w) })
}

func (d *Dir) readArchive(do func(archive) error) error {
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	return do(&writeTxn{root: root})
}

func (w *writeTxn) store(_ context.Context, name string, content []byte, known func(io.Reader) error) error {
	folder := path.Dir(name)
	for _, each := range []string{path.Dir(folder), folder} {
		if err := w.root.Mkdir(each, 0o755); err != nil && !isExist(err) {
			return err
		}
		// Even if it was there: its maker may have crashed before the sync.
		if err := syncFolder(w.root, path.Dir(each)); err != nil {
			return err
		}
	}
	err := w.create(name, content)
	if !isExist(err) {
		return err
	}
	f, err := w.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return known(f)
}

func (w *writeTxn) list(_ context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		folder := path.Dir(prefix)
		entries, err := fs.ReadDir(w.root.FS(), folder) // in order
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield("", err)
			return
		}
		for _, e := range entries {
			if name := folder + "/" + e.Name(); strings.HasPrefix(name, prefix) && !yield(name, nil) {
				return
			}
		}
	}
}

func (w *writeTxn) load(_ context.Context, name string, limit int64) ([]byte, error) {
	return readFile(w.root, name, limit)
}
