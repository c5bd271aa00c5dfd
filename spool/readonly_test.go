package spool

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/durable"
	"secretfree/station/board"
)

// Whoever looks at a stopped station leaves no trace in its folder.
func TestLookLeavesNoTrace(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	k.mustAppend()
	k.sink.set(func(s board.Sealed, _ int) (bool, error) {
		if s.Record().Device == r.Device {
			return false, &board.Conflict{Kind: board.ErrKeyConflict}
		}
		return true, nil
	})
	k.deliver()
	want, err := k.spool.DeadLetters()
	if err != nil || len(want) != 1 {
		t.Fatal(want, err)
	}
	if _, err := ListDead(k.dir); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("while the station runs: %v, want %v", err, durable.ErrLocked)
	}
	evidence, err := k.spool.Export(want[0].Seq)
	if err != nil {
		t.Fatal(err)
	}
	k.spool.Close()
	if err := os.Remove(filepath.Join(k.dir, "lock")); err != nil {
		t.Fatal(err)
	}
	list := func() map[string]fs.FileInfo {
		out := map[string]fs.FileInfo{}
		if err := filepath.WalkDir(k.dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil {
				out[path], err = d.Info()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := list()
	got, err := ListDead(k.dir)
	if err != nil || len(got) != 1 || got[0].Seq != want[0].Seq || got[0].Reason != want[0].Reason {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if again, err := ShowDead(k.dir, want[0].Seq); err != nil || string(again.Entry) != string(evidence.Entry) {
		t.Errorf("%s, %v, want %s", again.Entry, err, evidence.Entry)
	}
	if _, err := ShowDead(k.dir, 99); !errors.Is(err, ErrNoDeadLetter) {
		t.Errorf("an unknown one: %v", err)
	}
	after := list()
	if len(after) != len(before) {
		t.Errorf("%d files, before %d", len(after), len(before))
	}
	for path, was := range before {
		if is, ok := after[path]; !ok || !is.ModTime().Equal(was.ModTime()) || is.Size() != was.Size() || is.Mode() != was.Mode() || !os.SameFile(is, was) {
			t.Errorf("%s was touched", path)
		}
	}
}

// An index that is missing or of no use is not made, and not mistaken for an
// empty one.
func TestLookWithoutIndex(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"missing": os.Remove,
		"garbage": func(path string) error { return os.WriteFile(path, make([]byte, 1<<16), 0o600) },
		"torn":    func(path string) error { return os.Truncate(path, 5000) },
		"of another format": func(path string) error {
			return edited(path, func(tx *bolt.Tx) error { return tableOf(tx, bucketMeta).Put(keyFormat, []byte{99}) })
		},
		"not whole": func(path string) error {
			return edited(path, func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketDead) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			k.mustAppend()
			k.spool.Close()
			if err := spoil(indexPath(k.dir)); err != nil {
				t.Fatal(err)
			}
			if list, err := ListDead(k.dir); !errors.Is(err, ErrNoIndex) {
				t.Errorf("%v, %v, want %v", list, err, ErrNoIndex)
			}
			if _, err := os.Stat(indexPath(k.dir)); (err == nil) == (name == "missing") {
				t.Errorf("the file: %v", err)
			}
			k.mustOpen()
		})
	}
}

func edited(path string, f func(*bolt.Tx) error) error {
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return err
	}
	return errors.Join(db.Update(f), db.Close())
}
