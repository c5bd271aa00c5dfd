package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/station/board"
)

// request is one call of Append, on its way through a group.
type request struct {
	ctx    context.Context
	sealed board.Sealed
	key    board.Fingerprint
	turn   chan bool  // true: write the next group; false: it is written, see below
	signed chan error // once: what is wrong with the envelope

	entry    Entry
	data     []byte // the entry's JSON
	read     []byte // what was read back of its line
	conflict *board.Conflict
	receipt  board.Receipt
	err      error
}

// Append enrols a board. When it returns a receipt, the record, signed, is in the journal, synced to disk and read back
// from it, and waits in the queue; a power cut at any later moment loses none of it. A board that is enrolled
// already gets the receipt of its first record; only the fact that it was seen again is journaled. If that record is damaged
// since, the board is enrolled as a new one.
//
// A *board.Conflict says that the record contradicts what is known; that refusal is journaled. board.ErrRecord says
// that it is no valid record. After any other error (no space, a failing disk) there is no receipt, and the record
// may or may not be in the journal: reading the board again settles it, as a repeat or as a first record.
//
// It may be called by many at once: those who come while another's record is being synced share the next sync. The context is looked at
// before the write, not during it.
func (s *Spool) Append(ctx context.Context, r board.Record) (board.Receipt, error) {
	if err := r.Check(); err != nil {
		return board.Receipt{}, fmt.Errorf("appending a record: %w", err)
	}
	sealed, err := board.Seal(r, s.cfg.Identity.Signer)
	if err != nil {
		return board.Receipt{}, fmt.Errorf("appending a record: %w", err)
	}
	q := &request{ctx: ctx, sealed: sealed, key: r.Fingerprint(), turn: make(chan bool, 1), signed: make(chan error, 1)}
	// The envelope is opened while the disk writes it: what is read back is compared with it.
	go func() {
		_, err := board.OpenEnvelope(sealed.Envelope, s.cfg.Identity.Verifier)
		q.signed <- err
	}()
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
		return board.Receipt{}, fmt.Errorf("appending a record: %w", q.err)
	case q.conflict != nil:
		return board.Receipt{}, q.conflict
	}
	return q.receipt, nil
}

// check compares what was read back from the disk with what should be there: of a record the envelope, whose signature was looked at.
func (q *request) check(signed error) error {
	data, seq, err := readLine(q.read)
	if err != nil {
		return err
	}
	if seq != q.entry.Seq || !bytes.Equal(data, q.data) {
		return errors.New("another entry is there")
	}
	if q.entry.Kind != KindRecord {
		return nil
	}
	envelope, err := envelopeOf(data)
	if err != nil {
		return err
	}
	if !bytes.Equal(envelope, q.sealed.Envelope) {
		return errors.New("another record is there")
	}
	return signed
}

