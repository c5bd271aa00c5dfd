package spool

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// shift is a station at work on a recorder.
type shift struct {
	t     testing.TB
	dir   string
	rec   *recorder
	id    journal.Identity
	spool *Spool
	sink  *memorySink
	all   []board.Record
	made  map[board.DeviceID]board.Receipt
}

const shiftSegment = 6 << 10

// newShift prepares a folder, then begins to record.
func newShift(t testing.TB, prepare func(*shift)) *shift {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "spool-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &shift{t: t, dir: dir, sink: newMemorySink(), made: map[board.DeviceID]board.Receipt{}}
	if prepare != nil {
		s.open()
		prepare(s)
		s.spool.Close()
	}
	s.rec = newRecorder(t, dir)
	for device, receipt := range s.made {
		s.relyOn(device, receipt)
	}
	for device, key := range s.sink.have {
		s.rec.promised(func(p *promises) { p.confirmed[device] = key })
	}
	s.rec.start = len(s.rec.ops) // what was promised before is a part of what was found
	s.sink.set(func(sealed board.Sealed, _ int) (bool, error) {
		s.rec.promised(func(p *promises) { p.confirmed[sealed.Record().Device] = sealed.Record().Fingerprint() })
		return true, nil
	})
	return s
}

func (s *shift) relyOn(device board.DeviceID, receipt board.Receipt) {
	i := slices.IndexFunc(s.all, func(r board.Record) bool { return r.Device == device })
	record, key := s.all[i], s.id.Key
	s.rec.promised(func(p *promises) { p.key, p.receipts[device], p.records[device] = key, receipt, record })
}

func (s *shift) disk() disk {
	if s.rec == nil {
		return osDisk{}
	}
	return s.rec
}

func (s *shift) tryOpen() error {
	id, err := journal.LoadIdentityOn(s.disk(), s.dir, "widgiot/line3-a")
	if err != nil {
		return err
	}
	s.id = id
	s.spool, err = Open(Config{Dir: s.dir, Identity: id, Sink: s.sink, Archive: s, SegmentSize: shiftSegment, disk: s.disk()})
	return err
}

