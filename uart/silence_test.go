package uart

import (
	"io"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// A board that prints while its port is being opened must not get its own words
// back: it would take them for something typed.
func TestOpenPortDoesNotEcho(t *testing.T) {
	board, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer board.Close()
	defer tty.Close()
	lock, err := lockPort(tty.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.release()
	print := func(text string) {
		t.Helper()
		if _, err := board.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := lock.silence(); err != nil {
		t.Fatal(err)
	}
	print("silent")
	if n, err := tty.Read(make([]byte, 6)); n != 6 || err != nil { // the driver is done with them
		t.Fatal(n, err)
	}
	settings, err := lock.settings()
	if err != nil {
		t.Fatal(err)
	}
	settings.Lflag |= unix.ECHO
	if err := unix.IoctlSetTermios(lock.fd, unix.TCSETS, settings); err != nil {
		t.Fatal(err)
	}
	print("echoed")
	back := make([]byte, 6)
	if _, err := io.ReadFull(board, back); err != nil || string(back) != "echoed" {
		t.Errorf("the board got %q back, %v; want what was printed with the echo alone", back, err)
	}
}
