package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// request is one call of Append, on its way through a group.
type request struct {
	ctx     context.Context
	reading Reading
	sealed  board.Sealed      // of a reading with a record
	key     board.Fingerprint // likewise
	turn    chan bool         // true: write the next group; false: it is written, see below
	signed  chan error        // once: what is wrong with the envelope

	entry    journal.Entry
	data     []byte // the entry's JSON
	read     []byte // what was read back of its line
	conflict *board.Conflict
	receipt  board.Receipt
	err      error
	silent   bool // nothing is written: see Reading.Resumed, and noiseInterval
}

// Reading is how the reading of one board ended, as the station tells it. With
// a Record the journal decides between passed, repeated and a conflict. Texts
// are for people: what is not plain in them is replaced, what is too long is
// cut.
type Reading struct {
	Record *board.Record // nil: the board failed

	Reason      string            // of a failure: lower-case words with dashes
	Device      board.DeviceID    // of a failure, if it is known
	Fingerprint board.Fingerprint // likewise
	Known       *journal.Known    // what a failure contradicts

	Slot       string
	WorkOrder  string
	Label      string // as it was scanned
	Operator   string
	Transcript string // a file name
	Took       time.Duration
	After      *uint64 // the verdict before this one in the same insertion
	// Resumed: the board may be in its slot since before the start. If the last
	// verdict of the slot says the same of the same board, nothing is written,
	// and the receipt is that of that verdict.
	Resumed bool
}

// noiseInterval is the shortest time between two failed verdicts of one slot
// without a device id: a flapping port or a noisy line must not fill the disk.
const noiseInterval = 10 * time.Second

// noise is what is left out of one slot.
type noise struct {
	last    time.Time // when a verdict without a device id was journaled last
	leftOut uint64    // since the slot's last entry
}

// Append journals a verdict. When it returns, the entry is on disk, synced and
// read back; a power cut at any later moment loses none of it. The record of a
// board that passes is signed, stands in the same entry, and waits in the
// queue. A board that is enrolled already gets the receipt of its first record,
// marked as a repeat. If that record is damaged since, the board is enrolled as
// a new one. The receipt's Entry is the verdict's own entry, also beside a
// *board.Conflict.
//
// A failed verdict without a device id that follows another one of its slot
// within 10 s is not written; the slot's next entry carries the number of
// those.
//
// A *board.Conflict says that the record contradicts what is known; that
// verdict is journaled. board.ErrRecord says that it is no valid record. After
// any other error (no space, a failing disk) there is no receipt, and the entry
// may or may not be in the journal: reading the board again settles it, as a
// repeat or as a first record.
//
// Many may call Append at once: those that come while another's entry is being
// synced share the next sync. The context is looked at before the write, not
// during it.
func (s *Spool) Append(ctx context.Context, r Reading) (board.Receipt, error) {
	q := &request{ctx: ctx, reading: r, turn: make(chan bool, 1), signed: make(chan error, 1)}
	if r.Record == nil {
		if !journal.ReasonPattern(r.Reason) {
			return board.Receipt{}, fmt.Errorf("appending a verdict: %w: the reason %.60q is not lower-case words with dashes", journal.ErrEntry, r.Reason)
		}
		q.signed <- nil
		return s.append(q)
	}
	sealed, err := board.Seal(*r.Record, s.cfg.Identity.Signer)
	if err != nil {
		return board.Receipt{}, fmt.Errorf("appending a record: %w", err)
	}
	q.sealed, q.key = sealed, r.Record.Fingerprint()
	// The signature is verified while the disk writes the envelope: what is
	// read back is compared with it.
	go func() { q.signed <- sealed.Verify(s.cfg.Identity.Verifier) }()
	return s.append(q)
}

