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
	"secretfree/station/board"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// recovery is what open finds out in its one pass over the journal.
type recovery struct {
	*Spool
	signed   journal.Checkpoint
	haveSign bool
	signedAt time.Time
	// noCheckpoint is why the newest checkpoint is of no use; nil if it is.
	noCheckpoint error
	skipped      []journal.SegmentFile // sealed, and not read
	oldLeaves    *journal.LeafHashReader
	unusable     error                    // why the index is of no use; nil if it is
	progress     progress                 // of the index; zero if it is of no use
	same         bool                     // the index is of this journal
	sealed       map[uint64]sealedSegment // as the index has them
	known        []journal.Damage         // which the index knows of; in what is read anew it may have been repaired
	scan         *journal.Scan
	from         uint64            // the first entry that was read
	hashesOf     uint64            // the entry whose hash is the first of leaves
	found        []journal.Damage  // in what was read
	entries      []journal.Summary // which the index does not have yet
	tags         journal.TagTable
	places       []movedItem // of what is in the queue and moved
	seals        []seal      // segments that are not written any more, and that the index does not know as sealed
	newest       []byte      // the front of the entry that was read last
}

type movedItem struct {
	seq uint64
	at  queued
}

// seal is a segment to be sealed.
type seal struct {
	first  uint64
	sealed sealedSegment
	hashes []tlog.Hash
}

// open is the way in at the start and after a failure alike. The caller holds
// mu, or is Open.
func (s *Spool) open() error {
	err := s.openOver(s.unusable)
	if errors.Is(err, errIndexUnusable) {
		// It looked like one, but is of another journal, or damaged where
		// nobody had looked: what was not read for its sake must be.
		err = s.openOver(err)
	}
	if err == nil {
		s.unusable, s.broken = nil, nil
	}
	return err
}

// openOver opens the files, and takes the index for unusable if a reason is
// given.
func (s *Spool) openOver(unusable error) (err error) {
	defer func() {
		if err != nil {
			s.closeFiles()
		}
	}()
	dir := s.cfg.Dir
	o := &recovery{Spool: s, unusable: unusable, tags: journal.TagTable{}}
	if o.signed, o.haveSign, err = journal.ReadCheckpoint(dir, s.cfg.Identity.Verifier); err != nil && !errors.Is(err, journal.ErrCheckpoint) {
		return err
	}
	o.noCheckpoint = err
	if info, err := os.Stat(journal.CheckpointPath(dir)); err == nil {
		o.signedAt = info.ModTime()
	}
	segments, err := journal.ListSegments(dir)
	if err != nil {
		return err
	}
	if err := o.signedBefore(segments); err != nil {
		return err
	}
	if o.oldLeaves, err = journal.OpenLeafHashes(dir); err != nil {
		return err
	}
	s.tree, s.leaves, s.damage, s.signed, s.signedAt = journal.Tree{}, nil, nil, o.signed.Size, o.signedAt
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
		s.clock.last, _ = journal.TimeOf(o.newest) // an entry without a time has been refused
	}
	// From here on files are changed.
	if err := o.openSegment(len(segments)); err != nil {
		return err
	}
	if err := o.catchUpIndex(); err != nil {
		return err
	}
	maps.DeleteFunc(s.retries, func(seq uint64, _ retry) bool { return journal.Covers(s.damage, seq) })
	for _, d := range s.damage {
		s.cfg.Notify("the journal is damaged, and the damage is quarantined: " + d.String() + "; repair it when the station is stopped")
	}
	if s.tree.Incomplete {
		s.cfg.Notify(journal.Unprovable)
	}
	for _, seal := range o.seals {
		if err := s.seal(seal); err != nil {
			return err
		}
	}
	if err := o.remakeCheckpoints(); err != nil {
		return err
	}
	if slices.ContainsFunc(o.found, func(d journal.Damage) bool { return d.Segment == s.end.Segment }) {
		// Nothing more is written to a damaged file.
		if err := s.rotate(); err != nil {
			return err
		}
	}
	return s.count()
}

