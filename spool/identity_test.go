package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"strings"
	"testing"
)

func TestLock(t *testing.T) {
	k := newKit(t)
	_, err := Open(k.config())
	if !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Open: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil || again.Key != first.Key {
		t.Fatalf("%v, %v", again.Key, err)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "station.key"))
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name, words string) {
		t.Helper()
		_, err := journal.LoadIdentity(dir, "widgiot/line3-a")
		if !errors.Is(err, journal.ErrIdentity) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if _, err := journal.LoadIdentity(dir, "widgiot/line4-a"); !errors.Is(err, journal.ErrIdentity) {
		t.Errorf("another origin: %v", err)
	}
	os.Chmod(filepath.Join(dir, "station.key"), 0o640)
	refuse("readable by the group", "chmod 600")
	os.Chmod(filepath.Join(dir, "station.key"), 0o600)
	os.WriteFile(filepath.Join(dir, "station.key"), secret[:len(secret)/2], 0o600)
	refuse("half a key", "backup")
	os.WriteFile(filepath.Join(dir, "station.key"), secret, 0o600)
	os.WriteFile(filepath.Join(dir, "station.pub"), []byte("x\n"), 0o644)
	refuse("another public half", "backup")
}

func TestOpenIdentity(t *testing.T) {
	dir := t.TempDir()
	if _, err := journal.OpenIdentity(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
	made, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	opened, err := journal.OpenIdentity(dir)
	if err != nil || opened.Key != made.Key || opened.Signer.Name() != "widgiot/line3-a" {
		t.Errorf("got %+v, %v", opened, err)
	}
	// It makes no key: a lost one is an error.
	if err := os.Remove(filepath.Join(dir, "station.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.OpenIdentity(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without station.key: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "station.key")); !errors.Is(err, os.ErrNotExist) {
		t.Error("it made a key")
	}
	if err := os.WriteFile(filepath.Join(dir, "station.pub"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.OpenIdentity(dir); !errors.Is(err, journal.ErrIdentity) {
		t.Errorf("a broken station.pub: %v", err)
	}
}