// append has a request written with its group, and checks what was read back.
func (s *Spool) append(q *request) (board.Receipt, error) {
	s.groupMu.Lock()
	s.waiting = append(s.waiting, q)
	lead := !s.leading
	s.leading = true
	s.groupMu.Unlock()
	if lead || <-q.turn {
		s.lead()
	}
	signed := <-q.signed
	if q.read != nil {
		if err := q.check(signed); err != nil {
			q.err = fmt.Errorf("reading entry %d back: %w", q.entry.Seq, err)
			s.mu.Lock()
			s.broken = q.err
			s.unlock()
		}
	}
	switch {
	case q.err != nil && q.conflict != nil:
		return board.Receipt{}, fmt.Errorf("%w (and the refusal could not be journaled: %w)", q.conflict, q.err)
	case q.err != nil:
		return board.Receipt{}, fmt.Errorf("appending a verdict: %w", q.err)
	case q.conflict != nil:
		return board.Receipt{Entry: q.receipt.Entry, At: q.receipt.At, Resumed: q.receipt.Resumed}, q.conflict
	}
	return q.receipt, nil
}

// check compares what was read back from the disk with what should be there: of
// a record the envelope, whose signature was looked at.
func (q *request) check(signed error) error {
	data, seq, err := journal.ReadLine(q.read)
	if err != nil {
		return err
	}
	if seq != q.entry.Seq || !bytes.Equal(data, q.data) {
		return errors.New("another entry is there")
	}
	if q.entry.Record() == nil {
		return nil
	}
	envelope, err := journal.EnvelopeOf(data)
	if err != nil {
		return err
	}
	if !bytes.Equal(envelope, q.sealed.Envelope()) {
		return errors.New("another record is there")
	}
	return signed
}

// lead writes the requests that wait, its own first, and hands over to the
// first of those that came meanwhile.
func (s *Spool) lead() {
	s.mu.Lock()
	s.groupMu.Lock()
	n := min(len(s.waiting), journal.MaxGroup)
	group := s.waiting[:n:n]
	s.waiting = s.waiting[n:]
	s.groupMu.Unlock()
	if err := s.commit(group); err != nil {
		for _, q := range group {
			q.read = nil
			if q.err == nil {
				q.err = err
			}
		}
	}
	s.unlock()
	s.groupMu.Lock()
	if len(s.waiting) > 0 {
		s.waiting[0].turn <- true
	} else {
		s.leading = false
	}
	s.groupMu.Unlock()
	for _, q := range group[1:] {
		q.turn <- false
	}
}

// commit brings a group into the journal and the index, with one sync of each,
// and reads it back. An error is that of all of them.
func (s *Spool) commit(group []*request) error {
	if err := s.usable(); err != nil {
		return err
	}
	if s.end.Offset >= s.cfg.SegmentSize {
		if err := s.rotate(); err != nil {
			return err
		}
	}
	at := s.clock.now(s.cfg.Notify)
	if err := s.decide(group, at); err != nil {
		return fmt.Errorf("looking a device up: %w", err)
	}
	var written []*request
	var entries [][]byte
	for _, q := range group {
		if q.err != nil || q.silent {
			continue
		}
		if q.data, q.err = q.entry.Encode(); q.err != nil {
			return q.err // the seqs behind it would not fit
		}
		written, entries = append(written, q), append(entries, q.data)
	}
	if len(written) == 0 {
		return nil
	}
	from := s.end
	lines, lengths, err := s.write(entries)
	if err != nil {
		return err
	}
	var change counted
	if err := s.update(func(tx *bolt.Tx) error {
		change = counted{}
		var p progress
		if err := p.decode(tableOf(tx, bucketMeta).Get(keyNext)); err != nil {
			return err
		}
		if first := written[0].entry.Seq; p.Next != first {
			return fmt.Errorf("the index is at entry %d, the journal at %d", p.Next, first)
		}
		place := from
		for i, q := range written {
			e := journal.SummaryOf(&q.entry, place)
			if q.entry.Record() != nil {
				e.MAC = journal.ParseMAC(q.sealed.Record().Facts["mac"])
			}
			if err := putEntry(tx, &e, &change); err != nil {
				return err
			}
			place.Offset += int64(lengths[i])
		}
		fresh := s.leaves[len(s.leaves)-len(written):]
		return errors.Join(change.put(tx), putLeaves(tx, p.Next, fresh, false), putProgress(tx, progress{s.next, fresh[len(fresh)-1]}))
	}); err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	s.pending += change.pending
	s.dead += change.dead
	if change.pending > 0 {
		s.wakeUp()
	}
	back := make([]byte, len(lines))
	if n, err := s.file.ReadAt(back, from.Offset); n < len(back) {
		s.broken = fmt.Errorf("reading the journal back: %w", err)
		return s.broken
	}
	if !bytes.Equal(back, lines) {
		s.broken = errors.New("reading the journal back: something else is there")
		return s.broken
	}
	for i, q := range written {
		q.read, back = back[:lengths[i]], back[lengths[i]:]
	}
	return nil
}

