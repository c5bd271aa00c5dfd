package spool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
)

// Archive keeps copies of the journal elsewhere, so that a lost disk is not a
// lost journal.
type Archive interface {
	// PutSegment returns nil when the segment and its checkpoint are stored,
	// for the first time or again: it is idempotent. If others are stored under
	// their names it returns ErrFork, wrapped. Every other error means: not
	// now. One call at a time; Sink may be called meanwhile.
	PutSegment(ctx context.Context, s ArchivedSegment) error
	// PutCheckpoint stores the newest checkpoint, a signed note, in the same
	// way.
	PutCheckpoint(ctx context.Context, checkpoint []byte) error
}

// ArchivedSegment is a sealed segment.
type ArchivedSegment struct {
	Origin      string // <sku>/<station>
	First, Last uint64 // the seqs of its entries
	Lines       []byte // the file
	Checkpoint  []byte // over all entries up to Last, a signed note
}

const (
	archiveLimit = 5 * time.Minute // one call
	archiveMax   = 10 * time.Minute
)

type archiveStats struct {
	segments  int       // that the archive does not have yet
	since     time.Time // when the oldest of them was sealed
	have      int       // that it has
	offered   uint64
	lastError string
	forked    string // what said ErrFork, once it did
	// notAccepted is why this journal is not the one that was accepted; empty
	// if nothing is known to be wrong. See CheckpointStore.
	notAccepted string
}

// fork is why nothing more of this journal is archived; empty if it is.
func (a *archiveStats) fork() string { return cmp.Or(a.forked, a.notAccepted) }

// keyOffered is the size of the newest checkpoint that the archive has,
// keyForked the text of the first ErrFork. The other keys of the bucket are the
// first seqs of the segments that it has.
var (
	keyOffered = []byte("checkpoint")
	keyForked  = []byte("forked")
)

// runArchive offers what is sealed until the context ends. It has its own pace:
// an archive that is slow or away does not hold back records.
func (s *Spool) runArchive(ctx context.Context) {
	var backoff time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	sealed := (<-chan struct{})(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-sealed:
		}
		more, err := s.archiveNext(ctx)
		if ctx.Err() != nil {
			return
		}
		s.fork(err)
		s.mu.Lock()
		s.archive.lastError = ""
		if err != nil {
			s.archive.lastError = err.Error()
		}
		s.unlock()
		switch {
		case err != nil:
			backoff = min(max(backoffFirst, 2*backoff), archiveMax)
			timer.Reset(backoff/2 + rand.N(backoff/2))
			sealed = nil
		case more:
			backoff = 0
			timer.Reset(0)
		default:
			backoff, sealed = 0, s.sealed
			timer.Reset(archiveMax)
		}
	}
}

// fork keeps the first ErrFork for good, over restarts too, and tells of it.
// That the archive takes other things later makes no difference: there are two
// journals of one name. It ends with another state_dir.
func (s *Spool) fork(err error) {
	if !errors.Is(err, journal.ErrFork) {
		return
	}
	s.mu.Lock()
	known := s.archive.forked != ""
	if !known {
		s.archive.forked = err.Error()
	}
	s.unlock()
	if known {
		return
	}
	s.cfg.Notify(err.Error())
	if err := s.archived(keyForked, []byte(err.Error())); err != nil {
		s.cfg.Notify(err.Error())
	}
}

// errForked keeps a journal that is one of two from the archive: what is there
// must stay the journal of one machine.
var errForked = errors.New("nothing more of this journal is archived")

// archiveNext offers one thing, and tells whether it did. The accepted
// checkpoint goes first: of two machines only one gets as far as the archive.
func (s *Spool) archiveNext(ctx context.Context) (more bool, err error) {
	first, sealed, ok, err := s.unarchived()
	if err != nil {
		return false, err
	}
	if err := s.moveAccepted(ctx); err != nil {
		return false, err
	}
	s.mu.Lock()
	forked := s.archive.forked
	s.mu.Unlock()
	if forked != "" {
		return false, fmt.Errorf("%w: %s", errForked, forked)
	}
	ctx, cancel := context.WithTimeout(ctx, archiveLimit)
	defer cancel()
	if ok {
		segment, err := s.readSegment(first, sealed)
		if err != nil {
			return false, err
		}
		s.archiveMu.Lock()
		err = s.cfg.Archive.PutSegment(ctx, segment)
		s.archiveMu.Unlock()
		if err != nil {
			return false, fmt.Errorf("archiving segment %d: %w", first, err)
		}
		return true, s.archived(encodeSeq(first), encodeSeq(sealed.Next))
	}
	text, have, err := s.newCheckpoint()
	if err != nil || !have {
		return false, err
	}
	c, err := journal.ParseCheckpoint(text, s.cfg.Identity.Verifier)
	if err != nil {
		return false, err
	}
	s.archiveMu.Lock()
	err = s.cfg.Archive.PutCheckpoint(ctx, text)
	s.archiveMu.Unlock()
	if err != nil {
		return false, fmt.Errorf("archiving a checkpoint: %w", err)
	}
	s.mu.Lock()
	s.archive.offered = c.Size
	s.unlock()
	return true, s.archived(keyOffered, encodeSeq(c.Size))
}

