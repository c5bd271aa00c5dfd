package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"secretfree/station/board"
)

// Format is the version of the journal that this program writes, and the only
// one that it reads.
const Format = 2

// Kind says what an entry of the journal is.
type Kind string

// The kinds of entries.
const (
	KindSegment   Kind = "segment"   // the first entry of every segment
	KindVerdict   Kind = "verdict"   // a board was read
	KindRejection Kind = "rejection" // the registry refused a record for good, or took it after all
	KindLost      Kind = "lost"      // Repair gave an entry up, and no checkpoint had been signed over it
)

// Entry is one line of the journal. One of the bodies is set, as Kind says.
type Entry struct {
	Seq       uint64    // from 0, without gaps; the index of its leaf in the Merkle tree
	Time      time.Time // UTC, whole milliseconds
	Kind      Kind
	Segment   *Segment
	Verdict   *Verdict
	Rejection *Rejection
	Lost      *Lost
}

// Record returns the DSSE envelope of a passed verdict, nil for any other
// entry.
func (e *Entry) Record() []byte {
	if e.Verdict == nil {
		return nil
	}
	return e.Verdict.Record
}

// Segment opens a segment, so that each file says what it is.
type Segment struct {
	Format int    `json:"format"`
	Origin string `json:"origin"`
	Key    string `json:"key"` // the station's public key
}

// Result is how the reading of a board ended.
type Result string

// The results.
const (
	Passed   Result = "passed"   // the board is enrolled with this entry
	Repeated Result = "repeated" // it was enrolled before
	Failed   Result = "failed"   // Reason says why
)

// Verdict is how the reading of one board in one slot ended.
type Verdict struct {
	Result      Result            `json:"result"`
	Slot        string            `json:"slot,omitempty"`
	Reason      string            `json:"reason,omitempty"` // of Failed: lower-case words with dashes
	Device      board.DeviceID    `json:"device,omitzero"`
	Fingerprint board.Fingerprint `json:"fingerprint,omitzero"`
	Of          *uint64           `json:"of,omitempty"`    // of Repeated: the entry with the record
	After       *uint64           `json:"after,omitempty"` // the verdict before this one in the same insertion
	Known       *Known            `json:"known,omitempty"` // of a conflict: what it contradicts
	WorkOrder   string            `json:"work_order,omitempty"`
	Label       string            `json:"label,omitempty"` // as it was scanned
	Operator    string            `json:"operator,omitempty"`
	Transcript  string            `json:"transcript,omitempty"` // a file name
	ReadMS      int64             `json:"read_ms,omitempty"`    // how long the reading took
	LeftOut     uint64            `json:"left_out,omitempty"`   // failed verdicts of this slot that were not journaled since its last entry
	Record      json.RawMessage   `json:"record,omitempty"`     // of Passed: the envelope, as board.Seal made it
}

// Known is what a record contradicts; what is not known is empty.
type Known struct {
	Device string `json:"device,omitempty"`
	Key    string `json:"key,omitempty"` // its fingerprint
	By     string `json:"by,omitempty"`  // the origin of the station that enrolled it
}

// Rejection says that the registry refused the record of an entry for good.
// Reason Resolved says that it took the record later, after somebody cleared
// the cause and requeued it.
type Rejection struct {
	Of          uint64            `json:"of"`
	Device      board.DeviceID    `json:"device"`
	Fingerprint board.Fingerprint `json:"fingerprint"`
	Reason      string            `json:"reason"` // device-conflict, key-conflict, invalid, untrusted, resolved
	Text        string            `json:"text,omitempty"`
	Known       *Known            `json:"known,omitempty"`
}

// The reasons of rejections; the first two are also reasons of failed verdicts.
const (
	ReasonDeviceConflict = "device-conflict"
	ReasonKeyConflict    = "key-conflict"
	ReasonInvalid        = "invalid"   // board.ErrRecord or board.ErrEnvelope
	ReasonUntrusted      = "untrusted" // board.ErrUntrusted
	Resolved             = "resolved"
)

// Lost stands where an entry was that is lost.
type Lost struct {
	Reason string `json:"reason"` // what was found in its place
}

const TimeLayout = "2006-01-02T15:04:05.000Z"

// MaxEntryLine caps a line of the journal, with its checksum.
const MaxEntryLine = board.MaxEnvelope + 8192

// maxText caps each text of a verdict or a rejection, in bytes.
const (
	MaxText          = 256
	MaxRejectionText = 1024
)

// ErrEntry says that something is not an entry of a journal.
var ErrEntry = errors.New("not a journal entry")

// ErrFormat says that a journal is of another format than this program's.
var ErrFormat = errors.New("a journal of another format")

type wireEntry struct {
	Seq       uint64     `json:"seq"`
	Time      string     `json:"time"`
	Kind      Kind       `json:"kind"`
	Segment   *Segment   `json:"segment,omitempty"`
	Verdict   *Verdict   `json:"verdict,omitempty"`
	Rejection *Rejection `json:"rejection,omitempty"`
	Lost      *Lost      `json:"lost,omitempty"`
}

