package stationd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"secretfree/cmd/internal/control"
	"secretfree/spool"
)

func TestCheckOwner(t *testing.T) {
	dir := t.TempDir()
	if err := control.CheckOwner(dir, os.Geteuid()); err != nil {
		t.Error(err)
	}
	err := control.CheckOwner(dir, os.Geteuid()+1)
	if !errors.Is(err, control.ErrNotOwner) || !strings.Contains(err.Error(), "sudo -u '") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want %v and the remedy", err, control.ErrNotOwner)
	}
	if err := control.CheckOwner(filepath.Join(dir, "none"), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// Root changes nothing in the folder of a stopped station that is another
// user's, and may look at it.
func TestControlAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("giving files to another user needs root")
		}
		t.Skip("giving files to another user needs root")
	}
	f := newFactory(t)
	f.start().stop()
	const nobody = 65534
	if err := filepath.WalkDir(f.state, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.state, "lock")); err != nil {
		t.Fatal(err)
	}
	client, err := control.Open(f.state, note.VerifierList())
	if err != nil {
		t.Fatal(err)
	}
	if letters, err := client.List(t.Context()); err != nil || len(letters) != 0 {
		t.Errorf("List: %v, %v", letters, err)
	}
	if _, err := client.Export(t.Context(), 1); !errors.Is(err, spool.ErrNoDeadLetter) {
		t.Errorf("Export: %v", err)
	}
	if err := client.Requeue(t.Context(), 1); !errors.Is(err, control.ErrNotOwner) {
		t.Errorf("Requeue: %v", err)
	}
	if _, err := client.Sign(t.Context()); !errors.Is(err, control.ErrNotOwner) {
		t.Errorf("Sign: %v", err)
	}
	if _, err := client.ApplyReceipt(t.Context(), nil); !errors.Is(err, control.ErrNotOwner) {
		t.Errorf("ApplyReceipt: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(f.state, "lock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a lock was made: %v", err)
	}
}