// useIndex opens the index and takes from it what need not be read.
func (o *recovery) useIndex() error {
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

// read reads the journal from the first segment on that the index does not know
// to be sealed and as long as it was.
func (o *recovery) read(segments []journal.SegmentFile) error {
	skip := 0
	var before journal.Tree
	for ; skip+1 < len(segments); skip++ {
		known, ok := o.sealed[segments[skip].First]
		if !ok || segments[skip].First != before.N || known.Size != segments[skip].Size || known.Next != segments[skip+1].First {
			break
		}
		before = journal.Tree{N: known.Next, Frontier: known.Edge, Incomplete: known.Blind}
	}
	if o.haveSign && before.N > o.signed.Size {
		skip, before = 0, journal.Tree{} // the root that was signed must be met on the way
	}
	o.skipped = segments[:skip]
	o.tree, o.from, o.hashesOf = before.Clone(), before.N, before.N
	if err := o.verifyRoot(); err != nil {
		return err
	}
	for len(o.known) > 0 && o.known[0].Segment < o.from {
		o.damage = append(o.damage, o.known[0])
		o.known = o.known[1:]
	}
	if o.unusable != nil {
		bytes := int64(0)
		for _, segment := range segments {
			bytes += segment.Size
		}
		o.entries = make([]journal.Summary, 0, bytes/1000) // about as many; growing would copy them all
	}
	o.same = o.progress.Next == 0
	sure := uint64(math.MaxUint64)
	if o.unusable == nil {
		sure = o.progress.Next
	}
	sure = max(sure, o.signed.Size)
	o.scan = &journal.Scan{Dir: o.cfg.Dir, Disk: o.cfg.disk, Sure: sure, Given: o.given, Next: o.from, Visit: o.visit, Damaged: o.damaged, Done: o.done, Sealed: journal.SealedEnd(o.cfg.Dir)}
	if err := o.scan.Run(segments[skip:]); err != nil {
		return err
	}
	o.damage = append(o.damage, o.found...)
	o.next, o.end = o.scan.Next, o.scan.End
	o.forget(o.end.Segment)
	return nil
}

func (o *recovery) visit(at journal.Position, seq uint64, data []byte) error {
	if seq == at.Segment {
		if err := o.checkSegment(data, at.Segment); err != nil {
			return err
		}
	}
	h := tlog.RecordHash(data)
	if seq+1 == o.progress.Next && h == o.progress.Leaf {
		o.same = true
	}
	if seq >= o.progress.Next || journal.Covers(o.known, seq) {
		e, err := journal.Summarize(at, seq, data, o.tags)
		if err != nil {
			return journal.AsDamage(err)
		}
		if e.Result != "" || e.Rejection != nil {
			o.entries = append(o.entries, e)
		}
	}
	if o.db != nil && seq < o.progress.Next {
		if err := o.moved(at, seq); err != nil {
			return err
		}
	}
	o.newest = append(o.newest[:0], data[:min(len(data), 64)]...)
	return o.appendLeaf(h)
}

// moved finds what waits in the queue and does not stand where it did: there is
// damage before it in its file, or was.
func (o *recovery) moved(at journal.Position, seq uint64) error {
	return viewIndex(o.db, func(tx *bolt.Tx) error {
		data := tableOf(tx, bucketQueue).Get(encodeSeq(seq))
		if data == nil {
			return nil
		}
		var q queued
		if err := q.decode(data); err != nil {
			return err
		}
		if q.Segment != at.Segment || q.Offset != at.Offset {
			q.Segment, q.Offset = at.Segment, at.Offset
			o.places = append(o.places, movedItem{seq, q})
		}
		return nil
	})
}

func (o *recovery) damaged(d journal.Damage) error {
	o.found = append(o.found, d)
	for seq := d.First; seq < d.Next; seq++ {
		h := o.oldLeaves.Hash(seq)
		if h == (tlog.Hash{}) && seq+1 == o.progress.Next {
			h = o.progress.Leaf
		}
		if h == (tlog.Hash{}) && o.db != nil {
			viewIndex(o.db, func(tx *bolt.Tx) error {
				if data := tableOf(tx, bucketLeaves).Get(encodeSeq(seq)); len(data) == len(h) {
					copy(h[:], data)
				}
				return nil
			})
		}
		if seq+1 == o.progress.Next {
			o.same = true
		}
		if err := o.appendLeaf(h); err != nil {
			return err
		}
	}
	return nil
}

// given is how many entries were signed, or are in the index of this journal.
func (o *recovery) given(next uint64) uint64 {
	before := tlog.Hash{}
	if n := len(o.leaves); n > 0 {
		before = o.leaves[n-1]
	}
	return max(o.signed.Size, indexed(o.db, o.progress, next, before))
}

// indexed is how many entries an index has of a journal whose readable entries
// end before next with an entry of this leaf hash, and 0 if the index may be of
// another journal. db may be nil.
func indexed(db *bolt.DB, p progress, next uint64, before tlog.Hash) (n uint64) {
	if db == nil || p.Next <= next {
		return 0
	}
	err := guarded(func() error {
		return db.View(func(tx *bolt.Tx) error {
			leaves := tableOf(tx, bucketLeaves)
			first, _ := leaves.Cursor().First()
			// No entry of the newest segment can be read, or the last that can
			// be read is the one in the index.
			if bytes.Equal(first, encodeSeq(next)) || next > 0 && bytes.Equal(leaves.Get(encodeSeq(next-1)), before[:]) {
				n = p.Next
			}
			return nil
		})
	})
	if err != nil {
		return 0
	}
	return n
}

// noReceipt tells whether the index proves that there was no receipt for what
// follows the last entry: a receipt is given after the index has the entry, and
// the index is at most one write behind.
func (o *recovery) noReceipt() bool {
	return o.unusable == nil && o.same && o.progress.Next <= o.next && o.next-o.progress.Next < journal.MaxGroup
}

// appendLeaf adds a leaf to the tree, and compares its root with the one that
// was signed.
func (o *recovery) appendLeaf(h tlog.Hash) error {
	o.tree.Add(h)
	o.leaves = append(o.leaves, h)
	return o.verifyRoot()
}

func (o *recovery) verifyRoot() error {
	if !o.haveSign || o.tree.N != o.signed.Size || o.tree.Incomplete || o.tree.Root() == o.signed.Root {
		return nil
	}
	return fmt.Errorf("%w: its first %d entries do not have the root of %s; restore the folder %s from a backup, and find out who changed it", journal.ErrTampered, o.tree.N, journal.CheckpointPath(o.cfg.Dir), journal.Dir(o.cfg.Dir))
}

// done takes note of a segment that another follows.
func (o *recovery) done(f journal.SegmentFile, next uint64) error {
	o.forget(f.First)
	if known, ok := o.sealed[f.First]; ok && o.tree.Incomplete && known.Next == next && !known.Blind {
		o.tree = journal.Tree{N: next, Frontier: slices.Clone(known.Edge)} // the index knows what the leaves came to
	}
	o.seals = append(o.seals, seal{f.First, sealedSegment{next, f.Size, slices.Clone(o.tree.Frontier), o.tree.Incomplete}, o.leaves})
	o.leaves, o.hashesOf = nil, next
	return nil
}

// forget drops the hashes of what stood in a file before this one, which is
// missing.
func (o *recovery) forget(first uint64) {
	o.leaves, o.hashesOf = o.leaves[first-o.hashesOf:], first
}

// check decides whether the journal can be gone on with.
func (o *recovery) check(segments []journal.SegmentFile) error {
	dir, next := o.cfg.Dir, o.next
	if o.haveSign && next < o.signed.Size {
		return fmt.Errorf("%w: it has %d entries, the checkpoint says %d; restore the folder %s from a backup", journal.ErrTampered, next, o.signed.Size, journal.Dir(dir))
	}
	if o.unusable == nil && o.progress.Next > next {
		return fmt.Errorf("%w: the index has %d entries, the journal %d; restore the journal from a backup; if there is none, move %s away to go on without them: their boards may have passed, and must be enrolled again", ErrIndexAhead, o.progress.Next, next, indexPath(dir))
	}
	if len(segments) > 0 {
		first := segments[len(segments)-1].First
		if l, err := journal.ReadLeaves(dir, first); err == nil {
			return &journal.DamageError{Path: journal.SegmentPath(dir, l.Next()), Reason: fmt.Errorf("%w: the segment before it is sealed, so there was one after it, and the file is missing", journal.ErrEntry)}
		}
	}
	if !o.same {
		return fmt.Errorf("%w: it is of another journal", errIndexUnusable)
	}
	return nil
}

// checkSegment reads the first entry of a segment.
func (s *Spool) checkSegment(data []byte, first uint64) error {
	e, err := journal.ParseEntry(data)
	if err != nil {
		err = journal.AsDamage(err)
		var damage *journal.DamageError
		if !errors.As(err, &damage) {
			return fmt.Errorf("%s: %w", journal.SegmentPath(s.cfg.Dir, first), err)
		}
		return err
	}
	if e.Kind == journal.KindLost {
		return nil
	}
	if e.Kind != journal.KindSegment {
		return &journal.DamageError{Reason: fmt.Errorf("%w: a segment does not start with kind %s", journal.ErrEntry, journal.KindSegment)}
	}
	if e.Segment.Origin != s.origin || e.Segment.Key != s.cfg.Identity.Key {
		return fmt.Errorf("%w: %s is of %s with the key %s, this is %s; set sku and station back, or use another state_dir", journal.ErrForeign, journal.SegmentPath(s.cfg.Dir, first), e.Segment.Origin, e.Segment.Key, s.origin)
	}
	return nil
}

// openSegment opens the last segment for writing, without its torn tail, or
// makes the first one.
func (o *recovery) openSegment(segments int) error {
	path := journal.SegmentPath(o.cfg.Dir, o.end.Segment)
	if segments == 0 {
		return o.begin()
	}
	f, err := o.cfg.disk.Open(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening the journal: %w", err)
	}
	o.file = f
	if o.scan.Torn > 0 {
		notice, err := o.keepTorn(f, path)
		if err != nil {
			return err
		}
		o.cfg.Notify(notice)
		if err := f.Truncate(o.end.Offset); err != nil {
			return fmt.Errorf("cutting the torn tail of %s: %w", path, err)
		}
	}
	// What a crashed process had written may not be on disk yet; from here on
	// it counts.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", path, err)
	}
	if o.end.Offset == 0 { // its first entry was torn
		return o.startSegment()
	}
	return nil
}

