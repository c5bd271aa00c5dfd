package spool

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"secretfree/station/board"
)

// BenchmarkAppend sets Append against the least that it must do: write the same bytes, fdatasync, and commit the same three
// pointers to bbolt. Both run in turn, on files beside each other.
func BenchmarkAppend(b *testing.B) {
	dir := b.TempDir()
	id, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	f, err := os.Create(filepath.Join(dir, "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	db, err := bolt.Open(filepath.Join(dir, "bare.bbolt"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	bare := func(r board.Record, line []byte) {
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		key := r.Fingerprint()
		if err := db.Update(func(tx *bolt.Tx) error {
			for name, pair := range map[string][2][]byte{"devices": {r.Device[:], make([]byte, 49)}, "keys": {key[:], r.Device[:]}, "queue": {r.Device[:8], make([]byte, 24)}} {
				bucket, err := tx.CreateBucketIfNotExists([]byte(name))
				if err != nil {
					return err
				}
				if err := bucket.Put(pair[0], pair[1]); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	var ours, least time.Duration
	for b.Loop() {
		b.StopTimer()
		r := newRecord(b)
		b.StartTimer()
		before := s.end.offset
		start := time.Now()
		if _, err := s.Append(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		line := make([]byte, s.end.offset-before)
		start = time.Now()
		bare(r, line)
		least += time.Since(start)
	}
	b.ReportMetric(float64(least)/float64(ours), "of-bare")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "append-µs")
}
