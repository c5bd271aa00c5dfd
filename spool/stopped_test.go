package spool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// A glance at a journal says what the whole of it says, while the station runs
// and after.
func TestGlanceAt(t *testing.T) {
	k := newKit(t)
	for range 3 {
		k.mustAppend()
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	last := k.mustAppend()
	check := func(when string) {
		t.Helper()
		g, err := journal.Inspect(k.dir, k.id.Verifier)
		stats := k.spool.Stats()
		if err != nil || g.Entries != stats.Entries || g.Signed != stats.Signed || g.Format != journal.Format || g.Segments != 1 || g.Torn != 0 || len(g.Damage) != 0 {
			t.Errorf("%s: %+v, %v; the station says %+v", when, g, err, stats)
		}
		if age := time.Since(g.Newest); age < 0 || age > time.Minute || g.Sample == nil || g.Sample.Record().Device == last.Device {
			t.Errorf("%s: the newest is %v old; sample %v", when, age, g.Sample)
		}
	}
	check("running")
	if _, err := StoppedStats(k.dir); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("running: %v, want %v", err, durable.ErrLocked)
	}
	k.sink.set(func(s board.Sealed, _ int) (bool, error) {
		if s.Record().Device == last.Device {
			return false, &board.Conflict{Kind: board.ErrKeyConflict}
		}
		return true, nil
	})
	k.deliver()
	k.mustAppend()
	stats := k.spool.Stats()
	k.spool.Close()
	check("stopped")
	got, err := StoppedStats(k.dir)
	if err != nil || got.Pending != 1 || got.Dead != 1 || got.Entries != stats.Entries || !got.Oldest.Equal(stats.Oldest) || got.Forked || got.Damaged != 0 {
		t.Errorf("stopped: %+v, %v; the station said %+v", got, err, stats)
	}

	// A line that is not whole, one that is damaged, and a journal that is
	// shorter than what was signed.
	path := journal.SegmentPath(k.dir, 0)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(append(whole[:len(whole):len(whole)], `{"seq"`...))
	if g, err := journal.Inspect(k.dir, k.id.Verifier); err != nil || g.Torn != 6 {
		t.Errorf("torn: %+v, %v", g, err)
	}
	damaged := append([]byte(nil), whole...)
	damaged[len(damaged)/2] ^= 1
	write(damaged)
	if g, err := journal.Inspect(k.dir, k.id.Verifier); err != nil || len(g.Damage) != 1 {
		t.Errorf("damaged: %+v, %v", g, err)
	}
	signed, have, err := journal.ReadCheckpoint(k.dir, k.id.Verifier)
	if err != nil || !have {
		t.Fatalf("no checkpoint: %v", err)
	}
	damaged = bytes.Join(bytes.SplitAfter(whole, []byte("\n"))[:signed.Size], nil)
	damaged[len(damaged)-20] ^= 1
	write(damaged)
	if g, err := journal.Inspect(k.dir, k.id.Verifier); err != nil || len(g.Damage) != 1 || g.Torn != 0 {
		t.Errorf("the last line, which is signed, is damaged: %+v, %v", g, err)
	}
	write(bytes.Join(bytes.SplitAfter(whole, []byte("\n"))[:2], nil))
	if g, err := journal.Inspect(k.dir, k.id.Verifier); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("cut off: %+v, %v, want %v", g, err, journal.ErrTampered)
	}
	write(whole)
	other, err := journal.LoadIdentity(t.TempDir(), k.id.Verifier.Name())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Inspect(k.dir, other.Verifier); !errors.Is(err, journal.ErrCheckpoint) {
		t.Errorf("another key: %v, want %v", err, journal.ErrCheckpoint)
	}
	if g, err := journal.Inspect(filepath.Join(k.dir, "nothing"), k.id.Verifier); err != nil || g.Entries != 0 {
		t.Errorf("no journal: %+v, %v", g, err)
	}
}

func TestRoomOfAFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := RoomOf(dir, 1, 100)
	if err != nil || d.Used != 5000 || d.Free <= 0 || d.Size < d.Free || d.Level == DiskCritical || d.Time.IsZero() {
		t.Errorf("%+v, %v", d, err)
	}
	for percent, want := range map[int]DiskLevel{79: DiskOK, 80: DiskLow, 94: DiskLow, 95: DiskCritical} {
		if got := levelOf(percent, diskLow, diskCritical); got != want {
			t.Errorf("%d %%: %s, want %s", percent, got, want)
		}
	}
	if _, err := RoomOf(filepath.Join(dir, "none"), 0, 0); err == nil {
		t.Error("a folder that is not there has room")
	}
}
