package cloud

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// What is here looks at the journals of all stations in an archive, with few
// requests also where a journal has many checkpoints.

const (
	maxStations  = 10_000
	tailPages    = 10     // that are read to find the newest segment
	tailEntries  = 50_000 // a segment has some 12,000
	probes       = 100    // a page each; the numbers have 63 bits
	disorderSpan = 10 * time.Minute
)

// ArchivedJournal is what an archive has of the journal of one station. Nothing
// of it is verified.
type ArchivedJournal struct {
	Station    string // the folder: the name without the product
	Size       uint64 // of the newest checkpoint; 0 if there is none
	Checkpoint []byte
	Stored     time.Time // when that was stored
	Archived   uint64    // entries in the segments up to the newest, which is one of the last 50,000 entries; see Known
	Known      bool      // that Archived is the number
	// Conflict says why two machines must have written here; empty if nothing
	// says so.
	Conflict string
	// Disorder says why two machines may have: a smaller checkpoint was stored
	// long after a greater one.
	Disorder string
}

// object is something in an archive's folder.
type object struct {
	name   string // in the folder
	stored time.Time
}

// pages is what a back end does for a look at all stations.
type pages interface {
	archive
	// folders gives the names of the folders in journal/, at most limit.
	folders(ctx context.Context, limit int) ([]string, error)
	// page gives objects of a folder, which ends in a slash, in the order of
	// their names and behind a name, and tells whether there are more.
	page(ctx context.Context, folder, after string) (objects []object, more bool, err error)
}

// number is the first number of a name, by which names sort.
func (o object) number() (uint64, bool) {
	if len(o.name) < 20 {
		return 0, false
	}
	return parseSeq(o.name[:20])
}

func (o object) segment() (Segment, bool) { return parseSegmentName(o.name) }

// tail finds the last page of a folder: of pages that begin at numbers further
// and further on, it goes back from the first that is empty.
func tail(ctx context.Context, p pages, folder string) (last []object, whole bool, err error) {
	last, more, err := p.page(ctx, folder, "")
	if err != nil || !more {
		return last, true, err
	}
	low, ok := last[len(last)-1].number()
	high, bounded := uint64(0), false
	for range probes {
		if !more {
			return last, false, nil
		}
		after, guess := last[len(last)-1].name, uint64(0)
		switch {
		case !ok: // strangers' names
		case bounded:
			guess = low + (high-low)/2
		default:
			guess = 2*low + 1
		}
		if guess > low+1 {
			after = fmt.Sprintf("%020d", guess)
		}
		found, rest, err := p.page(ctx, folder, after)
		if err != nil {
			return nil, false, err
		}
		if len(found) == 0 && guess > low+1 {
			high, bounded = guess, true
			continue
		}
		if len(found) == 0 {
			return last, false, nil
		}
		last, more = found, rest
		low, ok = last[len(last)-1].number()
	}
	return nil, false, fmt.Errorf("%s: the newest checkpoint is not found in %d requests", folder, probes)
}

func journalOf(ctx context.Context, p pages, station string) (j ArchivedJournal, err error) {
	j.Station = station
	folder := "journal/" + station + "/"
	last, whole, err := tail(ctx, p, folder)
	if err != nil {
		return j, err
	}
	newest := ""
	for _, o := range last {
		if isCheckpointName(o.name) {
			j.Size, _ = o.number()
			newest, j.Stored = o.name, o.stored
		}
	}
	if newest == "" {
		if len(last) > 0 {
			j.Conflict, j.Disorder = overlap(last), ""
		}
		return j, nil
	}
	if j.Checkpoint, err = p.load(ctx, folder+newest, maxCheckpoint); err != nil {
		return j, err
	}
	c, err := parseCheckpoint(j.Checkpoint)
	if err != nil || c.Size != j.Size || !strings.HasSuffix(c.origin, "/"+station) {
		return j, fmt.Errorf("%w: %s%s is not what its name says", ErrDamaged, folder, newest)
	}
	near := last
	if !whole {
		if near, err = nearEnd(ctx, p, folder, j.Size); err != nil {
			return j, err
		}
	}
	for _, o := range near {
		if s, ok := o.segment(); ok {
			j.Archived, j.Known = max(j.Archived, s.Last+1), true
		}
	}
	j.Known = j.Known || whole || j.Size <= tailEntries
	j.Conflict, j.Disorder = overlap(near), disorder(near)
	return j, nil
}

// nearEnd lists what is of the last entries.
func nearEnd(ctx context.Context, p pages, folder string, size uint64) (all []object, err error) {
	after := fmt.Sprintf("%020d", size-min(size, tailEntries))
	for range tailPages {
		objects, more, err := p.page(ctx, folder, after)
		if err != nil {
			return nil, err
		}
		if all = append(all, objects...); !more || len(objects) == 0 {
			break
		}
		after = objects[len(objects)-1].name
	}
	return all, nil
}

// overlap finds segments that share entries: one station never seals an entry
// twice.
func overlap(objects []object) string {
	var before Segment
	have := false
	for _, o := range objects {
		s, ok := o.segment()
		if !ok {
			continue
		}
		if have && s.First <= before.Last {
			return fmt.Sprintf("%s and %s share entries", before.name(), s.name())
		}
		before, have = s, true
	}
	return ""
}

