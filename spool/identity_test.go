package spool

import (
	"bytes"
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
	refuse("a damaged public half", "move station.pub away")
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

// fileDamages are the ways in which one file is damaged. nil is a missing file.
var fileDamages = map[string]func(b []byte) []byte{
	"missing":          nil,
	"empty":            func([]byte) []byte { return []byte{} },
	"truncated":        func(b []byte) []byte { return b[:len(b)/2] },
	"one bit flipped":  func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 4; return b },
	"last bit flipped": func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-2] ^= 1; return b },
	"junk appended":    func(b []byte) []byte { return append(bytes.Clone(b), "junk\n"...) },
}

// damageFile damages a file and returns what it holds then.
func damageFile(t *testing.T, path string, how func([]byte) []byte) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if how == nil {
		return nil
	}
	b = how(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever happens to a key file, no other key takes its place, and a public
// key that is there is not written over.
func TestDamagedIdentity(t *testing.T) {
	const origin = "widgiot/line3-a"
	for name, how := range fileDamages {
		for _, file := range []string{"station.key", "station.pub", "both"} {
			for _, folder := range []string{"a journal", "an index", "nothing else"} {
				t.Run(file+" "+name+", with "+folder, func(t *testing.T) {
					dir := t.TempDir()
					made, err := journal.LoadIdentity(dir, origin)
					if err != nil {
						t.Fatal(err)
					}
					switch folder {
					case "a journal":
						s, err := Open(Config{Dir: dir, Identity: made, Sink: newMemorySink()})
						if err != nil {
							t.Fatal(err)
						}
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
					case "an index":
						if err := os.WriteFile(filepath.Join(dir, "index.bbolt"), []byte("x"), 0o600); err != nil {
							t.Fatal(err)
						}
					}
					files := map[string][]byte{}
					for _, f := range []string{"station.key", "station.pub"} {
						path := filepath.Join(dir, f)
						if file == f || file == "both" {
							files[f] = damageFile(t, path, how)
						} else if files[f], err = os.ReadFile(path); err != nil {
							t.Fatal(err)
						}
					}
					again, err := journal.LoadIdentity(dir, origin)
					if file == "both" && name == "missing" && folder == "nothing else" {
						if err != nil || again.Key == made.Key {
							t.Errorf("a new folder: %v, %v", again.Key, err)
						}
						return
					}
					if file == "station.pub" && name == "missing" {
						if err != nil || again.Key != made.Key {
							t.Errorf("got %v, %v, want %v", again.Key, err, made.Key)
						}
						files["station.pub"] = []byte(made.Key + "\n")
					} else if !errors.Is(err, journal.ErrIdentity) {
						t.Fatalf("got %v, %v, want %v", again.Key, err, journal.ErrIdentity)
					}
					for f, want := range files {
						got, err := os.ReadFile(filepath.Join(dir, f))
						if want == nil && !errors.Is(err, os.ErrNotExist) || want != nil && !bytes.Equal(got, want) {
							t.Errorf("%s was changed to %q (%v)", f, got, err)
						}
					}
					if err == nil {
						return
					}
					where := filepath.Join(dir, "station.pub")
					if file == "both" {
						where = "is nowhere in this folder"
						if folder == "a journal" {
							where = journal.SegmentPath(dir, 0) + ": " + made.Key
						}
					}
					if file != "station.pub" && !strings.Contains(err.Error(), where) || strings.Contains(err.Error(), "PRIVATE") {
						t.Errorf("%v does not say %q", err, where)
					}
				})
			}
		}
	}
}

// A crash at the first start between the two key files loses nothing.
func TestIdentityInterrupted(t *testing.T) {
	dir := t.TempDir()
	made, err := journal.LoadIdentity(dir, "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "station.pub")); err != nil {
		t.Fatal(err)
	}
	if again, err := journal.LoadIdentity(dir, "widgiot/line3-a"); err != nil || again.Key != made.Key {
		t.Errorf("%v, %v, want %v", again.Key, err, made.Key)
	}
}
