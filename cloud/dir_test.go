package cloud

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"secretfree/station/board"
)

var errCrash = errors.New("crash")

// cutAt ends what d does at its n-th step, counted from 0, as a crash would,
// and everything after it. It returns the names of the steps that were reached.
func cutAt(d *Dir, n int) *[]string {
	var steps []string
	d.cut = func(step string) error {
		steps = append(steps, step)
		if len(steps) > n {
			return errCrash
		}
		return nil
	}
	return &steps
}

// tidy says that nothing is under way. A file .new may be left: nobody reads
// it, and the next writer there removes it.
func tidy(t *testing.T, b *dirStore) {
	t.Helper()
	must(t, filepath.WalkDir(b.path, func(name string, _ fs.DirEntry, err error) error {
		if filepath.Base(name) == pendingName {
			t.Errorf("%s was left behind", name)
		}
		return err
	}))
}

// TestDirCrash breaks a Put off after each of its steps. Then the same Put
// again, or others before it, must end as if there had been no crash: one of
// them has won, and it is whole.
func TestDirCrash(t *testing.T) {
	d := newDirStore(t).openDir(t, "")
	whole := cutAt(d, 1<<20)
	must(t, d.Put(t.Context(), sealed(t, 1, 1)))
	if len(*whole) != 9 {
		t.Fatalf("a Put has %d steps, want 9: %q", len(*whole), *whole)
	}

	for n, step := range *whole {
		for _, test := range []struct {
			name   string
			others []board.Sealed
			loss   error // of the one that comes too late; nil if both are enrolled
		}{
			{"the same again", nil, nil},
			{"same board by another station", []board.Sealed{seal(t, recordOf(t, "line4", 1, 1))}, nil},
			{"same device, other key", []board.Sealed{sealed(t, 1, 2)}, board.ErrDeviceConflict},
			{"same key, other device", []board.Sealed{sealed(t, 2, 1)}, board.ErrKeyConflict},
			{"some other board", []board.Sealed{sealed(t, 2, 2)}, nil},
		} {
			t.Run(fmt.Sprintf("%d %s/%s", n, filepath.Base(step), test.name), func(t *testing.T) {
				b := newDirStore(t)
				d := b.openDir(t, "")
				cutAt(d, n)
				if err := d.Put(t.Context(), sealed(t, 1, 1)); !errors.Is(err, errCrash) {
					t.Fatalf("got %v, want the crash", err)
				}
				if e, err := b.openDir(t, "").Lookup(t.Context(), deviceN(1)); err == nil {
					if e.Key != keyN(t, 1) {
						t.Error("after the crash there is another key")
					}
				} else if !errors.Is(err, board.ErrNotEnrolled) {
					t.Errorf("after the crash: %v", err)
				}

				var verdicts []error
				for _, s := range append(test.others, sealed(t, 1, 1)) {
					verdicts = append(verdicts, b.openDir(t, "").Put(t.Context(), s))
				}
				if test.loss != nil {
					oneWins(t, verdicts, test.loss)
				} else if err := errors.Join(verdicts...); err != nil {
					t.Error(err)
				}
				tidy(t, b)
				check(t, b)
			})
		}
	}
}

// TestDirBatchCrash breaks a batch off after each of its steps. Whatever comes
// next, each board is whole or not there at all.
func TestDirBatchCrash(t *testing.T) {
	batch := []board.Sealed{sealed(t, 1, 1), sealed(t, 2, 2), sealed(t, 3, 3)}
	d := newDirStore(t).openDir(t, "")
	whole := cutAt(d, 1<<20)
	must(t, errors.Join(d.PutBatch(t.Context(), batch)...))
	if want := 3*2*3 + 3; len(*whole) != want { // two for each of three files of a record; pending.json, and its end
		t.Fatalf("a batch has %d steps, want %d: %q", len(*whole), want, *whole)
	}
	for n, step := range *whole {
		for name, others := range map[string][]board.Sealed{
			"the same again":               nil,
			"some other board":             {sealed(t, 4, 4)},
			"another board under each key": {sealed(t, 11, 1), sealed(t, 12, 2), sealed(t, 13, 3)},
		} {
			t.Run(fmt.Sprintf("%d %s/%s", n, filepath.Base(step), name), func(t *testing.T) {
				b := newDirStore(t)
				d := b.openDir(t, "")
				cutAt(d, n)
				for k, err := range d.PutBatch(t.Context(), batch) {
					if !errors.Is(err, errCrash) {
						t.Fatalf("record %d: got %v, want the crash", k, err)
					}
				}
				first := b.openDir(t, "").PutBatch(t.Context(), others)
				second := b.openDir(t, "").PutBatch(t.Context(), batch)
				if len(others) == len(batch) {
					for k := range batch {
						oneWins(t, []error{first[k], second[k]}, board.ErrKeyConflict)
					}
				} else if err := errors.Join(append(first, second...)...); err != nil {
					t.Error(err)
				}
				tidy(t, b)
				for _, folder := range []string{"items", "guards"} { // the next writer at the others removes it there
					if left, err := filepath.Glob(filepath.Join(b.path, folder, newName+"*")); err != nil || len(left) != 0 {
						t.Errorf("left behind: %v, %v", left, err)
					}
				}
				check(t, b)
			})
		}
	}
}

