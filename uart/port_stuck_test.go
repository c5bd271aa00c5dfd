package uart_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// fill writes to a port that nobody reads from until it takes no more, and
// returns the error that says so.
func fill(c uart.Conn) error {
	for command := make([]byte, 80); ; {
		if _, err := c.Write(command); err != nil {
			return err
		}
	}
}

// A port that takes nothing is an error with a name, within a time that people
// wait.
func TestStuckPortEndsWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slot-a")
	port, err := fixtures.OpenPort(path)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	c, err := uart.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- fill(c) }()
	select {
	case err := <-ended:
		if !errors.Is(err, uart.ErrStuck) {
			t.Errorf("Write: %v, want %v", err, uart.ErrStuck)
		}
	case <-time.After(time.Minute):
		t.Fatal("the Write does not end")
	}
	closePort(t, c)
	// What was stuck is not there any more for the next one.
	if c, err = uart.Open(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 1024)); err != nil {
		t.Errorf("Write to the port when it was opened again: %v", err)
	}
	closePort(t, c)
}

// Close ends a Write that waits for room.
func TestCloseEndsWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slot-a")
	port, err := fixtures.OpenPort(path)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	c, err := uart.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(c); !errors.Is(err, uart.ErrStuck) {
		t.Fatalf("Write: %v, want %v", err, uart.ErrStuck)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("at+test\r"))
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("Write to a full port: %v at once", err)
	case <-time.After(100 * time.Millisecond):
	}
	closePort(t, c)
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write: %v, want %v", err, os.ErrClosed)
		}
	default:
		t.Error("Close has returned, and the Write has not")
		<-ended
	}
}

func closePort(t *testing.T, c uart.Conn) {
	t.Helper()
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Errorf("Close: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Close hangs")
	}
}
