package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

func readSummaryFile(t *testing.T, k *kit, first uint64) []byte {
	t.Helper()
	data, err := os.ReadFile(summaryPath(k.dir, first))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (k *kit) rewriteSummary(first uint64, data []byte) {
	k.t.Helper()
	path := summaryPath(k.dir, first)
	if err := errors.Join(os.Remove(path), os.WriteFile(path, data, 0o400)); err != nil {
		k.t.Fatal(err)
	}
}

// resign makes a summary of another text, with good checksums and a signature.
func resign(t *testing.T, data []byte, by note.Signer, change func(s *summary)) []byte {
	t.Helper()
	s, err := parseSummary(data)
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	out, err := s.sign(by)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSummaryHoldsEachKind(t *testing.T) {
	k, _, all := prunedKit(t, 2)
	k.remembers(all[0]) // a repeat, two refusals
	for range 3 {
		k.mustAppend()
	}
	k.settle()
	lines, err := os.ReadFile(segmentPath(k.dir, 0))
	if err != nil {
		t.Fatal(err)
	}
	var records []uint64
	s, err := summarize(k.id.Signer.Name(), 0, lines, func(seq uint64, _ board.Sealed) { records = append(records, seq) })
	if err != nil {
		t.Fatal(err)
	}
	data, err := s.sign(k.id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseSummary(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.check(k.id.Verifier); err != nil || again.text() != s.text() {
		t.Errorf("%v\n%s\n%s", err, s.text(), again.text())
	}
	kinds := ""
	for _, b := range again.entries {
		kinds += string(b.Kind) + " "
		if b.Kind == KindSegment == b.Device.Valid() {
			t.Errorf("%+v", b)
		}
	}
	if !strings.HasPrefix(kinds, "segment record record repeat refusal refusal ") || fmt.Sprint(records[:2]) != "[1 2]" {
		t.Errorf("%s, records %v", kinds, records)
	}
	for name, bad := range map[string][]byte{
		"half a line":  lines[:len(lines)-3],
		"a line less":  dropLine(lines, 2),
		"another line": bytes.Replace(lines, []byte("line3-a"), []byte("line3-b"), 1),
	} {
		if _, err := summarize("x/y", 0, bad, func(uint64, board.Sealed) {}); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v, want %v", name, err, ErrEntry)
		}
	}
}

// A damaged summary is quarantined as a damaged line of a segment is; the archive has it back.
func TestDamagedSummary(t *testing.T) {
	for name, spoil := range map[string]func(data []byte) []byte{
		"a line":           func(d []byte) []byte { return spoilLine(d, 4) },
		"two places":       func(d []byte) []byte { return spoilLine(spoilLine(d, 4), 6) },
		"a line less":      func(d []byte) []byte { return dropLine(d, 4) },
		"the header":       func(d []byte) []byte { return spoilLine(d, 0) },
		"the range":        func(d []byte) []byte { return bytes.Replace(d, []byte("\n0 "), []byte("\n9 "), 1) },
		"no end":           func(d []byte) []byte { return d[:len(d)/2] },
		"nothing":          func([]byte) []byte { return nil },
		"of other entries": func(d []byte) []byte { return bytes.Replace(d, []byte("\n0 5\n"), []byte("\n0 9\n"), 1) },
		"of fewer entries": func(d []byte) []byte { return bytes.Replace(d, []byte("\n0 5\n"), []byte("\n0 3\n"), 1) },
		"the first less":   func(d []byte) []byte { return dropLine(d, 3) },
		"the last less":    func(d []byte) []byte { return dropLine(d, 7) },
		"no signature":     func(d []byte) []byte { return d[:bytes.Index(d, []byte("\n\n"))+1] },
	} {
		for _, lose := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, index lost %v", name, lose), func(t *testing.T) {
				k, archive, all := prunedKit(t, 12)
				k.prune()
				k.spool.Close()
				beside := k.files()[leavesPath(k.dir, 0)]
				k.rewriteSummary(0, spoil(readSummaryFile(t, k, 0)))
				if _, err := VerifyDir(k.dir, k.id.Verifier); !isDamage(err) {
					t.Errorf("VerifyDir: %v", err)
				}
				if lose {
					if err := os.Remove(indexPath(k.dir)); err != nil {
						t.Fatal(err)
					}
				} else if err := edited(indexPath(k.dir), func(tx *bolt.Tx) error { return tx.Bucket(bucketSegments).Delete(encodeSeq(0)) }); err != nil {
					t.Fatal(err) // a sealed segment is not read at each start
				}
				k.notices = nil
				k.mustOpen()
				if err := k.spool.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				s := k.spool.Stats()
				if s.Damaged != k.segments()[1].first || s.Unsigned != "" || s.Signed != s.Entries || s.Broken != "" {
					t.Errorf("%+v", s)
				}
				name := filepath.Base(summaryPath(k.dir, 0))
				if told := strings.Join(k.notices, "\n"); !strings.Contains(told, name) || !strings.Contains(told, "stationctl spool repair") || strings.Contains(told, ".jsonl") {
					t.Errorf("notices %q", told)
				}
				if _, err := VerifyDir(k.dir, k.id.Verifier); !isDamage(err) || !errors.Is(err, ErrSummary) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), ".jsonl") || !strings.Contains(err.Error(), "stationctl spool repair") {
					t.Errorf("VerifyDir: %v", err)
				}
				if k.files()[leavesPath(k.dir, 0)] != beside {
					t.Error("the hashes beside it are not what they were")
				}
				if !lose {
					other := newRecord(t)
					other.Device = all[0].Device
					if _, err := k.append(other); !errors.Is(err, board.ErrDeviceConflict) {
						t.Errorf("the index remembers: %v", err)
					}
				}
				k.mustAppend()
				k.spool.Close()
				if report, err := Repair(k.dir, k.id.Verifier, Sources{}, false); err != nil || report.Left != int(s.Damaged) || !k.isPruned(0) {
					t.Errorf("without a copy: %+v, %v", report, err)
				}
				wrong := func(uint64) ([]byte, error) { return archive.segments[k.segments()[1].first].Lines, nil }
				if report, err := Repair(k.dir, k.id.Verifier, Sources{Segment: wrong}, false); err != nil || report.Left != int(s.Damaged) || !k.isPruned(0) {
					t.Errorf("with a wrong copy: %+v, %v", report, err)
				}
				copies := func(first uint64) ([]byte, error) {
					if s, ok := archive.segments[first]; ok {
						return s.Lines, nil
					}
					return nil, fs.ErrNotExist
				}
				before := k.files()
				if report, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, true); err != nil || report.Left != 0 || !sameFiles(before, k.files()) {
					t.Errorf("a dry run: %+v, %v", report, err)
				}
				report, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false)
				if err != nil || report.Left != 0 || len(report.Aside) != 1 || len(report.Fixes) != int(s.Damaged) || k.isPruned(0) {
					t.Fatalf("%+v, %v", report, err)
				}
				k.mustOpen()
				if s := k.spool.Stats(); s.Damaged != 0 {
					t.Errorf("after it: %+v", s)
				}
				k.remembers(all[0])
				k.settle()
				if list := k.prune(); list[0].First != 0 || !list[0].Pruned {
					t.Errorf("pruned again: %+v", list)
				}
			})
		}
	}
}

