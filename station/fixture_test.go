package station

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/uart"
)

// testFixture is what hangs on the modem lines of a slot: a lid and a reset.
type testFixture struct {
	mu      sync.Mutex
	closed  bool
	err     error // of the modem lines
	moves   []string
	onReset func() // when RTS falls
}

func (f *testFixture) setLid(closed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = closed
}

func (f *testFixture) moved() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.moves)
}

// linedPort is an open port with modem lines.
type linedPort struct {
	uart.Conn
	f *testFixture
}

func (p linedPort) Modem() (uart.Modem, error) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	return uart.Modem{CTS: p.f.closed}, p.f.err
}

func (p linedPort) SetDTR(on bool) error { return p.f.move("dtr", on) }
func (p linedPort) SetRTS(on bool) error { return p.f.move("rts", on) }

func (p linedPort) Break(d time.Duration) error {
	time.Sleep(d)
	return p.f.move("break", true)
}

func (f *testFixture) move(line string, on bool) error {
	f.mu.Lock()
	f.moves = append(f.moves, fmt.Sprint(line, " ", on))
	err, reset := f.err, f.onReset
	f.mu.Unlock()
	if line == "rts" && !on && reset != nil {
		reset()
	}
	return err
}

// newFixtureBench is a bench with one slot on modem lines.
func newFixtureBench(t *testing.T, present, reset string, dialect uart.Dialect) (*testStation, *testFixture) {
	t.Helper()
	f := &testFixture{}
	b := newTestStation(t, 1, func(c *Config) {
		slot := &c.Slots[0]
		open := slot.Open
		slot.Open = func(ctx context.Context) (uart.Conn, error) {
			conn, err := open(ctx)
			if err != nil {
				return nil, err
			}
			return linedPort{conn, f}, nil
		}
		var err error
		if slot.Present, err = uart.ParsePresence(present); err != nil {
			t.Fatal(err)
		}
		if slot.Reset, err = uart.ParseSequence(strings.Fields(reset)); err != nil {
			t.Fatal(err)
		}
		if dialect != nil {
			slot.Dialect = dialect
		}
	})
	return b.run(), f
}

const pulse = "rts=on 100ms rts=off"

var onePulse = []string{"rts true", "rts false"}