// keepTorn quarantines what is about to be cut off, and says what is known of
// it.
func (o *recovery) keepTorn(f durable.File, path string) (notice string, err error) {
	notice = fmt.Sprintf("%s: the last %d bytes are no whole entry, and are cut off; ", path, o.scan.Torn)
	if o.noReceipt() {
		notice += "no receipt was given for them"
	} else {
		notice += "whether a receipt was given for them is not known, because there is no index that shows it: a board that passed last may have to be enrolled again"
	}
	kept, err := o.keepTail(f)
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	switch {
	case full && o.noReceipt() && !o.scan.TornGood:
		return notice + "; the disk has no room to keep them", nil
	case full:
		return "", fmt.Errorf("keeping the torn tail of %s: %w; make %d bytes of room on the disk of %s and start again: nothing was cut off", path, err, o.scan.Torn, o.cfg.Dir)
	case err != nil:
		return "", fmt.Errorf("keeping the torn tail of %s: %w", path, err)
	}
	if o.scan.TornGood {
		notice += "; there are whole lines among them"
	}
	return notice + "; they are kept as " + kept, nil
}

func (o *recovery) keepTail(f durable.File) (string, error) {
	tail := make([]byte, o.scan.Torn)
	if _, err := f.ReadAt(tail, o.end.Offset); err != nil {
		return "", err
	}
	return journal.Quarantine(o.cfg.disk, o.cfg.Dir, fmt.Sprintf("%020d-%d-%%d.torn", o.end.Segment, o.end.Offset), tail)
}

