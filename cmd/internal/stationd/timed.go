package stationd

import (
	"context"
	"sync"
	"time"

	"secretfree/spool"
	"secretfree/station"
	"secretfree/station/board"
)

// timings measure what the station waits for. Its methods may be called at
// once.
type timings struct {
	mu        sync.Mutex
	appends   station.Durations          // until a record was on disk and read back
	calls     map[bool]station.Durations // of the registry, by whether it confirmed all
	delivered station.Durations          // from the reading of a board until the registry confirmed it
}

// timedJournal hands verdicts to the spool, and measures how long they take to
// the disk.
type timedJournal struct {
	spool *spool.Spool
	times *timings
}

func (j timedJournal) Append(ctx context.Context, o station.Outcome) (board.Receipt, error) {
	began := time.Now()
	receipt, err := j.spool.Append(ctx, spool.Reading{
		Record: o.Record, Reason: string(o.Reason), Device: o.Device, Slot: o.Slot, WorkOrder: o.Lot, Label: o.Label,
		Transcript: o.Transcript, Took: o.Took, After: o.After, Resumed: o.Resumed,
	})
	if err == nil {
		j.times.mu.Lock()
		defer j.times.mu.Unlock()
		j.times.appends.Add(time.Since(began))
	}
	return receipt, err
}

// timedSink measures a registry.
type timedSink struct {
	to    spool.BatchSink
	times *timings
}

func (s timedSink) Put(ctx context.Context, r board.Sealed) error {
	began := time.Now()
	err := s.to.Put(ctx, r)
	s.times.put(began, []time.Time{r.Record().ReadAt}, []error{err})
	return err
}

func (s timedSink) PutBatch(ctx context.Context, records []board.Sealed) []error {
	began := time.Now()
	errs := s.to.PutBatch(ctx, records)
	readAt := make([]time.Time, len(records))
	for i, r := range records {
		readAt[i] = r.Record().ReadAt
	}
	s.times.put(began, readAt, errs)
	return errs
}

func (t *timings) put(began time.Time, readAt []time.Time, errs []error) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	good := true
	for i, err := range errs {
		if err != nil {
			good = false
			continue
		}
		t.delivered.Add(now.Sub(readAt[i]))
	}
	d := t.calls[good]
	d.Add(now.Sub(began))
	if t.calls == nil {
		t.calls = map[bool]station.Durations{}
	}
	t.calls[good] = d
}

// snapshot is a copy for one look.
func (t *timings) snapshot() (appends, good, bad, delivered station.Durations) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.appends.Clone(), t.calls[true].Clone(), t.calls[false].Clone(), t.delivered.Clone()
}
