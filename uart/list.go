package uart

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// Listed describes a serial port of this machine.
type Listed struct {
	// Path is the name that lasts longest: under /dev/serial/by-path, where
	// that is the socket of the hub, else by-id, else the device itself.
	Path    string
	Device  string // as "/dev/ttyUSB0"
	Vendor  string // of USB, four hex digits; empty on another bus
	Product string
	Adapter string // what the adapter says of itself, for people: printable and short; empty if nothing
	Port    int    // of a USB adapter with several ports, which of them this is, from 1, by the interface
	Ports   int    // how many it has
}

// Silent reports whether this is the second port of an XDS110, on which no
// board ever speaks.
func (l Listed) Silent() bool { return l.Vendor == "0451" && l.Product == "bef3" && l.Port > 1 }

// List returns the serial ports of this machine, by path; those with a lasting
// name come first. The placeholders that the kernel keeps for ports that a PC
// might have had (/dev/ttyS*) are left out. It opens none.
func List() ([]Listed, error) { return defaultPaths().list() }

func (p sysPaths) list() ([]Listed, error) {
	names, err := os.ReadDir(filepath.Join(p.sys, "class/tty"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the serial ports: %w", err)
	}
	lasting := p.lasting()
	var all []Listed
	numbers, adapters := map[string]int64{}, map[string][]int{} // by device; indices by adapter
	for _, name := range names {
		class := filepath.Join(p.sys, "class/tty", name.Name())
		bus, err := filepath.EvalSymlinks(filepath.Join(class, "device"))
		if err != nil {
			continue // a console, or another thing that is on no bus
		}
		if kind, ok := attribute(class, "type"); ok && kind == "0" {
			continue // a placeholder: no chip was found
		}
		l := Listed{Device: filepath.Join(p.dev, name.Name()), Port: 1, Ports: 1}
		if _, err := os.Stat(l.Device); err != nil {
			continue // in a container: the kernel has it, and this machine does not
		}
		l.Path = l.Device
		if path, ok := lasting[l.Device]; ok {
			l.Path = path
		}
		if usb, ok := findUSB(bus); ok {
			l.Vendor, l.Product, l.Adapter = usb.vendor, usb.product, usb.describe()
			numbers[l.Device] = usb.number
			adapters[usb.dir] = append(adapters[usb.dir], len(all))
		}
		all = append(all, l)
	}
	for _, ports := range adapters {
		slices.SortFunc(ports, func(a, b int) int { return int(numbers[all[a].Device] - numbers[all[b].Device]) })
		for n, i := range ports {
			all[i].Port, all[i].Ports = n+1, len(ports)
		}
	}
	slices.SortFunc(all, func(a, b Listed) int {
		if x, y := a.Path == a.Device, b.Path == b.Device; x != y {
			if x {
				return 1
			}
			return -1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return all, nil
}

// lasting maps devices to the best name that udev gave them.
func (p sysPaths) lasting() map[string]string {
	out := map[string]string{}
	for _, kind := range []string{"by-path", "by-id"} {
		dir := filepath.Join(p.dev, "serial", kind)
		links, err := os.ReadDir(dir) // sorted: of two names for one socket (-usb-, -usbv2-) the plain one comes first
		if err != nil {
			continue // there is no udev, or no such port
		}
		for _, link := range links {
			path := filepath.Join(dir, link.Name())
			device, err := filepath.EvalSymlinks(path)
			if err != nil {
				continue
			}
			if _, have := out[device]; !have {
				out[device] = path
			}
		}
	}
	return out
}

// usb is the device that a port belongs to.
type usb struct {
	dir             string
	number          int64 // of the interface
	vendor, product string
}

// findUSB walks from a port's device up to the USB device that has a vendor and
// a product, and past the interface on the way.
func findUSB(dir string) (u usb, ok bool) {
	for ; len(dir) > 1; dir = filepath.Dir(dir) {
		if text, ok := attribute(dir, "bInterfaceNumber"); ok {
			number, err := strconv.ParseInt(text, 16, 16)
			if err != nil {
				return usb{}, false
			}
			u.number = number
		}
		if vendor, ok := attribute(dir, "idVendor"); ok {
			u.dir, u.vendor = dir, vendor
			u.product, _ = attribute(dir, "idProduct")
			return u, true
		}
	}
	return usb{}, false
}

// describe builds a printable text from what the USB device reports.
func (u usb) describe() string {
	var parts []string
	for _, name := range []string{"manufacturer", "product"} {
		if text, ok := attribute(u.dir, name); ok && text != "" {
			parts = append(parts, text)
		}
	}
	if serial, ok := attribute(u.dir, "serial"); ok && serial != "" {
		parts = append(parts, "("+serial+")")
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.Join(parts, " "))
	const longest = 80
	if runes := []rune(text); len(runes) > longest {
		text = string(runes[:longest]) + "…"
	}
	return text
}

// User is the user of MayOpen, with all groups.
type User struct {
	UID  uint32
	GIDs []uint32
}

// MayOpen checks, from the mode of a port and without opening it, whether a
// user may read and write it. The error is an *OpenError whose Kind is
// ErrAbsent, ErrNotAPort or ErrPermission. Access control lists and the
// restrictions of a container or a unit are not considered.
func MayOpen(path string, u User) error {
	var device unix.Stat_t
	if err := unix.Stat(path, &device); err != nil {
		return explainOpen(path, os.NewSyscallError("stat", err))
	}
	if device.Mode&unix.S_IFMT != unix.S_IFCHR {
		return explainOpen(path, ErrNotAPort)
	}
	shift := 0
	switch {
	case u.UID == 0:
		return nil
	case device.Uid == u.UID:
		shift = 6
	case slices.Contains(u.GIDs, device.Gid):
		shift = 3
	}
	if device.Mode>>shift&0o6 != 0o6 {
		return explainOpen(path, ErrPermission)
	}
	return nil
}

// Holder names the other processes that have a port open, as "minicom (process
// 4711)", as far as permissions allow; empty if there are none.
func Holder(path string) string { return holder(path) }
