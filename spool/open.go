package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"secretfree/spool/durable"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// opening is what open finds out in its one pass over the journal.
type opening struct {
	*Spool
	signed   checkpoint
	haveSign bool
	signedAt time.Time
	shelf    *shelf
	unusable error                    // why the index is of no use; nil if it is
	progress progress                 // of the index; zero if it is of no use
	same     bool                     // the index is of this journal
	sealed   map[uint64]sealedSegment // as the index has them
	known    []Damage                 // which the index knows of; in what is read anew it may have been repaired
	scan     *scan
	from     uint64    // the first entry that was read
	hashesOf uint64    // the entry whose hash is the first of leaves
	found    []Damage  // in what was read
	entries  []indexed // which the index does not have yet
	tags     tagTable
	places   []place // of what is in the queue and moved
	seals    []seal  // segments that are not written any more, and that the index does not know as sealed
	newest   []byte  // the front of the entry that was read last
}

type place struct {
	seq uint64
	at  queued
}

// seal is a segment to be sealed.
type seal struct {
	first  uint64
	sealed sealedSegment
	hashes []tlog.Hash
}

// open is the way in at the start and after a failure alike. The caller holds mu, or is Open.
func (s *Spool) open() error {
	err := s.openOver(s.unusable)
	if errors.Is(err, errIndexUnusable) {
		// It looked like one, but is of another journal, or damaged where nobody had looked: what was not read for its sake must be.
		err = s.openOver(err)
	}
	if err == nil {
		s.unusable, s.broken = nil, nil
	}
	return err
}

