package station

import (
	"strings"
	"testing"

	"secretfree/station/board"
	"secretfree/uart"
)

// A station that could not show its page is not made.
func TestNewRefusesSettings(t *testing.T) {
	for want, c := range map[string]Config{
		`no language "tlh"`:    {Page: Page{Language: "tlh"}},
		"printable characters": {Page: Page{ContactIT: "a\nb"}},
	} {
		c.SKU, c.Station, c.Journal = "widgiot", "line3-a", &fakeJournal{}
		c.Backlog, c.Delivery = func() Backlog { return Backlog{} }, func(board.DeviceID) Delivery { return Waiting }
		c.Slots = []SlotConfig{{Name: "A", Port: "/dev/port-0", Open: (&fakePort{}).await, Dialect: uart.TIAT{}}}
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The case of a host's name does not matter.
func TestOwnHosts(t *testing.T) {
	b := newTestStation(t, 1, func(c *Config) { c.Hosts = []string{"New.example"} })
	for host, own := range map[string]bool{"new.example": true, "other.example": false, "localhost": true} {
		if b.ownHost(host) != own {
			t.Errorf("%s: %v", host, !own)
		}
	}
}
