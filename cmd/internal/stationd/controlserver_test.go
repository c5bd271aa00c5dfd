package stationd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"secretfree/cmd/internal/control"
	"secretfree/station"
	"secretfree/station/board"
)

// The longest path that is allowed can be listened in; one byte more cannot.
func TestLongestStateDir(t *testing.T) {
	f := newFactory(t)
	f.state = filepath.Join(f.dir, strings.Repeat("x", control.MaxStateDir-len(f.dir)-1))
	d := f.start()
	client, err := control.Open(f.state, nil)
	if err != nil || !client.Online() {
		t.Errorf("the control socket: %+v, %v", client, err)
	}
	d.stop()
	c := f.config()
	c.StateDir += "x"
	if _, err := Open(t.Context(), c, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "choose one of 94 at the most") {
		t.Errorf("one byte more: %v", err)
	}
	// A copy of a station may lie deeper; nothing runs there, and stationctl
	// looks into its files.
	if err := os.RemoveAll(c.StateDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(f.state, c.StateDir); err != nil {
		t.Fatal(err)
	}
	if client, err = control.Open(c.StateDir, nil); err != nil || client.Online() {
		t.Fatalf("a copy: %+v, %v", client, err)
	}
	if _, err := client.Sign(t.Context()); err != nil {
		t.Errorf("a copy: %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

// The control socket acknowledges a leak, which outlives its board and its
// port, and refuses a reset at once while the leak is shown.
func TestAcknowledgeByControl(t *testing.T) {
	f := newFactory(t)
	f.slot = "reset = [\"break=1ms\"]\n"
	r := f.start()
	leaky := newBoard()
	leaky.Print = map[string]string{"version": "-----BEGIN EC PRIVATE KEY-----\r\nMHcCAQEEIODH\r\n-----END EC PRIVATE KEY-----"}
	unplug := f.plug(f.ports[0], leaky)
	leak := func(s station.Status) bool {
		return s.Slots[0].Reason == station.ReasonPrivateKeyLeak && s.Slots[0].Acknowledge
	}
	r.await("the leak", leak)
	client, err := control.Open(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	reset := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := client.ResetSlot(ctx, "A"); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), station.ErrLeakShown.Error()) {
			t.Errorf("a reset while the leak is shown: %v, want %v", err, station.ErrLeakShown)
		}
	}
	reset()
	unplug()
	reset()
	for _, slot := range []string{"Z", "", "A/../B?x=1&y"} {
		if err := client.Acknowledge(t.Context(), slot); err == nil || !strings.Contains(err.Error(), station.ErrNoSlot.Error()) {
			t.Errorf("slot %q: %v, want %v", slot, err, station.ErrNoSlot)
		}
	}
	r.await("the leak, after its board has gone", leak)
	if err := client.Acknowledge(t.Context(), "A"); err != nil {
		t.Fatal(err)
	}
	if s := r.awaitSlot(0, station.Absent); s.Acknowledge {
		t.Errorf("acknowledged: %+v", s)
	}
	if err := client.Acknowledge(t.Context(), "A"); err != nil {
		t.Errorf("with nothing to acknowledge: %v", err)
	}
	f.plug(f.ports[0], newBoard())
	r.awaitSlot(0, station.Passed)
	r.stop()
	stopped, err := control.Open(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close()
	if err := stopped.Acknowledge(t.Context(), "A"); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("of a station that is stopped: %v, want %v", err, control.ErrNotRunning)
	}
}

// A restart does not end a leak that nobody has acknowledged. Another verdict
// of the slot does.
func TestLeakOutlivesRestart(t *testing.T) {
	f := newFactory(t)
	r := f.start()
	leaky := newBoard()
	leaky.Print = map[string]string{"version": "-----BEGIN EC PRIVATE KEY-----\r\nMHcCAQEEIODH\r\n-----END EC PRIVATE KEY-----"}
	unplug := f.plug(f.ports[0], leaky)
	leak := func(s station.Status) bool {
		return s.Slots[0].Reason == station.ReasonPrivateKeyLeak && s.Slots[0].Acknowledge
	}
	shown := r.await("the leak", leak)
	before := shown.Slots[0]
	if !before.Since.Equal(shown.Recent[0].Time) {
		t.Errorf("the slot shows a verdict of %s, the journal has %s", before.Since, shown.Recent[0].Time)
	}
	unplug()
	for range 2 {
		r.stop()
		r = f.start()
		if s := r.await("the leak, after a restart", leak); s.Slots[0].Device != before.Device || !s.Slots[0].Since.Equal(before.Since) || s.Slots[1].Acknowledge {
			t.Errorf("after a restart %+v, before it %+v", s.Slots, before)
		}
	}
	f.plug(f.ports[1], newBoard())
	r.awaitSlot(1, station.Passed)
	good := newBoard()
	unplug = f.plug(f.ports[0], good)
	if err := r.station.Acknowledge("A"); err != nil {
		t.Fatal(err)
	}
	if s := r.awaitSlot(0, station.Passed); s.Device != good.ID() {
		t.Errorf("after the leak was acknowledged: %+v", s)
	}
	unplug()
	r.stop()
	r = f.start()
	if s := r.awaitSlot(0, station.Absent); s.Acknowledge {
		t.Errorf("after a board that passed, and a restart: %+v", s)
	}
}

// The control socket resets a board. A pseudo-terminal takes a break, and no
// more.
func TestResetSlotByControl(t *testing.T) {
	f := newFactory(t)
	f.slot = "reset = [\"break=1ms\"]\n"
	r := f.start()
	f.plug(f.ports[0], newBoard())
	r.awaitSlot(0, station.Passed)
	client, err := control.Open(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ResetSlot(t.Context(), "A"); err != nil {
		t.Errorf("slot A: %v", err)
	}
	for _, slot := range []string{"B", "Z", "", "A/../B?x=1&y"} { // without a port, and unknown
		if err := client.ResetSlot(t.Context(), slot); err == nil {
			t.Errorf("slot %q was reset", slot)
		}
	}
	if n := strings.Count(r.log.String(), "the board was reset, by the control socket"); n != 1 {
		t.Errorf("the log tells of %d resets:\n%s", n, r.log)
	}
	r.stop()
	stopped, err := control.Open(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close()
	if err := stopped.ResetSlot(t.Context(), "A"); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("of a station that is stopped: %v, want %v", err, control.ErrNotRunning)
	}
}

// The control socket names the entries of a device while the station has the
// index open.
func TestEntriesByControl(t *testing.T) {
	f := newFactory(t)
	r := f.start()
	b := newBoard()
	unplug := f.plug(f.ports[0], b)
	slot := r.awaitSlot(0, station.Passed)
	unplug()
	client, err := control.Open(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	device, err := board.ParseDeviceID(slot.Device)
	if err != nil {
		t.Fatal(err)
	}
	for d, want := range map[board.DeviceID][]uint64{device: {1}, {1}: {}} {
		if got, err := client.Entries(t.Context(), d); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", d, got, err, want)
		}
	}
	if _, err := client.Entries(t.Context(), board.DeviceID{}); err == nil {
		t.Error("the entries of no device")
	}
}
