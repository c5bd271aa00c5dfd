package spool

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"secretfree/station/board"
	"strings"
	"testing"
	"time"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"
)

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
		"of a newer format":    editIndex(func(tx *bolt.Tx) { tableOf(tx, bucketMeta).Put(keyFormat, []byte{indexFormat + 1}) }),
		"of another station":   editIndex(func(tx *bolt.Tx) { tableOf(tx, bucketMeta).Put(keyOrigin, []byte("widgiot/other")) }),
		"of another journal":   editIndex(func(tx *bolt.Tx) { putProgress(tx, progress{2, tlog.Hash{1}}) }),
		"without a bucket":     editIndex(func(tx *bolt.Tx) { tx.DeleteBucket(bucketKeys) }),
		"with a wrong pointer": editIndex(func(tx *bolt.Tx) { tableOf(tx, bucketKeys).Put(make([]byte, 32), make([]byte, 16)) }),
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

// A list of free pages that has a page in use makes no difference to reading,
// and makes bbolt panic when it commits, which the start does.
func TestIndexPanicsAtTheStart(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	r := k.mustAppend()
	k.spool.Close()
	index, err := os.ReadFile(indexPath(k.dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(indexPath(k.dir), freeRoot(t, index), 0o600); err != nil {
		t.Fatal(err)
	}
	k.notices = nil
	k.mustOpen()
	if len(k.notices) != 1 || !strings.Contains(k.notices[0], "already freed") {
		t.Errorf("notices %q", k.notices)
	}
	if receipt, err := k.append(r); err != nil || !receipt.Repeat {
		t.Errorf("after the rebuild: %+v, %v", receipt, err)
	}
}

// An index that goes bad in the middle of a shift costs a receipt, and is
// rebuilt.
func TestIndexPanicsInAShift(t *testing.T) {
	for name, use := range map[string]func(*kit) error{
		"append": func(k *kit) error {
			_, err := k.append(newRecord(k.t))
			return err
		},
		"confirmation": func(k *kit) error {
			_, err := k.spool.Delivered(board.DeviceID{1})
			return err
		},
		"delivery": func(k *kit) error {
			_, _, err := k.spool.batch()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			r := k.mustAppend()
			f, err := os.OpenFile(indexPath(k.dir), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			page := int64(os.Getpagesize())
			if _, err := f.WriteAt(make([]byte, info.Size()-2*page), 2*page); err != nil {
				t.Fatal(err)
			}
			k.notices = nil
			if err := use(k); !errors.Is(err, errIndexUnusable) {
				t.Fatalf("%v, want %v", err, errIndexUnusable)
			}
			if receipt, err := k.append(r); err != nil || !receipt.Repeat {
				t.Errorf("after the rebuild: %+v, %v", receipt, err)
			}
			if len(k.notices) != 1 || !strings.Contains(k.notices[0], "rebuilt") {
				t.Errorf("notices %q", k.notices)
			}
			k.mustAppend()
		})
	}
}

// freeRoot puts the page of the root into the list of free pages of an index.
func freeRoot(t *testing.T, index []byte) []byte {
	t.Helper()
	page, number := os.Getpagesize(), binary.NativeEndian.Uint64
	meta := index[:page]
	if number(index[page+64:]) > number(meta[64:]) { // the newer of the two
		meta = index[page:]
	}
	free := index[int(number(meta[48:]))*page:]
	if binary.NativeEndian.Uint16(free[10:]) == 0 {
		t.Fatal("no page is free")
	}
	copy(free[16:24], meta[32:40])
	return index
}

// An index behind the journal, as after a failed commit, is brought up to it
// without a word.
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

func segment(k *kit) string { return journal.SegmentPath(k.dir, 0) }

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
			if report, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil || report.Torn == 0 || report.Records != 2 {
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

// What is wrong with a journal is refused by name, with a remedy, and nothing
// is changed.
func TestJournalRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *kit, b []byte) []byte
		want  error
		words string
	}{
		"a line that is no entry": {func(k *kit, b []byte) []byte {
			lines := bytes.SplitAfter(b, []byte("\n"))
			lines[1] = journal.EncodeLine([]byte(`{"seq":1,"time":"2026-01-02T03:04:05.006Z","kind":"other"}`))
			os.Remove(indexPath(k.dir))
			return bytes.Join(lines, nil)
		}, journal.ErrEntry, "unknown kind"},
		"a newer format": {func(k *kit, b []byte) []byte {
			e := journal.Entry{Seq: 0, Time: now(), Kind: journal.KindSegment, Segment: &journal.Segment{Format: journal.Format + 1, Origin: "widgiot/line3-a", Key: k.id.Key}}
			data, err := e.Encode()
			if err != nil {
				k.t.Fatal(err)
			}
			return journal.EncodeLine(data)
		}, board.ErrNewer, "install the newer version"},
		"another station": {func(k *kit, b []byte) []byte {
			e := journal.Entry{Seq: 0, Time: now(), Kind: journal.KindSegment, Segment: &journal.Segment{Format: journal.Format, Origin: "widgiot/line4-a", Key: k.id.Key}}
			data, err := e.Encode()
			if err != nil {
				k.t.Fatal(err)
			}
			return journal.EncodeLine(data)
		}, journal.ErrForeign, "state_dir"},
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

// A journal that was rewritten, checksums and all, does not have the root that
// was signed.
func TestTampering(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	k.mustAppend()
	k.spool.Close()
	good, err := os.ReadFile(segment(k))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(good, []byte("\n"))
	e, err := journal.ParseEntry(lines[1][:len(lines[1])-10])
	if err != nil {
		t.Fatal(err)
	}
	e.Time = e.Time.Add(-24 * time.Hour)
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	lines[1] = journal.EncodeLine(data)
	if err := os.WriteFile(segment(k), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k.config()); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("Open: %v, want %v", err, journal.ErrTampered)
	}
	if _, err := journal.VerifyDir(k.dir, k.id.Verifier); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("VerifyDir: %v, want %v", err, journal.ErrTampered)
	}
	// So does one that ends before what was signed.
	if err := os.WriteFile(segment(k), bytes.Join(bytes.SplitAfter(good, []byte("\n"))[:2], nil), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(indexPath(k.dir))
	if _, err := Open(k.config()); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("Open: %v, want %v", err, journal.ErrTampered)
	}
	// A checkpoint by another key contradicts nothing: it is made again.
	if err := os.WriteFile(segment(k), good, 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := journal.LoadIdentity(t.TempDir(), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := journal.Checkpoint{Size: 1}.Encode(other.Signer)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(journal.CheckpointPath(k.dir), forged, 0o600)
	if _, err := journal.VerifyDir(k.dir, k.id.Verifier); !errors.Is(err, journal.ErrCheckpoint) {
		t.Errorf("VerifyDir: %v, want %v", err, journal.ErrCheckpoint)
	}
	k.mustOpen()
	if _, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil {
		t.Errorf("VerifyDir: %v", err)
	}
}