// openOver opens the files, and takes the index for unusable if a reason is given.
func (s *Spool) openOver(unusable error) (err error) {
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	dir := s.cfg.Dir
	o := &opening{Spool: s, unusable: unusable, tags: tagTable{}}
	if o.signed, o.haveSign, err = readCheckpoint(dir, s.cfg.Identity.Verifier); err != nil {
		return err
	}
	if info, err := os.Stat(checkpointPath(dir)); err == nil {
		o.signedAt = info.ModTime()
	}
	segments, err := listSegments(dir)
	if err != nil {
		return err
	}
	if o.shelf, err = openShelf(dir); err != nil {
		return err
	}
	s.tree, s.leaves, s.damage, s.signed, s.signedAt = tree{}, nil, nil, o.signed.size, o.signedAt
	if err := o.useIndex(); err != nil {
		return err
	}
	if err := o.read(segments); err != nil {
		return err
	}
	if err := o.check(segments); err != nil {
		return err
	}
	if s.clock.last.IsZero() {
		s.clock.last, _ = timeOf(o.newest) // an entry without a time has been refused
	}
	// From here on files are changed.
	if err := o.openSegment(len(segments)); err != nil {
		return err
	}
	if err := o.bringUp(); err != nil {
		return err
	}
	maps.DeleteFunc(s.retries, func(seq uint64, _ retry) bool { return covers(s.damage, seq) })
	for _, d := range s.damage {
		s.cfg.Notify("the journal is damaged, and the damage is quarantined: " + d.String() + "; repair it when the station is stopped")
	}
	if s.tree.blind {
		s.cfg.Notify(unprovable)
	}
	for _, seal := range o.seals {
		if err := s.seal(seal); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(o.found, func(d Damage) bool { return d.Segment == s.end.segment }) {
		// Nothing more is written to a damaged file.
		if err := s.rotate(); err != nil {
			return err
		}
	}
	return s.count()
}

const unprovable = "no checkpoint is signed until the journal is repaired: a damaged entry's hash is not known, so neither is the root"

// useIndex opens the index and takes from it what need not be read.
func (o *opening) useIndex() error {
	if o.unusable != nil {
		return nil
	}
	db, p, err := openIndex(o.cfg.disk, o.cfg.Dir, o.origin)
	if errors.Is(err, errIndexUnusable) || err == errNoIndex {
		o.unusable = err
		return nil
	}
	if err != nil {
		return err
	}
	o.db, o.progress = db, p
	if o.known, err = readDamage(db); err == nil {
		o.sealed, err = readSealed(db)
	}
	if err != nil {
		return fmt.Errorf("%w: %v", errIndexUnusable, err)
	}
	return nil
}

// read reads the journal from the first segment on that the index does not know to be sealed and as long as it was.
func (o *opening) read(segments []segmentFile) error {
	skip := 0
	var before tree
	for ; skip+1 < len(segments); skip++ {
		known, ok := o.sealed[segments[skip].first]
		if !ok || segments[skip].first != before.n || known.Size != segments[skip].size || known.Next != segments[skip+1].first {
			break
		}
		before = tree{known.Next, known.Edge, known.Blind}
	}
	if o.haveSign && before.n > o.signed.size {
		skip, before = 0, tree{} // the root that was signed must be met on the way
	}
	o.tree, o.from, o.hashesOf = before.clone(), before.n, before.n
	if err := o.meet(); err != nil {
		return err
	}
	for len(o.known) > 0 && o.known[0].Segment < o.from {
		o.damage = append(o.damage, o.known[0])
		o.known = o.known[1:]
	}
	if o.unusable != nil {
		bytes := int64(0)
		for _, segment := range segments {
			bytes += segment.size
		}
		o.entries = make([]indexed, 0, bytes/1000) // about as many; growing would copy them all
	}
	o.same = o.progress.Next == 0
	sure := uint64(math.MaxUint64)
	if o.unusable == nil {
		sure = o.progress.Next
	}
	o.scan = &scan{dir: o.cfg.Dir, disk: o.cfg.disk, sure: sure, next: o.from, visit: o.visit, damaged: o.damaged, done: o.done, sealed: sealedEnd(o.cfg.Dir)}
	if err := o.scan.run(segments[skip:]); err != nil {
		return err
	}
	o.damage = append(o.damage, o.found...)
	o.next, o.end = o.scan.next, o.scan.end
	o.forget(o.end.segment)
	return nil
}

func (o *opening) visit(at position, seq uint64, data []byte) error {
	if seq == at.segment {
		if err := o.checkSegment(data, at.segment); err != nil {
			return err
		}
	}
	h := tlog.RecordHash(data)
	if seq+1 == o.progress.Next && h == o.progress.Leaf {
		o.same = true
	}
	if seq >= o.progress.Next || covers(o.known, seq) {
		e, err := indexedOf(at, seq, data, o.tags)
		if err != nil {
			return broke(err)
		}
		if e.result != "" || e.rejection != nil {
			o.entries = append(o.entries, e)
		}
	}
	if o.db != nil && seq < o.progress.Next {
		if err := o.moved(at, seq); err != nil {
			return err
		}
	}
	o.newest = append(o.newest[:0], data[:min(len(data), 64)]...)
	return o.grow(h)
}

// moved finds what waits in the queue and does not stand where it did: there is damage before it in its file, or was.
func (o *opening) moved(at position, seq uint64) error {
	return o.db.View(func(tx *bolt.Tx) error {
		data := tx.Bucket(bucketQueue).Get(encodeSeq(seq))
		if data == nil {
			return nil
		}
		var q queued
		if err := q.decode(data); err != nil {
			return err
		}
		if q.Segment != at.segment || q.Offset != at.offset {
			q.Segment, q.Offset = at.segment, at.offset
			o.places = append(o.places, place{seq, q})
		}
		return nil
	})
}

func (o *opening) damaged(d Damage) error {
	o.found = append(o.found, d)
	for seq := d.First; seq < d.Next; seq++ {
		h := o.shelf.hash(seq)
		if h == (tlog.Hash{}) && seq+1 == o.progress.Next {
			h = o.progress.Leaf
		}
		if h == (tlog.Hash{}) && o.db != nil {
			o.db.View(func(tx *bolt.Tx) error {
				if data := tx.Bucket(bucketLeaves).Get(encodeSeq(seq)); len(data) == len(h) {
					copy(h[:], data)
				}
				return nil
			})
		}
		if seq+1 == o.progress.Next {
			o.same = true
		}
		if err := o.grow(h); err != nil {
			return err
		}
	}
	return nil
}

// grow adds a leaf to the tree, and compares its root with the one that was signed.
func (o *opening) grow(h tlog.Hash) error {
	o.tree.add(h)
	o.leaves = append(o.leaves, h)
	return o.meet()
}

func (o *opening) meet() error {
	if !o.haveSign || o.tree.n != o.signed.size || o.tree.blind || o.tree.root() == o.signed.root {
		return nil
	}
	return fmt.Errorf("%w: its first %d entries do not have the root of %s; restore the folder %s from a backup, and find out who changed it", ErrTampered, o.tree.n, checkpointPath(o.cfg.Dir), journalDir(o.cfg.Dir))
}

// done takes note of a segment that another follows.
func (o *opening) done(f segmentFile, next uint64) error {
	o.forget(f.first)
	if known, ok := o.sealed[f.first]; ok && o.tree.blind && known.Next == next && !known.Blind {
		o.tree = tree{n: next, edge: slices.Clone(known.Edge)} // the index knows what the leaves came to
	}
	o.seals = append(o.seals, seal{f.first, sealedSegment{next, f.size, slices.Clone(o.tree.edge), o.tree.blind}, o.leaves})
	o.leaves, o.hashesOf = nil, next
	return nil
}

// forget drops the hashes of what stood in a file before this one, which is missing.
func (o *opening) forget(first uint64) {
	o.leaves, o.hashesOf = o.leaves[first-o.hashesOf:], first
}

func covers(damage []Damage, seq uint64) bool {
	return slices.ContainsFunc(damage, func(d Damage) bool { return d.First <= seq && seq < d.Next })
}

// check decides whether the journal can be gone on with.
func (o *opening) check(segments []segmentFile) error {
	dir, next := o.cfg.Dir, o.next
	if o.haveSign && next < o.signed.size {
		return fmt.Errorf("%w: it has %d entries, the checkpoint says %d; restore the folder %s from a backup", ErrTampered, next, o.signed.size, journalDir(dir))
	}
	if o.unusable == nil && o.progress.Next > next {
		return fmt.Errorf("%w: the index has %d entries, the journal %d; restore the journal from a backup, or move %s away to go on without them", ErrIndexAhead, o.progress.Next, next, indexPath(dir))
	}
	if len(segments) > 0 {
		first := segments[len(segments)-1].first
		if l, err := readLeaves(dir, first); err == nil {
			return &DamageError{Path: segmentPath(dir, l.next()), Reason: fmt.Errorf("%w: the segment before it is sealed, so there was one after it, and the file is missing", ErrEntry)}
		}
	}
	if !o.same {
		return fmt.Errorf("%w: it is of another journal", errIndexUnusable)
	}
	return nil
}

// checkSegment reads the first entry of a segment.
func (s *Spool) checkSegment(data []byte, first uint64) error {
	e, err := ParseEntry(data)
	if err != nil {
		err = broke(err)
		var damage *DamageError
		if !errors.As(err, &damage) {
			return fmt.Errorf("%s: %w", segmentPath(s.cfg.Dir, first), err)
		}
		return err
	}
	if e.Kind == KindLost {
		return nil
	}
	if e.Kind != KindSegment {
		return &DamageError{Reason: fmt.Errorf("%w: a segment does not start with kind %s", ErrEntry, KindSegment)}
	}
	if e.Segment.Origin != s.origin || e.Segment.Key != s.cfg.Identity.Key {
		return fmt.Errorf("%w: %s is of %s with the key %s, this is %s; set sku and station back, or use another state_dir", ErrForeign, segmentPath(s.cfg.Dir, first), e.Segment.Origin, e.Segment.Key, s.origin)
	}
	return nil
}

// openSegment opens the last segment for writing, without its torn tail, or makes the first one.
func (o *opening) openSegment(segments int) error {
	path := segmentPath(o.cfg.Dir, o.end.segment)
	if segments == 0 {
		return o.begin()
	}
	f, err := o.cfg.disk.Open(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening the journal: %w", err)
	}
	o.file = f
	if o.scan.torn > 0 {
		notice := fmt.Sprintf("%s: the last %d bytes were a write cut short, and are cut off; no receipt was given for them", path, o.scan.torn)
		if o.scan.tornGood {
			aside, err := o.keepTail(f)
			if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
				return fmt.Errorf("keeping the torn tail of %s: %w; make %d bytes of room on the disk of %s and start again: nothing was cut off", path, err, o.scan.torn, o.cfg.Dir)
			}
			if err != nil {
				return fmt.Errorf("keeping the torn tail of %s: %w", path, err)
			}
			notice += "; as there are whole lines among them, they are kept as " + aside
		}
		o.cfg.Notify(notice)
		if err := f.Truncate(o.end.offset); err != nil {
			return fmt.Errorf("cutting the torn tail of %s: %w", path, err)
		}
	}
	// What a crashed process had written may not be on disk yet; from here on it counts.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	if o.end.offset == 0 { // its first entry was torn
		return o.startSegment()
	}
	return nil
}

