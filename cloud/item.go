package cloud

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

const (
	// enrolledAtLayout is RFC 3339 in UTC with milliseconds.
	enrolledAtLayout = "2006-01-02T15:04:05.000Z"
	maxPubkey        = 8 << 10
	guardPrefix      = "key:"
)

// item is a device item as it is stored: text, not yet believed. An empty field
// is an absent attribute.
type item struct {
	device      string
	pubkey      string
	bucket      string // empty in a directory
	object      string
	fingerprint string
	record      string // the signed envelope
	station     string // its origin, "<sku>/<station>"
	enrolledAt  string // when the station read the board
	state       string
	generation  string // decimal; a number on the wire
	epoch       string // decimal; a number on the wire
	history     string // the one JSON encoding of events; a list on the wire

	rest string // of a file: attributes of other names, as JSON after a comma each, in order
}

type attribute struct {
	name  string
	value *string
	kind  attributeKind
}

// attributeKind is the type of an attribute on the wire.
type attributeKind int

const (
	textKind attributeKind = iota
	numberKind
	historyKind
)

// attributes is the one list of names; both encodings follow it.
func (i *item) attributes() []attribute {
	return []attribute{
		{"device-id", &i.device, textKind},
		{"pubkey", &i.pubkey, textKind},
		{"pubkey-bucket", &i.bucket, textKind},
		{"pubkey-object", &i.object, textKind},
		{"key-fingerprint", &i.fingerprint, textKind},
		{"record", &i.record, textKind},
		{"station", &i.station, textKind},
		{"enrolled-at", &i.enrolledAt, textKind},
		{"state", &i.state, textKind},
		{"generation", &i.generation, numberKind},
		{"epoch", &i.epoch, numberKind},
		{"state-history", &i.history, historyKind},
	}
}

// newItem depends on the record alone, so that writing it twice writes the
// same.
func newItem(s board.Sealed, format PubkeyFormat, bucket string) *item {
	r := s.Record()
	pubkey := string(r.Key.PEM())
	if format != PubkeyPEM {
		pubkey = base64.StdEncoding.EncodeToString([]byte(pubkey))
	}
	return &item{
		device: r.Device.String(), pubkey: pubkey, bucket: bucket, object: objectName(r.Device, r.Fingerprint()),
		fingerprint: r.Fingerprint().String(), record: string(s.Envelope()), station: r.Origin(),
		enrolledAt: r.ReadAt.Format(enrolledAtLayout), state: string(board.Active), generation: strconv.Itoa(r.Generation),
	}
}

// enrolment reads the item strictly. An item without a record need have no more
// than its key; what it has besides must still be right. The error wraps
// ErrDamaged.
func (i *item) enrolment(asked board.DeviceID) (board.Enrolment, error) {
	e := board.Enrolment{Device: asked, Station: i.station}
	if i.device != asked.String() {
		return e, damaged(asked, "its item says device-id %.80q", i.device)
	}
	var err error
	if e.Key, err = parsePubkey(i.pubkey); err != nil {
		return e, damaged(asked, "pubkey: %v", err)
	}
	signed := i.record != ""
	if len(i.record) > board.MaxEnvelope {
		return e, damaged(asked, "record: %d bytes, at most %d are read", len(i.record), board.MaxEnvelope)
	}
	if signed {
		e.Envelope = []byte(i.record)
	}
	if (signed || i.fingerprint != "") && i.fingerprint != e.Key.Fingerprint().String() {
		return e, damaged(asked, "key-fingerprint is not that of pubkey")
	}
	if signed || i.station != "" {
		if err := checkOrigin(i.station); err != nil {
			return e, damaged(asked, "station: %v", err)
		}
	}
	if signed || i.enrolledAt != "" {
		if e.EnrolledAt, err = time.Parse(enrolledAtLayout, i.enrolledAt); err != nil {
			return e, damaged(asked, "enrolled-at: %v", err)
		}
	}
	if signed || i.state != "" {
		if e.State, err = board.ParseState(i.state); err != nil {
			return e, damaged(asked, "state: %v", err)
		}
	}
	if signed || i.generation != "" {
		if e.Generation, err = strconv.Atoi(i.generation); err != nil || e.Generation < 1 {
			return e, damaged(asked, "generation is %.40q, want a number from 1", i.generation)
		}
	}
	if i.epoch != "" {
		if e.Epoch, err = strconv.Atoi(i.epoch); err != nil || e.Epoch < 0 || e.Epoch > maxEpoch {
			return e, damaged(asked, "epoch is %.40q, want a number from 0", i.epoch)
		}
	}
	if _, err := i.events(e); err != nil {
		return e, damaged(asked, "state-history: %v", err)
	}
	return e, nil
}

// events are the changes of the state, the latest last. The state and the epoch
// must be what they lead to.
func (i *item) events(e board.Enrolment) ([]Event, error) {
	if i.history == "" {
		return nil, nil
	}
	events, err := parseEvents([]byte(i.history))
	if err != nil {
		return nil, err
	}
	if last := events[len(events)-1]; last.To != e.State || last.Epoch != e.Epoch {
		return nil, fmt.Errorf("it leads to %s in epoch %d, the item says %q in epoch %d", last.To, last.Epoch, e.State, e.Epoch)
	}
	return events, nil
}

// enrolledBy is the origin of the station that the item names, or empty; i may
// be nil.
func (i *item) enrolledBy(device board.DeviceID) string {
	if i == nil {
		return ""
	}
	e, err := i.enrolment(device)
	if err != nil {
		return ""
	}
	return e.Station
}

func checkOrigin(origin string) error {
	sku, station, _ := strings.Cut(origin, "/")
	return errors.Join(board.CheckName(sku), board.CheckName(station))
}