// wakeUp wakes Run.
func (s *Spool) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// decide makes an entry of each request. Those of one group know of each other.
func (s *Spool) decide(group []*request, at time.Time) error {
	devices, keys := map[board.DeviceID]pointer{}, map[board.Fingerprint]board.DeviceID{}
	seq := s.next
	return s.view(func(tx *bolt.Tx) error {
		for _, q := range group {
			if q.ctx.Err() != nil {
				q.err = context.Cause(q.ctx)
				continue
			}
			if q.entry.Kind == journal.KindRejection {
				q.entry.Seq, q.entry.Time = seq, at
				seq++
				continue
			}
			v := q.reading.verdict()
			q.entry = journal.Entry{Seq: seq, Time: at, Kind: journal.KindVerdict, Verdict: v}
			if q.reading.Record == nil {
				q.receipt = board.Receipt{Entry: seq, Time: at, At: at}
				if !v.Device.Valid() && s.noisy(v.Slot) {
					q.silent, q.receipt = true, board.Receipt{LeftOut: true}
					continue
				}
			} else if err := s.decideRecord(tx, q, devices, keys); err != nil {
				return err
			}
			if q.reading.Resumed {
				same, err := s.resumed(tx, q)
				if err != nil {
					return err
				}
				if q.silent = same; same {
					continue
				}
			}
			if q.entry.Record() != nil {
				device := v.Device
				devices[device] = pointer{Key: q.key, Seq: seq, At: at.UnixMilli()}
				keys[q.key] = device
			}
			n := s.noise[v.Slot]
			v.LeftOut, n.leftOut = n.leftOut, 0
			if !v.Device.Valid() {
				n.last = time.Now()
			}
			s.noise[v.Slot] = n
			seq++
		}
		return nil
	})
}

// noisy counts a verdict that is left out.
func (s *Spool) noisy(slot string) bool {
	n := s.noise[slot]
	if n.last.IsZero() || time.Since(n.last) >= noiseInterval {
		return false
	}
	n.leftOut++
	s.noise[slot] = n
	return true
}

// decideRecord decides between a first record, a repeat and a conflict.
func (s *Spool) decideRecord(tx *bolt.Tx, q *request, devices map[board.DeviceID]pointer, keys map[board.Fingerprint]board.DeviceID) error {
	v, device := q.entry.Verdict, q.sealed.Record().Device
	v.Device, v.Fingerprint = device, q.key
	known, haveDevice, owner, haveKey, err := lookup(tx, device, q.key)
	if err != nil {
		return err
	}
	if p, ok := devices[device]; ok {
		known, haveDevice = p, true
	}
	if o, ok := keys[q.key]; ok {
		owner, haveKey = o, true
	}
	refuse := func(reason string, c *board.Conflict) {
		c.Device, c.Key, c.KnownBy = device, q.key, s.origin
		q.conflict, q.receipt = c, board.Receipt{Entry: q.entry.Seq, At: q.entry.Time}
		v.Result, v.Reason, v.Known = journal.Failed, reason, knownOf(c)
	}
	switch {
	case haveDevice && known.Key != q.key:
		refuse(journal.ReasonDeviceConflict, &board.Conflict{Kind: board.ErrDeviceConflict, KnownDevice: device, KnownKey: known.Key})
	case haveKey && owner != device:
		refuse(journal.ReasonKeyConflict, &board.Conflict{Kind: board.ErrKeyConflict, KnownDevice: owner, KnownKey: q.key})
	case haveDevice && !journal.Covers(s.damage, known.Seq):
		v.Result, v.Of = journal.Repeated, &known.Seq
		q.receipt = board.Receipt{Seq: known.Seq, Time: time.UnixMilli(known.At).UTC(), Repeat: true, Entry: q.entry.Seq, At: q.entry.Time}
	default:
		v.Result, v.Record = journal.Passed, q.sealed.Envelope()
		q.receipt = board.Receipt{Seq: q.entry.Seq, Time: q.entry.Time, Entry: q.entry.Seq, At: q.entry.Time}
	}
	return nil
}

