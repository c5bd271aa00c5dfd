package uart_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

func mustDialect(t *testing.T, name string) uart.Dialect {
	t.Helper()
	d, err := uart.DialectByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// noBareEnter fails if the board was sent an empty line, but for the one
// question of the CSR example that has a default: it follows the one that gets
// the nonce.
func noBareEnter(t *testing.T, b *fixtures.Board) {
	t.Helper()
	typed := b.Typed()
	for i, line := range typed {
		if line == "" && !(b.Dialect == fixtures.DialectCSR && i > 7 && len(typed[i-1]) == 21) {
			t.Errorf("an Enter alone was sent to a board of dialect %s: %q", b.Dialect, typed)
		}
	}
}

// Whatever auto remembers, whenever the board starts, it reads every dialect
// and takes at most 2 s more than the dialect itself.
func TestAuto(t *testing.T) {
	builds := map[string]func(b *fixtures.Board){
		"1.1.2": func(b *fixtures.Board) {}, "1.1.1": func(b *fixtures.Board) { b.Build = fixtures.Build111 },
		"text-mode": func(b *fixtures.Board) { b.Build = fixtures.BuildTextMode },
		"ti-csr":    func(b *fixtures.Board) { b.Dialect = fixtures.DialectCSR },
		"report":    func(b *fixtures.Board) { b.Dialect = fixtures.DialectReport },
		"events": func(b *fixtures.Board) {
			b.Build, b.Event, b.EventAt = fixtures.BuildTextMode, event, 3
		},
	}
	took := func(t *testing.T, d uart.Dialect, b *fixtures.Board) time.Duration {
		start := time.Now()
		report := mustRead(t, d, b)
		if want, _, _ := strings.Cut(d.Name(), "/"); want == "auto" && report.Facts["found-by"] != "auto" {
			t.Errorf("the facts do not say who found the dialect: %v", report.Facts)
		}
		if b.Dialect == fixtures.DialectCSR {
			noBareEnter(t, b)
		}
		return time.Since(start)
	}
	for name, change := range builds {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, late := range []bool{false, true} {
					for boot := time.Duration(0); boot < 2500*time.Millisecond; boot += 630 * time.Millisecond {
						for _, memory := range []string{"auto", "auto/ti-at", "auto/ti-csr", "auto/report"} {
							b := newBoard()
							b.Boot, b.Quiet = boot, late
							change(b)
							if late && b.Dialect == fixtures.DialectCSR {
								continue
							}
							alone := *newBoard()
							alone.Boot, alone.Quiet = boot, late
							change(&alone)
							own := fixtures.DialectAT
							if b.Dialect != "" {
								own = b.Dialect
							}
							direct := took(t, mustDialect(t, own), &alone)
							found := took(t, mustDialect(t, memory), b)
							if found > direct+2*time.Second {
								t.Errorf("boot %v, late %t, %s: %v, and %v by the dialect itself", boot, late, memory, found, direct)
							}
						}
					}
				}
			})
		})
	}
}

// A CSR board at its first question is not spoiled: it needs a reset, because
// its serial number is gone, and is read after it.
func TestAutoCSRStartMissedNeedsReset(t *testing.T) {
	for _, memory := range []string{"auto", "auto/ti-at", "auto/ti-csr", "auto/report"} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			defer theirs.Close()
			b := newCSRBoard()
			b.Quiet, b.Boot = true, 0
			remove := serve(t, b, theirs)
			l := uart.NewLine(ours, uart.LineOptions{})
			d := mustDialect(t, memory)
			if err := d.Detect(t.Context(), l); !errors.Is(err, uart.ErrNeedsReset) {
				t.Fatalf("%s: Detect: %v, want %v", memory, err, uart.ErrNeedsReset)
			}
			gone := make(chan error, 1)
			go func() { gone <- d.Gone(t.Context(), l) }()
			time.Sleep(20 * time.Second)
			noBareEnter(t, b)
			remove()
			b.Quiet, b.Boot = false, 700*time.Millisecond
			remove = serve(t, b, theirs)
			if err := <-gone; err != nil {
				t.Fatal(err)
			}
			if err := d.Detect(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			if report, err := d.Read(t.Context(), l); err != nil || report.Device != b.Device {
				t.Fatalf("after the reset: %v", err)
			}
			noBareEnter(t, b)
			remove()
		})
	}
}

