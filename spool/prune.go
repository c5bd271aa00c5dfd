package spool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

// Prunable is a sealed segment, and whether it can be pruned.
type Prunable struct {
	First  uint64    `json:"first"`
	Last   uint64    `json:"last"`
	Bytes  int64     `json:"bytes"`
	Newest time.Time `json:"newest,omitzero"` // of its entries; zero if that was not looked at
	Pruned bool      `json:"pruned"`          // it was, by this call
	Kept   string    `json:"kept,omitempty"`  // why it is not; empty if it was, or would be
	Wrong  bool      `json:"wrong,omitempty"` // Kept is what only pruning finds, and somebody must look into
}

const (
	pruneFirst = time.Minute // after the start: some stations are started more often than each hour
	pruneEvery = time.Hour
	day        = 24 * time.Hour
)

// Prune lets go of segments that begin at entry from or later, are sealed, older than age, wholly confirmed by the registry, and in the archive: at most so many of
// them, or all if most is 0. Of each stays a summary, by which conflicts are refused and the tree goes on for ever, also when the index is
// rebuilt; the entries themselves are in the archive only, from where Restore has them back. Without apply it only says what it would do, by what the
// index knows.
//
// Before a segment goes, it is compared with its hashes and with the checkpoint over it, the archive is given it and its checkpoint once more and so
// says that it has just these, and the registry confirms each of its records once more. Then the summary is made durable, and only then the segment is
// removed: whatever happens in between, one of the two is there.
//
// The segments that are there, from from on, are returned, the oldest first. An error means that the archive or the registry is away, or the disk fails.
func (s *Spool) Prune(ctx context.Context, age time.Duration, from uint64, most int, apply bool) ([]Prunable, error) {
	s.pruneMu.Lock()
	defer s.pruneMu.Unlock()
	list, sealed, err := s.prunable()
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(p Prunable) bool { return p.First < from })
	done := 0
	for i := range list {
		p := &list[i]
		if p.Kept != "" {
			continue
		}
		if p.Newest, err = newestOf(s.cfg.Dir, p.First); err != nil {
			p.Kept, p.Wrong = err.Error(), true
			continue
		}
		if left := age - time.Since(p.Newest); left > 0 {
			p.Kept = fmt.Sprintf("it is too young: %d days are left", (left+day-1)/day)
			continue
		}
		if !apply {
			continue
		}
		if most > 0 && done == most {
			p.Kept = "it is for the next call"
			continue
		}
		if err := s.pruneOne(ctx, p, sealed); err != nil {
			return list, fmt.Errorf("pruning the segment that begins at entry %d: %w", p.First, err)
		}
		if p.Pruned {
			done++
		}
	}
	return list, nil
}

