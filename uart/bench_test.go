package uart_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

func benchBoard() *fixtures.Board {
	return &fixtures.Board{
		Device: fixtures.NewDevice(), Key: fixtures.NewKey(), Quiet: true,
		Baud: 115200, Think: 2 * time.Millisecond, Sign: 20 * time.Millisecond,
	}
}

// floor is the least that a dialogue with b can have taken so far: all that the board printed, at ten bits a byte, and
// the board's own time. What we sent is in that once, as its echo. It goes out while the echo comes back, one byte
// behind; that one byte a command is left out, because the simulated line does not pace what it receives.
func floor(b *fixtures.Board) time.Duration {
	bytes, own := b.Spent()
	return time.Duration(bytes)*fixtures.ByteTime(b.Baud) + own
}

// Reading waits for nothing but the line and the board. Detecting waits, besides, for the silence that tells a
// board that is idle from one that was cut off.
func TestReadTakesTheLeast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := benchBoard()
		l := plug(t, b)
		d := uart.TIAT{}
		start := time.Now()
		if err := d.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if took, want := time.Since(start), floor(b)+200*time.Millisecond; took != want {
			t.Errorf("Detect took %v, want %v", took, want)
		}
		if _, err := d.Read(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if took, want := time.Since(start), floor(b)+200*time.Millisecond; took != want {
			t.Errorf("Detect and Read took %v, want %v", took, want)
		}
	})
}

// BenchmarkRead reads a board over a pseudo-terminal, through the real port, and sets the time against the floor; Read
// without Detect also against a loop that sends the same commands to another such board and understands
// nothing. How late the simulation is with its bytes is in both of them, and in the floor not at all. All ratios are
// our time over the other: 1 is the best.
func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	open := func(name string) (*fixtures.Port, string) {
		path := filepath.Join(dir, name)
		port, err := fixtures.OpenPort(path)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { port.Close() })
		return port, path
	}
	port, path := open("slot-a")
	c, err := uart.Open(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	barePort, barePath := open("slot-b")
	bareLine, err := os.OpenFile(barePath, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer bareLine.Close()
	defer keepAwake()()

	serve := func(port *fixtures.Port, board *fixtures.Board) (stop func()) {
		ctx, cancel := context.WithCancel(b.Context())
		served := make(chan error, 1)
		go func() { served <- port.Serve(ctx, board) }()
		return func() {
			cancel()
			if err := <-served; err != nil {
				b.Fatal(err)
			}
		}
	}
	var detecting, reading, bare, detectFloor, readFloor time.Duration
	for b.Loop() {
		board := benchBoard()
		stop := serve(port, board)
		l := uart.NewLine(c, uart.LineOptions{})
		d := uart.TIAT{}
		start := time.Now()
		if err := d.Detect(b.Context(), l); err != nil {
			b.Fatal(err)
		}
		detected, floorThen, typed := time.Now(), floor(board), len(board.Typed())
		report, err := d.Read(b.Context(), l)
		if err != nil || report.Device != board.Device {
			b.Fatalf("read %x, %v", report.Device, err)
		}
		detecting += detected.Sub(start)
		reading += time.Since(detected)
		detectFloor += floorThen
		readFloor += floor(board) - floorThen
		stop()

		stop = serve(barePort, benchBoard())
		if err := ask(bareLine, "at+test"); err != nil { // it has started
			b.Fatal(err)
		}
		start = time.Now()
		for _, command := range board.Typed()[typed:] {
			if err := ask(bareLine, command); err != nil {
				b.Fatal(err)
			}
		}
		bare += time.Since(start)
		stop()
	}
	b.ReportMetric(float64(detecting+reading)/float64(detectFloor+readFloor), "of-floor")
	b.ReportMetric(float64(reading)/float64(readFloor), "read-of-floor")
	b.ReportMetric(float64(reading)/float64(bare), "read-of-bare")
	b.ReportMetric(float64((detecting+reading).Milliseconds())/float64(b.N), "ms/board")
}

// ask sends a command and reads to the end of its answer.
func ask(line io.ReadWriter, command string) error {
	if _, err := io.WriteString(line, command+"\r"); err != nil {
		return err
	}
	var heard []byte
	for buf := make([]byte, 256); ; {
		n, err := line.Read(buf)
		if err != nil {
			return err
		}
		heard = append(heard, buf[:n]...)
		if bytes.HasSuffix(heard, []byte("\n\rOK\n\r")) || bytes.Contains(heard, []byte("ERROR")) && bytes.HasSuffix(heard, []byte("\n\r")) {
			return nil
		}
	}
}

// keepAwake keeps the scheduler from sleeping. Otherwise it rounds the board's sleeps of 87 µs up to a millisecond, and
// every character of an echo takes so long.
func keepAwake() (stop func()) {
	stopping, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stopping:
				return
			default:
				runtime.Gosched()
			}
		}
	}()
	return func() {
		close(stopping)
		<-stopped
	}
}
