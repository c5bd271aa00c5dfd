package uart_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

func TestPort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slot-a")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	if _, err := uart.Open(ctx, path); !errors.Is(err, uart.ErrAbsent) {
		t.Fatalf("no port: %v, want %v", err, uart.ErrAbsent)
	}
	if _, err := uart.Open(ctx, t.TempDir()); !errors.Is(err, uart.ErrNotAPort) {
		t.Fatalf("a folder: %v, want %v", err, uart.ErrNotAPort)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := uart.Open(ctx, file); !errors.Is(err, uart.ErrNotAPort) {
		t.Fatalf("a file: %v, want %v", err, uart.ErrNotAPort)
	}

	// The port appears while somebody waits for it.
	opened := make(chan uart.Conn, 1)
	go func() {
		c, err := uart.Wait(ctx, path)
		if err != nil {
			t.Error(err)
		}
		opened <- c
	}()
	port, err := fixtures.OpenPort(path)
	if err != nil {
		t.Fatal(err)
	}
	c := <-opened
	if c == nil {
		t.FailNow()
	}

	// A deadline ends a read, and one set from elsewhere ends it at once.
	if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after the deadline: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("after the deadline: %v", err)
	}

	// A board is read.
	b := &fixtures.Board{Device: fixtures.NewDevice(), Key: fixtures.NewKey()}
	boardCtx, remove := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- port.Serve(boardCtx, b) }()
	l := uart.NewLine(c, uart.LineOptions{})
	d := uart.TIAT{}
	if err := d.Detect(ctx, l); err != nil {
		t.Fatal(err)
	}
	report, err := d.Read(ctx, l)
	if err != nil || report.Device != b.Device {
		t.Fatalf("Read: %x, %v", report.Device, err)
	}

	// Unplugged, and our own close, are told apart.
	gone := make(chan error, 1)
	go func() { gone <- d.Gone(ctx, l) }()
	remove()
	if err := <-served; err != nil {
		t.Error(err)
	}
	port.Close()
	if err := <-gone; err != nil && !errors.Is(err, uart.ErrUnplugged) {
		t.Errorf("Gone: %v, want nil or %v", err, uart.ErrUnplugged)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, uart.ErrUnplugged) {
		t.Errorf("Read after the unplugging: %v, want %v", err, uart.ErrUnplugged)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v, want %v", err, os.ErrClosed)
	}

	if port, err = fixtures.OpenPort(path); err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if c, err = uart.Open(ctx, path); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { c.Close() })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) || errors.Is(err, uart.ErrUnplugged) {
		t.Errorf("Read while closed: %v, want %v", err, os.ErrClosed)
	}
	cancel()
	if _, err := uart.Wait(ctx, filepath.Join(t.TempDir(), "never")); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v, want %v", err, context.Canceled)
	}
}

// Whoever comes second is told who was first; root is no exception.
func TestPortOpensExclusively(t *testing.T) {
	path := filepath.Join(t.TempDir(), "slot-a")
	port, err := fixtures.OpenPort(path)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	first, err := uart.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = uart.Open(t.Context(), path)
	var refused *uart.OpenError
	if !errors.Is(err, uart.ErrBusy) || !errors.As(err, &refused) {
		t.Fatalf("a second one: %v, want %v", err, uart.ErrBusy)
	}
	if want := fmt.Sprintf("(process %d)", os.Getpid()); !strings.Contains(refused.Holder, want) || !strings.Contains(err.Error(), want) {
		t.Errorf("the holder is %q in %q, want %q", refused.Holder, err, want)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := uart.Open(t.Context(), path)
	if err != nil {
		t.Fatalf("after the first has closed: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}
