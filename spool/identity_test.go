package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLock(t *testing.T) {
	k := newKit(t)
	_, err := Open(k.config())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Open: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadIdentity(dir, "widgiot/line3-a")
	if err != nil || again.Key != first.Key {
		t.Fatalf("%v, %v", again.Key, err)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "station.key"))
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name, words string) {
		t.Helper()
		_, err := LoadIdentity(dir, "widgiot/line3-a")
		if !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if _, err := LoadIdentity(dir, "widgiot/line4-a"); !errors.Is(err, ErrIdentity) {
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
