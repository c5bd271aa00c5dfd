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

	"secretfree/station"
	"secretfree/uart"
)

// Each refusal names the key and its line; what is absent is as before.
func TestSlotModemSettings(t *testing.T) {
	const head = "station = \"line3-a\"\nsku = \"widgiot\"\nstate_dir = \"/var/lib/stationd\"\n[registry]\nkind = \"dir\"\ndir = \"/srv/registry\"\n" +
		"[[slot]]\nname = \"A\"\nport = \"/dev/ttyAMA0\"\ndialect = \"auto\"\n"
	c, err := parse("test.toml", []byte(head))
	if err != nil {
		t.Fatal(err)
	}
	if port, err := c.Slots[0].Modem(); err != nil || port.DTR != "" || port.RTS != "" || !port.Reset.IsZero() || !port.Present.IsZero() || port.Address != "/dev/ttyAMA0" {
		t.Errorf("nothing is set: %+v, %v", port, err)
	}
	c, err = parse("test.toml", []byte(head+"dtr = \"off\"\nrts = \"keep\"\nreset = [\"dtr=on\", \"100ms\", \"dtr=off\", \"break\"]\npresent = \"!cts\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if port, err := c.Slots[0].Modem(); err != nil || port.DTR != uart.LevelOff || port.RTS != uart.LevelKeep || port.Reset.String() != "dtr=on 100ms dtr=off break" || port.Present.String() != "!cts" {
		t.Errorf("all is set: %+v, %v", port, err)
	}
	for _, c := range []struct{ setting, want string }{
		{`dtr = "high"`, `test.toml:11: dtr of slot "A": "high" is not a level`},
		{`rts = "ON"`, `test.toml:11: rts of slot "A": "ON" is not a level`},
		{`reset = ["rts=on", "100"]`, `test.toml:11: reset of slot "A": step 2: "100" is no step`},
		{`reset = ["6s", "rts=on"]`, `test.toml:11: reset of slot "A": the sequence lasts 6s`},
		{`reset = ["100ms"]`, `test.toml:11: reset of slot "A": the sequence has pauses alone`},
		{`reset = ["cts=on"]`, `test.toml:11: reset of slot "A": step 1: "cts=on": there is no line "cts"`},
		{`present = "ri"`, `test.toml:11: present of slot "A": "ri" is not a modem input`},
		{"reset = [\"rts=on\", \"1ms\", \"rts=off\"]\nrts = \"on\"", `test.toml:11: reset of slot "A": rts is "on" while the port is open, and the reset leaves it "off"`},
		{`cts = "on"`, `test.toml:11: `},
		{`reset = "rts=on"`, `test.toml:11: `},
	} {
		if _, err := parse("test.toml", []byte(head+c.setting+"\n")); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.setting, err, c.want)
		}
	}
}

func TestPortWarnings(t *testing.T) {
	c := Config{Slots: []Slot{
		{Name: "A", Port: "/dev/ttyUSB0"}, {Name: "B", Port: "/dev/ttyACM3"}, {Name: "C", Port: "/dev/ttyUSB1"},
		{Name: "D", Port: "/dev/ttyAMA0", Present: "cts"}, {Name: "E", Port: "/dev/serial/by-path/x"}, {Name: "F", Port: "auto:0451:bef3"},
	}}
	got := c.PortWarnings([]uart.Listed{
		{Path: "/dev/serial/by-path/pci-0", Device: "/dev/ttyUSB0"},
		{Path: "/dev/serial/by-id/usb-TI", Device: "/dev/ttyACM3"},
		{Path: "/dev/ttyUSB1", Device: "/dev/ttyUSB1"}, {Path: "/dev/ttyAMA0", Device: "/dev/ttyAMA0"},
	})
	if len(got) != 3 {
		t.Fatalf("%+v, want warnings of three slots", got)
	}
	for i, want := range []struct{ slot, remedy string }{{"A", "/dev/serial/by-path/pci-0"}, {"B", "/dev/serial/by-id/usb-TI"}, {"C", "ls -l /dev/serial/by-path"}} {
		if got[i].Slot != want.slot || !strings.Contains(got[i].Remedy, want.remedy) {
			t.Errorf("%+v, want slot %s with %s", got[i], want.slot, want.remedy)
		}
	}
}

