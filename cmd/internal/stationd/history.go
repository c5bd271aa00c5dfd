package stationd

import (
	"context"
	"errors"
	"time"

	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station"
	"secretfree/station/board"
)

const maxFound = 50 // boards or verdicts in a list

// history answers what the pages show of the past. The journal is the one
// source.
type history struct {
	spool       *spool.Spool
	transcripts *transcriptStore
}

// verdictOf is what a verdict's entry says; ok is false for any other entry.
func verdictOf(e journal.Entry) (v station.Verdict, ok bool) {
	if e.Verdict == nil {
		return v, false
	}
	v = station.Verdict{
		Time: e.Time, State: station.Passed, Repeat: e.Verdict.Result == journal.Repeated, Device: e.Verdict.Device, Slot: e.Verdict.Slot,
		Entry: e.Seq, After: e.Verdict.After, Lot: e.Verdict.WorkOrder, Transcript: e.Verdict.Transcript,
	}
	if e.Verdict.Result == journal.Failed {
		v.State, v.Reason = station.Failed, station.Reason(e.Verdict.Reason)
		if e.Verdict.Known != nil {
			if other, err := board.ParseDeviceID(e.Verdict.Known.Device); err == nil && other != v.Device {
				v.Other = other
			}
		}
	}
	return v, true
}

// verdict is an item of the journal, with the transcript only if it is kept.
func (h history) verdict(i spool.Item) station.Verdict {
	v, _ := verdictOf(i.Entry)
	v.Delivery = station.Delivery(i.Delivery)
	if !h.transcripts.has(v.Transcript) {
		v.Transcript = ""
	}
	return v
}

// Recent implements station.History.
func (h history) Recent(ctx context.Context, n int) ([]station.Verdict, error) {
	items, err := h.spool.Recent(ctx, n)
	if err != nil {
		return nil, err
	}
	var verdicts []station.Verdict
	for _, i := range items {
		verdicts = append(verdicts, h.verdict(i))
	}
	return verdicts, nil
}

// Find implements station.History.
func (h history) Find(ctx context.Context, text string) ([]station.Verdict, bool, error) {
	if text == "" {
		found, err := h.Recent(ctx, maxFound)
		return found, true, err
	}
	seen, more, err := h.spool.Find(ctx, text, maxFound)
	if errors.Is(err, spool.ErrFind) {
		return nil, false, station.ErrUnfindable
	}
	if err != nil {
		return nil, false, err
	}
	var found []station.Verdict
	for _, s := range seen {
		v := station.Verdict{Time: s.Time, State: station.Passed, Device: s.Device, Delivery: station.Delivery(s.Delivery)}
		if !s.Enrolled {
			v = station.Verdict{Device: s.Device, State: station.Failed}
			if past, err := h.spool.History(s.Device); err == nil && len(past.Events) > 0 {
				v, _ = verdictOf(past.Events[0])
				v.Device = s.Device
			}
		}
		found = append(found, v)
	}
	return found, more, nil
}

// Board implements station.History.
func (h history) Board(_ context.Context, device board.DeviceID) (station.BoardHistory, error) {
	past, err := h.spool.History(device)
	if errors.Is(err, journal.ErrNoRecord) {
		return station.BoardHistory{}, station.ErrNoBoard
	}
	if err != nil {
		return station.BoardHistory{}, err
	}
	b := station.BoardHistory{Device: device, Older: past.Older}
	addTranscript := func(v station.Verdict) {
		if v.Device == device && h.transcripts.has(v.Transcript) {
			b.Transcripts = append(b.Transcripts, station.TranscriptName{Name: v.Transcript, Time: v.Time, Slot: v.Slot, Passed: v.State == station.Passed, Reason: v.Reason})
		}
	}
	for _, e := range past.Events {
		if v, ok := verdictOf(e); ok {
			b.Verdicts = append(b.Verdicts, v)
			addTranscript(v)
		}
	}
	if !past.Enrolled {
		return b, nil
	}
	b.Enrolled, b.Entry, b.Fingerprint, b.Delivery = past.Time, past.Seq, past.Fingerprint, station.Delivery(past.Delivery)
	if v, ok := verdictOf(past.Record); ok {
		b.Slot = v.Slot
		addTranscript(v)
		sealed, err := board.ParseEnvelope(past.Record.Record())
		if err != nil {
			return b, err
		}
		record := sealed.Record()
		b.Record = &record
	}
	if past.Dead != nil {
		b.Refused = past.Dead.Reason
	}
	return b, nil
}

// Between implements station.History.
func (h history) Between(ctx context.Context, from, to time.Time) (verdicts []station.Verdict, err error) {
	err = h.spool.Range(ctx, from, to, func(i spool.Item) { verdicts = append(verdicts, h.verdict(i)) })
	return verdicts, err
}

// Count implements station.History.
func (h history) Count(context.Context) (station.Counts, error) { return countsOf(h.spool.Count()) }

// CountLot implements station.History.
func (h history) CountLot(ctx context.Context, name string, since time.Time) (station.Counts, error) {
	if name != "" {
		return countsOf(h.spool.CountOf(name))
	}
	counts := station.Counts{Failed: map[station.Reason]uint64{}}
	err := h.spool.Range(ctx, since, since.AddDate(1, 0, 0), func(i spool.Item) {
		v, _ := verdictOf(i.Entry)
		switch {
		case v.Lot != "":
		case v.State == station.Failed:
			counts.Failed[v.Reason]++
		case v.Repeat:
			counts.Repeated++
		default:
			counts.Passed++
		}
	})
	return counts, err
}

func countsOf(c spool.Counts, err error) (station.Counts, error) {
	out := station.Counts{Passed: c.Passed, Repeated: c.Repeated, Failed: map[station.Reason]uint64{}}
	for reason, n := range c.Failed {
		out.Failed[station.Reason(reason)] = n
	}
	return out, err
}

// Proof implements station.Evidence.
func (h history) Proof(ctx context.Context, device board.DeviceID) ([]byte, error) {
	proof, err := h.spool.Prove(ctx, device)
	switch {
	case errors.Is(err, journal.ErrNoRecord):
		return nil, station.ErrNoBoard
	case errors.Is(err, journal.ErrUnsigned):
		return nil, station.ErrUnsigned
	}
	return proof, err
}

// Transcript implements station.Evidence.
func (h history) Transcript(name string) ([]byte, error) { return h.transcripts.read(name) }
