package spool

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"secretfree/station/board"
	"sync"
	"testing"
	"time"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
)

// kit is one station on a folder of its own. Everything that a test is promised
// is kept, and checked at its end.
type kit struct {
	t        *testing.T
	dir      string
	id       journal.Identity
	sink     *memorySink
	spool    *Spool
	disk     disk
	archive  Archive
	accepted CheckpointStore
	room     func(dir string) (Disk, error) // nil: as it is
	size     int64                          // of a segment
	notices  []string
	damaged  bool // the test leaves damage behind
	carried  bool // the test has records delivered to another registry than sink

	mu       sync.Mutex // of the notices while the spool runs, and of the receipts
	receipts map[board.DeviceID]board.Receipt
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{t: t, dir: tempDir(t), sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	id, err := journal.LoadIdentity(k.dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	k.id = id
	k.mustOpen()
	t.Cleanup(func() {
		k.spool.Close()
		if k.damaged {
			k.checkDamaged()
			return
		}
		checkInvariants(t, k.dir, k.id, k.receipts)
		k.checkRegistry()
	})
	return k
}

// tempDir is a folder in memory where there is one: what is synced there is as
// good to a process that is killed.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "spool-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func now() time.Time { return board.Timestamp(time.Now()) }

func (k *kit) config() Config {
	notify := func(n string) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.notices = append(k.notices, n)
	}
	return Config{Dir: k.dir, Identity: k.id, Sink: k.sink, Notify: notify, Archive: k.archive, Checkpoints: k.accepted, SegmentSize: k.size, disk: k.disk, room: k.room}
}

func (k *kit) mustOpen() {
	k.t.Helper()
	s, err := Open(k.config())
	if err != nil {
		k.t.Fatalf("Open: %v", err)
	}
	k.spool = s
}

func (k *kit) reopen() {
	k.t.Helper()
	if err := k.spool.Close(); err != nil {
		k.t.Fatalf("Close: %v", err)
	}
	k.notices = nil
	k.mustOpen()
}

func newRecord(t testing.TB) board.Record {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := board.NewKey(private.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var device board.DeviceID
	rand.Read(device[:])
	return board.Record{SKU: "widgiot", Station: "line3-a", Device: device, Key: key, ReadAt: now(), Generation: 1, Facts: map[string]string{"dialect": "ti-at"}}
}

// reading is that of a board in slot A that has passed every check.
func reading(r board.Record) Reading { return Reading{Record: &r, Slot: "A"} }

func (k *kit) append(r board.Record) (board.Receipt, error) {
	receipt, err := k.spool.Append(context.Background(), reading(r))
	if err == nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.receipts[r.Device] = receipt
	}
	return receipt, err
}

func (k *kit) mustAppend() board.Record {
	k.t.Helper()
	r := newRecord(k.t)
	receipt, err := k.append(r)
	if err != nil || receipt.Repeat {
		k.t.Fatalf("Append: %+v, %v", receipt, err)
	}
	return r
}

// checkRegistry demands that what the index takes for delivered is in the
// registry.
func (k *kit) checkRegistry() {
	k.t.Helper()
	if k.carried {
		return
	}
	db, err := bolt.Open(indexPath(k.dir), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		k.t.Errorf("invariant: %v", err)
		return
	}
	defer db.Close()
	db.View(func(tx *bolt.Tx) error {
		return tableOf(tx, bucketDevices).ForEach(func(device, value []byte) error {
			var known pointer
			if err := known.decode(value); err != nil {
				k.t.Errorf("invariant: %v", err)
			}
			if key, ok := k.sink.have[board.DeviceID(device)]; known.Delivered != 0 && (!ok || key != known.Key) {
				k.t.Errorf("invariant: device %x is taken for delivered, and is not in the registry", device)
			}
			return nil
		})
	})
}

// checkDamaged demands that a record for which there is a receipt is in the
// journal, or in a place that is known to be damaged.
func (k *kit) checkDamaged() {
	k.t.Helper()
	segments, err := journal.ListSegments(k.dir)
	if err != nil {
		k.t.Errorf("invariant: %v", err)
	}
	var damage []journal.Damage
	records := map[uint64]board.DeviceID{}
	scan := journal.NewScan(k.dir)
	scan.Damaged = func(d journal.Damage) error {
		damage = append(damage, d)
		return nil
	}
	scan.Visit = func(at journal.Position, seq uint64, data []byte) error {
		r, err := journal.Summarize(at, seq, data, nil)
		if r.IsRecord() {
			records[seq] = r.Device
		}
		return err
	}
	if err := scan.Run(segments); err != nil {
		return // more is broken than the station would start with
	}
	for device, receipt := range k.receipts {
		if records[receipt.Seq] != device && !journal.Covers(damage, receipt.Seq) && receipt.Seq < scan.Next {
			k.t.Errorf("invariant: a receipt for %s says entry %d, which is of %s, and is not damaged", device, receipt.Seq, records[receipt.Seq])
		}
	}
}

// checkInvariants opens what a test left behind.
func checkInvariants(t *testing.T, dir string, id journal.Identity, receipts map[board.DeviceID]board.Receipt) {
	t.Helper()
	for _, err := range invariants(dir, id, receipts) {
		t.Errorf("invariant: %v", err)
	}
}

// invariants are that the journal verifies and holds every record for which a
// receipt was given, and that the index says the same as the journal.
func invariants(dir string, id journal.Identity, receipts map[board.DeviceID]board.Receipt) (broken []error) {
	fail := func(format string, args ...any) { broken = append(broken, fmt.Errorf(format, args...)) }
	if _, err := journal.VerifyDir(dir, id.Verifier); err != nil {
		fail("the journal does not verify: %v", err)
		return broken
	}
	keys := map[board.DeviceID]board.Fingerprint{}
	seqs := map[board.DeviceID]uint64{}
	next := uint64(0)
	for e, err := range journal.Walk(dir) {
		if err != nil {
			fail("%v", err)
			return broken
		}
		next = e.Seq + 1
		if e.Record() == nil {
			continue
		}
		sealed, err := board.OpenEnvelope(e.Record(), id.Verifier)
		if err != nil {
			fail("entry %d: %v", e.Seq, err)
			continue
		}
		if _, twice := keys[sealed.Record().Device]; twice {
			fail("device %s has two records", sealed.Record().Device)
		}
		keys[sealed.Record().Device], seqs[sealed.Record().Device] = sealed.Record().Fingerprint(), e.Seq
	}
	for device, receipt := range receipts {
		if seq, ok := seqs[device]; !ok || seq != receipt.Seq {
			fail("a receipt for %s says entry %d, the journal has %d (%v)", device, receipt.Seq, seq, ok)
		}
	}
	db, err := bolt.Open(indexPath(dir), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		fail("%v", err)
		return broken
	}
	defer db.Close()
	db.View(func(tx *bolt.Tx) error {
		var p progress
		if err := p.decode(tableOf(tx, bucketMeta).Get(keyNext)); err != nil || p.Next > next {
			fail("the index is at %d, the journal at %d (%v)", p.Next, next, err)
		}
		for device, key := range keys {
			var known pointer
			if seqs[device] >= p.Next {
				continue // a failed commit, settled at the next start
			}
			if err := known.decode(tableOf(tx, bucketDevices).Get(device[:])); err != nil || known.Key != key || known.Seq != seqs[device] {
				fail("device %s: the index has %+v (%v)", device, known, err)
			}
			if owner := tableOf(tx, bucketKeys).Get(key[:]); !bytes.Equal(owner, device[:]) {
				fail("key %s is of %x in the index", key, owner)
			}
			inQueue := tableOf(tx, bucketQueue).Get(encodeSeq(seqs[device])) != nil
			dead := tableOf(tx, bucketDead).Get(encodeSeq(seqs[device])) != nil
			if n := btoi(inQueue) + btoi(dead) + int(known.Delivered); n != 1 {
				fail("device %s: queued %v, dead %v, delivered %d", device, inQueue, dead, known.Delivered)
			}
		}
		if n := tableOf(tx, bucketDevices).Len(); n > len(keys) {
			fail("the index has %d devices, the journal %d", n, len(keys))
		}
		return nil
	})
	return broken
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// skip passes over a test whose surroundings are missing; in CI they must be
// there.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*journal.DamageError](err)
	return ok
}

// remembers makes sure that a board is known as before.
func (k *kit) remembers(r board.Record) {
	k.t.Helper()
	want := k.receipts[r.Device]
	if receipt, err := k.append(r); err != nil || !receipt.Repeat || receipt.Seq != want.Seq || !receipt.Time.Equal(want.Time) {
		k.t.Errorf("a repeat: %+v, %v, want %+v", receipt, err, want)
	}
	otherKey := newRecord(k.t)
	otherKey.Device = r.Device
	if _, err := k.append(otherKey); !errors.Is(err, board.ErrDeviceConflict) {
		k.t.Errorf("a known device with another key: %v", err)
	}
	otherID := newRecord(k.t)
	otherID.Key = r.Key
	if _, err := k.append(otherID); !errors.Is(err, board.ErrKeyConflict) {
		k.t.Errorf("a known key under another id: %v", err)
	}
}

// resultOf is that of a verdict; empty for any other entry.
func resultOf(e journal.Entry) journal.Result {
	if e.Verdict == nil {
		return ""
	}
	return e.Verdict.Result
}

// repeatOf is the body of a repeat of an entry.
func repeatOf(of uint64) *journal.Verdict {
	return &journal.Verdict{Result: journal.Repeated, Slot: "A", Device: board.DeviceID{1}, Fingerprint: board.Fingerprint{1}, Of: &of, ReadMS: 1200}
}

// enrolmentOf is the body of a passed verdict with an envelope.
func enrolmentOf(s board.Sealed) *journal.Verdict {
	return &journal.Verdict{Result: journal.Passed, Slot: "A", Device: s.Record().Device, Fingerprint: s.Record().Fingerprint(), Record: s.Envelope()}
}