func TestFixture(t *testing.T) {
	bubble(t, "closing starts a reading and opening ends it", func(t *testing.T) {
		b, f := newFixtureBench(t, "cts", "", nil)
		b.await(0, Empty)
		b.cables[0].plug(newBoard())
		time.Sleep(time.Minute)
		if b.cables[0].heard.Len() > 0 {
			t.Errorf("the station types into an open fixture: %q", b.cables[0].heard.String())
		}
		for range 3 { // the switch bounces
			f.setLid(true)
			time.Sleep(pollFixture / 2)
			f.setLid(false)
			time.Sleep(3 * pollFixture / 2)
		}
		f.setLid(true)
		b.await(0, Passed)
		b.cables[0].unplug()
		time.Sleep(time.Minute) // silence in a closed fixture is no other board
		if s := b.await(0, Passed); s.Advice != sentences[advicePassed] {
			t.Errorf("after a minute of silence: %+v", s)
		}
		f.setLid(false)
		b.await(0, Empty)
		f.setLid(true)
		s := b.awaitThat(0, "looked for", func(s SlotStatus) bool { return s.Advice == sentences[adviceClosed] })
		if s.State != Reading || !s.Searching {
			t.Errorf("a closed fixture: %+v", s)
		}
		f.setLid(false)
		b.awaitThat(0, "empty", func(s SlotStatus) bool { return s.Advice == sentences[adviceEmpty] })
		if steps := b.showed(0); !slices.Equal(steps, []string{"empty", "reading", "passed", "empty", "reading", "empty"}) {
			t.Errorf("the slot showed %q", steps)
		}
	})
	bubble(t, "a silent board is no empty slot", func(t *testing.T) {
		b, f := newFixtureBench(t, "cts", "", nil)
		b.await(0, Empty)
		start := time.Now()
		f.setLid(true)
		b.awaitFailed(0, ReasonTimeout)
		if took := time.Since(start); took > answerLimit+time.Second {
			t.Errorf("the verdict took %v", took)
		}
		f.setLid(false)
		time.Sleep(time.Second)
		b.cables[0].plug(newBoard())
		f.setLid(true)
		b.await(0, Passed)
	})
	bubble(t, "a silent board is reset before the verdict", func(t *testing.T) {
		b, f := newFixtureBench(t, "cts", pulse, nil)
		f.onReset = func() { b.cables[0].plug(newBoard()) }
		b.await(0, Empty)
		f.setLid(true)
		b.await(0, Passed)
		if got := f.moved(); !slices.Equal(got, onePulse) {
			t.Errorf("the lines: %q", got)
		}
	})
	bubble(t, "opened while it is read", func(t *testing.T) {
		b, f := newFixtureBench(t, "cts", pulse, nil)
		board := newBoard()
		board.Sign = 5 * time.Second
		b.cables[0].plug(board)
		f.setLid(true)
		b.await(0, Reading)
		time.Sleep(2 * time.Second)
		f.setLid(false)
		b.awaitFailed(0, ReasonUnplugged)
		time.Sleep(time.Minute)
		if steps := b.showed(0); !slices.Equal(steps, []string{"empty", "reading", "failed unplugged"}) || len(f.moved()) > 0 {
			t.Errorf("the slot showed %q; the lines: %q", steps, f.moved())
		}
		board.Sign = 0
		f.setLid(true)
		b.await(0, Passed)
	})
	bubble(t, "opened while it is written down", func(t *testing.T) {
		b, f := newFixtureBench(t, "cts", "", nil)
		slow := make(chan struct{})
		b.ledger.set(nil, slow)
		b.cables[0].plug(newBoard())
		f.setLid(true)
		for b.ledger.appends() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		f.setLid(false)
		time.Sleep(time.Second)
		close(slow)
		b.await(0, Empty)
		if stats := b.Stats(); stats.Passed != 1 {
			t.Errorf("%+v, want one PASS", stats)
		}
	})
	bubble(t, "its line is lost", func(t *testing.T) {
		b, f := newFixtureBench(t, "cts", "", nil)
		b.await(0, Empty)
		f.mu.Lock()
		f.err = uart.ErrUnplugged
		f.mu.Unlock()
		b.await(0, Absent)
		f.mu.Lock()
		f.err, f.closed = nil, true
		f.mu.Unlock()
		b.cables[0].plug(newBoard())
		b.await(0, Passed)
	})
}

