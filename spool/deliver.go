package spool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/station/board"
)

// Sink is a registry, as the spool sees it.
type Sink interface {
	// Put returns nil when the registry has confirmed the record, for the first time or again: it is idempotent. A
	// *board.Conflict, board.ErrRecord, board.ErrEnvelope and board.ErrUntrusted are verdicts that no later try can
	// change. Every other error means: not now. One call at a time.
	Put(ctx context.Context, s board.Sealed) error
}

const (
	putLimit        = time.Minute // one Put
	backoffFirst    = time.Second
	backoffMax      = time.Minute
	outageAfter     = 3  // failures in a row, after which the registry itself is taken to be away
	passRecords     = 64 // between two commits of the index
	checkpointEvery = time.Minute
)

type deliveryStats struct {
	delivered   uint64
	lastError   string
	lastTry     time.Time
	lastSuccess time.Time
}

// Stats is a snapshot.
type Stats struct {
	Entries   uint64 // in the journal
	Pending   int    // records that the registry has not confirmed
	Dead      int    // records that it never will
	Delivered uint64 // since Open
	// Oldest is when the oldest pending record was journaled; zero if none is pending.
	Oldest      time.Time
	LastError   string // why delivery does not go on; empty if it does
	LastTry     time.Time
	LastSuccess time.Time
	Broken      string // why the disk is not trusted; empty if it is
	// Damaged is how many entries of the journal cannot be read; Damage has the places. They are quarantined until Repair.
	Damaged  uint64
	Signed   uint64 // entries under the newest checkpoint
	Unsigned string // why no checkpoint is signed; empty if they are
	Clock    string // what is wrong with the machine's clock; empty if nothing is
}

// Stats returns a snapshot.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Stats{
		Entries: s.next, Pending: s.pending, Dead: s.dead, Delivered: s.stats.delivered,
		LastError: s.stats.lastError, LastTry: s.stats.lastTry, LastSuccess: s.stats.lastSuccess,
		Signed: s.signed, Clock: s.clock.fault,
	}
	for _, d := range s.damage {
		out.Damaged += d.Entries()
	}
	if s.tree.blind {
		out.Unsigned = unprovable
	}
	if s.broken != nil {
		out.Broken = s.broken.Error()
	}
	if s.pending > 0 && s.db != nil {
		s.db.View(func(tx *bolt.Tx) error {
			var q queued
			if _, value := tx.Bucket(bucketQueue).Cursor().First(); value != nil && q.decode(value) == nil {
				out.Oldest = time.UnixMilli(q.At).UTC()
			}
			return nil
		})
	}
	return out
}

// Damage lists the places of the journal that are quarantined.
func (s *Spool) Damage() []Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.damage)
}

// DeadLetters lists what the registry will never take.
func (s *Spool) DeadLetters() ([]DeadLetter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil, ErrClosed
	}
	var out []DeadLetter
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketDead).ForEach(func(_, value []byte) error {
			var d DeadLetter
			if err := json.Unmarshal(value, &d); err != nil {
				return fmt.Errorf("reading a dead letter: %w", err)
			}
			out = append(out, d)
			return nil
		})
	})
	return out, err
}

// Run delivers what is queued and signs checkpoints until the context ends, then signs a last one. A registry that is
// away is tried again for ever, ever more slowly up to once a minute. It returns nil when the context ended it.
func (s *Spool) Run(ctx context.Context) error {
	var after uint64 // the seq after which the next pass begins
	var backoff time.Duration
	again := time.NewTimer(0)
	defer again.Stop()
	seal := time.NewTicker(checkpointEvery)
	defer seal.Stop()
	waiting := true // for again
	for {
		wake := s.wake
		if waiting {
			wake = nil // a new record is no reason to hammer a registry that is away
		}
		select {
		case <-ctx.Done():
			return s.Checkpoint()
		case <-seal.C:
			if err := s.Checkpoint(); err != nil {
				s.cfg.Notify(err.Error())
			}
			continue
		case <-again.C:
			waiting = false
		case <-wake:
		}
		more, failed, progressed := s.pass(ctx, &after)
		switch {
		case failed:
			if progressed {
				backoff = 0
			}
			backoff = min(max(backoffFirst, 2*backoff), backoffMax)
			again.Reset(backoff/2 + rand.N(backoff/2))
			waiting = true
		case more:
			backoff = 0
			again.Reset(0)
			waiting = true
		default:
			backoff = 0
		}
	}
}

// outcome is what became of one record in a pass.
type outcome struct {
	seq  uint64
	at   queued
	dev  board.DeviceID
	dead error
}

