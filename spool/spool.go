// Package spool keeps what a station has read: an append-only journal, which is
// the truth, and an index of it, which is also the queue of what the registry
// has not confirmed yet and can be thrown away at any time. FORMAT.md has the
// files.
package spool

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// Config is what a spool needs.
type Config struct {
	Dir      string           // made if it is not there; nobody else may write in it
	Identity journal.Identity // whose journal this is
	Sink     Sink             // where records go; many at once if it is a BatchSink
	Archive  Archive          // where sealed segments and checkpoints go; nil if nowhere
	// Checkpoints, if not nil, shows whether another machine signs as this
	// station. Where it shows that, Stats.Forked is set, and nothing more goes
	// to the archive.
	Checkpoints CheckpointStore
	// Notify, if set, is told what an operator should know: a torn tail was
	// cut, the index was rebuilt, the journal is damaged, the clock was set. It
	// must not call the spool, and may be called by several goroutines at once.
	Notify func(notice string)
	// SegmentSize is how many bytes a segment may grow to before it is sealed
	// and the next one begun; 0 is 16 MiB.
	SegmentSize int64
	// DiskLow and DiskCritical are how full the file system may be, in percent,
	// before Stats says so; 0 is 80 and 95.
	DiskLow, DiskCritical int

	disk disk                                 // for tests
	room func(dir string) (d Disk, err error) // for tests
}

const segmentSize = 16 << 20

// Errors of opening a spool.
var (
	// ErrClosed says that the spool was closed.
	ErrClosed = errors.New("the spool is closed")
)

// Spool is a station's journal, index and queue. All methods may be called at
// once.
type Spool struct {
	cfg    Config
	origin string
	lock   *os.File
	wake   chan struct{} // a record was queued; holds one
	sealed chan struct{} // something is there for the archive; holds one
	// failing are the records that failed since one was confirmed. Only Run's
	// goroutine looks at it.
	failing map[uint64]bool
	// fruitless counts passes in a row whose answers left nothing settled.
	// Likewise.
	fruitless int

	snapshot atomic.Pointer[Stats]   // what Stats returns
	index    atomic.Pointer[bolt.DB] // db, for those who read it without mu
	room     atomic.Pointer[Disk]    // nil: not known
	calling  stopwatch               // of calls to the disk

	sinkMu    sync.Mutex // one call of the sink at a time
	archiveMu sync.Mutex // one call of the archive at a time
	acceptMu  sync.Mutex // one look at the accepted checkpoint at a time; guards accepted
	accepted  []byte     // the accepted checkpoint that was last found to be one of this journal

	groupMu sync.Mutex // guards the next two; taken after mu where both are
	waiting []*request // for the next write
	leading bool       // one of Append's callers writes, or is about to

	mu sync.Mutex // guards all below, and the order of the journal
	// broken is why the files are not trusted any more; the next Append opens
	// them anew.
	broken error
	closed bool
	// unusable is why the index cannot be gone on with although it could be
	// opened; nil if it can.
	unusable error
	file     durable.File     // the segment that is written
	end      journal.Position // where the next line goes
	next     uint64           // the seq of the next entry
	leaves   []tlog.Hash      // of the segment that is written
	tree     journal.Tree
	signed   uint64 // size of the newest checkpoint
	signedAt time.Time
	damage   []journal.Damage
	db       *bolt.DB
	pending  int
	dead     int
	clock    clock
	retries  map[uint64]retry // what failed, by seq
	noise    map[string]noise // by slot
	stats    deliveryStats
	archive  archiveStats
	scrubbed time.Time // when the last scrub ended
}

// Open takes the lock and reads what it must of the journal: all of it if the
// index is of no use, otherwise only what is not sealed, as VerifyDir is what
// reads all of it again. It checks that against the newest checkpoint and
// brings the index up to it. A torn tail is cut, damage in the middle is
// quarantined, an index that does not fit is rebuilt; all are told to Notify.
// Everything else that is wrong is an error, and the journal was not changed:
// ErrLocked, ErrForeign, ErrTampered, ErrIndexAhead, *DamageError,
// board.ErrNewer.
func Open(cfg Config) (*Spool, error) {
	if cfg.Dir == "" || cfg.Identity.Signer == nil || cfg.Identity.Verifier == nil || cfg.Identity.Key == "" || cfg.Sink == nil {
		return nil, errors.New("opening the spool: Dir, Identity and Sink must be set")
	}
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	if cfg.SegmentSize == 0 {
		cfg.SegmentSize = segmentSize
	}
	if cfg.disk == nil {
		cfg.disk = osDisk{}
	}
	if cfg.room == nil {
		cfg.room = roomOf
	}
	if err := os.MkdirAll(journal.Dir(cfg.Dir), 0o700); err != nil {
		return nil, fmt.Errorf("making the spool's folder: %w", err)
	}
	lock, before, err := durable.Lock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if notice, moved := before.Elsewhere(); moved {
		cfg.Notify(notice)
	}
	s := &Spool{cfg: cfg, origin: cfg.Identity.Signer.Name(), lock: lock, wake: make(chan struct{}, 1), sealed: make(chan struct{}, 1), retries: map[uint64]retry{}, noise: map[string]noise{}, failing: map[uint64]bool{}}
	s.cfg.disk = watched{cfg.disk, &s.calling}
	if err := s.open(); err != nil {
		lock.Close()
		return nil, err
	}
	s.clock.now(cfg.Notify)
	s.publish()
	if s.db != nil {
		unmapPages(s.db)
	}
	return s, nil
}

func (s *Spool) closeFiles() error {
	var err error
	if s.file != nil {
		err = s.file.Close()
		s.file = nil
	}
	if s.db != nil {
		err = errors.Join(err, s.db.Close())
		s.db = nil
	}
	return err
}

// Close releases the files and the lock. Run must have returned.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.closeFiles(), s.lock.Close())
}

// usable opens the files anew after a failure.
func (s *Spool) usable() error {
	if s.closed {
		return ErrClosed
	}
	if s.broken == nil {
		return nil
	}
	s.closeFiles()
	if err := s.open(); err != nil {
		return fmt.Errorf("opening the spool again after %q: %w", s.broken, err)
	}
	return nil
}

// Delivered tells whether the registry has confirmed a device. Like Stats it
// waits for nobody who writes.
func (s *Spool) Delivered(device board.DeviceID) (bool, error) {
	var known pointer
	err := s.readIndex(func(tx *bolt.Tx) error {
		data := tableOf(tx, bucketDevices).Get(device[:])
		if data == nil {
			return nil
		}
		return known.decode(data)
	})
	return known.Delivered != 0, err
}
