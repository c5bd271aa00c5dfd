package uart

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// portLock is an exclusive lock on a port, and a descriptor to write to the
// port. The serial library's own lock (TIOCEXCL) does not exclude root. This
// lock, an flock on the device as other serial programs use it, does.
type portLock struct{ fd int }

func lockPort(path string) (*portLock, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, os.NewSyscallError("flock", err)
	}
	return &portLock{fd}, nil
}

// write writes what there is room for now: nothing and no error is no room.
func (l *portLock) write(b []byte) (int, error) {
	n, err := unix.Write(l.fd, b)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, nil
	case err != nil:
		return 0, os.NewSyscallError("write", err)
	}
	return n, nil
}

// awaitRoom waits until there may be room to write, for so long at most.
func (l *portLock) awaitRoom(limit time.Duration) {
	// Whatever it returns, the next write tells what is wrong.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLOUT}}, int(limit.Milliseconds()))
}

// modemBits are the modem lines as the kernel has them now.
func (l *portLock) modemBits() (int, error) {
	bits, err := unix.IoctlGetInt(l.fd, unix.TIOCMGET)
	return bits, os.NewSyscallError("TIOCMGET", err)
}

func (l *portLock) settings() (*unix.Termios, error) {
	settings, err := unix.IoctlGetTermios(l.fd, unix.TCGETS)
	return settings, os.NewSyscallError("TCGETS", err)
}

// silence ends the echo of the terminal driver. A port that was never opened
// has it, so what a board prints between the open and the library's own
// settings would come back to the board as something typed.
func (l *portLock) silence() error {
	settings, err := l.settings()
	if err != nil {
		return err
	}
	settings.Lflag &^= unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	return os.NewSyscallError("TCSETS", unix.IoctlSetTermios(l.fd, unix.TCSETS, settings))
}

// setHangUp says whether the kernel drops the modem outputs at the last close.
func (l *portLock) setHangUp(drop bool) error {
	settings, err := l.settings()
	if err != nil {
		return err
	}
	settings.Cflag &^= unix.HUPCL
	if drop {
		settings.Cflag |= unix.HUPCL
	}
	return os.NewSyscallError("TCSETS", unix.IoctlSetTermios(l.fd, unix.TCSETS, settings))
}

func (l *portLock) release() { unix.Close(l.fd) }