func (s *shift) open() {
	s.t.Helper()
	if err := s.tryOpen(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shift) reopen() {
	s.t.Helper()
	if err := s.spool.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

// PutSegment and PutCheckpoint make a shift an Archive.
func (s *shift) PutSegment(ctx context.Context, a ArchivedSegment) error {
	return s.PutCheckpoint(ctx, a.Checkpoint)
}

func (s *shift) PutCheckpoint(_ context.Context, checkpoint []byte) error {
	if s.rec != nil {
		s.rec.promised(func(p *promises) { p.checkpoints = append(p.checkpoints, checkpoint) })
	}
	return nil
}

func (s *shift) append(r board.Record) error {
	receipt, err := s.spool.Append(s.t.Context(), reading(r))
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(s.all, func(o board.Record) bool { return o.Device == r.Device }) {
		s.all = append(s.all, r)
	}
	s.made[r.Device] = receipt
	if s.rec != nil {
		s.relyOn(r.Device, receipt)
	}
	return nil
}

func (s *shift) boards(n int) {
	s.t.Helper()
	for range n {
		if err := s.append(newRecord(s.t)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// group has boards read at once, so that they share one write.
func (s *shift) group(n int) {
	s.t.Helper()
	var wg sync.WaitGroup
	records := make([]board.Record, n)
	receipts := make([]board.Receipt, n)
	s.spool.mu.Lock()
	for i := range n {
		records[i] = newRecord(s.t)
		wg.Go(func() {
			var err error
			if receipts[i], err = s.spool.Append(context.Background(), reading(records[i])); err != nil {
				s.t.Error(err)
			}
		})
	}
	for waiting := 0; waiting < n; runtime.Gosched() {
		s.spool.groupMu.Lock()
		waiting = len(s.spool.waiting)
		s.spool.groupMu.Unlock()
	}
	s.spool.mu.Unlock()
	wg.Wait()
	s.all = append(s.all, records...)
	for i, r := range records {
		s.made[r.Device] = receipts[i]
		if s.rec != nil {
			s.relyOn(r.Device, receipts[i])
		}
	}
}

func (s *shift) sign() {
	s.t.Helper()
	if err := s.spool.Checkpoint(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shift) stick(name string) string { return filepath.Join(s.dir, "stick-"+name) }

// export writes the journal to a stick, which is the part of the disk that is
// named so.
func (s *shift) export(name string, from uint64) {
	s.t.Helper()
	if _, err := exportTo(s.rec, s.dir, s.id.Verifier, s.stick(name), from); err != nil {
		s.t.Fatal(err)
	}
	folder := filepath.Join(s.stick(name), "widgiot", "line3-a")
	runs, err := listRuns(folder)
	if err != nil {
		s.t.Fatal(err)
	}
	relative, err := filepath.Rel(s.dir, folder)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range runs {
		data, err := os.ReadFile(filepath.Join(folder, r.name(endBundle)))
		if err != nil {
			s.t.Fatal(err)
		}
		s.rec.promised(func(p *promises) { p.carried[filepath.Join(relative, r.name(endBundle))] = data })
	}
	s.rec.promised(func(p *promises) { p.looked = append(p.looked, relative) })
}

func (s *shift) deliver() {
	s.t.Helper()
	for s.spool.pass(s.t.Context()).more {
	}
	for more := true; more; {
		var err error
		if more, err = s.spool.archiveNext(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
	}
}

var errKilled = errors.New("the process was killed")

// killAt ends the process at the next call of a kind on a file that ends so:
// nothing more reaches the disk, but what is in the kernel stays.
func (s *shift) killAt(kind opKind, suffix string) {
	dead := false
	s.rec.fail = func(k opKind, path string) error {
		if dead = dead || k == kind && strings.HasSuffix(path, suffix); dead {
			return errKilled
		}
		return nil
	}
}

// shifts are what is recorded. Each goes through calls that sync something.
var shifts = map[string]func(t testing.TB) *shift{
	"a first shift": func(t testing.TB) *shift {
		s := newShift(t, nil)
		s.open()
		s.boards(3)
		if err := s.append(s.all[1]); err != nil {
			t.Fatal(err)
		}
		other := s.all[0]
		other.Key = newRecord(t).Key
		if err := s.append(other); !errors.Is(err, board.ErrDeviceConflict) {
			t.Fatal(err)
		}
		s.sign()
		s.deliver()
		s.group(4)
		s.boards(2)
		s.group(3)
		s.deliver()
		s.reopen()
		s.boards(3)
		s.group(5)
		s.deliver()
		return s
	},
	"killed before a sync": func(t testing.TB) *shift {
		s := newShift(t, func(s *shift) { s.boards(2) })
		s.open()
		unsure := newRecord(t)
		s.killAt(opSync, ".jsonl")
		if err := s.append(unsure); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		s.spool.Close()
		s.rec.fail = nil
		s.open()
		if err := s.append(unsure); err != nil || !s.made[unsure.Device].Repeat {
			t.Fatal(err)
		}
		s.group(3)
		return s
	},
	"a full disk": func(t testing.TB) *shift {
		s := newShift(t, func(s *shift) { s.boards(2) })
		s.open()
		full := false
		s.rec.fail = func(kind opKind, path string) error {
			if full = !full && kind == opWrite && strings.HasSuffix(path, ".jsonl"); full {
				return syscall.ENOSPC
			}
			return nil
		}
		if err := s.append(newRecord(t)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		s.rec.fail = nil
		s.group(3)
		s.boards(1)
		return s
	},
	"a lost index": func(t testing.TB) *shift {
		s := newShift(t, func(s *shift) {
			s.boards(3)
			s.deliver()
			s.boards(1)
			os.Remove(indexPath(s.dir))
		})
		s.open() // no segment is sealed or begun before the first group: that would sync the same things once more
		s.group(8)
		s.group(4)
		s.deliver()
		return s
	},
	"an index that is noise": func(t testing.TB) *shift {
		s := newShift(t, func(s *shift) {
			s.boards(10)
			s.deliver()
			s.spool.Close()
			os.WriteFile(indexPath(s.dir), make([]byte, 64<<10), 0o600)
		})
		s.open()
		s.group(6)
		s.boards(1)
		return s
	},
	"a busy hour": func(t testing.TB) *shift { // the index needs more pages and a longer file
		s := newShift(t, func(s *shift) { s.group(20) })
		s.open()
		s.deliver()
		for range 3 {
			s.group(30)
		}
		s.deliver()
		s.boards(2)
		return s
	},
	"a stick": func(t testing.TB) *shift {
		s := newShift(t, func(s *shift) {
			s.boards(2)
			s.sign()
			if err := errors.Join(os.Mkdir(s.stick("new"), 0o700), os.Mkdir(s.stick("old"), 0o700)); err != nil {
				t.Fatal(err)
			}
			if _, err := Export(s.dir, s.id.Verifier, s.stick("old"), 0); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(filepath.Join(s.stick("old"), "widgiot", "line3-a", run{0, 3}.name(endBundle)), 100); err != nil {
				t.Fatal(err)
			}
		})
		s.open()
		s.boards(2)
		s.sign()
		s.export("new", 0)
		s.boards(1)
		s.export("old", math.MaxUint64) // what does not hold is not needed any more
		s.boards(1)
		return s
	},
	"a torn group": func(t testing.TB) *shift {
		var kept []byte
		s := newShift(t, func(s *shift) {
			s.boards(2)
			path := journal.SegmentPath(s.dir, 0)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			index, err := os.ReadFile(indexPath(s.dir))
			if err != nil {
				t.Fatal(err)
			}
			made, all := maps.Clone(s.made), slices.Clone(s.all)
			s.group(3)
			s.spool.Close()
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			clear(after[len(before) : len(before)+50])
			kept = bytes.Clone(after[len(after)-100:])
			s.made, s.all = made, all
			if err := errors.Join(os.WriteFile(path, after, 0o600), os.WriteFile(indexPath(s.dir), index, 0o600)); err != nil {
				t.Fatal(err)
			}
		})
		s.rec.promised(func(p *promises) { p.evidence = append(p.evidence, kept) })
		s.open()
		s.boards(2)
		return s
	},
}
