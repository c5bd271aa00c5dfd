package spool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// indexFormat is raised when the buckets change; any other is rebuilt from the
// journal.
const indexFormat = 5

// The index's buckets. All of it follows from the journal, but for what was
// delivered and what is dead, which delivering again finds out again, and for
// the hashes of leaves, which a sealed segment has beside it.
//
// How it is synced. An entry is written to the journal and synced, then it is
// committed here, with a sync, then the receipt is given: the index must never
// be ahead of the journal, because that is how a lost journal is known. A
// commit that is lost would be made good from the journal at the next start, so
// it looks as if it need not be synced. It is, for three reasons: bbolt without
// a sync can come back from a power failure torn in ways that it does not
// notice itself; what was delivered stands only here, and to find it out again
// costs the delivery of everything; and where the index ends is how a write
// that was cut short is told from damage. What is delivered is committed many
// at once and with a sync too: bbolt has one file. Only a rebuild goes without,
// into a file of another name, which is synced before it gets its name.
//
// The list of free pages is kept in the file (NoFreelistSync is off): without
// it bbolt walks all pages when it opens the file, in a goroutine of its own,
// where a panic over a damaged page would end the process instead of starting a
// rebuild.
var (
	bucketMeta     = []byte("meta")
	bucketDevices  = []byte("devices")  // device id → pointer
	bucketKeys     = []byte("keys")     // fingerprint → device id
	bucketQueue    = []byte("queue")    // seq → queued
	bucketDead     = []byte("dead")     // seq → DeadLetter
	bucketSegments = []byte("segments") // first seq → sealedSegment
	bucketLeaves   = []byte("leaves")   // seq → leaf hash, of the segment that is written
	bucketDamage   = []byte("damage")   // offset in the journal → Damage
	bucketArchive  = []byte("archive")  // name → what was offered
	bucketEvents   = []byte("events")   // device id, seq → position: its repeats, its failures, those of others that named it, its rejections
	bucketEntries  = []byte("entries")  // seq of a verdict → entryRow
	bucketTimes    = []byte("times")    // time, seq of a verdict → nothing
	bucketSlots    = []byte("slots")    // slot → seq of its last verdict
	bucketCounts   = []byte("counts")   // work order, result, reason → number
	bucketRejected = []byte("rejected") // seq of a record that the registry refused and has not taken since → seq of the rejection
	buckets        = [][]byte{bucketMeta, bucketDevices, bucketKeys, bucketQueue, bucketDead, bucketSegments, bucketLeaves, bucketDamage, bucketArchive, bucketEvents,
		bucketEntries, bucketTimes, bucketSlots, bucketCounts, bucketRejected}

	keyFormat = []byte("format")
	keyOrigin = []byte("origin")
	keyNext   = []byte("next") // progress
)

// pointer is what the index knows of a device.
type pointer struct {
	Key       board.Fingerprint
	Seq       uint64
	At        int64 // of the entry, Unix milliseconds
	Delivered byte
	MAC       journal.MAC
}

// entryRow is what the index keeps of a verdict.
type entryRow struct {
	at     journal.Position
	time   int64 // Unix milliseconds
	result journal.Result
	device board.DeviceID // zero if it is not known
	slot   string
	reason string
}

func (e *entryRow) encode() []byte {
	b := append(make([]byte, 0, 64), byte(slices.Index(journal.Results, e.result)))
	b = binary.BigEndian.AppendUint64(b, e.at.Segment)
	b = binary.BigEndian.AppendUint64(b, uint64(e.at.Offset))
	b = binary.BigEndian.AppendUint64(b, uint64(e.time))
	b = append(b, e.device[:]...)
	b = append(append(b, byte(len(e.slot))), e.slot...)
	return append(b, e.reason...)
}

const entryRowSize = 1 + 3*8 + len(board.DeviceID{}) + 1

