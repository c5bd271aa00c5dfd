package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

// Glance is what can be told of a journal without reading all of it.
type Glance struct {
	Format   int       // of the newest segment
	Segments int       // files
	Entries  uint64    // with those that are damaged
	Newest   time.Time // of the newest entry; zero if there is none
	Signed   uint64    // entries under the newest checkpoint; 0 if there is none
	SignedAt time.Time // when that was written
	Torn     int64     // bytes of a line that is not whole: being written, or cut short
	Damage   []Damage  // of the newest segment
	// Sample is a record of the newest segment, to ask a registry for; nil if there is none.
	Sample *board.Sealed
}

// GlanceAt reads the newest segment and the newest checkpoint of the station whose folder this is. It takes no lock, changes nothing, and the daemon
// may be writing. An error that wraps ErrTampered says that the checkpoint is not signed with this key, or that the journal
// is shorter than what was signed.
func GlanceAt(dir string, v note.Verifier) (g Glance, err error) {
	// The checkpoint first: the journal only grows meanwhile.
	signed, have, err := readCheckpoint(dir, v)
	if err != nil {
		return g, err
	}
	if info, err := os.Stat(checkpointPath(dir)); have && err == nil {
		g.Signed, g.SignedAt = signed.size, info.ModTime().UTC()
	}
	segments, err := listSegments(dir)
	if err != nil {
		return g, err
	}
	g.Segments = len(segments)
	if len(segments) > 0 {
		if err := g.newest(dir, segments[len(segments)-1:]); err != nil {
			return g, err
		}
	}
	if g.Entries < g.Signed {
		return g, fmt.Errorf("%w: it has %d entries, the checkpoint says %d", ErrTampered, g.Entries, g.Signed)
	}
	return g, nil
}

func (g *Glance) newest(dir string, segments []segmentFile) error {
	s := newScan(dir)
	s.next = segments[0].first
	s.damaged = func(d Damage) error {
		g.Damage = append(g.Damage, d)
		return nil
	}
	s.visit = func(_ position, _ uint64, data []byte) error {
		e, err := ParseEntry(data)
		if err != nil {
			return err
		}
		g.Newest = e.Time
		switch {
		case e.Kind == KindSegment:
			g.Format = e.Segment.Format
		case e.Record() != nil && g.Sample == nil:
			if sealed, err := board.ParseEnvelope(e.Record()); err == nil {
				g.Sample = &sealed
			}
		}
		return nil
	}
	err := s.run(segments)
	g.Entries, g.Torn = s.next, s.torn
	return err
}

// StoppedStats is Stats of the stopped station whose folder this is, as far as its index knows it: Entries, Pending, Dead, Oldest, Damaged, Archived,
// Unarchived and Forked. It returns ErrLocked if the station is not stopped, ErrNoIndex if there is no index.
func StoppedStats(dir string) (out Stats, err error) {
	err = lookAtIndex(dir, func(tx *bolt.Tx) error {
		var p progress
		if data := tx.Bucket(bucketMeta).Get(keyNext); data != nil {
			if err := p.decode(data); err != nil {
				return err
			}
		}
		out.Entries = p.Next
		out.Dead = tx.Bucket(bucketDead).Stats().KeyN
		queue := tx.Bucket(bucketQueue)
		out.Pending = queue.Stats().KeyN
		if _, value := queue.Cursor().First(); value != nil {
			var q queued
			if err := q.decode(value); err != nil {
				return err
			}
			out.Oldest = time.UnixMilli(q.At).UTC()
		}
		if err := tx.Bucket(bucketDamage).ForEach(func(_, value []byte) error {
			var d Damage
			err := json.Unmarshal(value, &d)
			out.Damaged += d.Entries()
			return err
		}); err != nil {
			return err
		}
		archive := tx.Bucket(bucketArchive)
		if text := archive.Get(keyForked); text != nil {
			out.Forked, out.ArchiveError = true, string(text)
		}
		return tx.Bucket(bucketSegments).ForEach(func(key, value []byte) error {
			var s sealedSegment
			if err := json.Unmarshal(value, &s); err != nil {
				return err
			}
			if bytes.Equal(archive.Get(key), encodeSeq(s.Next)) {
				out.Archived++
			} else {
				out.Unarchived++
			}
			return nil
		})
	})
	return out, err
}

// RoomOf measures the folder of a spool and its file system. low and critical are percents, as in Config; 0 is the default.
func RoomOf(dir string, low, critical int) (Disk, error) {
	d, err := roomOf(dir)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return d, fmt.Errorf("measuring the disk: %w", err)
	}
	if low == 0 {
		low = diskLow
	}
	if critical == 0 {
		critical = diskCritical
	}
	d.Time, d.Level = time.Now(), levelOf(d.Percent(), low, critical)
	return d, nil
}

func levelOf(percent, low, critical int) DiskLevel {
	switch {
	case percent >= critical:
		return DiskCritical
	case percent >= low:
		return DiskLow
	}
	return DiskOK
}