// pass tries a batch of the queue in order, from where the last one stopped, so that a record which always fails does
// not keep the others waiting.
func (s *Spool) pass(ctx context.Context, after *uint64) (more, failed, progressed bool) {
	batch, err := s.batch(*after)
	if err == nil && len(batch) == 0 && *after > 0 {
		*after = 0
		batch, err = s.batch(0)
	}
	if err != nil {
		s.failure(err)
		return false, true, false
	}
	if len(batch) == 0 {
		return false, false, false
	}
	var settled []outcome
	row := 0
	for _, q := range batch {
		if ctx.Err() != nil || row >= outageAfter {
			break
		}
		err := s.deliver(ctx, q)
		switch {
		case err == nil:
			row = 0
			settled = append(settled, q.outcome)
		case permanent(err):
			row = 0
			q.dead = err
			settled = append(settled, q.outcome)
		case ctx.Err() != nil:
		default:
			s.failure(fmt.Errorf("record %d, device %s: %w", q.seq, q.dev, err))
			failed = true
			if q.err == nil {
				row++
			}
		}
		*after = q.seq + 1
	}
	if len(settled) > 0 {
		if err := s.settle(settled); err != nil {
			s.failure(err)
			return false, true, false
		}
	}
	if !failed && ctx.Err() == nil {
		s.mu.Lock()
		s.stats.lastError = ""
		s.mu.Unlock()
	}
	return true, failed, len(settled) > 0
}

func permanent(err error) bool {
	var conflict *board.Conflict
	return errors.As(err, &conflict) || errors.Is(err, board.ErrRecord) || errors.Is(err, board.ErrEnvelope) || errors.Is(err, board.ErrUntrusted)
}

type item struct {
	outcome
	sealed board.Sealed
	err    error
}

// batch reads the next records of the queue, from a seq on.
func (s *Spool) batch(after uint64) (items []item, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 2 {
		if err := s.usable(); err != nil {
			return nil, err
		}
		if items, err = s.readQueue(after); err != nil || s.broken == nil {
			return items, err
		}
	}
	return items, nil
}

func (s *Spool) readQueue(after uint64) (items []item, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketQueue).Cursor()
		for key, value := c.Seek(encodeSeq(after)); key != nil && len(items) < passRecords; key, value = c.Next() {
			var it item
			var err error
			if it.seq, err = decodeSeq(key); err == nil {
				err = it.at.decode(value)
			}
			if err != nil {
				return err
			}
			items = append(items, it)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the queue: %w", err)
	}
	for i := range items {
		it := &items[i]
		if it.sealed, err = s.readRecord(it.seq, position{it.at.Segment, it.at.Offset}); err != nil {
			// The record was good when its receipt was given. What became of it, a new look at its segment tells, which
			// quarantines what is damaged and takes it from the queue.
			s.suspect(it.at.Segment, err)
			it.err = fmt.Errorf("reading entry %d back from the journal: %v", it.seq, err)
			continue
		}
		it.dev = it.sealed.Record.Device
	}
	return items, nil
}

// readRecord reads a record from the journal. The caller holds mu.
func (s *Spool) readRecord(seq uint64, at position) (board.Sealed, error) {
	e, err := s.readEntry(at)
	if err != nil {
		return board.Sealed{}, err
	}
	if e.Seq != seq || e.Kind != KindRecord {
		return board.Sealed{}, fmt.Errorf("%w: another entry is there", ErrEntry)
	}
	return board.ParseEnvelope(e.Record)
}

// suspect has a segment read anew by the next who needs the files. The caller holds mu.
func (s *Spool) suspect(segment uint64, why error) {
	if s.broken != nil {
		return
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketSegments).Delete(encodeSeq(segment)) }); err != nil {
		why = errors.Join(why, err)
	}
	s.broken = fmt.Errorf("reading the journal: %w", why)
}

func (s *Spool) deliver(ctx context.Context, it item) error {
	s.mu.Lock()
	s.stats.lastTry = time.Now()
	s.mu.Unlock()
	if it.err != nil {
		return it.err
	}
	ctx, cancel := context.WithTimeout(ctx, putLimit)
	defer cancel()
	return s.cfg.Sink.Put(ctx, it.sealed)
}

func (s *Spool) failure(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.lastError = err.Error()
}

// settle takes records from the queue: those that were confirmed, and those that are dead.
func (s *Spool) settle(settled []outcome) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.broken != nil {
		return nil // they are delivered again later
	}
	dead := 0
	err := s.db.Update(func(tx *bolt.Tx) error {
		dead = 0
		for _, o := range settled {
			if err := tx.Bucket(bucketQueue).Delete(encodeSeq(o.seq)); err != nil {
				return err
			}
			if o.dead != nil {
				dead++
				if err := putDead(tx, DeadLetter{Seq: o.seq, Device: o.dev, Time: milliseconds(time.Now()), Reason: o.dead.Error(), Segment: o.at.Segment, Offset: o.at.Offset}); err != nil {
					return err
				}
				continue
			}
			devices := tx.Bucket(bucketDevices)
			data := devices.Get(o.dev[:])
			var known pointer
			if data == nil || known.decode(data) != nil || known.Seq != o.seq {
				continue // the device has a newer record
			}
			known.Delivered = 1
			if err := devices.Put(o.dev[:], known.encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	s.pending -= len(settled)
	s.dead += dead
	s.stats.delivered += uint64(len(settled) - dead)
	s.stats.lastSuccess = time.Now()
	return nil
}
