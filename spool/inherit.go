package spool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/station/board"
)

// olderFormat is the index before events and MAC addresses. Its devices are 49 bytes: fingerprint, seq, time, delivered.
const (
	olderFormat  = 2
	olderPointer = 49
)

// inherit takes from an index of the older format what the journal does not have: what was delivered, and what is dead. Otherwise the first
// start after an upgrade would deliver everything once more. Each must be of the very record that the journal has in its place; if the
// file cannot be read to its end, nothing of it is taken.
func (o *opening) inherit() {
	if o.unusable == nil || o.unusable == errNoIndex {
		return
	}
	var delivered []*indexed
	var dead []DeadLetter
	record := func(seq uint64) *indexed {
		i, ok := slices.BinarySearchFunc(o.records, seq, func(r indexed, seq uint64) int { return cmp.Compare(r.seq, seq) })
		if !ok {
			return nil
		}
		return &o.records[i]
	}
	err := guarded(func() error {
		db, err := bolt.Open(indexPath(o.cfg.Dir), 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
		if err != nil {
			return err
		}
		return errors.Join(db.View(func(tx *bolt.Tx) error {
			meta, devices, letters := tx.Bucket(bucketMeta), tx.Bucket(bucketDevices), tx.Bucket(bucketDead)
			if meta == nil || devices == nil || letters == nil || !bytes.Equal(meta.Get(keyFormat), []byte{olderFormat}) || string(meta.Get(keyOrigin)) != o.origin {
				return nil
			}
			if err := devices.ForEach(func(device, value []byte) error {
				if len(device) != len(board.DeviceID{}) || len(value) != olderPointer {
					return errIndexEntry
				}
				if r := record(binary.BigEndian.Uint64(value[32:])); value[48] != 0 && r != nil && r.device == board.DeviceID(device) && r.key == board.Fingerprint(value[:32]) {
					delivered = append(delivered, r)
				}
				return nil
			}); err != nil {
				return err
			}
			return letters.ForEach(func(_, value []byte) error {
				var d DeadLetter
				if err := json.Unmarshal(value, &d); err != nil {
					return err
				}
				if r := record(d.Seq); r != nil && r.device == d.Device {
					dead = append(dead, d)
				}
				return nil
			})
		}), db.Close())
	})
	if err != nil {
		return
	}
	for _, r := range delivered {
		r.delivered = 1
	}
	o.letters = dead
}
