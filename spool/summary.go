package spool

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/station/board"
)

// summary is what stays of a segment that was pruned: of each entry what the index and the tree need. It is a signed note: what a summary says of
// devices is in no hash that a checkpoint is over.
type summary struct {
	origin  string
	first   uint64
	entries []brief
	signed  []byte // as it stands in the file, its signatures too
}

// brief is what stays of an entry.
type brief struct {
	Kind     Kind
	Time     time.Time
	Device   board.DeviceID    // of a record, a repeat or a refusal
	Key      board.Fingerprint // as Device
	Envelope [16]byte          // the front of the SHA-256 of a record's envelope
	Hash     tlog.Hash         // of the leaf
}

func (s *summary) next() uint64 { return s.first + uint64(len(s.entries)) }

// ErrSummary says that something is not the summary of a segment.
var ErrSummary = errors.New("not the summary of a pruned segment")

const summaryHeader = "secretfree pruned 1"

// summaryPath is where the summary of a pruned segment is.
func summaryPath(dir string, first uint64) string {
	return filepath.Join(journalDir(dir), fmt.Sprintf("%020d.pruned", first))
}

// summarize takes the lines of a whole segment together. Each record is given to visit.
func summarize(origin string, first uint64, lines []byte, visit func(seq uint64, s board.Sealed)) (*summary, error) {
	s := &summary{origin: origin, first: first}
	for line := range bytes.Lines(lines) {
		data, seq, err := readLine(line)
		if err != nil {
			return nil, err
		}
		e, err := ParseEntry(data)
		if err != nil {
			return nil, err
		}
		if seq != s.next() {
			return nil, fmt.Errorf("%w: entry %d stands where %d should", ErrEntry, seq, s.next())
		}
		b := brief{Kind: e.Kind, Time: e.Time, Hash: tlog.RecordHash(data)}
		switch e.Kind {
		case KindRecord:
			sealed, err := board.ParseEnvelope(e.Record)
			if err != nil {
				return nil, err
			}
			b.Device, b.Key, b.Envelope = sealed.Record.Device, sealed.Record.Fingerprint(), digestOf(e.Record)
			visit(seq, sealed)
		case KindRepeat:
			b.Device, b.Key = e.Repeat.Device, e.Repeat.Fingerprint
		case KindRefusal:
			b.Device, b.Key = e.Refusal.Device, e.Refusal.Fingerprint
		}
		s.entries = append(s.entries, b)
	}
	return s, nil
}

// line is a line of a summary, without its line feed.
func (b *brief) line(seq uint64) []byte {
	device, key, envelope := "-", "-", "-"
	if b.Device.Valid() {
		device, key = b.Device.String(), b.Key.String()
	}
	if b.Kind == KindRecord {
		envelope = hex.EncodeToString(b.Envelope[:])
	}
	line := fmt.Appendf(make([]byte, 0, 256), "%d %s %s %s %s %s %s", seq, b.Time.Format(timeLayout), b.Kind, device, key, envelope, base64.StdEncoding.EncodeToString(b.Hash[:]))
	return fmt.Appendf(line, " %08x", crc32.Checksum(line, castagnoli))
}

func (s *summary) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n%d %d\n", summaryHeader, s.origin, s.first, s.next())
	for i := range s.entries {
		b.Write(s.entries[i].line(s.first + uint64(i)))
		b.WriteByte('\n')
	}
	return b.String()
}

// sign makes the file.
func (s *summary) sign(by note.Signer) ([]byte, error) {
	data, err := note.Sign(&note.Note{Text: s.text()}, by)
	if err != nil {
		return nil, fmt.Errorf("signing a summary: %w", err)
	}
	return data, nil
}

// check makes sure that a whole summary is the one which its station signed.
func (s *summary) check(v note.Verifier) error {
	if s.origin != v.Name() {
		return fmt.Errorf("%w: a summary is of %.130q, this is %s", ErrForeign, s.origin, v.Name())
	}
	if _, err := note.Open(s.signed, note.VerifierList(v)); err != nil {
		return fmt.Errorf("%w: the summary of a pruned segment is not the one that was signed: %v", ErrTampered, err)
	}
	return nil
}

