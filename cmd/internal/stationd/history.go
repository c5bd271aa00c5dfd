package stationd

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"secretfree/spool"
	"secretfree/station"
	"secretfree/station/board"
)

const (
	maxFound = 50 // boards or verdicts in a list
	// together is how far apart a journal's entry and a verdict in the daybook may be that are of one reading.
	together = time.Minute
	slotDays = 10 // days whose verdicts are read for the slots of one board
)

// history answers what the pages look back at: the journal is the truth about boards, the daybook has the slots and the failures of which the
// journal knows nothing.
type history struct {
	spool *spool.Spool
	dir   string // of the state
	days  *daybook
	shelf *shelf
}

// Find implements station.History.
func (h history) Find(ctx context.Context, text string) ([]station.Verdict, bool, error) {
	if text == "" {
		items, err := h.spool.Recent(ctx, maxFound)
		if err != nil {
			return nil, false, err
		}
		var found []station.Verdict
		for _, item := range items {
			if v, ok := verdictOf(item.Entry); ok {
				v.Confirmed = item.Delivery == spool.Confirmed
				found = append(found, v)
			}
		}
		return found, true, nil
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
		found = append(found, station.Verdict{Time: s.Time, State: station.Passed, Device: s.Device, Confirmed: s.Delivered})
	}
	if device, err := board.ParseDeviceID(text); err == nil && len(found) == 0 {
		// It may have been refused and nothing else.
		if past, err := h.spool.History(device); err == nil && len(past.Events) > 0 {
			if v, ok := verdictOf(past.Events[0]); ok {
				v.Device = device
				found = append(found, v)
			}
		}
	}
	return found, more, nil
}

// verdictOf is what an entry of the journal says.
func verdictOf(e spool.Entry) (v station.Verdict, ok bool) {
	if e.Verdict == nil {
		return v, false
	}
	v = station.Verdict{Time: e.Time, State: station.Passed, Repeat: e.Verdict.Result == spool.Repeated, Device: e.Verdict.Device, Slot: e.Verdict.Slot}
	if e.Verdict.Result == spool.Failed {
		v.State, v.Reason = station.Failed, station.Reason(e.Verdict.Reason)
		if e.Verdict.Known != nil {
			if other, err := board.ParseDeviceID(e.Verdict.Known.Device); err == nil && other != v.Device {
				v.Other = other
			}
		}
	}
	return v, true
}

// Board implements station.History.
func (h history) Board(ctx context.Context, device board.DeviceID) (station.BoardHistory, error) {
	past, err := h.spool.History(device)
	if err != nil && !errors.Is(err, spool.ErrNoRecord) {
		return station.BoardHistory{}, err
	}
	known := err == nil
	b := station.BoardHistory{Device: device, Older: past.Older}
	if b.Transcripts, err = h.shelf.of(ctx, device); err != nil {
		return b, err
	}
	if !known && len(b.Transcripts) == 0 {
		return b, station.ErrNoBoard
	}
	for _, e := range past.Events {
		if v, ok := verdictOf(e); ok {
			b.Verdicts = append(b.Verdicts, v)
		}
	}
	if past.Enrolled {
		b.Enrolled, b.Entry, b.Fingerprint, b.Confirmed = past.Time, past.Seq, past.Fingerprint, past.Delivered
		if record := past.Record.Record(); record != nil {
			sealed, err := board.ParseEnvelope(record)
			if err != nil {
				return b, err
			}
			b.Record = &sealed.Record
		}
		if past.Dead != nil {
			b.Refused = past.Dead.Reason
		}
	}
	return b, h.slots(ctx, &b)
}