func (e *entryRow) decode(b []byte) error {
	if len(b) < entryRowSize || int(b[0]) >= len(journal.Results) || len(b) < entryRowSize+int(b[entryRowSize-1]) {
		return errIndexEntry
	}
	e.result = journal.Results[b[0]]
	e.at = journal.Position{Segment: binary.BigEndian.Uint64(b[1:]), Offset: int64(binary.BigEndian.Uint64(b[9:]))}
	e.time = int64(binary.BigEndian.Uint64(b[17:]))
	copy(e.device[:], b[25:])
	slot := b[entryRowSize:]
	e.slot, e.reason = string(slot[:b[entryRowSize-1]]), string(slot[b[entryRowSize-1]:])
	return nil
}

// timeKey sorts by time, also before 1970.
func timeKey(at int64, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(at)^1<<63), seq)
}

// countKey names a counter. A work order has no zero byte.
func countKey(order string, result journal.Result, reason string) string {
	return order + "\x00" + string(result) + "\x00" + reason
}

func encodePosition(p journal.Position) []byte {
	return binary.BigEndian.AppendUint64(encodeSeq(p.Segment), uint64(p.Offset))
}

func decodePosition(p *journal.Position, b []byte) error {
	if len(b) != 16 {
		return errIndexEntry
	}
	p.Segment, p.Offset = binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:]))
	return nil
}

// queued is where a record waits.
type queued struct {
	Segment uint64
	Offset  int64
	At      int64 // Unix milliseconds
}

// progress is the index's place in the journal.
type progress struct {
	Next uint64
	Leaf tlog.Hash // of entry Next-1; zero if Next is 0
}

// sealedSegment is a segment that is not written any more, so that it need not
// be read at each start.
type sealedSegment struct {
	Next  uint64      `json:"next"` // the seq of the next segment's first entry
	Size  int64       `json:"size"`
	Edge  []tlog.Hash `json:"edge"` // of the tree at Next
	Blind bool        `json:"blind,omitempty"`
}

func encodeSeq(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func decodeSeq(data []byte) (uint64, error) {
	if len(data) != 8 {
		return 0, errIndexEntry
	}
	return binary.BigEndian.Uint64(data), nil
}

const pointerSize = 55

func (p *pointer) encode() []byte {
	b := append(make([]byte, 0, pointerSize), p.Key[:]...)
	b = binary.BigEndian.AppendUint64(b, p.Seq)
	b = binary.BigEndian.AppendUint64(b, uint64(p.At))
	return append(append(b, p.Delivered), p.MAC[:]...)
}

func (p *pointer) decode(b []byte) error {
	if len(b) != pointerSize {
		return errIndexEntry
	}
	copy(p.Key[:], b)
	p.Seq, p.At, p.Delivered = binary.BigEndian.Uint64(b[32:]), int64(binary.BigEndian.Uint64(b[40:])), b[48]
	copy(p.MAC[:], b[49:])
	return nil
}

func (q *queued) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 24), q.Segment)
	b = binary.BigEndian.AppendUint64(b, uint64(q.Offset))
	return binary.BigEndian.AppendUint64(b, uint64(q.At))
}

func (q *queued) decode(b []byte) error {
	if len(b) != 24 {
		return errIndexEntry
	}
	q.Segment, q.Offset, q.At = binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:])), int64(binary.BigEndian.Uint64(b[16:]))
	return nil
}

func (p *progress) encode() []byte { return append(encodeSeq(p.Next), p.Leaf[:]...) }

func (p *progress) decode(b []byte) error {
	if len(b) != 8+len(p.Leaf) {
		return errIndexEntry
	}
	p.Next = binary.BigEndian.Uint64(b)
	copy(p.Leaf[:], b[8:])
	return nil
}

var (
	errIndexEntry = errors.New("an entry of the index has a wrong size")
	// errIndexUnusable: it is not an index of this journal. It will be rebuilt.
	errIndexUnusable = errors.New("the index cannot be used")
)

// ErrIndexAhead says that the index knows entries which the journal does not
// have: the journal lost its end.
var ErrIndexAhead = errors.New("the journal lost entries that the index knows")

func indexPath(dir string) string { return filepath.Join(dir, "index.bbolt") }

// guarded runs what reads a file of bbolt's that may be damaged: the file is
// mapped, and may be shorter than it says, and bbolt panics on some kinds of
// damage.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errIndexUnusable, r)
		}
	}()
	return f()
}