// serve puts a board on a line until it is removed.
func serve(t *testing.T, b *fixtures.Board, c net.Conn) (remove func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- b.Serve(ctx, c) }()
	return func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// One slot sees boards of every dialect in every order, with and without a
// pause between them.
func TestAutoSlot(t *testing.T) {
	kinds := []string{fixtures.DialectAT, fixtures.DialectCSR, fixtures.DialectReport}
	for _, pause := range []time.Duration{0, 100 * time.Millisecond, time.Second, 20 * time.Second} {
		t.Run(fmt.Sprint(pause), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer ours.Close()
				defer theirs.Close()
				l := uart.NewLine(ours, uart.LineOptions{})
				d := mustDialect(t, "auto")
				for i := range 18 {
					b := newBoard()
					// 0 0 1 1 2 2, then 0 1 2, then 0 2 1.
					b.Dialect = kinds[[]int{0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2, 0, 2, 1, 0, 2, 1}[i]]
					b.Boot = time.Duration(i) * 130 * time.Millisecond
					remove := serve(t, b, theirs)
					ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("not seen"))
					if err := d.Detect(ctx, l); err != nil {
						t.Fatalf("board %d, %s: Detect: %v", i, b.Dialect, err)
					}
					report, err := d.Read(ctx, l)
					if err != nil || report.Device != b.Device || report.Facts["dialect"] != b.Dialect {
						t.Fatalf("board %d, %s: Read: %v", i, b.Dialect, err)
					}
					cancel()
					if b.Dialect == fixtures.DialectCSR {
						noBareEnter(t, b)
					}
					gone := make(chan error, 1)
					go func() { gone <- d.Gone(t.Context(), l) }()
					time.Sleep(7 * time.Second)
					select {
					case err := <-gone:
						t.Fatalf("board %d, %s: Gone while it is there: %v", i, b.Dialect, err)
					default:
					}
					remove()
					if pause > 0 {
						stop := swallow(theirs)
						time.Sleep(pause)
						stop()
						if pause > 5*time.Second {
							if err := <-gone; err != nil {
								t.Fatal(err)
							}
							continue
						}
					}
					// The next one is there before the last one is missed.
					next := newBoard()
					next.Dialect, next.Boot = kinds[i%3], 300*time.Millisecond
					remove = serve(t, next, theirs)
					if i%3 == 2 && b.Dialect == fixtures.DialectAT {
						// A report board is silent when it starts: it is seen
						// only when the last one is missed.
						next.Quiet = true
					}
					if err := <-gone; err != nil {
						t.Fatal(err)
					}
					ctx, cancel = context.WithTimeoutCause(t.Context(), time.Minute, errors.New("not seen"))
					if err := d.Detect(ctx, l); err != nil {
						t.Fatalf("after board %d, %s: Detect of %s: %v", i, b.Dialect, next.Dialect, err)
					}
					report, err = d.Read(ctx, l)
					cancel()
					if err != nil || report.Device != next.Device {
						t.Fatalf("after board %d, %s: Read of %s: %v", i, b.Dialect, next.Dialect, err)
					}
					if next.Dialect == fixtures.DialectCSR {
						noBareEnter(t, next)
					}
					go func() { gone <- d.Gone(t.Context(), l) }()
					time.Sleep(3 * time.Second)
					remove()
					stop := swallow(theirs)
					if err := <-gone; err != nil {
						t.Fatal(err)
					}
					stop()
				}
			})
		})
	}
}