// parsePubkey reads both forms of the attribute.
func parsePubkey(s string) (board.Key, error) {
	if len(s) > maxPubkey {
		return board.Key{}, fmt.Errorf("%d bytes, at most %d are read", len(s), maxPubkey)
	}
	if strings.HasPrefix(s, "-----BEGIN") {
		return board.ParseKeyPEM([]byte(s))
	}
	text, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return board.Key{}, errors.New("neither PEM nor base64 of PEM")
	}
	return board.ParseKeyPEM(text)
}

// guardID is the partition key of a guard item, which says which device a key
// belongs to. No device id has this form.
func guardID(f board.Fingerprint) string { return guardPrefix + f.String() }

// DynamoDB's encoding. Attributes of other names are let pass when reading:
// global tables add some.

func (i *item) dynamo() map[string]types.AttributeValue {
	out := map[string]types.AttributeValue{}
	for _, a := range i.attributes() {
		switch {
		case *a.value == "":
		case a.kind == historyKind:
			out[a.name] = eventsToDynamo(*a.value)
		case a.kind == numberKind:
			out[a.name] = &types.AttributeValueMemberN{Value: *a.value}
		default:
			out[a.name] = &types.AttributeValueMemberS{Value: *a.value}
		}
	}
	return out
}

func itemFromDynamo(device board.DeviceID, in map[string]types.AttributeValue) (*item, error) {
	i := &item{}
	for _, a := range i.attributes() {
		switch v := in[a.name].(type) {
		case nil:
			continue
		case *types.AttributeValueMemberN:
			if a.kind == numberKind {
				*a.value = v.Value
				continue
			}
		case *types.AttributeValueMemberS:
			if a.kind == textKind {
				*a.value = v.Value
				continue
			}
		case *types.AttributeValueMemberL:
			if a.kind == historyKind {
				var err error
				if *a.value, err = eventsFromDynamo(v); err != nil {
					return nil, damaged(device, "%s: %v", a.name, err)
				}
				continue
			}
		}
		return nil, damaged(device, "the attribute %s is not of its type", a.name)
	}
	return i, nil
}

func guardToDynamo(g board.KeyBinding) map[string]types.AttributeValue {
	return map[string]types.AttributeValue{
		"device-id": &types.AttributeValueMemberS{Value: guardID(g.Key)},
		"device":    &types.AttributeValueMemberS{Value: g.Device.String()},
	}
}

func guardFromDynamo(f board.Fingerprint, in map[string]types.AttributeValue) (*board.KeyBinding, error) {
	id, _ := in["device-id"].(*types.AttributeValueMemberS)
	device, _ := in["device"].(*types.AttributeValueMemberS)
	if id == nil || device == nil {
		return nil, damagedGuard(f)
	}
	return parseGuard(f, id.Value, device.Value)
}

func parseGuard(f board.Fingerprint, id, device string) (*board.KeyBinding, error) {
	known, err := board.ParseDeviceID(device)
	if err != nil || id != guardID(f) {
		return nil, damagedGuard(f)
	}
	return &board.KeyBinding{Device: known, Key: f}, nil
}

func damagedGuard(f board.Fingerprint) error {
	return fmt.Errorf("key %s: %w: its guard does not name a device: find out who changed it and put it right", f, ErrDamaged)
}

// The directory's encoding: the same attributes as one JSON object, in the
// order of the list.

func (i *item) json() []byte {
	var b bytes.Buffer
	for _, a := range i.attributes() {
		if *a.value == "" {
			continue
		}
		separator := ",\n  "
		if b.Len() == 0 {
			separator = "{\n  "
		}
		value := *a.value
		switch a.kind {
		case textKind:
			value = quote(value)
		case historyKind:
			value = onePerLine(value)
		}
		b.WriteString(separator + quote(a.name) + ": " + value)
	}
	b.WriteString(i.rest + "\n}\n")
	return b.Bytes()
}

func itemFromJSON(device board.DeviceID, data []byte) (*item, error) {
	var object map[string]json.RawMessage
	if err := decodeJSON(data, &object); err != nil {
		return nil, damaged(device, "its item: %v", err)
	}
	i := &item{}
	for _, a := range i.attributes() {
		raw, ok := object[a.name]
		if !ok {
			continue
		}
		delete(object, a.name)
		switch a.kind {
		case numberKind:
			*a.value = string(raw) // enrolment reads it as a whole number, or not at all
			continue
		case historyKind:
			events, err := parseEvents(raw)
			if err != nil {
				return nil, damaged(device, "%s: %v", a.name, err)
			}
			*a.value = encodeEvents(events)
			continue
		}
		if err := json.Unmarshal(raw, a.value); err != nil || raw[0] != '"' {
			return nil, damaged(device, "the attribute %s is not of its type", a.name)
		}
	}
	var rest bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(object)) {
		rest.WriteString(",\n  " + quote(name) + ": ")
		if err := json.Compact(&rest, object[name]); err != nil {
			return nil, damaged(device, "the attribute %.80q: %v", name, err)
		}
	}
	i.rest = rest.String()
	return i, nil
}

func guardToJSON(g board.KeyBinding) []byte {
	return []byte("{\n  \"device-id\": " + quote(guardID(g.Key)) + ",\n  \"device\": " + quote(g.Device.String()) + "\n}\n")
}

func guardFromJSON(f board.Fingerprint, data []byte) (*board.KeyBinding, error) {
	var object map[string]string
	if err := decodeJSON(data, &object); err != nil {
		return nil, damagedGuard(f)
	}
	return parseGuard(f, object["device-id"], object["device"])
}

// quote writes a JSON string, without HTML escapes.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes, and a Builder always takes it
	return strings.TrimSuffix(b.String(), "\n")
}

// decodeJSON reads one value and nothing after it.
func decodeJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}