// CTS of a port of cdc_acm is no presence line, whatever the port is called.
func TestPresenceWarnings(t *testing.T) {
	link := filepath.Join(t.TempDir(), "fixture-1")
	if err := os.Symlink("/dev/ttyACM7", link); err != nil {
		t.Fatal(err)
	}
	ports := []uart.Listed{
		{Path: "/dev/serial/by-path/acm", Device: "/dev/ttyACM0", Vendor: "0451", Product: "bef3"},
		{Path: "/dev/serial/by-path/usb", Device: "/dev/ttyUSB0", Vendor: "0403", Product: "6001"},
	}
	for _, c := range []struct {
		port, present string
		warns         bool
	}{
		{"/dev/serial/by-path/acm", "cts", true}, {"/dev/serial/by-path/acm", "!cts", true}, {"auto:0451:bef3", "cts", true}, {"/dev/ttyACM3", "cts", true},
		{"/dev/serial/by-path/acm", "dsr", false}, {"/dev/serial/by-path/acm", "!dcd", false}, {"/dev/serial/by-path/acm", "", false},
		{"/dev/serial/by-path/usb", "cts", false}, {"auto:0403:6001", "cts", false}, {"/dev/ttyUSB0", "cts", false}, {"/dev/ttyAMA0", "!cts", false},
		{"/dev/serial/by-path/gone", "cts", false}, {link, "cts", false}, // a link that leads nowhere now
	} {
		got := Config{Slots: []Slot{{Name: "A", Port: c.port, Present: c.present}}}.PortWarnings(ports)
		got = slices.DeleteFunc(got, func(w PortWarning) bool { return w.Key == "port" })
		if (len(got) == 1) != c.warns || c.warns && (got[0].Key != "present" || got[0].Slot != "A" || got[0].Remedy == "") {
			t.Errorf("%s with present %q: %+v, want a warning: %t", c.port, c.present, got, c.warns)
		}
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
	control, err := OpenControl(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	reset := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := control.ResetSlot(ctx, "A"); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), station.ErrLeakShown.Error()) {
			t.Errorf("a reset while the leak is shown: %v, want %v", err, station.ErrLeakShown)
		}
	}
	reset()
	unplug()
	reset()
	for _, slot := range []string{"Z", "", "A/../B?x=1&y"} {
		if err := control.Acknowledge(t.Context(), slot); err == nil || !strings.Contains(err.Error(), station.ErrNoSlot.Error()) {
			t.Errorf("slot %q: %v, want %v", slot, err, station.ErrNoSlot)
		}
	}
	r.await("the leak, after its board has gone", leak)
	if err := control.Acknowledge(t.Context(), "A"); err != nil {
		t.Fatal(err)
	}
	if s := r.awaitSlot(0, station.Absent); s.Acknowledge {
		t.Errorf("acknowledged: %+v", s)
	}
	if err := control.Acknowledge(t.Context(), "A"); err != nil {
		t.Errorf("with nothing to acknowledge: %v", err)
	}
	f.plug(f.ports[0], newBoard())
	r.awaitSlot(0, station.Passed)
	r.stop()
	stopped, err := OpenControl(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close()
	if err := stopped.Acknowledge(t.Context(), "A"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("of a station that is stopped: %v, want %v", err, ErrNotRunning)
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
	control, err := OpenControl(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if err := control.ResetSlot(t.Context(), "A"); err != nil {
		t.Errorf("slot A: %v", err)
	}
	for _, slot := range []string{"B", "Z", "", "A/../B?x=1&y"} { // without a port, and unknown
		if err := control.ResetSlot(t.Context(), slot); err == nil {
			t.Errorf("slot %q was reset", slot)
		}
	}
	if n := strings.Count(r.log.String(), "the board was reset, by the control socket"); n != 1 {
		t.Errorf("the log tells of %d resets:\n%s", n, r.log)
	}
	r.stop()
	stopped, err := OpenControl(f.state, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.Close()
	if err := stopped.ResetSlot(t.Context(), "A"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("of a station that is stopped: %v, want %v", err, ErrNotRunning)
	}
}
