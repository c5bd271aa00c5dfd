package spool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/spool/journal"
)

// A damaged checkpoint is no tampering: verify and repair tell it, the station
// keeps it and makes it again, over no less than before.
func TestDamagedCheckpoint(t *testing.T) {
	for name, how := range fileDamages {
		for _, file := range []string{"checkpoint", "00000000000000000000.checkpoint"} {
			for _, index := range []string{"kept", "lost"} {
				t.Run(file+" "+name+", index "+index, func(t *testing.T) {
					k, all := smallKit(t, 14)
					if err := k.spool.Checkpoint(); err != nil {
						t.Fatal(err)
					}
					k.spool.Close()
					path := filepath.Join(journal.Dir(k.dir), file)
					good, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					bad := damageFile(t, path, how)
					if index == "lost" {
						os.Remove(indexPath(k.dir))
					}
					_, verified := journal.VerifyDir(k.dir, k.id.Verifier)
					report, err := Repair(k.dir, k.id.Verifier, Sources{}, false)
					missing := how == nil
					if err != nil || errors.Is(verified, journal.ErrCheckpoint) == missing || (len(report.Checkpoints) == 1) == missing || len(report.Damage) > 0 {
						t.Errorf("verify: %v; repair: %+v, %v", verified, report, err)
					}
					k.notices = nil
					k.mustOpen()
					told := strings.Contains(strings.Join(k.notices, "\n"), path)
					if !told && !(missing && index == "lost" && file != "checkpoint") {
						t.Errorf("the notices are %q", k.notices)
					}
					if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, good) {
						t.Errorf("%s was made again as %q, %v", path, have, err)
					}
					kept, err := filepath.Glob(journal.QuarantinePath(k.dir, file+"-*"))
					if err != nil || (len(kept) == 1) == missing {
						t.Fatalf("kept %v, %v", kept, err)
					}
					if !missing {
						if have, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(have, bad) {
							t.Errorf("%q was kept, %v", have, err)
						}
					}
					if _, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil {
						t.Error(err)
					}
					k.reopen()
					if len(k.notices) > 0 {
						t.Errorf("the next start says %q", k.notices)
					}
					k.remembers(all[0])
				})
			}
		}
	}
}

// A checkpoint that the station signed over another root is a contradiction.
func TestContradictingSeal(t *testing.T) {
	k, _ := smallKit(t, 14)
	k.damaged = true
	path := journal.SealPath(k.dir, 0)
	c, _, err := journal.ReadCheckpointFile(path, k.id.Verifier)
	if err != nil {
		t.Fatal(err)
	}
	c.Root[0] ^= 1
	text, err := c.Encode(k.id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	k.spool.Close()
	os.Remove(path)
	if err := os.WriteFile(path, text, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k.config()); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("Open: %v, want %v", err, journal.ErrTampered)
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, text) {
		t.Errorf("the evidence was changed (%v)", err)
	}
}
