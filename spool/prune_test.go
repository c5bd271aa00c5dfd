package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

// prunedKit is a station with sealed segments, delivered and archived.
func prunedKit(t *testing.T, records int) (*kit, *memoryArchive, []board.Record) {
	t.Helper()
	k, archive := archiveKit(t)
	var all []board.Record
	for range records {
		all = append(all, k.mustAppend())
	}
	k.settle()
	return k, archive, all
}

// settle delivers and archives what there is.
func (k *kit) settle() {
	k.t.Helper()
	if err := k.spool.Checkpoint(); err != nil {
		k.t.Fatal(err)
	}
	k.deliver()
	for range 100 {
		more, err := k.spool.archiveNext(k.t.Context())
		if err != nil {
			k.t.Fatal(err)
		}
		if !more {
			return
		}
	}
	k.t.Fatal("the archive takes no end")
}

func (k *kit) prune() []Prunable {
	k.t.Helper()
	list, err := k.spool.Prune(k.t.Context(), 0, 0, 0, true)
	if err != nil {
		k.t.Fatalf("Prune: %v", err)
	}
	return list
}

// isPruned tells which files of a segment are there.
func (k *kit) isPruned(first uint64) bool {
	k.t.Helper()
	_, segment := os.Stat(segmentPath(k.dir, first))
	_, summary := os.Stat(summaryPath(k.dir, first))
	if (segment == nil) == (summary == nil) {
		k.t.Errorf("of segment %d: the segment %v, the summary %v", first, segment, summary)
	}
	return segment != nil
}

// remembers makes sure that a pruned board is known as before.
func (k *kit) remembers(r board.Record) {
	k.t.Helper()
	want := k.receipts[r.Device]
	if receipt, err := k.append(r); err != nil || !receipt.Repeat || receipt.Seq != want.Seq || !receipt.Time.Equal(want.Time) {
		k.t.Errorf("a repeat: %+v, %v, want %+v", receipt, err, want)
	}
	otherKey := newRecord(k.t)
	otherKey.Device = r.Device
	if _, err := k.append(otherKey); !errors.Is(err, board.ErrDeviceConflict) {
		k.t.Errorf("a known device with another key: %v", err)
	}
	otherID := newRecord(k.t)
	otherID.Key = r.Key
	if _, err := k.append(otherID); !errors.Is(err, board.ErrKeyConflict) {
		k.t.Errorf("a known key under another id: %v", err)
	}
}

func TestPrune(t *testing.T) {
	k, archive, all := prunedKit(t, 12)
	k.remembers(all[2]) // a repeat and refusals are pruned too
	for range 8 {
		k.mustAppend()
	}
	k.settle()
	before := k.files()
	list, err := k.spool.Prune(t.Context(), 0, 0, 0, false)
	if err != nil || len(list) != len(k.segments())-1 || len(list) < 3 {
		t.Fatalf("a dry run: %+v, %v", list, err)
	}
	for _, p := range list {
		if p.Kept != "" || p.Pruned || p.Bytes == 0 || p.Newest.IsZero() {
			t.Errorf("a dry run: %+v", p)
		}
	}
	if !sameFiles(before, k.files()) {
		t.Error("a dry run changes something")
	}
	puts := archive.puts
	one, err := k.spool.Prune(t.Context(), 0, 0, 1, true)
	if err != nil || !one[0].Pruned || one[1].Pruned || one[1].Kept == "" {
		t.Errorf("one: %+v, %v", one, err)
	}
	if archive.puts != puts+1 {
		t.Errorf("the archive was asked %d times, want once", archive.puts-puts)
	}
	for _, p := range k.prune() {
		if !p.Pruned || p.Kept != "" {
			t.Errorf("%+v", p)
		}
	}
	for i, s := range k.segments() {
		if want := i < len(list); k.isPruned(s.first) != want || s.pruned != want {
			t.Errorf("segment %d is pruned %v", s.first, s.pruned)
		}
	}
	if again := k.prune(); len(again) != 0 {
		t.Errorf("once more: %+v", again)
	}
	records := uint64(len(k.receipts))
	check := func(when string) {
		t.Helper()
		k.remembers(all[0])
		if ok, err := k.spool.Delivered(all[0].Device); !ok || err != nil {
			t.Errorf("%s: a pruned record is delivered %v, %v", when, ok, err)
		}
		report, err := VerifyDir(k.dir, k.id.Verifier)
		if err != nil || report.Records != records || report.Pruned != list[len(list)-1].Last+1 {
			t.Errorf("%s: %+v, %v", when, report, err)
		}
		if s := k.spool.Stats(); s.Damaged > 0 || s.Unsigned != "" || s.Dead > 0 || s.Unarchived > 1 {
			t.Errorf("%s: %+v", when, s)
		}
		if err := k.spool.Checkpoint(); err != nil || k.spool.Stats().Signed != k.spool.Stats().Entries {
			t.Errorf("%s: no checkpoint: %v", when, err)
		}
	}
	check("at once")
	k.reopen()
	check("after a restart")
	if k.spool.Stats().Pending != 0 {
		t.Errorf("%+v", k.spool.Stats())
	}
	k.lose()
	check("after the index was lost")
	// What is pruned was delivered, and is not delivered again.
	tries := k.sink.tries
	waits := k.spool.Stats().Pending
	k.settle()
	if k.sink.tries != tries+waits || waits >= int(records) {
		t.Errorf("%d records were delivered again, %d waited", k.sink.tries-tries, waits)
	}
	k.reopen()
	check("after all")
	// The newest checkpoint that went out before is still one of this journal.
	if err := Consistent(k.dir, k.id.Verifier, archive.segments[list[1].First].Checkpoint); err != nil {
		t.Errorf("Consistent: %v", err)
	}
}

