package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// Sources are where Repair looks for what is damaged. Those that are nil are
// not asked. What they return is not trusted: an entry is taken if it has the
// hash that was signed, or at least its station's signature.
type Sources struct {
	// Segment returns a copy of the file of the segment that begins at this
	// entry, or fs.ErrNotExist.
	Segment func(first uint64) ([]byte, error)
}

// From says where an entry is had back from.
type From string

// Where entries are had back from.
const (
	FromCopy    From = "copy"    // of the segment
	FromJournal From = "journal" // the first entry of a segment, which the others imply
	FromNowhere From = "nowhere" // it stays damaged; Reason says why
	FromLost    From = "lost"    // an entry of kind lost takes its place: nothing was signed over it
	FromJunk    From = "noise"   // no entry is missing; the bytes that do not belong there are dropped
	FromDisk    From = "disk"    // it is whole, though the index has it as damaged: the disk could not read it then
)

// Fix is what becomes of one damaged entry.
type Fix struct {
	Segment uint64
	Seq     uint64
	From    From
	Device  board.DeviceID // of the record, if the index knows it
	Reason  string         // why it is not had back; empty if it is

	data   []byte // the entry's JSON
	proven bool   // its hash is the one that is known
}

// RepairReport is what Repair did, or would do.
type RepairReport struct {
	Damage      []journal.Damage // also what only the index has
	Fixes       []Fix
	Left        int      // entries that stay damaged
	Checkpoints []string // damaged ones, which the next start makes again
	Torn        int64    // bytes at the end that are no whole entry, which the next start quarantines
	Quarantined []string // where the damaged files were put
}

// Repair has damaged entries back from what sources hold. With dryRun it only
// says what it would do, and changes nothing. The station must be stopped:
// Repair takes its lock, or returns ErrLocked.
//
// A damaged file is kept as it was in the folder journal/quarantine before the
// repaired one takes its place, durably. A record that was had back is
// delivered when the station starts. An entry that stays damaged stays
// quarantined, and Repair can be called again with other sources.
func Repair(dir string, v note.Verifier, sources Sources, dryRun bool) (RepairReport, error) {
	lock, _, err := durable.Lock(dir)
	if err != nil {
		return RepairReport{}, err
	}
	defer lock.Close()
	r := &repair{dir: dir, v: v, sources: sources, devices: map[uint64]board.DeviceID{}}
	if err := r.examine(); err != nil {
		return r.report, err
	}
	defer r.close()
	for i := range r.holes {
		r.plan(&r.holes[i])
	}
	r.confirm()
	if err := r.findStale(); err != nil {
		return r.report, err
	}
	for _, f := range r.report.Fixes {
		if f.From == FromNowhere {
			r.report.Left++
		}
	}
	if dryRun {
		return r.report, nil
	}
	return r.report, r.apply()
}

type repair struct {
	dir     string
	v       note.Verifier
	sources Sources
	report  RepairReport

	db      *bolt.DB // nil if the index is of no use
	devices map[uint64]board.DeviceID
	signed  []journal.Checkpoint
	newest  uint64 // entries under any checkpoint
	key     string // the station's, from the first segment that can be read
	holes   []hole
	hashes  []tlog.Hash // of all entries; zero where it is not known
	scan    *journal.Scan
	last    uint64 // the segment that was written last
}

// hole is a damaged place with the times of the entries around it.
type hole struct {
	journal.Damage
	before, after time.Time // zero if there is none
}

func (r *repair) close() {
	if r.db != nil {
		r.db.Close()
		r.db = nil
	}
}