// Encode returns the entry's JSON, which is also its leaf in the Merkle tree.
func (e *Entry) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	w := wireEntry{e.Seq, e.Time.Format(TimeLayout), e.Kind, e.Segment, e.Verdict, e.Rejection, e.Lost}
	if err := enc.Encode(w); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrEntry, err)
	}
	data := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(data)+10 > MaxEntryLine {
		return nil, fmt.Errorf("%w: %d bytes", ErrEntry, len(data))
	}
	return data, nil
}

func (e *Entry) check() error {
	bodies := map[Kind]bool{KindSegment: e.Segment != nil, KindVerdict: e.Verdict != nil, KindRejection: e.Rejection != nil, KindLost: e.Lost != nil}
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
	switch {
	case e.Segment != nil && e.Segment.Format < 1:
		return fmt.Errorf("%w: format %d", ErrEntry, e.Segment.Format)
	case e.Verdict != nil:
		return e.Verdict.check()
	case e.Rejection != nil:
		return e.Rejection.check()
	}
	return nil
}

func (v *Verdict) check() error {
	for _, text := range []string{v.Slot, v.WorkOrder, v.Label, v.Operator, v.Transcript} {
		if len(text) > MaxText || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			return fmt.Errorf("%w: %.80q is not up to %d bytes of plain text", ErrEntry, text, MaxText)
		}
	}
	known := v.Device.Valid() && v.Fingerprint != (board.Fingerprint{})
	fits := false
	switch v.Result {
	case Passed:
		fits = known && len(v.Record) > 0 && v.Reason == "" && v.Of == nil && v.Known == nil
	case Repeated:
		fits = known && len(v.Record) == 0 && v.Reason == "" && v.Of != nil && v.Known == nil
	case Failed:
		fits = ReasonPattern(v.Reason) && len(v.Record) == 0 && v.Of == nil
	}
	if !fits || v.ReadMS < 0 || v.Device != (board.DeviceID{}) && !v.Device.Valid() {
		return fmt.Errorf("%w: a verdict %.20q whose fields do not fit", ErrEntry, v.Result)
	}
	return nil
}

// ReasonPattern accepts lower-case words with dashes between them.
func ReasonPattern(s string) bool {
	return s != "" && len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

func (r *Rejection) check() error {
	switch r.Reason {
	case ReasonDeviceConflict, ReasonKeyConflict, ReasonInvalid, ReasonUntrusted, Resolved:
	default:
		return fmt.Errorf("%w: unknown reason %.40q", ErrEntry, r.Reason)
	}
	if !r.Device.Valid() || len(r.Text) > MaxRejectionText || !utf8.ValidString(r.Text) {
		return fmt.Errorf("%w: a rejection whose fields do not fit", ErrEntry)
	}
	return nil
}

// ParseEntry reads what Encode writes: what parses encodes to the same bytes. A
// record's envelope is looked at by board.OpenEnvelope, not here. The first
// entry of a segment of a newer format is board.ErrNewer, that of an older one
// ErrFormat.
func ParseEntry(data []byte) (Entry, error) {
	if len(data) > MaxEntryLine {
		return Entry{}, fmt.Errorf("%w: %d bytes, at most %d are read", ErrEntry, len(data), MaxEntryLine)
	}
	var other struct {
		Segment struct {
			Format int `json:"format"`
		} `json:"segment"`
	}
	// Only the first entry of a segment has the field.
	if bytes.Contains(data[:min(len(data), 128)], []byte(`"segment":{`)) && json.Unmarshal(data, &other) == nil {
		switch format := other.Segment.Format; {
		case format > Format:
			return Entry{}, fmt.Errorf("journal format %d, this program reads %d: %w; install the newer version again, nothing was changed", format, Format, board.ErrNewer)
		case format > 0 && format < Format:
			return Entry{}, fmt.Errorf("%w: format %d, this program reads %d; nothing was changed: give the station a new name and an empty state_dir, and keep the old one", ErrFormat, format, Format)
		}
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
	at, err := time.Parse(TimeLayout, w.Time)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: time: %v", ErrEntry, err)
	}
	e := Entry{Seq: w.Seq, Time: at.UTC(), Kind: w.Kind, Segment: w.Segment, Verdict: w.Verdict, Rejection: w.Rejection, Lost: w.Lost}
	again, err := e.Encode()
	if err != nil {
		return Entry{}, err
	}
	if !bytes.Equal(again, data) {
		return Entry{}, fmt.Errorf("%w: not in its one encoding", ErrEntry)
	}
	return e, nil
}

var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodeLine is the JSON, a space, its CRC-32C in 8 hex digits, and a line
// feed.
func EncodeLine(data []byte) []byte {
	return fmt.Appendf(bytes.Clone(data), " %08x\n", crc32.Checksum(data, Castagnoli))
}

// CheckLine takes a line without its line feed apart and checks the sum.
func CheckLine(line []byte) (data []byte, err error) {
	i := len(line) - 9
	if i < 1 || line[i] != ' ' {
		return nil, fmt.Errorf("%w: no checksum", ErrEntry)
	}
	var want [4]byte
	if _, err := hex.Decode(want[:], line[i+1:]); err != nil || bytes.ContainsAny(line[i+1:], "ABCDEF") || binary.BigEndian.Uint32(want[:]) != crc32.Checksum(line[:i], Castagnoli) {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrEntry)
	}
	return line[:i], nil
}
