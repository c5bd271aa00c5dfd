package spool

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"secretfree/station/board"
)

// Moment is an entry in few words: a record, a repeat or a refusal.
type Moment struct {
	Seq    uint64
	Time   time.Time // UTC
	Kind   Kind
	Device board.DeviceID
	Reason string // of a refusal
}

// Between visits the records, repeats and refusals of the journal under dir from one time up to, but not with, another, in order. It takes no lock and
// reads only the segments that can have some of them: a segment is left out if it begins later, or if the next one begins before. Where a clock was
// set back, entries of a segment that does not look like it may be missed. Damaged entries are left out.
func Between(ctx context.Context, dir string, from, to time.Time, visit func(Moment)) error {
	segments, err := listSegments(dir)
	if err != nil {
		return err
	}
	begins := make([]time.Time, len(segments))
	for i, segment := range segments {
		if begins[i], err = beginOf(dir, segment); err != nil {
			return err
		}
	}
	for i, segment := range segments {
		// One that cannot be dated is read.
		if !begins[i].IsZero() && !begins[i].Before(to) || i+1 < len(segments) && !begins[i+1].IsZero() && begins[i+1].Before(from) {
			continue
		}
		s := newScan(dir)
		s.next = segment.first
		s.visit = func(_ position, seq uint64, data []byte) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r, kind, sure := glance(data)
			if sure && kind == KindRecord {
				if at := time.UnixMilli(r.time).UTC(); !at.Before(from) && at.Before(to) {
					visit(Moment{Seq: seq, Time: at, Kind: kind, Device: r.device})
				}
				return nil
			}
			if at, err := timeOf(data); err == nil && (at.Before(from) || !at.Before(to)) {
				return nil
			}
			e, err := ParseEntry(data)
			if err != nil {
				return nil // VerifyDir says so
			}
			m := Moment{Seq: seq, Time: e.Time, Kind: e.Kind}
			switch e.Kind {
			case KindRecord:
				sealed, err := board.ParseEnvelope(e.Record)
				if err != nil {
					return nil
				}
				m.Device = sealed.Record.Device
			case KindRepeat:
				m.Device = e.Repeat.Device
			case KindRefusal:
				m.Device, m.Reason = e.Refusal.Device, e.Refusal.Reason
			default:
				return nil
			}
			visit(m)
			return nil
		}
		if err := s.run([]segmentFile{segment}); err != nil {
			return err
		}
	}
	return nil
}

// beginOf is the time of a segment's first entry, zero if it cannot be read.
func beginOf(dir string, segment segmentFile) (time.Time, error) {
	f, err := os.Open(segmentPath(dir, segment.first))
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(f, maxEntryLine).ReadSlice('\n')
	if err != nil {
		return time.Time{}, nil
	}
	data, _, err := readLine(line)
	if err != nil {
		return time.Time{}, nil
	}
	at, _ := timeOf(data)
	return at, nil
}