// examine reads the whole journal and what is beside it.
func (r *repair) examine() (err error) {
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	segments, err := journal.ListSegments(r.dir)
	if err != nil || len(segments) == 0 {
		return err
	}
	r.last = segments[len(segments)-1].First
	paths := []string{journal.CheckpointPath(r.dir)}
	for _, s := range segments {
		paths = append(paths, journal.SealPath(r.dir, s.First))
	}
	for _, path := range paths {
		c, have, err := journal.ReadCheckpointFile(path, r.v)
		if errors.Is(err, journal.ErrCheckpoint) {
			r.report.Checkpoints = append(r.report.Checkpoints, path)
			continue
		}
		if err != nil {
			return err
		}
		if have {
			r.signed = append(r.signed, c)
			r.newest = max(r.newest, c.Size)
		}
	}
	sure := uint64(math.MaxUint64)
	var p progress
	if r.db, p, err = openIndex(osDisk{}, r.dir, r.v.Name()); err == nil {
		sure = p.Next
	} else if !errors.Is(err, errIndexUnusable) && err != errNoIndex {
		return err
	}
	beside, err := journal.OpenLeafHashes(r.dir)
	if err != nil {
		return err
	}
	var newest time.Time
	open := 0 // the first hole that waits for what comes after it
	r.scan = journal.NewScan(r.dir)
	r.scan.Sure = max(sure, r.newest)
	r.scan.Given = func(next uint64) uint64 { return r.given(p, next) }
	r.scan.Visit = func(at journal.Position, seq uint64, data []byte) error {
		t, err := journal.TimeOf(data)
		if err != nil {
			return journal.AsDamage(err)
		}
		if seq == at.Segment && r.key == "" {
			if e, err := journal.ParseEntry(data); err == nil && e.Segment != nil {
				r.key = e.Segment.Key
			}
		}
		newest = t
		for ; open < len(r.holes); open++ {
			r.holes[open].after = t
		}
		r.hashes = append(r.hashes, tlog.RecordHash(data))
		return nil
	}
	r.scan.Damaged = func(d journal.Damage) error {
		r.report.Damage = append(r.report.Damage, d)
		r.holes = append(r.holes, hole{Damage: d, before: newest})
		for seq := d.First; seq < d.Next; seq++ {
			r.hashes = append(r.hashes, r.hashOf(beside, p, seq))
		}
		return nil
	}
	if err := r.scan.Run(segments); err != nil {
		return err
	}
	r.report.Torn = r.scan.Torn
	switch next := r.scan.Next; {
	case next < r.newest:
		return fmt.Errorf("%w: it has %d entries, a checkpoint says %d; restore the folder %s from a backup", journal.ErrTampered, next, r.newest, journal.Dir(r.dir))
	case r.given(p, next) > next:
		return fmt.Errorf("%w: the index has %d entries, the journal %d; restore the journal from a backup", journal.ErrShort, p.Next, next)
	}
	return r.findDevices()
}

// given is recovery.given for a stopped station.
func (r *repair) given(p progress, next uint64) uint64 {
	before := tlog.Hash{}
	if n := len(r.hashes); n > 0 {
		before = r.hashes[n-1]
	}
	return max(r.newest, indexed(r.db, p, next, before))
}

func (r *repair) hashOf(beside *journal.LeafHashReader, p progress, seq uint64) tlog.Hash {
	h := beside.Hash(seq)
	if h != (tlog.Hash{}) || r.db == nil {
		return h
	}
	if seq+1 == p.Next {
		return p.Leaf
	}
	viewIndex(r.db, func(tx *bolt.Tx) error {
		if data := tableOf(tx, bucketLeaves).Get(encodeSeq(seq)); len(data) == len(h) {
			copy(h[:], data)
		}
		return nil
	})
	return h
}

// findDevices asks the index whose records the damaged entries were.
func (r *repair) findDevices() error {
	if r.db == nil || len(r.holes) == 0 {
		return nil
	}
	return viewIndex(r.db, func(tx *bolt.Tx) error {
		return tableOf(tx, bucketDevices).ForEach(func(device, value []byte) error {
			var known pointer
			if err := known.decode(value); err != nil {
				return err
			}
			if journal.Covers(r.report.Damage, known.Seq) {
				r.devices[known.Seq] = board.DeviceID(device)
			}
			return nil
		})
	})
}

// findStale finds what the index has as damaged and is not. A sealed segment is
// not read at each start, so that would stay for ever.
func (r *repair) findStale() error {
	if r.db == nil {
		return nil
	}
	known, err := readDamage(r.db)
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	found := slices.Clone(r.report.Damage)
	for _, d := range known {
		var whole []Fix
		for seq := d.First; seq < d.Next; seq++ {
			if !journal.Covers(found, seq) {
				whole = append(whole, Fix{Segment: d.Segment, Seq: seq, From: FromDisk, Device: r.devices[seq]})
			}
		}
		if d.Entries() == 0 && !slices.ContainsFunc(found, func(f journal.Damage) bool { return f.Segment == d.Segment && f.Offset == d.Offset }) {
			whole = append(whole, Fix{Segment: d.Segment, Seq: d.First, From: FromDisk})
		}
		if len(whole) > 0 {
			r.report.Damage, r.report.Fixes = append(r.report.Damage, d), append(r.report.Fixes, whole...)
		}
	}
	return nil
}