func TestPruneAndWhatReadsTheJournal(t *testing.T) {
	k, archive, all := prunedKit(t, 20)
	registry := newMemoryRegistry()
	k.deliverTo(registry)
	k.prune()
	last := k.segments()[len(k.segments())-1].first

	if out, diffs := k.reconcile(registry, false); !out.Same() || out.Total.Records != len(all) {
		t.Errorf("Reconcile: %+v, %+v", out, diffs)
	}
	forged := registry.items[all[0].Device]
	forged.Envelope = []byte("{}")
	delete(registry.items, all[1].Device)
	good := registry.items[all[0].Device]
	registry.items[all[0].Device] = forged
	out, diffs := k.reconcile(registry, true)
	if out.Found[DiffEnvelope] != 1 || out.Found[DiffMissing] != 1 || out.Mended != 0 {
		t.Errorf("Reconcile: %+v, %+v", out, diffs)
	}
	for _, d := range diffs {
		if d.Kind == DiffMissing && !strings.Contains(d.Detail, ErrPruned.Error()) {
			t.Errorf("a record that is not here to be mended: %+v", d)
		}
	}
	registry.items[all[0].Device] = good

	pruned := 0
	for e, err := range Walk(k.dir) {
		if err != nil {
			t.Fatal(err)
		}
		if (e.Kind == KindPruned) != (e.Seq < last) {
			t.Errorf("entry %d is of kind %s", e.Seq, e.Kind)
		}
		if e.Kind == KindPruned && e.Pruned.Kind == KindRecord {
			r := all[pruned]
			if e.Pruned.Device != r.Device || e.Pruned.Fingerprint != r.Fingerprint() || e.Time.IsZero() {
				t.Errorf("entry %d: %+v", e.Seq, e.Pruned)
			}
			pruned++
		}
	}
	stick := t.TempDir()
	if got := k.export(stick, 0); got.Pruned != last || got.Unread != 0 || got.Entries != got.Signed-last {
		t.Errorf("Export: %+v, %d entries are pruned", got, last)
	}

	if _, err := Prove(k.dir, all[len(all)-1].Device); err != nil {
		t.Errorf("a proof of a record that is here: %v", err)
	}
	_, err := Prove(k.dir, all[0].Device)
	if !errors.Is(err, ErrPruned) || !strings.Contains(err.Error(), fmt.Sprintf("%020d-", 0)) {
		t.Errorf("a proof of a record that was pruned: %v", err)
	}
	copies := func(first uint64) ([]byte, error) {
		if s, ok := archive.segments[first]; ok {
			return s.Lines, nil
		}
		return nil, fs.ErrNotExist
	}
	if err := Restore(k.dir, k.id.Verifier, copies, 1); !errors.Is(err, ErrLocked) {
		t.Errorf("while the station runs: %v", err)
	}
	k.spool.Close()
	other := func(uint64) ([]byte, error) { return archive.segments[k.segments()[1].first].Lines, nil }
	if err := Restore(k.dir, k.id.Verifier, other, 1); !errors.Is(err, ErrEntry) {
		t.Errorf("from another copy: %v", err)
	}
	if err := Restore(k.dir, k.id.Verifier, copies, last); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was not pruned: %v", err)
	}
	if !k.isPruned(0) {
		t.Fatal("it was restored")
	}
	if err := Restore(k.dir, k.id.Verifier, copies, 1); err != nil || k.isPruned(0) {
		t.Fatalf("Restore: %v", err)
	}
	text, err := Prove(k.dir, all[0].Device)
	if err == nil {
		_, err = VerifyProof(text, k.id.Verifier)
	}
	if err != nil {
		t.Errorf("a proof of a record that was restored: %v", err)
	}
	k.mustOpen()
	k.remembers(all[0])
	k.settle()
	if list := k.prune(); list[0].First != 0 || !list[0].Pruned || !k.isPruned(0) {
		t.Errorf("pruned again: %+v", list)
	}
}

