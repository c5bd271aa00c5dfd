// Package journal is the file format of a station's journal: entries, segments,
// the Merkle tree over them, checkpoints, proofs, and verification without a
// network.
package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"secretfree/spool/durable"
	"strconv"
)

// DamageError says that the journal is damaged where it cannot be a write cut
// short by a power failure. Open quarantines what can be told apart from the
// good lines around it, and goes on; what Open returns as this error stops the
// station, with nothing changed.
type DamageError struct {
	Path   string
	Line   int
	Reason error
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%s, line %d: the journal is damaged: %v; keep a copy of the whole folder, then restore this file from a backup or from the registry's copy", e.Path, e.Line, e.Reason)
}

func (e *DamageError) Unwrap() error { return e.Reason }

// Damage is a place of the journal that cannot be read. Entries First up to but
// not including Next are missing; if the two are equal, nothing is: there are
// bytes that do not belong there.
type Damage struct {
	Segment uint64 `json:"segment"` // the first seq of the segment, its file's name
	First   uint64 `json:"first"`
	Next    uint64 `json:"next"`
	Line    int    `json:"line"`   // where it begins in the file, from 1; 0 if the file is missing
	Offset  int64  `json:"offset"` // of the bad bytes
	Bytes   int64  `json:"bytes"`
	Reason  string `json:"reason"`
}

// Entries is how many entries are missing.
func (d Damage) Entries() uint64 { return d.Next - d.First }

func (d Damage) String() string {
	what := fmt.Sprintf("entries %d to %d cannot be read", d.First, d.Next-1)
	switch d.Entries() {
	case 0:
		what = "no entry is missing"
	case 1:
		what = fmt.Sprintf("entry %d cannot be read", d.First)
	}
	if d.Line == 0 {
		return fmt.Sprintf("%020d.jsonl: %s: %s", d.Segment, what, d.Reason)
	}
	return fmt.Sprintf("%020d.jsonl, line %d, %d bytes: %s: %s", d.Segment, d.Line, d.Bytes, what, d.Reason)
}

func (d Damage) fault(dir string) *DamageError {
	return &DamageError{Path: SegmentPath(dir, d.Segment), Line: d.Line, Reason: fmt.Errorf("%w: %s", ErrEntry, d)}
}

// Position is where an entry stands.
type Position struct {
	Segment uint64 // its first seq, which is its file's name
	Offset  int64
}

// MaxGroup is how many entries one write holds at the most.
const MaxGroup = 64

// maxHole is how many entries may be missing in one place. More than a few
// segments hold is no damage, but another file.
const maxHole = 1 << 24

// Scan reads segments in order. Every line that has its checksum and its place
// in the sequence is visited; every other place is damage, but for what was cut
// short at the end of the last segment.
type Scan struct {
	Dir  string
	Disk durable.Disk
	// Sure is the entry from which on there was no receipt yet, as the index
	// knows. One write may hold several lines, and a power failure may tear it
	// anywhere: good lines behind a bad one are part of the same write if all
	// of them are from sure on and fewer than maxGroup. Without an index it is
	// as high as can be, and such lines are damage.
	Sure uint64
	// Given returns how many entries there were, as far as a checkpoint or the
	// index shows. Bad bytes at the end of the last segment are damage if an
	// entry that was there is missing, and else a write cut short. May be nil.
	Given func(next uint64) uint64
	// data is valid during the call.
	Visit   func(at Position, seq uint64, data []byte) error
	Damaged func(d Damage) error
	Done    func(s SegmentFile, next uint64) error // after each segment that another follows; may be nil
	// Sealed returns the end of a segment if the hashes beside it tell: how
	// damage at its end is told from a missing file.
	Sealed func(first uint64) (next uint64, ok bool)

	Next     uint64   // the seq of the next entry
	End      Position // where it goes
	Torn     int64    // bytes after end that are no entry: a write cut short
	TornGood bool     // there are good lines among them
}

// NewScan is one for reading, by whoever holds no lock and has no index.
func NewScan(dir string) *Scan {
	return &Scan{Dir: dir, Disk: durable.OS{}, Sure: math.MaxUint64, Damaged: func(Damage) error { return nil }, Sealed: SealedEnd(dir)}
}

func SealedEnd(dir string) func(uint64) (uint64, bool) {
	return func(first uint64) (uint64, bool) {
		l, err := ReadLeaves(dir, first)
		return l.Next(), err == nil
	}
}

func (s *Scan) Run(segments []SegmentFile) error {
	for i, segment := range segments {
		limit := uint64(math.MaxUint64)
		if i+1 < len(segments) {
			limit = segments[i+1].First
		}
		if segment.First < s.Next {
			return &DamageError{Path: SegmentPath(s.Dir, segment.First), Line: 1, Reason: fmt.Errorf("%w: the segment before it has this entry too, up to %d", ErrEntry, s.Next-1)}
		}
		if segment.First-s.Next > maxHole {
			return farAway(s.Dir, segment.First, s.Next)
		}
		for segment.First > s.Next {
			next := segment.First
			if sealed, ok := s.Sealed(s.Next); ok && sealed > s.Next {
				next = min(next, sealed)
			}
			if err := s.Damaged(Damage{Segment: s.Next, First: s.Next, Next: next, Reason: "the file is missing"}); err != nil {
				return err
			}
			s.Next = next
		}
		if err := s.segment(segment.First, limit); err != nil {
			return err
		}
		if i+1 < len(segments) && s.Done != nil {
			if err := s.Done(segment, s.Next); err != nil {
				return err
			}
		}
	}
	return nil
}

