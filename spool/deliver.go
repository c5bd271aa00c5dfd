package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// Sink is a registry, as the spool sees it.
type Sink interface {
	// Put returns nil when the registry has confirmed the record, for the first
	// time or again: it is idempotent. A *board.Conflict, board.ErrRecord,
	// board.ErrEnvelope and board.ErrUntrusted are verdicts that no later try
	// can change. Every other error means: not now. One call at a time.
	Put(ctx context.Context, s board.Sealed) error
}

// BatchSink is a Sink that takes many records at once.
type BatchSink interface {
	Sink
	// PutBatch is Put for up to 64 records, in the order in which they were
	// read: it returns an error for each, nil where the registry has confirmed
	// it. Put and PutBatch are not called at once.
	PutBatch(ctx context.Context, records []board.Sealed) []error
}

const (
	putLimit        = time.Minute // one Put, or one PutBatch
	backoffFirst    = time.Second
	backoffMax      = time.Minute
	outageAfter     = 3  // failures in a row, after which some other record tells whether the registry itself is away
	passRecords     = 64 // between two commits of the index
	fruitlessPasses = 3  // in a row, that the registry answered and nothing came of it: then the next ones wait
	checkpointEvery = time.Minute
)

type deliveryStats struct {
	delivered   uint64
	settled     uint64 // answers of the registry that left the queue, refusals included
	lastError   string
	lastTry     time.Time
	lastSuccess time.Time
}

// Damage lists the places of the journal that are quarantined.
func (s *Spool) Damage() []journal.Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.damage)
}

// Run delivers what is queued, offers what is sealed to the archive, and signs
// checkpoints, until the context ends; then it signs a last one, and has it
// accepted if that takes no longer than a few seconds. A registry
// that is away is tried again for ever, ever more slowly up to once a minute.
// It returns nil when the context ended it. It runs once.
func (s *Spool) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	beside.Go(func() { s.runDisk(ctx) })
	beside.Go(func() { s.runScrub(ctx) })
	if s.cfg.Archive != nil {
		beside.Go(func() { s.runArchive(ctx) })
	}
	s.runDelivery(ctx)
	beside.Wait()
	if err := s.Checkpoint(); err != nil {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastAcceptLimit)
	defer cancel()
	// An error is not one of this Run: the next start has it accepted.
	s.moveAccepted(last)
	return nil
}

func (s *Spool) runDelivery(ctx context.Context) {
	var backoff time.Duration
	again := time.NewTimer(0)
	defer again.Stop()
	seal := time.NewTicker(checkpointEvery)
	defer seal.Stop()
	wake := (<-chan struct{})(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-seal.C:
			if err := s.Checkpoint(); err != nil {
				s.cfg.Notify(err.Error())
			}
			continue
		case <-again.C:
		case <-wake:
		}
		wake = s.wake
		wait := time.Duration(0)
		switch next := s.pass(ctx); {
		case next.away:
			if next.progress {
				backoff = 0
			}
			backoff = min(max(backoffFirst, 2*backoff), backoffMax)
			wait = backoff/2 + rand.N(backoff/2)
			wake = nil // a new record is no reason to hammer a registry that is away
		case next.more:
			backoff = 0
		default:
			backoff = 0
			wait = next.wait
		}
		again.Reset(wait)
	}
}

// outcome is what became of one record in a pass.
type outcome struct {
	seq  uint64
	at   queued
	dev  board.DeviceID
	key  board.Fingerprint
	dead error
}

// passed says what is to be done after a pass.
type passed struct {
	away     bool          // the registry, or the disk: wait before anything is tried
	progress bool          // something was settled
	more     bool          // there is more to try at once
	wait     time.Duration // until something that failed is due again
}

