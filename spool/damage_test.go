package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// smallKit is a kit whose segments hold a few records each, with some of them
// sealed.
func smallKit(t *testing.T, records int) (*kit, []board.Record) {
	t.Helper()
	k := newKit(t)
	k.spool.Close()
	k.size = 4 << 10
	k.mustOpen()
	var all []board.Record
	for range records {
		all = append(all, k.mustAppend())
	}
	return k, all
}

func (k *kit) segments() []journal.SegmentFile {
	k.t.Helper()
	segments, err := journal.ListSegments(k.dir)
	if err != nil {
		k.t.Fatal(err)
	}
	return segments
}

// deliver makes passes over the queue until there is nothing that goes out.
func (k *kit) deliver() {
	k.t.Helper()
	for range 50 {
		if next := k.spool.pass(k.t.Context()); next.away || !next.more {
			return
		}
	}
	k.t.Fatal("the queue does not end")
}

func TestRotation(t *testing.T) {
	k, _ := smallKit(t, 30)
	segments := k.segments()
	if len(segments) < 5 {
		t.Fatalf("%d segments, want more", len(segments))
	}
	for _, s := range segments[:len(segments)-1] {
		info, err := os.Stat(journal.SegmentPath(k.dir, s.First))
		if err != nil || info.Mode().Perm() != 0o400 {
			t.Errorf("sealed segment %d: %v, %v", s.First, info.Mode(), err)
		}
		l, err := journal.ReadLeaves(k.dir, s.First)
		if err != nil || l.Origin != "widgiot/line3-a" {
			t.Errorf("leaves of %d: %+v, %v", s.First, l, err)
		}
		if c, have, err := journal.ReadCheckpointFile(journal.SealPath(k.dir, s.First), k.id.Verifier); err != nil || !have || c.Size != l.Next() {
			t.Errorf("checkpoint of %d: %+v, %v, %v", s.First, c, have, err)
		}
	}
	before := k.spool.tree.Clone()
	k.reopen()
	if len(k.notices) > 0 {
		t.Errorf("a clean start says %q", k.notices)
	}
	if k.spool.tree.Root() != before.Root() || k.spool.tree.N != before.N {
		t.Error("the tree is another after a start that reads the last segment only")
	}
	os.Remove(indexPath(k.dir))
	k.reopen()
	if k.spool.tree.Root() != before.Root() {
		t.Error("the tree is another after a start that reads all")
	}
}

// What a crash can leave out of sealing is made good, and the seal says the
// same.
func TestSealingIsRepeated(t *testing.T) {
	k, _ := smallKit(t, 12)
	first := k.segments()[0].First
	want := map[string][]byte{}
	for _, path := range []string{journal.LeavesPath(k.dir, first), journal.SealPath(k.dir, first)} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want[path] = data
		os.Remove(path)
	}
	os.Remove(indexPath(k.dir))
	k.reopen()
	for path, data := range want {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
}

// ways are how a segment can be damaged.
var ways = map[string]struct {
	spoil      func(b []byte) []byte // nil removes the file
	sealedOnly bool
}{
	"a byte":         {func(b []byte) []byte { b[len(b)/2]++; return b }, false},
	"a line missing": {func(b []byte) []byte { return dropLine(b, 2) }, false},
	"bytes added": {func(b []byte) []byte {
		lines := bytes.SplitAfter(b, []byte("\n"))
		return bytes.Join(append(lines[:2:2], append([][]byte{[]byte("noise\n")}, lines[2:]...)...), nil)
	}, false},
	"a line twice": {func(b []byte) []byte {
		lines := bytes.SplitAfter(b, []byte("\n"))
		return bytes.Join(append(lines[:3:3], lines[1:]...), nil)
	}, false},
	"zeros":          {func(b []byte) []byte { clear(b[1000:2000]); return b }, false},
	"the first line": {func(b []byte) []byte { b[3]++; return b }, false},
	"cut short":      {func(b []byte) []byte { return b[:len(b)/2] }, true},
	"empty":          {func(b []byte) []byte { return nil }, true},
	"missing":        {nil, true},
}

