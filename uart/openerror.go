package uart

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"go.bug.st/serial"
	"golang.org/x/sys/unix"
)

// OpenError reports why a port cannot be opened, and what is needed to open it.
type OpenError struct {
	Path string
	// Kind is ErrAbsent, ErrBusy, ErrPermission, ErrNotAPort, ErrNoLines or
	// ErrAmbiguous; nil for any other cause.
	Kind   error
	Holder string // of ErrBusy: who holds the port, as "minicom (process 4711)"; empty if it cannot be seen
	Group  string // of ErrPermission: the group that may use the port, by its mode; empty if there is none, or it is not known
	// Change says, of ErrPermission without a Group, what keeps the port shut
	// and what to change; empty if that is not known.
	Change string
	Cause  error
}

func (e *OpenError) Error() string {
	switch {
	case e.Holder != "":
		return fmt.Sprintf("opening %s: %v: %s", e.Path, e.Kind, e.Holder)
	case e.Group != "":
		return fmt.Sprintf("opening %s: %v: it belongs to the group %s", e.Path, e.Kind, e.Group)
	case e.Change != "":
		return fmt.Sprintf("opening %s: %v: %s", e.Path, e.Kind, e.Change)
	}
	return fmt.Sprintf("opening %s: %v", e.Path, e.Cause)
}

// Unwrap returns the cause, which wraps the kind.
func (e *OpenError) Unwrap() error { return e.Cause }

// filtered is what to change where a device filter keeps a port shut: systemd
// looks the kinds of DeviceAllow= up in /proc/devices when it starts a unit.
const filtered = "the device filter of the unit or of the container does not let it in; add its kind to DeviceAllow= of the unit, or restart the station if the driver of the port was loaded after its start"

func explainOpen(path string, cause error) *OpenError {
	e := &OpenError{Path: path, Kind: openKind(cause), Cause: cause}
	if e.Kind != nil && !errors.Is(cause, e.Kind) {
		e.Cause = fmt.Errorf("%w (%w)", e.Kind, cause)
	}
	if isDead(cause) && exists(path) {
		e.Cause = fmt.Errorf("%w (%w)", ErrDead, e.Cause)
	}
	switch e.Kind {
	case ErrBusy:
		e.Holder = holder(path)
	case ErrPermission:
		e.Group, e.Change = mayOpen(path)
		if errors.Is(cause, syscall.EPERM) { // of a mode it is EACCES
			e.Group, e.Change = "", filtered
		}
	}
	return e
}

// isDead reports whether err comes from a driver that has lost its device.
func isDead(err error) bool {
	return errors.Is(err, syscall.ENXIO) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EIO)
}

func exists(path string) bool {
	var device unix.Stat_t
	return unix.Stat(path, &device) == nil
}

func openKind(err error) error {
	var portError *serial.PortError
	switch {
	case errors.Is(err, ErrNoLines):
		return ErrNoLines
	case errors.Is(err, ErrAmbiguous):
		return ErrAmbiguous
	case errors.Is(err, ErrAbsent), errors.Is(err, fs.ErrNotExist), isDead(err):
		return ErrAbsent
	case errors.Is(err, ErrBusy), errors.Is(err, syscall.EBUSY):
		return ErrBusy
	case errors.Is(err, ErrPermission), errors.Is(err, fs.ErrPermission):
		return ErrPermission
	case errors.Is(err, ErrNotAPort), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTTY):
		return ErrNotAPort
	case errors.As(err, &portError):
		switch portError.Code() {
		case serial.PortBusy:
			return ErrBusy
		case serial.PermissionDenied:
			return ErrPermission
		case serial.PortNotFound:
			return ErrAbsent
		case serial.InvalidSerialPort:
			return ErrNotAPort
		}
	}
	return nil
}

// holder names the processes that have a port open, as far as permissions
// allow.
func holder(path string) string {
	var device unix.Stat_t
	if err := unix.Stat(path, &device); err != nil {
		return ""
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	var holders []string
	for _, fd := range fds {
		var other unix.Stat_t
		if unix.Stat(fd, &other) != nil || other.Mode&unix.S_IFMT != unix.S_IFCHR || other.Rdev != device.Rdev {
			continue
		}
		process, _, _ := strings.Cut(strings.TrimPrefix(fd, "/proc/"), "/")
		name, err := os.ReadFile(filepath.Join("/proc", process, "comm"))
		if err != nil {
			continue
		}
		if text := fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), process); !slices.Contains(holders, text) {
			holders = append(holders, text)
		}
	}
	return strings.Join(holders, ", ")
}

// mayOpen tells which group the mode of a port lets in; or, if it lets in none
// that could be joined, what to change.
func mayOpen(path string) (group, change string) {
	var device unix.Stat_t
	if err := unix.Stat(path, &device); err != nil {
		return "", ""
	}
	id := strconv.FormatUint(uint64(device.Gid), 10)
	group = id
	if known, err := user.LookupGroupId(id); err == nil {
		group = known.Name
	}
	const others, members = 0o006, 0o060
	mode := device.Mode & 0o777
	switch {
	case mode&others == others:
		return "", fmt.Sprintf("its mode %04o lets everyone in, so something else forbids it: a container, or a security module", mode)
	case mode&members != members:
		return "", fmt.Sprintf("its mode %04o does not let its group (%s) read and write; have a udev rule make the mode 0660 and the group one that the station's user is in, often dialout", mode, group)
	}
	return group, ""
}
