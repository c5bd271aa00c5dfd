package uart

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
)

// The ports that there are, by their lasting names, and nothing that only looks
// like one.
func TestList(t *testing.T) {
	root := t.TempDir()
	p := sysPaths{sys: filepath.Join(root, "sys"), dev: filepath.Join(root, "dev")}
	if list, err := p.list(); len(list) != 0 || err != nil {
		t.Fatalf("a machine without ports: %+v, %v", list, err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(name, target string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	usbPort(t, p.sys, "1-1", "0451", "bef3", "3", "ttyACM0")
	usbPort(t, p.sys, "1-1", "0451", "bef3", "0", "ttyACM1")
	usbPort(t, p.sys, "1-2", "0403", "6001", "0", "ttyUSB0")
	usbPort(t, p.sys, "1-3", "1a86", "7523", "0", "ttyUSB1")
	usbPort(t, p.sys, "1-4", "1a86", "7523", "0", "ttyUSB7") // not in this container
	write(filepath.Join(p.sys, "devices/pci/usb1/1-2/manufacturer"), "FT\x1b[31mDI\n")
	write(filepath.Join(p.sys, "devices/pci/usb1/1-2/product"), "FT232R USB UART\n")
	write(filepath.Join(p.sys, "devices/pci/usb1/1-2/serial"), "A50285BI\n")
	if err := os.MkdirAll(filepath.Join(p.sys, "class/tty/tty1"), 0o700); err != nil { // a console
		t.Fatal(err)
	}
	for name, kind := range map[string]string{"ttyS0": "4", "ttyS1": "0", "ttyAMA0": "32", "ttymxc1": "62"} {
		write(filepath.Join(p.sys, "class/tty", name, "type"), kind+"\n")
		write(filepath.Join(p.sys, "devices/platform/serial8250/uevent"), "")
		link(filepath.Join(p.sys, "class/tty", name, "device"), filepath.Join(p.sys, "devices/platform/serial8250"))
	}
	for _, name := range []string{"ttyACM0", "ttyACM1", "ttyUSB0", "ttyUSB1", "ttyS0", "ttyS1", "ttyAMA0", "ttymxc1", "tty1"} {
		write(filepath.Join(p.dev, name), "")
	}
	path := filepath.Join(p.dev, "serial/by-path")
	link(filepath.Join(path, "pci-usb-0:1:1.0"), "../../ttyACM1")
	link(filepath.Join(path, "pci-usbv2-0:1:1.0"), "../../ttyACM1")
	link(filepath.Join(path, "pci-usb-0:1:1.3"), "../../ttyACM0")
	link(filepath.Join(path, "pci-usb-0:9:1.0"), "../../ttyUSB9") // dangling
	link(filepath.Join(p.dev, "serial/by-id/usb-TI"), "../../ttyACM1")
	link(filepath.Join(p.dev, "serial/by-id/usb-FTDI"), "../../ttyUSB0")

	list, err := p.list()
	if err != nil {
		t.Fatal(err)
	}
	dev := func(name string) string { return filepath.Join(p.dev, name) }
	want := []Listed{
		{Path: dev("serial/by-id/usb-FTDI"), Device: dev("ttyUSB0"), Vendor: "0403", Product: "6001", Adapter: "FT[31mDI FT232R USB UART (A50285BI)", Port: 1, Ports: 1},
		{Path: dev("serial/by-path/pci-usb-0:1:1.0"), Device: dev("ttyACM1"), Vendor: "0451", Product: "bef3", Port: 1, Ports: 2},
		{Path: dev("serial/by-path/pci-usb-0:1:1.3"), Device: dev("ttyACM0"), Vendor: "0451", Product: "bef3", Port: 2, Ports: 2},
		{Path: dev("ttyAMA0"), Device: dev("ttyAMA0"), Port: 1, Ports: 1},
		{Path: dev("ttyS0"), Device: dev("ttyS0"), Port: 1, Ports: 1},
		{Path: dev("ttyUSB1"), Device: dev("ttyUSB1"), Vendor: "1a86", Product: "7523", Port: 1, Ports: 1},
		{Path: dev("ttymxc1"), Device: dev("ttymxc1"), Port: 1, Ports: 1},
	}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Error(diff)
	}
	if list[1].Silent() || !list[2].Silent() {
		t.Error("of an XDS110 the second port is the silent one")
	}
}

func TestMayOpen(t *testing.T) {
	_, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	path := tty.Name()
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := owner(info)
	for name, c := range map[string]struct {
		path string
		user User
		mode os.FileMode
		want error
	}{
		"root":              {path, User{}, 0o000, nil},
		"the owner":         {path, User{UID: uid, GIDs: []uint32{7}}, 0o600, nil},
		"the group":         {path, User{UID: uid + 1, GIDs: []uint32{7, gid}}, 0o660, nil},
		"another user":      {path, User{UID: uid + 1, GIDs: []uint32{gid + 1}}, 0o660, ErrPermission},
		"a group that only": {path, User{UID: uid + 1, GIDs: []uint32{gid}}, 0o640, ErrPermission},
		"everyone":          {path, User{UID: uid + 1}, 0o666, nil},
		"nothing there":     {path + "-no", User{}, 0o666, ErrAbsent},
		"a file":            {"/etc/passwd", User{}, 0o666, ErrNotAPort},
	} {
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		var open *OpenError
		if err := MayOpen(c.path, c.user); !errors.Is(err, c.want) || err != nil && !errors.As(err, &open) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if holder := Holder(path); holder == "" {
		t.Error("this test holds the port, and nobody is seen")
	}
}

func owner(info os.FileInfo) (uid, gid uint32) {
	stat := info.Sys().(*syscall.Stat_t)
	return stat.Uid, stat.Gid
}
