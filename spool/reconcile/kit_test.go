package reconcile

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"os"
	"testing"
	"time"

	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

var errAway = errors.New("the registry is away")

// segmentSize is that of a station, in bytes.
const segmentSize = 16 << 20

// kit is one station on a folder of its own, which delivers nothing. Its
// journal verifies at the end, unless the test has damaged it.
type kit struct {
	t       *testing.T
	dir     string
	id      journal.Identity
	spool   *spool.Spool
	damaged bool
}

func newKit(t *testing.T) *kit { return openKit(t, 0) }

// smallKit has small segments, and records in them.
func smallKit(t *testing.T, records int) (*kit, []board.Record) {
	t.Helper()
	k := openKit(t, 4<<10)
	var all []board.Record
	for range records {
		all = append(all, k.mustAppend())
	}
	return k, all
}

func openKit(t *testing.T, segment int64) *kit {
	t.Helper()
	k := &kit{t: t, dir: tempDir(t)}
	var err error
	if k.id, err = journal.LoadIdentity(k.dir, "widgiot/line3-a"); err != nil {
		t.Fatal(err)
	}
	if k.spool, err = spool.Open(spool.Config{Dir: k.dir, Identity: k.id, Sink: awaySink{}, SegmentSize: segment, Notify: func(string) {}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.spool.Close()
		if k.damaged {
			return
		}
		if _, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil {
			t.Errorf("the journal at the end: %v", err)
		}
	})
	return k
}

// awaySink is a registry that is never there.
type awaySink struct{}

func (awaySink) Put(context.Context, board.Sealed) error { return errAway }

// tempDir is a folder in memory where there is one: what is synced there is as
// good to a process that is killed.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "reconcile-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func now() time.Time { return board.Timestamp(time.Now()) }

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

func (k *kit) append(r board.Record) (board.Receipt, error) {
	return k.spool.Append(k.t.Context(), spool.Reading{Record: &r, Slot: "A"})
}

func (k *kit) mustAppend() board.Record {
	k.t.Helper()
	r := newRecord(k.t)
	if receipt, err := k.append(r); err != nil || receipt.Repeat {
		k.t.Fatalf("Append: %+v, %v", receipt, err)
	}
	return r
}

func (k *kit) segments() []journal.SegmentFile {
	k.t.Helper()
	segments, err := journal.ListSegments(k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	return segments
}

func spoilSegment(t *testing.T, dir string, first uint64, spoil func([]byte) []byte) {
	t.Helper()
	path := journal.SegmentPath(dir, first)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
		t.Fatal(err)
	}
}
