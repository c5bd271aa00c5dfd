package spool

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// memoryCheckpoint keeps to CheckpointStore's contract.
type memoryCheckpoint struct {
	mu     sync.Mutex
	text   []byte
	looks  int
	before func(look bool) error // called first; an error means not applied
	after  func(look bool) error // called last; an error means that the answer is lost
}

var errMoved = errors.New("another is there")

func (m *memoryCheckpoint) AcceptedCheckpoint(context.Context) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looks++
	if m.before != nil {
		if err := m.before(true); err != nil {
			return nil, err
		}
	}
	return m.text, nil
}

func (m *memoryCheckpoint) MoveCheckpoint(_ context.Context, from, to []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.before != nil {
		if err := m.before(false); err != nil {
			return err
		}
	}
	if !bytes.Equal(m.text, from) {
		return errMoved
	}
	m.text = to
	if m.after != nil {
		return m.after(false)
	}
	return nil
}

func (m *memoryCheckpoint) looked() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.looks
}

func (m *memoryCheckpoint) size(t *testing.T) uint64 {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.text == nil {
		return 0
	}
	_, c, err := journal.CheckpointOf(m.text)
	if err != nil {
		t.Fatal(err)
	}
	return c.Size
}

// acceptedKit is a station with an archive and a store of accepted checkpoints.
func acceptedKit(t *testing.T) (*kit, *memoryArchive, *memoryCheckpoint) {
	t.Helper()
	k, archive := archiveKit(t)
	store := &memoryCheckpoint{}
	k.spool.Close()
	k.accepted = store
	k.mustOpen()
	return k, archive, store
}

// work runs the station for so long, in which it reads so many boards.
func (k *kit) work(boards int, d time.Duration) {
	k.t.Helper()
	stop := k.run()
	for range boards {
		k.mustAppend()
	}
	time.Sleep(d)
	stop()
}

// The accepted checkpoint follows the journal, also over restarts, and the last
// one is accepted when the station stops. What is not moved is looked at all
// the same.
func TestAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, archive, store := acceptedKit(t)
		for range 3 {
			k.work(20, 2*time.Minute)
			if got, want := store.size(t), k.spool.Stats().Entries; got != want {
				t.Errorf("%d of %d entries are accepted", got, want)
			}
			k.reopen()
		}
		stop := k.run()
		before := store.looked()
		time.Sleep(time.Hour)
		if looks := store.looked() - before; looks < 5 {
			t.Errorf("%d looks in an hour", looks)
		}
		k.mustAppend()
		stop() // before a minute has passed
		if got, want := store.size(t), k.spool.Stats().Entries; got != want {
			t.Errorf("at the end %d of %d entries are accepted", got, want)
		}
		if s := k.spool.Stats(); s.Forked || s.ArchiveError != "" || len(archive.segments) < 2 {
			t.Errorf("%+v", s)
		}
		// A registry that has lost it gets it anew.
		store.text = nil
		k.work(1, 2*time.Minute)
		if got, want := store.size(t), k.spool.Stats().Entries; got != want || k.spool.Stats().Forked {
			t.Errorf("after a loss %d of %d entries are accepted", got, want)
		}
	})
}

// Each call fails both ways, and in the end the checkpoint is accepted and
// nothing is taken for a fork. Nothing is archived that is not accepted.
func TestAcceptedFails(t *testing.T) {
	for _, look := range []bool{true, false} {
		for _, applied := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				k, archive, store := acceptedKit(t)
				k.work(10, 2*time.Minute)
				have := len(archive.segments)
				fail := func(l bool) error {
					if l == look {
						return errAway
					}
					return nil
				}
				if applied {
					store.after = fail
				} else {
					store.before = fail
				}
				stop := k.run()
				for range 20 {
					k.mustAppend()
				}
				time.Sleep(time.Hour)
				if s := k.spool.Stats(); s.Forked || (s.ArchiveError == "") != applied || s.Pending > 0 {
					t.Errorf("look %v, applied %v: %+v", look, applied, s)
				}
				if !applied && len(archive.segments) > have {
					t.Errorf("look %v: %d segments were archived meanwhile", look, len(archive.segments)-have)
				}
				store.mu.Lock()
				store.before, store.after = nil, nil
				store.mu.Unlock()
				time.Sleep(time.Hour)
				stop()
				if s := k.spool.Stats(); s.Forked || s.ArchiveError != "" || s.Unarchived > 0 || store.size(t) != s.Entries {
					t.Errorf("look %v, applied %v: %d accepted, %+v", look, applied, store.size(t), s)
				}
			})
		}
	}
}

