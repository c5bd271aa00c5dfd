package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/stationconf"
	"secretfree/uart"
)

var (
	autoAddress = regexp.MustCompile(`^auto:([0-9a-f]{4}):([0-9a-f]{4})$`)
)

func (e *exam) checkPorts(context.Context) (found []Result) {
	if e.configErr != nil {
		return e.listPorts()
	}
	ports, err := uart.List()
	if err != nil {
		found = append(found, warn("port", "", "%v", err))
	}
	for _, w := range e.station.PortWarnings(ports) {
		name := "port.name"
		if w.Key == "present" {
			name = "port.present"
		}
		found = append(found, warn(name, w.Remedy, "slot %s: %s", w.Slot, w.Text))
	}
	for _, slot := range e.station.Slots {
		found = append(found, e.checkPort(slot)...)
	}
	return found
}

// listPorts is for a machine without a configuration.
func (e *exam) listPorts() []Result { return judgeList(uart.List()) }

func judgeList(all []uart.Listed, err error) []Result {
	if err != nil {
		return []Result{warn("port", "", "%v", err)}
	}
	var names []string
	for _, p := range all {
		names = append(names, p.Path)
	}
	if len(names) == 0 {
		return []Result{warn("port", "Plug in the cables of the fixture; lsusb shows whether the machine sees them.", "this machine has no serial port")}
	}
	return []Result{good("port", "this machine has %s: %s", cli.Count(len(names), "serial port", "serial ports"), strings.Join(names, ", "))}
}

// checkPort opens nothing: that resets some boards.
func (e *exam) checkPort(slot stationconf.Slot) (found []Result) {
	say := func(r Result) { r.Text = "slot " + slot.Name + ": " + r.Text; found = append(found, r) }
	path, err := findPort(slot.Port)
	if err != nil {
		say(warn("port.there", "Plug in the cable of this slot; ls -l /dev/serial/by-path shows what is there. The station waits for it.", "%s is not there: %v", slot.Port, err))
		return found
	}
	var device unix.Stat_t
	if err := unix.Stat(path, &device); err != nil {
		say(warn("port.there", "Plug in the cable of this slot; ls -l /dev/serial/by-path shows what is there. The station waits for it.", "%s is not there", path))
		return found
	}
	major, minor := unix.Major(device.Rdev), unix.Minor(device.Rdev)
	if device.Mode&unix.S_IFMT != unix.S_IFCHR || !e.isTerminal(major, minor) {
		say(fail("port.kind", "Correct port of this slot in the configuration.", "%s is no serial port", path))
		return found
	}
	if r, bad := e.mayOpen(path); bad {
		say(r)
	}
	if r, bad := e.allowed(path, major); bad {
		say(r)
	}
	switch holder := uart.Holder(path); {
	case isPseudo(major): // whoever simulates a board holds it too
	case holder != "" && !e.isStation(holder):
		say(fail("port.holder", "End that program, and keep it from this port.", "%s is held by %s", path, holder))
	case holder == "" && !e.sees():
		say(warn("port.holder", e.asOwner(), "who holds %s could not be seen", path))
	}
	if r, bad := e.modems(path, major, minor); bad {
		say(r)
	}
	if len(found) == 0 {
		say(good("port", "%s is there and may be opened", slot.Port))
	}
	return found
}

// findPort resolves "auto:".
func findPort(address string) (string, error) {
	m := autoAddress.FindStringSubmatch(address)
	if m == nil {
		return address, nil
	}
	all, err := uart.List()
	if err != nil {
		return "", err
	}
	var fit []string
	for _, p := range all {
		if p.Vendor == m[1] && p.Product == m[2] && p.Port == 1 {
			fit = append(fit, p.Device)
		}
	}
	switch len(fit) {
	case 0:
		return "", uart.ErrAbsent
	case 1:
		return fit[0], nil
	}
	return "", fmt.Errorf("%w: %s", uart.ErrAmbiguous, strings.Join(fit, ", "))
}

// isTerminal also takes pseudo-terminals, as simulated boards have them: /sys
// does not know those.
func (e *exam) isTerminal(major, minor uint32) bool {
	if isPseudo(major) {
		return true
	}
	target, err := os.Readlink(e.path(fmt.Sprintf("sys/dev/char/%d:%d/subsystem", major, minor)))
	return err == nil && filepath.Base(target) == "tty"
}

func isPseudo(major uint32) bool { return major >= 136 && major <= 143 }

