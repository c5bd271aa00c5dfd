package journal

import (
	"errors"
	"fmt"
	"os"
	"secretfree/station/board"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Info is what can be told of a journal without reading all of it.
type Info struct {
	Format   int       // of the newest segment
	Segments int       // files
	Entries  uint64    // with those that are damaged
	Newest   time.Time // of the newest entry; zero if there is none
	Signed   uint64    // entries under the newest checkpoint; 0 if there is none
	SignedAt time.Time // when that was written
	Torn     int64     // bytes of a line that is not whole: being written, or cut short
	Damage   []Damage  // of the newest segment
	// Sample is a record of the newest segment, to ask a registry for; nil if
	// there is none.
	Sample *board.Sealed
}

// Inspect reads the newest segment and the newest checkpoint of the station
// whose folder this is. It takes no lock, changes nothing, and the daemon may
// be writing. An error that wraps ErrTampered says that the checkpoint is not
// signed with this key, or that the journal is shorter than what was signed.
func Inspect(dir string, v note.Verifier) (g Info, err error) {
	// The checkpoint first: the journal only grows meanwhile.
	signed, have, err := ReadCheckpoint(dir, v)
	if err != nil {
		return g, err
	}
	if info, err := os.Stat(CheckpointPath(dir)); have && err == nil {
		g.Signed, g.SignedAt = signed.Size, info.ModTime().UTC()
	}
	segments, err := ListSegments(dir)
	if err != nil {
		return g, err
	}
	g.Segments = len(segments)
	if len(segments) > 0 {
		if err := g.newest(dir, segments[len(segments)-1:]); err != nil {
			return g, err
		}
	}
	if g.Entries < g.Signed {
		return g, fmt.Errorf("%w: it has %d entries, the checkpoint says %d", ErrTampered, g.Entries, g.Signed)
	}
	return g, nil
}

func (g *Info) newest(dir string, segments []SegmentFile) error {
	s := NewScan(dir)
	s.Next = segments[0].First
	s.Given = func(uint64) uint64 { return g.Signed }
	s.Damaged = func(d Damage) error {
		g.Damage = append(g.Damage, d)
		return nil
	}
	s.Visit = func(_ Position, _ uint64, data []byte) error {
		e, err := ParseEntry(data)
		if err != nil {
			return err
		}
		g.Newest = e.Time
		switch {
		case e.Kind == KindSegment:
			g.Format = e.Segment.Format
		case e.Record() != nil && g.Sample == nil:
			if sealed, err := board.ParseEnvelope(e.Record()); err == nil {
				g.Sample = &sealed
			}
		}
		return nil
	}
	err := s.Run(segments)
	g.Entries, g.Torn = s.Next, s.Torn
	return err
}

// ErrForeign: the journal is that of another station.
var ErrForeign = errors.New("the journal is of another station")
