package stationd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/station"
)

// read has a new board read, from start to stop.
func (f *factory) read() {
	f.t.Helper()
	d := f.start()
	unplug := f.plug(f.ports[0], newBoard())
	d.awaitSlot(0, station.Passed)
	d.await("the confirmation", func(s station.Status) bool { return s.Slots[0].Confirmed })
	unplug()
	d.stop()
}

// Two machines from one image write two journals under one name. The registry
// has the first one's, and the second is told.
func TestClonedStation(t *testing.T) {
	f := newFactory(t)
	f.read()
	clone := filepath.Join(f.dir, "clone")
	if err := os.CopyFS(clone, os.DirFS(f.state)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(clone, "station.key"), 0o600); err != nil {
		t.Fatal(err)
	}

	f.read()
	d := f.start() // offers the last checkpoint
	d.await("no notice", func(s station.Status) bool {
		files, err := filepath.Glob(filepath.Join(f.registry, "journal", "line3-a", "*.checkpoint"))
		return err == nil && len(files) > 0 && len(s.Notices) == 0
	})
	d.stop()
	f.verify()

	f.state = clone
	f.read() // PASS comes all the same
	d = f.start()
	status := d.await("the fork to be noticed", func(s station.Status) bool {
		return len(s.Notices) > 0 && s.Notices[0].Urgent && s.Notices[0].Word == "health-forked" && strings.Contains(s.Notices[0].Detail, "two journals") && s.Notices[0].Call == station.CallQuality
	})
	if code, body := d.get("/healthz"); code != 503 || !strings.Contains(body, "station name") {
		t.Errorf("/healthz of a clone: %d %s, want 503 and the remedy; the page: %+v", code, body, status.Notices)
	}
	d.stop()
	f.verify()

	// With a name and a folder of its own it goes on.
	f.state, f.station = filepath.Join(f.dir, "new"), "line3-b"
	f.read()
	d = f.start()
	d.await("no notice", func(s station.Status) bool {
		files, err := filepath.Glob(filepath.Join(f.registry, "checkpoints", "line3-b"))
		return err == nil && len(files) > 0 && len(s.Notices) == 0
	})
	d.stop()
}

// A station that was set back to an old copy of itself is told at its start,
// before it has read a board; so is one whose journal was deleted.
func TestStationSetBack(t *testing.T) {
	for name, setBack := range map[string]func(t *testing.T, state, backup string){
		"to a copy": func(t *testing.T, state, backup string) {
			if err := os.RemoveAll(state); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(backup, state); err != nil {
				t.Fatal(err)
			}
		},
		"to nothing": func(t *testing.T, state, _ string) {
			for _, name := range []string{"journal", "index.bbolt"} {
				if err := os.RemoveAll(filepath.Join(state, name)); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFactory(t)
			f.read()
			backup := filepath.Join(f.dir, "backup")
			if err := os.CopyFS(backup, os.DirFS(f.state)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(backup, "station.key"), 0o600); err != nil {
				t.Fatal(err)
			}
			f.read()
			setBack(t, f.state, backup)
			d := f.start()
			d.await("the fork to be noticed", func(s station.Status) bool {
				return len(s.Notices) > 0 && s.Notices[0].Word == "health-forked"
			})
			f.plug(f.ports[0], newBoard())
			d.awaitSlot(0, station.Passed)
			d.stop()
		})
	}
}
