package uart_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// A board that waits is not made to wait: a reading takes what its bytes and the board itself take. One that does not just wait is
// given its silence first.
func TestReadingTime(t *testing.T) {
	for name, c := range map[string]struct {
		dialect string
		fault   func(*fixtures.Board)
		typed   string        // before the reader comes
		least   time.Duration // besides the board's own time
		most    time.Duration
	}{
		"ti-at 1.1.2":          {"ti-at", func(b *fixtures.Board) {}, "", 0, time.Millisecond},
		"ti-at 1.1.1":          {"ti-at", func(b *fixtures.Board) { b.Build = fixtures.Build111 }, "", 0, time.Millisecond},
		"ti-at text mode":      {"ti-at", func(b *fixtures.Board) { b.Build = fixtures.BuildTextMode }, "", 0, time.Millisecond},
		"ti-at, half a line":   {"ti-at", func(b *fixtures.Board) {}, "at+te", 200 * time.Millisecond, 210 * time.Millisecond},
		"ti-at, event at once": {"ti-at", func(b *fixtures.Board) { b.Build, b.Event, b.EventIn = fixtures.Build111, event, fixtures.InPrompt }, "", 0, time.Millisecond},
		"report":               {"report", func(b *fixtures.Board) { b.Dialect = fixtures.DialectReport }, "", 0, time.Millisecond},
		"report, with a log":   {"report", func(b *fixtures.Board) { b.Dialect, b.Event = fixtures.DialectReport, "log: one\r\nlog: two" }, "", 0, time.Millisecond},
		"auto, ti-at":          {"auto", func(b *fixtures.Board) {}, "", 0, time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBoard()
				b.Quiet, b.Boot, b.Baud = true, 0, 115200
				c.fault(b)
				l := plug(t, b)
				if c.typed != "" {
					if err := l.Send(t.Context(), c.typed); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				d := mustDialect(t, c.dialect)
				before, ownBefore := b.Spent()
				start := time.Now()
				if err := d.Detect(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				report, err := d.Read(t.Context(), l)
				if err != nil || report.Device != b.Device {
					t.Fatalf("%x, %v", report.Device, err)
				}
				took := time.Since(start)
				bytes, own := b.Spent()
				waited := took - time.Duration(bytes-before)*fixtures.ByteTime(b.Baud) - (own - ownBefore)
				if waited < c.least-time.Millisecond || waited > c.most {
					t.Errorf("it took %v, of which the reader waited %v; want %v to %v", took, waited, c.least, c.most)
				}
			})
		})
	}
}

// A board that answers a carriage return and then falls silent is no board that can be read.
func TestQuickIsNotEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.Quiet, b.Boot, b.Mute = true, 0, "test"
		if err := (uart.TIAT{}).Detect(t.Context(), plug(t, b)); !errors.Is(err, uart.ErrGarbled) || !strings.Contains(err.Error(), "at+test") {
			t.Errorf("Detect: %v, want %v", err, uart.ErrGarbled)
		}
	})
}