// pass tries a batch of the queue, the oldest first. What fails is due again
// later, by itself, so that it does not keep the others waiting: only if others
// fail too is it the registry that is away, and then nothing is held against
// the records, so that they still go out in order when it is back.
func (s *Spool) pass(ctx context.Context) passed {
	batch, wait, err := s.batch()
	if err != nil {
		s.failure(err)
		return passed{away: true}
	}
	if len(batch) == 0 {
		if wait == 0 {
			s.failure(nil)
			wait = noDeadline
		}
		return passed{wait: wait}
	}
	s.put(ctx, batch)
	if ctx.Err() != nil {
		s.settle(batch)
		return passed{wait: noDeadline}
	}
	good, failed := 0, 0 // of those that the registry was asked for
	for _, it := range batch {
		switch {
		case !it.tried:
		case it.err == nil || it.dead != nil:
			good++
		default:
			if !it.local {
				failed++
				s.failing[it.seq] = true
			}
			s.failure(fmt.Errorf("record %d, device %s: %w", it.seq, it.dev, it.err))
		}
	}
	if good > 0 {
		clear(s.failing)
	}
	away := good == 0 && failed > 0 && len(s.failing) >= outageAfter
	s.scheduleRetry(batch, away)
	before := s.settledSoFar()
	if err := s.settle(batch); err != nil {
		s.failure(err)
		return passed{away: true}
	}
	// The registry is not asked again and again for what it has answered.
	if s.fruitless++; good == 0 || s.settledSoFar() > before {
		s.fruitless = 0
	}
	if s.fruitless >= fruitlessPasses {
		if s.fruitless == fruitlessPasses {
			// bbolt does not find what its cursor shows: a page between them is
			// damaged, on which there is no checksum. Once; if a new index does
			// the same, it is not the index.
			s.distrust(fmt.Errorf("%d records were confirmed %d times, and do not leave the queue", good, s.fruitless))
		}
		s.failure(fmt.Errorf("%d records were confirmed %d times, and do not leave the queue; if restarting stationd does not help, move index.bbolt away while it is stopped", good, s.fruitless))
		return passed{away: true}
	}
	return passed{away: away, progress: good > 0, more: true}
}

// settledSoFar counts the answers of the registry that are in the index.
func (s *Spool) settledSoFar() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats.settled
}

// noDeadline is as good as for ever to a timer.
const noDeadline = 1000 * time.Hour

// put delivers a batch, all at once or one after the other.
func (s *Spool) put(ctx context.Context, batch []*item) {
	sink, many := s.cfg.Sink.(BatchSink)
	if !many {
		s.putEach(ctx, batch)
		return
	}
	var records []board.Sealed
	var items []*item
	for _, it := range batch {
		if it.tried = true; !it.local {
			records, items = append(records, it.sealed), append(items, it)
		}
	}
	if len(records) == 0 {
		return
	}
	s.sinkMu.Lock()
	defer s.sinkMu.Unlock()
	s.trying()
	bounded, cancel := context.WithTimeout(ctx, putLimit)
	defer cancel()
	errs := sink.PutBatch(bounded, records)
	for i, it := range items {
		if len(errs) != len(items) {
			it.err = fmt.Errorf("the registry answered for %d of %d records", len(errs), len(items))
			continue
		}
		it.setResult(errs[i])
	}
}

// putEach stops when a row of failures, and then the newest record and any
// other, say that the registry is away.
func (s *Spool) putEach(ctx context.Context, batch []*item) {
	row, good := 0, false
	rest := slices.Clone(batch)
	for len(rest) > 0 && row < outageAfter+2 && ctx.Err() == nil {
		i := 0
		if !good && row == outageAfter {
			i = len(rest) - 1
		} else if !good && row > outageAfter {
			i = rand.N(len(rest))
		}
		it := rest[i]
		rest = slices.Delete(rest, i, i+1)
		if it.tried = true; it.local {
			continue
		}
		s.sinkMu.Lock()
		s.trying()
		bounded, cancel := context.WithTimeout(ctx, putLimit)
		it.setResult(s.cfg.Sink.Put(bounded, it.sealed))
		cancel()
		s.sinkMu.Unlock()
		if it.err == nil || it.dead != nil {
			row, good = 0, true
		} else {
			row++
		}
	}
}

// setResult takes an answer of the registry.
func (it *item) setResult(err error) {
	if it.err = err; permanent(err) {
		it.dead = err
	}
}