// plan finds a fix for each entry of a hole.
func (r *repair) plan(h *hole) {
	if h.Entries() == 0 {
		r.report.Fixes = append(r.report.Fixes, Fix{Segment: h.Segment, Seq: h.First, From: FromJunk})
		return
	}
	copies, why := r.copies(h.Segment)
	before := h.before
	for seq := h.First; seq < h.Next; seq++ {
		f := Fix{Segment: h.Segment, Seq: seq, From: FromNowhere, Device: r.devices[seq]}
		for _, try := range []func(){
			func() { r.fromCopy(&f, copies, why) },
			func() { r.fromJournal(&f, before, h.after) },
			func() { r.giveUp(&f, h, before) },
		} {
			if try(); f.From != FromNowhere {
				f.Reason = ""
				break
			}
		}
		if f.data != nil {
			if t, err := journal.TimeOf(f.data); err == nil {
				before = t
			}
		}
		r.report.Fixes = append(r.report.Fixes, f)
	}
}

// copies reads the good lines of a copy of a segment.
func (r *repair) copies(first uint64) (map[uint64][]byte, string) {
	if r.sources.Segment == nil {
		return nil, "there is no copy of the segment"
	}
	text, err := r.sources.Segment(first)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "there is no copy of the segment"
	}
	if err != nil {
		return nil, fmt.Sprintf("the copy of the segment cannot be read: %v", err)
	}
	lines := map[uint64][]byte{}
	for _, line := range bytes.SplitAfter(text, []byte("\n")) {
		if data, seq, err := journal.ReadLine(line); err == nil {
			lines[seq] = data
		}
	}
	return lines, "the copy of the segment does not have it"
}

// accept takes an entry if it is the one that was signed or, where that is not
// known, one that nobody else can have written.
func (r *repair) accept(f *Fix, from From, data []byte) bool {
	if known := r.hashes[f.Seq]; known != (tlog.Hash{}) {
		if tlog.RecordHash(data) != known {
			return false
		}
		f.From, f.data, f.proven = from, data, true
		return true
	}
	e, err := journal.ParseEntry(data)
	if err != nil || e.Seq != f.Seq {
		return false
	}
	if record := e.Record(); record != nil {
		if _, err := board.OpenEnvelope(record, r.v); err != nil {
			return false
		}
	}
	f.From, f.data = from, data
	return true
}

func (r *repair) fromCopy(f *Fix, copies map[uint64][]byte, why string) {
	f.Reason = why
	if data, ok := copies[f.Seq]; ok && !r.accept(f, FromCopy, data) {
		f.Reason = "the copy of the segment has another entry in its place"
	}
}

// howLong bounds the search for an entry's time, of which the hash knows each
// millisecond.
const howLong = 10 * time.Minute

// search finds the time with which an entry has the hash that is known.
func (r *repair) search(f *Fix, from From, e journal.Entry, after, before time.Time) bool {
	known := r.hashes[f.Seq]
	if known == (tlog.Hash{}) {
		return false
	}
	data, err := e.Encode()
	if err != nil {
		return false
	}
	text := []byte(e.Time.Format(journal.TimeLayout))
	i := bytes.Index(data, text)
	for t := board.Timestamp(after); !t.After(before); t = t.Add(time.Millisecond) {
		text = t.AppendFormat(text[:0], journal.TimeLayout)
		copy(data[i:], text)
		if tlog.RecordHash(data) == known {
			return r.accept(f, from, data)
		}
	}
	return false
}