// lead writes the requests that wait, its own first, and hands over to the first of those that came meanwhile.
func (s *Spool) lead() {
	s.mu.Lock()
	s.groupMu.Lock()
	n := min(len(s.waiting), maxGroup)
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

// commit brings a group into the journal and the index, with one sync of each, and reads it back. An error is that of
// all of them.
func (s *Spool) commit(group []*request) error {
	if err := s.usable(); err != nil {
		return err
	}
	if s.end.offset >= s.cfg.SegmentSize {
		if err := s.rotate(); err != nil {
			return err
		}
	}
	at := s.clock.look(s.cfg.Notify)
	if err := s.decide(group, at); err != nil {
		return fmt.Errorf("looking a device up: %w", err)
	}
	var written []*request
	var entries [][]byte
	for _, q := range group {
		if q.err != nil {
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
	records := 0
	if err := s.update(func(tx *bolt.Tx) error {
		records = 0
		var p progress
		if err := p.decode(tx.Bucket(bucketMeta).Get(keyNext)); err != nil {
			return err
		}
		if first := written[0].entry.Seq; p.Next != first {
			return fmt.Errorf("the index is at entry %d, the journal at %d", p.Next, first)
		}
		place := from
		for i, q := range written {
			if q.entry.Kind == KindRecord {
				records++
				if err := apply(tx, &indexed{q.sealed.Record.Device, q.key, q.entry.Seq, place, at.UnixMilli(), 0, macOf(q.sealed.Record.Facts["mac"])}); err != nil {
					return err
				}
			}
			if t, ok := toldBy(&q.entry, place); ok {
				if err := t.put(tx); err != nil {
					return err
				}
			}
			place.offset += int64(lengths[i])
		}
		fresh := s.leaves[len(s.leaves)-len(written):]
		return errors.Join(putLeaves(tx, p.Next, fresh, false), putProgress(tx, progress{s.next, fresh[len(fresh)-1]}))
	}); err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	s.pending += records
	if records > 0 {
		s.nudge()
	}
	back := make([]byte, len(lines))
	if n, err := s.file.ReadAt(back, from.offset); n < len(back) {
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

// nudge wakes Run.
func (s *Spool) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// decide makes of each request an entry: a record, a repeat or a refusal. Those of one group know of each other.
func (s *Spool) decide(group []*request, at time.Time) error {
	devices, keys := map[board.DeviceID]pointer{}, map[board.Fingerprint]board.DeviceID{}
	seq := s.next
	return s.view(func(tx *bolt.Tx) error {
		for _, q := range group {
			if q.ctx.Err() != nil {
				q.err = context.Cause(q.ctx)
				continue
			}
			device := q.sealed.Record.Device
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
			q.entry = Entry{Seq: seq, Time: at}
			seq++
			refuse := func(reason string, c *board.Conflict) {
				c.Device, c.Key, c.KnownBy = device, q.key, s.origin
				q.conflict = c
				q.entry.Kind, q.entry.Refusal = KindRefusal, &Refusal{Reason: reason, Device: device, Fingerprint: q.key, KnownDevice: c.KnownDevice, KnownKey: c.KnownKey}
			}
			switch {
			case haveDevice && known.Key != q.key:
				refuse(reasonDevice, &board.Conflict{Kind: board.ErrDeviceConflict, KnownDevice: device, KnownKey: known.Key})
			case haveKey && owner != device:
				refuse(reasonKey, &board.Conflict{Kind: board.ErrKeyConflict, KnownDevice: owner, KnownKey: q.key})
			case haveDevice && !covers(s.damage, known.Seq):
				q.entry.Kind, q.entry.Repeat = KindRepeat, &Repeat{Device: device, Fingerprint: q.key, Of: known.Seq}
				q.receipt = board.Receipt{Seq: known.Seq, Time: time.UnixMilli(known.At).UTC(), Repeat: true}
			default:
				q.entry.Kind, q.entry.Record = KindRecord, q.sealed.Envelope
				q.receipt = board.Receipt{Seq: q.entry.Seq, Time: at}
				devices[device] = pointer{Key: q.key, Seq: q.entry.Seq, At: at.UnixMilli()}
				keys[q.key] = device
			}
		}
		return nil
	})
}

// write appends entries and syncs them, once. If it fails, the journal is as before, or the spool is broken.
func (s *Spool) write(entries [][]byte) (lines []byte, lengths []int, err error) {
	var hashes []tlog.Hash
	for _, data := range entries {
		line := encodeLine(data)
		lines, lengths, hashes = append(lines, line...), append(lengths, len(line)), append(hashes, tlog.RecordHash(data))
	}
	at := s.end.offset
	if n, err := s.file.WriteAt(lines, at); err != nil || n != len(lines) {
		err = fmt.Errorf("writing the journal: %w", shortWrite(err, n, len(lines)))
		// It need not be synced: were it back after a power failure, it would be a write that was cut short.
		if undo := s.file.Truncate(at); undo != nil {
			s.broken = err
			return nil, nil, errors.Join(err, fmt.Errorf("taking it back: %w", undo))
		}
		return nil, nil, err
	}
	if err := s.file.Sync(); err != nil {
		// The kernel may have dropped the pages and still show them: what is on disk, only a new look can tell.
		s.broken = fmt.Errorf("syncing the journal: %w", err)
		return nil, nil, s.broken
	}
	s.end.offset += int64(len(lines))
	s.next += uint64(len(entries))
	for _, h := range hashes {
		s.tree.add(h)
	}
	s.leaves = append(s.leaves, hashes...)
	return lines, lengths, nil
}

// readEntry reads an entry from the file. The caller holds mu.
func (s *Spool) readEntry(at position) (Entry, error) {
	f := s.file
	if at.segment != s.end.segment {
		other, err := s.cfg.disk.open(segmentPath(s.cfg.Dir, at.segment), os.O_RDONLY, 0)
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
	data, _, err := readLine(buf[:end+1])
	if err != nil {
		return Entry{}, err
	}
	return ParseEntry(data)
}