func (s *Spool) trying() {
	s.mu.Lock()
	defer s.unlock()
	s.stats.lastTry = time.Now()
}

// retry is a record that failed, and when it is due again.
type retry struct {
	device board.DeviceID
	at     time.Time
	delay  time.Duration
	why    string
}

// scheduleRetry holds back what failed; if the registry is away, nothing.
func (s *Spool) scheduleRetry(batch []*item, away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if away {
		clear(s.retries)
		return
	}
	for _, it := range batch {
		if !it.tried || it.err == nil || it.dead != nil {
			continue
		}
		delay := min(max(backoffFirst, 2*s.retries[it.seq].delay), backoffMax)
		s.retries[it.seq] = retry{it.dev, time.Now().Add(delay/2 + rand.N(delay/2)), delay, it.err.Error()}
	}
}

// Deferred is a record that could not be delivered and is tried again later.
type Deferred struct {
	Seq    uint64
	Device board.DeviceID
	Next   time.Time // when it is due again
	Reason string
}

// Deferred lists what is tried again later by itself, the oldest first. While
// the registry is away it is not the records that are held back, and Stats says
// why.
func (s *Spool) Deferred() []Deferred {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Deferred
	for seq, r := range s.retries {
		out = append(out, Deferred{seq, r.device, r.at, r.why})
	}
	slices.SortFunc(out, func(a, b Deferred) int { return cmp.Compare(a.Seq, b.Seq) })
	return out
}

func permanent(err error) bool {
	var conflict *board.Conflict
	return errors.As(err, &conflict) || errors.Is(err, board.ErrRecord) || errors.Is(err, board.ErrEnvelope) || errors.Is(err, board.ErrUntrusted)
}

type item struct {
	outcome
	sealed board.Sealed
	local  bool // it could not be read: err says so
	tried  bool
	err    error
}

// batch reads the oldest records of the queue that are due; if there are none,
// after how long one is, or 0 if none waits.
func (s *Spool) batch() (items []*item, wait time.Duration, err error) {
	s.mu.Lock()
	defer s.unlock()
	for range 2 {
		if err := s.usable(); err != nil {
			return nil, 0, err
		}
		if items, wait, err = s.readQueue(); err != nil || s.broken == nil {
			return items, wait, err
		}
	}
	return items, wait, nil
}

