package spool

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/spool/journal"
)

// What is wrong at the end of the journal is damage if a receipt was given for
// it, and else is cut off; its bytes are kept in any case, and only the index
// proves that there was no receipt.
func TestDamagedEnd(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)-40] ^= 2; return b }
	cut := func(b []byte) []byte { return b[:len(b)-40] }
	junk := func(b []byte) []byte { return append(b, "junk"...) }
	for name, c := range map[string]struct {
		spoil                func(b []byte) []byte
		signed, lost, stale  bool
		damaged, proven, cut bool
	}{
		"a bit, index":                        {spoil: flip, damaged: true},
		"a bit, index and checkpoint":         {spoil: flip, signed: true, damaged: true},
		"a bit, checkpoint":                   {spoil: flip, signed: true, lost: true, damaged: true},
		"a bit, neither":                      {spoil: flip, lost: true, cut: true},
		"half a line, index":                  {spoil: cut, damaged: true},
		"half a line, checkpoint":             {spoil: cut, signed: true, lost: true, damaged: true},
		"half a line, neither":                {spoil: cut, lost: true, cut: true},
		"junk, index":                         {spoil: junk, proven: true, cut: true},
		"junk, index and checkpoint":          {spoil: junk, signed: true, proven: true, cut: true},
		"junk, checkpoint":                    {spoil: junk, signed: true, lost: true, cut: true},
		"a bit, index of before the receipts": {spoil: flip, stale: true, cut: true},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			k.damaged = true
			k.mustAppend()
			index := []byte(nil)
			if c.stale {
				k.spool.Close()
				var err error
				if index, err = os.ReadFile(indexPath(k.dir)); err != nil {
					t.Fatal(err)
				}
				k.mustOpen()
				for range journal.MaxGroup + 1 {
					k.mustAppend()
				}
			}
			last := k.mustAppend()
			if c.signed {
				if err := k.spool.Checkpoint(); err != nil {
					t.Fatal(err)
				}
			}
			entries := k.spool.next
			k.spool.Close()
			whole, err := os.ReadFile(segment(k))
			if err != nil {
				t.Fatal(err)
			}
			bad := c.spoil(bytes.Clone(whole))
			if err := os.WriteFile(segment(k), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if c.lost {
				os.Remove(indexPath(k.dir))
			}
			if c.stale {
				if err := os.WriteFile(indexPath(k.dir), index, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			indexed, err := IndexedEntries(k.dir)
			if (err != nil) != c.lost {
				t.Fatal(err)
			}
			_, verified := journal.VerifyDirKnowing(k.dir, k.id.Verifier, indexed)
			report, err := Repair(k.dir, k.id.Verifier, Sources{}, true)
			if err != nil || isDamage(verified) != c.damaged || (len(report.Damage) == 1) != c.damaged || (report.Torn > 0) != c.cut {
				t.Errorf("verify: %v; repair: %+v, %v", verified, report, err)
			}
			k.notices = nil
			k.mustOpen()
			notices := strings.Join(k.notices, "\n")
			if got := strings.Contains(notices, "no receipt was given"); got != c.proven {
				t.Errorf("the notices are %q", k.notices)
			}
			if c.damaged {
				if k.spool.Stats().Damaged != 1 || k.spool.end.Segment != entries {
					t.Errorf("stats %+v, segment %d", k.spool.Stats(), k.spool.end.Segment)
				}
				if have, err := os.ReadFile(segment(k)); err != nil || !bytes.Equal(have, bad) {
					t.Errorf("the damaged file was changed (%v)", err)
				}
			} else {
				kept, err := filepath.Glob(journal.QuarantinePath(k.dir, "*.torn"))
				if err != nil || len(kept) != 1 {
					t.Fatalf("kept %v, %v", kept, err)
				}
				tail, err := os.ReadFile(kept[0])
				if err != nil {
					t.Fatal(err)
				}
				if have, err := os.ReadFile(segment(k)); err != nil || !bytes.HasPrefix(have, bad[:len(bad)-len(tail)]) || !bytes.HasSuffix(bad, tail) {
					t.Errorf("%q was kept (%v)", tail, err)
				}
			}
			if c.cut && !c.proven {
				delete(k.receipts, last.Device) // nothing shows that there was one
			}
			again := k.mustAppend() // the line goes on
			k.spool.Close()
			if !c.damaged {
				return
			}
			// A copy of the segment brings the entry back.
			report, err = Repair(k.dir, k.id.Verifier, Sources{Segment: func(uint64) ([]byte, error) { return whole, nil }}, false)
			if err != nil || report.Left != 0 {
				t.Fatalf("repair: %+v, %v", report, err)
			}
			k.mustOpen()
			k.remembers(last)
			k.remembers(again)
			if _, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil || k.spool.Stats().Damaged != 0 {
				t.Errorf("after the repair: %v, %+v", err, k.spool.Stats())
			}
		})
	}
}