// copyState copies a station's folder, as an image or a backup does.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"station.key"} {
		if err := os.Chmod(filepath.Join(to, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A journal that is not the one that was accepted is told at once, over
// restarts, and nothing of it is archived; boards pass and are delivered.
func TestAcceptedAnother(t *testing.T) {
	type station struct {
		*kit
		backup string
	}
	for name, c := range map[string]struct {
		before func(t *testing.T, s *station) // the station is stopped
		says   string
	}{
		"set back": {func(t *testing.T, s *station) {
			s.spool.Close()
			copyState(t, s.backup, s.dir)
		}, "this journal has"},
		"set back, and went on": {func(t *testing.T, s *station) {
			s.spool.Close()
			copyState(t, s.backup, s.dir)
			archive, accepted := s.archive, s.accepted
			s.archive, s.accepted = nil, nil // as long as the registry was away
			s.mustOpen()
			s.work(40, time.Minute)
			s.archive, s.accepted = archive, accepted
			s.spool.Close()
		}, "it differs within"},
		"from nothing, with the key": {func(t *testing.T, s *station) {
			s.spool.Close()
			for _, name := range []string{"journal", "index.bbolt"} {
				if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}, "this journal has 1"},
		"another key": {func(t *testing.T, s *station) {
			s.spool.Close()
			private, _, err := note.GenerateKey(nil, "widgiot/line3-a")
			if err != nil {
				t.Fatal(err)
			}
			signer, err := note.NewSigner(private)
			if err != nil {
				t.Fatal(err)
			}
			text, err := journal.Checkpoint{Size: 7}.Encode(signer)
			if err != nil {
				t.Fatal(err)
			}
			s.accepted.(*memoryCheckpoint).text = text
		}, "not signed by the key of this station"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, archive, store := acceptedKit(t)
				s := &station{kit: k, backup: filepath.Join(t.TempDir(), "backup")}
				k.work(10, 2*time.Minute)
				copyState(t, k.dir, s.backup)
				k.work(20, 2*time.Minute)
				c.before(t, s)
				k.receipts = map[board.DeviceID]board.Receipt{} // of what was set back
				text, segments, checkpoints := store.text, len(archive.segments), len(archive.checkpoints)
				k.notices = nil
				k.mustOpen()
				for restart := range 2 {
					stop := k.run()
					time.Sleep(time.Second)
					if s := k.spool.Stats(); !s.Forked || !strings.Contains(s.ArchiveError, errNotAccepted.Error()) || restart == 0 && !strings.Contains(s.ArchiveError, c.says) {
						t.Errorf("restart %d, after a second: %+v", restart, s)
					}
					for range 20 {
						k.mustAppend()
					}
					time.Sleep(time.Hour)
					stop()
					if s := k.spool.Stats(); !s.Forked || s.Pending > 0 {
						t.Errorf("restart %d: %+v", restart, s)
					}
					stopped, err := func() (Stats, error) { k.spool.Close(); return StoppedStats(k.dir) }()
					if err != nil || !stopped.Forked || !strings.Contains(stopped.ArchiveError, errNotAccepted.Error()) {
						t.Errorf("stopped: %+v, %v", stopped, err)
					}
					k.mustOpen()
				}
				if !bytes.Equal(store.text, text) || len(archive.segments) != segments || len(archive.checkpoints) != checkpoints {
					t.Errorf("it went on: %d and %d archived before, %d and %d after", segments, checkpoints, len(archive.segments), len(archive.checkpoints))
				}
				if told := strings.Count(strings.Join(k.notices, "\n"), errNotAccepted.Error()); told != 1 {
					t.Errorf("told %d times: %q", told, k.notices)
				}
			})
		})
	}
}

// Of two copies of a station that run at once, one goes on and one is told,
// whichever is quicker; when the one that goes on has stopped, the other is not
// taken for it.
func TestAcceptedClones(t *testing.T) {
	for _, first := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			k, archive, store := acceptedKit(t)
			k.work(10, 2*time.Minute)
			k.spool.Close()
			clone, _ := archiveKit(t)
			clone.spool.Close()
			copyState(t, k.dir, clone.dir)
			clone.id, clone.archive, clone.accepted, clone.sink = k.id, k.archive, k.accepted, k.sink
			both := []*kit{k, clone}
			k.mustOpen()
			clone.mustOpen()
			var stops []func()
			for _, each := range both {
				stops = append(stops, each.run())
			}
			time.Sleep(time.Minute)
			for range 10 {
				both[first].mustAppend()
			}
			time.Sleep(2 * time.Minute)
			for range 10 {
				both[1-first].mustAppend()
			}
			time.Sleep(2 * time.Minute)
			winner, loser := both[first].spool.Stats(), both[1-first].spool.Stats()
			if winner.Forked || winner.ArchiveError != "" || !loser.Forked || loser.Pending > 0 {
				t.Errorf("%d was first: it has %+v, the other %+v", first, winner, loser)
			}
			if store.size(t) != winner.Signed {
				t.Errorf("%d entries are accepted, want %d", store.size(t), winner.Signed)
			}
			for _, stop := range stops {
				stop()
			}
			for _, text := range archive.checkpoints {
				if err := journal.Consistent(both[first].dir, k.id.Verifier, text); err != nil {
					t.Errorf("the archive has a checkpoint of the other: %v", err)
				}
			}
		})
	}
}

// A machine that was put right is not told of any more.
func TestAcceptedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _, store := acceptedKit(t)
		k.work(10, 2*time.Minute)
		right := store.text
		other, err := journal.Checkpoint{Size: 3}.Encode(k.id.Signer)
		if err != nil {
			t.Fatal(err)
		}
		store.text = other
		k.work(1, time.Minute)
		if s := k.spool.Stats(); !s.Forked {
			t.Errorf("%+v", s)
		}
		store.text = right
		k.reopen()
		k.work(0, 20*time.Minute)
		if s := k.spool.Stats(); s.Forked || s.ArchiveError != "" || store.size(t) != s.Entries {
			t.Errorf("%+v", s)
		}
	})
}
