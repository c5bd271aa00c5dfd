package board

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// RecordVersion is the version of record that this program writes, and the
// newest it reads.
const RecordVersion = 1

// MaxRecord caps the encoded size of a record, in bytes.
const MaxRecord = 16 << 10

const maxFacts = 32

var (
	earliest = time.Unix(0, 0).UTC()
	latest   = time.Date(9999, time.December, 31, 23, 59, 59, 999e6, time.UTC)
)

// Timestamp returns a time as records and journal entries hold it: UTC, whole
// milliseconds, 1970 to 9999. A clock that says anything else is wrong, and
// must still stop no line: its time is the nearest one that can be written.
func Timestamp(t time.Time) time.Time {
	switch t = t.UTC().Truncate(time.Millisecond); {
	case t.Before(earliest):
		return earliest
	case t.After(latest):
		return latest
	}
	return t
}

// readAtLayout is RFC 3339 in UTC with exactly three digits of milliseconds.
const readAtLayout = "2006-01-02T15:04:05.000Z"

// Record is what a station writes down about one board: this serial number has
// this public key.
type Record struct {
	SKU        string
	Station    string
	Device     DeviceID
	Key        Key
	ReadAt     time.Time // see Timestamp
	Generation int       // 1 at first; raised when a device is deliberately enrolled anew
	// Facts is what the board said of itself, nothing that the station
	// believes: keys of 1 to 32 of a-z 0-9 . -, values of at most 256 printable
	// ASCII characters, at most 32 of them.
	Facts map[string]string
	Proof *Proof // nil only where the SKU's policy asks for none
}

// ErrRecord says that something is not a valid record. It can never become one:
// a caller need not try again.
var ErrRecord = errors.New("not a valid record")

// ErrNewer says that something was written by a newer version of this software.
var ErrNewer = errors.New("written by a newer version of this software")

// wireRecord is the JSON: the order of its fields is the order on the wire.
type wireRecord struct {
	Version     int               `json:"version"`
	SKU         string            `json:"sku"`
	Station     string            `json:"station"`
	Device      DeviceID          `json:"device"`
	Key         []byte            `json:"key"`
	Fingerprint Fingerprint       `json:"fingerprint"`
	ReadAt      string            `json:"read_at"`
	Generation  int               `json:"generation"`
	Facts       map[string]string `json:"facts"`
	Proof       *Proof            `json:"proof,omitempty"`
}

// Fingerprint is that of the key.
func (r Record) Fingerprint() Fingerprint { return r.Key.Fingerprint() }

// Origin is the identity of the station that read the board.
func (r Record) Origin() string { return Origin(r.SKU, r.Station) }

// Check reports what keeps r from being a valid record. It looks at the form of
// the proof; Proof.Verify checks its signatures.
func (r Record) Check() error {
	for _, name := range []string{r.SKU, r.Station} {
		if err := CheckName(name); err != nil {
			return fmt.Errorf("%w: %v", ErrRecord, err)
		}
	}
	switch {
	case !r.Device.Valid():
		return fmt.Errorf("%w: %v", ErrRecord, ErrDeviceID)
	case r.Key == Key{}:
		return fmt.Errorf("%w: no key", ErrRecord)
	case r.ReadAt.Location() != time.UTC || !r.ReadAt.Equal(Timestamp(r.ReadAt)):
		return fmt.Errorf("%w: read_at %v is not in UTC, whole milliseconds and the years 1970 to 9999", ErrRecord, r.ReadAt)
	case r.Generation < 1:
		return fmt.Errorf("%w: generation %d, want 1 or more", ErrRecord, r.Generation)
	case len(r.Facts) > maxFacts:
		return fmt.Errorf("%w: %d facts, want at most %d", ErrRecord, len(r.Facts), maxFacts)
	}
	for name, value := range r.Facts {
		if err := checkFact(name, value); err != nil {
			return fmt.Errorf("%w: %v", ErrRecord, err)
		}
	}
	if r.Proof != nil {
		if err := r.Proof.check(); err != nil {
			return fmt.Errorf("%w: %v", ErrRecord, err)
		}
	}
	return nil
}

func checkFact(name, value string) error {
	if len(name) == 0 || len(name) > 32 || len(value) > 256 {
		return fmt.Errorf("the fact %.40q is too long or has no name", name)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' {
			return fmt.Errorf("the name of the fact %q is not of a-z, 0-9, . and -", name)
		}
	}
	for _, c := range []byte(value) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("the value of the fact %q is not printable ASCII", name)
		}
	}
	return nil
}

// Encode returns the one encoding of r: JSON in a fixed order, facts sorted by
// name, no white space.
func (r Record) Encode() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	w := wireRecord{
		Version: RecordVersion, SKU: r.SKU, Station: r.Station, Device: r.Device,
		Key: r.Key.SPKI(), Fingerprint: r.Key.Fingerprint(), ReadAt: r.ReadAt.Format(readAtLayout),
		Generation: r.Generation, Facts: r.Facts, Proof: r.Proof,
	}
	if w.Facts == nil {
		w.Facts = map[string]string{}
	}
	out, err := encodeJSON(w)
	if err == nil && len(out) > MaxRecord {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are written", ErrRecord, len(out), MaxRecord)
	}
	return out, err
}

// ParseRecord reads exactly what Encode writes: what parses encodes to the same
// bytes.
func ParseRecord(data []byte) (Record, error) {
	if len(data) > MaxRecord {
		return Record{}, fmt.Errorf("%w: %d bytes, at most %d are read", ErrRecord, len(data), MaxRecord)
	}
	var w wireRecord
	wrong := decodeJSON(data, &w)
	if wrong != nil || w.Version != RecordVersion { // a newer version may have other fields
		var version struct {
			Version int `json:"version"`
		}
		if err := json.Unmarshal(data, &version); err == nil && version.Version > RecordVersion {
			return Record{}, fmt.Errorf("record version %d: %w", version.Version, ErrNewer)
		}
	}
	if wrong != nil {
		return Record{}, fmt.Errorf("%w: %v", ErrRecord, wrong)
	}
	if w.Version != RecordVersion {
		return Record{}, fmt.Errorf("%w: version %d, want %d", ErrRecord, w.Version, RecordVersion)
	}
	key, err := ParseKey(w.Key)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %v", ErrRecord, err)
	}
	readAt, err := time.Parse(readAtLayout, w.ReadAt)
	if err != nil {
		return Record{}, fmt.Errorf("%w: read_at: %v", ErrRecord, err)
	}
	r := Record{
		SKU: w.SKU, Station: w.Station, Device: w.Device, Key: key, ReadAt: readAt.UTC(),
		Generation: w.Generation, Facts: w.Facts, Proof: w.Proof,
	}
	again, err := r.Encode()
	if err != nil {
		return Record{}, err
	}
	// The fingerprint is computed from the key, so a false one fails here as
	// well.
	if !bytes.Equal(again, data) {
		return Record{}, fmt.Errorf("%w: not in its one encoding", ErrRecord)
	}
	return r, nil
}

// encodeJSON is json.Marshal without HTML escapes.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decodeJSON is strict: no unknown field, nothing after the value.
func decodeJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}
