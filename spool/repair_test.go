package spool

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"secretfree/spool/durable"

	"secretfree/spool/journal"

	bolt "go.etcd.io/bbolt"
)

// copiesOf keeps the segments of a journal as a registry would.
func copiesOf(k *kit) func(first uint64) ([]byte, error) {
	k.t.Helper()
	kept := map[uint64][]byte{}
	for _, s := range k.segments() {
		b, err := os.ReadFile(journal.SegmentPath(k.dir, s.First))
		if err != nil {
			k.t.Fatal(err)
		}
		kept[s.First] = b
	}
	return func(first uint64) ([]byte, error) {
		if b, ok := kept[first]; ok {
			return bytes.Clone(b), nil
		}
		return nil, fs.ErrNotExist
	}
}

func (k *kit) files() map[string]string {
	k.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(journal.Dir(k.dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

func sameFiles(a, b map[string]string) bool {
	for path := range a {
		if a[path] != b[path] {
			return false
		}
	}
	return len(a) == len(b)
}

// With a copy of the segment all is as it was, whatever the damage, and what
// was not delivered goes out.
func TestRepairFromCopy(t *testing.T) {
	for name, way := range ways {
		for _, quarantined := range []string{"at once", "after the station met it"} {
			t.Run(name+", "+quarantined, func(t *testing.T) {
				k, all := smallKit(t, 14)
				if err := k.spool.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				copies := copiesOf(k)
				victim := k.segments()[1].First
				good, err := copies(victim)
				if err != nil {
					t.Fatal(err)
				}
				k.spool.Close()
				spoilSegment(t, k.dir, victim, way.spoil)
				if quarantined != "at once" {
					k.mustOpen()
					k.deliver()
					k.mustAppend()
					k.spool.Close()
				}
				before := k.files()
				plan, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, true)
				if err != nil || len(plan.Fixes) == 0 || plan.Left > 0 {
					t.Fatalf("a dry run: %+v, %v", plan, err)
				}
				if !sameFiles(k.files(), before) {
					t.Fatal("a dry run changed a file")
				}
				done, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false)
				if err != nil || len(done.Fixes) != len(plan.Fixes) || done.Left > 0 {
					t.Fatalf("Repair: %+v, %v", done, err)
				}
				if b, err := os.ReadFile(journal.SegmentPath(k.dir, victim)); err != nil || !bytes.Equal(b, good) {
					t.Errorf("the segment is not what it was (%v)", err)
				}
				if spoiled, had := before[journal.SegmentPath(k.dir, victim)]; had {
					if len(done.Quarantined) != 1 || k.files()[done.Quarantined[0]] != spoiled {
						t.Errorf("the damaged file is not kept: %v", done.Quarantined)
					}
				}
				k.notices = nil
				k.mustOpen()
				if len(k.notices) > 0 || k.spool.Stats().Damaged > 0 || len(k.spool.Damage()) > 0 {
					t.Errorf("after the repair: %q, %+v", k.notices, k.spool.Stats())
				}
				k.deliver()
				for _, r := range all {
					if _, ok := k.sink.have[r.Device]; !ok {
						t.Errorf("device %s was not delivered", r.Device)
					}
					if receipt, err := k.append(r); err != nil || !receipt.Repeat {
						t.Errorf("a board again: %+v, %v", receipt, err)
					}
				}
				if again, err := Repair(k.dir, k.id.Verifier, Sources{}, true); !errors.Is(err, durable.ErrLocked) {
					t.Errorf("while the station runs: %+v, %v", again, err)
				}
			})
		}
	}
}

// spoilEntry flips a byte in the middle of an entry's line.
func spoilEntry(t *testing.T, k *kit, first uint64, line int) {
	t.Helper()
	spoilSegment(t, k.dir, first, func(b []byte) []byte {
		lines := bytes.SplitAfter(b, []byte("\n"))
		lines[line][len(lines[line])/2] ^= 1
		return b
	})
}

// The first entry of a segment follows from the others. A record does not: it
// needs a copy.
func TestRepairFirstEntry(t *testing.T) {
	k, all := smallKit(t, 14)
	good := k.files()
	copies := copiesOf(k)
	k.spool.Close()
	spoilEntry(t, k, 0, 0)
	spoilEntry(t, k, 0, 2)
	plan, err := Repair(k.dir, k.id.Verifier, Sources{}, true)
	if err != nil || plan.Left != 1 || plan.Fixes[1].From != FromNowhere || plan.Fixes[1].Reason == "" || plan.Fixes[1].Device != all[1].Device {
		t.Errorf("without a copy: %+v, %v", plan, err)
	}
	done, err := Repair(k.dir, k.id.Verifier, Sources{Segment: func(first uint64) ([]byte, error) {
		b, err := copies(first)
		return dropLine(b, 0), err
	}}, false)
	if err != nil || done.Left > 0 || len(done.Fixes) != 2 || done.Fixes[0].From != FromJournal || done.Fixes[1].From != FromCopy {
		t.Fatalf("Repair: %+v, %v", done, err)
	}
	if now := k.files(); now[journal.SegmentPath(k.dir, 0)] != good[journal.SegmentPath(k.dir, 0)] {
		t.Error("the segment is not what it was")
	}
	k.mustOpen()
}

// What cannot be had back stays quarantined, and the rest is repaired.
func TestRepairInPart(t *testing.T) {
	k, _ := smallKit(t, 14)
	k.damaged = true
	copies := copiesOf(k)
	k.spool.Close()
	spoilEntry(t, k, 0, 0)
	spoilEntry(t, k, 0, 1)
	spoilEntry(t, k, 0, 3)
	short := func(first uint64) ([]byte, error) {
		b, err := copies(first)
		return dropLine(dropLine(b, 1), 0), err
	}
	done, err := Repair(k.dir, k.id.Verifier, Sources{Segment: short}, false)
	if err != nil || done.Left != 1 || done.Fixes[0].From != FromJournal || done.Fixes[1].From != FromNowhere || done.Fixes[2].From != FromCopy {
		t.Fatalf("Repair: %+v, %v", done, err)
	}
	k.mustOpen()
	if s := k.spool.Stats(); s.Damaged != 1 || s.Unsigned != "" {
		t.Errorf("stats %+v", s)
	}
	k.spool.Close()
	if done, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false); err != nil || done.Left > 0 {
		t.Fatalf("with a better copy: %+v, %v", done, err)
	}
	k.damaged = false
	k.mustOpen()
}

