package spool

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// copyFiles copies the files of a folder for which want says so, over what is
// there, as cp does: each as it is when it is read.
func copyFiles(t *testing.T, from, to string, want func(path string) bool) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil || entry.IsDir() {
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		if !entry.Type().IsRegular() || !want(name) {
			return nil
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) { // a write under another name, which is over
			return nil
		}
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
			return err
		}
		return os.WriteFile(target, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isSegment(path string) bool { return strings.HasSuffix(path, ".jsonl") }

// A copy that was made while boards came, the segments last as IT's guide has
// it, is a journal that opens, holds every record of which a receipt was given
// before it was begun, and verifies. In the other order it would not be.
func TestBackupWhileRunning(t *testing.T) {
	k := newKit(t)
	k.size = 4 << 10
	k.reopen()
	everything := func(path string) bool { return path != filepath.Base(indexPath(k.dir)) }
	rest := func(path string) bool { return everything(path) && !isSegment(path) }
	backup := func(passes ...func(string) bool) (string, map[board.DeviceID]board.Receipt) {
		to, before := tempDir(t), map[board.DeviceID]board.Receipt{}
		k.mu.Lock()
		for device, receipt := range k.receipts {
			before[device] = receipt
		}
		k.mu.Unlock()
		var boards sync.WaitGroup
		stop := make(chan struct{})
		boards.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := k.append(newRecord(t)); err != nil {
						t.Errorf("Append: %v", err)
						return
					}
				}
			}
		})
		for i, pass := range passes {
			if i > 0 {
				for range 10 { // seals a segment and signs a checkpoint over it
					if _, err := k.append(newRecord(t)); err != nil {
						t.Fatalf("Append: %v", err)
					}
				}
			}
			copyFiles(t, k.dir, to, pass)
		}
		close(stop)
		boards.Wait()
		return to, before
	}
	for range 20 {
		k.mustAppend()
	}
	for range 2 {
		to, before := backup(everything, isSegment)
		id, err := journal.LoadIdentity(to, "widgiot/line3-a")
		if err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Dir: to, Identity: id, Sink: newMemorySink(), SegmentSize: k.size})
		if err != nil {
			t.Fatalf("the copy does not open: %v", err)
		}
		if n := s.Stats().Damaged; n > 0 {
			t.Errorf("%d entries are damaged", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		checkInvariants(t, to, id, before)
	}
	to, _ := backup(isSegment, rest)
	id, err := journal.LoadIdentity(to, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Open(Config{Dir: to, Identity: id, Sink: newMemorySink(), SegmentSize: k.size}); err == nil {
		s.Close()
		t.Error("the other order is as good: this test shows nothing")
	}
}
