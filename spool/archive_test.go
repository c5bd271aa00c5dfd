package spool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"secretfree/spool/journal"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memoryArchive keeps to Archive's contract, and complains when the spool does
// not.
type memoryArchive struct {
	t           *testing.T
	kit         *kit
	mu          sync.Mutex
	segments    map[uint64]ArchivedSegment
	checkpoints [][]byte
	puts        int
	fault       func(put int) error
}

func (m *memoryArchive) PutSegment(_ context.Context, s ArchivedSegment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, err := journal.ParseCheckpoint(s.Checkpoint, m.kit.id.Verifier)
	if err != nil || c.Size != s.Last+1 || s.Origin != "widgiot/line3-a" || !strings.HasPrefix(string(s.Lines), fmt.Sprintf(`{"seq":%d,`, s.First)) {
		m.t.Errorf("segment %d to %d: checkpoint %+v, %v", s.First, s.Last, c, err)
	}
	if m.puts++; m.fault != nil {
		if err := m.fault(m.puts); err != nil {
			return err
		}
	}
	if have, ok := m.segments[s.First]; ok && !bytes.Equal(have.Lines, s.Lines) {
		return journal.ErrFork
	}
	m.segments[s.First] = s
	return nil
}

func (m *memoryArchive) PutCheckpoint(_ context.Context, checkpoint []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.puts++; m.fault != nil {
		if err := m.fault(m.puts); err != nil {
			return err
		}
	}
	m.checkpoints = append(m.checkpoints, checkpoint)
	return nil
}

func (m *memoryArchive) set(fault func(int) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

func archiveKit(t *testing.T) (*kit, *memoryArchive) {
	t.Helper()
	k := newKit(t)
	k.spool.Close()
	k.size = 3 << 10
	archive := &memoryArchive{t: t, kit: k, segments: map[uint64]ArchivedSegment{}}
	k.archive = archive
	k.mustOpen()
	return k, archive
}

// Every sealed segment and the newest checkpoint go out once, also over
// restarts; an archive that is away holds nothing back.
func TestArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, archive := archiveKit(t)
		archive.set(func(int) error { return errAway })
		stop := k.run()
		for range 20 {
			k.mustAppend()
		}
		time.Sleep(5 * time.Minute)
		if s := k.spool.Stats(); s.Pending != 0 || s.Unarchived == 0 || !strings.Contains(s.ArchiveError, errAway.Error()) {
			t.Errorf("while it is away: %+v", s)
		}
		if info, err := os.Stat(journal.LeavesPath(k.dir, 0)); err != nil || !k.spool.Stats().UnarchivedSince.Equal(info.ModTime()) {
			t.Errorf("it waits since %v, want the time of %+v (%v)", k.spool.Stats().UnarchivedSince, info, err)
		}
		archive.set(func(put int) error { // stored, and the answer lost
			if put%2 == 0 {
				return errAway
			}
			return nil
		})
		time.Sleep(2 * time.Hour)
		stop()
		segments := k.segments()
		if s := k.spool.Stats(); s.Unarchived != 0 || !s.UnarchivedSince.IsZero() || s.ArchiveError != "" || len(archive.segments) != len(segments)-1 {
			t.Errorf("%d segments archived of %d: %+v", len(archive.segments), len(segments)-1, s)
		}
		if len(archive.checkpoints) == 0 {
			t.Fatal("no checkpoint was archived")
		}
		newest, err := os.ReadFile(journal.CheckpointPath(k.dir))
		if err != nil || !bytes.Equal(archive.checkpoints[len(archive.checkpoints)-1], newest) {
			t.Errorf("the newest checkpoint is not archived (%v)", err)
		}
		puts := archive.puts
		k.reopen()
		stop = k.run()
		time.Sleep(time.Hour)
		stop()
		if archive.puts != puts {
			t.Errorf("%d things were offered again", archive.puts-puts)
		}
		// A segment that the archive has is what Repair needs.
		k.spool.Close()
		spoilEntry(t, k, 0, 1)
		copies := func(first uint64) ([]byte, error) { return archive.segments[first].Lines, nil }
		if done, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false); err != nil || done.Left > 0 {
			t.Errorf("Repair: %+v, %v", done, err)
		}
		k.mustOpen()
	})
}