// parseSummary reads what sign writes: what parses has the same text. It reads all of it or nothing: only the signature over all of it says that
// a device has a key. Signatures are for check to look at.
func parseSummary(data []byte) (*summary, error) {
	text, _, signed := bytes.Cut(data, []byte("\n\n"))
	lines := bytes.Split(text, []byte("\n"))
	s := &summary{signed: data}
	var next uint64
	if len(lines) < 3 || string(lines[0]) != summaryHeader {
		if isNewer(data, summaryHeader, "secretfree pruned ") {
			return nil, fmt.Errorf("the summary of a pruned segment, of a newer format (%.40q): %w; install the newer version again, nothing was changed", lines[0], board.ErrNewer)
		}
		return nil, fmt.Errorf("%w: no header", ErrSummary)
	}
	s.origin = string(lines[1])
	if n, err := fmt.Sscanf(string(lines[2]), "%d %d", &s.first, &next); n != 2 || err != nil || next <= s.first || next-s.first > maxHole || s.first >= 1<<62 {
		return nil, fmt.Errorf("%w: no range", ErrSummary)
	}
	for i, line := range lines[3:] {
		b, seq, err := parseBrief(line)
		if err == nil && seq != s.next() {
			err = fmt.Errorf("%w: entry %d stands where %d should", ErrSummary, seq, s.next())
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+4, err)
		}
		s.entries = append(s.entries, b)
	}
	if s.next() != next {
		return nil, fmt.Errorf("%w: it ends at entry %d, and says %d", ErrSummary, s.next(), next)
	}
	if !signed || s.text() != string(text)+"\n" {
		return nil, fmt.Errorf("%w: it is not whole", ErrSummary)
	}
	return s, nil
}

func parseBrief(line []byte) (b brief, seq uint64, err error) {
	bad := func(what string) (brief, uint64, error) {
		return brief{}, 0, fmt.Errorf("%w: %s", ErrSummary, what)
	}
	text, err := checkLine(line)
	if err != nil {
		return brief{}, 0, err
	}
	f := strings.Split(string(text), " ")
	if len(f) != 7 {
		return bad("a line has not all fields")
	}
	seq, err = strconv.ParseUint(f[0], 10, 63)
	if err != nil {
		return bad("a line has no seq")
	}
	if b.Time, err = time.Parse(timeLayout, f[1]); err != nil {
		return bad("a line has no time")
	}
	b.Time = b.Time.UTC()
	b.Kind = Kind(f[2])
	switch b.Kind {
	case KindRecord, KindRepeat, KindRefusal:
		var err2 error
		b.Device, err = board.ParseDeviceID(f[3])
		if b.Key, err2 = board.ParseFingerprint(f[4]); err != nil || err2 != nil {
			return bad("a line names no device or no key")
		}
	case KindSegment, KindLost:
	default:
		return bad("an unknown kind")
	}
	if b.Kind == KindRecord {
		if n, err := hex.Decode(b.Envelope[:], []byte(f[5][:min(len(f[5]), 32)])); err != nil || n != len(b.Envelope) {
			return bad("a record has no envelope")
		}
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(f[6])
	if err != nil || len(sum) != len(b.Hash) || tlog.Hash(sum) == (tlog.Hash{}) {
		return bad("a line has no hash")
	}
	b.Hash = tlog.Hash(sum)
	if !bytes.Equal(b.line(seq), line) {
		return bad("a line is not in its one encoding")
	}
	return b, seq, nil
}

// loadSummary reads the summary of the segment that begins at an entry. One of which not all is whole is one hole up to limit, or
// up to where the hashes beside it end.
func (s *scan) loadSummary(first, limit uint64) (*summary, *Damage, error) {
	path := summaryPath(s.dir, first)
	f, err := s.disk.open(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the journal: %w", err)
	}
	data, err := io.ReadAll(&tolerant{f: f})
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, nil, fmt.Errorf("reading %s: %w", path, err)
	}
	sum, err := parseSummary(data)
	if errors.Is(err, board.ErrNewer) {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if err == nil && (sum.first != first || sum.next() > limit) {
		err = fmt.Errorf("%w: it says that it is of entries %d to %d", ErrSummary, sum.first, sum.next()-1)
	}
	damaged := func(why error) (*summary, *Damage, error) {
		next := limit
		if sealed, ok := s.sealed(first); ok && sealed > first {
			next = min(next, sealed)
		}
		if next-first > maxHole {
			return nil, nil, &DamageError{Path: path, Line: 1, Reason: fmt.Errorf("%w; where it ends is not known", why)}
		}
		return nil, &Damage{Segment: first, Pruned: true, First: first, Next: next, Line: 1, Bytes: int64(len(data)), Reason: why.Error()}, nil
	}
	if err != nil {
		return damaged(err)
	}
	if s.key != nil {
		if err := sum.check(s.key); err != nil && !s.mending {
			return nil, nil, fmt.Errorf("%s: %w; find out whether somebody changed it; stationctl spool repair puts the segment in its place, from the archive or another copy", path, err)
		} else if err != nil {
			return damaged(err)
		}
	}
	return sum, nil, nil
}

// pruned goes through the summary of a segment as segment goes through its lines.
func (s *scan) pruned(first, limit uint64) error {
	sum, hole, err := s.loadSummary(first, limit)
	if err != nil {
		return err
	}
	s.end = position{segment: first}
	if hole != nil {
		if err := s.damaged(*hole); err != nil {
			return err
		}
		s.next = hole.Next
		return nil
	}
	for i := range sum.entries {
		if s.brief != nil {
			if err := s.brief(first, s.next, &sum.entries[i]); err != nil {
				return err
			}
		}
		s.next++
	}
	return nil
}
