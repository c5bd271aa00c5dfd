package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"secretfree/station/board"
)

// Format is the version of the journal that this program writes, and the newest it reads.
const Format = 1

// Kind says what an entry of the journal is.
type Kind string

// The kinds of entries.
const (
	KindSegment Kind = "segment" // the first entry of every segment
	KindRecord  Kind = "record"  // a board was enrolled
	KindRefusal Kind = "refusal" // a board was refused: it contradicts what is known
	KindRepeat  Kind = "repeat"  // a board was read that is enrolled already
	KindLost    Kind = "lost"    // Repair could not have an entry back, and no checkpoint had been signed over it
)

// Entry is one line of the journal. One of the bodies is set, as Kind says.
type Entry struct {
	Seq     uint64    // from 0, without gaps; the index of its leaf in the Merkle tree
	Time    time.Time // UTC, whole milliseconds
	Kind    Kind
	Segment *Segment
	Record  []byte // the DSSE envelope, as board.Seal made it
	Refusal *Refusal
	Repeat  *Repeat
	Lost    *Lost
}

// Segment opens a segment, so that each file says what it is.
type Segment struct {
	Format int    `json:"format"`
	Origin string `json:"origin"`
	Key    string `json:"key"` // the station's public key
}

// Refusal says what was refused and what it contradicts.
type Refusal struct {
	Reason      string            `json:"reason"` // device-conflict or key-conflict
	Device      board.DeviceID    `json:"device"`
	Fingerprint board.Fingerprint `json:"fingerprint"`
	KnownDevice board.DeviceID    `json:"known_device"`
	KnownKey    board.Fingerprint `json:"known_key"`
}

// Repeat says which record a board repeats.
type Repeat struct {
	Device      board.DeviceID    `json:"device"`
	Fingerprint board.Fingerprint `json:"fingerprint"`
	Of          uint64            `json:"of"` // the seq of the record
}

// Lost stands where an entry was that is lost.
type Lost struct {
	Reason string `json:"reason"` // what was found in its place
}

const timeLayout = "2006-01-02T15:04:05.000Z"

// maxEntryLine caps a line of the journal, with its checksum.
const maxEntryLine = board.MaxEnvelope + 1024

// ErrEntry says that something is not an entry of a journal.
var ErrEntry = errors.New("not a journal entry")

type wireEntry struct {
	Seq     uint64          `json:"seq"`
	Time    string          `json:"time"`
	Kind    Kind            `json:"kind"`
	Segment *Segment        `json:"segment,omitempty"`
	Record  json.RawMessage `json:"record,omitempty"`
	Refusal *Refusal        `json:"refusal,omitempty"`
	Repeat  *Repeat         `json:"repeat,omitempty"`
	Lost    *Lost           `json:"lost,omitempty"`
}

// Encode returns the entry's JSON, which is also its leaf in the Merkle tree.
func (e *Entry) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	w := wireEntry{e.Seq, e.Time.Format(timeLayout), e.Kind, e.Segment, e.Record, e.Refusal, e.Repeat, e.Lost}
	if err := enc.Encode(w); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrEntry, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (e *Entry) check() error {
	bodies := map[Kind]bool{KindSegment: e.Segment != nil, KindRecord: len(e.Record) > 0, KindRefusal: e.Refusal != nil, KindRepeat: e.Repeat != nil, KindLost: e.Lost != nil}
	for kind, set := range bodies {
		if set != (kind == e.Kind) {
			return fmt.Errorf("%w: kind %.20q with the body of another, or none", ErrEntry, e.Kind)
		}
	}
	if _, known := bodies[e.Kind]; !known {
		return fmt.Errorf("%w: unknown kind %.20q", ErrEntry, e.Kind)
	}
	if e.Time.Location() != time.UTC || e.Time.Nanosecond()%int(time.Millisecond) != 0 {
		return fmt.Errorf("%w: time %v is not in UTC and whole milliseconds", ErrEntry, e.Time)
	}
	if e.Segment != nil && e.Segment.Format < 1 {
		return fmt.Errorf("%w: format %d", ErrEntry, e.Segment.Format)
	}
	if e.Refusal != nil && e.Refusal.Reason != reasonDevice && e.Refusal.Reason != reasonKey {
		return fmt.Errorf("%w: unknown reason %.40q", ErrEntry, e.Refusal.Reason)
	}
	return nil
}

const (
	reasonDevice = "device-conflict"
	reasonKey    = "key-conflict"
)

// ParseEntry reads what Encode writes: what parses encodes to the same bytes. A record's envelope is
// looked at by board.OpenEnvelope, not here. An entry of a newer format is board.ErrNewer.
func ParseEntry(data []byte) (Entry, error) {
	if len(data) > maxEntryLine {
		return Entry{}, fmt.Errorf("%w: %d bytes, at most %d are read", ErrEntry, len(data), maxEntryLine)
	}
	var newer struct {
		Segment struct {
			Format int `json:"format"`
		} `json:"segment"`
	}
	if json.Unmarshal(data, &newer) == nil && newer.Segment.Format > Format {
		return Entry{}, fmt.Errorf("journal format %d, this program reads up to %d: %w; install the newer version again, nothing was changed", newer.Segment.Format, Format, board.ErrNewer)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var w wireEntry
	if err := d.Decode(&w); err != nil {
		return Entry{}, fmt.Errorf("%w: %v", ErrEntry, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Entry{}, fmt.Errorf("%w: something follows the JSON", ErrEntry)
	}
	at, err := time.Parse(timeLayout, w.Time)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: time: %v", ErrEntry, err)
	}
	e := Entry{Seq: w.Seq, Time: at.UTC(), Kind: w.Kind, Segment: w.Segment, Record: w.Record, Refusal: w.Refusal, Repeat: w.Repeat, Lost: w.Lost}
	again, err := e.Encode()
	if err != nil {
		return Entry{}, err
	}
	if !bytes.Equal(again, data) {
		return Entry{}, fmt.Errorf("%w: not in its one encoding", ErrEntry)
	}
	return e, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeLine is the JSON, a space, its CRC-32C in 8 hex digits, and a line feed.
func encodeLine(data []byte) []byte {
	return fmt.Appendf(bytes.Clone(data), " %08x\n", crc32.Checksum(data, castagnoli))
}

// checkLine takes a line without its line feed apart and checks the sum.
func checkLine(line []byte) (data []byte, err error) {
	i := len(line) - 9
	if i < 1 || line[i] != ' ' {
		return nil, fmt.Errorf("%w: no checksum", ErrEntry)
	}
	var want [4]byte
	if _, err := hex.Decode(want[:], line[i+1:]); err != nil || bytes.ContainsAny(line[i+1:], "ABCDEF") || binary.BigEndian.Uint32(want[:]) != crc32.Checksum(line[:i], castagnoli) {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrEntry)
	}
	return line[:i], nil
}
