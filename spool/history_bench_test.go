package spool

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// BenchmarkLookBack is what a page about boards costs on top of many records: a
// part of an id, a board, the newest, an hour, a proof.
//
//	go test ./spool -run '^$' -bench LookBack -timeout 0 -args -benchstart 1000000
func BenchmarkLookBack(b *testing.B) {
	records := sized(*benchStart)
	dir, id := filled(b, records)
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	key := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(records/2)))
	sum := sha256.Sum256(key[:])
	device := board.DeviceID(sum[:16])
	part := hex.EncodeToString(device[5:9])
	day := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for name, f := range map[string]func() error{
		"part of an id": func() error {
			found, _, err := s.Find(b.Context(), part, 50)
			if err == nil && len(found) == 0 {
				err = fmt.Errorf("%s is not found", part)
			}
			return err
		},
		"board": func() error {
			h, err := s.History(device)
			if err == nil && h.Record.Record() == nil {
				err = fmt.Errorf("no record")
			}
			return err
		},
		"newest 50": func() error {
			_, err := s.Recent(b.Context(), 50)
			return err
		},
		"all between": func() error { // all are of one moment here: the worst case
			n := 0
			err := s.Range(b.Context(), day, day.Add(time.Hour), func(Item) { n++ })
			if err == nil && n != records {
				err = fmt.Errorf("%d moments", n)
			}
			return err
		},
		"proof": func() error {
			_, err := s.Prove(b.Context(), device)
			return err
		},
		"proof from the whole journal": func() error {
			_, err := journal.Prove(dir, device)
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			before := allocated()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ReportMetric(float64(allocated()-before)/(1<<20), "MB-kept")
		})
	}
}

// BenchmarkAppendWhileLookedAt is a record more on top of many, alone and while
// somebody looks back without a pause, which the station lets only one at a
// time do.
//
//	go test ./spool -run '^$' -bench AppendWhile -benchtime 200x -timeout 0
func BenchmarkAppendWhileLookedAt(b *testing.B) {
	dir, id := filled(b, sized(*benchStart))
	s, err := Open(Config{Dir: dir, Identity: id, Sink: newMemorySink()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	day := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	for name, look := range map[string]func(ctx context.Context){
		"alone":                   nil,
		"while boards are sought": func(ctx context.Context) { s.Find(ctx, "beefbeef", 50) },
		"while reports are made":  func(ctx context.Context) { s.Range(ctx, day, day.Add(time.Hour), func(Item) {}) },
		"while records are proved": func(ctx context.Context) {
			key := sha256.Sum256(binary.BigEndian.AppendUint64(nil, 7))
			sum := sha256.Sum256(key[:])
			s.Prove(ctx, board.DeviceID(sum[:16]))
		},
	} {
		b.Run(name, func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			var under sync.WaitGroup
			if look != nil {
				under.Go(func() {
					for ctx.Err() == nil {
						look(ctx)
					}
				})
			}
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				r := newRecord(b)
				b.StartTimer()
				start := time.Now()
				if _, err := s.Append(b.Context(), reading(r)); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			cancel()
			under.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
			b.ReportMetric(float64(took[len(took)*99/100])/1e6, "p99-ms")
		})
	}
}
