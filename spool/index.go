package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"secretfree/station/board"
)

// indexFormat is raised when the buckets change; any other is rebuilt from the journal.
const indexFormat = 1

// The index's buckets. All of it follows from the journal, but for what was delivered and what is dead, which
// delivering again finds out again.
var (
	bucketMeta    = []byte("meta")
	bucketDevices = []byte("devices") // device id → pointer
	bucketKeys    = []byte("keys")    // fingerprint → device id
	bucketQueue   = []byte("queue")   // seq → position and time
	bucketDead    = []byte("dead")    // seq → DeadLetter
	buckets       = [][]byte{bucketMeta, bucketDevices, bucketKeys, bucketQueue, bucketDead}

	keyFormat = []byte("format")
	keyOrigin = []byte("origin")
	keyNext   = []byte("next") // the seq up to which the journal is in here, and the checksum of the entry before it
)

// pointer is what the index knows of a device.
type pointer struct {
	Key       board.Fingerprint
	Seq       uint64
	At        int64 // of the entry, Unix milliseconds
	Delivered byte
}

func encodeBinary(v any) []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, v) // fixed sizes into memory: cannot fail
	return b.Bytes()
}

func decodeBinary(data []byte, v any) error {
	if n, err := binary.Decode(data, binary.BigEndian, v); err != nil || n != len(data) {
		return errors.New("an entry of the index has a wrong size")
	}
	return nil
}

// queued is where a record waits.
type queued struct {
	Segment uint64
	Offset  int64
	At      int64 // Unix milliseconds
}

// progress is the index's place in the journal.
type progress struct {
	Next uint64
	Sum  uint32 // of entry Next-1; 0 if Next is 0
}

// errIndexUnusable: it is not an index of this journal. It will be rebuilt.
var errIndexUnusable = errors.New("the index cannot be used")

// ErrIndexAhead says that the index knows entries which the journal does not have: the journal lost its end.
var ErrIndexAhead = errors.New("the journal lost entries that the index knows")

func indexPath(dir string) string { return filepath.Join(dir, "index.bbolt") }

// openIndex opens or makes the file. A file that is no index of this origin is errIndexUnusable.
func openIndex(dir, origin string) (db *bolt.DB, p progress, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // the file is mapped, and may be shorter than it says
	defer func() {
		if r := recover(); r != nil { // bbolt panics on some kinds of damage
			err = fmt.Errorf("%w: %v", errIndexUnusable, r)
		}
		if err != nil && db != nil {
			db.Close()
			db = nil
		}
	}()
	fresh := false
	if _, statErr := os.Stat(indexPath(dir)); errors.Is(statErr, os.ErrNotExist) {
		fresh = true
	}
	db, err = bolt.Open(indexPath(dir), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		if errors.Is(err, bolterrors.ErrTimeout) {
			return nil, p, fmt.Errorf("%w: it has %s open", ErrLocked, indexPath(dir))
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, p, fmt.Errorf("opening the index: %w", err)
		}
		return nil, p, fmt.Errorf("%w: %w", errIndexUnusable, err)
	}
	if fresh {
		err = db.Update(func(tx *bolt.Tx) error {
			for _, name := range buckets {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			meta := tx.Bucket(bucketMeta)
			return errors.Join(meta.Put(keyFormat, []byte{indexFormat}), meta.Put(keyOrigin, []byte(origin)), putProgress(tx, progress{}))
		})
		if err == nil {
			err = syncDir(dir)
		}
		if err != nil {
			return db, p, fmt.Errorf("making the index: %w", err)
		}
		return db, p, nil
	}
	err = db.View(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("%w: it is not whole", errIndexUnusable)
			}
		}
		meta := tx.Bucket(bucketMeta)
		if format := meta.Get(keyFormat); !bytes.Equal(format, []byte{indexFormat}) {
			return fmt.Errorf("%w: format %x, want %d", errIndexUnusable, format, indexFormat)
		}
		if of := meta.Get(keyOrigin); string(of) != origin {
			return fmt.Errorf("%w: it is of %.130q", errIndexUnusable, of)
		}
		if err := decodeBinary(meta.Get(keyNext), &p); err != nil {
			return fmt.Errorf("%w: %v", errIndexUnusable, err)
		}
		return walkIndex(tx)
	})
	return db, p, err
}

// walkIndex looks at every entry once, so that a damaged page is met here and not in the middle of a shift. (bbolt's own
// check runs in a goroutine of its own, where a panic over a damaged page would end the process.)
func walkIndex(tx *bolt.Tx) error {
	devices := tx.Bucket(bucketDevices)
	err := tx.Bucket(bucketKeys).ForEach(func(key, device []byte) error {
		var known pointer
		if err := decodeBinary(devices.Get(device), &known); err != nil {
			return err
		}
		if !bytes.Equal(known.Key[:], key) {
			return errors.New("a key and its device disagree")
		}
		return nil
	})
	if err == nil {
		err = tx.Bucket(bucketQueue).ForEach(func(key, value []byte) error {
			var seq uint64
			var q queued
			return errors.Join(decodeBinary(key, &seq), decodeBinary(value, &q))
		})
	}
	if err != nil {
		return fmt.Errorf("%w: %v", errIndexUnusable, err)
	}
	return nil
}

func putProgress(tx *bolt.Tx, p progress) error {
	return tx.Bucket(bucketMeta).Put(keyNext, encodeBinary(p))
}

// apply brings one entry of the journal into the index. The same code runs for a new entry and for a rebuild.
func apply(tx *bolt.Tx, e *Entry, at position, sum uint32, sealed *board.Sealed) error {
	if sealed != nil {
		r := &sealed.Record
		f := r.Fingerprint()
		seq := encodeBinary(e.Seq)
		if err := errors.Join(
			tx.Bucket(bucketDevices).Put(r.Device[:], encodeBinary(pointer{Key: f, Seq: e.Seq, At: e.Time.UnixMilli()})),
			tx.Bucket(bucketKeys).Put(f[:], r.Device[:]),
			tx.Bucket(bucketQueue).Put(seq, encodeBinary(queued{at.segment, at.offset, e.Time.UnixMilli()})),
		); err != nil {
			return err
		}
	}
	return putProgress(tx, progress{Next: e.Seq + 1, Sum: sum})
}

// lookup finds what is known of a device and of a key.
func lookup(tx *bolt.Tx, device board.DeviceID, key board.Fingerprint) (known pointer, haveDevice bool, owner board.DeviceID, haveKey bool, err error) {
	if data := tx.Bucket(bucketDevices).Get(device[:]); data != nil {
		haveDevice = true
		err = decodeBinary(data, &known)
	}
	if data := tx.Bucket(bucketKeys).Get(key[:]); data != nil {
		haveKey = true
		err = errors.Join(err, decodeBinary(data, &owner))
	}
	return
}

// DeadLetter is a record that the registry will never take.
type DeadLetter struct {
	Seq    uint64         `json:"seq"`
	Device board.DeviceID `json:"device"`
	Time   time.Time      `json:"time"` // of the verdict
	Reason string         `json:"reason"`
	// Position of the record in the journal, which stays the evidence.
	Segment uint64 `json:"segment"`
	Offset  int64  `json:"offset"`
}

func putDead(tx *bolt.Tx, d DeadLetter) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return tx.Bucket(bucketDead).Put(encodeBinary(d.Seq), data)
}
