package spool

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// Read-only queries while the station runs. They never block a writer and are
// never blocked by one: they read the index in short transactions, and files
// without the lock.

// DeviceEntry is what the index knows of a device.
type DeviceEntry struct {
	Device      board.DeviceID
	Fingerprint board.Fingerprint
	Seq         uint64    // of its record
	Time        time.Time // of its record's entry
	Enrolled    bool      // false: it only ever failed, and the rest is empty
	Delivered   bool
	Delivery    Delivery
	MAC         string // as the board said it, six bytes with colons; empty if it said none
}

func deviceEntryOf(device []byte, p *pointer) DeviceEntry {
	s := DeviceEntry{Device: board.DeviceID(device), Fingerprint: p.Key, Seq: p.Seq, Time: time.UnixMilli(p.At).UTC(), Enrolled: true, Delivered: p.Delivered != 0}
	if p.MAC != (journal.MAC{}) {
		text := hex.EncodeToString(p.MAC[:])
		s.MAC = text[:2]
		for i := 2; i < len(text); i += 2 {
			s.MAC += ":" + text[i:i+2]
		}
	}
	return s
}

// readIndex reads the index.
func (s *Spool) readIndex(f func(*bolt.Tx) error) error {
	db := s.index.Load()
	if db == nil {
		return ErrClosed
	}
	err := guarded(func() error { return db.View(f) })
	switch {
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		err = ErrClosed
	case errors.Is(err, errIndexUnusable) && s.mu.TryLock(): // whoever has it finds out by itself
		if s.db == db {
			s.trust(err)
		}
		s.unlock()
	}
	return err
}

const (
	// MinFind is how many hex digits Find takes at the least.
	MinFind = 4
	// findBatch is how many devices one transaction looks at: it takes about a
	// millisecond, so that a commit which needs a larger file, and waits for
	// who reads, does not wait long.
	findBatch = 5000
	// maxEvents is how many of a device's newest repeats and refusals History
	// gives.
	maxEvents = 100
)

// ErrFind says that something cannot be looked for.
var ErrFind = errors.New("want at least 4 hex digits of a device id or a MAC address, or the front of a fingerprint of more than 32")

// Find looks for devices by hex digits, which may have colons, dashes or spaces
// between them: those whose id or whose MAC address has them anywhere, or, for
// more than 32, the one whose key's fingerprint begins with them. It returns at
// most limit, in the order of their ids, and whether there are more. A whole id
// or fingerprint is found at once; anything else goes through all devices.
func (s *Spool) Find(ctx context.Context, text string, limit int) (found []DeviceEntry, more bool, err error) {
	digits := strings.ToLower(strings.NewReplacer(":", "", "-", "", " ", "").Replace(text))
	if len(digits) < MinFind || len(digits) > 2*len(board.Fingerprint{}) || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, false, ErrFind
	}
	if device, err := board.ParseDeviceID(digits); err == nil {
		err := s.readIndex(func(tx *bolt.Tx) error {
			s, have, err := deviceEntryIn(tx, device)
			if have {
				found = append(found, s)
			}
			return err
		})
		return found, false, err
	}
	if len(digits) > 2*len(board.DeviceID{}) {
		return s.findKeys(digits, limit)
	}
	after := []byte{}
	var id [2 * len(board.DeviceID{})]byte
	var address [2 * len(journal.MAC{})]byte
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if err := s.readIndex(func(tx *bolt.Tx) error {
			c := tableOf(tx, bucketDevices).Cursor()
			key, value := c.Seek(after)
			for n := 0; key != nil && n < findBatch; n++ {
				var p pointer
				if err := p.decode(value); err != nil {
					return err
				}
				hex.Encode(id[:], key)
				hex.Encode(address[:], p.MAC[:])
				if strings.Contains(string(id[:]), digits) || p.MAC != (journal.MAC{}) && strings.Contains(string(address[:]), digits) {
					if more = len(found) == limit; more {
						break
					}
					s, _, err := deviceEntryIn(tx, board.DeviceID(key))
					if err != nil {
						return err
					}
					found = append(found, s)
				}
				key, value = c.Next()
			}
			done = key == nil || more
			after = bytes.Clone(key)
			return nil
		}); err != nil {
			return nil, false, err
		}
	}
	if more {
		return found, more, nil
	}
	return s.findFailed(ctx, digits, limit, found)
}