// begin makes the segment that begins at the next entry.
func (s *Spool) begin() error {
	path := journal.SegmentPath(s.cfg.Dir, s.next)
	f, err := s.cfg.disk.Open(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("making a segment of the journal: %w", err)
	}
	s.file, s.end, s.leaves = f, journal.Position{Segment: s.next}, nil
	if err := errors.Join(
		s.cfg.disk.SyncDir(journal.Dir(s.cfg.Dir)),
		s.cfg.disk.SyncDir(s.cfg.Dir), // the journal's folder may be new too
	); err != nil {
		return fmt.Errorf("making a segment of the journal: %w", err)
	}
	return s.startSegment()
}

func (s *Spool) startSegment() error {
	e := journal.Entry{Seq: s.next, Time: board.Timestamp(time.Now()), Kind: journal.KindSegment, Segment: &journal.Segment{Format: journal.Format, Origin: s.origin, Key: s.cfg.Identity.Key}}
	data, err := e.Encode()
	if err != nil {
		return err
	}
	_, _, err = s.write([][]byte{data})
	return err
}

// catchUpIndex makes the index say what the journal says.
func (o *recovery) catchUpIndex() error {
	dir := o.cfg.Dir
	rebuild := o.unusable != nil
	db := o.db
	fresh := indexPath(dir) + ".new"
	if rebuild {
		switch {
		case o.unusable != errNoIndex:
			o.cfg.Notify(fmt.Sprintf("the index is rebuilt from the journal (%v); the old one is kept as %s", o.unusable, indexPath(dir)+".unusable"))
		case o.scan.Next > 0:
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

func (o *recovery) fill(db *bolt.DB, empty bool) error {
	return load(db, o.entries, empty, func(tx *bolt.Tx) error {
		queue := tableOf(tx, bucketQueue)
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
			putLeaves(tx, o.end.Segment, o.leaves, true),
			putProgress(tx, progress{o.next, o.leaves[len(o.leaves)-1]}),
		)
	})
}

// seal closes a segment for good: its leaf hashes and its checkpoint are
// written beside it, then the index says that it need not be read again. All of
// it can be done twice.
func (s *Spool) seal(seal seal) error {
	dir := s.cfg.Dir
	l := journal.Leaves{Origin: s.origin, First: seal.first, Hashes: seal.hashes}
	if have, err := journal.ReadLeaves(dir, seal.first); err != nil || !have.KnowsMore(l) {
		if err := s.settleFile(journal.LeavesPath(dir, seal.first), l.Encode()); err != nil {
			return err
		}
	}
	if err := os.Chmod(journal.SegmentPath(dir, seal.first), 0o400); err != nil {
		return fmt.Errorf("sealing a segment: %w", err)
	}
	if err := s.signSeal(seal.first, seal.sealed); err != nil {
		return err
	}
	if err := s.update(func(tx *bolt.Tx) error { return putSealed(tx, seal.first, seal.sealed) }); err != nil {
		return fmt.Errorf("sealing a segment: %w", err)
	}
	return nil
}

// signSeal writes the checkpoint over a sealed segment, if it is not there. A
// damaged one is quarantined. It returns ErrTampered if the station has signed
// another root.
func (s *Spool) signSeal(first uint64, sealed sealedSegment) error {
	t := journal.Tree{N: sealed.Next, Frontier: sealed.Edge, Incomplete: sealed.Blind}
	if t.Incomplete {
		return nil
	}
	want, path := journal.Checkpoint{Size: t.N, Root: t.Root()}, journal.SealPath(s.cfg.Dir, first)
	have, is, err := journal.ReadCheckpointFile(path, s.cfg.Identity.Verifier)
	switch {
	case errors.Is(err, journal.ErrCheckpoint):
		kept, err := s.quarantineFile(path)
		if err != nil {
			return err
		}
		s.cfg.Notify(fmt.Sprintf("%s is damaged, and is made again from the journal; the damaged file is kept as %s", path, kept))
	case err != nil:
		return err
	case is && have != want:
		return fmt.Errorf("%w: %s has another root over %d entries than the journal has over %d; restore the folder %s from a backup, and find out who changed it", journal.ErrTampered, path, have.Size, want.Size, journal.Dir(s.cfg.Dir))
	}
	text, err := s.sign(want)
	if err != nil {
		return err
	}
	return s.settleFile(path, text)
}

// quarantineFile copies a file of the journal to the quarantine.
func (s *Spool) quarantineFile(path string) (kept string, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		kept, err = journal.Quarantine(s.cfg.disk, s.cfg.Dir, filepath.Base(path)+"-%d", data)
	}
	if err != nil {
		return "", fmt.Errorf("keeping the damaged %s: %w", path, err)
	}
	return kept, nil
}

// signedBefore takes the newest checkpoint over a sealed segment where the
// newest of all is missing or damaged.
func (o *recovery) signedBefore(segments []journal.SegmentFile) error {
	if o.haveSign || len(segments) < 2 {
		return nil
	}
	if o.noCheckpoint == nil {
		o.noCheckpoint = fmt.Errorf("%w: %s is missing", journal.ErrCheckpoint, journal.CheckpointPath(o.cfg.Dir))
	}
	for _, segment := range slices.Backward(segments) {
		c, have, err := journal.ReadCheckpointFile(journal.SealPath(o.cfg.Dir, segment.First), o.cfg.Identity.Verifier)
		if err != nil && !errors.Is(err, journal.ErrCheckpoint) {
			return err
		}
		if have {
			o.signed, o.haveSign = c, true
			return nil
		}
	}
	return nil
}

// remakeCheckpoints makes checkpoints again that are missing or damaged, where
// the tree is known. The others stay as they are.
func (o *recovery) remakeCheckpoints() error {
	for _, segment := range o.skipped {
		path := journal.SealPath(o.cfg.Dir, segment.First)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !o.sealed[segment.First].Blind {
			o.cfg.Notify(path + " is missing, and is made again from the journal")
		}
		if err := o.signSeal(segment.First, o.sealed[segment.First]); err != nil {
			return err
		}
	}
	if o.noCheckpoint == nil {
		return nil
	}
	if o.tree.Incomplete {
		o.cfg.Notify(fmt.Sprintf("%v; it cannot be made again while entries before its end are missing: repair the journal when the station is stopped", o.noCheckpoint))
		return nil
	}
	path := journal.CheckpointPath(o.cfg.Dir)
	notice := path + " was missing"
	if _, err := os.Stat(path); err == nil {
		kept, err := o.quarantineFile(path)
		if err != nil {
			return err
		}
		notice = fmt.Sprintf("%s was damaged, and is kept as %s", path, kept)
	}
	text, err := o.sign(journal.Checkpoint{Size: o.tree.N, Root: o.tree.Root()})
	if err != nil {
		return err
	}
	if err := durable.WriteFile(o.cfg.disk, path, text, 0o600); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	o.Spool.signed, o.Spool.signedAt = o.tree.N, time.Now()
	o.cfg.Notify(fmt.Sprintf("%s; it was made again from the journal, over %d entries", notice, o.tree.N))
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

// rotate seals the segment that is written and begins the next one, in this
// order: the next one is durable first, so that a sealed segment without one
// after it is known to have lost it. If it fails the spool is broken.
func (s *Spool) rotate() (err error) {
	defer func() {
		if err != nil {
			s.broken = err
		}
	}()
	old := seal{s.end.Segment, sealedSegment{s.next, s.end.Offset, slices.Clone(s.tree.Frontier), s.tree.Incomplete}, s.leaves}
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("closing a segment: %w", err)
	}
	s.file = nil
	if err := s.begin(); err != nil {
		return err
	}
	if err := s.update(func(tx *bolt.Tx) error {
		return errors.Join(
			putLeaves(tx, s.end.Segment, s.leaves, true),
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
		s.pending = tableOf(tx, bucketQueue).Len()
		s.dead = tableOf(tx, bucketDead).Len()
		return nil
	})
}
