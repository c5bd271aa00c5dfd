package spool

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
)

// StoppedStats is Stats of the stopped station whose folder this is, as far as
// its index knows it: Entries, Pending, Dead, Oldest, Damaged, Archived,
// Unarchived and Forked. It returns ErrLocked if the station is not stopped,
// ErrNoIndex if there is no index.
func StoppedStats(dir string) (out Stats, err error) {
	err = openReadOnly(dir, func(tx *bolt.Tx) error {
		var p progress
		if data := tableOf(tx, bucketMeta).Get(keyNext); data != nil {
			if err := p.decode(data); err != nil {
				return err
			}
		}
		out.Entries = p.Next
		out.Dead = tableOf(tx, bucketDead).Len()
		queue := tableOf(tx, bucketQueue)
		out.Pending = queue.Len()
		if _, value := queue.Cursor().First(); value != nil {
			var q queued
			if err := q.decode(value); err != nil {
				return err
			}
			out.Oldest = time.UnixMilli(q.At).UTC()
		}
		if err := tableOf(tx, bucketDamage).ForEach(func(_, value []byte) error {
			var d journal.Damage
			err := json.Unmarshal(value, &d)
			out.Damaged += d.Entries()
			return err
		}); err != nil {
			return err
		}
		archive := tableOf(tx, bucketArchive)
		for _, key := range [][]byte{keyNotAccepted, keyForked} {
			if text := archive.Get(key); text != nil {
				out.Forked, out.ArchiveError = true, string(text)
			}
		}
		return tableOf(tx, bucketSegments).ForEach(func(key, value []byte) error {
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

// RoomOf measures the folder of a spool and its file system. low and critical
// are percents, as in Config; 0 is the default.
func RoomOf(dir string, low, critical int) (Disk, error) {
	d, err := roomOf(dir)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return d, fmt.Errorf("measuring the disk: %w", err)
	}
	d.Time, d.Level = time.Now(), levelOf(d.Percent(), low, critical)
	return d, nil
}

// levelOf compares with limits in percent; 0 is the default of a limit.
func levelOf(percent, low, critical int) DiskLevel {
	low, critical = cmp.Or(low, diskLow), cmp.Or(critical, diskCritical)
	switch {
	case percent >= critical:
		return DiskCritical
	case percent >= low:
		return DiskLow
	}
	return DiskOK
}
