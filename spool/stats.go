package spool

import (
	"io/fs"
	"slices"
	"sync"
	"time"

	"secretfree/spool/durable"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
)

// Stats is a snapshot.
type Stats struct {
	Entries   uint64 // in the journal
	Pending   int    // records that the registry has not confirmed
	Dead      int    // records that it never will
	Delivered uint64 // since Open
	// Oldest is when the oldest pending record was journaled; zero if none is
	// pending.
	Oldest      time.Time
	LastError   string // why delivery does not go on; empty if it does
	LastTry     time.Time
	LastSuccess time.Time
	Broken      string // why the disk is not trusted; empty if it is
	// WritingSince is when the oldest call to the disk began that has not
	// returned; zero if none is under way. Calls take milliseconds: one that
	// takes seconds is of a disk that hangs, and until it returns nothing else
	// here changes.
	WritingSince time.Time
	// Damaged is how many entries of the journal cannot be read; Damage has the
	// places. They are quarantined until Repair.
	Damaged  uint64
	Signed   uint64    // entries under the newest checkpoint
	SignedAt time.Time // when that was made; zero if there is none
	Unsigned string    // why no checkpoint is signed; empty if they are
	Clock    string    // what is wrong with the machine's clock; empty if nothing is
	// Archived is how many sealed segments the archive has, Unarchived how many
	// it does not have, UnarchivedSince when the oldest of those was sealed,
	// ArchiveError why it takes nothing; empty if it does.
	Archived        int
	Unarchived      int
	UnarchivedSince time.Time
	ArchiveError    string
	// Forked: the archive had another journal under this station's name, as
	// ArchiveError says. It stays, over restarts too, until the index is built
	// anew: nothing that the archive takes later makes one journal of two.
	Forked bool
	// Scrubbed is when all sealed segments and the index were read through
	// last; zero if they were not since Open.
	Scrubbed time.Time
	Disk     Disk // as Run looks at it every 10 s
}

// Stats returns what was the case when a call last changed something. It waits
// for nothing, also while the disk hangs.
func (s *Spool) Stats() Stats {
	out := *s.snapshot.Load()
	out.WritingSince = s.calling.since()
	if room := s.room.Load(); room != nil {
		out.Disk = *room
	}
	return out
}

// unlock releases mu and shows what has changed under it to those who do not
// wait for it.
func (s *Spool) unlock() {
	s.publish()
	s.mu.Unlock()
}

// publish takes a new snapshot. The caller holds mu, or is Open.
func (s *Spool) publish() {
	out := Stats{
		Entries: s.next, Pending: s.pending, Dead: s.dead, Delivered: s.stats.delivered,
		LastError: s.stats.lastError, LastTry: s.stats.lastTry, LastSuccess: s.stats.lastSuccess,
		Signed: s.signed, SignedAt: s.signedAt, Clock: s.clock.fault,
		Archived: s.archive.have, Unarchived: s.archive.segments, UnarchivedSince: s.archive.since, ArchiveError: s.archive.lastError, Forked: s.archive.fork() != "", Scrubbed: s.scrubbed,
	}
	if out.Forked {
		out.ArchiveError = s.archive.fork()
	}
	for _, d := range s.damage {
		out.Damaged += d.Entries()
	}
	if s.tree.Incomplete {
		out.Unsigned = journal.Unprovable
	}
	if s.pending > 0 && s.db != nil {
		s.view(func(tx *bolt.Tx) error {
			var q queued
			if _, value := tableOf(tx, bucketQueue).Cursor().First(); value != nil && q.decode(value) == nil {
				out.Oldest = time.UnixMilli(q.At).UTC()
			}
			return nil
		})
	}
	if s.broken != nil {
		out.Broken = s.broken.Error()
	}
	s.snapshot.Store(&out)
	s.index.Store(s.db)
}

// stopwatch tells since when a call to the disk is under way: of those that are
// under way at once, or one within another, the oldest.
type stopwatch struct {
	mu    sync.Mutex   // nobody waits for the disk with it
	under []*time.Time // the oldest first
}

// start returns what stops it again.
func (w *stopwatch) start() (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.under = append(w.under, &now)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		i := slices.Index(w.under, &now)
		w.under = slices.Delete(w.under, i, i+1)
	}
}

// since is zero if no call is under way.
func (w *stopwatch) since() (t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.under) > 0 {
		t = *w.under[0]
	}
	return t
}

// watched is a disk whose calls are timed.
type watched struct {
	disk
	*stopwatch
}

func (d watched) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	defer d.start()()
	f, err := d.disk.Open(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return watchedFile{f, d.stopwatch}, nil
}

func (d watched) openIndex(path string, options *bolt.Options) (*bolt.DB, error) {
	defer d.start()()
	return d.disk.openIndex(path, options)
}

func (d watched) syncIndex(db *bolt.DB) error {
	defer d.start()()
	return d.disk.syncIndex(db)
}

func (d watched) Rename(from, to string) error {
	defer d.start()()
	return d.disk.Rename(from, to)
}

func (d watched) SyncDir(dir string) error {
	defer d.start()()
	return d.disk.SyncDir(dir)
}

type watchedFile struct {
	durable.File
	*stopwatch
}

func (f watchedFile) ReadAt(b []byte, at int64) (int, error) {
	defer f.start()()
	return f.File.ReadAt(b, at)
}

func (f watchedFile) WriteAt(b []byte, at int64) (int, error) {
	defer f.start()()
	return f.File.WriteAt(b, at)
}

func (f watchedFile) Sync() error {
	defer f.start()()
	return f.File.Sync()
}

func (f watchedFile) Truncate(size int64) error {
	defer f.start()()
	return f.File.Truncate(size)
}

func (f watchedFile) Close() error {
	defer f.start()()
	return f.File.Close()
}