// fromJournal has the first entry of a segment back: all of it is known but the
// time, and that is shortly before the next one's.
func (r *repair) fromJournal(f *Fix, before, after time.Time) {
	if f.Seq != f.Segment || r.key == "" {
		return
	}
	e := journal.Entry{Seq: f.Seq, Time: board.Timestamp(after), Kind: journal.KindSegment, Segment: &journal.Segment{Format: journal.Format, Origin: r.v.Name(), Key: r.key}}
	if r.hashes[f.Seq] == (tlog.Hash{}) {
		if f.Seq >= r.newest { // nothing was signed over it: the time may be another
			if data, err := e.Encode(); err == nil {
				r.accept(f, FromJournal, data)
			}
		}
		return
	}
	if !after.IsZero() && r.search(f, FromJournal, e, latest(before, after.Add(-howLong)), after) || before.IsZero() {
		return
	}
	r.search(f, FromJournal, e, before, before.Add(howLong))
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// giveUp writes down that an entry is lost, if nothing was signed over it.
// Otherwise its place must stay as it is: the journal would be another than the
// one that was signed.
func (r *repair) giveUp(f *Fix, h *hole, before time.Time) {
	if r.hashes[f.Seq] != (tlog.Hash{}) {
		return // nothing depends on it: with its hash the root can be computed
	}
	if f.Seq < r.newest {
		f.Reason += "; its hash is not known and a checkpoint was signed over it"
		return
	}
	if len(r.report.Checkpoints) > 0 {
		f.Reason += "; its hash is not known, and a damaged checkpoint may have been signed over it"
		return
	}
	at := board.Timestamp(before)
	if at.IsZero() {
		at = board.Timestamp(h.after)
	}
	e := journal.Entry{Seq: f.Seq, Time: at, Kind: journal.KindLost, Lost: &journal.Lost{Reason: h.Reason}}
	if data, err := e.Encode(); err == nil {
		f.From, f.data = FromLost, data
	}
}

// confirm takes back what is not proven if with it the journal would not be the
// one that was signed.
func (r *repair) confirm() {
	with := slices.Clone(r.hashes)
	for _, f := range r.report.Fixes {
		if f.data != nil {
			with[f.Seq] = tlog.RecordHash(f.data)
		}
	}
	var t journal.Tree
	for _, h := range with {
		t.Add(h)
		for _, c := range r.signed {
			if c.Size != t.N || t.Incomplete || t.Root() == c.Root {
				continue
			}
			for i := range r.report.Fixes {
				if f := &r.report.Fixes[i]; f.data != nil && !f.proven && f.Seq < c.Size {
					f.From, f.data, f.Reason = FromNowhere, nil, "with what was found the journal would not have the root that was signed"
				}
			}
		}
	}
}

// apply writes the segments anew that have something to fix.
func (r *repair) apply() error {
	fixes := map[uint64][]Fix{}
	lowest := uint64(math.MaxUint64)
	for _, f := range r.report.Fixes {
		if f.From != FromNowhere {
			lowest = min(lowest, f.Segment)
		}
		if f.From != FromNowhere && f.From != FromDisk {
			fixes[f.Segment] = append(fixes[f.Segment], f)
		}
	}
	if lowest == math.MaxUint64 {
		return nil
	}
	// First the index is told to read them again: a start in between finds the
	// damage as it is.
	if r.db != nil {
		if err := guarded(func() error {
			return r.db.Update(func(tx *bolt.Tx) error {
				b := tableOf(tx, bucketSegments)
				var stale [][]byte
				c := b.Cursor()
				for key, _ := c.Seek(encodeSeq(lowest)); key != nil; key, _ = c.Next() {
					stale = append(stale, key)
				}
				for _, key := range stale {
					if err := b.Delete(key); err != nil {
						return err
					}
				}
				return nil
			})
		}); err != nil {
			return fmt.Errorf("writing the index: %w", err)
		}
	}
	for first, fix := range fixes {
		if err := r.rewrite(first, fix); err != nil {
			return fmt.Errorf("repairing %s: %w", journal.SegmentPath(r.dir, first), err)
		}
	}
	return nil
}

// rewrite puts a repaired file in the place of a damaged one, which is kept.
func (r *repair) rewrite(first uint64, fixes []Fix) error {
	path := journal.SegmentPath(r.dir, first)
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lines := map[uint64][]byte{}
	for _, f := range fixes {
		if f.data != nil {
			lines[f.Seq] = journal.EncodeLine(f.data)
		}
	}
	damaged := func(offset int64) bool {
		return slices.ContainsFunc(r.holes, func(d hole) bool {
			return d.Segment == first && d.Offset <= offset && offset < d.Offset+d.Bytes
		})
	}
	offset := int64(0)
	tail := []byte(nil)
	for _, line := range bytes.SplitAfter(old, []byte("\n")) {
		at := offset
		offset += int64(len(line))
		_, seq, wrong := journal.ReadLine(line)
		switch {
		case first == r.last && at >= r.scan.End.Offset:
			tail = append(tail, line...) // a write cut short is for the start to cut
		case wrong == nil && !damaged(at):
			lines[seq] = line
		}
	}
	var order []uint64
	for seq := range lines {
		order = append(order, seq)
	}
	slices.Sort(order)
	var data []byte
	for _, seq := range order {
		data = append(data, lines[seq]...)
	}
	data = append(data, tail...)
	mode := fs.FileMode(0o400)
	if first == r.last {
		mode = 0o600
	}
	if old != nil {
		aside, err := journal.Quarantine(osDisk{}, r.dir, fmt.Sprintf("%020d-%%d.jsonl", first), old)
		if err != nil {
			return err
		}
		r.report.Quarantined = append(r.report.Quarantined, aside)
	}
	return durable.WriteFile(osDisk{}, path, data, mode)
}