// findFailed goes on with devices that only ever failed.
func (s *Spool) findFailed(ctx context.Context, digits string, limit int, found []DeviceEntry) (_ []DeviceEntry, more bool, err error) {
	after := []byte{}
	var id [2 * len(board.DeviceID{})]byte
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if err := s.readIndex(func(tx *bolt.Tx) error {
			devices, c := tableOf(tx, bucketDevices), tableOf(tx, bucketEvents).Cursor()
			key, _ := c.Seek(after)
			for n := 0; key != nil && n < findBatch; n++ {
				device := board.DeviceID(key)
				hex.Encode(id[:], device[:])
				if strings.Contains(string(id[:]), digits) && devices.Get(device[:]) == nil {
					if more = len(found) == limit; more {
						break
					}
					found = append(found, DeviceEntry{Device: device})
				}
				key, _ = c.Seek(append(device[:], bytes.Repeat([]byte{0xff}, 9)...)) // the next device
			}
			done = key == nil || more
			after = bytes.Clone(key)
			return nil
		}); err != nil {
			return nil, false, err
		}
	}
	return found, more, nil
}

// deviceEntryIn is what the index has of a device; false if nothing.
func deviceEntryIn(tx *bolt.Tx, device board.DeviceID) (s DeviceEntry, have bool, err error) {
	data := tableOf(tx, bucketDevices).Get(device[:])
	if data == nil {
		key, _ := tableOf(tx, bucketEvents).Cursor().Seek(device[:])
		return DeviceEntry{Device: device}, bytes.HasPrefix(key, device[:]), nil
	}
	var p pointer
	if err := p.decode(data); err != nil {
		return s, false, err
	}
	s = deviceEntryOf(device[:], &p)
	s.Delivery, _, err = deliveryOf(tx, p.Seq, &p)
	return s, true, err
}

func (s *Spool) findKeys(digits string, limit int) (found []DeviceEntry, more bool, err error) {
	front, err := hex.DecodeString(digits[:len(digits)&^1])
	if err != nil {
		return nil, false, ErrFind
	}
	err = s.readIndex(func(tx *bolt.Tx) error {
		c := tableOf(tx, bucketKeys).Cursor()
		for key, device := c.Seek(front); bytes.HasPrefix(key, front); key, device = c.Next() {
			if !strings.HasPrefix(hex.EncodeToString(key), digits) {
				continue
			}
			if more = len(found) == limit; more {
				return nil
			}
			data := tableOf(tx, bucketDevices).Get(device)
			if data == nil {
				continue
			}
			var p pointer
			if err := p.decode(data); err != nil {
				return err
			}
			found = append(found, deviceEntryOf(device, &p))
		}
		return nil
	})
	return found, more, err
}

// Delivery is how far the registry has a record.
type Delivery string

// How far the registry has a record.
const (
	Confirmed Delivery = "confirmed"
	Waiting   Delivery = "waiting"
	Rejected  Delivery = "rejected" // for good
)

// Item is a verdict with what became of its record.
type Item struct {
	journal.Entry
	Delivery Delivery    // of a passed or repeated verdict
	Dead     *DeadLetter // of Rejected
}

// History is what the journal holds of a device.
type History struct {
	// Seen is that of the record; without one, as of a board that only ever
	// failed, Enrolled is false and Seen has the device alone.
	DeviceEntry
	Record journal.Entry // the record's entry; empty if it cannot be read
	Dead   *DeadLetter   // of Rejected
	// Events are the newest of the other verdicts and of the rejections, the
	// newest first, also those of others that named this device's id or key.
	// Older says how many more there are.
	Events []journal.Entry
	Older  int
}

// History looks a device up. One of which the journal has nothing is
// ErrNoRecord.
func (s *Spool) History(device board.DeviceID) (History, error) {
	h := History{DeviceEntry: DeviceEntry{Device: device}}
	type place struct {
		seq uint64
		at  journal.Position
	}
	var places []place
	record := journal.Position{Offset: -1}
	if err := s.readIndex(func(tx *bolt.Tx) error {
		if data := tableOf(tx, bucketDevices).Get(device[:]); data != nil {
			var p pointer
			if err := p.decode(data); err != nil {
				return err
			}
			h.DeviceEntry = deviceEntryOf(device[:], &p)
			var row entryRow
			if data := tableOf(tx, bucketEntries).Get(encodeSeq(p.Seq)); data != nil && row.decode(data) == nil {
				record = row.at
			}
			var err error
			if h.Delivery, h.Dead, err = deliveryOf(tx, p.Seq, &p); err != nil {
				return err
			}
		}
		c := tableOf(tx, bucketEvents).Cursor()
		for key, value := c.Seek(device[:]); bytes.HasPrefix(key, device[:]); key, value = c.Next() {
			seq, err := decodeSeq(key[len(device):])
			if err != nil {
				return err
			}
			var at journal.Position
			if err := decodePosition(&at, value); err != nil {
				return err
			}
			if len(places) == maxEvents { // the oldest goes
				places = places[1:]
				h.Older++
			}
			places = append(places, place{seq, at})
		}
		return nil
	}); err != nil {
		return History{}, err
	}
	if !h.Enrolled && len(places) == 0 {
		return History{}, fmt.Errorf("device %s: %w", device, journal.ErrNoRecord)
	}
	for _, at := range slices.Backward(places) {
		if e, err := s.entry(at.at, at.seq); err == nil { // otherwise it is damaged
			h.Events = append(h.Events, e)
		}
	}
	if h.Enrolled {
		if e, err := s.entry(record, h.Seq); err == nil {
			h.Record = e
		}
	}
	return h, nil
}