// viewIndex reads an index. Nothing reads one but by this, or by what is under
// guarded already.
func viewIndex(db *bolt.DB, f func(*bolt.Tx) error) error {
	return guarded(func() error { return db.View(f) })
}

// update commits to the index. bbolt panics when a damaged page makes no sense
// to it, and may then hold its locks for ever: such an index is left as it is,
// not closed, and the next open makes another in its place. The caller holds
// mu.
func (s *Spool) update(f func(*bolt.Tx) error) error {
	defer s.calling.start()()
	return s.trust(guarded(func() error { return s.db.Update(f) }))
}

// view reads the index, in the same way.
func (s *Spool) view(f func(*bolt.Tx) error) error {
	defer s.calling.start()()
	return s.trust(guarded(func() error { return s.db.View(f) }))
}

func (s *Spool) trust(err error) error {
	if errors.Is(err, errIndexUnusable) {
		s.db, s.unusable, s.broken = nil, err, err
	}
	return err
}

// distrust has the next who needs the files build the index anew.
func (s *Spool) distrust(why error) {
	s.mu.Lock()
	defer s.unlock()
	if s.closed || s.broken != nil {
		return // the files are opened anew already
	}
	s.unusable = fmt.Errorf("%w: %w", errIndexUnusable, why)
	s.broken = s.unusable
}

// makeIndex makes an empty one.
func makeIndex(d disk, path, origin string, options *bolt.Options) (*bolt.DB, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making the index: %w", err)
	}
	db, err := d.openIndex(path, options)
	if err != nil {
		return nil, fmt.Errorf("making the index: %w", err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tableOf(tx, bucketMeta)
		return errors.Join(meta.Put(keyFormat, []byte{indexFormat}), meta.Put(keyOrigin, []byte(origin)), putProgress(tx, progress{}))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the index: %w", err), db.Close())
	}
	return db, nil
}

// errNoIndex: there is none.
var errNoIndex = errors.New("there is no index")

// openIndex opens the file and looks at all of it. What cannot be an index of
// this origin is errIndexUnusable.
func openIndex(d disk, dir, origin string) (db *bolt.DB, p progress, err error) {
	if _, err := os.Stat(indexPath(dir)); errors.Is(err, os.ErrNotExist) {
		return nil, p, errNoIndex
	}
	err = guarded(func() (err error) {
		db, err = d.openIndex(indexPath(dir), &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return fmt.Errorf("%w: it has %s open", durable.ErrLocked, indexPath(dir))
		case notNow(err):
			return fmt.Errorf("opening the index: %w", err)
		case err != nil:
			return fmt.Errorf("%w: %w", errIndexUnusable, err)
		}
		return db.View(func(tx *bolt.Tx) error {
			for _, name := range buckets {
				if tx.Bucket(name) == nil {
					return fmt.Errorf("%w: it is not whole, or of another format", errIndexUnusable)
				}
			}
			if format := formatOf(tx); format != indexFormat {
				return fmt.Errorf("%w: format %d, want %d", errIndexUnusable, format, indexFormat)
			}
			meta := tableOf(tx, bucketMeta)
			if of := meta.Get(keyOrigin); string(of) != origin {
				return fmt.Errorf("%w: it is of %.130q", errIndexUnusable, of)
			}
			if err := p.decode(meta.Get(keyNext)); err != nil {
				return fmt.Errorf("%w: %v", errIndexUnusable, err)
			}
			return walkIndex(tx)
		})
	})
	if err != nil && db != nil {
		guarded(db.Close)
		db = nil
	}
	return db, p, err
}

// formatOf reads the format of an index; 0 if there is none. It is the first
// byte of its value in every format, with a checksum or without.
func formatOf(tx *bolt.Tx) byte {
	if meta := tx.Bucket(bucketMeta); meta != nil {
		if stored := meta.Get(keyFormat); len(stored) > 0 {
			return stored[0]
		}
	}
	return 0
}

// notNow tells whether a file could not be opened for a reason that says
// nothing of what is in it.
func notNow(err error) bool {
	return slices.ContainsFunc([]error{os.ErrPermission, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EROFS, unix.ENOSPC}, func(reason error) bool {
		return errors.Is(err, reason)
	})
}

