package spool

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/station/board"
)

// indexedOf decodes of an entry what the index needs; a nil means that it needs nothing. Signatures, proofs and the one encoding are
// VerifyDir's to look at.
func indexedOf(at position, seq uint64, data []byte) (*indexed, error) {
	if r, kind, ok := glance(data); ok {
		if kind != KindRecord {
			return nil, nil
		}
		r.at, r.seq = at, seq
		return &r, nil
	}
	e, err := ParseEntry(data)
	if err != nil {
		return nil, err
	}
	if e.Kind != KindRecord {
		return nil, nil
	}
	sealed, err := board.ParseEnvelope(e.Record)
	if err != nil {
		return nil, err
	}
	return &indexed{sealed.Record.Device, sealed.Record.Fingerprint(), seq, at, e.Time.UnixMilli(), 0, macOf(sealed.Record.Facts["mac"])}, nil
}

// glance reads an entry in the one encoding by its fixed order of fields, some ten times as fast as a decoder. If it is
// not sure it says so.
func glance(data []byte) (r indexed, kind Kind, ok bool) {
	rest := data[bytes.IndexByte(data, ',')+1:]
	text, rest, ok := field(rest, `"time":"`)
	if !ok {
		return r, "", false
	}
	at, err := time.Parse(timeLayout, string(text))
	if err != nil {
		return r, "", false
	}
	r.time = at.UnixMilli()
	text, rest, ok = field(rest, `,"kind":"`)
	if !ok {
		return r, "", false
	}
	switch kind = Kind(text); kind {
	case KindRecord:
	case KindRefusal, KindRepeat, KindLost:
		return r, kind, true
	default: // a segment may be of a newer format
		return r, "", false
	}
	text, rest, ok = field(rest, `,"record":{"payloadType":"`)
	if !ok || string(text) != board.PayloadType {
		return r, "", false
	}
	text, _, ok = field(rest, `,"payload":"`)
	if !ok {
		return r, "", false
	}
	var payload [1536]byte // its first fields, in which all is that is wanted here
	whole := len(text) <= len(payload)/3*4
	n, err := base64.StdEncoding.Decode(payload[:], text[:min(len(text), len(payload)/3*4)])
	if err != nil {
		return r, "", false
	}
	rest = payload[:n]
	for _, name := range []string{`{"version":1,"sku":"`, `,"station":"`, `,"device":"`, `,"key":"`, `,"fingerprint":"`} {
		if text, rest, ok = field(rest, name); !ok {
			return r, "", false
		}
		switch name {
		case `,"device":"`:
			if len(text) != 2*len(r.device) || !lowerHex(r.device[:], text) || !r.device.Valid() {
				return r, "", false
			}
		case `,"fingerprint":"`:
			if len(text) != 2*len(r.key) || !lowerHex(r.key[:], text) {
				return r, "", false
			}
		}
	}
	// Within a string of JSON every quote has a backslash before it, so that this can be nothing but the fact.
	_, said, ok := bytes.Cut(rest, []byte(`"mac":"`))
	if end := bytes.IndexByte(said, '"'); ok && end >= 0 {
		r.mac = macOf(string(said[:end]))
	} else if !whole {
		return r, "", false
	}
	return r, kind, true
}

// toldOf decodes a repeat or a refusal for the index; ok is false for every other entry.
func toldOf(at position, seq uint64, data []byte) (t told, ok bool, err error) {
	_, kind, sure := glance(data)
	if sure && kind != KindRepeat && kind != KindRefusal {
		return t, false, nil
	}
	e, err := ParseEntry(data)
	if err != nil {
		return t, false, err
	}
	t, ok = toldBy(&e, at)
	t.seq = seq
	return t, ok, nil
}

func toldBy(e *Entry, at position) (t told, ok bool) {
	t = told{seq: e.Seq, event: event{At: e.Time.UnixMilli(), position: at}}
	switch e.Kind {
	case KindRepeat:
		t.event.Kind, t.devices[0] = eventRepeat, e.Repeat.Device
	case KindRefusal:
		t.event.Kind, t.devices[0] = eventRefusal, e.Refusal.Device
		if e.Refusal.KnownDevice != e.Refusal.Device {
			t.devices[1] = e.Refusal.KnownDevice
		}
	default:
		return t, false
	}
	return t, true
}

