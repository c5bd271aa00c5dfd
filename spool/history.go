package spool

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/mod/sumdb/tlog"

	"secretfree/station/board"
)

// What is here looks back while the station runs. Like Stats it waits for nobody who writes, and nobody who writes waits for it: it reads the
// index in short transactions, and files without the lock.

// Seen is what the index knows of an enrolled device.
type Seen struct {
	Device      board.DeviceID
	Fingerprint board.Fingerprint
	Seq         uint64    // of its record
	Time        time.Time // of its record's entry
	Delivered   bool
	MAC         string // as the board said it, six bytes with colons; empty if it said none
}

func seenOf(device []byte, p *pointer) Seen {
	s := Seen{Device: board.DeviceID(device), Fingerprint: p.Key, Seq: p.Seq, Time: time.UnixMilli(p.At).UTC(), Delivered: p.Delivered != 0}
	if p.MAC != (mac{}) {
		text := hex.EncodeToString(p.MAC[:])
		s.MAC = text[:2]
		for i := 2; i < len(text); i += 2 {
			s.MAC += ":" + text[i:i+2]
		}
	}
	return s
}

// peek reads the index.
func (s *Spool) peek(f func(*bolt.Tx) error) error {
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
	// findBatch is how many devices one transaction looks at: it takes about a millisecond, so that a commit which needs a larger file, and
	// waits for who reads, does not wait long.
	findBatch = 5000
	// maxEvents is how many of a device's newest repeats and refusals History gives.
	maxEvents = 100
)

// ErrFind says that something cannot be looked for.
var ErrFind = errors.New("want at least 4 hex digits of a device id or a MAC address, or the front of a fingerprint of more than 32")