// unmapPages gives back the memory that the walk over all pages of the index
// has taken: they stay in the kernel's cache, and what is needed of them is
// mapped again. Nobody else may use the index yet, which its next change may
// map elsewhere.
func unmapPages(db *bolt.DB) {
	_ = db.View(func(tx *bolt.Tx) error {
		// Not the size of the file: bbolt makes that larger than what it has
		// mapped, and behind the mapping is memory of others. It is advice: if
		// it is not taken, the memory is given back when somebody needs it.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, db.Info().Data, uintptr(tx.Size()), unix.MADV_DONTNEED)
		return nil
	})
}

// walkIndex looks at every entry once, so that a damaged page is met here and
// not in the middle of a shift. (bbolt's own check runs in a goroutine of its
// own, where a panic over a damaged page would end the process.)
func walkIndex(tx *bolt.Tx) error {
	devices, keys := tableOf(tx, bucketDevices), tableOf(tx, bucketKeys)
	// Keys and devices are one another's inverse: if so, these sums are equal.
	// To look up each would take long.
	var inDevices, inKeys uint32
	pair := func(device, key []byte) uint32 {
		return crc32.Update(crc32.Checksum(device, journal.Castagnoli), journal.Castagnoli, key)
	}
	err := devices.ForEach(func(device, value []byte) error {
		var known pointer
		if len(device) != len(board.DeviceID{}) {
			return errIndexEntry
		}
		if err := known.decode(value); err != nil {
			return err
		}
		inDevices += pair(device, known.Key[:])
		return nil
	})
	if err == nil {
		err = keys.ForEach(func(key, device []byte) error {
			if len(key) != len(board.Fingerprint{}) || len(device) != len(board.DeviceID{}) {
				return errIndexEntry
			}
			inKeys += pair(device, key)
			return nil
		})
	}
	if err == nil && inDevices != inKeys {
		err = errors.New("a key and its device disagree")
	}
	if err == nil {
		err = tableOf(tx, bucketQueue).ForEach(func(key, value []byte) error {
			var q queued
			_, err := decodeSeq(key)
			return errors.Join(err, q.decode(value))
		})
	}
	if err == nil {
		err = tableOf(tx, bucketEvents).ForEach(func(key, value []byte) error {
			var at journal.Position
			if len(key) != len(board.DeviceID{})+8 {
				return errIndexEntry
			}
			return decodePosition(&at, value)
		})
	}
	if err == nil {
		err = tableOf(tx, bucketEntries).ForEach(func(key, value []byte) error {
			var e entryRow
			_, err := decodeSeq(key)
			return errors.Join(err, e.decode(value))
		})
	}
	for _, name := range [][]byte{bucketDead, bucketSegments, bucketLeaves, bucketDamage, bucketArchive, bucketTimes, bucketSlots, bucketCounts, bucketRejected} {
		if err == nil {
			err = tableOf(tx, name).ForEach(func(_, _ []byte) error { return nil })
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %v", errIndexUnusable, err)
	}
	return nil
}

func putProgress(tx *bolt.Tx, p progress) error {
	return tableOf(tx, bucketMeta).Put(keyNext, p.encode())
}

// counted is what a batch of entries changes: lengths of buckets, and counters.
type counted struct {
	pending, dead int
	numbers       map[string]uint64 // by countKey
}

func (c *counted) put(tx *bolt.Tx) error {
	b := tableOf(tx, bucketCounts)
	for key, n := range c.numbers {
		if before := b.Get([]byte(key)); before != nil {
			have, err := decodeSeq(before)
			if err != nil {
				return err
			}
			n += have
		}
		if err := b.Put([]byte(key), encodeSeq(n)); err != nil {
			return err
		}
	}
	return nil
}

// putEntry brings an entry into the index. An entry that the index has already,
// as one that was damaged and is repaired, is not counted again.
func putEntry(tx *bolt.Tx, e *journal.Summary, c *counted) error {
	if e.IsRecord() {
		if err := apply(tx, e); err != nil {
			return err
		}
		c.pending++
	}
	return putRow(tx, e, c)
}

// putRow is putEntry without what only a record has.
func putRow(tx *bolt.Tx, e *journal.Summary, c *counted) error {
	switch {
	case e.Rejection != nil:
		return putRejection(tx, e, c)
	case e.Result == "":
		return nil
	}
	key := encodeSeq(e.Seq)
	entries, times := tableOf(tx, bucketEntries), tableOf(tx, bucketTimes)
	if entries.Get(key) == nil {
		if c.numbers == nil {
			c.numbers = map[string]uint64{}
		}
		c.numbers[countKey(e.Tags.Order, e.Result, e.Tags.Reason)]++
	}
	entries.fill(1) // they come in order
	times.fill(1)
	row := entryRow{e.At, e.Time, e.Result, e.Device, e.Tags.Slot, e.Tags.Reason}
	if err := errors.Join(entries.Put(key, row.encode()), times.Put(timeKey(e.Time, e.Seq), nil)); err != nil {
		return err
	}
	slots := tableOf(tx, bucketSlots)
	if last := slots.Get([]byte(e.Tags.Slot)); e.Tags.Slot != "" && (last == nil || bytes.Compare(last, key) < 0) {
		if err := slots.Put([]byte(e.Tags.Slot), key); err != nil {
			return err
		}
	}
	if e.IsRecord() {
		return nil
	}
	devices := []board.DeviceID{e.Device}
	if e.Other != nil && *e.Other != e.Device {
		devices = append(devices, *e.Other)
	}
	for _, device := range devices {
		if !device.Valid() {
			continue
		}
		if err := tableOf(tx, bucketEvents).Put(append(device[:], key...), encodePosition(e.At)); err != nil {
			return err
		}
	}
	return nil
}

// putRejection makes a dead letter of a record that the registry refused for
// good, and takes it from the queue; a Resolved one ends that.
func putRejection(tx *bolt.Tx, e *journal.Summary, c *counted) error {
	r := e.Rejection
	events, of := tableOf(tx, bucketEvents), encodeSeq(r.Of)
	at := append(r.Device[:], encodeSeq(e.Seq)...)
	again := events.Get(at) != nil
	if err := events.Put(at, encodePosition(e.At)); err != nil || again {
		return err
	}
	queue, dead, rejected := tableOf(tx, bucketQueue), tableOf(tx, bucketDead), tableOf(tx, bucketRejected)
	if r.Reason == journal.Resolved {
		if dead.Get(of) != nil { // in a rebuild: nobody requeued the record. It is delivered once more, as all are.
			var row entryRow
			if err := row.decode(tableOf(tx, bucketEntries).Get(of)); err != nil {
				return err
			}
			place := queued{row.at.Segment, row.at.Offset, row.time}
			if err := queue.Put(of, place.encode()); err != nil {
				return err
			}
			c.dead--
			c.pending++
		}
		return errors.Join(rejected.Delete(of), dead.Delete(of))
	}
	var place queued
	if data := queue.Get(of); data != nil {
		c.pending--
		if err := place.decode(data); err != nil {
			return err
		}
	} else if data := tableOf(tx, bucketEntries).Get(of); data != nil {
		var row entryRow
		if err := row.decode(data); err != nil {
			return err
		}
		place = queued{row.at.Segment, row.at.Offset, row.time}
	}
	if dead.Get(of) == nil {
		c.dead++
	}
	letter := DeadLetter{Seq: r.Of, Device: r.Device, Time: time.UnixMilli(e.Time).UTC(), Cause: r.Reason, Reason: cmp.Or(r.Text, r.Reason), Known: r.Known, Segment: place.Segment, Offset: place.Offset}
	return errors.Join(queue.Delete(of), putDead(tx, letter), rejected.Put(of, encodeSeq(e.Seq)))
}

// apply brings a record into the index and the queue. Another key that this
// device had, or device that this key had, is forgotten here: the journal has
// it, and VerifyDir says so.
func apply(tx *bolt.Tx, r *journal.Summary) error {
	q := queued{r.At.Segment, r.At.Offset, r.Time}
	if err := tableOf(tx, bucketQueue).Put(encodeSeq(r.Seq), q.encode()); err != nil {
		return err
	}
	devices, keys := tableOf(tx, bucketDevices), tableOf(tx, bucketKeys)
	var known pointer
	if data := devices.Get(r.Device[:]); data != nil {
		if err := known.decode(data); err != nil {
			return err
		}
		if known.Seq > r.Seq {
			return nil
		}
		if known.Key != r.Key {
			if err := keys.Delete(known.Key[:]); err != nil {
				return err
			}
		}
	}
	if owner := keys.Get(r.Key[:]); owner != nil && !bytes.Equal(owner, r.Device[:]) {
		if err := devices.Delete(bytes.Clone(owner)); err != nil {
			return err
		}
	}
	p := pointer{Key: r.Key, Seq: r.Seq, At: r.Time, MAC: r.MAC}
	return errors.Join(devices.Put(r.Device[:], p.encode()), keys.Put(r.Key[:], r.Device[:]))
}

// lookup finds what is known of a device and of a key.
func lookup(tx *bolt.Tx, device board.DeviceID, key board.Fingerprint) (known pointer, haveDevice bool, owner board.DeviceID, haveKey bool, err error) {
	if data := tableOf(tx, bucketDevices).Get(device[:]); data != nil {
		haveDevice = true
		err = known.decode(data)
	}
	if data := tableOf(tx, bucketKeys).Get(key[:]); data != nil {
		haveKey = true
		if copy(owner[:], data) != len(owner) {
			err = errIndexEntry
		}
	}
	return
}

func putJSON(b table, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}

// putSealed remembers a segment that is not written any more.
func putSealed(tx *bolt.Tx, first uint64, s sealedSegment) error {
	return putJSON(tableOf(tx, bucketSegments), encodeSeq(first), s)
}

func readSealed(db *bolt.DB) (map[uint64]sealedSegment, error) {
	out := map[uint64]sealedSegment{}
	err := viewIndex(db, func(tx *bolt.Tx) error {
		return tableOf(tx, bucketSegments).ForEach(func(key, value []byte) error {
			first, err := decodeSeq(key)
			if err != nil {
				return err
			}
			var s sealedSegment
			if err := json.Unmarshal(value, &s); err != nil {
				return err
			}
			out[first] = s
			return nil
		})
	})
	return out, err
}

// putDamage replaces what is known of damage from a segment on.
func putDamage(tx *bolt.Tx, from uint64, found []journal.Damage) error {
	b := tableOf(tx, bucketDamage)
	var old [][]byte // a cursor must not delete under itself
	c := b.Cursor()
	for key, _ := c.Seek(encodeSeq(from)); key != nil; key, _ = c.Next() {
		old = append(old, key)
	}
	for _, key := range old {
		if err := b.Delete(key); err != nil {
			return err
		}
	}
	for _, d := range found {
		if err := putJSON(b, append(encodeSeq(d.Segment), encodeSeq(uint64(d.Offset))...), d); err != nil {
			return err
		}
	}
	return nil
}

func readDamage(db *bolt.DB) ([]journal.Damage, error) {
	var out []journal.Damage
	err := viewIndex(db, func(tx *bolt.Tx) error {
		return tableOf(tx, bucketDamage).ForEach(func(_, value []byte) error {
			var d journal.Damage
			if err := json.Unmarshal(value, &d); err != nil {
				return err
			}
			out = append(out, d)
			return nil
		})
	})
	return out, err
}

// putLeaves notes hashes of the segment that is written; fresh drops those of
// the segment before it.
func putLeaves(tx *bolt.Tx, first uint64, hashes []tlog.Hash, fresh bool) error {
	if fresh {
		if err := tx.DeleteBucket(bucketLeaves); err != nil {
			return err
		}
		if _, err := tx.CreateBucket(bucketLeaves); err != nil {
			return err
		}
	}
	b := tableOf(tx, bucketLeaves)
	b.fill(1) // they come in order
	for i, h := range hashes {
		if err := b.Put(encodeSeq(first+uint64(i)), h[:]); err != nil {
			return err
		}
	}
	return nil
}