// A crash may bring pending.json back after its work was done. That must not
// bring a state back.
func TestDirPendingComesBack(t *testing.T) {
	b := newDirStore(t)
	d, s := b.openDir(t, ""), sealed(t, 1, 1)
	must(t, d.Put(t.Context(), s))
	pending, err := os.ReadFile(b.file(s.Record().Device.String()))
	must(t, err)
	held := b.items(t)[s.Record().Device.String()]
	held["state"] = string(board.Held)
	b.set(t, held)
	must(t, os.WriteFile(filepath.Join(b.path, pendingName), pending, 0o644))
	must(t, d.Put(t.Context(), sealed(t, 2, 2)))
	e, err := d.Lookup(t.Context(), s.Record().Device)
	must(t, err)
	if e.State != board.Held {
		t.Errorf("the state is %s, want held", e.State)
	}
	tidy(t, b)
	check(t, b)
}

func TestDirPendingDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "no JSON": "x", "no item": "{}", "no key": `{"device-id":"` + deviceN(1).String() + `"}`,
		"too long": strings.Repeat(" ", maxPending+1),
	} {
		b := newDirStore(t)
		d := b.openDir(t, "")
		pending := filepath.Join(b.path, pendingName)
		must(t, os.WriteFile(pending, []byte(content), 0o644))
		if err := d.Put(t.Context(), sealed(t, 1, 1)); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), pendingName) {
			t.Errorf("%s: got %v, want ErrDamaged", name, err)
		}
		if kept, err := os.ReadFile(pending); err != nil || string(kept) != content {
			t.Errorf("%s: it was not kept: %v", name, err)
		}
		must(t, os.Remove(pending))
		must(t, d.Put(t.Context(), sealed(t, 1, 1)))
		check(t, b)
	}
}

// While the folder is away nothing is made in its place; when it is back, all
// is as before.
func TestDirAway(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	must(t, d.Put(t.Context(), sealed(t, 1, 1)))
	away := b.path + "-away"
	must(t, os.Rename(b.path, away))
	refused := func(what string) {
		t.Helper()
		if err := d.Put(t.Context(), sealed(t, 2, 2)); !errors.Is(err, ErrNoRegistry) || !strings.Contains(err.Error(), "mount it") {
			t.Errorf("%s: Put: got %v, want ErrNoRegistry", what, err)
		}
		if _, err := d.Lookup(t.Context(), deviceN(1)); !errors.Is(err, ErrNoRegistry) || errors.Is(err, board.ErrNotEnrolled) {
			t.Errorf("%s: Lookup: got %v, want ErrNoRegistry", what, err)
		}
	}
	refused("no folder")
	if _, err := os.Lstat(b.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder was made: %v", err)
	}
	must(t, os.Mkdir(b.path, 0o755)) // an empty mount point
	refused("empty folder")
	if entries, err := os.ReadDir(b.path); err != nil || len(entries) != 0 {
		t.Errorf("the empty folder was filled: %v, %v", entries, err)
	}
	must(t, os.Remove(b.path))
	must(t, os.Rename(away, b.path))
	must(t, d.Put(t.Context(), sealed(t, 2, 2)))
	check(t, b)
}

