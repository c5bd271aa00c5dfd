package uart_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// A board that waits is not made to wait: a reading takes what its bytes and
// the board itself take. One that does not just wait is given its silence
// first.
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
		"auto, report":         {"auto/report", func(b *fixtures.Board) { b.Dialect = fixtures.DialectReport }, "", 0, time.Millisecond},
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

// starter is firmware of the dialect report that says something at once,
// listens only later, and has a UART that holds 32 bytes while it is busy: two
// pings, but no nonce.
type starter struct {
	board *fixtures.Board
	log   string
	after time.Duration // then it listens

	mu   sync.Mutex
	busy bool
	in   []byte
}

func (s *starter) serve(c net.Conn) {
	s.busy = true
	var ended atomic.Bool
	go func() {
		for buf := make([]byte, 64); ; {
			n, err := c.Read(buf)
			if err != nil {
				ended.Store(true)
				return
			}
			s.mu.Lock()
			if s.in = append(s.in, buf[:n]...); s.busy {
				s.in = s.in[:min(32, len(s.in))]
			}
			s.mu.Unlock()
		}
	}()
	io.WriteString(c, s.log)
	for pause := s.after; !ended.Load(); pause = time.Millisecond {
		time.Sleep(pause)
		s.mu.Lock()
		s.busy = false
		line, mine := "", false
		for whole := true; whole && !mine; mine = line == "secretfree 1" || strings.HasPrefix(line, "secretfree 1 ") {
			var rest string
			if line, rest, whole = strings.Cut(string(s.in), ";"); whole {
				s.in = []byte(rest)
			} else {
				line = ""
			}
		}
		s.busy = mine
		s.mu.Unlock()
		if !mine {
			continue
		}
		time.Sleep(30 * time.Millisecond)
		answer := fmt.Sprintf("secretfree 1 ready %x", s.board.Device)
		if nonce := strings.TrimPrefix(line, "secretfree 1 "); nonce != line {
			signature, err := s.board.Signature(fmt.Appendf(nil, "secretfree 1 %s %x", nonce, s.board.Device))
			if err != nil {
				return
			}
			answer = fmt.Sprintf("secretfree 1 %x %x %x", s.board.Device, s.board.SPKI(), signature)
		}
		s.mu.Lock()
		s.busy = strings.Count(string(s.in), ";") > 1 // the next one is at hand
		s.mu.Unlock()
		if _, err := io.WriteString(c, sumUp(answer)); err != nil {
			return
		}
	}
}

// Pings that were sent while a board started are answered when it listens. The
// nonce is not sent into those answers: it would be lost, and the reader would
// wait for a signature.
func TestEarlierPingsAreAwaited(t *testing.T) {
	for _, dialect := range []string{"report", "auto/report"} {
		for _, log := range []string{"", "boot\r\n"} {
			for _, after := range []time.Duration{0, 400 * time.Millisecond, 900 * time.Millisecond, 1400 * time.Millisecond, 2 * time.Second} {
				synctest.Test(t, func(t *testing.T) {
					ours, theirs := net.Pipe()
					b := newBoard()
					var serving sync.WaitGroup
					serving.Go(func() { (&starter{board: b, log: log, after: after}).serve(theirs) })
					defer serving.Wait()
					defer theirs.Close()
					defer ours.Close()
					l := uart.NewLine(ours, uart.LineOptions{})
					d := mustDialect(t, dialect)
					start := time.Now()
					if err := d.Detect(t.Context(), l); err != nil {
						t.Fatal(err)
					}
					report, err := d.Read(t.Context(), l)
					if err != nil || report.Device != b.Device {
						t.Fatalf("%s: a start of %v with the log %q: %x, %v", dialect, after, log, report.Device, err)
					}
					if took := time.Since(start); took > after+4*time.Second {
						t.Errorf("%s: a start of %v with the log %q, and it took %v", dialect, after, log, took)
					}
				})
			}
		}
	}
}

// A board that answers a carriage return and then falls silent is no board that
// can be read.
func TestEchoAloneIsNotIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.Quiet, b.Boot, b.Mute = true, 0, "test"
		if err := (uart.TIAT{}).Detect(t.Context(), plug(t, b)); !errors.Is(err, uart.ErrNoDialect) {
			t.Errorf("Detect: %v, want %v", err, uart.ErrNoDialect)
		}
	})
}