func (e *exam) mayOpen(path string) (Result, bool) {
	if !e.owner.ok {
		return warn("port.permission", "Make the user: systemd-sysusers", "the station's user is not known, so neither whether it may open %s", path), true
	}
	err := uart.MayOpen(path, uart.User{UID: e.owner.uid, GIDs: e.owner.gids})
	if err == nil {
		return Result{}, false
	}
	remedy := "Put the user of the station into the group of the port, and restart stationd."
	if open, ok := errors.AsType[*uart.OpenError](err); ok {
		switch {
		case open.Group != "":
			remedy = fmt.Sprintf("usermod -aG %s %s, and SupplementaryGroups=%s in the unit (systemctl edit stationd); then restart stationd.", open.Group, e.owner.name, open.Group)
		case open.Change != "":
			remedy = open.Change
		}
	}
	return fail("port.permission", remedy, "the station's user %s may not open %s: %v", e.owner.name, path, err), true
}

// isStation tells whether the station itself holds a port.
func (e *exam) isStation(holder string) bool {
	pid := e.unit["ExecMainPID"]
	return strings.HasPrefix(holder, "stationd (process ") && !strings.Contains(holder, ", ") &&
		(pid == "" || pid == "0" || strings.Contains(holder, "(process "+pid+")"))
}

// dropIn adds a kind of port to the unit.
const dropIn = "/etc/systemd/system/stationd.service.d/ports.conf"

// allowed compares the port's kind with DeviceAllow= of the unit.
func (e *exam) allowed(path string, major uint32) (Result, bool) {
	if e.unit == nil || e.unit["LoadState"] != "loaded" {
		return Result{}, false
	}
	list := e.unit["DeviceAllow"]
	if list == "" && (e.unit["DevicePolicy"] == "auto" || e.unit["DevicePolicy"] == "") || isPseudo(major) {
		return Result{}, false // systemd itself lets pseudo-terminals in
	}
	kinds := e.kinds(major)
	for line := range strings.Lines(list) {
		fields := strings.Fields(strings.NewReplacer("{", "", "}", "", ";", "").Replace(line))
		if len(fields) < 2 || !strings.Contains(fields[1], "r") || !strings.Contains(fields[1], "w") {
			continue
		}
		name, isKind := strings.CutPrefix(fields[0], "char-")
		if isKind && slices.ContainsFunc(kinds, func(kind string) bool { ok, err := filepath.Match(name, kind); return ok && err == nil }) || isKind && name == "*" || !isKind && fields[0] == path {
			return Result{}, false
		}
	}
	kind := strconv.Itoa(int(major))
	if len(kinds) > 0 {
		kind = kinds[len(kinds)-1] // number 4 is that of consoles too, which come first
	}
	return fail("port.unit", fmt.Sprintf(`Write the file %s with the two lines "[Service]" and "DeviceAllow=char-%s rw", then: systemctl daemon-reload && systemctl restart stationd`, dropIn, kind),
		"%s is of kind %s, which DeviceAllow= of the unit does not let in", path, kind), true
}

// kinds are the names of the drivers of a number of character devices.
func (e *exam) kinds(major uint32) (names []string) {
	for line := range strings.Lines(e.read("proc/devices")) {
		line = strings.TrimSpace(line)
		if line == "Block devices:" {
			break
		}
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == strconv.Itoa(int(major)) {
			names = append(names, fields[1])
		}
	}
	return names
}

// modems warns of ModemManager, which sends AT to every new port that it is not
// told to leave alone.
func (e *exam) modems(path string, major, minor uint32) (Result, bool) {
	if !e.hasModemManager() {
		return Result{}, false
	}
	for line := range strings.Lines(e.read(fmt.Sprintf("run/udev/data/c%d:%d", major, minor))) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if slices.Contains([]string{"E:ID_MM_DEVICE_IGNORE", "E:ID_MM_PORT_IGNORE"}, key) && value != "0" && value != "" {
			return Result{}, false
		}
	}
	return warn("port.modem", "Install systemd/udev/70-secretfree.rules with a line for this adapter, then: udevadm control --reload && udevadm trigger --subsystem-match=usb --subsystem-match=tty; or remove the package modemmanager.",
		"ModemManager is installed and is not told to leave %s alone: it holds the port for seconds and sends AT to the board", path), true
}

func (e *exam) hasModemManager() bool {
	for _, name := range []string{"usr/sbin/ModemManager", "usr/bin/ModemManager", "usr/lib/systemd/system/ModemManager.service", "lib/systemd/system/ModemManager.service"} {
		if _, err := os.Stat(e.path(name)); err == nil {
			return true
		}
	}
	return false
}