// deliveryOf tells what became of the record of an entry. p is that of its
// device, if it is known.
func deliveryOf(tx *bolt.Tx, seq uint64, p *pointer) (Delivery, *DeadLetter, error) {
	d, err := getDead(tx, seq)
	switch {
	case err == nil:
		return Rejected, &d, nil
	case !errors.Is(err, ErrNoDeadLetter):
		return "", nil, err
	case tableOf(tx, bucketQueue).Get(encodeSeq(seq)) != nil:
		return Waiting, nil, nil
	case p != nil && p.Seq == seq && p.Delivered == 0: // it is damaged
		return Waiting, nil, nil
	}
	return Confirmed, nil, nil
}

// Recent gives the newest verdicts, at most n, the newest first. What cannot be
// read is left out.
func (s *Spool) Recent(ctx context.Context, n int) ([]Item, error) {
	var found []found
	if err := s.readIndex(func(tx *bolt.Tx) error {
		c := tableOf(tx, bucketEntries).Cursor()
		for key, value := c.Last(); key != nil && len(found) < n; key, value = c.Prev() {
			if err := find(tx, key, value, &found); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return s.items(ctx, found)
}

// found is a verdict as the index has it.
type found struct {
	seq      uint64
	at       journal.Position
	delivery Delivery
	dead     *DeadLetter
}

// find appends what the index has of a verdict.
func find(tx *bolt.Tx, key, value []byte, to *[]found) error {
	seq, err := decodeSeq(key)
	if err != nil {
		return err
	}
	var row entryRow
	if err := row.decode(value); err != nil {
		return err
	}
	f := found{seq: seq, at: row.at}
	if row.result != journal.Failed {
		of := seq
		var p pointer
		data := tableOf(tx, bucketDevices).Get(row.device[:])
		have := data != nil
		if have {
			if err := p.decode(data); err != nil {
				return err
			}
			if row.result == journal.Repeated {
				of = p.Seq
			}
		}
		if f.delivery, f.dead, err = deliveryOf(tx, of, &p); err != nil {
			return err
		}
	}
	*to = append(*to, f)
	return nil
}

// items reads the entries of what was found.
func (s *Spool) items(ctx context.Context, found []found) (out []Item, err error) {
	read := journal.LineReader{Dir: s.cfg.Dir}
	defer read.Close()
	for _, f := range found {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		e, err := read.Entry(f.at, f.seq)
		if err != nil {
			if e, err = s.entry(f.at, f.seq); err != nil {
				continue // it is damaged
			}
		}
		out = append(out, Item{Entry: e, Delivery: f.delivery, Dead: f.dead})
	}
	return out, nil
}

// Range gives the verdicts from one time up to, but not with, another, in the
// order in which they were journaled, without the envelopes of records. What
// cannot be read is left out.
func (s *Spool) Range(ctx context.Context, from, to time.Time, visit func(Item)) error {
	after := timeKey(from.UnixMilli(), 0)
	if from.UnixNano()%int64(time.Millisecond) != 0 {
		after = timeKey(from.UnixMilli()+1, 0)
	}
	until := timeKey(to.UnixMilli(), 0)
	if to.UnixNano()%int64(time.Millisecond) != 0 {
		until = timeKey(to.UnixMilli()+1, 0)
	}
	var all []found
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := s.readIndex(func(tx *bolt.Tx) error {
			c, entries := tableOf(tx, bucketTimes).Cursor(), tableOf(tx, bucketEntries)
			key, _ := c.Seek(after)
			for n := 0; n < findBatch && key != nil && bytes.Compare(key, until) < 0; n++ {
				seq := key[8:]
				if value := entries.Get(seq); value != nil {
					if err := find(tx, seq, value, &all); err != nil {
						return err
					}
				}
				key, _ = c.Next()
			}
			done = key == nil || bytes.Compare(key, until) >= 0
			after = bytes.Clone(key)
			return nil
		}); err != nil {
			return err
		}
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.seq, b.seq) })
	for batch := range slices.Chunk(all, findBatch) {
		items, err := s.items(ctx, batch)
		if err != nil {
			return err
		}
		for _, item := range items {
			visit(item)
		}
	}
	return nil
}

