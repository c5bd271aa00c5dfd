package stationd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretfree/station"
	"secretfree/station/board"
)

func TestLot(t *testing.T) {
	l := &lot{path: filepath.Join(t.TempDir(), "lot.txt")}
	write := func(text string) {
		t.Helper()
		// As a work order comes: a new file in the place of the old one.
		if err := os.WriteFile(l.path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(l.path+".new", l.path); err != nil {
			t.Fatal(err)
		}
	}
	device, err := board.ParseDeviceID("4d1f8e27b3c05a9e61f2d47788aabbcc")
	if err != nil {
		t.Fatal(err)
	}
	facts := map[string]string{"mac": "08:00:28:5b:55:e0"}

	if err := l.check(device, facts); !errors.Is(err, os.ErrNotExist) || errors.Is(err, station.ErrNotInLot) {
		t.Errorf("no list: %v", err)
	}
	for _, c := range []struct {
		what, text string
		listed     bool
		says       string // of an error that is not ErrNotInLot
	}{
		{"by id", "# work order 7\n\n4d1f8e27b3c05a9e61f2d47788aabbcc\r\n", true, ""},
		{"by id in capitals, from a label", "  4D1F8E27B3C05A9E61F2D47788AABBCC # first\n", true, ""},
		{"by address", "08:00:28:5B:55:E0\n", true, ""},
		{"not at all", "00000000000000000000000000000001\n08:00:28:00:00:01\n", false, ""},
		{"a broken line", "4d1f8e27b3c05a9e61f2d47788aabbcc\n4d1f8e\n", false, "lot.txt:2: \"4d1f8e\" is neither"},
		{"an empty list", "# nothing\n", false, "the list is empty"},
		{"a line without end", strings.Repeat("0", maxLotLine+1), false, "lot.txt:1: "},
	} {
		write(c.text)
		err := l.check(device, facts)
		switch {
		case c.listed && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case !c.listed && c.says == "" && !errors.Is(err, station.ErrNotInLot):
			t.Errorf("%s: %v, want %v", c.what, err, station.ErrNotInLot)
		case c.says != "" && (err == nil || errors.Is(err, station.ErrNotInLot) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %s", c.what, err, c.says)
		}
	}
	// A board that says nothing of its address does not match an empty one.
	write("4d1f8e27b3c05a9e61f2d47788aabbcd\n")
	if err := l.check(device, nil); !errors.Is(err, station.ErrNotInLot) {
		t.Errorf("without facts: %v", err)
	}
}

// A scanned work order is checked against the boards, and a new one needs no
// restart.
func TestBoardsAgainstALot(t *testing.T) {
	f := newFactory(t)
	list := filepath.Join(f.dir, "lot.txt")
	f.extra = "[policy]\nlot = \"" + list + "\"\n"
	good := newBoard()
	d := f.start()
	unplug := f.plug(f.ports[0], good)
	if slot := d.awaitSlot(0, station.Failed); slot.Reason != station.ReasonLotUnreadable {
		t.Errorf("without a list: %+v", slot)
	}
	unplug()
	d.awaitSlot(0, station.Absent)
	if err := os.WriteFile(list, []byte("00000000000000000000000000000001\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unplug = f.plug(f.ports[0], good)
	if slot := d.awaitSlot(0, station.Failed); slot.Reason != station.ReasonNotInLot || slot.Device != good.ID() {
		t.Errorf("a board of another lot: %+v", slot)
	}
	unplug()
	d.awaitSlot(0, station.Absent)
	if err := os.WriteFile(list, []byte(good.ID()+"\n00000000000000000000000000000001\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.plug(f.ports[0], good)
	d.awaitSlot(0, station.Passed)
	if lot := d.Status().Lot; lot.Planned != 2 || lot.Passed != 1 || lot.Failed != 2 {
		t.Errorf("the list has 2 boards, and the lot is %+v", lot)
	}
	d.stop()
	if report := f.verify(); report.Records != 1 || report.Failed != 2 {
		t.Errorf("the journal holds %+v", report)
	}
}
