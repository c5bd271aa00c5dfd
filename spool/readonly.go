package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"time"

	"secretfree/spool/durable"
	"secretfree/station/board"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/mod/sumdb/tlog"
)

// Read-only queries of the index of a stopped station. They change nothing in
// its folder, so anyone who may read the folder may use them. journal.Walk
// reads a journal without an index.

// ErrNoIndex says that there is no index to look at. It is built when the
// station starts.
var ErrNoIndex = errors.New("there is no index that can be read; it is built when the station starts")

// ListDead lists the dead letters of the stopped station whose folder this is.
// It returns ErrLocked if the station is not stopped.
func ListDead(dir string) (out []DeadLetter, err error) {
	err = openReadOnly(dir, func(tx *bolt.Tx) (err error) {
		out, err = readDead(tx)
		return err
	})
	return out, err
}

// ShowDead is Spool.Export for a stopped station.
func ShowDead(dir string, seq uint64) (Evidence, error) {
	var d DeadLetter
	if err := openReadOnly(dir, func(tx *bolt.Tx) (err error) {
		d, err = getDead(tx, seq)
		return err
	}); err != nil {
		return Evidence{}, err
	}
	return evidence(dir, d, func(at journal.Position) (journal.Entry, error) { return journal.ReadEntryAt(dir, at) })
}

// ListEntries is Spool.Entries of the stopped station whose folder this is. It
// returns ErrLocked if the station is not stopped, ErrNoIndex if there is no
// index.
func ListEntries(dir string, device board.DeviceID) (seqs []uint64, err error) {
	err = openReadOnly(dir, func(tx *bolt.Tx) (err error) {
		seqs, err = deviceSeqs(tx, device)
		return err
	})
	return seqs, err
}

// IndexedEntries returns what journal.VerifyDirKnowing asks: how many entries
// of the journal the index of a stopped station has. It returns ErrLocked if the
// station is not stopped, ErrNoIndex if there is no index.
func IndexedEntries(dir string) (func(next uint64, leaf tlog.Hash) uint64, error) {
	var p progress
	leaves := map[uint64]tlog.Hash{}
	first := uint64(math.MaxUint64)
	err := openReadOnly(dir, func(tx *bolt.Tx) error {
		if err := p.decode(tableOf(tx, bucketMeta).Get(keyNext)); err != nil {
			return err
		}
		return tableOf(tx, bucketLeaves).ForEach(func(key, value []byte) error {
			var h tlog.Hash
			if len(key) != 8 || copy(h[:], value) != len(h) {
				return errIndexEntry
			}
			seq := binary.BigEndian.Uint64(key)
			leaves[seq], first = h, min(first, seq)
			return nil
		})
	})
	return func(next uint64, leaf tlog.Hash) uint64 {
		if h, ok := leaves[next-1]; p.Next > next && (next == first || ok && h == leaf) {
			return p.Next
		}
		return 0
	}, err
}

// openReadOnly opens the index for reading only. No other process can write it
// meanwhile.
func openReadOnly(dir string, f func(*bolt.Tx) error) error {
	path := indexPath(dir)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", ErrNoIndex, path)
	}
	var db *bolt.DB
	err := guarded(func() (err error) {
		db, err = bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
		switch {
		case errors.Is(err, bolterrors.ErrTimeout):
			return fmt.Errorf("%w: it has %s open", durable.ErrLocked, path)
		case errors.Is(err, os.ErrPermission):
			return fmt.Errorf("opening the index: %w", err)
		case err != nil:
			return fmt.Errorf("%w: %w", ErrNoIndex, err)
		}
		return db.View(func(tx *bolt.Tx) error {
			if formatOf(tx) != indexFormat {
				return fmt.Errorf("%w: %s is of another format", ErrNoIndex, path)
			}
			for _, name := range buckets {
				if tx.Bucket(name) == nil {
					return fmt.Errorf("%w: %s is not whole", ErrNoIndex, path)
				}
			}
			return f(tx)
		})
	})
	if errors.Is(err, errIndexUnusable) {
		return fmt.Errorf("%w: %v", ErrNoIndex, err)
	}
	if db != nil {
		err = errors.Join(err, db.Close())
	}
	return err
}