// prunable lists the sealed segments that are not pruned, with what the index has against it.
func (s *Spool) prunable() (list []Prunable, all map[uint64]sealedSegment, err error) {
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return nil, nil, err
	}
	if s.clock.fault != "" {
		return nil, nil, fmt.Errorf("nothing is pruned: %s", s.clock.fault)
	}
	if all, err = readSealed(s.db); err != nil {
		return nil, nil, fmt.Errorf("reading the index: %w", err)
	}
	err = s.view(func(tx *bolt.Tx) error {
		for first, segment := range all {
			if !segment.Pruned {
				list = append(list, Prunable{First: first, Last: segment.Next - 1, Bytes: segment.Size, Kept: s.holds(tx, first, segment)})
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Prunable) int { return cmp.Compare(a.First, b.First) })
	return list, all, err
}

// holds says what keeps a segment from being pruned, as the index has it; nothing if nothing does. The caller holds mu.
func (s *Spool) holds(tx *bolt.Tx, first uint64, segment sealedSegment) string {
	within := func(bucket []byte) bool {
		key, _ := tx.Bucket(bucket).Cursor().Seek(encodeSeq(first))
		return key != nil && bytes.Compare(key, encodeSeq(segment.Next)) < 0
	}
	switch {
	case segment.Blind || s.damagedIn(first, segment.Next):
		return "it, or one before it, is damaged: stationctl spool repair"
	case within(bucketQueue):
		return "the registry has not confirmed all of it"
	case within(bucketDead):
		return "the registry has refused some of it: stationctl spool dead"
	case s.cfg.Archive == nil:
		return "there is no archive for it"
	case !bytes.Equal(tx.Bucket(bucketArchive).Get(encodeSeq(first)), encodeSeq(segment.Next)):
		if why := s.archive.lastError; why != "" {
			return "the archive does not have it yet: " + why
		}
		return "the archive does not have it yet"
	}
	return ""
}

// newestOf reads the time of the last entry of a segment.
func newestOf(dir string, first uint64) (t time.Time, err error) {
	f, err := os.Open(segmentPath(dir, first))
	if err != nil {
		return t, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return t, err
	}
	end := make([]byte, min(info.Size(), maxEntryLine))
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil {
		return t, err
	}
	line := end[bytes.LastIndexByte(end[:max(0, len(end)-1)], '\n')+1:]
	data, _, err := readLine(line)
	if err != nil {
		return t, err
	}
	return timeOf(data)
}

// pruneOne does it, or says in p why not.
func (s *Spool) pruneOne(ctx context.Context, p *Prunable, sealed map[uint64]sealedSegment) error {
	dir, first, segment := s.cfg.Dir, p.First, sealed[p.First]
	a, err := s.readSegment(first, segment)
	if err != nil {
		p.Kept, p.Wrong = err.Error(), true
		return nil
	}
	var records []board.Sealed
	var seqs []uint64
	sum, err := summarize(s.origin, first, a.Lines, func(seq uint64, r board.Sealed) {
		records, seqs = append(records, r), append(seqs, seq)
	})
	if err == nil {
		err = s.underSeal(sum, segment, sealed, a.Checkpoint)
	}
	if err != nil {
		p.Kept, p.Wrong = err.Error(), true
		return nil
	}
	if err := s.offerSegment(ctx, a); err != nil {
		return err
	}
	for i := 0; i < len(records); i += passRecords {
		batch := records[i:min(len(records), i+passRecords)]
		for j, err := range s.confirmAgain(ctx, batch) {
			if err != nil && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if permanent(err) {
				p.Kept, p.Wrong = fmt.Sprintf("the registry does not have entry %d: %v", seqs[i+j], err), true
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	data, err := sum.sign(s.cfg.Identity.Signer)
	if err != nil {
		return err
	}
	if err := writeDurably(s.cfg.disk, summaryPath(dir, first), data, 0o400); err != nil {
		return fmt.Errorf("writing the summary: %w", err)
	}
	if err := s.readBack(first, data); err != nil {
		return err
	}
	return s.letGo(p, segment, int64(len(data)))
}

// underSeal makes sure that the station has signed a root over just these entries and those before them.
func (s *Spool) underSeal(sum *summary, segment sealedSegment, sealed map[uint64]sealedSegment, text []byte) error {
	var t tree
	for _, before := range sealed {
		if before.Next == sum.first {
			t = tree{before.Next, slices.Clone(before.Edge), before.Blind}
		}
	}
	if t.n != sum.first || t.blind {
		return fmt.Errorf("%w: the tree before it is not known", ErrUnsigned)
	}
	for i := range sum.entries {
		t.add(sum.entries[i].Hash)
	}
	signed, err := parseCheckpoint(text, s.cfg.Identity.Verifier)
	if err != nil {
		return err
	}
	if t.n != segment.Next || signed.size != t.n || signed.root != t.root() {
		return fmt.Errorf("%w: its checkpoint is over another root", ErrTampered)
	}
	return nil
}

// offerSegment has the archive say that it has this segment.
func (s *Spool) offerSegment(ctx context.Context, a ArchivedSegment) error {
	s.archiveMu.Lock()
	defer s.archiveMu.Unlock()
	bounded, cancel := context.WithTimeout(ctx, archiveLimit)
	defer cancel()
	if err := s.cfg.Archive.PutSegment(bounded, a); err != nil {
		err = fmt.Errorf("asking the archive: %w", err)
		s.fork(err)
		return err
	}
	return nil
}

// confirmAgain has the registry say that it has these records, which it has confirmed before.
func (s *Spool) confirmAgain(ctx context.Context, records []board.Sealed) []error {
	s.sinkMu.Lock()
	defer s.sinkMu.Unlock()
	errs := putAll(ctx, s.cfg.Sink, records)
	for i, err := range errs {
		if err != nil {
			errs[i] = fmt.Errorf("asking the registry for device %s: %w", records[i].Record.Device, err)
		}
	}
	return errs
}

func (s *Spool) readBack(first uint64, want []byte) error {
	path := summaryPath(s.cfg.Dir, first)
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, want) {
		return fmt.Errorf("reading %s back: something else is there (%v)", path, err)
	}
	sum, err := parseSummary(have)
	if err != nil {
		return fmt.Errorf("reading %s back: %w", path, err)
	}
	return sum.check(s.cfg.Identity.Verifier)
}

// letGo removes a segment whose summary is on disk, if nothing has happened to it meanwhile.
func (s *Spool) letGo(p *Prunable, was sealedSegment, size int64) error {
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return err
	}
	all, err := readSealed(s.db)
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	now, ok := all[p.First]
	if !ok || now.Next != was.Next || now.Size != was.Size || now.Pruned {
		p.Kept = "it was read anew meanwhile"
		return nil
	}
	if err := s.view(func(tx *bolt.Tx) error {
		p.Kept = s.holds(tx, p.First, now)
		return nil
	}); err != nil || p.Kept != "" {
		return err
	}
	if err := s.cfg.disk.remove(segmentPath(s.cfg.Dir, p.First)); err != nil {
		return fmt.Errorf("removing the segment: %w", err)
	}
	p.Pruned = true
	// From here on the summary counts. The removal need not be synced: were the segment back after a power failure, it would count, and
	// be pruned again.
	now.Pruned, now.Size = true, size
	if err := s.update(func(tx *bolt.Tx) error { return putSealed(tx, p.First, now) }); err != nil {
		s.broken = fmt.Errorf("pruning a segment: %w", err)
		return s.broken
	}
	return nil
}

// runPrune prunes by the policy until the context ends.
func (s *Spool) runPrune(ctx context.Context) {
	timer := time.NewTimer(pruneFirst)
	defer timer.Stop()
	told, wrong := "", map[uint64]string{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(pruneEvery)
		age := s.limits.Load().Retention
		if age <= 0 {
			continue
		}
		list, err := s.Prune(ctx, age, 0, 0, true)
		for _, p := range list {
			if p.Pruned {
				s.cfg.Notify(fmt.Sprintf("entries %d to %d were pruned: they are delivered, and in the archive", p.First, p.Last))
			}
			if p.Wrong && wrong[p.First] != p.Kept {
				s.cfg.Notify(fmt.Sprintf("entries %d to %d cannot be pruned: %s", p.First, p.Last, p.Kept))
				wrong[p.First] = p.Kept
			}
		}
		why := ""
		if err != nil && !errors.Is(err, ErrFork) { // which is told where it is met
			why = err.Error()
		}
		if why != "" && why != told && ctx.Err() == nil {
			s.cfg.Notify(why)
		}
		told = why
	}
}

// Restore puts a pruned segment back from a copy: the one with this entry. The copy is taken if it has the hashes that the summary, which the station
// signed, has of it. The station must be stopped: Restore takes its lock, or returns ErrLocked. It returns fs.ErrNotExist if no such segment
// was pruned, or there is no copy.
func Restore(dir string, v note.Verifier, copies func(first uint64) ([]byte, error), seq uint64) error {
	lock, _, err := takeLock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	segments, err := listSegments(dir)
	if err != nil {
		return err
	}
	for i, f := range segments {
		if f.first > seq || i+1 < len(segments) && segments[i+1].first <= seq {
			continue
		}
		if !f.pruned {
			break
		}
		data, err := os.ReadFile(summaryPath(dir, f.first))
		if err != nil {
			return err
		}
		sum, err := parseSummary(data)
		if err == nil {
			err = sum.check(v)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", summaryPath(dir, f.first), err)
		}
		l := leaves{Origin: sum.origin, First: sum.first}
		for _, b := range sum.entries {
			l.Hashes = append(l.Hashes, b.Hash)
		}
		lines, err := copies(f.first)
		if err == nil {
			err = sameLeaves(lines, l)
		}
		if err != nil {
			return fmt.Errorf("restoring the segment that begins at entry %d: %w", f.first, err)
		}
		return putBack(osDisk{}, dir, f.first, lines)
	}
	return fmt.Errorf("no segment with entry %d was pruned: %w", seq, fs.ErrNotExist)
}

// putBack makes a segment of what was pruned. The segment is durable before the summary goes; if that comes back, it has no meaning.
func putBack(d disk, dir string, first uint64, lines []byte) error {
	if err := writeDurably(d, segmentPath(dir, first), lines, 0o400); err != nil {
		return fmt.Errorf("writing the segment: %w", err)
	}
	if err := d.remove(summaryPath(dir, first)); err != nil {
		return fmt.Errorf("removing the summary: %w", err)
	}
	return nil
}