func TestDirRefusals(t *testing.T) {
	put := func(t *testing.T, b *dirStore) error { return b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)) }
	for _, test := range []struct {
		name string
		do   func(t *testing.T, b *dirStore) error
		want error
		text string
	}{
		{"newer version", func(t *testing.T, b *dirStore) error {
			must(t, os.WriteFile(filepath.Join(b.path, marker), []byte(`{"kind":"secretfree registry","version":2}`), 0o644))
			return put(t, b)
		}, board.ErrNewer, "install that"},
		{"marker of something else", func(t *testing.T, b *dirStore) error {
			must(t, os.WriteFile(filepath.Join(b.path, marker), []byte(`{"kind":"other","version":1}`), 0o644))
			return put(t, b)
		}, ErrDamaged, marker},
		{"marker empty", func(t *testing.T, b *dirStore) error {
			must(t, os.Truncate(filepath.Join(b.path, marker), 0))
			_, err := b.openDir(t, "").Lookup(t.Context(), deviceN(1))
			return err
		}, ErrDamaged, marker},
		{"items missing", func(t *testing.T, b *dirStore) error {
			must(t, os.Remove(filepath.Join(b.path, "items")))
			_, err := b.openDir(t, "").Lookup(t.Context(), deviceN(1))
			return err
		}, ErrDamaged, "items"},
		{"guards missing", func(t *testing.T, b *dirStore) error {
			must(t, os.Remove(filepath.Join(b.path, "guards")))
			return put(t, b)
		}, ErrDamaged, "guards"},
		{"item too long", func(t *testing.T, b *dirStore) error {
			must(t, os.WriteFile(b.file(deviceN(1).String()), make([]byte, maxItemFile+1), 0o644))
			_, err := b.openDir(t, "").Lookup(t.Context(), deviceN(1))
			return err
		}, ErrDamaged, "longer"},
		{"item not JSON", func(t *testing.T, b *dirStore) error {
			must(t, os.WriteFile(b.file(deviceN(1).String()), []byte("{} {}"), 0o644))
			return put(t, b)
		}, ErrDamaged, "follows"},
		{"not a folder", func(t *testing.T, b *dirStore) error {
			return (&dirStore{filepath.Join(b.path, marker)}).openDir(t, "").Put(t.Context(), sealed(t, 1, 1))
		}, nil, "not a directory"},
		{"no path", func(*testing.T, *dirStore) error {
			_, err := OpenDir(DirConfig{})
			return err
		}, nil, "needs a path"},
		{"unknown format", func(_ *testing.T, b *dirStore) error {
			_, err := OpenDir(DirConfig{Path: b.path, PubkeyFormat: "der"})
			return err
		}, nil, "pubkey_format"},
		{"init over something", func(t *testing.T, b *dirStore) error {
			return InitDir(filepath.Join(b.path, "pubkeys", ".."+"/..")) // the folder above holds the registry
		}, nil, "choose an empty folder"},
		{"init without the folder above", func(t *testing.T, b *dirStore) error {
			return InitDir(filepath.Join(b.path, "a", "b"))
		}, fs.ErrNotExist, "initialising"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.do(t, newDirStore(t))
			if err == nil || test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %v and %q", err, test.want, test.text)
			}
		})
	}
}

// What a system call says comes with its remedy, and afterwards the same Put
// succeeds.
func TestDirFailingDisk(t *testing.T) {
	for errno, remedy := range map[syscall.Errno]string{
		syscall.ENOSPC: "make room", syscall.EDQUOT: "make room", syscall.EACCES: "give its user the right",
		syscall.EROFS: "read-only", syscall.EIO: "check it and mount it again", syscall.ESTALE: "check it and mount it again",
	} {
		b := newDirStore(t)
		d := b.openDir(t, "")
		d.cut = func(string) error { return &fs.PathError{Op: "write", Path: "x", Err: errno} }
		err := d.Put(t.Context(), sealed(t, 1, 1))
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%v: got %v, want %q", errno, err, remedy)
		}
		d.cut = nil
		must(t, d.Put(t.Context(), sealed(t, 1, 1)))
		tidy(t, b)
		check(t, b)
	}
}

func TestInitDir(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	must(t, d.Put(t.Context(), sealed(t, 1, 1)))
	must(t, InitDir(b.path)) // of a registry: nothing happens
	check(t, b)
	if len(b.items(t)) != 2 {
		t.Error("the items are gone")
	}

	broken := filepath.Join(t.TempDir(), "registry") // an earlier attempt broke off
	must(t, os.MkdirAll(filepath.Join(broken, "items"), 0o755))
	must(t, os.WriteFile(filepath.Join(broken, newName), []byte("{"), 0o644))
	must(t, InitDir(broken))
	b = &dirStore{broken}
	must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)))
	tidy(t, b)
	check(t, b)
}

