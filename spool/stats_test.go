package spool

import (
	"errors"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/durable"
	"secretfree/station/board"
)

// stuck is a disk that, once it is told to, does not come back from a sync
// until it is let go.
type stuck struct {
	osDisk
	stop chan struct{} // closed: let go
	hang *atomic.Bool
}

type stuckFile struct {
	durable.File
	disk stuck
}

func (d stuck) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := d.osDisk.Open(path, flag, mode)
	return stuckFile{f, d}, err
}

func (f stuckFile) Sync() error {
	if f.disk.hang.Load() {
		<-f.disk.stop
		return syscall.EIO
	}
	return f.File.Sync()
}

// A disk that hangs in a sync keeps nobody waiting who only looks, and they see
// since when.
func TestHangingSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.spool.Close()
		var hang atomic.Bool
		disk := stuck{stop: make(chan struct{}), hang: &hang}
		k.disk = disk
		k.mustOpen()
		stop := k.run()
		first := k.mustAppend()
		time.Sleep(time.Second)
		if s := k.spool.Stats(); !s.WritingSince.IsZero() || s.Pending != 0 || s.Entries != 2 {
			t.Errorf("before: %+v", s)
		}
		hang.Store(true)
		began := time.Now()
		failed := make(chan error, 1)
		second := newRecord(t)
		go func() {
			_, err := k.spool.Append(t.Context(), reading(second))
			failed <- err
		}()
		time.Sleep(30 * time.Second)
		if s := k.spool.Stats(); !s.WritingSince.Equal(began) || s.Entries != 2 || s.Delivered != 1 {
			t.Errorf("while the disk hangs: %+v, want it since %v", s, began)
		}
		if ok, err := k.spool.Delivered(first.Device); !ok || err != nil {
			t.Errorf("a record that was confirmed before: %v, %v", ok, err)
		}
		if ok, err := k.spool.Delivered(second.Device); ok || err != nil {
			t.Errorf("the record that hangs: %v, %v", ok, err)
		}
		hang.Store(false)
		close(disk.stop)
		if err := <-failed; !errors.Is(err, syscall.EIO) {
			t.Errorf("Append: %v", err)
		}
		if s := k.spool.Stats(); !s.WritingSince.IsZero() || s.Broken == "" {
			t.Errorf("after it: %+v", s)
		}
		if _, err := k.append(second); err != nil {
			t.Errorf("once more: %v", err)
		}
		stop()
	})
}

// The index hangs as the journal does.
func TestHangingIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		began := time.Now()
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() {
			k.spool.mu.Lock()
			defer k.spool.unlock()
			done <- k.spool.update(func(*bolt.Tx) error {
				<-stop
				return nil
			})
		}()
		time.Sleep(30 * time.Second)
		if s := k.spool.Stats(); !s.WritingSince.Equal(began) {
			t.Errorf("%+v, want it since %v", s, began)
		}
		if _, err := k.spool.Delivered(board.DeviceID{1}); err != nil {
			t.Error(err)
		}
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A call that hangs is seen when another, which began before it, is over.
func TestStopwatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		watch := &k.spool.calling
		stopFirst := watch.start()
		time.Sleep(time.Second)
		began := time.Now()
		stopSecond := watch.start()
		time.Sleep(time.Second)
		stopThird := watch.start()
		stopFirst()
		if s := k.spool.Stats(); !s.WritingSince.Equal(began) {
			t.Errorf("the first is over: since %v, want %v", s.WritingSince, began)
		}
		stopThird()
		if s := k.spool.Stats(); !s.WritingSince.Equal(began) {
			t.Errorf("the third is over: since %v, want %v", s.WritingSince, began)
		}
		stopSecond()
		if s := k.spool.Stats(); !s.WritingSince.IsZero() {
			t.Errorf("all are over: since %v", s.WritingSince)
		}
	})
}

// What is closed says so, and its last snapshot stays.
func TestStatsAfterClose(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	k.spool.Close()
	if s := k.spool.Stats(); s.Entries != 2 || s.Pending != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := k.spool.Delivered(board.DeviceID{1}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
}
