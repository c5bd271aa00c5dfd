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

// indexedOf decodes of an entry what the index needs. Signatures, proofs and the
// one encoding are VerifyDir's to look at. known makes tags that are shared; nil: none are.
func indexedOf(at position, seq uint64, data []byte, known tagTable) (indexed, error) {
	if e, ok := scanVerdict(data, known); ok {
		e.at, e.seq = at, seq
		return e, nil
	}
	parsed, err := ParseEntry(data)
	if err != nil {
		return indexed{}, err
	}
	e := indexedBy(&parsed, at)
	if record := parsed.Record(); record != nil {
		sealed, err := board.ParseEnvelope(record)
		if err != nil {
			return indexed{}, err
		}
		e.mac = macOf(sealed.Record.Facts["mac"])
	}
	return e, nil
}

// indexedBy is indexedOf for an entry that is parsed, without its MAC address.
func indexedBy(e *Entry, at position) indexed {
	out := indexed{seq: e.Seq, at: at, time: e.Time.UnixMilli(), rejection: e.Rejection}
	if r := e.Rejection; r != nil {
		out.device, out.key = r.Device, r.Fingerprint
	}
	if v := e.Verdict; v != nil {
		out.result, out.device, out.key = v.Result, v.Device, v.Fingerprint
		out.tags = &tags{v.Slot, v.Reason, v.WorkOrder}
		if v.Known != nil {
			if other, err := board.ParseDeviceID(v.Known.Device); err == nil {
				out.other = &other
			}
		}
	}
	return out
}

// tagTable has the tags that were met.
type tagTable map[tags]*tags

// of returns shared tags; what scanVerdict gives it is a part of a line.
func (t tagTable) of(slot, reason, order []byte) *tags {
	if known := t[tags{string(slot), string(reason), string(order)}]; known != nil {
		return known
	}
	fresh := tags{string(slot), string(reason), string(order)}
	if t != nil {
		t[fresh] = &fresh
	}
	return &fresh
}

// scanVerdict reads a verdict in the one encoding by its fixed order of fields, some
// ten times as fast as a decoder. If it is not sure it says so.
func scanVerdict(data []byte, known tagTable) (e indexed, ok bool) {
	rest := data[bytes.IndexByte(data, ',')+1:]
	text, rest, ok := field(rest, `"time":"`)
	if !ok {
		return e, false
	}
	at, err := time.Parse(timeLayout, string(text))
	if err != nil {
		return e, false
	}
	e.time = at.UnixMilli()
	text, rest, ok = field(rest, `,"kind":"`)
	if !ok || string(text) != string(KindVerdict) {
		return e, false
	}
	text, rest, ok = field(rest, `,"verdict":{"result":"`)
	if !ok {
		return e, false
	}
	i := slices.Index(results, Result(text))
	if i < 0 {
		return e, false
	}
	e.result = results[i]
	var slot, reason, order []byte
	for {
		if string(rest) == "}}" {
			e.tags = known.of(slot, reason, order)
			return e, !e.isRecord()
		}
		end := bytes.IndexByte(rest, ':')
		if end < 4 || rest[0] != ',' || rest[1] != '"' || rest[end-1] != '"' {
			return e, false
		}
		name := rest[2 : end-1]
		rest = rest[end+1:]
		if string(name) == "record" {
			e.tags = known.of(slot, reason, order)
			return e, e.isRecord() && e.device.Valid() && e.scanMAC(rest)
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
			if len(text) != 2*len(e.device) || !lowerHex(e.device[:], text) || !e.device.Valid() {
				return e, false
			}
		case "fingerprint":
			if len(text) != 2*len(e.key) || !lowerHex(e.key[:], text) {
				return e, false
			}
		case "label", "operator", "transcript":
		default:
			return e, false
		}
	}
}

// scanMAC reads the fact in an envelope.
func (e *indexed) scanMAC(envelope []byte) bool {
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
	// Within a string of JSON every quote has a backslash before it, so that this can be nothing but the fact.
	_, said, ok := bytes.Cut(payload[:n], []byte(`"mac":"`))
	if end := bytes.IndexByte(said, '"'); ok && end >= 0 {
		e.mac = macOf(string(said[:end]))
		return true
	}
	return whole
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

// load brings many entries into the index. It puts each bucket's keys in order, which bbolt takes many times as fast as keys in
// any order. If it fails in the middle, the index has entries which its progress does not count yet; it is thrown away then. A few
// entries, or an index which has some already, go through put, all in one transaction with what end does.
func load(db *bolt.DB, entries []indexed, empty bool, end func(tx *bolt.Tx) error) error {
	if !empty {
		return db.Update(func(tx *bolt.Tx) error {
			var c counted
			for i := range entries {
				if err := entries[i].put(tx, &c); err != nil {
					return err
				}
			}
			return errors.Join(c.put(tx), end(tx))
		})
	}
	// The records stay where they are, and are put in order by pointers.
	all := make([]*indexed, len(entries))
	var order []*indexed
	for i := range entries {
		all[i] = &entries[i]
		if entries[i].isRecord() {
			order = append(order, &entries[i])
		}
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
		q := queued{r.at.segment, r.at.offset, r.time}
		return b.Put(encodeSeq(r.seq), q.encode())
	})
	sorting.Wait()
	if err != nil {
		return err
	}
	if err := put(db, bucketDevices, 0.8, byDevice, func(b *bolt.Bucket, r *indexed) error {
		p := pointer{Key: r.key, Seq: r.seq, At: r.time, MAC: r.mac}
		return b.Put(r.device[:], p.encode())
	}); err != nil {
		return err
	}
	if err := put(db, bucketKeys, 0.8, byKey, func(b *bolt.Bucket, r *indexed) error {
		return b.Put(r.key[:], r.device[:])
	}); err != nil {
		return err
	}
	var c counted
	for batch := range slices.Chunk(all, loadBatch) {
		if err := db.Update(func(tx *bolt.Tx) error {
			for _, e := range batch {
				if err := e.putRow(tx, &c); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return db.Update(func(tx *bolt.Tx) error { return errors.Join(c.put(tx), end(tx)) })
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
	if errors.Is(err, board.ErrNewer) || errors.Is(err, ErrFormat) {
		return fmt.Errorf("reading the journal: %w", err)
	}
	return &DamageError{Reason: err}
}