// A copy that is not what was signed is refused, whether the entry's hash is
// known or only the root.
func TestRepairRefusesAFalseCopy(t *testing.T) {
	for _, index := range []string{"kept", "lost"} {
		t.Run("index "+index, func(t *testing.T) {
			k := newKit(t)
			k.damaged = true
			k.mustAppend()
			k.mustAppend()
			if err := k.spool.Checkpoint(); err != nil {
				t.Fatal(err)
			}
			copies := copiesOf(k)
			k.spool.Close()
			spoilEntry(t, k, 0, 1)
			if index == "lost" {
				os.Remove(indexPath(k.dir))
			}
			falsify := func(first uint64) ([]byte, error) {
				b, err := copies(first)
				lines := bytes.SplitAfter(b, []byte("\n"))
				e, err2 := journal.ParseEntry(lines[1][:len(lines[1])-10])
				e.Time = e.Time.Add(1e6)
				data, err3 := e.Encode()
				lines[1] = journal.EncodeLine(data)
				return bytes.Join(lines, nil), errors.Join(err, err2, err3)
			}
			plan, err := Repair(k.dir, k.id.Verifier, Sources{Segment: falsify}, false)
			if err != nil || plan.Left != 1 {
				t.Errorf("a false copy: %+v, %v", plan, err)
			}
			k.mustOpen()
			k.spool.Close()
			if done, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false); err != nil || done.Left > 0 {
				t.Errorf("the true one: %+v, %v", done, err)
			}
			k.damaged = false
			k.mustOpen()
		})
	}
}