// What auto remembers is what it met last, and its name says with what it
// began.
func TestAutoRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDialect(t, "auto")
		if d.Name() != "auto" {
			t.Errorf("at first its name is %q", d.Name())
		}
		mustRead(t, d, newReportBoard())
		if d.Name() != "auto" {
			t.Errorf("the first board was met by %q", d.Name())
		}
		mustRead(t, d, newCSRBoard())
		if d.Name() != "auto/report" {
			t.Errorf("the second board was met by %q", d.Name())
		}
		// The report board is recognised by the first thing that is tried.
		b := newReportBoard()
		b.Boot, b.Quiet = 0, true
		again := mustDialect(t, "auto/report")
		l := plug(t, b)
		if err := again.Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		text, _ := l.Transcript().Encode()
		if strings.Contains(string(text), "at+") {
			t.Errorf("something else was tried first:\n%s", text)
		}
		for _, name := range []string{"auto/", "auto/auto", "auto/nothing", "ti-at/auto", "/"} {
			if d, err := uart.DialectByName(name); err == nil {
				t.Errorf("DialectByName(%q) is %s", name, d.Name())
			}
		}
		if _, err := mustDialect(t, "auto").Read(t.Context(), l); !errors.Is(err, uart.ErrGarbled) {
			t.Errorf("Read before Detect: %v", err)
		}
	})
}

// A thing that nobody knows is not waited for for ever, and is gone when it is.
func TestAutoUnknownDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		l := uart.NewLine(ours, uart.LineOptions{})
		done := make(chan struct{})
		go func() { // a shell: it echoes, and has a prompt
			defer close(done)
			buf := make([]byte, 64)
			for {
				n, err := theirs.Read(buf)
				if err != nil {
					return
				}
				if _, err := theirs.Write([]byte(strings.ReplaceAll(string(buf[:n]), "\r", "\r\n$ "))); err != nil {
					return
				}
			}
		}()
		d := mustDialect(t, "auto")
		if err := d.Detect(t.Context(), l); !errors.Is(err, uart.ErrNoDialect) {
			t.Fatalf("Detect: %v", err)
		}
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(t.Context(), l) }()
		time.Sleep(5 * time.Second)
		select {
		case err := <-gone:
			t.Fatalf("Gone while it is there: %v", err)
		default:
		}
		theirs.SetDeadline(time.Unix(1, 0))
		<-done
		stop := swallow(theirs)
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		stop()
	})
}

// The same on a real port, in real time.
func TestAutoOnAPort(t *testing.T) {
	port, err := fixtures.OpenPort(filepath.Join(t.TempDir(), "slot-a"))
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := uart.Open(ctx, port.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l := uart.NewLine(conn, uart.LineOptions{})
	d := mustDialect(t, "auto")
	for _, dialect := range []string{fixtures.DialectCSR, fixtures.DialectAT} {
		b := newBoard()
		b.Dialect, b.Baud, b.Boot, b.Sign = dialect, 115200, 50*time.Millisecond, 20*time.Millisecond
		serving, remove := context.WithCancel(ctx)
		served := make(chan error, 1)
		go func() { served <- port.Serve(serving, b) }()
		if err := d.Detect(ctx, l); err != nil {
			t.Fatalf("%s: Detect: %v", dialect, err)
		}
		report, err := d.Read(ctx, l)
		if err != nil || report.Device != b.Device {
			t.Fatalf("%s: Read: %v", dialect, err)
		}
		if dialect == fixtures.DialectCSR {
			noBareEnter(t, b)
		}
		before, _ := b.Spent()
		gone := make(chan error, 1)
		go func() { gone <- d.Gone(ctx, l) }()
		for looks := time.NewTicker(5 * time.Millisecond); ; <-looks.C { // until it has looked once
			if now, _ := b.Spent(); now > before {
				break
			}
			if ctx.Err() != nil {
				t.Fatal("it does not look")
			}
		}
		remove()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := <-gone; err != nil {
			t.Errorf("%s: Gone: %v", dialect, err)
		}
	}
}