// disorder looks at when checkpoints were stored, but for those of segments,
// which may be stored late.
func disorder(objects []object) string {
	seals := map[uint64]bool{}
	for _, o := range objects {
		if s, ok := o.segment(); ok {
			seals[s.Last+1] = true
		}
	}
	var latest object
	for _, o := range objects {
		size, ok := o.number()
		if !ok || !isCheckpointName(o.name) || seals[size] {
			continue
		}
		if latest.name != "" && latest.stored.Sub(o.stored) > disorderSpan {
			return fmt.Sprintf("%s was stored at %s, and the greater %s before that", latest.name, latest.stored.UTC().Format(time.RFC3339), o.name)
		}
		if o.stored.After(latest.stored) {
			latest = o
		}
	}
	return ""
}

func checkpointAt(ctx context.Context, a archive, station string, size uint64) ([]byte, error) {
	return a.load(ctx, fmt.Sprintf("journal/%s/%020d.checkpoint", station, size), maxCheckpoint)
}

// Stations gives the names of the stations of which the archive has something.
// It needs s3:ListBucket on journal/.
func (a *AWS) Stations(ctx context.Context) ([]string, error) { return a.folders(ctx, maxStations) }

// JournalOf looks at the newest of a station's journal. It needs s3:ListBucket
// and s3:GetObject on journal/.
func (a *AWS) JournalOf(ctx context.Context, station string) (ArchivedJournal, error) {
	j, err := journalOf(ctx, a, station)
	return j, archiving("looking at its journal", station, err)
}

// CheckpointAt reads the checkpoint of a size; an error that is fs.ErrNotExist
// says that there is none.
func (a *AWS) CheckpointAt(ctx context.Context, station string, size uint64) ([]byte, error) {
	return checkpointAt(ctx, a, station, size)
}

func (a *AWS) folders(ctx context.Context, limit int) (all []string, err error) {
	list := s3.NewListObjectsV2Paginator(a.s3, &s3.ListObjectsV2Input{Bucket: aws.String(a.config.Bucket), Prefix: aws.String("journal/"), Delimiter: aws.String("/")})
	for list.HasMorePages() && len(all) < limit {
		page, err := list.NextPage(ctx)
		if err != nil {
			return nil, a.fault("listing s3://"+a.config.Bucket+"/journal/", err)
		}
		for _, p := range page.CommonPrefixes {
			all = append(all, strings.TrimSuffix(strings.TrimPrefix(aws.ToString(p.Prefix), "journal/"), "/"))
		}
	}
	return all, nil
}

func (a *AWS) page(ctx context.Context, folder, after string) (objects []object, more bool, err error) {
	in := &s3.ListObjectsV2Input{Bucket: aws.String(a.config.Bucket), Prefix: aws.String(folder)}
	if after != "" {
		in.StartAfter = aws.String(folder + after)
	}
	out, err := a.s3.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, false, a.fault("listing s3://"+a.config.Bucket+"/"+folder, err)
	}
	for _, o := range out.Contents {
		objects = append(objects, object{strings.TrimPrefix(aws.ToString(o.Key), folder), aws.ToTime(o.LastModified)})
	}
	return objects, aws.ToBool(out.IsTruncated), nil
}

// Stations gives the names of the stations of which the archive has something.
func (d *Dir) Stations(ctx context.Context) (all []string, err error) {
	err = d.readArchive(func(a archive) (err error) {
		all, err = a.(pages).folders(ctx, maxStations)
		return err
	})
	return all, d.explain("listing the stations", err)
}

// JournalOf looks at the newest of a station's journal.
func (d *Dir) JournalOf(ctx context.Context, station string) (j ArchivedJournal, err error) {
	err = d.readArchive(func(a archive) (err error) {
		j, err = journalOf(ctx, a.(pages), station)
		return err
	})
	return j, d.explain("looking at the journal of station "+station, err)
}

// CheckpointAt reads the checkpoint of a size; an error that is fs.ErrNotExist
// says that there is none.
func (d *Dir) CheckpointAt(ctx context.Context, station string, size uint64) (data []byte, err error) {
	err = d.readArchive(func(a archive) (err error) {
		data, err = checkpointAt(ctx, a, station, size)
		return err
	})
	return data, d.explain("reading a checkpoint of station "+station, err)
}

func (w *writeTxn) folders(_ context.Context, limit int) (all []string, err error) {
	entries, err := fs.ReadDir(w.root.FS(), "journal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.IsDir() && len(all) < limit {
			all = append(all, e.Name())
		}
	}
	return all, err
}

// page is the whole rest: the folder is read as a whole in any case.
func (w *writeTxn) page(_ context.Context, folder, after string) (objects []object, more bool, err error) {
	entries, err := fs.ReadDir(w.root.FS(), strings.TrimSuffix(folder, "/"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	for _, e := range entries {
		o := object{name: e.Name()}
		if _, ok := o.number(); !ok || o.name <= after {
			continue
		}
		if info, err := e.Info(); err == nil {
			o.stored = info.ModTime()
		}
		objects = append(objects, o)
	}
	return objects, false, nil
}
