package spool

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// allBytes returns all bytes of the journal's segments and of the quarantine.
func allBytes(t *testing.T, dir string) []byte {
	t.Helper()
	var all []byte
	for _, pattern := range []string{"*.jsonl", "quarantine/*"} {
		paths, err := filepath.Glob(filepath.Join(journal.Dir(dir), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(append(all, b...), 0)
		}
	}
	return all
}

// TestSingleDamage damages one file at a time, in each way and in each place.
// Whatever becomes of it: repair and verify agree, no byte of the journal is
// lost, and nobody says that there was no receipt where there was one.
func TestSingleDamage(t *testing.T) {
	flip := func(part float64) func([]byte) []byte {
		return func(b []byte) []byte { b = bytes.Clone(b); b[int(part*float64(len(b)-1))] ^= 1; return b }
	}
	line := func(n int) func([]byte) []byte { // from the end
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			lines := bytes.SplitAfter(b, []byte("\n"))
			lines = lines[:len(lines)-1]
			at := lines[max(0, len(lines)-1-n)]
			at[len(at)/2] ^= 2
			return b
		}
	}
	kinds := map[string]func([]byte) []byte{
		"before the checkpoint": line(3),
		"in the checkpoint":     line(1),
		"after the checkpoint":  line(0),
		"first byte":            flip(0),
		"last byte":             flip(1),
	}
	for name, how := range fileDamages {
		kinds[name] = how
	}
	for _, file := range []string{"first segment", "last segment", "leaves", "seal", "checkpoint", "index"} {
		for name, how := range kinds {
			for _, index := range []string{"kept", "lost"} {
				if file == "index" && index == "lost" {
					continue
				}
				t.Run(file+", "+name+", index "+index, func(t *testing.T) {
					k, _ := smallKit(t, 13)
					k.damaged = true
					for k.spool.end.Offset < 2<<10 {
						k.mustAppend()
					}
					if err := k.spool.Checkpoint(); err != nil {
						t.Fatal(err)
					}
					k.mustAppend()
					k.spool.Close()
					segments := k.segments()
					path := map[string]string{
						"first segment": journal.SegmentPath(k.dir, 0),
						"last segment":  journal.SegmentPath(k.dir, segments[len(segments)-1].First),
						"leaves":        journal.LeavesPath(k.dir, 0),
						"seal":          journal.SealPath(k.dir, 0),
						"checkpoint":    journal.CheckpointPath(k.dir),
						"index":         indexPath(k.dir),
					}[file]
					damageFile(t, path, how)
					if index == "lost" {
						os.Remove(indexPath(k.dir))
					}
					checkSingleDamage(t, k)
				})
			}
		}
	}
}

func checkSingleDamage(t *testing.T, k *kit) {
	t.Helper()
	before := allBytes(t, k.dir)
	report, err := Repair(k.dir, k.id.Verifier, Sources{}, true)
	indexed, noIndex := IndexedEntries(k.dir)
	if noIndex != nil {
		indexed = nil
	}
	verify, wrong := journal.VerifyDirKnowing(k.dir, k.id.Verifier, indexed)
	whole := err == nil && len(report.Damage) == 0 && len(report.Checkpoints) == 0
	if whole != (wrong == nil) || wrong == nil && verify.Torn != report.Torn {
		t.Errorf("verify: %+v, %v; repair: %+v, %v", verify, wrong, report, err)
	}
	k.notices = nil
	s, err := Open(k.config())
	if err != nil {
		if after := allBytes(t, k.dir); !bytes.Equal(after, before) {
			t.Errorf("the start was refused (%v), and the journal was changed", err)
		}
		return
	}
	defer s.Close()
	after := allBytes(t, k.dir)
	for _, lost := range bytes.FieldsFunc(before, func(r rune) bool { return r == '\n' || r == 0 }) {
		if !bytes.Contains(after, lost) {
			t.Errorf("%.80q is lost", lost)
		}
	}
	have := map[board.DeviceID]bool{}
	for e, err := range journal.Walk(k.dir) {
		if err == nil && e.Record() != nil {
			have[e.Verdict.Device] = true
		}
	}
	missing := 0
	for device, receipt := range k.receipts {
		if have[device] {
			continue
		}
		missing++
		if !bytes.Contains(before, fmt.Appendf(nil, `{"seq":%d,`, receipt.Seq)) {
			delete(k.receipts, device) // the damage took all of it
		}
	}
	notices := strings.Join(k.notices, "\n")
	if strings.Contains(notices, "no receipt was given") && missing > 0 {
		t.Errorf("%d boards had a receipt, and the station says %q", missing, notices)
	}
	if missing > 0 && notices == "" && len(s.Damage()) == 0 && wrong == nil {
		t.Errorf("%d boards had a receipt, and nobody says that they are lost", missing)
	}
}
