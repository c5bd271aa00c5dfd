// Package spool keeps what a station has read: an append-only journal, which is the truth, and an index of it,
// which is also the queue of what the registry has not confirmed yet and can be thrown away at any time. FORMAT.md has
// the files.
package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"secretfree/station/board"
)

// Config is what a spool needs.
type Config struct {
	Dir      string   // made if it is not there; nobody else may write in it
	Identity Identity // whose journal this is
	Sink     Sink     // where records go
	// Notify, if set, is told what an operator should know: a torn tail was cut, the index was rebuilt. It must not
	// call the spool.
	Notify func(notice string)

	open func(path string, flag int) (file, error) // for tests
}

// Errors of opening a spool.
var (
	// ErrLocked: another process has the spool. The message names it.
	ErrLocked = errors.New("another process uses this spool")
	// ErrForeign: the journal is that of another station.
	ErrForeign = errors.New("the journal is of another station")
)

// Spool is a station's journal, index and queue. All methods may be called at once.
type Spool struct {
	cfg    Config
	origin string
	lock   *os.File
	wake   chan struct{} // a record was queued; holds one

	mu sync.Mutex // guards all below, and the order of the journal
	// broken is why the files are not trusted any more; the next Append opens them anew.
	broken  error
	closed  bool
	file    file     // the segment that is written
	end     position // where the next line goes
	next    uint64
	tree    tree
	signed  uint64 // size of the newest checkpoint
	db      *bolt.DB
	pending int
	dead    int
	stats   deliveryStats
}

// Open takes the lock, reads the whole journal, checks it against its checkpoint, and brings the index up to it. A torn
// tail is cut; an index that does not fit is rebuilt; both are told to Notify. Everything else that is wrong is an error,
// and nothing was changed: ErrLocked, ErrForeign, ErrTampered, ErrIndexAhead, *DamageError, board.ErrNewer.
func Open(cfg Config) (*Spool, error) {
	if cfg.Dir == "" || cfg.Identity.Signer == nil || cfg.Identity.Verifier == nil || cfg.Identity.Key == "" || cfg.Sink == nil {
		return nil, errors.New("opening the spool: Dir, Identity and Sink must be set")
	}
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	if cfg.open == nil {
		cfg.open = openOS
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "journal"), 0o700); err != nil {
		return nil, fmt.Errorf("making the spool's folder: %w", err)
	}
	lock, err := takeLock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{cfg: cfg, origin: cfg.Identity.Signer.Name(), lock: lock, wake: make(chan struct{}, 1)}
	if err := s.open(); err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

func takeLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the spool: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: process %.20s holds %s; stop it first", ErrLocked, strings.TrimSpace(string(holder)), path)
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	// Who it is, for the message above; the lock is the flock, so this need not be durable.
	if err := errors.Join(f.Truncate(0), writeAll(f, fmt.Appendf(nil, "%d\n", os.Getpid()))); err != nil && !errors.Is(err, unix.ENOSPC) {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}

func writeAll(f *os.File, b []byte) error {
	_, err := f.WriteAt(b, 0)
	return err
}

