package spool

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

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
	_, err = k.spool.Append(t.Context(), reading(otherKey))
	var conflict *board.Conflict
	if !errors.Is(err, board.ErrDeviceConflict) || !errors.As(err, &conflict) || conflict.KnownKey != first.Fingerprint() {
		t.Errorf("a known id with another key: %v", err)
	}
	otherID := second
	otherID.Device = newRecord(t).Device
	_, err = k.spool.Append(t.Context(), reading(otherID))
	if !errors.Is(err, board.ErrKeyConflict) || !errors.As(err, &conflict) || conflict.KnownDevice != second.Device {
		t.Errorf("a known key under another id: %v", err)
	}
	both := first
	both.Key = second.Key
	if _, err = k.spool.Append(t.Context(), reading(both)); !errors.Is(err, board.ErrDeviceConflict) {
		t.Errorf("a known id with the key of another: %v", err)
	}
	invalid := newRecord(t)
	invalid.Generation = 0
	if _, err = k.spool.Append(t.Context(), reading(invalid)); !errors.Is(err, board.ErrRecord) {
		t.Errorf("an invalid record: %v", err)
	}
	foreign := newRecord(t)
	foreign.Station = "line4-b"
	if _, err = k.spool.Append(t.Context(), reading(foreign)); !errors.Is(err, board.ErrRecord) {
		t.Errorf("a record of another station: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = k.spool.Append(ended, reading(newRecord(t))); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}

	var kinds []journal.Result
	for e, err := range journal.Walk(k.dir) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, resultOf(e))
	}
	want := []journal.Result{"", journal.Passed, journal.Passed, journal.Repeated, journal.Repeated, journal.Failed, journal.Failed, journal.Failed}
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
	if _, err = k.spool.Append(t.Context(), reading(otherKey)); !errors.Is(err, board.ErrDeviceConflict) {
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

// Those who come while another's record is being synced share the next sync,
// and what they say of the same board is decided as if they had come one after
// the other.
func TestGroup(t *testing.T) {
	k := newKit(t)
	k.spool.Close()
	gate := &gate{entered: make(chan struct{}), leave: make(chan struct{})}
	k.disk = gate
	k.mustOpen()
	gate.shut.Store(true)
	first, board1 := newRecord(t), newRecord(t)
	otherKey, otherID := board1, newRecord(t)
	otherKey.Key, otherID.Key = newRecord(t).Key, board1.Key
	type result struct {
		receipt board.Receipt
		err     error
	}
	results := map[string]chan result{}
	add := func(name string, r board.Record) {
		done := make(chan result, 1)
		results[name] = done
		go func() {
			receipt, err := k.spool.Append(context.Background(), reading(r))
			done <- result{receipt, err}
		}()
	}
	waiting := func(n int) {
		t.Helper()
		for {
			k.spool.groupMu.Lock()
			have := len(k.spool.waiting)
			k.spool.groupMu.Unlock()
			if have == n {
				return
			}
			runtime.Gosched()
		}
	}
	add("first", first)
	<-gate.entered
	for i, name := range []string{"board", "board again", "other key", "other id"} {
		add(name, []board.Record{board1, board1, otherKey, otherID}[i])
		waiting(i + 1)
	}
	gate.syncs.Store(0)
	gate.shut.Store(false)
	gate.leave <- struct{}{}
	got := map[string]result{}
	for name, done := range results {
		got[name] = <-done
	}
	if n := gate.syncs.Load(); n != 2 {
		t.Errorf("%d syncs of the journal, want the one that was held and one for the group", n)
	}
	if r := got["first"]; r.err != nil || r.receipt.Seq != 1 {
		t.Errorf("the first: %+v", r)
	}
	if r := got["board"]; r.err != nil || r.receipt.Repeat || r.receipt.Seq != 2 {
		t.Errorf("a board: %+v", r)
	}
	if r := got["board again"]; r.err != nil || !r.receipt.Repeat || r.receipt.Seq != 2 {
		t.Errorf("the same board: %+v", r)
	}
	if r := got["other key"]; !errors.Is(r.err, board.ErrDeviceConflict) {
		t.Errorf("its id with another key: %+v", r)
	}
	if r := got["other id"]; !errors.Is(r.err, board.ErrKeyConflict) {
		t.Errorf("its key under another id: %+v", r)
	}
	k.receipts[first.Device], k.receipts[board1.Device] = got["first"].receipt, got["board"].receipt
}

// gate is a disk that holds a sync until it is told to go on.
type gate struct {
	osDisk
	shut           atomic.Bool
	syncs          atomic.Int32
	entered, leave chan struct{}
}

type gatedFile struct {
	durable.File
	gate *gate
}

func (g *gate) Open(path string, flag int, mode fs.FileMode) (durable.File, error) {
	f, err := g.osDisk.Open(path, flag, mode)
	return gatedFile{f, g}, err
}

func (f gatedFile) Sync() error {
	if f.gate.shut.Load() {
		f.gate.entered <- struct{}{}
		<-f.gate.leave
	}
	f.gate.syncs.Add(1)
	return f.File.Sync()
}

// If the sync of a group fails, none of it has a receipt.
func TestGroupFails(t *testing.T) {
	k := newKit(t)
	k.spool.Close()
	plan := faultPlan{op: "sync", err: syscall.EIO}
	k.disk = osDisk{}
	k.mustOpen()
	k.spool.Close()
	k.disk = faulty{plan: &plan}
	plan.after = 1 // that of opening
	k.mustOpen()
	var wg sync.WaitGroup
	var failed atomic.Int32
	for range 16 {
		wg.Go(func() {
			r := newRecord(t)
			if _, err := k.append(r); err != nil {
				failed.Add(1)
				if _, err := k.append(r); err != nil {
					t.Errorf("once more: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() == 0 {
		t.Error("nothing failed")
	}
}