// slots fills in where a board was, as far as the daybook has it.
func (h history) slots(ctx context.Context, b *station.BoardHistory) error {
	read := map[string][]station.Verdict{}
	slot := func(at time.Time, device board.DeviceID, state station.State) (string, error) {
		day := at.UTC().Truncate(24 * time.Hour)
		name := day.Format(dayName)
		noted, ok := read[name]
		if !ok && len(read) < slotDays {
			all, _, err := h.days.between(day.Add(-together), day.Add(24*time.Hour+together))
			if err != nil {
				return "", err
			}
			noted = slices.DeleteFunc(all, func(v station.Verdict) bool { return v.Device != device && v.Device != b.Device })
			read[name] = noted
		}
		if i := nearest(noted, at, device, state, nil); i >= 0 {
			return noted[i].Slot, ctx.Err()
		}
		return "", ctx.Err()
	}
	var err error
	if !b.Enrolled.IsZero() {
		if b.Slot, err = slot(b.Enrolled, b.Device, station.Passed); err != nil {
			return err
		}
	}
	for i := range b.Verdicts {
		v := &b.Verdicts[i]
		if v.Slot, err = slot(v.Time, v.Device, v.State); err != nil {
			return err
		}
	}
	return nil
}

// nearest finds what was noted of a board at about a time; -1 if nothing was. taken are those that are of another entry.
func nearest(noted []station.Verdict, at time.Time, device board.DeviceID, state station.State, taken map[int]bool) int {
	best, gap := -1, together
	for i, v := range noted {
		if v.Device == device && v.State == state && !taken[i] && v.Time.Sub(at).Abs() <= gap {
			best, gap = i, v.Time.Sub(at).Abs()
		}
	}
	return best
}

// isConflict tells of a verdict that the journal has too.
func isConflict(v station.Verdict) bool {
	return v.Device.Valid() && (v.Reason == station.ReasonDeviceConflict || v.Reason == station.ReasonKeyConflict)
}

// Between implements station.History.
func (h history) Between(ctx context.Context, from, to time.Time) ([]station.Verdict, bool, error) {
	noted, whole, err := h.days.between(from.Add(-together), to.Add(together))
	if err != nil {
		return nil, false, err
	}
	byDevice := map[board.DeviceID][]station.Verdict{}
	var verdicts []station.Verdict
	for _, v := range noted {
		if v.Device.Valid() {
			byDevice[v.Device] = append(byDevice[v.Device], v)
		}
		if v.State == station.Failed && !isConflict(v) && !v.Time.Before(from) && v.Time.Before(to) {
			verdicts = append(verdicts, v)
		}
	}
	taken := map[board.DeviceID]map[int]bool{}
	incomplete := false
	for _, w := range whole {
		incomplete = incomplete || !w
	}
	within := func(at time.Time) bool { return !at.Before(from) && at.Before(to) }
	if err := h.spool.Range(ctx, from.Add(-together), to.Add(together), func(m spool.Item) {
		v, ok := verdictOf(m.Entry)
		if !ok {
			return
		}
		if taken[v.Device] == nil {
			taken[v.Device] = map[int]bool{}
		}
		of := byDevice[v.Device]
		if i := nearest(of, m.Time, v.Device, v.State, taken[v.Device]); i >= 0 {
			taken[v.Device][i] = true
			v.Slot, v.Reason = of[i].Slot, cmp.Or(v.Reason, of[i].Reason)
		}
		if !within(m.Time) {
			return
		}
		_, there := whole[m.Time.Format(dayName)]
		incomplete = incomplete || !there
		v.Confirmed = m.Delivery == spool.Confirmed
		verdicts = append(verdicts, v)
	}); err != nil {
		return nil, false, err
	}
	for device, of := range byDevice {
		for i, v := range of {
			// A refusal that the disk did not take was shown all the same.
			if isConflict(v) && within(v.Time) && !taken[device][i] {
				verdicts = append(verdicts, v)
			}
		}
	}
	slices.SortStableFunc(verdicts, func(a, b station.Verdict) int { return a.Time.Compare(b.Time) })
	h.shelf.nameless(verdicts)
	return verdicts, incomplete, nil
}

// Proof implements station.Evidence.
func (h history) Proof(ctx context.Context, device board.DeviceID) ([]byte, error) {
	proof, err := h.spool.Prove(ctx, device)
	switch {
	case errors.Is(err, spool.ErrNoRecord):
		return nil, station.ErrNoBoard
	case errors.Is(err, spool.ErrUnsigned):
		return nil, station.ErrUnsigned
	}
	return proof, err
}

// Transcript implements station.Evidence.
func (h history) Transcript(name string) ([]byte, error) { return h.shelf.read(name) }