func (o *opening) keepTail(f durable.File) (string, error) {
	tail := make([]byte, o.scan.torn)
	if _, err := f.ReadAt(tail, o.end.offset); err != nil {
		return "", err
	}
	return keepAside(o.cfg.disk, o.cfg.Dir, fmt.Sprintf("%020d-%d-%%d.torn", o.end.segment, o.end.offset), tail)
}

// keepAside writes evidence of damage, durably, under a name with the first number under which there is no other.
func keepAside(d disk, dir, name string, data []byte) (path string, err error) {
	for n := 1; ; n++ {
		path = asidePath(dir, fmt.Sprintf(name, n))
		have, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && bytes.Equal(have, data) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, errors.Join(durable.WriteFile(d, path, data, 0o400), d.SyncDir(journalDir(dir)))
}

// begin makes the segment that begins at the next entry.
func (s *Spool) begin() error {
	path := segmentPath(s.cfg.Dir, s.next)
	f, err := s.cfg.disk.Open(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("making a segment of the journal: %w", err)
	}
	s.file, s.end, s.leaves = f, position{segment: s.next}, nil
	if err := errors.Join(
		s.cfg.disk.SyncDir(journalDir(s.cfg.Dir)),
		s.cfg.disk.SyncDir(s.cfg.Dir), // the journal's folder may be new too
	); err != nil {
		return fmt.Errorf("making a segment of the journal: %w", err)
	}
	return s.startSegment()
}

func (s *Spool) startSegment() error {
	e := Entry{Seq: s.next, Time: milliseconds(time.Now()), Kind: KindSegment, Segment: &Segment{Format: Format, Origin: s.origin, Key: s.cfg.Identity.Key}}
	data, err := e.Encode()
	if err != nil {
		return err
	}
	_, _, err = s.write([][]byte{data})
	return err
}

// bringUp makes the index say what the journal says.
func (o *opening) bringUp() error {
	dir := o.cfg.Dir
	rebuild := o.unusable != nil
	db := o.db
	fresh := indexPath(dir) + ".new"
	if rebuild {
		switch {
		case o.unusable != errNoIndex:
			o.cfg.Notify(fmt.Sprintf("the index is rebuilt from the journal (%v); the old one is kept as %s", o.unusable, indexPath(dir)+".unusable"))
		case o.scan.next > 0:
			o.cfg.Notify("there is no index; it is built from the journal")
		}
		var err error
		if db, err = makeIndex(o.cfg.disk, fresh, o.origin, &bolt.Options{NoSync: true, NoGrowSync: true, FreelistType: bolt.FreelistMapType}); err != nil {
			return err
		}
	}
	err := guarded(func() error { return o.fill(db, rebuild) })
	if errors.Is(err, errIndexUnusable) {
		o.db = nil // as in update
		return err
	}
	if rebuild {
		if err == nil {
			err = o.cfg.disk.syncIndex(db)
		}
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		return fmt.Errorf("building the index: %w", err)
	}
	if !rebuild {
		return nil
	}
	if o.unusable != errNoIndex {
		if err := o.cfg.disk.Rename(indexPath(dir), indexPath(dir)+".unusable"); err != nil {
			return fmt.Errorf("moving the index aside: %w", err)
		}
	}
	if err := o.cfg.disk.Rename(fresh, indexPath(dir)); err != nil {
		return fmt.Errorf("putting the new index in place: %w", err)
	}
	if err := o.cfg.disk.SyncDir(dir); err != nil {
		return fmt.Errorf("putting the new index in place: %w", err)
	}
	o.db, _, err = openIndex(o.cfg.disk, dir, o.origin)
	return err
}

func (o *opening) fill(db *bolt.DB, empty bool) error {
	return load(db, o.entries, empty, func(tx *bolt.Tx) error {
		queue := tx.Bucket(bucketQueue)
		for _, d := range o.found {
			for seq := d.First; seq < d.Next; seq++ {
				if err := queue.Delete(encodeSeq(seq)); err != nil {
					return err
				}
			}
		}
		for _, moved := range o.places {
			if err := queue.Put(encodeSeq(moved.seq), moved.at.encode()); err != nil {
				return err
			}
		}
		return errors.Join(
			putDamage(tx, o.from, o.found),
			putLeaves(tx, o.end.segment, o.leaves, true),
			putProgress(tx, progress{o.next, o.leaves[len(o.leaves)-1]}),
		)
	})
}

// seal closes a segment for good: its leaf hashes and its checkpoint are written beside it, then the index says that it need
// not be read again. All of it can be done twice.
func (s *Spool) seal(seal seal) error {
	dir := s.cfg.Dir
	l := leaves{Origin: s.origin, First: seal.first, Hashes: seal.hashes}
	if have, err := readLeaves(dir, seal.first); err != nil || !have.knowsMore(l) {
		if err := s.settleFile(leavesPath(dir, seal.first), l.encode()); err != nil {
			return err
		}
	}
	if err := os.Chmod(segmentPath(dir, seal.first), 0o400); err != nil {
		return fmt.Errorf("sealing a segment: %w", err)
	}
	if t := (tree{seal.sealed.Next, seal.sealed.Edge, seal.sealed.Blind}); !t.blind {
		text, err := s.sign(checkpoint{t.n, t.root()})
		if err != nil {
			return err
		}
		if err := s.settleFile(sealPath(dir, seal.first), text); err != nil {
			return err
		}
	}
	if err := s.update(func(tx *bolt.Tx) error { return putSealed(tx, seal.first, seal.sealed) }); err != nil {
		return fmt.Errorf("sealing a segment: %w", err)
	}
	return nil
}

// settleFile writes a read-only file, if it is not there already.
func (s *Spool) settleFile(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := durable.WriteFile(s.cfg.disk, path, data, 0o400); err != nil {
		return fmt.Errorf("sealing a segment: %w", err)
	}
	return nil
}

// rotate seals the segment that is written and begins the next one, in this order: the next one is durable first, so that a
// sealed segment without one after it is known to have lost it. If it fails the spool is broken.
func (s *Spool) rotate() (err error) {
	defer func() {
		if err != nil {
			s.broken = err
		}
	}()
	old := seal{s.end.segment, sealedSegment{s.next, s.end.offset, slices.Clone(s.tree.edge), s.tree.blind}, s.leaves}
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("closing a segment: %w", err)
	}
	s.file = nil
	if err := s.begin(); err != nil {
		return err
	}
	if err := s.update(func(tx *bolt.Tx) error {
		return errors.Join(
			putLeaves(tx, s.end.segment, s.leaves, true),
			putProgress(tx, progress{s.next, s.leaves[len(s.leaves)-1]}),
		)
	}); err != nil {
		return fmt.Errorf("writing the index: %w", err)
	}
	if err := s.seal(old); err != nil {
		return err
	}
	return s.checkpoint()
}

func (s *Spool) count() error {
	return s.view(func(tx *bolt.Tx) error {
		s.pending = tx.Bucket(bucketQueue).Stats().KeyN
		s.dead = tx.Bucket(bucketDead).Stats().KeyN
		return nil
	})
}
