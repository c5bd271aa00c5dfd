package journal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"secretfree/station/board"
	"slices"
	"time"
)

// MAC is what a board said of its MAC address; zero if it said nothing.
type MAC [6]byte

// ParseMAC reads the fact that the dialects write.
func ParseMAC(fact string) (m MAC) {
	if len(fact) != 17 {
		return m
	}
	for i := range m {
		if i > 0 && fact[3*i-1] != ':' || !lowerHex(m[i:i+1], []byte(fact[3*i:3*i+2])) {
			return MAC{}
		}
	}
	return m
}

var Results = []Result{Passed, Repeated, Failed}

// Summary is what the index needs of an entry.
type Summary struct {
	Device    board.DeviceID
	Key       board.Fingerprint
	Seq       uint64
	At        Position
	Time      int64  // Unix milliseconds
	Result    Result // empty: no verdict
	MAC       MAC
	Tags      *Tags           // of a verdict
	Other     *board.DeviceID // of a conflict: the device that is known
	Rejection *Rejection
}

// Tags are the texts of a verdict that the index needs. Many entries share
// them.
type Tags struct{ Slot, Reason, Order string }

// IsRecord tells of an entry that enrols a board.
func (e *Summary) IsRecord() bool { return e.Result == Passed }

// Summarize decodes of an entry what the index needs. Signatures, proofs and
// the one encoding are VerifyDir's to look at. known makes tags that are
// shared; nil: none are.
func Summarize(at Position, seq uint64, data []byte, known TagTable) (Summary, error) {
	if e, ok := ScanVerdict(data, known); ok {
		e.At, e.Seq = at, seq
		return e, nil
	}
	parsed, err := ParseEntry(data)
	if err != nil {
		return Summary{}, err
	}
	e := SummaryOf(&parsed, at)
	if record := parsed.Record(); record != nil {
		sealed, err := board.ParseEnvelope(record)
		if err != nil {
			return Summary{}, err
		}
		e.MAC = ParseMAC(sealed.Record().Facts["mac"])
	}
	return e, nil
}

// SummaryOf is indexedOf for an entry that is parsed, without its MAC address.
func SummaryOf(e *Entry, at Position) Summary {
	out := Summary{Seq: e.Seq, At: at, Time: e.Time.UnixMilli(), Rejection: e.Rejection}
	if r := e.Rejection; r != nil {
		out.Device, out.Key = r.Device, r.Fingerprint
	}
	if v := e.Verdict; v != nil {
		out.Result, out.Device, out.Key = v.Result, v.Device, v.Fingerprint
		out.Tags = &Tags{v.Slot, v.Reason, v.WorkOrder}
		if v.Known != nil {
			if other, err := board.ParseDeviceID(v.Known.Device); err == nil {
				out.Other = &other
			}
		}
	}
	return out
}

// TagTable has the tags that were met.
type TagTable map[Tags]*Tags

// of returns shared tags; what scanVerdict gives it is a part of a line.
func (t TagTable) of(slot, reason, order []byte) *Tags {
	if known := t[Tags{string(slot), string(reason), string(order)}]; known != nil {
		return known
	}
	fresh := Tags{string(slot), string(reason), string(order)}
	if t != nil {
		t[fresh] = &fresh
	}
	return &fresh
}

