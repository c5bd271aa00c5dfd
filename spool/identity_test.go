package spool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestOpenIdentity(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenIdentity(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	made, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	opened, err := OpenIdentity(dir)
	if err != nil || opened.Key != made.Key || opened.Signer.Name() != "widgiot/line3-a" {
		t.Errorf("got %+v, %v", opened, err)
	}
	// It makes no key: a lost one is an error.
	if err := os.Remove(filepath.Join(dir, "station.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenIdentity(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without station.key: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "station.key")); !errors.Is(err, os.ErrNotExist) {
		t.Error("it made a key")
	}
	if err := os.WriteFile(filepath.Join(dir, "station.pub"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenIdentity(dir); !errors.Is(err, ErrIdentity) {
		t.Errorf("a broken station.pub: %v", err)
	}
}
