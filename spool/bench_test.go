package spool

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// BenchmarkAppend sets Append, by so many at once, against the least that it
// must do for one record: write the same bytes, fdatasync, and commit the same
// pointers to bbolt. Both run in turn, on files beside each other. of-bare is
// how many records Append takes in the time in which the bare calls take one.
func BenchmarkAppend(b *testing.B) {
	for _, appenders := range []int{1, 4, 16} {
		b.Run(fmt.Sprint(appenders), func(b *testing.B) { benchmarkAppend(b, appenders) })
	}
}

func benchmarkAppend(b *testing.B, appenders int) {
	dir := b.TempDir()
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
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
	db, err := bolt.Open(filepath.Join(dir, "bare.bbolt"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
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
			for name, pair := range map[string][2][]byte{"devices": {r.Device[:], make([]byte, 49)}, "keys": {key[:], r.Device[:]}, "queue": {r.Device[:8], make([]byte, 24)}, "leaves": {r.Device[:8], make([]byte, 32)}, "meta": {[]byte("next"), make([]byte, 40)}} {
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
	const rounds = 4 // of each appender in an iteration
	var ours, least time.Duration
	for b.Loop() {
		b.StopTimer()
		records := make([]board.Record, appenders*rounds)
		for i := range records {
			records[i] = newRecord(b)
		}
		b.StartTimer()
		before := s.end.Offset
		start := time.Now()
		var wg sync.WaitGroup
		for i := range appenders {
			wg.Go(func() {
				for _, r := range records[i*rounds : (i+1)*rounds] {
					if _, err := s.Append(b.Context(), reading(r)); err != nil {
						b.Error(err)
					}
				}
			})
		}
		wg.Wait()
		ours += time.Since(start)
		line := make([]byte, (s.end.Offset-before)/int64(len(records)))
		start = time.Now()
		for _, r := range records {
			bare(r, line)
		}
		least += time.Since(start)
	}
	b.ReportMetric(float64(least)/float64(ours), "of-bare")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N*appenders*rounds), "µs/record")
}

// fillJournal writes a journal of so many records as fast as the disk takes
// them. Its signatures are none, which only VerifyDir sees.
func fillJournal(tb testing.TB, dir string, id journal.Identity, records int) {
	tb.Helper()
	if err := os.MkdirAll(journal.Dir(dir), 0o700); err != nil {
		tb.Fatal(err)
	}
	const format = `{"version":1,"sku":"widgiot","station":"line3-a","device":"%x","key":"%s","fingerprint":"%x","read_at":"2026-01-02T03:04:05.006Z","generation":1,"facts":{"dialect":"ti-at"},"proof":{"method":"ecdsa-sha256","nonce":"%s"}}`
	spki := base64.StdEncoding.EncodeToString(make([]byte, 91))
	signature := base64.StdEncoding.EncodeToString(make([]byte, 64))
	nonces := strings.Repeat("0", 200)
	seq := uint64(0)
	line := func(w *bufio.Writer, body string) int {
		data := fmt.Appendf(nil, `{"seq":%d,"time":"2026-01-02T03:04:05.006Z",%s}`, seq, body)
		n, err := w.Write(journal.EncodeLine(data))
		if err != nil {
			tb.Fatal(err)
		}
		seq++
		return n
	}
	for done := 0; done < records; {
		f, err := os.Create(journal.SegmentPath(dir, seq))
		if err != nil {
			tb.Fatal(err)
		}
		w := bufio.NewWriterSize(f, 1<<20)
		size := line(w, fmt.Sprintf(`"kind":"segment","segment":{"format":2,"origin":"widgiot/line3-a","key":%q}`, id.Key))
		for ; done < records && size < segmentSize; done++ {
			key := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(done)))
			device := sha256.Sum256(key[:])
			payload := fmt.Appendf(nil, format, device[:16], spki, key, nonces)
			size += line(w, fmt.Sprintf(`"kind":"verdict","verdict":{"result":"passed","slot":"A","device":"%x","fingerprint":"%x","work_order":"WO-%d","read_ms":1500,"record":{"payloadType":%q,"payload":%q,"signatures":[{"keyid":"widgiot/line3-a+00000000","sig":%q}]}}`, device[:16], key, done/5000, board.PayloadType, base64.StdEncoding.EncodeToString(payload), signature))
		}
		if err := errors.Join(w.Flush(), f.Close()); err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkRebuild reports how many records a second come into an index that
// was lost.
func BenchmarkRebuild(b *testing.B) {
	records := sized(200_000)
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
	if n := s.Stats().Pending; n != records {
		b.Fatalf("%d records in the index, want %d", n, records)
	}
	s.Close()
	for b.Loop() {
		b.StopTimer()
		os.Remove(indexPath(dir))
		b.StartTimer()
		s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(records)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkOpen starts on a million records: with its index, and as a ratio to
// reading the same journal's bytes once.
func BenchmarkOpen(b *testing.B) {
	records := sized(1_000_000)
	dir := b.TempDir()
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		b.Fatal(err)
	}
	fillJournal(b, dir, id, records)
	start := time.Now()
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(records)/time.Since(start).Seconds(), "rebuilt-records/s")
	s.Checkpoint()
	s.Close()
	start = time.Now()
	segments, err := journal.ListSegments(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, segment := range segments {
		if _, err := os.ReadFile(journal.SegmentPath(dir, segment.First)); err != nil {
			b.Fatal(err)
		}
	}
	read := time.Since(start)
	for b.Loop() {
		s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/read.Seconds(), "of-reading-once")
}
