package stationconf

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"secretfree/cmd/internal/config"
	"secretfree/uart"
)

// Modem is the settings of the modem lines of a slot, parsed.
func (s Slot) Modem() (uart.PortConfig, error) {
	c, _, err := s.modem()
	return c, err
}

// modem returns the port of the slot with its modem lines, or the key that is
// wrong.
func (s Slot) modem() (c uart.PortConfig, key string, err error) {
	c.Address = s.Port
	if c.DTR, err = uart.ParseLevel(s.DTR); err != nil {
		return c, "dtr", err
	}
	if c.RTS, err = uart.ParseLevel(s.RTS); err != nil {
		return c, "rts", err
	}
	if c.Reset, err = uart.ParseSequence(s.Reset); err != nil {
		return c, "reset", err
	}
	if c.Present, err = uart.ParsePresence(s.Present); err != nil {
		return c, "present", err
	}
	return c, "reset", c.Check()
}

// checkModem is modem with the file, the line and the remedy.
func (s Slot) checkModem(f *config.File, prefix string) error {
	_, key, err := s.modem()
	if err == nil {
		return nil
	}
	remedy := map[string]string{
		"dtr": `Write "on", "off" or "keep", or remove the key.`, "rts": `Write "on", "off" or "keep", or remove the key.`,
		"reset":   `Write steps such as ["rts=on", "100ms", "rts=off"]: dtr, rts, break and pauses, up to 5 s in all, and end at the levels of dtr and rts.`,
		"present": `Write "cts", "dsr" or "dcd", with "!" in front if the line is on while the fixture is open, or remove the key.`,
	}[key]
	return f.Errorf(prefix+key, remedy, "%s of slot %q: %v", key, s.Name, err)
}

// PortWarning says what may go wrong with the settings of a slot's port, and
// what to write in their place.
type PortWarning struct {
	Slot   string `json:"slot"`
	Key    string `json:"key"` // of the slot: "port" or "present"
	Text   string `json:"text"`
	Remedy string `json:"remedy"`
}

// numberedPort is a name that the kernel gives out in the order in which
// adapters appear. The numbers of a machine's own ports (ttyAMA0, ttyS0) stay.
var numberedPort = regexp.MustCompile(`^/dev/tty(USB|ACM)[0-9]+$`)

// PortWarnings lists the slots whose ports are named by number, and those whose
// presence line the driver of the port makes up. ports are those of the
// machine, as uart.List has them.
func (c Config) PortWarnings(ports []uart.Listed) (all []PortWarning) {
	for _, slot := range c.Slots {
		if w, ok := slot.presenceWarning(ports); ok {
			all = append(all, w)
		}
		if !numberedPort.MatchString(slot.Port) {
			continue
		}
		w := PortWarning{
			Slot: slot.Name, Key: "port", Text: slot.Port + " is a name that another adapter gets after a restart; slots may be mixed up",
			Remedy: "Plug in the adapter, and write its name under /dev/serial/by-path: ls -l /dev/serial/by-path",
		}
		i := slices.IndexFunc(ports, func(p uart.Listed) bool { return p.Device == slot.Port && p.Path != p.Device })
		if i >= 0 {
			w.Remedy = fmt.Sprintf("Write port = %q", ports[i].Path)
		}
		all = append(all, w)
	}
	return all
}

// presenceWarning warns of CTS on a port of cdc_acm: the class has no such
// line, and the driver reports that it is on.
func (s Slot) presenceWarning(ports []uart.Listed) (PortWarning, bool) {
	never := map[string]string{"cts": "opens", "!cts": "closes"}[s.Present]
	if never == "" || !strings.HasPrefix(s.device(ports), "/dev/ttyACM") {
		return PortWarning{}, false
	}
	return PortWarning{
		Slot: s.Name, Key: "present",
		Text:   fmt.Sprintf("present = %q: the driver of %s (cdc_acm) always says that CTS is on, so the fixture never %s", s.Present, s.Port, never),
		Remedy: `Wire the switch to DSR or DCD and write "dsr" or "dcd", or take an adapter that has CTS (/dev/ttyUSB*)`,
	}, true
}

// device is the kernel's name of the port, as far as the machine knows it now.
func (s Slot) device(ports []uart.Listed) string {
	for _, p := range ports {
		if p.Path == s.Port || s.Port == "auto:"+p.Vendor+":"+p.Product {
			return p.Device
		}
	}
	if device, err := filepath.EvalSymlinks(s.Port); err == nil {
		return device
	}
	return s.Port
}