func dropLine(b []byte, n int) []byte {
	lines := bytes.SplitAfter(b, []byte("\n"))
	return bytes.Join(append(lines[:n:n], lines[n+1:]...), nil)
}

func spoilSegment(t *testing.T, dir string, first uint64, spoil func([]byte) []byte) {
	t.Helper()
	path := journal.SegmentPath(dir, first)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(path)
	if spoil != nil {
		if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Damage in the middle never stops the line, is never passed over in silence,
// and no checkpoint is signed over a root that is not known.
func TestQuarantine(t *testing.T) {
	for name, way := range ways {
		for _, where := range []string{"sealed", "written"} {
			for _, index := range []string{"kept", "lost"} {
				if where == "written" && way.sealedOnly {
					continue
				}
				if name == "the first line" && where == "sealed" && index == "kept" {
					continue // nobody but VerifyDir reads it
				}
				t.Run(name+", "+where+", index "+index, func(t *testing.T) {
					k, all := smallKit(t, 14)
					k.damaged = true
					for i := 0; k.spool.end.Offset < 3<<10; i++ {
						all = append(all, k.mustAppend())
					}
					if err := k.spool.Checkpoint(); err != nil {
						t.Fatal(err)
					}
					entries := k.spool.next
					k.spool.Close()
					segments := k.segments()
					victim := segments[1].First
					if where == "written" {
						victim = segments[len(segments)-1].First
					}
					spoilSegment(t, k.dir, victim, way.spoil)
					if index == "lost" {
						os.Remove(indexPath(k.dir))
					}
					k.notices = nil
					k.mustOpen()
					k.deliver() // what the start does not look at, this finds
					checkQuarantined(t, k, all, victim, entries, name)
					if blind := where == "written" && index == "lost" && k.spool.Stats().Damaged > 0; blind {
						if k.spool.Stats().Unsigned == "" || k.spool.Stats().Signed != entries {
							t.Errorf("a hash is not known, and the stats are %+v", k.spool.Stats())
						}
						return
					}
					if k.spool.Stats().Unsigned != "" || k.spool.Stats().Signed != k.spool.next {
						t.Errorf("stats %+v, %d entries", k.spool.Stats(), k.spool.next)
					}
					report, err := journal.VerifyDir(k.dir, k.id.Verifier)
					var damage *journal.DamageError
					if !errors.As(err, &damage) || report.Signed != report.Entries || report.Entries <= entries {
						t.Errorf("VerifyDir: %+v, %v", report, err)
					}
				})
			}
		}
	}
}

func checkQuarantined(t *testing.T, k *kit, all []board.Record, victim, entries uint64, name string) {
	t.Helper()
	lost := map[board.DeviceID]bool{}
	have := map[board.DeviceID]bool{}
	for e, err := range journal.Walk(k.dir) {
		if err == nil && e.Record() != nil {
			sealed, err := board.ParseEnvelope(e.Record())
			if err != nil {
				t.Fatal(err)
			}
			have[sealed.Record().Device] = true
		}
	}
	for _, r := range all {
		if !have[r.Device] {
			lost[r.Device] = true
		}
	}
	stats := k.spool.Stats()
	adds := name == "bytes added" || name == "a line twice"
	if adds != (stats.Damaged == 0) || len(k.spool.Damage()) == 0 {
		t.Fatalf("stats %+v, damage %v", stats, k.spool.Damage())
	}
	if !strings.Contains(strings.Join(k.notices, "\n"), fmt.Sprintf("%020d.jsonl", k.spool.Damage()[0].Segment)) || k.spool.Damage()[0].Segment != victim {
		t.Errorf("notices %q, damage %v, want segment %d", k.notices, k.spool.Damage(), victim)
	}
	if stats.Pending != 0 || len(k.sink.have) != len(have) {
		t.Errorf("%d pending, %d delivered, want 0 and %d", stats.Pending, len(k.sink.have), len(have))
	}
	// A board whose record is lost is enrolled again, and is not passed as
	// known.
	for _, r := range all {
		receipt, err := k.spool.Append(t.Context(), reading(r))
		if err != nil || receipt.Repeat == lost[r.Device] || lost[r.Device] && receipt.Seq < entries {
			t.Fatalf("a board again, lost %v: %+v, %v", lost[r.Device], receipt, err)
		}
	}
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	damage := k.spool.Damage()
	signed := k.spool.Stats().Signed
	// All of it is still known after a start that does not read the damaged
	// file again.
	k.reopen()
	if got := k.spool.Damage(); fmt.Sprint(got) != fmt.Sprint(damage) || len(k.notices) == 0 || k.spool.Stats().Signed != signed {
		t.Errorf("after a restart: %v, %q, want %v", got, k.notices, damage)
	}
}

// If the hashes beside a segment are lost with its lines, the index still knows
// what they came to.
func TestQuarantineWithoutLeaves(t *testing.T) {
	k, _ := smallKit(t, 14)
	k.damaged = true
	k.spool.Close()
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { return b[:len(b)/2] })
	os.Remove(journal.LeavesPath(k.dir, 0))
	k.mustOpen()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if s := k.spool.Stats(); s.Damaged == 0 || s.Unsigned != "" || s.Signed != s.Entries {
		t.Errorf("stats %+v", s)
	}
	k.spool.Close()
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	signed := k.spool.Stats().Signed
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if s := k.spool.Stats(); s.Damaged == 0 || s.Unsigned == "" || s.Signed != signed {
		t.Errorf("without the index too: stats %+v", s)
	}
}

// The hashes beside a segment may be all that is left to repair it by: they are
// not replaced by fewer of them.
func TestSealKeepsHashes(t *testing.T) {
	k, _ := smallKit(t, 14)
	whole, err := journal.ReadLeaves(k.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := readSealed(k.spool.db)
	if err != nil {
		t.Fatal(err)
	}
	with := func(i int, h tlog.Hash) journal.Leaves {
		l := journal.Leaves{Origin: whole.Origin, First: 0, Hashes: slices.Clone(whole.Hashes)}
		l.Hashes[i] = h
		return l
	}
	fewer := with(1, tlog.Hash{})
	short := journal.Leaves{Origin: whole.Origin, First: 0, Hashes: whole.Hashes[:2]}
	other := with(1, tlog.Hash{1})
	otherShort := journal.Leaves{Origin: whole.Origin, First: 0, Hashes: other.Hashes[:2]}
	foreign := journal.Leaves{Origin: "widgiot/line4-b", First: 0, Hashes: whole.Hashes}
	for name, c := range map[string]struct{ have, hashes, want journal.Leaves }{
		"one that was not known":    {whole, fewer, whole},
		"an end that was not known": {whole, short, whole},
		"one that is known now":     {fewer, whole, whole},
		"another one":               {other, whole, whole},
		"another one, and an end":   {otherShort, whole, whole},
		"of others, and an end":     {other, short, short},
		"of another station":        {foreign, fewer, fewer},
	} {
		path := journal.LeavesPath(k.dir, 0)
		if err := errors.Join(os.Remove(path), os.WriteFile(path, c.have.Encode(), 0o400)); err != nil {
			t.Fatal(err)
		}
		if err := k.spool.seal(seal{0, sealed[0], c.hashes.Hashes}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := journal.ReadLeaves(k.dir, 0); err != nil || string(got.Encode()) != string(c.want.Encode()) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	k.spool.seal(seal{0, sealed[0], whole.Hashes})
}

// A stray file whose name is far away is no reason to count to it.
func TestStraySegment(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	k.spool.Close()
	stray := journal.SegmentPath(k.dir, 1<<62)
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(k.config()); !isDamage(err) || !strings.Contains(err.Error(), stray) {
		t.Errorf("Open: %v, %v", s, err)
	}
	if report, err := journal.VerifyDir(k.dir, k.id.Verifier); !isDamage(err) {
		t.Errorf("VerifyDir: %+v, %v", report, err)
	}
	if err := os.Remove(stray); err != nil {
		t.Fatal(err)
	}
	k.mustOpen()
}

// tearGroup writes three lines in one write, of which a power failure tore the
// first.
func tearGroup(t *testing.T, k *kit) (clean []byte) {
	t.Helper()
	next := k.spool.next
	k.spool.Close()
	path := journal.SegmentPath(k.dir, 0)
	clean, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	torn := bytes.Clone(clean)
	for i := range uint64(3) {
		e := journal.Entry{Seq: next + i, Time: now(), Kind: journal.KindVerdict, Verdict: repeatOf(1)}
		data, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		line := journal.EncodeLine(data)
		if i == 0 {
			clear(line[:50])
		}
		torn = append(torn, line...)
	}
	if err := os.WriteFile(path, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	return clean
}

// A write of several lines can be torn in its middle. The index tells it from
// damage; what is cut off is kept.
func TestTornGroup(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	clean := tearGroup(t, k)
	k.notices = nil
	k.mustOpen()
	if len(k.notices) != 1 || !strings.Contains(k.notices[0], "whole lines") {
		t.Errorf("notices %q", k.notices)
	}
	if after, _ := os.ReadFile(segment(k)); !bytes.Equal(after, clean) {
		t.Error("the torn group was not cut off")
	}
	kept, err := filepath.Glob(journal.QuarantinePath(k.dir, "*.torn"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	// Another that is torn in the same place does not take the place of the
	// first; the same one, as after a crash during the start, is not kept
	// twice.
	first, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	second := bytes.Clone(first)
	second[0] = 'x'
	for _, tail := range [][]byte{second, first, second} {
		k.spool.Close()
		if err := os.WriteFile(segment(k), slices.Concat(clean, tail), 0o600); err != nil {
			t.Fatal(err)
		}
		k.mustOpen()
	}
	if kept, err = filepath.Glob(journal.QuarantinePath(k.dir, "*.torn")); err != nil || len(kept) != 2 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	for i, want := range [][]byte{first, second} {
		if have, err := os.ReadFile(kept[i]); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what was torn (%v)", kept[i], err)
		}
	}
	k.mustAppend()
}

// A torn group that there is no room to keep stays as it is, and what to do is
// said.
func TestTornGroupOnAFullDisk(t *testing.T) {
	k := newKit(t)
	k.mustAppend()
	clean := tearGroup(t, k)
	torn, err := os.ReadFile(segment(k))
	if err != nil {
		t.Fatal(err)
	}
	plan := faultPlan{op: "write", err: syscall.ENOSPC}
	k.disk = faulty{plan: &plan}
	if s, err := Open(k.config()); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), fmt.Sprintf("make %d bytes of room on the disk of %s", len(torn)-len(clean), k.dir)) {
		t.Errorf("Open: %v, %v", s, err)
	}
	if after, err := os.ReadFile(segment(k)); err != nil || !bytes.Equal(after, torn) {
		t.Errorf("something was cut off (%v)", err)
	}
	k.mustOpen()
	if after, _ := os.ReadFile(segment(k)); !bytes.Equal(after, clean) {
		t.Error("with room again the torn group was not cut off")
	}
}

// Without the index nobody knows whether there were receipts for such lines:
// nothing is cut.
func TestTornGroupWithoutIndex(t *testing.T) {
	k := newKit(t)
	k.damaged = true
	k.mustAppend()
	tearGroup(t, k)
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	if stats := k.spool.Stats(); stats.Damaged != 1 || stats.Unsigned == "" {
		t.Errorf("stats %+v", stats)
	}
	k.mustAppend()
}

// A disk that cannot read a sector has damaged the lines in it, and no others.
func TestBadSector(t *testing.T) {
	k, _ := smallKit(t, 14)
	k.damaged = true
	k.spool.Close()
	os.Remove(indexPath(k.dir))
	k.disk = badSector{path: journal.SegmentPath(k.dir, 0)}
	k.mustOpen()
	if stats := k.spool.Stats(); stats.Damaged == 0 || stats.Damaged > 8 || stats.Unsigned != "" {
		t.Errorf("stats %+v", stats)
	}
	k.mustAppend()
}
