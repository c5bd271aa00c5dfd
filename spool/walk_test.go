package spool

import (
	"errors"
	"os"
	"runtime"
	"secretfree/spool/journal"
	"testing"
)

// From any entry on it is what Walk gives, and segments before it are not even
// opened.
func TestWalkFrom(t *testing.T) {
	k, _ := smallKit(t, 20)
	k.damaged = true
	var all []uint64
	for e, err := range journal.Walk(k.dir) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Seq)
	}
	for from := range uint64(len(all) + 2) {
		next := from
		for e, err := range journal.WalkFrom(k.dir, from) {
			if err != nil || e.Seq != next {
				t.Fatalf("from %d: entry %d, %v, want %d", from, e.Seq, err, next)
			}
			next++
		}
		if next != max(from, uint64(len(all))) {
			t.Errorf("from %d it ends at %d, want %d", from, next, len(all))
		}
	}
	segments := k.segments()
	k.spool.Close()
	if err := os.Remove(journal.SegmentPath(k.dir, segments[1].First)); err != nil {
		t.Fatal(err)
	}
	for _, err := range journal.WalkFrom(k.dir, segments[2].First) {
		if err != nil {
			t.Fatalf("a missing file before it: %v", err)
		}
	}
	damaged := 0
	for _, err := range journal.WalkFrom(k.dir, segments[2].First-1) {
		if _, ok := errors.AsType[*journal.DamageError](err); ok {
			damaged++
		}
	}
	if damaged != 1 {
		t.Errorf("from within the missing file: told %d times", damaged)
	}
}

// The memory that a walk takes does not grow with the journal.
func TestWalkInBoundedMemory(t *testing.T) {
	const records = 3_000
	dir := tempDir(t)
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	fillJournal(t, dir, id, records)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, most, n := heap(), uint64(0), 0
	for _, err := range journal.Walk(dir) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%(records/10) == 0 {
			most = max(most, heap())
		}
	}
	if n < records || most > before+2<<20 {
		t.Errorf("%d entries; the heap grew from %d to %d bytes", n, before, most)
	}
}