// Where nothing was signed over it, an entry that is lost for good is written
// down as lost, and checkpoints go on.
func TestRepairGivesUp(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	lost := k.mustAppend()
	delete(k.receipts, lost.Device)
	k.mustAppend()
	k.spool.Close()
	spoilEntry(t, k, 0, 2)
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	if k.spool.Stats().Unsigned == "" {
		t.Error("a hash is not known, and Unsigned is empty")
	}
	k.spool.Close()
	done, err := Repair(k.dir, k.id.Verifier, Sources{}, false)
	if err != nil || done.Left > 0 || !slices.ContainsFunc(done.Fixes, func(f Fix) bool { return f.Seq == 2 && f.From == FromLost }) {
		t.Fatalf("Repair: %+v, %v", done, err)
	}
	k.mustOpen()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if s := k.spool.Stats(); s.Unsigned != "" || s.Signed != s.Entries || s.Damaged > 0 {
		t.Errorf("stats %+v", s)
	}
	if report, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil || report.Lost != 1 {
		t.Errorf("VerifyDir: %+v, %v", report, err)
	}
	if receipt, err := k.append(lost); err != nil || receipt.Repeat {
		t.Errorf("the lost board again: %+v, %v", receipt, err)
	}
}

// What the disk could not read once is in the index as damage, and is read
// again when Repair finds it whole.
func TestRepairAfterABadSector(t *testing.T) {
	k, all := smallKit(t, 14)
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	k.spool.Close()
	if err := edited(indexPath(k.dir), func(tx *bolt.Tx) error { return tableOf(tx, bucketSegments).Delete(encodeSeq(0)) }); err != nil {
		t.Fatal(err)
	}
	k.disk = badSector{path: journal.SegmentPath(k.dir, 0)}
	k.mustOpen()
	damaged := int(k.spool.Stats().Damaged)
	if damaged == 0 {
		t.Fatal("nothing is damaged")
	}
	k.spool.Close()
	k.disk = nil
	before := k.files()
	for _, dry := range []bool{true, false} {
		report, err := Repair(k.dir, k.id.Verifier, Sources{}, dry)
		if err != nil || report.Left > 0 || len(report.Fixes) != damaged || len(report.Damage) == 0 || len(report.Quarantined) > 0 {
			t.Fatalf("Repair: %+v, %v", report, err)
		}
		for _, f := range report.Fixes {
			if f.From != FromDisk {
				t.Errorf("%+v", f)
			}
		}
	}
	if !sameFiles(before, k.files()) {
		t.Error("a file was changed")
	}
	k.mustOpen()
	if s := k.spool.Stats(); s.Damaged != 0 || s.Unsigned != "" {
		t.Errorf("after it: %+v", s)
	}
	for _, r := range all {
		k.remembers(r)
	}
	k.spool.Close()
	if report, err := Repair(k.dir, k.id.Verifier, Sources{}, true); err != nil || len(report.Fixes) > 0 || len(report.Damage) > 0 {
		t.Errorf("once more: %+v, %v", report, err)
	}
}

// A line that is whole again beside one that is damaged for good is not dropped
// with it.
func TestRepairAfterABadSectorInPart(t *testing.T) {
	k, all := smallKit(t, 14)
	copies := copiesOf(k)
	k.spool.Close()
	spoilEntry(t, k, 0, 2)
	os.Remove(indexPath(k.dir))
	k.disk = badSector{path: journal.SegmentPath(k.dir, 0)}
	k.mustOpen()
	k.spool.Close()
	k.disk = nil
	report, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false)
	if err != nil || report.Left > 0 || len(report.Quarantined) != 1 || !slices.ContainsFunc(report.Fixes, func(f Fix) bool { return f.From == FromDisk && f.Seq == 1 }) {
		t.Fatalf("Repair: %+v, %v", report, err)
	}
	good, err := copies(0)
	if b, err2 := os.ReadFile(journal.SegmentPath(k.dir, 0)); err != nil || err2 != nil || !bytes.Equal(b, good) {
		t.Errorf("the segment is not what it was (%v, %v)", err, err2)
	}
	k.mustOpen()
	if s := k.spool.Stats(); s.Damaged != 0 {
		t.Errorf("after it: %+v", s)
	}
	for _, r := range all {
		k.remembers(r)
	}
}