// unarchived finds the oldest sealed segment that the archive does not have.
// One that is damaged is not offered before it is repaired.
func (s *Spool) unarchived() (first uint64, sealed sealedSegment, ok bool, err error) {
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return 0, sealed, false, err
	}
	all, err := readSealed(s.db)
	if s.trust(err) != nil {
		return 0, sealed, false, fmt.Errorf("reading the index: %w", err)
	}
	s.archive.segments, s.archive.have, s.archive.since = 0, 0, time.Time{}
	oldest := uint64(math.MaxUint64)
	err = s.view(func(tx *bolt.Tx) error {
		b := tableOf(tx, bucketArchive)
		if data := b.Get(keyOffered); len(data) == 8 {
			s.archive.offered, _ = decodeSeq(data)
		}
		if data := b.Get(keyForked); data != nil {
			s.archive.forked = string(data)
		}
		if data := b.Get(keyNotAccepted); data != nil {
			s.archive.notAccepted = string(data)
		}
		for at, segment := range all {
			if bytes.Equal(b.Get(encodeSeq(at)), encodeSeq(segment.Next)) {
				s.archive.have++
				continue
			}
			s.archive.segments++
			oldest = min(oldest, at)
			if segment.Blind || s.damagedIn(at, segment.Next) {
				continue
			}
			if !ok || at < first {
				first, sealed, ok = at, segment, true
			}
		}
		return nil
	})
	if info, err := os.Stat(journal.LeavesPath(s.cfg.Dir, oldest)); err == nil {
		s.archive.since = info.ModTime()
	}
	return first, sealed, ok, err
}

func (s *Spool) damagedIn(first, next uint64) bool {
	for _, d := range s.damage {
		if d.Segment == first || d.First < next && first < d.Next {
			return true
		}
	}
	return false
}

// readSegment reads a sealed segment and compares it with what it was: no copy
// is made of damage.
func (s *Spool) readSegment(first uint64, sealed sealedSegment) (ArchivedSegment, error) {
	dir := s.cfg.Dir
	a := ArchivedSegment{Origin: s.origin, First: first, Last: sealed.Next - 1}
	l, err := journal.ReadLeaves(dir, first)
	if err == nil {
		a.Lines, err = os.ReadFile(journal.SegmentPath(dir, first))
	}
	if err == nil {
		err = journal.CheckLeaves(a.Lines, l)
	}
	if err != nil {
		s.mu.Lock()
		s.suspect(first, err)
		s.unlock()
		return a, fmt.Errorf("reading %s: %w", journal.SegmentPath(dir, first), err)
	}
	if a.Checkpoint, err = os.ReadFile(journal.SealPath(dir, first)); err != nil {
		return a, fmt.Errorf("reading a checkpoint: %w", err)
	}
	return a, nil
}

// newCheckpoint returns the newest checkpoint if the archive does not have it.
func (s *Spool) newCheckpoint() ([]byte, bool, error) {
	s.mu.Lock()
	offered := s.archive.offered
	s.mu.Unlock()
	return s.checkpointAbove(offered)
}

// checkpointAbove returns the newest checkpoint if it is over more entries.
func (s *Spool) checkpointAbove(size uint64) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signed <= size {
		return nil, false, nil
	}
	text, err := os.ReadFile(journal.CheckpointPath(s.cfg.Dir))
	if err != nil {
		return nil, false, fmt.Errorf("reading the checkpoint: %w", err)
	}
	return text, true, nil
}

// archived remembers what the archive has.
func (s *Spool) archived(key, value []byte) error {
	s.mu.Lock()
	defer s.unlock()
	if s.closed || s.broken != nil {
		return nil // it is offered again
	}
	if err := s.update(func(tx *bolt.Tx) error { return tableOf(tx, bucketArchive).Put(key, value) }); err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	return nil
}

// nudgeArchive wakes runArchive.
func (s *Spool) nudgeArchive() {
	select {
	case s.sealed <- struct{}{}:
	default:
	}
}