func TestResetBeforeVerdict(t *testing.T) {
	// first returns err at its first n calls.
	first := func(n int, err error) func() error {
		return func() error {
			if n--; n >= 0 {
				return err
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		reset        string
		detect, read func() error
		want         Reason // empty: passed
		resets       int
	}{
		"needs-reset":                    {pulse, first(1, uart.ErrNeedsReset), nil, "", 1},
		"needs-reset, and again":         {pulse, first(2, uart.ErrNeedsReset), nil, ReasonNeedsReset, 1},
		"needs-reset, without a reset":   {"", first(1, uart.ErrNeedsReset), nil, ReasonNeedsReset, 0},
		"time-out":                       {pulse, nil, first(1, uart.ErrTimeout), "", 1},
		"time-out, and again":            {pulse, nil, first(2, uart.ErrTimeout), ReasonTimeout, 1},
		"needs-reset, then time-out":     {pulse, first(1, uart.ErrNeedsReset), first(1, uart.ErrTimeout), "", 2},
		"needs-reset, and never answers": {pulse, first(9, uart.ErrNeedsReset), nil, ReasonNeedsReset, 1},
		"garbled":                        {pulse, nil, first(1, uart.ErrGarbled), ReasonGarbled, 0},
		"no-proof":                       {pulse, nil, first(1, uart.ErrNoProof), ReasonNoProof, 0},
	} {
		bubble(t, name, func(t *testing.T) {
			d := newScript(newReport(newBoard()))
			d.detect, d.read = c.detect, c.read
			b, f := newFixtureBench(t, "", c.reset, d)
			close(d.come)
			if c.want == "" {
				b.await(0, Passed)
			} else {
				b.awaitFailed(0, c.want)
			}
			if got := f.moved(); len(got) != 2*c.resets || c.resets > 0 && !slices.Equal(got[:2], onePulse) {
				t.Errorf("the lines: %q, want %d resets", got, c.resets)
			}
			if steps := b.showed(0); len(steps) != 3 && !(len(steps) == 2 && c.resets == 0) {
				t.Errorf("the slot showed %q, want one verdict", steps)
			}
		})
	}
}

func TestResetSlot(t *testing.T) {
	bubble(t, "on demand", func(t *testing.T) {
		b, f := newFixtureBench(t, "", pulse, nil)
		b.await(0, Empty)
		f.onReset = func() { b.cables[0].unplug(); b.cables[0].plug(newBoard()) }
		if err := b.ResetSlot(t.Context(), "A"); err != nil {
			t.Fatal(err)
		}
		b.await(0, Passed)
		if err := b.ResetSlot(t.Context(), "A"); err != nil {
			t.Fatal(err)
		}
		b.await(0, Empty)
		b.await(0, Passed)
		if got := f.moved(); !slices.Equal(got, append(slices.Clone(onePulse), onePulse...)) {
			t.Errorf("the lines: %q", got)
		}
	})
	bubble(t, "between the verdict and the wait that follows it", func(t *testing.T) {
		b, f := newFixtureBench(t, "", pulse, nil)
		b.await(0, Empty)
		slow := make(chan struct{})
		b.Station.transcript = func(slot string, t *uart.Transcript) error {
			<-slow
			return b.keepTranscript(slot, t)
		}
		b.cables[0].plug(newBoard())
		b.await(0, Passed)
		f.onReset = func() { b.cables[0].unplug(); b.cables[0].plug(newBoard()) }
		done := make(chan error, 1)
		go func() { done <- b.ResetSlot(t.Context(), "A") }()
		synctest.Wait()
		if err := b.ResetSlot(t.Context(), "A"); !errors.Is(err, ErrSlotBusy) {
			t.Errorf("a second one at once: %v, want %v", err, ErrSlotBusy)
		}
		close(slow)
		if err := <-done; err != nil {
			t.Error(err)
		}
		b.await(0, Empty)
		b.await(0, Passed)
		if got := f.moved(); !slices.Equal(got, onePulse) {
			t.Errorf("the lines: %q", got)
		}
	})
	bubble(t, "refused", func(t *testing.T) {
		d := newScript(newReport(newBoard()))
		b, _ := newFixtureBench(t, "", pulse, d)
		b.await(0, Empty)
		slow := make(chan struct{})
		b.ledger.set(nil, slow)
		close(d.come)
		b.await(0, Reading)
		if err := b.ResetSlot(t.Context(), "A"); !errors.Is(err, ErrSlotBusy) {
			t.Errorf("while a board is read: %v, want %v", err, ErrSlotBusy)
		}
		close(slow)
		b.await(0, Passed)
		if err := b.ResetSlot(t.Context(), "B"); !errors.Is(err, ErrNoSlot) {
			t.Errorf("no such slot: %v, want %v", err, ErrNoSlot)
		}
		b.cables[0].set(false, nil)
		// The script does not notice that its line is lost.
		b.stop()
	})
	bubble(t, "without a reset, and without a port", func(t *testing.T) {
		b, _ := newFixtureBench(t, "cts", "", nil)
		if err := b.ResetSlot(t.Context(), "A"); !errors.Is(err, ErrNoReset) {
			t.Errorf("no reset: %v, want %v", err, ErrNoReset)
		}
		b, f := newFixtureBench(t, "", pulse, nil)
		b.await(0, Empty)
		b.cables[0].set(false, nil)
		b.await(0, Absent)
		if err := b.ResetSlot(t.Context(), "A"); !errors.Is(err, ErrPortAbsent) {
			t.Errorf("no port: %v, want %v", err, ErrPortAbsent)
		}
		b.cables[0].set(true, nil)
		b.await(0, Empty)
		f.mu.Lock()
		f.err = uart.ErrUnplugged
		f.mu.Unlock()
		if err := b.ResetSlot(t.Context(), "A"); !errors.Is(err, uart.ErrUnplugged) {
			t.Errorf("a lost port: %v, want %v", err, uart.ErrUnplugged)
		}
	})
}

// A reset that was asked for just before the board prints a private key is
// refused when the leak is shown; and so is each later one.
func TestResetSlotWhileLeakIsShown(t *testing.T) {
	for _, read := range []bool{false, true} {
		bubble(t, fmt.Sprint("after the verdict ", read), func(t *testing.T) {
			d := &leakScript{script: newScript(newReport(newBoard())), leak: make(chan struct{}), afterVerdict: read}
			b, f := newFixtureBench(t, "", pulse, d)
			close(d.come)
			if read {
				b.await(0, Passed)
			}
			synctest.Wait()
			refused := make(chan error, 1)
			go func() { refused <- b.ResetSlot(t.Context(), "A") }()
			synctest.Wait()
			start := time.Now()
			close(d.leak)
			if err := <-refused; !errors.Is(err, ErrLeakShown) || time.Since(start) > time.Second {
				t.Errorf("a reset that was asked for before the leak: %v after %v, want %v", err, time.Since(start), ErrLeakShown)
			}
			b.awaitFailed(0, ReasonPrivateKeyLeak)
			start = time.Now()
			if err := b.ResetSlot(t.Context(), "A"); !errors.Is(err, ErrLeakShown) || time.Since(start) > 0 {
				t.Errorf("a reset while the leak is shown: %v after %v, want %v", err, time.Since(start), ErrLeakShown)
			}
			if moves := f.moved(); len(moves) > 0 {
				t.Errorf("the lines of a board that leaks: %q", moves)
			}
		})
	}
}

// leakScript is a dialect whose board prints a private key when leak is closed,
// whatever else ends the wait.
type leakScript struct {
	*script
	leak         chan struct{}
	afterVerdict bool
}

func (d *leakScript) Detect(ctx context.Context, l *uart.Line) error {
	if d.afterVerdict {
		return d.script.Detect(ctx, l)
	}
	<-d.leak
	return uart.ErrPrivateKey
}

func (d *leakScript) Gone(ctx context.Context, _ *uart.Line) error {
	select {
	case <-d.leak:
		<-ctx.Done()
		return context.Cause(ctx)
	default:
	}
	<-d.leak
	return uart.ErrPrivateKey
}

// Whoever plugs an adapter in anew sees that within 2 s, however long its port
// was in trouble, and whatever the trouble was.
func TestReplugEndsTrouble(t *testing.T) {
	dead := fmt.Errorf("%w (%w: %w)", uart.ErrDead, uart.ErrAbsent, syscall.ENODEV)
	for name, open := range map[string]func(conn uart.Conn) (uart.Conn, error){
		"dead at the open":      func(conn uart.Conn) (uart.Conn, error) { conn.Close(); return nil, dead },
		"lost after the open":   func(conn uart.Conn) (uart.Conn, error) { conn.Close(); return conn, nil },
		"stuck after the open":  func(conn uart.Conn) (uart.Conn, error) { return stuckConn{conn}, nil },
		"not there for an hour": nil,
		"held by another program": func(conn uart.Conn) (uart.Conn, error) {
			conn.Close()
			return nil, &uart.OpenError{Kind: uart.ErrBusy, Cause: uart.ErrBusy}
		},
	} {
		bubble(t, name, func(t *testing.T) {
			var mu sync.Mutex
			node, works := "first", false
			b := newTestStation(t, 1, func(c *Config) {
				wait := c.Slots[0].Open
				c.Slots[0].Node = func() string { mu.Lock(); defer mu.Unlock(); return node }
				c.Slots[0].Open = func(ctx context.Context) (uart.Conn, error) {
					conn, err := wait(ctx)
					mu.Lock()
					defer mu.Unlock()
					if err != nil || works {
						return conn, err
					}
					return open(conn)
				}
			})
			replug := func() {
				mu.Lock()
				defer mu.Unlock()
				node, works = "second", true
			}
			if open == nil {
				node = ""
				b.cables[0].set(false, nil)
				replug = func() { b.cables[0].set(true, nil) }
				works = true
			}
			b.run()
			for range 20 { // wherever the pause is
				time.Sleep(3*time.Minute + 1700*time.Millisecond)
				synctest.Wait()
				if s := b.Status().Slots[0]; s.State != Absent && s.State != Empty {
					t.Fatalf("a port in trouble: %+v", s)
				}
			}
			replug()
			time.Sleep(retryReplug + lookForNode)
			if s := b.Status().Slots[0]; s.State != Empty {
				t.Errorf("%v after it was plugged in anew: %+v", retryReplug+lookForNode, s)
			}
			b.cables[0].plug(newBoard())
			b.await(0, Passed)
		})
	}
}

type stuckConn struct{ uart.Conn }

func (stuckConn) Write([]byte) (int, error) { return 0, uart.ErrStuck }

// A port that answers EIO or ENODEV for an hour, at the open or right after it,
// neither floods the log nor uses the processor; and when it works again the
// station needs no restart.
func TestPortInTrouble(t *testing.T) {
	dead := fmt.Errorf("%w (%w: %w)", uart.ErrDead, uart.ErrAbsent, syscall.EIO)
	for name, c := range map[string]struct {
		open   func(conn uart.Conn) (uart.Conn, error)
		comes  bool // each open meets another node: the adapter comes and goes
		opens  int
		lines  int
		passes time.Duration // when it works again
	}{
		"at the open":                 {func(conn uart.Conn) (uart.Conn, error) { conn.Close(); return nil, dead }, false, 1801, 4, retryPort},
		"after the open":              {func(conn uart.Conn) (uart.Conn, error) { conn.Close(); return conn, nil }, false, 150, 300, maxLost},
		"after the open, and it goes": {func(conn uart.Conn) (uart.Conn, error) { conn.Close(); return conn, nil }, true, 1810, 3620, retryReplug},
	} {
		bubble(t, name, func(t *testing.T) {
			open := c.open
			var nodes atomic.Int64
			comes := c.comes
			opens, works := 0, time.Now().Add(time.Hour)
			b := newTestStation(t, 1, func(c *Config) {
				wait := c.Slots[0].Open
				c.Slots[0].Node = func() string {
					if comes {
						nodes.Add(1)
					}
					return fmt.Sprint(nodes.Load())
				}
				c.Slots[0].Open = func(ctx context.Context) (uart.Conn, error) {
					conn, err := wait(ctx)
					if err != nil || !time.Now().Before(works) {
						return conn, err
					}
					opens++
					return open(conn)
				}
			}).run()
			b.cables[0].plug(newBoard())
			time.Sleep(time.Hour)
			synctest.Wait()
			if lines := strings.Count(b.logged(), "\n"); opens > c.opens || lines > c.lines || opens < 60 {
				t.Errorf("%d opens and %d lines of log in an hour", opens, lines)
			}
			start := time.Now()
			b.await(0, Passed)
			if took := time.Since(start); took > c.passes+15*time.Second {
				t.Errorf("the port works again, and the board passed %v later", took)
			}
		})
	}
}

func TestNoLinesAdvice(t *testing.T) {
	if advice, _ := portAdvice(&uart.OpenError{Path: "/dev/pts/1", Kind: uart.ErrNoLines, Cause: uart.ErrNoLines}); advice != adviceNoLines {
		t.Errorf("a port without modem lines: %q", advice)
	}
}
