package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"secretfree/spool/durable"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// LineReader reads entries whose places are known, without their envelopes. It
// keeps the file of the last one open.
type LineReader struct {
	Dir  string
	of   uint64
	file *os.File
	buf  []byte
}

func (r *LineReader) Close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

func (r *LineReader) Entry(at Position, seq uint64) (Entry, error) {
	if r.file == nil || r.of != at.Segment {
		r.Close()
		f, err := os.Open(SegmentPath(r.Dir, at.Segment))
		if err != nil {
			return Entry{}, fmt.Errorf("reading the journal: %w", err)
		}
		r.file, r.of = f, at.Segment
	}
	for size := 4096; ; size = MaxEntryLine {
		if len(r.buf) < size {
			r.buf = make([]byte, size)
		}
		n, err := r.file.ReadAt(r.buf, at.Offset)
		end := bytes.IndexByte(r.buf[:n], '\n')
		if end < 0 && err == nil && size < MaxEntryLine {
			continue
		}
		if end < 0 {
			return Entry{}, fmt.Errorf("%w: no whole line", ErrEntry)
		}
		data, got, err := ReadLine(r.buf[:end+1])
		if err != nil {
			return Entry{}, err
		}
		if got != seq {
			return Entry{}, fmt.Errorf("%w: another entry is there", ErrEntry)
		}
		return ParseFront(data)
	}
}

// ParseFront reads an entry without the envelope of a record, whose checksum
// was looked at: most of an entry's bytes are in it.
func ParseFront(data []byte) (Entry, error) {
	front, _, ok := bytes.Cut(data, []byte(`,"record":{`))
	if !ok {
		return ParseEntry(data)
	}
	var w wireEntry
	if err := json.Unmarshal(append(bytes.Clone(front), "}}"...), &w); err != nil {
		return Entry{}, fmt.Errorf("%w: %v", ErrEntry, err)
	}
	at, err := time.Parse(TimeLayout, w.Time)
	if err != nil || w.Verdict == nil {
		return Entry{}, fmt.Errorf("%w: no time, or no verdict", ErrEntry)
	}
	return Entry{Seq: w.Seq, Time: at.UTC(), Kind: w.Kind, Verdict: w.Verdict}, nil
}

// EnvelopeOf cuts the envelope out of the JSON of a record's entry, where it
// stands last.
func EnvelopeOf(data []byte) ([]byte, error) {
	_, rest, ok := bytes.Cut(data, []byte(`,"record":`))
	envelope, ok2 := bytes.CutSuffix(rest, []byte("}}"))
	if !ok || !ok2 {
		return nil, fmt.Errorf("%w: a record without its envelope", ErrEntry)
	}
	return envelope, nil
}

func ReadEntryAt(dir string, at Position) (Entry, error) {
	f, err := os.Open(SegmentPath(dir, at.Segment))
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	buf := make([]byte, MaxEntryLine)
	n, err := f.ReadAt(buf, at.Offset)
	end := bytes.IndexByte(buf[:n], '\n')
	if end < 0 {
		return Entry{}, fmt.Errorf("no whole line (%v)", err)
	}
	data, _, err := ReadLine(buf[:end+1])
	if err != nil {
		return Entry{}, err
	}
	return ParseEntry(data)
}

func CheckLeaves(lines []byte, l Leaves) error {
	seq := l.First
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n') + 1
		if end == 0 {
			end = len(lines)
		}
		data, got, err := ReadLine(lines[:end])
		if err != nil {
			return err
		}
		if got != seq || seq >= l.Next() || tlog.RecordHash(data) != l.Hashes[seq-l.First] {
			return fmt.Errorf("%w: entry %d is not the one that was sealed", ErrEntry, seq)
		}
		lines = lines[end:]
		seq++
	}
	if seq != l.Next() {
		return fmt.Errorf("%w: it ends at entry %d", ErrEntry, seq)
	}
	return nil
}

func Covers(damage []Damage, seq uint64) bool {
	return slices.ContainsFunc(damage, func(d Damage) bool { return d.First <= seq && seq < d.Next })
}

const Unprovable = "no checkpoint is signed until the journal is repaired: a damaged entry's hash is not known, so neither is the root"

// Quarantine writes evidence of damage, durably, under a name with the first
// number under which there is no other.
func Quarantine(d durable.Disk, dir, name string, data []byte) (path string, err error) {
	for n := 1; ; n++ {
		path = QuarantinePath(dir, fmt.Sprintf(name, n))
		have, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && bytes.Equal(have, data) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, errors.Join(durable.WriteFile(d, path, data, 0o400), d.SyncDir(Dir(dir)))
}