// open is the way in at the start and after a failure alike. The caller holds mu, or is Open.
func (s *Spool) open() (err error) {
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	dir := s.cfg.Dir
	signed, haveSigned, err := readCheckpoint(dir, s.cfg.Identity.Verifier)
	if err != nil {
		return err
	}
	// One pass to know the journal; the index is filled in a second one, if it needs to be.
	db, p, err := openIndex(dir, s.origin)
	if err != nil && !errors.Is(err, errIndexUnusable) {
		return err
	}
	unusable := err
	s.db = db
	s.tree = tree{}
	same := p.Next == 0
	found, err := scan(dir, func(at position, seq uint64, data []byte, sum uint32) error {
		if at.offset == 0 {
			if err := s.checkSegment(data, at.segment); err != nil {
				return err
			}
		}
		s.tree.add(data)
		if seq+1 == p.Next && sum == p.Sum {
			same = true
		}
		if haveSigned && s.tree.n == signed.size && s.tree.root() != signed.root {
			return fmt.Errorf("%w: at entry %d its root is not the one of %s; restore the folder %s from a backup, and find out who changed it", ErrTampered, seq, checkpointPath(dir), filepath.Join(dir, "journal"))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if haveSigned && found.next < signed.size {
		return fmt.Errorf("%w: it has %d entries, the checkpoint says %d; restore the folder %s from a backup", ErrTampered, found.next, signed.size, filepath.Join(dir, "journal"))
	}
	s.signed = signed.size
	if unusable == nil && p.Next > found.next {
		return fmt.Errorf("%w: the index has %d entries, the journal %d; restore the journal from a backup, or move %s away to go on without them", ErrIndexAhead, p.Next, found.next, indexPath(dir))
	}
	if unusable == nil && !same {
		unusable = fmt.Errorf("%w: it is of another journal", errIndexUnusable)
	}
	s.next, s.end = found.next, found.end
	if err := s.openSegment(found); err != nil {
		return err
	}
	if unusable != nil {
		if s.db != nil {
			s.db.Close()
			s.db = nil
		}
		aside := indexPath(dir) + ".unusable"
		if err := os.Rename(indexPath(dir), aside); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("moving the index aside: %w", err)
		}
		s.cfg.Notify(fmt.Sprintf("the index is rebuilt from the journal (%v); the old one is %s", unusable, aside))
		if s.db, p, err = openIndex(dir, s.origin); err != nil {
			return err
		}
	} else if p.Next == 0 && found.next > 0 {
		s.cfg.Notify("there is no index; it is built from the journal")
	}
	if err := s.replay(p.Next); err != nil {
		return err
	}
	return s.count()
}

// checkSegment reads the first entry of a segment.
func (s *Spool) checkSegment(data []byte, first uint64) error {
	e, err := ParseEntry(data)
	if errors.Is(err, board.ErrNewer) {
		return fmt.Errorf("%s: %w", segmentPath(s.cfg.Dir, first), err)
	}
	if err == nil && e.Kind != KindSegment {
		err = fmt.Errorf("%w: a segment does not start with kind %s", ErrEntry, KindSegment)
	}
	if err != nil {
		return &DamageError{Reason: err}
	}
	if e.Segment.Origin != s.origin || e.Segment.Key != s.cfg.Identity.Key {
		return fmt.Errorf("%w: %s is of %s with the key %s, this is %s; set sku and station back, or use another state_dir", ErrForeign, segmentPath(s.cfg.Dir, first), e.Segment.Origin, e.Segment.Key, s.origin)
	}
	return nil
}

// openSegment opens the last segment for writing, without its torn tail, or makes the first one.
func (s *Spool) openSegment(found scanned) error {
	path := segmentPath(s.cfg.Dir, found.end.segment)
	if found.segments == 0 {
		f, err := s.cfg.open(path, os.O_RDWR|os.O_CREATE)
		if err != nil {
			return fmt.Errorf("making the journal: %w", err)
		}
		s.file = f
		if err := errors.Join(syncDir(filepath.Dir(path)), syncDir(s.cfg.Dir)); err != nil {
			return fmt.Errorf("making the journal: %w", err)
		}
		return s.startSegment()
	}
	f, err := s.cfg.open(path, os.O_RDWR)
	if err != nil {
		return fmt.Errorf("opening the journal: %w", err)
	}
	s.file = f
	if found.torn > 0 {
		s.cfg.Notify(fmt.Sprintf("%s: the last %d bytes were a write cut short, and are cut off; no receipt was given for them", path, found.torn))
		if err := f.Truncate(found.end.offset); err != nil {
			return fmt.Errorf("cutting the torn tail of %s: %w", path, err)
		}
	}
	// What a crashed process had written may not be on disk yet; from here on it counts.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	if found.end.offset == 0 { // its first entry was torn
		return s.startSegment()
	}
	return nil
}

func (s *Spool) startSegment() error {
	e := Entry{Seq: s.next, Time: now(), Kind: KindSegment, Segment: &Segment{Format: Format, Origin: s.origin, Key: s.cfg.Identity.Key}}
	_, _, err := s.write(&e)
	return err
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// replay brings the entries from a seq on into the index.
func (s *Spool) replay(from uint64) error {
	if from >= s.next {
		return nil
	}
	const batch = 4096
	tx, err := s.db.Begin(true)
	if err != nil {
		return fmt.Errorf("building the index: %w", err)
	}
	defer func() { tx.Rollback() }() // after a commit it does nothing
	_, err = scan(s.cfg.Dir, func(at position, seq uint64, data []byte, sum uint32) error {
		if seq < from {
			return nil
		}
		e, err := ParseEntry(data)
		if err != nil {
			return &DamageError{Reason: err}
		}
		var sealed *board.Sealed
		if e.Kind == KindRecord {
			opened, err := board.ParseEnvelope(e.Record) // VerifyDir looks at signatures
			if err != nil {
				return &DamageError{Reason: err}
			}
			sealed = &opened
		}
		if err := apply(tx, &e, at, sum, sealed); err != nil {
			return err
		}
		if (seq-from)%batch == batch-1 {
			if err := tx.Commit(); err != nil {
				return err
			}
			if tx, err = s.db.Begin(true); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return fmt.Errorf("building the index: %w", err)
	}
	return nil
}

func (s *Spool) count() error {
	s.pending, s.dead = 0, 0
	return s.db.View(func(tx *bolt.Tx) error {
		s.pending = tx.Bucket(bucketQueue).Stats().KeyN
		s.dead = tx.Bucket(bucketDead).Stats().KeyN
		return nil
	})
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
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.closeFiles(), s.lock.Close())
}

// ErrClosed says that the spool was closed.
var ErrClosed = errors.New("the spool is closed")

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
	s.broken = nil
	return nil
}

// write appends an entry and syncs it. If it fails, the journal is as before, or the spool is broken.
func (s *Spool) write(e *Entry) (at position, sum uint32, err error) {
	data, err := e.Encode()
	if err != nil {
		return at, 0, err
	}
	line := encodeLine(data)
	at = s.end
	if n, err := s.file.WriteAt(line, at.offset); err != nil || n != len(line) {
		if err == nil {
			err = fmt.Errorf("%d of %d bytes were written", n, len(line))
		}
		err = fmt.Errorf("writing the journal: %w", err)
		if undo := errors.Join(s.file.Truncate(at.offset), s.file.Sync()); undo != nil {
			s.broken = err
			return at, 0, errors.Join(err, fmt.Errorf("taking it back: %w", undo))
		}
		return at, 0, err
	}
	if err := s.file.Sync(); err != nil {
		// The kernel may have dropped the pages and still show them: what is on disk, only a new look can tell.
		s.broken = fmt.Errorf("syncing the journal: %w", err)
		return at, 0, s.broken
	}
	if _, sum, err = checkLine(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
		return at, 0, err
	}
	s.end.offset += int64(len(line))
	s.next = e.Seq + 1
	s.tree.add(data)
	return at, sum, nil
}

// Append enrols a board. When it returns a receipt, the record, signed, is in the journal, synced to disk and read back
// from it, and waits in the queue; a power cut at any later moment loses none of it. A board that is enrolled
// already gets the receipt of its first record; only the fact that it was seen again is journaled.
//
// A *board.Conflict says that the record contradicts what is known; that refusal is journaled. board.ErrRecord says
// that it is no valid record. After any other error (no space, a failing disk) there is no receipt, and the record
// may or may not be in the journal: reading the board again settles it, as a repeat or as a first record.
//
// It may be called by many at once. The context is looked at before the write, not during it.
func (s *Spool) Append(ctx context.Context, r board.Record) (board.Receipt, error) {
	if err := r.Check(); err != nil {
		return board.Receipt{}, fmt.Errorf("appending a record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return board.Receipt{}, context.Cause(ctx)
	}
	if err := s.usable(); err != nil {
		return board.Receipt{}, err
	}
	fingerprint := r.Fingerprint()
	var known pointer
	var owner board.DeviceID
	var haveDevice, haveKey bool
	if err := s.db.View(func(tx *bolt.Tx) (err error) {
		known, haveDevice, owner, haveKey, err = lookup(tx, r.Device, fingerprint)
		return err
	}); err != nil {
		return board.Receipt{}, fmt.Errorf("looking the device up: %w", err)
	}
	var conflict *board.Conflict
	switch {
	case haveDevice && known.Key != fingerprint:
		conflict = &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: fingerprint, KnownDevice: r.Device, KnownKey: known.Key, KnownBy: s.origin}
	case haveKey && owner != r.Device:
		conflict = &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: fingerprint, KnownDevice: owner, KnownKey: fingerprint, KnownBy: s.origin}
	case haveDevice:
		e := Entry{Kind: KindRepeat, Repeat: &Repeat{Device: r.Device, Fingerprint: fingerprint, Of: known.Seq}}
		if err := s.append(&e, nil); err != nil {
			return board.Receipt{}, fmt.Errorf("noting a repeat: %w", err)
		}
		return board.Receipt{Seq: known.Seq, Time: time.UnixMilli(known.At).UTC(), Repeat: true}, nil
	}
	if conflict != nil {
		reason := reasonDevice
		if conflict.Kind == board.ErrKeyConflict {
			reason = reasonKey
		}
		e := Entry{Kind: KindRefusal, Refusal: &Refusal{Reason: reason, Device: r.Device, Fingerprint: fingerprint, KnownDevice: conflict.KnownDevice, KnownKey: conflict.KnownKey}}
		if err := s.append(&e, nil); err != nil {
			return board.Receipt{}, fmt.Errorf("%w (and the refusal could not be journaled: %v)", conflict, err)
		}
		return board.Receipt{}, conflict
	}
	sealed, err := board.Seal(r, s.cfg.Identity.Signer)
	if err != nil {
		return board.Receipt{}, fmt.Errorf("appending a record: %w", err)
	}
	e := Entry{Kind: KindRecord, Record: sealed.Envelope}
	if err := s.append(&e, &sealed); err != nil {
		return board.Receipt{}, fmt.Errorf("appending a record: %w", err)
	}
	s.pending++
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return board.Receipt{Seq: e.Seq, Time: e.Time}, nil
}

// append writes an entry to the journal and the index and reads it back.
func (s *Spool) append(e *Entry, sealed *board.Sealed) error {
	e.Seq, e.Time = s.next, now()
	at, sum, err := s.write(e)
	if err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		p := progress{}
		if err := decodeBinary(tx.Bucket(bucketMeta).Get(keyNext), &p); err != nil {
			return err
		}
		if p.Next != e.Seq {
			return fmt.Errorf("the index is at entry %d, the journal at %d", p.Next, e.Seq)
		}
		return apply(tx, e, at, sum, sealed)
	}); err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	got, err := s.readEntry(at)
	if err == nil && sealed != nil {
		_, err = board.OpenEnvelope(got.Record, s.cfg.Identity.Verifier)
		if err == nil && !bytes.Equal(got.Record, sealed.Envelope) {
			err = errors.New("another record is there")
		}
	}
	if err == nil && (got.Seq != e.Seq || got.Kind != e.Kind) {
		err = errors.New("another entry is there")
	}
	if err != nil {
		s.broken = fmt.Errorf("reading the entry back: %w", err)
		return s.broken
	}
	return nil
}