func TestPruneKeeps(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *kit, a *memoryArchive, all []board.Record)
		age   time.Duration
		want  string
	}{
		"too young":     {func(*kit, *memoryArchive, []board.Record) {}, 30 * day, "too young: 30 days are left"},
		"not delivered": {func(k *kit, _ *memoryArchive, _ []board.Record) { k.lose() }, 0, "has not confirmed all of it"},
		"not archived": {func(k *kit, _ *memoryArchive, _ []board.Record) {
			k.lose()
			k.deliver()
		}, 0, "the archive does not have it yet"},
		"not archived, for a reason": {func(k *kit, _ *memoryArchive, _ []board.Record) {
			k.lose()
			k.deliver()
			k.spool.archive.lastError = errAway.Error()
		}, 0, "the archive does not have it yet: " + errAway.Error()},
		"no archive": {func(k *kit, _ *memoryArchive, _ []board.Record) {
			k.archive = nil
			k.reopen()
		}, 0, "there is no archive"},
		"dead": {func(k *kit, _ *memoryArchive, all []board.Record) {
			k.lose()
			k.sink.set(func(s board.Sealed, _ int) (bool, error) {
				if s.Record.Device == all[0].Device {
					return false, board.ErrRecord
				}
				return true, nil
			})
			k.deliver()
			k.sink.set(nil)
		}, 0, "the registry has refused some of it"},
		"damaged": {func(k *kit, _ *memoryArchive, _ []board.Record) {
			k.damaged = true
			spoilEntry(k.t, k, 0, 1)
		}, 0, "not a journal entry"},
		"the registry has forgotten it and has another": {func(k *kit, _ *memoryArchive, all []board.Record) {
			other := newRecord(k.t)
			k.sink.have[all[0].Device] = other.Fingerprint()
		}, 0, "the registry does not have entry 1"},
		"the seal is over something else": {func(k *kit, _ *memoryArchive, _ []board.Record) {
			text, err := checkpoint{k.segments()[1].first, [32]byte{1}}.encode(k.id.Signer)
			if err == nil {
				err = errors.Join(os.Remove(sealPath(k.dir, 0)), os.WriteFile(sealPath(k.dir, 0), text, 0o400))
			}
			if err != nil {
				k.t.Fatal(err)
			}
			k.damaged = true
		}, 0, ErrTampered.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			k, archive, all := prunedKit(t, 12)
			c.spoil(k, archive, all)
			list, err := k.spool.Prune(t.Context(), c.age, 0, 0, true)
			if err != nil || len(list) == 0 {
				t.Fatalf("%+v, %v", list, err)
			}
			wrong := slices.Contains([]string{"damaged", "the registry has forgotten it and has another", "the seal is over something else"}, name)
			if p := list[0]; p.Pruned || !strings.Contains(p.Kept, c.want) || p.Wrong != wrong {
				t.Errorf("%+v, want %q, wrong %v", p, c.want, wrong)
			}
			if k.isPruned(0) {
				t.Error("it is pruned")
			}
			k.sink.have[all[0].Device] = all[0].Fingerprint()
		})
	}
}