// Counts are how many verdicts there are.
type Counts struct {
	Passed, Repeated uint64
	Failed           map[string]uint64 // by reason
}

// AllFailed is the sum of Failed.
func (c *Counts) AllFailed() (n uint64) {
	for _, f := range c.Failed {
		n += f
	}
	return n
}

func (c *Counts) add(key string, n uint64) {
	switch fields := strings.Split(key, "\x00"); journal.Result(fields[1]) {
	case journal.Passed:
		c.Passed += n
	case journal.Repeated:
		c.Repeated += n
	case journal.Failed:
		c.Failed[fields[2]] += n
	}
}

// CountOf counts the verdicts of a work order; of none if it is empty.
func (s *Spool) CountOf(order string) (Counts, error) {
	return s.countFrom(order + "\x00")
}

// Count counts all verdicts of the journal.
func (s *Spool) Count() (Counts, error) { return s.countFrom("") }

func (s *Spool) countFrom(prefix string) (Counts, error) {
	c := Counts{Failed: map[string]uint64{}}
	err := s.readIndex(func(tx *bolt.Tx) error {
		cursor := tableOf(tx, bucketCounts).Cursor()
		for key, value := cursor.Seek([]byte(prefix)); key != nil && bytes.HasPrefix(key, []byte(prefix)); key, value = cursor.Next() {
			n, err := decodeSeq(value)
			if err != nil || bytes.Count(key, []byte{0}) != 2 {
				return errIndexEntry
			}
			c.add(string(key), n)
		}
		return nil
	})
	return c, err
}

// DeliveryOf tells what became of the record of a device; empty if it has none.
func (s *Spool) DeliveryOf(device board.DeviceID) (d Delivery, err error) {
	err = s.readIndex(func(tx *bolt.Tx) error {
		data := tableOf(tx, bucketDevices).Get(device[:])
		if data == nil {
			return nil
		}
		var p pointer
		if err := p.decode(data); err != nil {
			return err
		}
		d, _, err = deliveryOf(tx, p.Seq, &p)
		return err
	})
	return d, err
}

// entry reads an entry of the journal; see journal.FindEntry.
func (s *Spool) entry(at journal.Position, seq uint64) (journal.Entry, error) {
	return journal.FindEntry(s.cfg.Dir, at, seq)
}

// Prove is the package's Prove for a station that runs. It reads the segment
// with the record and the one that is written; of the others it takes the
// hashes beside them. Where those do not give the root that was signed, it
// reads the whole journal.
func (s *Spool) Prove(ctx context.Context, device board.DeviceID) ([]byte, error) {
	var known pointer
	have := false
	if err := s.readIndex(func(tx *bolt.Tx) error {
		data := tableOf(tx, bucketDevices).Get(device[:])
		if have = data != nil; !have {
			return nil
		}
		return known.decode(data)
	}); err != nil {
		return nil, err
	}
	if !have {
		return nil, fmt.Errorf("device %s: %w", device, journal.ErrNoRecord)
	}
	e, err := s.entry(journal.Position{Offset: -1}, known.Seq)
	if err != nil {
		return journal.ProveContext(ctx, s.cfg.Dir, device) // which says what is wrong
	}
	proof, err := journal.ProveEntry(ctx, s.cfg.Dir, e)
	if err != nil && !errors.Is(err, journal.ErrUnsigned) && ctx.Err() == nil {
		return journal.ProveContext(ctx, s.cfg.Dir, device)
	}
	return proof, err
}

// Entries returns the numbers of all entries about a device, in order: its
// record, repeats, failures and rejections, and conflicts of other devices that
// named it. There may be none.
func (s *Spool) Entries(device board.DeviceID) (seqs []uint64, err error) {
	err = s.readIndex(func(tx *bolt.Tx) error {
		seqs, err = deviceSeqs(tx, device)
		return err
	})
	return seqs, err
}

func deviceSeqs(tx *bolt.Tx, device board.DeviceID) (seqs []uint64, err error) {
	if data := tableOf(tx, bucketDevices).Get(device[:]); data != nil {
		var p pointer
		if err := p.decode(data); err != nil {
			return nil, err
		}
		seqs = append(seqs, p.Seq)
	}
	c := tableOf(tx, bucketEvents).Cursor()
	for key, _ := c.Seek(device[:]); bytes.HasPrefix(key, device[:]); key, _ = c.Next() {
		seq, err := decodeSeq(key[len(device):])
		if err != nil {
			return nil, err
		}
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	return slices.Compact(seqs), nil
}