func isDamage(err error) bool {
	_, ok := errors.AsType[*DamageError](err)
	return ok
}

// spoilLine changes a byte in the middle of a line, counted from 0.
func spoilLine(data []byte, n int) []byte {
	lines := bytes.SplitAfter(bytes.Clone(data), []byte("\n"))
	lines[n][len(lines[n])/2] ^= 1
	return bytes.Join(lines, nil)
}

// A whole summary that says something else than was signed is no damage: somebody wrote it.
func TestForgedSummary(t *testing.T) {
	forger, _ := makeSigner(t, "widgiot/line3-a")
	stranger, _ := makeSigner(t, "widgiot/line4-b")
	for name, c := range map[string]struct {
		by     note.Signer
		change func(s *summary)
		want   error
	}{
		"another key for a device":     {forger, func(s *summary) { s.entries[1].Key[0] ^= 1 }, ErrTampered},
		"another device":               {forger, func(s *summary) { s.entries[1].Device[0] ^= 1 }, ErrTampered},
		"a record that was a repeat":   {forger, func(s *summary) { s.entries[1].Kind = KindRepeat }, ErrTampered},
		"another hash":                 {forger, func(s *summary) { s.entries[1].Hash[0] ^= 1 }, ErrTampered},
		"another hash, with the key":   {nil, func(s *summary) { s.entries[1].Hash[0] ^= 1 }, ErrTampered},
		"another time":                 {forger, func(s *summary) { s.entries[1].Time = s.entries[1].Time.Add(time.Second) }, ErrTampered},
		"the summary of another":       {stranger, func(s *summary) { s.origin = "widgiot/line4-b" }, ErrForeign},
		"a conflict, with the key":     {nil, func(s *summary) { s.entries[1].Device = s.entries[2].Device }, board.ErrDeviceConflict},
		"a key conflict, with the key": {nil, func(s *summary) { s.entries[1].Key = s.entries[2].Key }, board.ErrKeyConflict},
	} {
		t.Run(name, func(t *testing.T) {
			k, archive, all := prunedKit(t, 12)
			k.damaged = true
			k.prune()
			k.spool.Close()
			by := c.by
			if by == nil {
				by = k.id.Signer
			}
			k.rewriteSummary(0, resign(t, readSummaryFile(t, k, 0), by, c.change))
			if _, err := VerifyDir(k.dir, k.id.Verifier); !errors.Is(err, c.want) {
				t.Errorf("VerifyDir: %v, want %v", err, c.want)
			}
			if c.by == nil {
				clear(k.receipts) // a forger does not keep them
				return
			}
			if err := Restore(k.dir, k.id.Verifier, nil, 1); !errors.Is(err, c.want) {
				t.Errorf("Restore: %v, want %v", err, c.want)
			}
			if err := os.Remove(indexPath(k.dir)); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(k.config()); !errors.Is(err, c.want) || !strings.Contains(err.Error(), "stationctl spool repair") {
				t.Errorf("Open: %v, %v, want %v", s, err, c.want)
			}
			if report, err := Repair(k.dir, k.id.Verifier, Sources{}, false); err != nil || report.Left == 0 || !k.isPruned(0) {
				t.Errorf("Repair without a copy: %+v, %v", report, err)
			}
			forged := readSummaryFile(t, k, 0)
			copies := func(first uint64) ([]byte, error) { return archive.segments[first].Lines, nil }
			report, err := Repair(k.dir, k.id.Verifier, Sources{Segment: copies}, false)
			if err != nil || report.Left > 0 || len(report.Aside) != 1 || k.files()[report.Aside[0]] != string(forged) {
				t.Fatalf("Repair: %+v, %v", report, err)
			}
			k.mustOpen()
			k.remembers(all[0])
			if s := k.spool.Stats(); s.Damaged > 0 || s.Unsigned != "" {
				t.Errorf("after it: %+v", s)
			}
		})
	}
}