// readEntry reads an entry from the file. The caller holds mu.
func (s *Spool) readEntry(at position) (Entry, error) {
	f := s.file
	if at.segment != s.end.segment {
		other, err := s.cfg.open(segmentPath(s.cfg.Dir, at.segment), os.O_RDONLY)
		if err != nil {
			return Entry{}, err
		}
		defer other.Close()
		f = other
	}
	buf := make([]byte, maxEntryLine)
	n, err := f.ReadAt(buf, at.offset)
	end := bytes.IndexByte(buf[:n], '\n')
	if end < 0 {
		return Entry{}, fmt.Errorf("reading the journal at %d: no whole line (%v)", at.offset, err)
	}
	data, _, err := checkLine(buf[:end])
	if err != nil {
		return Entry{}, err
	}
	return ParseEntry(data)
}

// Delivered tells whether the registry has confirmed a device.
func (s *Spool) Delivered(device board.DeviceID) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return false, ErrClosed
	}
	var known pointer
	err := s.db.View(func(tx *bolt.Tx) error {
		data := tx.Bucket(bucketDevices).Get(device[:])
		if data == nil {
			return nil
		}
		return decodeBinary(data, &known)
	})
	return known.Delivered != 0, err
}

// checkpoint signs the journal as it is, if it has grown.
func (s *Spool) checkpoint() error {
	s.mu.Lock()
	c := checkpoint{size: s.tree.n, root: s.tree.root()}
	done := s.broken != nil || s.closed || c.size == s.signed
	s.mu.Unlock()
	if done {
		return nil
	}
	text, err := c.encode(s.cfg.Identity.Signer)
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	if err := writeDurably(checkpointPath(s.cfg.Dir), text, 0o600); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	s.mu.Lock()
	s.signed = c.size
	s.mu.Unlock()
	return nil
}
