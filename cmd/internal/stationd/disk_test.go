package stationd

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"secretfree/station"
)

// smallDisk is a file system of its own for the state directory.
func smallDisk(t *testing.T, dir string, bytes string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+bytes+",mode=700"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("mounting a small file system: %v", err)
		}
		t.Skipf("a full disk needs the right to mount a small one: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// fill writes until there is no room.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 4 << 10, 1} {
		for err == nil {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, io.ErrShortWrite) {
			t.Fatal(err)
		}
		err = nil
	}
}

// A full disk fails the board with its own reason; nothing half-written is
// trusted later, and with room again the same board passes without a restart.
func TestDiskFull(t *testing.T) {
	f := newFactory(t)
	smallDisk(t, f.state, "4m")
	d := f.start()
	first := newBoard()
	unplug := f.plug(f.ports[0], first)
	d.awaitSlot(0, station.Passed)
	unplug()
	d.awaitSlot(0, station.Absent)

	ballast := filepath.Join(f.state, "ballast")
	fill(t, ballast)
	// A tail of the journal's last page may take some more records; after that
	// every board must fail.
	full := station.SlotStatus{}
	passed := 1
	for range 50 {
		unplug := f.plug(f.ports[0], newBoard())
		full = d.await("a verdict", func(s station.Status) bool {
			return s.Slots[0].State == station.Passed || s.Slots[0].State == station.Failed
		}).Slots[0]
		unplug()
		d.awaitSlot(0, station.Absent)
		if full.State == station.Failed {
			break
		}
		passed++
	}
	if full.Reason != station.ReasonDiskFull || full.Advice == "" {
		t.Fatalf("on a full disk: %+v", full)
	}
	if code, body := d.get("/healthz"); code != 503 || !strings.Contains(body, "disk-full") {
		t.Errorf("/healthz on a full disk: %d %s", code, body)
	}
	if report := f.verify(); report.Records != uint64(passed) {
		t.Errorf("%d boards passed, the journal has %+v", passed, report)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	late := newBoard()
	f.plug(f.ports[0], late)
	if slot := d.awaitSlot(0, station.Passed); slot.Device != late.ID() {
		t.Errorf("with room again: %+v", slot)
	}
	if code, body := d.get("/healthz"); code != 200 {
		t.Errorf("/healthz with room again: %d %s", code, body)
	}
	d.await("the registry to have all", func(s station.Status) bool { return s.Backlog.Pending == 0 && s.Backlog.LastError == "" })
	d.stop()
	if report := f.verify(); report.Records != uint64(passed)+1 || report.Torn != 0 {
		t.Errorf("%d boards passed, the journal has %+v", passed+1, report)
	}
}
