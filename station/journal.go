package station

import (
	"context"
	"fmt"
	"strings"
	"time"

	"secretfree/station/board"
)

// resumeWindow is how long after the start a board may be one that was in its
// slot before the start.
const resumeWindow = 15 * time.Second

// resumePort is how long after the start a port is opened that was there
// before.
const resumePort = 3 * time.Second

// run is what a slot's goroutine knows of the insertion at hand.
type run struct {
	after      *uint64 // the entry of its last verdict; nil if there is none yet
	transcript string  // the name of its last verdict's dialogue
	judged     bool    // the slot has had a verdict since the start
}

// turnedFrom tells whether a state shows another verdict than the one before
// it.
func (s slotState) turnedFrom(before slotState) bool {
	return s.state != before.state || s.reason != before.reason || !s.since.Equal(before.since)
}

// journalFailure has a failure journaled before it is shown. The caller holds
// mu, which is released while the disk is waited for: only the slot's own
// goroutine brings it a verdict. What the journal itself cannot take is shown
// all the same.
func (s *Station) journalFailure(i int, e *event) {
	before := s.states[i]
	after := before.next(*e)
	if e.kind == boardPassed || after == before || after.state != Failed || !after.turnedFrom(before) {
		return
	}
	if before.state == Empty || before.searching || before.gone {
		s.labels.take(i) // it failed before it was found
	}
	if e.journaled || e.unjournaled {
		return
	}
	o := s.outcome(i, before)
	o.Reason, o.Device = after.reason, after.device
	if e.kind == boardGone || e.kind == portLost {
		o.Resumed = false // it went just now, not before the start
	}
	s.mu.Unlock()
	var receipt board.Receipt
	var err error
	s.trackDiskWait(i, func() { receipt, err = s.journal.Append(context.Background(), o) })
	if err == nil {
		s.appended("")
		s.journaled(i, receipt, e)
	} else {
		s.appended(diskReason(err))
		s.log.Error().Str("slot", o.Slot).Str("reason", string(o.Reason)).Err(err).Msg("the verdict could not be journaled")
		e.unjournaled = true
	}
	s.mu.Lock()
}

// outcome is what the journal is told of slot i besides the verdict. The caller
// holds mu.
func (s *Station) outcome(i int, state slotState) Outcome {
	now := time.Now()
	o := Outcome{
		Slot: s.slots[i].Name, Lot: s.lot.Name, After: s.runs[i].after,
		Resumed: !s.runs[i].judged && now.Sub(s.began) < resumeWindow,
	}
	if state.state == Reading {
		o.Took = now.Sub(state.since)
	}
	if l := s.labels.taken[i]; l != nil {
		o.Label = l.text
	}
	if s.transcript != nil {
		o.Transcript = fmt.Sprintf("%s-%s.uart", now.UTC().Format(transcriptTime), fileName(o.Slot))
	}
	s.runs[i].transcript = o.Transcript
	return o
}

const transcriptTime = "20060102T150405.000000000Z"

// fileName makes a slot's name fit for a file name.
func fileName(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return '_'
	}, s)
}

// journaled takes note of a receipt, and reads the newest verdicts again.
func (s *Station) journaled(i int, r board.Receipt, e *event) {
	var recent []Verdict
	var err error
	if s.history != nil && !r.LeftOut && !r.Resumed {
		s.trackDiskWait(i, func() { recent, err = s.history.Recent(context.Background(), maxRecent) })
		if err != nil {
			s.log.Error().Err(err).Msg("the last verdicts cannot be read")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs[i].judged = true
	e.journaled, e.old, e.verdictAt = true, r.LeftOut || r.Resumed, r.At
	if !r.LeftOut {
		entry := r.Entry
		s.runs[i].after = &entry
	}
	// Another slot may have read them later.
	if len(recent) > 0 && (len(s.recent) == 0 || recent[0].Entry > s.recent[0].Entry) {
		s.recent = recent
	}
}

// recall takes from the journal what was shown before the start.
func (s *Station) recall() error {
	s.began = time.Now()
	if s.history == nil {
		return nil
	}
	ctx := context.Background()
	var err error
	if s.recent, err = s.history.Recent(ctx, maxRecent); err != nil {
		return fmt.Errorf("reading the last verdicts: %w", err)
	}
	counts, err := s.history.Count(ctx)
	if err != nil {
		return fmt.Errorf("counting the verdicts: %w", err)
	}
	s.stats.Passed, s.stats.Repeated = counts.Passed+counts.Repeated, counts.Repeated
	for reason, n := range counts.Failed {
		s.stats.Failed[reason] = n
	}
	s.lot = s.lot.on(s.began)
	if s.lot.Name == "" {
		s.lot.Since = s.lot.begin().UTC() // the journal has the whole day
	}
	s.lot, err = s.counted(s.lot)
	return err
}

// counted is a lot with the count that the journal has of it.
func (s *Station) counted(l Lot) (Lot, error) {
	if s.history == nil {
		return l, nil
	}
	l.Passed, l.Repeated, l.Failed = 0, 0, 0
	counts, err := s.history.CountLot(context.Background(), l.Name, l.begin())
	if err != nil {
		return l, fmt.Errorf("counting the lot: %w", err)
	}
	l.Passed, l.Repeated = int(counts.Passed), int(counts.Repeated)
	for _, n := range counts.Failed {
		l.Failed += int(n)
	}
	return l, nil
}
