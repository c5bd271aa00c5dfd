package spool

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/station/board"
)

// kit is one station on a folder of its own. Everything that a test is promised is kept, and checked at its end.
type kit struct {
	t       *testing.T
	dir     string
	id      Identity
	sink    *memorySink
	spool   *Spool
	open    func(string, int) (file, error)
	notices []string

	mu       sync.Mutex
	receipts map[board.DeviceID]board.Receipt
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{t: t, dir: t.TempDir(), sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	id, err := LoadIdentity(k.dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	k.id = id
	k.mustOpen()
	t.Cleanup(func() {
		k.spool.Close()
		checkInvariants(t, k.dir, k.id, k.receipts)
	})
	return k
}

func (k *kit) config() Config {
	return Config{Dir: k.dir, Identity: k.id, Sink: k.sink, Notify: func(n string) { k.notices = append(k.notices, n) }, open: k.open}
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

func (k *kit) append(r board.Record) (board.Receipt, error) {
	receipt, err := k.spool.Append(context.Background(), r)
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

// checkInvariants opens what a test left behind: the journal verifies, holds every record for which a receipt was given, and the
// index says the same as the journal.
func checkInvariants(t *testing.T, dir string, id Identity, receipts map[board.DeviceID]board.Receipt) {
	t.Helper()
	if _, err := VerifyDir(dir, id.Verifier); err != nil {
		t.Errorf("invariant: the journal does not verify: %v", err)
		return
	}
	keys := map[board.DeviceID]board.Fingerprint{}
	seqs := map[board.DeviceID]uint64{}
	next := uint64(0)
	for e, err := range Walk(dir) {
		if err != nil {
			t.Errorf("invariant: %v", err)
			return
		}
		next = e.Seq + 1
		if e.Kind != KindRecord {
			continue
		}
		sealed, err := board.OpenEnvelope(e.Record, id.Verifier)
		if err != nil {
			t.Errorf("invariant: entry %d: %v", e.Seq, err)
			continue
		}
		if _, twice := keys[sealed.Record.Device]; twice {
			t.Errorf("invariant: device %s has two records", sealed.Record.Device)
		}
		keys[sealed.Record.Device], seqs[sealed.Record.Device] = sealed.Record.Fingerprint(), e.Seq
	}
	for device, receipt := range receipts {
		if seq, ok := seqs[device]; !ok || seq != receipt.Seq {
			t.Errorf("invariant: a receipt for %s says entry %d, the journal has %d (%v)", device, receipt.Seq, seq, ok)
		}
	}
	db, err := bolt.Open(indexPath(dir), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Errorf("invariant: %v", err)
		return
	}
	defer db.Close()
	db.View(func(tx *bolt.Tx) error {
		var p progress
		if err := decodeBinary(tx.Bucket(bucketMeta).Get(keyNext), &p); err != nil || p.Next > next {
			t.Errorf("invariant: the index is at %d, the journal at %d (%v)", p.Next, next, err)
		}
		for device, key := range keys {
			var known pointer
			if seqs[device] >= p.Next {
				continue // a failed commit, settled at the next start
			}
			if err := decodeBinary(tx.Bucket(bucketDevices).Get(device[:]), &known); err != nil || known.Key != key || known.Seq != seqs[device] {
				t.Errorf("invariant: device %s: the index has %+v (%v)", device, known, err)
			}
			if owner := tx.Bucket(bucketKeys).Get(key[:]); !bytes.Equal(owner, device[:]) {
				t.Errorf("invariant: key %s is of %x in the index", key, owner)
			}
			inQueue := tx.Bucket(bucketQueue).Get(binary.BigEndian.AppendUint64(nil, seqs[device])) != nil
			dead := tx.Bucket(bucketDead).Get(binary.BigEndian.AppendUint64(nil, seqs[device])) != nil
			if n := btoi(inQueue) + btoi(dead) + int(known.Delivered); n != 1 {
				t.Errorf("invariant: device %s: queued %v, dead %v, delivered %d", device, inQueue, dead, known.Delivered)
			}
		}
		if n := tx.Bucket(bucketDevices).Stats().KeyN; n > len(keys) {
			t.Errorf("invariant: the index has %d devices, the journal %d", n, len(keys))
		}
		return nil
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestAppend(t *testing.T) {
	k := newKit(t)
	first := k.mustAppend()
	second := k.mustAppend()

	receipt, err := k.append(first)
	if err != nil || !receipt.Repeat || receipt.Seq != 1 {
		t.Errorf("a repeat: %+v, %v", receipt, err)
	}
	later := first
	later.ReadAt = later.ReadAt.Add(time.Hour)
	if receipt, err := k.append(later); err != nil || !receipt.Repeat || receipt.Seq != 1 {
		t.Errorf("a repeat an hour later: %+v, %v", receipt, err)
	}

	otherKey := first
	otherKey.Key = newRecord(t).Key
	_, err = k.spool.Append(t.Context(), otherKey)
	var conflict *board.Conflict
	if !errors.Is(err, board.ErrDeviceConflict) || !errors.As(err, &conflict) || conflict.KnownKey != first.Fingerprint() {
		t.Errorf("a known id with another key: %v", err)
	}
	otherID := second
	otherID.Device = newRecord(t).Device
	_, err = k.spool.Append(t.Context(), otherID)
	if !errors.Is(err, board.ErrKeyConflict) || !errors.As(err, &conflict) || conflict.KnownDevice != second.Device {
		t.Errorf("a known key under another id: %v", err)
	}
	both := first
	both.Key = second.Key
	if _, err = k.spool.Append(t.Context(), both); !errors.Is(err, board.ErrDeviceConflict) {
		t.Errorf("a known id with the key of another: %v", err)
	}
	invalid := newRecord(t)
	invalid.Generation = 0
	if _, err = k.spool.Append(t.Context(), invalid); !errors.Is(err, board.ErrRecord) {
		t.Errorf("an invalid record: %v", err)
	}
	foreign := newRecord(t)
	foreign.Station = "line4-b"
	if _, err = k.spool.Append(t.Context(), foreign); !errors.Is(err, board.ErrRecord) {
		t.Errorf("a record of another station: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = k.spool.Append(ended, newRecord(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}

	var kinds []Kind
	for e, err := range Walk(k.dir) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
	}
	want := []Kind{KindSegment, KindRecord, KindRecord, KindRepeat, KindRepeat, KindRefusal, KindRefusal, KindRefusal}
	if !slices.Equal(kinds, want) {
		t.Errorf("the journal holds %v, want %v", kinds, want)
	}
	if s := k.spool.Stats(); s.Pending != 2 || s.Dead != 0 || s.Entries != 8 || s.Oldest.IsZero() {
		t.Errorf("stats %+v", s)
	}
	// All of it holds after a restart.
	k.reopen()
	if len(k.notices) != 0 {
		t.Errorf("a clean start says %q", k.notices)
	}
	if _, err = k.spool.Append(t.Context(), otherKey); !errors.Is(err, board.ErrDeviceConflict) {
		t.Errorf("after a restart: %v", err)
	}
}

func TestAppendAtOnce(t *testing.T) {
	k := newKit(t)
	shared := newRecord(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			k.mustAppend()
			if _, err := k.append(shared); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := k.spool.Stats(); s.Pending != 17 {
		t.Errorf("pending %d, want 17", s.Pending)
	}
}

// Whatever becomes of the index, the journal makes it again; and says so.
func TestIndexIsDisposable(t *testing.T) {
	damage := map[string]func(t *testing.T, path string){
		"missing": func(t *testing.T, path string) { os.Remove(path) },
		"empty":   func(t *testing.T, path string) { os.Truncate(path, 0) },
		"halved":  func(t *testing.T, path string) { os.Truncate(path, 16<<10) },
		"noise": func(t *testing.T, path string) {
			b := make([]byte, 64<<10)
			rand.Read(b)
			os.WriteFile(path, b, 0o600)
		},
		"pages lost": func(t *testing.T, path string) {
			b, _ := os.ReadFile(path)
			clear(b[8<<10:])
			os.WriteFile(path, b, 0o600)
		},
		"of a newer format":    editIndex(func(tx *bolt.Tx) { tx.Bucket(bucketMeta).Put(keyFormat, []byte{indexFormat + 1}) }),
		"of another station":   editIndex(func(tx *bolt.Tx) { tx.Bucket(bucketMeta).Put(keyOrigin, []byte("widgiot/other")) }),
		"of another journal":   editIndex(func(tx *bolt.Tx) { putProgress(tx, progress{2, 12345}) }),
		"without a bucket":     editIndex(func(tx *bolt.Tx) { tx.DeleteBucket(bucketKeys) }),
		"with a wrong pointer": editIndex(func(tx *bolt.Tx) { tx.Bucket(bucketKeys).Put(make([]byte, 32), make([]byte, 16)) }),
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			var records []board.Record
			for range 40 {
				records = append(records, k.mustAppend())
			}
			k.spool.Close()
			spoil(t, indexPath(k.dir))
			k.notices = nil
			k.mustOpen()
			if len(k.notices) != 1 {
				t.Errorf("notices %q, want one", k.notices)
			}
			for _, r := range records {
				if receipt, err := k.append(r); err != nil || !receipt.Repeat {
					t.Fatalf("after the rebuild: %+v, %v", receipt, err)
				}
			}
			if s := k.spool.Stats(); s.Pending != len(records) {
				t.Errorf("pending %d, want %d", s.Pending, len(records))
			}
		})
	}
}

func editIndex(edit func(*bolt.Tx)) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Update(func(tx *bolt.Tx) error { edit(tx); return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

// An index behind the journal, as after a failed commit, is brought up to it without a word.
func TestIndexBehind(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	old, err := os.ReadFile(indexPath(k.dir))
	if err != nil {
		t.Fatal(err)
	}
	r := k.mustAppend()
	k.spool.Close()
	if err := os.WriteFile(indexPath(k.dir), old, 0o600); err != nil {
		t.Fatal(err)
	}
	k.mustOpen()
	if receipt, err := k.append(r); err != nil || !receipt.Repeat {
		t.Errorf("%+v, %v", receipt, err)
	}
}

func segment(k *kit) string { return segmentPath(k.dir, 0) }

func TestTornTail(t *testing.T) {
	for name, tear := range map[string]func([]byte) []byte{
		"half a line":      func(b []byte) []byte { return append(b, `{"seq":3,"time":`...) },
		"without its end":  func(b []byte) []byte { return append(b, b[:100]...) },
		"bytes of nothing": func(b []byte) []byte { return append(b, make([]byte, 4096)...) },
		"a wrong checksum": func(b []byte) []byte { return append(b, "{\"seq\":3} 00000000\n"...) },
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			k.mustAppend()
			k.mustAppend()
			k.spool.Close()
			b, err := os.ReadFile(segment(k))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(segment(k), tear(bytes.Clone(b)), 0o600); err != nil {
				t.Fatal(err)
			}
			if report, err := VerifyDir(k.dir, k.id.Verifier); err != nil || report.Torn == 0 || report.Records != 2 {
				t.Errorf("VerifyDir: %+v, %v", report, err)
			}
			k.notices = nil
			k.mustOpen()
			if len(k.notices) != 1 || !strings.Contains(k.notices[0], "cut") {
				t.Errorf("notices %q", k.notices)
			}
			if after, _ := os.ReadFile(segment(k)); !bytes.Equal(after, b) {
				t.Error("the tail is not cut where the good lines end")
			}
			k.mustAppend()
		})
	}
}

// What is wrong with a journal is refused by name, with a remedy, and nothing is changed.
func TestJournalRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *kit, b []byte) []byte
		want  error
		words string
	}{
		"a line in the middle is damaged": {func(k *kit, b []byte) []byte { b[len(b)/2]++; return b }, ErrEntry, "line"},
		"a line is missing": {func(k *kit, b []byte) []byte {
			lines := bytes.SplitAfter(b, []byte("\n"))
			return bytes.Join(slices.Delete(lines, 1, 2), nil)
		}, ErrEntry, "missing"},
		"a newer format": {func(k *kit, b []byte) []byte {
			e := Entry{Seq: 0, Time: now(), Kind: KindSegment, Segment: &Segment{Format: Format + 1, Origin: "widgiot/line3-a", Key: k.id.Key}}
			data, err := e.Encode()
			if err != nil {
				k.t.Fatal(err)
			}
			return encodeLine(data)
		}, board.ErrNewer, "install the newer version"},
		"another station": {func(k *kit, b []byte) []byte {
			e := Entry{Seq: 0, Time: now(), Kind: KindSegment, Segment: &Segment{Format: Format, Origin: "widgiot/line4-a", Key: k.id.Key}}
			data, err := e.Encode()
			if err != nil {
				k.t.Fatal(err)
			}
			return encodeLine(data)
		}, ErrForeign, "state_dir"},
		"the end is missing": {func(k *kit, b []byte) []byte {
			lines := bytes.SplitAfter(b, []byte("\n"))
			return bytes.Join(lines[:2], nil)
		}, ErrIndexAhead, "restore"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			k.mustAppend()
			k.mustAppend()
			k.spool.Close()
			good, err := os.ReadFile(segment(k))
			if err != nil {
				t.Fatal(err)
			}
			bad := c.spoil(k, bytes.Clone(good))
			if err := os.WriteFile(segment(k), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = Open(k.config())
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.words) {
				t.Errorf("Open: %v, want %v with %q", err, c.want, c.words)
			}
			if after, _ := os.ReadFile(segment(k)); !bytes.Equal(after, bad) {
				t.Error("a refused journal was changed")
			}
			if err := os.WriteFile(segment(k), good, 0o600); err != nil {
				t.Fatal(err)
			}
			k.mustOpen()
		})
	}
}

// A journal that was rewritten, checksums and all, does not have the root that was signed.
func TestTampering(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	k.mustAppend()
	if err := k.spool.checkpoint(); err != nil {
		t.Fatal(err)
	}
	k.mustAppend()
	k.spool.Close()
	good, err := os.ReadFile(segment(k))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(good, []byte("\n"))
	e, err := ParseEntry(lines[1][:len(lines[1])-10])
	if err != nil {
		t.Fatal(err)
	}
	e.Time = e.Time.Add(-24 * time.Hour)
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	lines[1] = encodeLine(data)
	if err := os.WriteFile(segment(k), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k.config()); !errors.Is(err, ErrTampered) {
		t.Errorf("Open: %v, want %v", err, ErrTampered)
	}
	if _, err := VerifyDir(k.dir, k.id.Verifier); !errors.Is(err, ErrTampered) {
		t.Errorf("VerifyDir: %v, want %v", err, ErrTampered)
	}
	// So does one that ends before what was signed.
	if err := os.WriteFile(segment(k), bytes.Join(bytes.SplitAfter(good, []byte("\n"))[:2], nil), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(indexPath(k.dir))
	if _, err := Open(k.config()); !errors.Is(err, ErrTampered) {
		t.Errorf("Open: %v, want %v", err, ErrTampered)
	}
	// And a checkpoint by another key.
	if err := os.WriteFile(segment(k), good, 0o600); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(checkpointPath(k.dir))
	other, err := LoadIdentity(t.TempDir(), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := checkpoint{size: 1}.encode(other.Signer)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(checkpointPath(k.dir), forged, 0o600)
	if _, err := Open(k.config()); !errors.Is(err, ErrTampered) {
		t.Errorf("Open: %v, want %v", err, ErrTampered)
	}
	os.WriteFile(checkpointPath(k.dir), text, 0o600)
	k.mustOpen()
}

func TestLock(t *testing.T) {
	k := newKit(t)
	_, err := Open(k.config())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Open: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil || again.Key != first.Key {
		t.Fatalf("%v, %v", again.Key, err)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "station.key"))
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name, words string) {
		t.Helper()
		_, err := LoadIdentity(dir, "widgiot/line3-a")
		if !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if _, err := LoadIdentity(dir, "widgiot/line4-a"); !errors.Is(err, ErrIdentity) {
		t.Errorf("another origin: %v", err)
	}
	os.Chmod(filepath.Join(dir, "station.key"), 0o640)
	refuse("readable by the group", "chmod 600")
	os.Chmod(filepath.Join(dir, "station.key"), 0o600)
	os.WriteFile(filepath.Join(dir, "station.key"), secret[:len(secret)/2], 0o600)
	refuse("half a key", "backup")
	os.WriteFile(filepath.Join(dir, "station.key"), secret, 0o600)
	os.WriteFile(filepath.Join(dir, "station.pub"), []byte("x\n"), 0o644)
	refuse("another public half", "backup")
}

func FuzzEntry(f *testing.F) {
	t := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	for _, e := range []Entry{
		{Seq: 0, Time: t, Kind: KindSegment, Segment: &Segment{1, "a/b", "k"}},
		{Seq: 7, Time: t, Kind: KindRecord, Record: []byte(`{"payload":"<&>"}`)},
		{Seq: 8, Time: t, Kind: KindRefusal, Refusal: &Refusal{Reason: reasonKey, Device: board.DeviceID{1}, KnownDevice: board.DeviceID{2}}},
		{Seq: 9, Time: t, Kind: KindRepeat, Repeat: &Repeat{Device: board.DeviceID{1}, Of: 7}},
	} {
		data, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEntry(data)
		if err != nil {
			return
		}
		if again, err := e.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q encodes to %q (%v)", data, again, err)
		}
		line := encodeLine(data)
		if got, _, err := checkLine(line[:len(line)-1]); err != nil || !bytes.Equal(got, data) {
			t.Errorf("its line reads as %q (%v)", got, err)
		}
	})
}

func TestEntryRefusals(t *testing.T) {
	good := `{"seq":9,"time":"2026-01-02T03:04:05.006Z","kind":"repeat","repeat":{"device":"01000000000000000000000000000000","fingerprint":"` + strings.Repeat("0", 64) + `","of":7}}`
	if _, err := ParseEntry([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"an unknown field":    {`"of":7`, `"of":7,"more":1`},
		"an unknown kind":     {`"kind":"repeat"`, `"kind":"other"`},
		"another kind":        {`"kind":"repeat"`, `"kind":"refusal"`},
		"no body":             {`,"repeat":{`, `,"x":{`},
		"microseconds":        {`05.006Z`, `05.000006Z`},
		"another zone":        {`05.006Z`, `05.006+01:00`},
		"white space":         {`"of":7`, `"of": 7`},
		"something behind":    {`}}`, `}}{}`},
		"a short device id":   {`"0100`, `"00`},
		"another order":       {`"seq":9,"time":"2026-01-02T03:04:05.006Z"`, `"time":"2026-01-02T03:04:05.006Z","seq":9`},
		"a negative sequence": {`"seq":9`, `"seq":-9`},
	} {
		text := strings.Replace(good, c[0], c[1], 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := ParseEntry([]byte(text)); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v, want %v", name, err, ErrEntry)
		}
	}
	if _, err := ParseEntry(make([]byte, maxEntryLine+1)); !errors.Is(err, ErrEntry) {
		t.Errorf("too long: %v", err)
	}
}

// faulty makes one call of one kind fail.
type faulty struct {
	file
	plan *faultPlan
}

type faultPlan struct {
	op    string // write, short, sync, truncate
	after int    // good ones before it
	also  string // fails from then on, if set
	err   error
	fired bool
}

func (p *faultPlan) hit(op string) bool {
	if p == nil || p.err == nil {
		return false
	}
	if p.fired && op == p.also {
		return true
	}
	if op != p.op || p.fired {
		return false
	}
	if p.after--; p.after >= 0 {
		return false
	}
	p.fired = true
	return true
}

func (f faulty) WriteAt(b []byte, at int64) (int, error) {
	if f.plan.hit("write") {
		return 0, f.plan.err
	}
	if f.plan.hit("short") {
		n, _ := f.file.WriteAt(b[:len(b)/2], at)
		return n, f.plan.err
	}
	return f.file.WriteAt(b, at)
}

func (f faulty) Sync() error {
	if f.plan.hit("sync") {
		return f.plan.err
	}
	return f.file.Sync()
}

func (f faulty) Truncate(n int64) error {
	if f.plan.hit("truncate") {
		return f.plan.err
	}
	return f.file.Truncate(n)
}

// Each call on the journal's file fails once: no receipt is given, and reading the board again settles it.
func TestAppendFaults(t *testing.T) {
	for _, c := range []faultPlan{
		{op: "write", err: syscall.ENOSPC},
		{op: "write", err: syscall.EIO},
		{op: "write", err: syscall.EROFS},
		{op: "short", err: syscall.ENOSPC},
		{op: "short", err: syscall.ENOSPC, also: "truncate"},
		{op: "short", err: syscall.ENOSPC, also: "sync"},
		{op: "sync", err: syscall.EIO},
		{op: "sync", err: syscall.ENOSPC},
	} {
		t.Run(fmt.Sprintf("%s %v %s", c.op, c.err, c.also), func(t *testing.T) {
			k := newKit(t)
			k.spool.Close()
			var plan faultPlan
			k.open = func(path string, flag int) (file, error) {
				f, err := openOS(path, flag)
				return faulty{f, &plan}, err
			}
			k.mustOpen()
			k.mustAppend()
			plan = c
			r := newRecord(t)
			receipt, err := k.append(r)
			if !errors.Is(err, c.err) {
				t.Fatalf("Append: %+v, %v, want %v", receipt, err, c.err)
			}
			if !plan.fired {
				t.Fatal("the fault was not reached")
			}
			plan = faultPlan{}
			if _, err := k.append(r); err != nil {
				t.Fatalf("once more: %v", err)
			}
			k.mustAppend()
			k.reopen()
			if receipt, err := k.append(r); err != nil || !receipt.Repeat {
				t.Errorf("after a restart: %+v, %v", receipt, err)
			}
		})
	}
}

// A full disk: the slot is told, nothing half-written is trusted, and when there is room again all goes on.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		skip(t, fmt.Sprintf("mounting a small file system: %v", err))
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	k := &kit{t: t, dir: dir, sink: newMemorySink(), receipts: map[board.DeviceID]board.Receipt{}}
	var err error
	if k.id, err = LoadIdentity(dir, "widgiot/line3-a"); err != nil {
		t.Fatal(err)
	}
	k.mustOpen()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var refused board.Record
	for range 2000 {
		refused = newRecord(t)
		if _, err = k.append(refused); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("on a full disk: %v, want %v", err, syscall.ENOSPC)
	}
	if _, err := k.append(refused); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("once more: %v, want %v", err, syscall.ENOSPC)
	}
	os.Remove(ballast)
	if _, err := k.append(refused); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	k.mustAppend()
	k.reopen()
	k.spool.Close()
	checkInvariants(t, dir, k.id, k.receipts)
}

// skip passes over a test whose surroundings are missing; in CI they must be there.
func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
