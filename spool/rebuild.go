package spool

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"sync"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
)

// loadBatch is how many keys one transaction of a load holds.
const loadBatch = 1 << 15

// load brings many entries into the index. It puts each bucket's keys in order,
// which bbolt takes many times as fast as keys in any order. If it fails in the
// middle, the index has entries which its progress does not count yet; it is
// thrown away then. A few entries, or an index which has some already, go
// through put, all in one transaction with what end does.
func load(db *bolt.DB, entries []journal.Summary, empty bool, end func(tx *bolt.Tx) error) error {
	if !empty {
		return db.Update(func(tx *bolt.Tx) error {
			var c counted
			for i := range entries {
				if err := putEntry(tx, &entries[i], &c); err != nil {
					return err
				}
			}
			return errors.Join(c.put(tx), end(tx))
		})
	}
	// The records stay where they are, and are put in order by pointers.
	all := make([]*journal.Summary, len(entries))
	var order []*journal.Summary
	for i := range entries {
		all[i] = &entries[i]
		if entries[i].IsRecord() {
			order = append(order, &entries[i])
		}
	}
	// The newest record of a key counts, and of those the newest of a device,
	// as with apply. They are sorted while the queue is written.
	var byKey, byDevice []*journal.Summary
	var sorting sync.WaitGroup
	sorting.Go(func() {
		key := func(a, b *journal.Summary) int { return bytes.Compare(a.Key[:], b.Key[:]) }
		byKey = newest(slices.Clone(order), key)
		byDevice = newest(slices.Clone(byKey), func(a, b *journal.Summary) int { return bytes.Compare(a.Device[:], b.Device[:]) })
		if len(byKey) != len(byDevice) { // a device had two keys
			byKey = newest(slices.Clone(byDevice), key)
		}
	})
	err := put(db, bucketQueue, 1, order, func(b table, r *journal.Summary) error {
		q := queued{r.At.Segment, r.At.Offset, r.Time}
		return b.Put(encodeSeq(r.Seq), q.encode())
	})
	sorting.Wait()
	if err != nil {
		return err
	}
	if err := put(db, bucketDevices, 0.8, byDevice, func(b table, r *journal.Summary) error {
		p := pointer{Key: r.Key, Seq: r.Seq, At: r.Time, MAC: r.MAC}
		return b.Put(r.Device[:], p.encode())
	}); err != nil {
		return err
	}
	if err := put(db, bucketKeys, 0.8, byKey, func(b table, r *journal.Summary) error {
		return b.Put(r.Key[:], r.Device[:])
	}); err != nil {
		return err
	}
	var c counted
	for batch := range slices.Chunk(all, loadBatch) {
		if err := db.Update(func(tx *bolt.Tx) error {
			for _, e := range batch {
				if err := putRow(tx, e, &c); err != nil {
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
func newest(order []*journal.Summary, compare func(a, b *journal.Summary) int) []*journal.Summary {
	slices.SortFunc(order, func(a, b *journal.Summary) int {
		if c := compare(a, b); c != 0 {
			return c
		}
		return cmp.Compare(b.Seq, a.Seq)
	})
	return slices.CompactFunc(order, func(a, b *journal.Summary) bool { return compare(a, b) == 0 })
}

func put(db *bolt.DB, bucket []byte, fill float64, order []*journal.Summary, f func(table, *journal.Summary) error) error {
	for batch := range slices.Chunk(order, loadBatch) {
		if err := db.Update(func(tx *bolt.Tx) error {
			b := tableOf(tx, bucket)
			b.fill(fill)
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
