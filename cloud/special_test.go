package cloud

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"secretfree/station/board"
)

// An item that is a pipe or a device holds no request: it is damage.
func TestItemIsNoRegularFile(t *testing.T) {
	device := board.DeviceID{1}
	for name, make := range map[string]func(path string) error{
		"a pipe":     func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"a folder":   func(path string) error { return os.Mkdir(path, 0o755) },
		"a terminal": func(path string) error { return os.Symlink("/dev/tty", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "registry")
			if err := InitDir(path); err != nil {
				t.Fatal(err)
			}
			d, err := OpenDir(DirConfig{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			items := filepath.Join(path, "items")
			if err := os.MkdirAll(items, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := make(filepath.Join(items, device.String()+".json")); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Lookup(t.Context(), device); err == nil || errors.Is(err, board.ErrNotEnrolled) {
				t.Errorf("looked up: %v", err)
			}
		})
	}
}