// A damaged segment is not archived; the others are.
func TestArchiveTakesNoDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, archive := archiveKit(t)
		k.damaged = true
		for range 20 {
			k.mustAppend()
		}
		segments := k.segments()
		victim := segments[1].First
		spoilEntry(t, k, victim, 1) // nobody has noticed yet
		stop := k.run()
		time.Sleep(time.Hour)
		stop()
		if _, ok := archive.segments[victim]; ok || len(archive.segments) < len(segments)-2 {
			t.Errorf("%d of %d segments archived, the damaged one %v", len(archive.segments), len(segments), ok)
		}
		if s := k.spool.Stats(); s.Damaged != 1 || s.Unarchived != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// An archive that has another journal under this name is told of once, and the
// station goes on.
func TestArchiveFork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, archive := archiveKit(t)
		archive.set(func(int) error { return fmt.Errorf("s3: %w", journal.ErrFork) })
		for range 10 {
			k.mustAppend()
		}
		k.notices = nil
		stop := k.run()
		time.Sleep(time.Hour)
		k.mustAppend()
		stop()
		told := 0
		for _, n := range k.notices {
			if strings.Contains(n, journal.ErrFork.Error()) {
				told++
			}
		}
		if told != 1 || k.spool.Stats().ArchiveError == "" || !k.spool.Stats().Forked {
			t.Errorf("told %d times: %q", told, k.notices)
		}
	})
}

// A fork stays, whatever the archive says before it, and over a restart; and
// nothing more is archived: what the archive has is the journal of one machine.
func TestForkStays(t *testing.T) {
	fork := fmt.Errorf("s3: %w", journal.ErrFork)
	for name, answers := range map[string][]error{"at once": {fork}, "after another error": {errAway, fork}, "of the second segment": {nil, fork}, "of a checkpoint": {nil, nil, nil, fork}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, archive := archiveKit(t)
				archive.set(func(put int) error {
					if put > len(answers) {
						return nil
					}
					return answers[put-1]
				})
				for range 10 {
					k.mustAppend()
				}
				if err := k.spool.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				k.notices = nil
				stop := k.run()
				time.Sleep(time.Hour)
				stop()
				if told := strings.Count(strings.Join(k.notices, "\n"), journal.ErrFork.Error()); told != 1 {
					t.Errorf("told %d times: %q", told, k.notices)
				}
				check := func() {
					t.Helper()
					if s := k.spool.Stats(); !s.Forked || !strings.Contains(s.ArchiveError, fork.Error()) {
						t.Errorf("%+v", s)
					}
					if archive.puts != len(answers) {
						t.Errorf("%d puts, want %d", archive.puts, len(answers))
					}
				}
				check()
				k.reopen()
				stop = k.run()
				time.Sleep(time.Minute)
				stop()
				check()
			})
		})
	}
}

func TestSameLeaves(t *testing.T) {
	k, _ := smallKit(t, 10)
	lines, err := os.ReadFile(journal.SegmentPath(k.dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	l, err := journal.ReadLeaves(k.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := journal.CheckLeaves(lines, l); err != nil {
		t.Fatal(err)
	}
	fewer, other := l, l
	fewer.Hashes = l.Hashes[1:]
	other.First++
	for name, c := range map[string]struct {
		lines []byte
		l     journal.Leaves
	}{
		"a line less":   {dropLine(lines, 2), l},
		"the last less": {dropLine(lines, bytes.Count(lines, []byte("\n"))-1), l},
		"half a line":   {lines[:len(lines)-3], l},
		"other hashes":  {lines, fewer},
		"another place": {lines, other},
	} {
		if err := journal.CheckLeaves(c.lines, c.l); !errors.Is(err, journal.ErrEntry) {
			t.Errorf("%s: %v, want %v", name, err, journal.ErrEntry)
		}
	}
}
