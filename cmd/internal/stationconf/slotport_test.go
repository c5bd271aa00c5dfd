package stationconf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
