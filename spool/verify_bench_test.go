package spool

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

var benchVerify = flag.Int("benchverify", 2_000, "how many records are in the journal of BenchmarkVerify")

// provenRecord is a record with three signatures of its key.
func provenRecord(tb testing.TB, private *ecdsa.PrivateKey) board.Record {
	tb.Helper()
	r := newRecord(tb)
	key, err := board.NewKey(private.Public(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	r.Key = key
	r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA256}
	for range 3 {
		nonce := make([]byte, 32)
		rand.Read(nonce)
		digest := sha256.Sum256(nonce)
		signature, err := ecdsa.SignASN1(rand.Reader, private, digest[:])
		if err != nil {
			tb.Fatal(err)
		}
		r.Proof.Nonces, r.Proof.Signatures = append(r.Proof.Nonces, nonce), append(r.Proof.Signatures, signature)
	}
	return r
}

// BenchmarkVerify verifies a journal, against the least that this takes: for
// each record its station's signature (Ed25519), three signatures of the board
// (P-256) and the hash of its line, on all cores. of-bare is how many times as
// many records a second the bare one does, inverted: 1 is as quick.
//
//	go test ./spool -run '^$' -bench Verify -benchtime 1x -args -benchverify 100000
func BenchmarkVerify(b *testing.B) {
	records := sized(*benchVerify)
	dir := tempDirB(b)
	id, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	var public *ecdsa.PublicKey
	var proof *board.Proof
	var fill sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(records))
	for range 16 {
		fill.Go(func() {
			for left.Add(-1) >= 0 {
				private := newP256(b)
				r := provenRecord(b, private)
				if _, err := s.Append(b.Context(), reading(r)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	fill.Wait()
	if b.Failed() {
		b.FailNow()
	}
	if err := s.Checkpoint(); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	private := newP256(b)
	sample := provenRecord(b, private)
	public, proof = &private.PublicKey, sample.Proof
	stationKey, stationPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	payload := bytes.Repeat([]byte("x"), 1000)
	signature := ed25519.Sign(stationPrivate, payload)
	digests := make([][32]byte, len(proof.Nonces))
	for i, nonce := range proof.Nonces {
		digests[i] = sha256.Sum256(nonce)
	}
	line := make([]byte, 1500)
	bare := func(n int) time.Duration {
		start := time.Now()
		var todo atomic.Int64
		todo.Store(int64(n))
		var all sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			all.Go(func() {
				for todo.Add(-1) >= 0 {
					good := ed25519.Verify(stationKey, payload, signature)
					for i := range digests {
						good = ecdsa.VerifyASN1(public, digests[i][:], proof.Signatures[i]) && good
					}
					if sum := sha256.Sum256(line); !good || sum == [32]byte{} {
						b.Error("a good signature is none")
					}
				}
			})
		}
		all.Wait()
		return time.Since(start)
	}
	var ours, least time.Duration
	var most uint64
	for b.Loop() {
		least += bare(records)
		stop := watchHeap(&most)
		start := time.Now()
		report, err := journal.VerifyDir(dir, id.Verifier)
		ours += time.Since(start)
		stop()
		if err != nil || report.Records != uint64(records) {
			b.Fatalf("%+v, %v", report, err)
		}
	}
	b.ReportMetric(float64(least)/float64(ours), "of-bare")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N*records), "µs/record")
	b.ReportMetric(float64(most)/(1<<20), "heap-MiB")
}

// watchHeap keeps the largest heap that it sees until it is stopped.
func watchHeap(most *uint64) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			*most = max(*most, m.HeapInuse)
			select {
			case <-done:
				return
			case <-ticker.C:
			}
		}
	}()
	return func() { close(done); <-ended }
}

func newP256(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func tempDirB(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "spool-bench-")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Clean(dir)
}