func (s *Spool) readQueue() (items []*item, wait time.Duration, err error) {
	now := time.Now()
	err = s.view(func(tx *bolt.Tx) error {
		c := tableOf(tx, bucketQueue).Cursor()
		for key, value := c.First(); key != nil && len(items) < passRecords; key, value = c.Next() {
			it := &item{}
			var err error
			if it.seq, err = decodeSeq(key); err == nil {
				err = it.at.decode(value)
			}
			if err != nil {
				return err
			}
			if r, ok := s.retries[it.seq]; ok && r.at.After(now) {
				if due := r.at.Sub(now); wait == 0 || due < wait {
					wait = due
				}
				continue
			}
			items = append(items, it)
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading the queue: %w", err)
	}
	for _, it := range items {
		if it.sealed, err = s.readRecord(it.seq, journal.Position{Segment: it.at.Segment, Offset: it.at.Offset}); err != nil {
			// The record was good when its receipt was given. What became of
			// it, a new look at its segment tells, which quarantines what is
			// damaged and takes it from the queue.
			s.suspect(it.at.Segment, err)
			it.local, it.err = true, fmt.Errorf("reading entry %d back from the journal: %v", it.seq, err)
			continue
		}
		it.dev, it.key = it.sealed.Record().Device, it.sealed.Record().Fingerprint()
	}
	return items, wait, nil
}

// readRecord reads a record from the journal. The caller holds mu.
func (s *Spool) readRecord(seq uint64, at journal.Position) (board.Sealed, error) {
	e, err := s.readEntry(at)
	if err != nil {
		return board.Sealed{}, err
	}
	if e.Seq != seq || e.Record() == nil {
		return board.Sealed{}, fmt.Errorf("%w: another entry is there", journal.ErrEntry)
	}
	return board.ParseEnvelope(e.Record())
}

// suspect has a segment read anew by the next who needs the files. The caller
// holds mu.
func (s *Spool) suspect(segment uint64, why error) {
	if s.broken != nil {
		return
	}
	if err := s.update(func(tx *bolt.Tx) error { return tableOf(tx, bucketSegments).Delete(encodeSeq(segment)) }); err != nil {
		why = errors.Join(why, err)
	}
	s.broken = fmt.Errorf("reading the journal: %w", why)
}

// failure says why delivery does not go on; nil that it does.
func (s *Spool) failure(err error) {
	s.mu.Lock()
	defer s.unlock()
	s.stats.lastError = ""
	if err != nil {
		s.stats.lastError = err.Error()
	}
}

// settle takes records from the queue: those that were confirmed, and those
// that are dead.
func (s *Spool) settle(batch []*item) error {
	s.mu.Lock()
	defer s.unlock()
	return s.settleLocked(batch)
}

func (s *Spool) settleLocked(batch []*item) error {
	var settled []*item
	for _, it := range batch {
		if it.tried && (it.err == nil || it.dead != nil) {
			settled = append(settled, it)
		}
	}
	if len(settled) == 0 || s.closed || s.broken != nil {
		return nil // they are delivered again later
	}
	refused, err := s.journalAnswers(settled)
	if err != nil {
		return err
	}
	confirmed := 0
	err = s.update(func(tx *bolt.Tx) error {
		confirmed = 0
		queue, devices := tableOf(tx, bucketQueue), tableOf(tx, bucketDevices)
		for _, it := range settled {
			key := encodeSeq(it.seq)
			if it.dead != nil || queue.Get(key) == nil {
				continue // its rejection took it from the queue; or it was quarantined meanwhile
			}
			if err := queue.Delete(key); err != nil {
				return err
			}
			confirmed++
			data := devices.Get(it.dev[:])
			var known pointer
			if data == nil || known.decode(data) != nil || known.Seq != it.seq {
				continue // the device has a newer record
			}
			known.Delivered = 1
			if err := devices.Put(it.dev[:], known.encode()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.broken = fmt.Errorf("writing the index: %w", err)
		return s.broken
	}
	for _, it := range settled {
		delete(s.retries, it.seq)
	}
	s.pending -= confirmed
	s.stats.delivered += uint64(confirmed)
	s.stats.settled += uint64(confirmed + refused)
	s.stats.lastSuccess = time.Now()
	if len(s.retries) == 0 && len(settled) == len(batch) {
		s.stats.lastError = ""
	}
	return nil
}

// journalAnswers writes the registry's final refusals into the journal, and
// that it took a record which it had refused before, and returns how many it
// wrote. The caller holds mu.
func (s *Spool) journalAnswers(settled []*item) (int, error) {
	var answers []*request
	if err := s.view(func(tx *bolt.Tx) error {
		answers = nil
		rejected, queue := tableOf(tx, bucketRejected), tableOf(tx, bucketQueue)
		for _, it := range settled {
			key := encodeSeq(it.seq)
			r := &journal.Rejection{Of: it.seq, Device: it.dev, Fingerprint: it.key, Reason: journal.Resolved}
			switch {
			case queue.Get(key) == nil:
				continue // it was quarantined meanwhile
			case it.dead != nil:
				r = it.rejection()
			case rejected.Get(key) == nil:
				continue
			}
			answers = append(answers, &request{ctx: context.Background(), entry: journal.Entry{Kind: journal.KindRejection, Rejection: r}})
		}
		return nil
	}); err != nil {
		return 0, fmt.Errorf("reading the queue: %w", err)
	}
	for group := range slices.Chunk(answers, journal.MaxGroup) {
		if err := s.commit(group); err != nil {
			return 0, fmt.Errorf("journaling what the registry answered: %w", err)
		}
		for _, q := range group {
			if q.err != nil {
				return 0, fmt.Errorf("journaling what the registry answered: %w", q.err)
			}
		}
	}
	return len(answers), nil
}