// resumed tells whether the last verdict of the slot says the same of the same
// board. The receipt then names that verdict.
func (s *Spool) resumed(tx *bolt.Tx, q *request) (bool, error) {
	v := q.entry.Verdict
	last := tableOf(tx, bucketSlots).Get([]byte(v.Slot))
	if last == nil {
		return false, nil
	}
	seq, err := decodeSeq(last)
	if err != nil {
		return false, err
	}
	var before entryRow
	if err := before.decode(tableOf(tx, bucketEntries).Get(last)); err != nil {
		return false, err
	}
	passes := func(r journal.Result) bool { return r == journal.Passed || r == journal.Repeated }
	if before.device != v.Device || before.reason != v.Reason || passes(before.result) != passes(v.Result) || v.Result == journal.Passed {
		return false, nil
	}
	q.receipt.Entry, q.receipt.At, q.receipt.Resumed = seq, time.UnixMilli(before.time).UTC(), true
	return true, nil
}

// verdict is the entry's body as far as the reading alone decides it.
func (r *Reading) verdict() *journal.Verdict {
	v := &journal.Verdict{
		Slot: plainText(r.Slot), After: r.After, WorkOrder: plainText(r.WorkOrder), Label: plainText(r.Label),
		Operator: plainText(r.Operator), Transcript: plainText(r.Transcript), ReadMS: max(0, r.Took.Milliseconds()),
	}
	if r.Record == nil {
		v.Result, v.Reason, v.Known = journal.Failed, r.Reason, r.Known
		if r.Device.Valid() {
			v.Device, v.Fingerprint = r.Device, r.Fingerprint
		}
	}
	return v
}

// plainText makes of a text what an entry takes.
func plainText(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	for len(s) > journal.MaxText {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// write appends entries and syncs them, once. If it fails, the journal is as
// before, or the spool is broken.
func (s *Spool) write(entries [][]byte) (lines []byte, lengths []int, err error) {
	var hashes []tlog.Hash
	for _, data := range entries {
		line := journal.EncodeLine(data)
		lines, lengths, hashes = append(lines, line...), append(lengths, len(line)), append(hashes, tlog.RecordHash(data))
	}
	at := s.end.Offset
	if n, err := s.file.WriteAt(lines, at); err != nil || n != len(lines) {
		err = fmt.Errorf("writing the journal: %w", durable.ShortWrite(err, n, len(lines)))
		// It need not be synced: were it back after a power failure, it would
		// be a write that was cut short.
		if undo := s.file.Truncate(at); undo != nil {
			s.broken = err
			return nil, nil, errors.Join(err, fmt.Errorf("taking it back: %w", undo))
		}
		return nil, nil, err
	}
	if err := s.file.Sync(); err != nil {
		// The kernel may have dropped the pages and still show them: what is on
		// disk, only a new look can tell.
		s.broken = fmt.Errorf("syncing the journal: %w", err)
		return nil, nil, s.broken
	}
	s.end.Offset += int64(len(lines))
	s.next += uint64(len(entries))
	for _, h := range hashes {
		s.tree.Add(h)
	}
	s.leaves = append(s.leaves, hashes...)
	return lines, lengths, nil
}

// readEntry reads an entry from the file. The caller holds mu.
func (s *Spool) readEntry(at journal.Position) (journal.Entry, error) {
	f := s.file
	if at.Segment != s.end.Segment {
		other, err := s.cfg.disk.Open(journal.SegmentPath(s.cfg.Dir, at.Segment), os.O_RDONLY, 0)
		if err != nil {
			return journal.Entry{}, err
		}
		defer other.Close()
		f = other
	}
	buf := make([]byte, journal.MaxEntryLine)
	n, err := f.ReadAt(buf, at.Offset)
	end := bytes.IndexByte(buf[:n], '\n')
	if end < 0 {
		return journal.Entry{}, fmt.Errorf("reading the journal at %d: no whole line (%v)", at.Offset, err)
	}
	data, _, err := journal.ReadLine(buf[:end+1])
	if err != nil {
		return journal.Entry{}, err
	}
	return journal.ParseEntry(data)
}