// timeOf reads an entry's second field.
func timeOf(data []byte) (time.Time, error) {
	text, _, ok := field(data[bytes.IndexByte(data, ',')+1:], `"time":"`)
	if !ok {
		return time.Time{}, fmt.Errorf("%w: no time", ErrEntry)
	}
	return time.Parse(timeLayout, string(text))
}

// field takes a string from the front of some JSON. The strings that are looked at here have no escapes.
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

// loadBatch is how many keys one transaction of a load holds.
const loadBatch = 1 << 15

// load brings many records into the index. It puts each bucket's keys in order, which bbolt takes many times as fast as keys in
// any order. If it fails in the middle, the index has records which its progress does not count yet; to load them
// again changes nothing. A few records, or an index which has some already, go through apply.
func load(db *bolt.DB, records []indexed, empty bool) error {
	if !empty {
		for batch := range slices.Chunk(records, loadBatch) {
			if err := db.Update(func(tx *bolt.Tx) error {
				for i := range batch {
					if err := apply(tx, &batch[i]); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	}
	// The records stay where they are, and are put in order by pointers.
	order := make([]*indexed, len(records))
	for i := range records {
		order[i] = &records[i]
	}
	// The newest record of a key counts, and of those the newest of a device, as with apply. They are sorted while the queue is written.
	var byKey, byDevice []*indexed
	var sorting sync.WaitGroup
	sorting.Go(func() {
		key := func(a, b *indexed) int { return bytes.Compare(a.key[:], b.key[:]) }
		byKey = newest(slices.Clone(order), key)
		byDevice = newest(slices.Clone(byKey), func(a, b *indexed) int { return bytes.Compare(a.device[:], b.device[:]) })
		if len(byKey) != len(byDevice) { // a device had two keys
			byKey = newest(slices.Clone(byDevice), key)
		}
	})
	err := put(db, bucketQueue, 1, order, func(b *bolt.Bucket, r *indexed) error {
		if r.delivered != 0 {
			return nil
		}
		q := queued{r.at.segment, r.at.offset, r.time}
		return b.Put(encodeSeq(r.seq), q.encode())
	})
	sorting.Wait()
	if err != nil {
		return err
	}
	if err := put(db, bucketDevices, 0.8, byDevice, func(b *bolt.Bucket, r *indexed) error {
		p := pointer{Key: r.key, Seq: r.seq, At: r.time, Delivered: r.delivered, MAC: r.mac}
		return b.Put(r.device[:], p.encode())
	}); err != nil {
		return err
	}
	return put(db, bucketKeys, 0.8, byKey, func(b *bolt.Bucket, r *indexed) error {
		return b.Put(r.key[:], r.device[:])
	})
}

// newest sorts by a name and keeps the record with the highest seq of each.
func newest(order []*indexed, compare func(a, b *indexed) int) []*indexed {
	slices.SortFunc(order, func(a, b *indexed) int {
		if c := compare(a, b); c != 0 {
			return c
		}
		return cmp.Compare(b.seq, a.seq)
	})
	return slices.CompactFunc(order, func(a, b *indexed) bool { return compare(a, b) == 0 })
}

func put(db *bolt.DB, bucket []byte, fill float64, order []*indexed, f func(*bolt.Bucket, *indexed) error) error {
	for batch := range slices.Chunk(order, loadBatch) {
		if err := db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucket)
			b.FillPercent = fill
			for _, r := range batch {
				if err := f(b, r); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// broke names what an entry with a good checksum has that no entry has. A newer version is no damage.
func broke(err error) error {
	if errors.Is(err, board.ErrNewer) {
		return fmt.Errorf("reading the journal: %w; install the newer version again, nothing was changed", err)
	}
	return &DamageError{Reason: err}
}