// Find looks for devices by hex digits, which may have colons, dashes or spaces between them: those whose id or whose MAC address has them
// anywhere, or, for more than 32, the one whose key's fingerprint begins with them. It returns at most limit, in the order of their ids, and
// whether there are more. A whole id or fingerprint is found at once; anything else goes through all devices.
func (s *Spool) Find(ctx context.Context, text string, limit int) (found []Seen, more bool, err error) {
	digits := strings.ToLower(strings.NewReplacer(":", "", "-", "", " ", "").Replace(text))
	if len(digits) < MinFind || len(digits) > 2*len(board.Fingerprint{}) || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil, false, ErrFind
	}
	if device, err := board.ParseDeviceID(digits); err == nil {
		err := s.peek(func(tx *bolt.Tx) error {
			data := tx.Bucket(bucketDevices).Get(device[:])
			if data == nil {
				return nil
			}
			var p pointer
			if err := p.decode(data); err != nil {
				return err
			}
			found = append(found, seenOf(device[:], &p))
			return nil
		})
		return found, false, err
	}
	if len(digits) > 2*len(board.DeviceID{}) {
		return s.findKeys(digits, limit)
	}
	after := []byte{}
	var id [2 * len(board.DeviceID{})]byte
	var address [2 * len(mac{})]byte
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if err := s.peek(func(tx *bolt.Tx) error {
			c := tx.Bucket(bucketDevices).Cursor()
			key, value := c.Seek(after)
			for n := 0; key != nil && n < findBatch; n++ {
				var p pointer
				if err := p.decode(value); err != nil {
					return err
				}
				hex.Encode(id[:], key)
				hex.Encode(address[:], p.MAC[:])
				if strings.Contains(string(id[:]), digits) || p.MAC != (mac{}) && strings.Contains(string(address[:]), digits) {
					if more = len(found) == limit; more {
						break
					}
					found = append(found, seenOf(key, &p))
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
	return found, more, nil
}

func (s *Spool) findKeys(digits string, limit int) (found []Seen, more bool, err error) {
	front, err := hex.DecodeString(digits[:len(digits)&^1])
	if err != nil {
		return nil, false, ErrFind
	}
	err = s.peek(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketKeys).Cursor()
		for key, device := c.Seek(front); bytes.HasPrefix(key, front); key, device = c.Next() {
			if !strings.HasPrefix(hex.EncodeToString(key), digits) {
				continue
			}
			if more = len(found) == limit; more {
				return nil
			}
			data := tx.Bucket(bucketDevices).Get(device)
			if data == nil {
				continue
			}
			var p pointer
			if err := p.decode(data); err != nil {
				return err
			}
			found = append(found, seenOf(device, &p))
		}
		return nil
	})
	return found, more, err
}

// History is what the journal holds of a device.
type History struct {
	// Seen is that of the record; without one, as of a board that was only ever refused, Enrolled is false and Seen has the device alone.
	Seen
	Enrolled bool
	// Record is the record's entry. If it cannot be read it is empty.
	Record Entry
	// Events are the newest repeats and refusals, the newest first, also refusals of others that named this device's id or key. Older says how many more there are.
	Events []Entry
	Older  int
	Dead   *DeadLetter // of the record; nil if it is none
}

// History looks a device up. One of which the journal has nothing is ErrNoRecord.
func (s *Spool) History(device board.DeviceID) (History, error) {
	h := History{Seen: Seen{Device: device}}
	type place struct {
		seq uint64
		event
	}
	var places []place
	if err := s.peek(func(tx *bolt.Tx) error {
		if data := tx.Bucket(bucketDevices).Get(device[:]); data != nil {
			var p pointer
			if err := p.decode(data); err != nil {
				return err
			}
			h.Seen, h.Enrolled = seenOf(device[:], &p), true
			if d, err := getDead(tx, p.Seq); err == nil {
				h.Dead = &d
			} else if !errors.Is(err, ErrNoDeadLetter) {
				return err
			}
		}
		c := tx.Bucket(bucketEvents).Cursor()
		for key, value := c.Seek(device[:]); bytes.HasPrefix(key, device[:]); key, value = c.Next() {
			seq, err := decodeSeq(key[len(device):])
			if err != nil {
				return err
			}
			var e event
			if err := e.decode(value); err != nil {
				return err
			}
			if len(places) == maxEvents { // the oldest goes
				places = places[1:]
				h.Older++
			}
			places = append(places, place{seq, e})
		}
		return nil
	}); err != nil {
		return History{}, err
	}
	if !h.Enrolled && len(places) == 0 {
		return History{}, fmt.Errorf("device %s: %w", device, ErrNoRecord)
	}
	for _, at := range slices.Backward(places) {
		e, err := s.entry(at.position, at.seq)
		if err != nil {
			continue // damaged
		}
		h.Events = append(h.Events, e)
	}
	if h.Enrolled {
		if e, err := s.entry(position{offset: -1}, h.Seq); err == nil {
			h.Record = e
		}
	}
	return h, nil
}

// entry reads an entry from where it should stand, or finds it in its segment: it may have moved when its file was repaired.
func (s *Spool) entry(at position, seq uint64) (Entry, error) {
	if at.offset >= 0 {
		if e, err := readEntryAt(s.cfg.Dir, at); err == nil && e.Seq == seq {
			return e, nil
		}
	}
	segments, err := listSegments(s.cfg.Dir)
	if err != nil {
		return Entry{}, err
	}
	i := slices.IndexFunc(segments, func(f segmentFile) bool { return f.first > seq })
	if i < 0 {
		i = len(segments)
	}
	if i == 0 {
		return Entry{}, fmt.Errorf("%w: entry %d cannot be found", ErrEntry, seq)
	}
	f, err := os.Open(segmentPath(s.cfg.Dir, segments[i-1].first))
	if err != nil {
		return Entry{}, fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	front := fmt.Appendf(nil, `{"seq":%d,`, seq)
	in := bufio.NewReaderSize(f, maxEntryLine)
	for {
		line, err := in.ReadSlice('\n')
		if bytes.HasPrefix(line, front) && err == nil {
			data, _, err := readLine(line)
			if err != nil {
				return Entry{}, err
			}
			return ParseEntry(data)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return Entry{}, fmt.Errorf("%w: entry %d cannot be found", ErrEntry, seq)
		}
	}
}

// Newest returns the newest records, repeats and refusals of the journal under dir, at most n, the newest first. It takes no lock and reads no more
// than it must. What cannot be read is left out.
func Newest(dir string, n int) ([]Entry, error) {
	segments, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, segment := range slices.Backward(segments) {
		if len(out) >= n {
			break
		}
		more, err := lastOf(dir, segment.first, n-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

func lastOf(dir string, first uint64, n int) ([]Entry, error) {
	f, err := os.Open(segmentPath(dir, first))
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	for window := int64(n+1) * 2048; ; window *= 4 {
		from := max(0, info.Size()-window)
		text := make([]byte, info.Size()-from)
		if _, err := f.ReadAt(text, from); err != nil && err != io.EOF {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		if from > 0 {
			_, text, _ = bytes.Cut(text, []byte("\n"))
		}
		var out []Entry
		for _, line := range slices.Backward(bytes.SplitAfter(text, []byte("\n"))) {
			if len(out) == n {
				break
			}
			data, _, err := readLine(line)
			if err != nil {
				continue
			}
			if e, err := ParseEntry(data); err == nil && (e.Kind == KindRecord || eventKind(e.Kind) != 0) {
				out = append(out, e)
			}
		}
		if len(out) == n || from == 0 {
			return out, nil
		}
	}
}

// Prove is the package's Prove for a station that runs. It reads the segment with the record and the one that is written; of the others it takes
// the hashes beside them. Where those do not give the root that was signed, it reads the whole journal.
func (s *Spool) Prove(ctx context.Context, device board.DeviceID) ([]byte, error) {
	var known pointer
	have := false
	if err := s.peek(func(tx *bolt.Tx) error {
		data := tx.Bucket(bucketDevices).Get(device[:])
		if have = data != nil; !have {
			return nil
		}
		return known.decode(data)
	}); err != nil {
		return nil, err
	}
	if !have {
		return nil, fmt.Errorf("device %s: %w", device, ErrNoRecord)
	}
	text, signed, err := newestCheckpoint(s.cfg.Dir)
	if err != nil {
		return nil, err
	}
	if known.Seq >= signed.size {
		return nil, fmt.Errorf("device %s: %w", device, ErrUnsigned)
	}
	e, err := s.entry(position{offset: -1}, known.Seq)
	if err != nil {
		return prove(ctx, s.cfg.Dir, device) // which says what is wrong
	}
	p := proof{checkpoint: text, index: known.Seq}
	if p.entry, err = e.Encode(); err != nil {
		return nil, err
	}
	if p.hashes, err = besides(ctx, s.cfg.Dir, signed.size, known.Seq); err == nil {
		err = tlog.CheckRecord(p.hashes, int64(signed.size), signed.root, int64(known.Seq), tlog.RecordHash(p.entry))
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return prove(ctx, s.cfg.Dir, device)
	}
	return p.encode(), nil
}

var errNoLeaf = errors.New("the hash of a leaf is not known")

// besides computes the proof of an entry from the hashes of all leaves, one after the other, in little memory.
func besides(ctx context.Context, dir string, size, index uint64) (tlog.RecordProof, error) {
	type part struct {
		lo, hi uint64
		tree   tree
	}
	var parts []*part // the subtrees beside the entry, the smallest first, as in the proof
	var cut func(lo, hi uint64)
	cut = func(lo, hi uint64) {
		if hi-lo == 1 {
			return
		}
		middle := lo + split(hi-lo)
		if index < middle {
			cut(lo, middle)
			parts = append(parts, &part{lo: middle, hi: hi})
		} else {
			cut(middle, hi)
			parts = append(parts, &part{lo: lo, hi: middle})
		}
	}
	cut(0, size)
	order := slices.Clone(parts)
	slices.SortFunc(order, func(a, b *part) int { return cmp.Compare(a.lo, b.lo) })
	next := uint64(0)
	add := func(h tlog.Hash) error {
		if next%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if h == (tlog.Hash{}) {
			return errNoLeaf
		}
		if next != index {
			for len(order) > 0 && next >= order[0].hi {
				order = order[1:]
			}
			order[0].tree.add(h)
		}
		next++
		return nil
	}
	segments, err := listSegments(dir)
	if err != nil {
		return nil, err
	}
	beside, err := openShelf(dir)
	if err != nil {
		return nil, err
	}
	for i, segment := range segments {
		if next >= size {
			break
		}
		if segment.first != next {
			return nil, errNoLeaf
		}
		if i+1 < len(segments) {
			for next < min(size, segments[i+1].first) {
				if err := add(beside.hash(next)); err != nil {
					return nil, err
				}
			}
			continue
		}
		s := newScan(dir)
		s.next = segment.first
		s.visit = func(_ position, seq uint64, data []byte) error {
			if seq >= size {
				return nil
			}
			if seq != next {
				return errNoLeaf
			}
			return add(tlog.RecordHash(data))
		}
		if err := s.run([]segmentFile{segment}); err != nil {
			return nil, err
		}
	}
	if next != size {
		return nil, errNoLeaf
	}
	var out tlog.RecordProof
	for _, p := range parts {
		out = append(out, p.tree.root())
	}
	return out, nil
}