func farAway(dir string, first, next uint64) error {
	return &DamageError{Path: SegmentPath(dir, first), Reason: fmt.Errorf("%w: the entries before it, from %d on, are missing", ErrEntry, next)}
}

func (s *Scan) segment(first, limit uint64) error {
	path := SegmentPath(s.Dir, first)
	f, err := s.Disk.Open(path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	last := limit == math.MaxUint64
	r := bufio.NewReaderSize(&tolerant{f: f}, MaxEntryLine)
	var bad *Damage // the bad bytes before the offset
	offset := int64(0)
	s.End = Position{Segment: first}
	lines := 0
	for number := 1; ; number++ {
		lines = number
		line, err := r.ReadSlice('\n')
		if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		if err == io.EOF && len(line) == 0 {
			break
		}
		at := Position{first, offset}
		offset += int64(len(line))
		data, seq, wrong := ReadLine(line)
		if wrong == nil && (seq < s.Next || seq >= limit || seq-s.Next > maxHole) {
			wrong = fmt.Errorf("%w: entry %d stands where %d should", ErrEntry, seq, s.Next)
		}
		if wrong != nil {
			if bad == nil {
				bad = &Damage{Segment: first, First: s.Next, Line: number, Offset: at.Offset, Reason: wrong.Error()}
				if last {
					torn, good, err := s.isTorn(f, offset)
					if err != nil {
						return fmt.Errorf("reading %s: %w", path, err)
					}
					if torn {
						size, err := fileSize(f, offset)
						if err != nil {
							return fmt.Errorf("reading %s: %w", path, err)
						}
						return s.badTail(*bad, size, good)
					}
				}
			}
			continue
		}
		if bad == nil && seq > s.Next {
			bad = &Damage{Segment: first, First: s.Next, Line: number, Offset: at.Offset, Reason: "the line is missing"}
		}
		if bad != nil {
			bad.Next, bad.Bytes = seq, at.Offset-bad.Offset
			if err := s.Damaged(*bad); err != nil {
				return err
			}
			bad, s.Next = nil, seq
		}
		if err := s.Visit(at, seq, data); err != nil {
			var damage *DamageError
			if errors.As(err, &damage) {
				damage.Path, damage.Line = path, number
			}
			return err
		}
		s.Next++
		s.End.Offset = offset
	}
	if last {
		return nil // its bad tail was torn, or followed by something good
	}
	if s.Next < limit {
		if sealed, ok := s.Sealed(first); ok && sealed >= s.Next {
			limit = min(limit, sealed)
		}
	}
	if limit > s.Next && limit-s.Next > maxHole {
		return farAway(s.Dir, limit, s.Next)
	}
	if bad == nil && s.Next < limit {
		bad = &Damage{Segment: first, First: s.Next, Offset: offset, Line: lines, Reason: "the end of the file is missing"}
	}
	if bad != nil {
		bad.Next, bad.Bytes = limit, offset-bad.Offset
		if err := s.Damaged(*bad); err != nil {
			return err
		}
	}
	s.Next = limit
	return nil
}

// badTail takes the bytes from a bad line to the end of the last segment, which
// has a size: damage if they were entries, else a write cut short.
func (s *Scan) badTail(bad Damage, size int64, good bool) error {
	given := uint64(0)
	if s.Given != nil {
		given = s.Given(s.Next)
	}
	if given <= s.Next || given-s.Next > maxHole {
		s.Torn, s.TornGood = size-bad.Offset, good
		return nil
	}
	bad.Next, bad.Bytes = given, size-bad.Offset
	s.Next, s.End.Offset = given, size
	return s.Damaged(bad)
}

// isTorn tells whether a bad line, which ends before an offset, begins a write
// that was cut short: nothing good follows it, or only lines that were in the
// same write.
func (s *Scan) isTorn(f io.ReaderAt, offset int64) (torn, good bool, err error) {
	r := bufio.NewReaderSize(&tolerant{f: f, offset: offset}, MaxEntryLine)
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF {
			return true, good, nil
		}
		if err != nil && err != bufio.ErrBufferFull {
			return false, good, err
		}
		if _, seq, wrong := ReadLine(line); wrong == nil && seq >= s.Next && seq-s.Next <= maxHole {
			good = true
			if s.Next < s.Sure || seq-s.Sure >= MaxGroup {
				return false, good, nil
			}
		}
	}
}

// fileSize finds the end of a file from some offset in it.
func fileSize(f io.ReaderAt, from int64) (int64, error) {
	n, err := io.Copy(io.Discard, &tolerant{f: f, offset: from})
	return from + n, err
}

// ReadLine takes a line apart: the entry's JSON and its seq.
func ReadLine(line []byte) (data []byte, seq uint64, err error) {
	line, whole := bytes.CutSuffix(line, []byte("\n"))
	if !whole {
		return nil, 0, fmt.Errorf("%w: no line end", ErrEntry)
	}
	if data, err = CheckLine(line); err != nil {
		return nil, 0, err
	}
	if seq, err = SeqOf(data); err != nil {
		return nil, 0, err
	}
	return data, seq, nil
}

// SeqOf reads the first field of an entry.
func SeqOf(data []byte) (uint64, error) {
	rest, ok := bytes.CutPrefix(data, []byte(`{"seq":`))
	end := bytes.IndexByte(rest, ',')
	if !ok || end < 1 || end > 20 || rest[0] == '0' && end > 1 {
		return 0, fmt.Errorf("%w: it does not begin with its seq", ErrEntry)
	}
	seq, err := strconv.ParseUint(string(rest[:end]), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: seq: %v", ErrEntry, err)
	}
	return seq, nil
}