// A Put that waits for another writer ends with its context.
func TestDirWaitsForTheLock(t *testing.T) {
	b := newDirStore(t)
	lock, err := os.Open(filepath.Join(b.path, marker))
	must(t, err)
	defer lock.Close()
	must(t, flock(t.Context(), lock))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the station stops"))
	if err := b.openDir(t, "").Put(ctx, sealed(t, 1, 1)); err == nil || !strings.Contains(err.Error(), "the station stops") {
		t.Errorf("another process holds the lock: got %v", err)
	}
	d := b.openDir(t, "")
	d.turn <- struct{}{}
	if err := d.Put(ctx, sealed(t, 1, 1)); err == nil || !strings.Contains(err.Error(), "the station stops") {
		t.Errorf("another caller writes: got %v", err)
	}
	if len(b.items(t)) != 0 {
		t.Error("it wrote without the lock")
	}
}

const (
	processEnv    = "SECRETFREE_TEST_REGISTRY"
	processBoards = 10
	processes     = 4
)

// TestDirProcesses lets several processes enrol the same devices with keys of
// their own.
func TestDirProcesses(t *testing.T) {
	b := newDirStore(t)
	var commands []*exec.Cmd
	var outputs []*strings.Builder
	for n := range processes {
		c := exec.Command(os.Args[0], "-test.run=^TestDirProcess$", "-test.v")
		c.Env = append(os.Environ(), processEnv+"="+b.path, fmt.Sprintf("%s_NUMBER=%d", processEnv, n))
		out := &strings.Builder{}
		c.Stdout, c.Stderr = out, out
		must(t, c.Start())
		commands, outputs = append(commands, c), append(outputs, out)
	}
	wins := 0
	for n, c := range commands {
		if err := c.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", n, err, outputs[n])
		}
		wins += strings.Count(outputs[n].String(), "won device")
	}
	if wins != processBoards {
		t.Errorf("%d wins for %d devices", wins, processBoards)
	}
	tidy(t, b)
	check(t, b)
	if got := len(b.items(t)); got != 2*processBoards {
		t.Errorf("%d items and guards, want %d", got, 2*processBoards)
	}
}

// TestDirProcess is one of the processes of TestDirProcesses, and nothing by
// itself.
func TestDirProcess(t *testing.T) {
	path := os.Getenv(processEnv)
	if path == "" {
		return
	}
	var number int
	_, err := fmt.Sscan(os.Getenv(processEnv+"_NUMBER"), &number)
	must(t, err)
	d := (&dirStore{path}).openDir(t, "")
	for n := range processBoards {
		err := d.Put(t.Context(), sealed(t, n, 100*number+n))
		switch {
		case err == nil:
			fmt.Println("won device", n)
		case !errors.Is(err, board.ErrDeviceConflict):
			t.Errorf("device %d: %v", n, err)
		}
	}
}

// A disk that has taken a file and gives back another, or nothing, does not
// enrol a board; once it is whole again, the same Put does.
func TestDirReadBack(t *testing.T) {
	for name, spoil := range map[string]func(file string) error{
		"nothing there": os.Remove,
		"cut short":     func(file string) error { return os.Truncate(file, 10) },
		"empty":         func(file string) error { return os.Truncate(file, 0) },
		"a bit flipped": func(file string) error {
			data, err := os.ReadFile(file)
			if err == nil {
				data[len(data)/2] ^= 1
				err = os.WriteFile(file, data, 0o644)
			}
			return err
		},
	} {
		s, other := sealed(t, 1, 1), sealed(t, 2, 2)
		r := s.Record()
		for _, file := range []string{itemName(r.Device), guardName(r.Fingerprint()), objectName(r.Device, r.Fingerprint())} {
			t.Run(name+"/"+filepath.Dir(file), func(t *testing.T) {
				b := newDirStore(t)
				d := b.openDir(t, "")
				good := ""
				d.cut = func(step string) error {
					if step != "finished" || good != "" {
						return nil
					}
					data, err := os.ReadFile(filepath.Join(b.path, file))
					must(t, err)
					good = string(data)
					return spoil(filepath.Join(b.path, file))
				}
				results := d.PutBatch(t.Context(), []board.Sealed{s, other})
				if results[0] == nil || isVerdict(results[0]) {
					t.Errorf("got %v", results[0])
				}
				must(t, results[1])
				must(t, os.WriteFile(filepath.Join(b.path, file), []byte(good), 0o644))
				must(t, d.Put(t.Context(), s))
				check(t, b)
			})
		}
	}
}
