package uart

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// usbPort makes what the kernel shows of a port of a USB device.
func usbPort(t *testing.T, sys, bus, vendor, product, number, name string) {
	t.Helper()
	device := filepath.Join(sys, "devices/pci/usb1", bus)
	face := filepath.Join(device, bus+":1."+number)
	files := map[string]string{
		filepath.Join(device, "idVendor"):       vendor,
		filepath.Join(device, "idProduct"):      product,
		filepath.Join(face, "bInterfaceNumber"): fmt.Sprintf("%02s", number),
	}
	target := face
	if strings.HasPrefix(name, "ttyUSB") { // one level deeper than ttyACM
		target = filepath.Join(face, name)
	}
	class := filepath.Join(sys, "class/tty", name)
	for _, dir := range []string{target, class} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for file, text := range files {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(target, filepath.Join(class, "device")); err != nil {
		t.Fatal(err)
	}
}

func TestResolve(t *testing.T) {
	p := sysPaths{sys: t.TempDir(), dev: "/dev"}
	if err := os.MkdirAll(filepath.Join(p.sys, "class/tty/tty1"), 0o700); err != nil { // a console: on no bus
		t.Fatal(err)
	}
	if path, err := p.resolve("/dev/serial/by-id/x"); path != "/dev/serial/by-id/x" || err != nil {
		t.Errorf("a path: %q, %v", path, err)
	}
	if _, err := p.resolve("auto:0451:bef3"); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "0451:bef3") {
		t.Errorf("no probe: %v, want %v", err, ErrAbsent)
	}
	// An XDS110 has two ports; the application's is interface 0, whatever the
	// numbers of the ports.
	usbPort(t, p.sys, "1-1", "0451", "bef3", "3", "ttyACM0")
	usbPort(t, p.sys, "1-1", "0451", "bef3", "0", "ttyACM1")
	usbPort(t, p.sys, "1-2", "0403", "6001", "0", "ttyUSB0")
	for address, want := range map[string]string{"auto:0451:bef3": "/dev/ttyACM1", "auto:0403:6001": "/dev/ttyUSB0"} {
		if path, err := p.resolve(address); path != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", address, path, err, want)
		}
	}
	usbPort(t, p.sys, "1-3", "0451", "bef3", "0", "ttyACM2")
	if _, err := p.resolve("auto:0451:bef3"); !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), "/dev/ttyACM1, /dev/ttyACM2") || !strings.Contains(err.Error(), "by-path") {
		t.Errorf("two probes: %v, want %v with both, and the remedy", err, ErrAmbiguous)
	}
}

func TestCheckAddress(t *testing.T) {
	for _, good := range []string{"/dev/ttyUSB0", "auto:0451:bef3"} {
		if err := CheckAddress(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "ttyUSB0", "auto:", "auto:451:bef3", "auto:0451:BEF3", "auto:0451:bef3:1"} {
		if CheckAddress(bad) == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestOpenErrorNamesRemedy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The group is named only where it would help to be in it.
	for mode, want := range map[os.FileMode]string{
		0o660: "it belongs to the group ", 0o664: "it belongs to the group ",
		0o600: "its mode 0600 does not let its group (", 0o640: "make the mode 0660", 0o602: "its mode 0602 does not let its group (",
		0o666: "its mode 0666 lets everyone in", 0o606: "its mode 0606 lets everyone in",
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		denied := explainOpen(path, os.NewSyscallError("open", unix.EACCES))
		if !errors.Is(denied, ErrPermission) || !strings.Contains(denied.Error(), want) || (denied.Group == "") != strings.Contains(want, "mode") {
			t.Errorf("mode %04o: %v (group %q), want %q", mode, denied, denied.Group, want)
		}
	}
	absent := explainOpen(path+"-absent", os.NewSyscallError("open", unix.EACCES))
	if absent.Group != "" || absent.Change != "" || !errors.Is(absent, ErrPermission) {
		t.Errorf("of a port that cannot be looked at: %v", absent)
	}
	if other := explainOpen(path, unix.EMFILE); other.Kind != nil || !errors.Is(other, unix.EMFILE) {
		t.Errorf("another cause: %#v", other)
	}
}