// failing is a disk on which one file cannot be opened, or cannot be read.
type failing struct {
	osDisk
	path             string
	opening, reading error
}

func (d failing) open(path string, flag int, mode fs.FileMode) (file, error) {
	if path != d.path {
		return d.osDisk.open(path, flag, mode)
	}
	if d.opening != nil {
		return nil, d.opening
	}
	f, err := d.osDisk.open(path, flag, mode)
	return unreadable{f, d.reading}, err
}

type unreadable struct {
	file
	err error
}

func (f unreadable) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// A summary that cannot be read for a reason that says nothing of what is in it is not damaged; one on a bad sector is.
func TestUnreadableSummary(t *testing.T) {
	for name, c := range map[string]struct {
		opening, reading error
		want             error // nil: damage
	}{
		"no more files":     {syscall.EMFILE, nil, syscall.EMFILE},
		"no permission":     {syscall.EACCES, nil, syscall.EACCES},
		"a disk that fails": {syscall.EIO, nil, syscall.EIO},
		"no memory":         {nil, syscall.ENOMEM, syscall.ENOMEM},
		"a bad sector":      {},
	} {
		t.Run(name, func(t *testing.T) {
			k, _, all := prunedKit(t, 12)
			k.prune()
			k.spool.Close()
			if err := os.Remove(indexPath(k.dir)); err != nil {
				t.Fatal(err)
			}
			k.disk = failing{path: summaryPath(k.dir, 0), opening: c.opening, reading: c.reading}
			before := k.files()
			if c.want == nil {
				k.damaged = true
				k.disk = badSector{path: summaryPath(k.dir, 0)}
				k.mustOpen()
				if s := k.spool.Stats(); s.Damaged != k.segments()[1].first || s.Unsigned != "" {
					t.Errorf("%+v", s)
				}
				return
			}
			if s, err := Open(k.config()); !errors.Is(err, c.want) {
				t.Fatalf("Open: %v, %v, want %v", s, err, c.want)
			}
			if !sameFiles(before, k.files()) {
				t.Error("it changed something")
			}
			k.disk = osDisk{}
			k.mustOpen()
			k.remembers(all[0])
			if s := k.spool.Stats(); s.Damaged != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Where only a damaged summary is left nobody knows how far it went: that is told, and not counted to the end of all numbers.
func TestDamagedSummaryAtTheEnd(t *testing.T) {
	k, _, _ := prunedKit(t, 12)
	k.prune()
	partial := t.TempDir()
	data := dropLine(readSummaryFile(t, k, 0), 4)
	if err := errors.Join(os.Mkdir(journalDir(partial), 0o700), os.WriteFile(summaryPath(partial, 0), data, 0o400)); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for _, err := range Walk(partial) {
		if !isDamage(err) {
			t.Errorf("Walk: %v", err)
		}
		damaged++
	}
	if damaged != 1 {
		t.Errorf("%d places are damaged", damaged)
	}
	if report, err := VerifyDir(partial, k.id.Verifier); !isDamage(err) || report.Entries != 0 {
		t.Errorf("VerifyDir: %+v, %v", report, err)
	}
}

// In a summary that is not whole there is no signature to look at, so nothing that it says of a device is believed.
func TestForgedAndDamagedSummary(t *testing.T) {
	k, _, all := prunedKit(t, 12)
	k.damaged = true
	k.prune()
	k.spool.Close()
	k.rewriteSummary(0, dropLine(resign(t, readSummaryFile(t, k, 0), k.id.Signer, func(s *summary) { s.entries[1].Key[0] ^= 1 }), 5))
	k.lose()
	if s := k.spool.Stats(); s.Damaged != k.segments()[1].first || s.Unsigned != "" {
		t.Errorf("%+v", s)
	}
	if receipt, err := k.append(all[0]); err != nil || receipt.Repeat {
		t.Errorf("the board whose key was forged: %+v, %v", receipt, err)
	}
}

func makeSigner(t *testing.T, name string) (note.Signer, note.Verifier) {
	t.Helper()
	secret, public, err := note.GenerateKey(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

// A summary from the future stops the station, with nothing changed.
func TestNewerSummary(t *testing.T) {
	k, _, _ := prunedKit(t, 12)
	k.damaged = true
	k.prune()
	k.spool.Close()
	k.rewriteSummary(0, bytes.Replace(readSummaryFile(t, k, 0), []byte("pruned 1"), []byte("pruned 2"), 1))
	if err := os.Remove(indexPath(k.dir)); err != nil {
		t.Fatal(err)
	}
	before := k.files()
	if _, err := Open(k.config()); !errors.Is(err, board.ErrNewer) {
		t.Errorf("Open: %v, want %v", err, board.ErrNewer)
	}
	if !sameFiles(before, k.files()) {
		t.Error("it changed something")
	}
}

func TestParseSummaryRefusals(t *testing.T) {
	const good = "1 2026-01-02T03:04:05.006Z record 000102030405060708090a0b0c0d0e0f %s 000102030405060708090a0b0c0d0e0f AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	key := strings.Repeat("ab", 32)
	line := func(text string) []byte {
		l := encodeLine([]byte(text))
		return l[:len(l)-1]
	}
	whole := fmt.Sprintf(good, key)
	if _, seq, err := parseBrief(line(whole)); err != nil || seq != 1 {
		t.Fatalf("a good one: %d, %v", seq, err)
	}
	for name, bad := range map[string]string{
		"a field less": strings.TrimSuffix(whole, " AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="), "no seq": "x" + whole[1:], "a seq with a zero": "0" + whole,
		"no time": strings.Replace(whole, "2026-01-02", "2026-13-02", 1), "no device": strings.Replace(whole, "000102030405060708090a0b0c0d0e0f", "-", 1),
		"no key": strings.Replace(whole, key, "-", 1), "no envelope": strings.Replace(whole, " 000102030405060708090a0b0c0d0e0f AAEC", " - AAEC", 1),
		"no kind": strings.Replace(whole, "record", "recorded", 1), "no hash": strings.Replace(whole, "AAEC", "!AEC", 1),
		"an envelope of a repeat": strings.Replace(whole, "record", "repeat", 1), "a device of a segment": strings.Replace(whole, "record", "segment", 1),
		"a zero hash": strings.Replace(whole, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1),
	} {
		if b, _, err := parseBrief(line(bad)); err == nil {
			t.Errorf("%s is taken: %+v", name, b)
		}
	}
	if _, _, err := parseBrief([]byte(whole + " 00000000")); !errors.Is(err, ErrEntry) {
		t.Errorf("a wrong checksum: %v", err)
	}
}

func FuzzParseSummary(f *testing.F) {
	secret, _, err := note.GenerateKey(nil, "widgiot/line3-a")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		f.Fatal(err)
	}
	at := time.UnixMilli(1_790_000_000_000).UTC()
	s := summary{origin: "widgiot/line3-a", first: 7, entries: []brief{
		{Kind: KindSegment, Time: at, Hash: [32]byte{1}},
		{Kind: KindRecord, Time: at, Device: board.DeviceID{1}, Key: board.Fingerprint{2}, Envelope: [16]byte{3}, Hash: [32]byte{4}},
		{Kind: KindRefusal, Time: at, Device: board.DeviceID{1}, Key: board.Fingerprint{2}, Hash: [32]byte{5}},
	}}
	data, err := s.sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(dropLine(data, 4))
	f.Add([]byte(s.text()))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseSummary(data)
		if err == nil && !strings.HasPrefix(string(data), s.text()+"\n") {
			t.Fatalf("%q\nparses as\n%q", data, s.text())
		}
	})
}
