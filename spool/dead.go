package spool

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// DeadLetter is a record that the registry will never take. It is kept until
// someone acts: Requeue, once what was wrong in the registry is put right.
type DeadLetter struct {
	Seq    uint64         `json:"seq"`
	Device board.DeviceID `json:"device"`
	Time   time.Time      `json:"time"`   // of the verdict
	Cause  string         `json:"cause"`  // as in Rejection: device-conflict, key-conflict, invalid, untrusted
	Reason string         `json:"reason"` // for people
	// Known is what the registry has, if the verdict is a conflict.
	Known *journal.Known `json:"known,omitempty"`
	// Position of the record in the journal when it was refused; the journal
	// stays the evidence.
	Segment uint64 `json:"segment"`
	Offset  int64  `json:"offset"`
}

// ErrNoDeadLetter: no dead letter has this seq.
var ErrNoDeadLetter = errors.New("there is no such dead letter")

func putDead(tx *bolt.Tx, d DeadLetter) error {
	return putJSON(tableOf(tx, bucketDead), encodeSeq(d.Seq), d)
}

// rejection makes an entry of what was refused.
func (it *item) rejection() *journal.Rejection {
	r := rejectionOf(it.dead)
	r.Of, r.Device, r.Fingerprint = it.seq, it.dev, it.key
	return r
}

// rejectionOf says what the registry answered.
func rejectionOf(verdict error) *journal.Rejection {
	r := &journal.Rejection{Reason: journal.ReasonInvalid, Text: strings.ToValidUTF8(verdict.Error(), "?")}
	if len(r.Text) > journal.MaxRejectionText {
		r.Text = strings.ToValidUTF8(r.Text[:journal.MaxRejectionText], "")
	}
	if errors.Is(verdict, board.ErrUntrusted) {
		r.Reason = journal.ReasonUntrusted
	}
	if conflict, ok := errors.AsType[*board.Conflict](verdict); ok {
		r.Reason, r.Known = journal.ReasonDeviceConflict, knownOf(conflict)
		if conflict.Kind == board.ErrKeyConflict {
			r.Reason = journal.ReasonKeyConflict
		}
	}
	return r
}

func knownOf(c *board.Conflict) *journal.Known {
	known := &journal.Known{By: c.KnownBy}
	if c.KnownDevice.Valid() {
		known.Device = c.KnownDevice.String()
	}
	if c.KnownKey != (board.Fingerprint{}) {
		known.Key = c.KnownKey.String()
	}
	return known
}

// DeadLetters lists what the registry will never take.
func (s *Spool) DeadLetters() ([]DeadLetter, error) {
	s.mu.Lock()
	defer s.unlock()
	if s.db == nil {
		return nil, ErrClosed
	}
	var out []DeadLetter
	err := s.view(func(tx *bolt.Tx) (err error) {
		out, err = readDead(tx)
		return err
	})
	return out, err
}

func readDead(tx *bolt.Tx) (out []DeadLetter, err error) {
	err = tableOf(tx, bucketDead).ForEach(func(_, value []byte) error {
		var d DeadLetter
		if err := json.Unmarshal(value, &d); err != nil {
			return fmt.Errorf("reading a dead letter: %w", err)
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

// Requeue has a dead letter delivered once more. If the verdict is the same it
// is a dead letter again.
func (s *Spool) Requeue(seq uint64) error {
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return err
	}
	d, err := s.deadLetter(seq)
	if err != nil {
		return err
	}
	if journal.Covers(s.damage, seq) {
		return fmt.Errorf("requeueing entry %d: it is damaged; repair the journal first", seq)
	}
	e, at, err := s.find(d)
	if err != nil {
		return fmt.Errorf("requeueing entry %d: %w", seq, err)
	}
	if err := s.update(func(tx *bolt.Tx) error {
		q := queued{at.Segment, at.Offset, e.Time.UnixMilli()}
		return errors.Join(tableOf(tx, bucketDead).Delete(encodeSeq(seq)), tableOf(tx, bucketQueue).Put(encodeSeq(seq), q.encode()))
	}); err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	s.pending++
	s.dead--
	s.wakeUp()
	return nil
}

// Evidence is a dead letter with the journal's entry, whose envelope anyone can
// check.
type Evidence struct {
	Letter DeadLetter      `json:"letter"`
	Entry  json.RawMessage `json:"entry"`
}

// Export returns a dead letter with all that there is about it.
func (s *Spool) Export(seq uint64) (Evidence, error) {
	s.mu.Lock()
	defer s.unlock()
	if err := s.usable(); err != nil {
		return Evidence{}, err
	}
	d, err := s.deadLetter(seq)
	if err != nil {
		return Evidence{}, err
	}
	return evidence(s.cfg.Dir, d, s.readEntry)
}

func evidence(dir string, d DeadLetter, read func(journal.Position) (journal.Entry, error)) (Evidence, error) {
	e, _, err := findEntry(dir, d, read)
	if err != nil {
		return Evidence{}, fmt.Errorf("exporting entry %d: %w", d.Seq, err)
	}
	data, err := e.Encode()
	return Evidence{d, data}, err
}

// deadLetter reads one. The caller holds mu.
func (s *Spool) deadLetter(seq uint64) (d DeadLetter, err error) {
	err = s.view(func(tx *bolt.Tx) (err error) {
		d, err = getDead(tx, seq)
		return err
	})
	return d, err
}

func getDead(tx *bolt.Tx, seq uint64) (d DeadLetter, err error) {
	data := tableOf(tx, bucketDead).Get(encodeSeq(seq))
	if data == nil {
		return d, fmt.Errorf("%w: %d", ErrNoDeadLetter, seq)
	}
	return d, json.Unmarshal(data, &d)
}

// find reads the entry of a dead letter. The caller holds mu.
func (s *Spool) find(d DeadLetter) (journal.Entry, journal.Position, error) {
	return findEntry(s.cfg.Dir, d, s.readEntry)
}

// findEntry reads the entry of a dead letter, which may have moved if its file
// was damaged or repaired since.
func findEntry(dir string, d DeadLetter, read func(journal.Position) (journal.Entry, error)) (journal.Entry, journal.Position, error) {
	at := journal.Position{Segment: d.Segment, Offset: d.Offset}
	if e, err := read(at); err == nil && e.Seq == d.Seq {
		return e, at, nil
	}
	segments, err := journal.ListSegments(dir)
	if err != nil {
		return journal.Entry{}, at, err
	}
	found := errors.New("found")
	var entry journal.Entry
	scan := journal.NewScan(dir)
	scan.Next = d.Segment
	scan.Visit = func(place journal.Position, seq uint64, data []byte) (err error) {
		if seq != d.Seq {
			return nil
		}
		if entry, err = journal.ParseEntry(data); err != nil {
			return err
		}
		at = place
		return found
	}
	for len(segments) > 0 && segments[0].First < d.Segment {
		segments = segments[1:]
	}
	if err := scan.Run(segments); err != found {
		return journal.Entry{}, at, errors.Join(fmt.Errorf("%w: entry %d cannot be found", journal.ErrEntry, d.Seq), err)
	}
	return entry, at, nil
}