// lose has the index rebuilt, so that all is to be delivered once more.
func (k *kit) lose() {
	k.t.Helper()
	k.spool.Close()
	if err := os.Remove(indexPath(k.dir)); err != nil {
		k.t.Fatal(err)
	}
	k.mustOpen()
}

// A registry or an archive that is away, or says that another machine writes there, ends it; nothing is removed.
func TestPruneNeedsAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(k *kit, a *memoryArchive)
		want  error
	}{
		"the registry is away": {func(k *kit, _ *memoryArchive) {
			k.sink.set(func(board.Sealed, int) (bool, error) { return false, errAway })
		}, errAway},
		"the archive is away": {func(_ *kit, a *memoryArchive) { a.set(func(int) error { return errAway }) }, errAway},
		"the archive has another": {func(_ *kit, a *memoryArchive) {
			s := a.segments[0]
			s.Lines = append([]byte(nil), s.Lines[1:]...)
			a.segments[0] = s
		}, ErrFork},
	} {
		t.Run(name, func(t *testing.T) {
			k, archive, _ := prunedKit(t, 12)
			before := k.files()
			c.spoil(k, archive)
			if list, err := k.spool.Prune(t.Context(), 0, 0, 0, true); !errors.Is(err, c.want) {
				t.Errorf("%+v, %v, want %v", list, err, c.want)
			}
			if !sameFiles(before, k.files()) {
				t.Error("it changed something")
			}
		})
	}
}

// pruneDisk fails the call with a number, or is watched at each.
type pruneDisk struct {
	osDisk
	step func(op string) error
}

type pruneFile struct {
	file
	step func(op string) error
}

func (d pruneDisk) open(path string, flag int, mode fs.FileMode) (file, error) {
	if flag&os.O_CREATE != 0 {
		if err := d.step("open"); err != nil {
			return nil, err
		}
	}
	f, err := d.osDisk.open(path, flag, mode)
	return pruneFile{f, d.step}, err
}

func (f pruneFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.step("write"); err != nil {
		return 0, err
	}
	return f.file.WriteAt(b, at)
}

func (f pruneFile) Sync() error {
	if err := f.step("sync"); err != nil {
		return err
	}
	return f.file.Sync()
}

func (d pruneDisk) rename(from, to string) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	return d.osDisk.rename(from, to)
}

func (d pruneDisk) remove(path string) error {
	if err := d.step("remove"); err != nil {
		return err
	}
	return d.osDisk.remove(path)
}

func (d pruneDisk) syncDir(dir string) error {
	if err := d.step("syncdir"); err != nil {
		return err
	}
	return d.osDisk.syncDir(dir)
}

// Each call that pruning makes to the disk fails once; or the process ends just before it, and the index is kept or lost. Nothing is forgotten,
// and to prune again does it.
func TestPruneIsCutShort(t *testing.T) {
	var ops []string
	for at := 0; ; at++ {
		reached := false
		for _, lose := range []bool{false, true} {
			k, _, all := prunedKit(t, 10)
			calls := -1
			ops = nil
			crash := t.TempDir()
			k.spool.cfg.disk = pruneDisk{step: func(op string) error {
				calls++
				ops = append(ops, op)
				if calls != at {
					return nil
				}
				reached = true
				if err := os.CopyFS(filepath.Join(crash, "state"), os.DirFS(k.dir)); err != nil {
					t.Fatal(err)
				}
				return syscall.EIO
			}}
			_, err := k.spool.Prune(t.Context(), 0, 0, 1, true)
			if reached && !errors.Is(err, syscall.EIO) {
				t.Errorf("call %d, %v: %v", at, ops, err)
			}
			k.spool.cfg.disk = osDisk{}
			if !reached {
				break
			}
			check := func(k *kit, when string) {
				t.Helper()
				k.remembers(all[0])
				if s := k.spool.Stats(); s.Damaged > 0 || s.Broken != "" {
					t.Errorf("call %d, %v, %s: %+v", at, ops, when, s)
				}
				k.settle()
				k.prune()
				if !k.isPruned(0) {
					t.Errorf("call %d, %v, %s: it is not pruned", at, ops, when)
				}
				k.remembers(all[0])
			}
			check(k, "after the error")
			// The folder as it was when the process ended.
			other := &kit{t: t, dir: filepath.Join(crash, "state"), id: k.id, sink: k.sink, archive: k.archive, size: k.size, receipts: map[board.DeviceID]board.Receipt{}}
			for _, r := range all {
				other.receipts[r.Device] = k.receipts[r.Device]
			}
			if lose {
				if err := os.Remove(indexPath(other.dir)); err != nil {
					t.Fatal(err)
				}
			}
			other.mustOpen()
			check(other, "after a crash")
			other.spool.Close()
			checkInvariants(t, other.dir, other.id, other.receipts)
		}
		if !reached {
			if at < 5 {
				t.Errorf("only %d calls were reached: %v", at, ops)
			}
			return
		}
	}
}

