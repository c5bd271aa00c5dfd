package spool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"secretfree/spool/journal"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestDiskLevels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.spool.Close()
		var free, looks atomic.Int64
		c := k.config()
		c.room = func(dir string) (Disk, error) {
			looks.Add(1)
			if free.Load() < 0 {
				return Disk{}, errors.New("no such disk")
			}
			return Disk{Used: 7, Free: free.Load(), Size: 1000}, nil
		}
		var err error
		if k.spool, err = Open(c); err != nil {
			t.Fatal(err)
		}
		if d := k.spool.Stats().Disk; d != (Disk{}) {
			t.Errorf("before anybody looked: %+v", d)
		}
		free.Store(201)
		stop := k.run()
		for _, step := range []struct {
			free  int64
			level DiskLevel
		}{{201, DiskOK}, {200, DiskLow}, {51, DiskLow}, {50, DiskCritical}, {0, DiskCritical}, {1000, DiskOK}} {
			free.Store(step.free)
			time.Sleep(diskEvery + time.Second)
			if d := k.spool.Stats().Disk; d.Level != step.level || d.Free != step.free || d.Used != 7 || time.Since(d.Time) > diskEvery {
				t.Errorf("%d of 1000 bytes left: %+v, want %s", step.free, d, step.level)
			}
		}
		for limits, want := range map[[2]int]DiskLevel{{60, 90}: DiskLow, {50, 60}: DiskCritical, {0, 0}: DiskOK, {60, 0}: DiskLow} {
			if level := levelOf(60, limits[0], limits[1]); level != want {
				t.Errorf("60 %% with the limits %v: %s, want %s", limits, level, want)
			}
		}
		before := looks.Load()
		for range 1000 {
			k.spool.Stats()
		}
		if looks.Load() != before {
			t.Error("Stats looks at the disk itself")
		}
		free.Store(-1)
		time.Sleep(diskEvery + time.Second)
		if d := k.spool.Stats().Disk; d != (Disk{}) {
			t.Errorf("a disk that cannot be looked at: %+v", d)
		}
		stop()
	})
}

// A look at the disk that hangs keeps neither delivery nor Stats.
func TestDiskLookHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.spool.Close()
		hang := make(chan struct{})
		c := k.config()
		c.room = func(string) (Disk, error) { <-hang; return Disk{}, nil }
		var err error
		if k.spool, err = Open(c); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- k.spool.Run(ctx) }()
		k.mustAppend()
		synctest.Wait()
		if s := k.spool.Stats(); s.Delivered != 1 || s.Disk != (Disk{}) {
			t.Errorf("%+v", s)
		}
		close(hang)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestRoomOf(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "a/c"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 5000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := roomOf(dir)
	if err != nil || d.Used != 10000 || d.Free <= 0 || d.Size < d.Free {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := roomOf(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	if d := (Disk{Free: 20 * boardBytes, Size: 40 * boardBytes}); d.Boards() != 20 || d.Percent() != 50 {
		t.Errorf("%d boards, %d %%", d.Boards(), d.Percent())
	}
	for boards, want := range map[int64]int64{-1: 0, 0: 0, 7: 7, 99: 99, 100: 100, 109: 100, 999: 990, 48_957_442: 48_000_000} {
		if got := (Disk{Free: boards * boardBytes}).Boards(); got != want {
			t.Errorf("room for %d boards is told as %d, want %d", boards, got, want)
		}
	}
	if (Disk{}).Percent() != 0 {
		t.Error("an unknown disk is full")
	}
}

// What a board is said to take on the disk is what it takes.
func TestBoardBytes(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes a journal of 100,000 records")
	}
	const records = 100_000
	dir := tempDir(t)
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	fillJournal(t, dir, id, records)
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	used, err := roomOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	each := used.Used / records
	t.Logf("%d bytes for each board", each)
	if each < boardBytes*8/10 || each > boardBytes*12/10 {
		t.Errorf("a board takes %d bytes, and is said to take %d", each, boardBytes)
	}
}