// ScanVerdict reads a verdict in the one encoding by its fixed order of fields,
// some ten times as fast as a decoder. If it is not sure it says so.
func ScanVerdict(data []byte, known TagTable) (e Summary, ok bool) {
	rest := data[bytes.IndexByte(data, ',')+1:]
	text, rest, ok := field(rest, `"time":"`)
	if !ok {
		return e, false
	}
	at, err := time.Parse(TimeLayout, string(text))
	if err != nil {
		return e, false
	}
	e.Time = at.UnixMilli()
	text, rest, ok = field(rest, `,"kind":"`)
	if !ok || string(text) != string(KindVerdict) {
		return e, false
	}
	text, rest, ok = field(rest, `,"verdict":{"result":"`)
	if !ok {
		return e, false
	}
	i := slices.Index(Results, Result(text))
	if i < 0 {
		return e, false
	}
	e.Result = Results[i]
	var slot, reason, order []byte
	for {
		if string(rest) == "}}" {
			e.Tags = known.of(slot, reason, order)
			return e, !e.IsRecord()
		}
		end := bytes.IndexByte(rest, ':')
		if end < 4 || rest[0] != ',' || rest[1] != '"' || rest[end-1] != '"' {
			return e, false
		}
		name := rest[2 : end-1]
		rest = rest[end+1:]
		if string(name) == "record" {
			e.Tags = known.of(slot, reason, order)
			return e, e.IsRecord() && e.Device.Valid() && e.scanMAC(rest)
		}
		switch string(name) {
		case "of", "after", "read_ms", "left_out":
			end := bytes.IndexAny(rest, ",}")
			if end < 1 {
				return e, false
			}
			rest = rest[end:]
			continue
		}
		if text, rest, ok = field(rest, `"`); !ok {
			return e, false
		}
		switch string(name) {
		case "slot":
			slot = text
		case "reason":
			reason = text
		case "work_order":
			order = text
		case "device":
			if len(text) != 2*len(e.Device) || !lowerHex(e.Device[:], text) || !e.Device.Valid() {
				return e, false
			}
		case "fingerprint":
			if len(text) != 2*len(e.Key) || !lowerHex(e.Key[:], text) {
				return e, false
			}
		case "label", "operator", "transcript":
		default:
			return e, false
		}
	}
}

// scanMAC reads the fact in an envelope.
func (e *Summary) scanMAC(envelope []byte) bool {
	text, rest, ok := field(envelope, `{"payloadType":"`)
	if !ok || string(text) != board.PayloadType {
		return false
	}
	if text, _, ok = field(rest, `,"payload":"`); !ok {
		return false
	}
	var payload [1536]byte // its first fields, in which all is that is wanted here
	whole := len(text) <= len(payload)/3*4
	n, err := base64.StdEncoding.Decode(payload[:], text[:min(len(text), len(payload)/3*4)])
	if err != nil {
		return false
	}
	// Within a string of JSON every quote has a backslash before it, so that
	// this can be nothing but the fact.
	_, said, ok := bytes.Cut(payload[:n], []byte(`"mac":"`))
	if end := bytes.IndexByte(said, '"'); ok && end >= 0 {
		e.MAC = ParseMAC(string(said[:end]))
		return true
	}
	return whole
}

// TimeOf reads an entry's second field.
func TimeOf(data []byte) (time.Time, error) {
	text, _, ok := field(data[bytes.IndexByte(data, ',')+1:], `"time":"`)
	if !ok {
		return time.Time{}, fmt.Errorf("%w: no time", ErrEntry)
	}
	return time.Parse(TimeLayout, string(text))
}

// field takes a string from the front of some JSON. The strings that are looked
// at here have no escapes.
func field(data []byte, name string) (text, rest []byte, ok bool) {
	if len(data) < len(name) || string(data[:len(name)]) != name {
		return nil, nil, false
	}
	data = data[len(name):]
	end := bytes.IndexByte(data, '"')
	if end < 0 || bytes.IndexByte(data[:end], '\\') >= 0 {
		return nil, nil, false
	}
	return data[:end], data[end+1:], true
}

func lowerHex(to, text []byte) bool {
	_, err := hex.Decode(to, text)
	return err == nil && !bytes.ContainsAny(text, "ABCDEF")
}

// AsDamage names what an entry with a good checksum has that no entry has. A
// newer version is no damage.
func AsDamage(err error) error {
	if errors.Is(err, board.ErrNewer) || errors.Is(err, ErrFormat) {
		return fmt.Errorf("reading the journal: %w", err)
	}
	return &DamageError{Reason: err}
}
