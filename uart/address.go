package uart

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// ErrAmbiguous: "auto:" fits more than one probe.
var ErrAmbiguous = errors.New("more than one probe fits")

var autoPattern = regexp.MustCompile(`^auto:([0-9a-f]{4}):([0-9a-f]{4})$`)

// CheckAddress returns an error unless address is a form that Open accepts: an
// absolute path, or "auto:<vid>:<pid>" with the USB vendor and product in four
// hex digits, for a fixture with one probe of that kind.
func CheckAddress(address string) error {
	if filepath.IsAbs(address) || autoPattern.MatchString(address) {
		return nil
	}
	return fmt.Errorf("%q is neither an absolute path nor auto:<vid>:<pid> with four lower-case hex digits each", address)
}

// sysPaths are the directories of the kernel's ports; tests use their own.
type sysPaths struct{ sys, dev string }

func defaultPaths() sysPaths { return sysPaths{sys: "/sys", dev: "/dev"} }

// resolve returns the path of a port. Of a probe with several ports it chooses
// the port with the lowest interface number: on an XDS110 that is the
// application's port, and the other port is silent.
func (p sysPaths) resolve(address string) (string, error) {
	m := autoPattern.FindStringSubmatch(address)
	if m == nil {
		return address, nil
	}
	type found struct {
		name   string
		number int64 // of the interface
	}
	probes := map[string]found{} // by the USB device
	names, err := os.ReadDir(filepath.Join(p.sys, "class/tty"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("looking for a probe: %w", err)
	}
	for _, name := range names {
		device, number, ok := usbDevice(filepath.Join(p.sys, "class/tty", name.Name(), "device"), m[1], m[2])
		if !ok {
			continue
		}
		if best, have := probes[device]; !have || number < best.number {
			probes[device] = found{name: name.Name(), number: number}
		}
	}
	if len(probes) == 0 {
		return "", fmt.Errorf("%w: no probe %s:%s is plugged in", ErrAbsent, m[1], m[2])
	}
	var ports []string
	for _, f := range probes {
		ports = append(ports, filepath.Join(p.dev, f.name))
	}
	if len(ports) > 1 {
		slices.Sort(ports)
		return "", fmt.Errorf("%w: %s; name the port of each slot by its path under /dev/serial/by-path", ErrAmbiguous, strings.Join(ports, ", "))
	}
	return ports[0], nil
}

// usbDevice finds the USB device of a port's device, and reports whether it is
// of a vendor and a product.
func usbDevice(link, vendor, product string) (device string, number int64, ok bool) {
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return "", 0, false // a port that is not on a bus
	}
	u, ok := findUSB(dir)
	return u.dir, u.number, ok && u.vendor == vendor && u.product == product
}

func attribute(dir, name string) (string, bool) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(text)), err == nil
}
