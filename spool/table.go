package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
)

// table is a bucket of the index in which every value is followed by the
// CRC-32C of the bucket's name, the key and the value. bbolt itself checks
// nothing: a bit that a disk has flipped would be believed.
//
// A value whose checksum does not match panics with errIndexValue. Everything
// that reads the index runs under guarded, which makes errIndexUnusable of it;
// the index is then rebuilt from the journal.
type table struct {
	bucket *bolt.Bucket
	name   []byte
}

var errIndexValue = errors.New("a value of the index has another checksum")

const sumSize = 4

func tableOf(tx *bolt.Tx, name []byte) table { return table{tx.Bucket(name), name} }

func (t table) sum(key, value []byte) uint32 {
	sum := crc32.Update(0, journal.Castagnoli, t.name)
	sum = crc32.Update(sum, journal.Castagnoli, []byte{0})
	sum = crc32.Update(sum, journal.Castagnoli, key)
	return crc32.Update(sum, journal.Castagnoli, value)
}

// open takes the checksum off a value.
func (t table) open(key, stored []byte) []byte {
	n := len(stored) - sumSize
	if n < 0 || binary.BigEndian.Uint32(stored[n:]) != t.sum(key, stored[:n]) {
		panic(fmt.Errorf("%w: %s, %x", errIndexValue, t.name, key))
	}
	return stored[:n:n]
}

// Get returns the value of a key; nil if there is none. It is valid as long as
// the transaction is.
func (t table) Get(key []byte) []byte {
	stored := t.bucket.Get(key)
	if stored == nil {
		return nil
	}
	return t.open(key, stored)
}

// Put sets the value of a key.
func (t table) Put(key, value []byte) error {
	stored := make([]byte, 0, len(value)+sumSize)
	stored = append(stored, value...)
	return t.bucket.Put(key, binary.BigEndian.AppendUint32(stored, t.sum(key, value)))
}

// Delete removes a key, if it is there.
func (t table) Delete(key []byte) error { return t.bucket.Delete(key) }

// ForEach calls f for all keys in order. f must not change the table.
func (t table) ForEach(f func(key, value []byte) error) error {
	return t.bucket.ForEach(func(key, stored []byte) error { return f(key, t.open(key, stored)) })
}

// Len counts the keys.
func (t table) Len() int { return t.bucket.Stats().KeyN }

// fill says how full pages become; 1 is for keys that come in order.
func (t table) fill(percent float64) table {
	t.bucket.FillPercent = percent
	return t
}

// Cursor goes through the keys in order; see bolt.Cursor.
func (t table) Cursor() tableCursor { return tableCursor{t, t.bucket.Cursor()} }

type tableCursor struct {
	t table
	c *bolt.Cursor
}

func (c tableCursor) First() (key, value []byte)         { return c.read(c.c.First()) }
func (c tableCursor) Last() (key, value []byte)          { return c.read(c.c.Last()) }
func (c tableCursor) Next() (key, value []byte)          { return c.read(c.c.Next()) }
func (c tableCursor) Prev() (key, value []byte)          { return c.read(c.c.Prev()) }
func (c tableCursor) Seek(at []byte) (key, value []byte) { return c.read(c.c.Seek(at)) }
func (c tableCursor) read(key, stored []byte) ([]byte, []byte) {
	if key == nil {
		return nil, nil
	}
	return key, c.t.open(key, stored)
}
