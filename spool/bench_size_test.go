package spool

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

var (
	benchRecords = flag.Int("benchrecords", 20_000, "how many records are in the journal of BenchmarkAppendLate")
	benchAppends = flag.Int("benchappends", 200, "how many records BenchmarkAppendLate adds")
	benchStart   = flag.Int("benchstart", 100_000, "how many records are in the journal of BenchmarkStart")
)

// sized is a number of records: with -short, when a benchmark must only run, a
// hundredth of it.
func sized(records int) int {
	if testing.Short() {
		return records / 100
	}
	return records
}

// filled is a station with a journal and an index of so many records.
func filled(b *testing.B, records int) (string, journal.Identity) {
	b.Helper()
	dir := b.TempDir()
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		b.Fatal(err)
	}
	fillJournal(b, dir, id, records)
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(s.Checkpoint(), s.Close()); err != nil {
		b.Fatal(err)
	}
	return dir, id
}

// BenchmarkAppendLate sets one record more, on top of many, against the least
// that it must do: write the same bytes, fdatasync, and commit the same
// pointers to a copy of the index, which is as large. Both run in turn.
// p99-of-bare is how many times as long as the bare one's Append's slowest
// hundredth takes, p99-of-commit as the bbolt commit's alone; MB is what is
// allocated more at the end than at the start.
//
//	go test ./spool -run '^$' -bench AppendLate -benchtime 1x -timeout 0 -args -benchrecords 1000000 -benchappends 2000
func BenchmarkAppendLate(b *testing.B) {
	dir, id := filled(b, sized(*benchRecords))
	index, err := os.ReadFile(indexPath(dir))
	if err != nil {
		b.Fatal(err)
	}
	bare := filepath.Join(dir, "bare.bbolt")
	if err := os.WriteFile(bare, index, 0o600); err != nil {
		b.Fatal(err)
	}
	index = nil
	db, err := bolt.Open(bare, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	f, err := os.Create(filepath.Join(dir, "bare.jsonl"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var ours, least, commits []time.Duration
	before := allocated()
	for b.Loop() {
		for n := range sized(*benchAppends) {
			r := newRecord(b)
			at := s.end
			start := time.Now()
			if _, err := s.Append(b.Context(), reading(r)); err != nil {
				b.Fatal(err)
			}
			ours = append(ours, time.Since(start))
			if s.end.Segment != at.Segment {
				at = journal.Position{Segment: s.end.Segment}
			}
			line := make([]byte, s.end.Offset-at.Offset)
			key, seq := r.Fingerprint(), s.next-1
			start = time.Now()
			if _, err := f.Write(line); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
			middle := time.Now()
			if err := db.Update(func(tx *bolt.Tx) error {
				return errors.Join(
					putEntry(tx, &journal.Summary{Device: r.Device, Key: key, Seq: seq, At: at, Time: int64(n), Result: journal.Passed, Tags: &journal.Tags{Slot: "A"}}, &counted{}),
					tableOf(tx, bucketLeaves).Put(encodeSeq(seq), key[:]),
					putProgress(tx, progress{Next: seq + 1}))
			}); err != nil {
				b.Fatal(err)
			}
			least, commits = append(least, time.Since(start)), append(commits, time.Since(middle))
		}
	}
	grown := allocated() - before
	p := func(of []time.Duration, share float64) float64 {
		slices.Sort(of)
		return float64(of[int(share*float64(len(of)-1))])
	}
	b.ReportMetric(p(ours, 0.99)/p(least, 0.99), "p99-of-bare")
	b.ReportMetric(p(ours, 0.99)/p(commits, 0.99), "p99-of-commit")
	b.ReportMetric(p(ours, 0.5)/p(least, 0.5), "p50-of-bare")
	b.ReportMetric(p(ours, 0.99)/1e6, "p99-ms")
	b.ReportMetric(float64(grown)/(1<<20), "MB")
}

func allocated() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkStart is the time from nothing to ready, with an index that is
// whole, and what of it Open holds in memory.
func BenchmarkStart(b *testing.B) {
	records := sized(*benchStart)
	dir, id := filled(b, records)
	before := allocated()
	for b.Loop() {
		s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if s.Stats().Pending != records {
			b.Fatalf("%+v", s.Stats())
		}
		b.ReportMetric(float64(allocated()-before)/(1<<20), "MB")
		s.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/start")
}
