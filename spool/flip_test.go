package spool

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/station/board"
)

var indexFlips = flag.Int("indexflips", 40, "how many flipped bits of the index TestFlippedBitInIndex tries")

// flipped is a station with records that are confirmed, waiting and refused,
// and a closed index.
func flipped(t *testing.T) (*kit, map[board.DeviceID]bool) {
	t.Helper()
	k := newKit(t)
	refused := map[board.DeviceID]bool{}
	for n := range 12 {
		r := k.mustAppend()
		if n%6 == 0 {
			k.sink.have[r.Device], refused[r.Device] = board.Fingerprint{1}, true
		}
	}
	for k.spool.pass(t.Context()).more {
	}
	for range 12 {
		k.mustAppend()
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	k.spool.Close()
	return k, refused
}

// One flipped bit, anywhere in the index: the station starts, everything is
// delivered or refused as before, each board is known, and the registry is not
// asked more than once for each record of the journal. Many more:
//
//	go test ./spool -run TestFlippedBitInIndex -timeout 0 -args -indexflips 10000
func TestFlippedBitInIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, refused := flipped(t)
		index, err := os.ReadFile(indexPath(k.dir))
		if err != nil {
			t.Fatal(err)
		}
		k.carried = true // who is taken for delivered is looked at below
		have := map[board.DeviceID]board.Fingerprint{}
		for device, key := range k.sink.have {
			have[device] = key
		}
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		rebuilt := 0
		for n := range *indexFlips {
			at, bit := random.IntN(len(index)), byte(1)<<random.IntN(8)
			data := bytes.Clone(index)
			data[at] ^= bit
			if err := os.WriteFile(indexPath(k.dir), data, 0o600); err != nil {
				t.Fatal(err)
			}
			clear(k.sink.have)
			for device, key := range have {
				k.sink.have[device] = key
			}
			k.sink.tries, k.notices = 0, nil
			k.mustOpen()
			rebuilt += btoi(slices.ContainsFunc(k.notices, func(n string) bool { return strings.Contains(n, "index") }))
			stop := k.run()
			time.Sleep(time.Hour)
			stop()
			s := k.spool.Stats()
			if s.Pending > 0 || s.Dead != len(refused) || s.Broken != "" || k.sink.tries > 4*len(k.receipts) {
				t.Errorf("seed %d, flip %d, byte %d: %d calls, %+v", seed, n, at, k.sink.tries, s)
			}
			for device, receipt := range k.receipts {
				if h, err := k.spool.History(device); err != nil || h.Seq != receipt.Seq || (h.Delivery == Rejected) != refused[device] {
					t.Errorf("seed %d, flip %d, byte %d: device %s: %+v, %v", seed, n, at, device, h.DeviceEntry, err)
				}
			}
			k.spool.Close()
		}
		t.Logf("%d of %d flips were noticed at the start", rebuilt, *indexFlips)
		k.mustOpen()
	})
}

// Each kind of damage to a value in each table is noticed when it is read.
func TestIndexValueDamaged(t *testing.T) {
	for _, name := range buckets {
		for what, damage := range map[string]func(key, stored []byte) (k, v []byte){
			"a bit of the value":  func(key, stored []byte) ([]byte, []byte) { return key, flip(stored, 0) },
			"a bit of the sum":    func(key, stored []byte) ([]byte, []byte) { return key, flip(stored, len(stored)-1) },
			"a bit of the key":    func(key, stored []byte) ([]byte, []byte) { return flip(key, len(key)-1), stored },
			"too short for a sum": func(key, stored []byte) ([]byte, []byte) { return key, stored[:2] },
			"nothing":             func(key, stored []byte) ([]byte, []byte) { return key, nil },
		} {
			db, err := bolt.Open(t.TempDir()+"/index", 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = guarded(func() error {
				return db.Update(func(tx *bolt.Tx) error {
					if _, err := tx.CreateBucket(name); err != nil {
						return err
					}
					in := tableOf(tx, name)
					if err := in.Put([]byte("key"), []byte("value")); err != nil {
						return err
					}
					if got := in.Get([]byte("key")); string(got) != "value" || in.Get([]byte("other")) != nil {
						t.Errorf("%s: %q", name, got)
					}
					key, stored := damage([]byte("key"), bytes.Clone(in.bucket.Get([]byte("key"))))
					if err := in.Delete([]byte("key")); err != nil {
						return err
					}
					if err := in.bucket.Put(key, stored); err != nil {
						return err
					}
					in.Cursor().First()
					t.Errorf("%s, %s: it is not noticed", name, what)
					return nil
				})
			})
			if !isUnusable(err) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			db.Close()
		}
	}
}

func isUnusable(err error) bool { return errors.Is(err, errIndexUnusable) }

// Records that the registry confirms and the index cannot find again, as over a
// damaged page of bbolt's, have the index rebuilt.
func TestConfirmedRecordStaysInQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.mustAppend()
		k.mustAppend()
		var elements [][]byte
		if err := k.spool.db.View(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketQueue).ForEach(func(key, stored []byte) error {
				elements = append(elements, slices.Concat(key, stored))
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		index, err := os.ReadFile(indexPath(k.dir))
		if err != nil {
			t.Fatal(err)
		}
		ordered, turned := slices.Concat(elements[0], elements[1]), slices.Concat(elements[1], elements[0])
		if !bytes.Contains(index, ordered) {
			t.Fatal("the queue is not in one piece")
		}
		f, err := os.OpenFile(indexPath(k.dir), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(bytes.ReplaceAll(index, ordered, turned), 0); err != nil {
			t.Fatal(err)
		}
		stop := k.run()
		time.Sleep(time.Hour)
		stop()
		if s := k.spool.Stats(); s.Pending != 0 || s.LastError != "" || s.Broken != "" || k.sink.tries > 10 {
			t.Errorf("%d calls, %+v", k.sink.tries, s)
		}
		rebuilds := 0
		for _, notice := range k.notices {
			rebuilds += btoi(strings.Contains(notice, "the index is rebuilt"))
		}
		if rebuilds != 1 {
			t.Errorf("%d rebuilds: %q", rebuilds, k.notices)
		}
	})
}

// A value whose checksum does not match panics, so nothing may read the index
// but under guarded: by viewIndex, view, update, readIndex or openReadOnly.
func TestIndexIsReadUnderGuard(t *testing.T) {
	calls := regexp.MustCompile(`(?m)^.*\.(View|Update)\(func\(tx .*$`)
	allowed := map[string]int{
		"index.go":    3, // makeIndex, which reads nothing; openIndex, which is under guarded; unmapPages, which reads no value
		"open.go":     1, // indexed, likewise
		"readonly.go": 1, // openReadOnly, likewise
		"rebuild.go":  4, // an index that is being made
		"repair.go":   1, // under guarded
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, line := range calls.FindAllString(string(text), -1) {
			if strings.Contains(line, "db.") {
				found = append(found, strings.TrimSpace(line))
			}
		}
		if len(found) != allowed[name] {
			t.Errorf("%s opens %d transactions by itself, %d are known: %q", name, len(found), allowed[name], found)
		}
	}
}