// A power failure between the two folder syncs may leave both files, and either alone is as good.
func TestPruneLeavesBoth(t *testing.T) {
	for _, lose := range []bool{false, true} {
		k, archive, all := prunedKit(t, 10)
		k.prune()
		k.spool.Close()
		if err := os.WriteFile(segmentPath(k.dir, 0), archive.segments[0].Lines, 0o400); err != nil {
			t.Fatal(err)
		}
		if lose {
			os.Remove(indexPath(k.dir))
		}
		k.mustOpen()
		k.remembers(all[0])
		k.settle()
		k.prune()
		if !k.isPruned(0) {
			t.Error("it is not pruned")
		}
	}
}

// retain opens the spool with a policy of its own.
func (k *kit) retain(age time.Duration) {
	k.t.Helper()
	k.spool.Close()
	c := k.config()
	c.Retention = age
	c.room = func(string) (Disk, error) { return Disk{}, nil }
	s, err := Open(c)
	if err != nil {
		k.t.Fatal(err)
	}
	k.spool = s
}

// The policy of the configuration prunes by itself, when the time has come.
func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(26 * 366 * day) // a clock in 2000 is none to prune by
		k, _, _ := prunedKit(t, 12)
		k.retain(30 * day)
		k.notices = nil
		stop := k.run()
		time.Sleep(29 * day)
		if k.isPruned(0) {
			t.Error("it is pruned too early")
		}
		time.Sleep(2 * day)
		stop()
		if !k.isPruned(0) || len(k.notices) == 0 || !strings.Contains(k.notices[0], "were pruned") {
			t.Errorf("it is not pruned, or not told: %q", k.notices)
		}
		for _, s := range k.segments()[:len(k.segments())-1] {
			if !k.isPruned(s.first) {
				t.Errorf("segment %d is not pruned", s.first)
			}
		}
	})
}

// A station that never runs for an hour prunes too.
func TestRetentionOfShortRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(26 * 366 * day) // a clock in 2000 is none to prune by
		k, _, _ := prunedKit(t, 12)
		k.retain(time.Minute)
		stop := k.run()
		time.Sleep(2 * time.Minute)
		stop()
		if !k.isPruned(0) {
			t.Error("it is not pruned")
		}
	})
}

// What only pruning finds is told by the station itself, once for each segment and reason.
func TestRetentionTellsWhatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(26 * 366 * day) // a clock in 2000 is none to prune by
		k, _, all := prunedKit(t, 12)
		k.retain(time.Minute)
		k.sink.have[all[0].Device] = board.Fingerprint{1} // somebody altered the table
		k.notices = nil
		stop := k.run()
		time.Sleep(5 * time.Hour)
		stop()
		if told := strings.Join(k.notices, "\n"); strings.Count(told, "the registry does not have entry 1") != 1 || strings.Count(told, "were pruned") != len(k.segments())-2 {
			t.Errorf("told %q", k.notices)
		}
		k.sink.have[all[0].Device] = all[0].Fingerprint()
	})
}

// What is before the entry from which pruning goes on is not looked at again.
func TestPruneFrom(t *testing.T) {
	k, archive, _ := prunedKit(t, 12)
	segments := k.segments()
	puts := archive.puts
	list, err := k.spool.Prune(t.Context(), 0, segments[1].first, 1, true)
	if err != nil || len(list) != len(segments)-2 || list[0].First != segments[1].first || !list[0].Pruned || archive.puts != puts+1 {
		t.Errorf("%+v, %v, %d puts, want one segment, the second", list, err, archive.puts-puts)
	}
	if k.isPruned(0) {
		t.Error("the first is pruned")
	}
}
