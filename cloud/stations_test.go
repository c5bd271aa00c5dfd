package cloud

import (
	"context"
	"crypto/rand"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

// TestStationsRace has two stations, each with a spool of its own, read boards
// that contradict one another while neither reaches the registry; then both
// deliver at once. Of each pair exactly one is enrolled, and the other station
// has a dead letter that says by whom.
func TestStationsRace(t *testing.T) {
	onEveryBackend(t, func(t *testing.T, b backend) {
		const pairs = 12
		var stations []*spool.Spool
		var records [2][]board.Record
		for i, name := range []string{"line3-a", "line4-b"} {
			dir := filepath.Join(t.TempDir(), name)
			stations = append(stations, openStation(t, dir, name, b))
			for n := range pairs {
				device, key := n, n
				if n%2 == 0 {
					key += 100 * i // one device, two keys
				} else {
					device += 100 * i // one key, two devices
				}
				r := recordOf(t, name, device, key)
				records[i] = append(records[i], r)
				_, err := stations[i].Append(t.Context(), spool.Reading{Record: &r})
				must(t, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var group sync.WaitGroup
		for _, s := range stations {
			ran, settled := context.WithCancel(ctx)
			group.Go(func() {
				if err := s.Run(ran); err != nil {
					t.Error(err)
				}
			})
			group.Go(func() {
				defer settled()
				for s.Stats().Pending > 0 && ctx.Err() == nil {
					select {
					case <-ctx.Done():
					case <-time.After(5 * time.Millisecond):
					}
				}
			})
		}
		group.Wait()
		var letters [2]map[board.DeviceID]spool.DeadLetter
		for i, s := range stations {
			if stats := s.Stats(); stats.Pending > 0 {
				t.Fatalf("not settled: %+v", stats)
			}
			dead, err := s.DeadLetters()
			must(t, err)
			letters[i] = map[board.DeviceID]spool.DeadLetter{}
			for _, d := range dead {
				letters[i][d.Device] = d
			}
		}
		for n := range pairs {
			_, lost0 := letters[0][records[0][n].Device]
			letter, lost1 := letters[1][records[1][n].Device]
			if lost0 == lost1 {
				t.Errorf("pair %d: lost by the first %v, by the second %v", n, lost0, lost1)
				continue
			}
			winner := records[0][n]
			if lost0 {
				winner, letter = records[1][n], letters[0][records[0][n].Device]
			}
			want := journal.Known{Device: winner.Device.String(), Key: winner.Fingerprint().String(), By: winner.Origin()}
			if letter.Known == nil || *letter.Known != want || !strings.Contains(letter.Reason, winner.Origin()) {
				t.Errorf("pair %d: %+v, known %+v, want %+v", n, letter, letter.Known, want)
			}
			e, err := b.open(t, "").Lookup(t.Context(), winner.Device)
			if err != nil || e.Key != winner.Key || e.Station != winner.Origin() {
				t.Errorf("pair %d: the registry has %+v, %v", n, e, err)
			}
		}
		if items := len(b.items(t)); items != 2*pairs {
			t.Errorf("%d items and guards of %d boards", items, pairs)
		}
		check(t, b)
	})
}

func openStation(t *testing.T, dir, name string, b backend) *spool.Spool {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "widgiot/"+name)
	must(t, err)
	signer, err := note.NewSigner(private)
	must(t, err)
	verifier, err := note.NewVerifier(public)
	must(t, err)
	sink, ok := b.open(t, "").(spool.BatchSink)
	if !ok {
		t.Fatal(errors.New("the registry takes no batches"))
	}
	s, err := spool.Open(spool.Config{Dir: dir, Identity: journal.Identity{Signer: signer, Verifier: verifier, Key: public}, Sink: sink})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}
