package station

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

// What keeps a port from being opened is shown with its remedy, and holds back
// no other slot.
func TestPortTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		advice messageKey
		detail string
	}{
		"absent":        {uart.ErrAbsent, adviceAbsent, ""},
		"unplugged":     {uart.ErrUnplugged, adviceAbsent, ""},
		"busy":          {uart.ErrBusy, adviceBusy, ""},
		"held":          {&uart.OpenError{Kind: uart.ErrBusy, Holder: "minicom (process 7)", Cause: uart.ErrBusy}, adviceHeld, "minicom (process 7)"},
		"permission":    {uart.ErrPermission, advicePermission, ""},
		"group":         {&uart.OpenError{Kind: uart.ErrPermission, Group: "dialout", Cause: uart.ErrPermission}, adviceGroup, "dialout"},
		"mode":          {&uart.OpenError{Kind: uart.ErrPermission, Change: "have its mode changed", Cause: uart.ErrPermission}, adviceMode, ""},
		"not a port":    {uart.ErrNotAPort, adviceNotAPort, ""},
		"ambiguous":     {uart.ErrAmbiguous, adviceAmbiguous, ""},
		"no lines":      {uart.ErrNoLines, adviceNoLines, ""},
		"anything else": {fs.ErrInvalid, advicePortError, ""},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 2, nil)
			b.cables[0].set(true, fmt.Errorf("opening /dev/port-0: %w", c.err))
			b.run()
			has := func(advice messageKey, detail string) func(SlotStatus) bool {
				want := strings.ReplaceAll(sentences[advice], "%s", detail)
				return func(s SlotStatus) bool { return s.State == Absent && s.Advice == want }
			}
			b.awaitThat(0, "absent with advice", has(c.advice, c.detail))
			good := newBoard()
			b.cables[1].plug(good)
			b.await(1, Passed)
			time.Sleep(time.Minute)
			if n := strings.Count(b.logged(), "opening /dev/port-0"); n > 1 {
				t.Errorf("the log says %d times the same", n)
			}
			if slot := b.Status().Slots[0]; !has(c.advice, c.detail)(slot) {
				t.Errorf("a minute later the slot shows %+v", slot)
			}
			// The trouble goes with the port, and does not come back with it.
			b.cables[0].set(false, nil)
			b.awaitThat(0, "absent", has(adviceAbsent, ""))
			b.cables[0].set(true, nil)
			b.await(0, Empty)
			b.cables[0].plug(newBoard())
			b.await(0, Passed)
		})
	}
}

// A port that goes takes its board along, whatever the slot shows; when it
// comes again, so does the slot.
func TestPortLost(t *testing.T) {
	for name, c := range map[string]struct {
		bring func(b *testStation)
		want  State
	}{
		"empty": {func(b *testStation) { b.await(0, Empty) }, Absent},
		"reading": {func(b *testStation) {
			b.cables[0].plug(newBoard())
			b.awaitThat(0, "reading", func(s SlotStatus) bool { return s.State == Reading && !s.Searching })
		}, Failed},
		"passed": {func(b *testStation) { b.cables[0].plug(newBoard()); b.await(0, Passed) }, Absent},
		"failed": {func(b *testStation) {
			bad := newBoard()
			bad.RefuseKey0 = -12290
			b.cables[0].plug(bad)
			b.awaitFailed(0, ReasonNoProof)
		}, Absent},
		"timed out": {func(b *testStation) {
			bad := newBoard()
			bad.Mute = "udid"
			b.cables[0].plug(bad)
			b.awaitFailed(0, ReasonTimeout)
		}, Failed},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 1, nil).run()
			c.bring(b)
			b.cables[0].set(false, nil)
			time.Sleep(time.Minute)
			if slot := b.Status().Slots[0]; slot.State != c.want {
				t.Errorf("a minute later the slot shows %+v, want %s", slot, c.want)
			}
			b.cables[0].unplug()
			b.cables[0].set(true, nil)
			b.await(0, Empty)
			b.cables[0].plug(newBoard())
			b.await(0, Passed)
		})
	}
}

// Run ends at once in whatever state a slot is, and the bubble sees that
// nothing of it stays.
func TestRunEnds(t *testing.T) {
	for name, bring := range map[string]func(b *testStation){
		"before its first step": func(b *testStation) {},
		"absent":                func(b *testStation) { b.cables[0].set(false, nil); time.Sleep(time.Minute) },
		"after port trouble":    func(b *testStation) { b.cables[0].set(true, uart.ErrBusy); time.Sleep(time.Minute + retryPort/2) },
		"just lost":             func(b *testStation) { b.await(0, Empty); b.cables[0].set(false, nil); time.Sleep(retryLost / 2) },
		"empty":                 func(b *testStation) { b.await(0, Empty); time.Sleep(time.Minute) },
		"reading": func(b *testStation) {
			b.cables[0].plug(newBoard())
			b.await(0, Reading)
			time.Sleep(50 * time.Millisecond)
		},
		"at the journal": func(b *testStation) {
			b.ledger.set(nil, make(chan struct{}))
			b.cables[0].plug(newBoard())
			b.await(0, Reading)
			time.Sleep(time.Minute)
		},
		"passed": func(b *testStation) { b.cables[0].plug(newBoard()); b.await(0, Passed); time.Sleep(time.Minute) },
		"failed": func(b *testStation) {
			bad := newBoard()
			bad.Mute = "udid"
			b.cables[0].plug(bad)
			b.await(0, Failed)
			time.Sleep(time.Minute)
		},
		"after a leak": func(b *testStation) {
			b.cables[0].plug(newBoard())
			b.await(0, Passed)
			b.cables[0].say([]byte(leaked))
			b.await(0, Failed) // and a pause
		},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 2, nil).run()
			bring(b)
			before := b.Status().Slots[0]
			if took := b.stop(); took > 0 {
				t.Errorf("Run took %v to end", took)
			}
			after := b.Status().Slots[0]
			if after.State != before.State && (after.State == Passed || after.State == Failed) {
				t.Errorf("the end was taken for a verdict: before %+v, after %+v", before, after)
			}
			if kept := b.transcripts(); len(kept) > 0 && kept[len(kept)-1].Header["expect"] == "" {
				t.Error("a dialogue without a verdict was kept")
			}
		})
	}
}

// A line that takes no more bytes does not hold up the end: the port is closed
// under it.
func TestRunEndsHangingWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe() // nobody reads
		defer theirs.Close()
		b := newTestStation(t, 1, func(c *Config) {
			c.Slots[0].Open = func(context.Context) (uart.Conn, error) { return ours, nil }
		}).run()
		b.await(0, Empty)
		time.Sleep(time.Minute)
		if took := b.stop(); took > 0 {
			t.Errorf("Run took %v to end", took)
		}
	})
}

func TestRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil).run()
		b.await(0, Empty)
		if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "it ran before") {
			t.Errorf("Run while it runs: %v", err)
		}
		b.stop()
		if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "it ran before") {
			t.Errorf("Run after it ran: %v", err)
		}
	})
}

// A port that Open brings when the context has ended is closed all the same.
func TestOpenedTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, func(c *Config) {
			open := c.Slots[0].Open
			c.Slots[0].Open = func(ctx context.Context) (uart.Conn, error) {
				time.Sleep(time.Second)
				return open(context.WithoutCancel(ctx))
			}
		}).run()
		time.Sleep(time.Second / 2)
		b.stop()
		if b.cables[0].open == nil {
			t.Error("the port was never opened")
		}
	})
}

// A bug in a dialect fails one board. Neither the other slots nor the next
// board notice, and what the panic says, which can quote the board, is not
// repeated.
func TestDialectPanics(t *testing.T) {
	const quoted = "0x4d,0x1f of the board"
	once := func() func() error {
		done := false
		return func() error {
			if !done {
				done = true
				panic(errors.New(quoted))
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		set  func(d *script)
		want []string
	}{
		"in Detect": {func(d *script) { d.detect = once() }, []string{"empty", "failed garbled", "empty"}},
		"in Read":   {func(d *script) { d.read = once() }, []string{"empty", "reading", "failed garbled", "empty"}},
		// The verdict stands: the board was read, and has its receipt.
		"in Gone": {func(d *script) { d.away = once() }, []string{"empty", "reading", "passed", "empty"}},
	} {
		bubble(t, name, func(t *testing.T) {
			good := newBoard()
			d := newScript(newReport(good))
			c.set(d)
			b := newTestStation(t, 2, func(config *Config) { config.Slots[0].Dialect = d }).run()
			d.come <- struct{}{}
			b.awaitThat(0, "judged", func(s SlotStatus) bool { return s.State == Failed || s.State == Passed })
			b.cables[1].plug(newBoard())
			b.await(1, Passed)
			d.gone <- struct{}{}
			b.await(0, Empty)
			if got := b.showed(0); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("showed %v, want %v", got, c.want)
			}
			d.come <- struct{}{}
			if slot := b.await(0, Passed); slot.Device != good.ID() {
				t.Errorf("the next board shows %+v", slot)
			}
			log := b.logged()
			if strings.Contains(log, quoted) || strings.Contains(log, "0x4d") {
				t.Errorf("the log quotes the panic:\n%s", log)
			}
			for _, want := range []string{`"slot":"A"`, `"dialect":"script"`, `"panic":"*errors.errorString"`, "TestDialectPanics", "the dialect panicked"} {
				if !strings.Contains(log, want) {
					t.Errorf("the log does not say %s:\n%s", want, log)
				}
			}
		})
	}
}

// A dialect that cannot watch a board is asked again, more and more slowly, and
// the verdict stays.
func TestGoneFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newScript(newReport(newBoard()))
		asked := 0
		d.away = func() error {
			if asked++; asked < 20 {
				return uart.ErrGarbled
			}
			return nil
		}
		b := newTestStation(t, 1, func(config *Config) { config.Slots[0].Dialect = d }).run()
		d.come <- struct{}{}
		slot := b.await(0, Passed)
		start := time.Now()
		d.gone <- struct{}{}
		b.await(0, Empty)
		// 1, 2, 4, 8, 16, 32 s, and then a minute each.
		if took := time.Since(start); took != 63*time.Second+13*time.Minute {
			t.Errorf("20 looks in %v", took)
		}
		if got := b.showed(0); fmt.Sprint(got) != fmt.Sprint([]string{"empty", "reading", "passed", "empty"}) {
			t.Errorf("showed %v; before %+v", got, slot)
		}
	})
}

// ReadLimit bounds a board whose dialect sets no limit of its own.
func TestReadLimit(t *testing.T) {
	for name, c := range map[string]struct{ set, want time.Duration }{"default": {0, 2 * time.Minute}, "set": {7 * time.Second, 7 * time.Second}} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 1, func(config *Config) {
				config.ReadLimit = c.set
				config.Slots[0].Dialect = endless{}
			}).run()
			b.await(0, Reading)
			start := time.Now()
			b.awaitFailed(0, ReasonTimeout)
			if took := time.Since(start); took != c.want {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// endless reads until it is told to stop.
type endless struct{}

func (endless) Name() string                                 { return "endless" }
func (endless) Detect(context.Context, *uart.Line) error     { return nil }
func (endless) Gone(ctx context.Context, _ *uart.Line) error { <-ctx.Done(); return context.Cause(ctx) }
func (endless) Read(ctx context.Context, _ *uart.Line) (uart.Report, error) {
	<-ctx.Done()
	return uart.Report{}, fmt.Errorf("reading: %w", context.Cause(ctx))
}

// A slot that is stuck is told by name, to the watchdog and to people; one that
// waits for a board is not stuck.
func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outside []Problem
		b := newTestStation(t, 3, func(c *Config) { c.Health = func() []Problem { return outside } })
		slow := make(chan struct{})
		b.ledger.set(nil, slow)
		b.cables[2].set(true, uart.ErrBusy)
		b.run()
		b.cables[1].plug(newBoard())
		b.await(1, Reading)
		for b.ledger.appends() == 0 {
			time.Sleep(time.Millisecond)
		}
		start := time.Now()
		say := func(want string) {
			t.Helper()
			notices := b.Status().Notices
			if want == "" && len(notices) > 0 || want != "" && (len(notices) != 1 || notices[0] != Notice{Urgent: true, Word: "health-slot-disk", Text: "Call IT: " + want + ".", Detail: want, Call: CallIT}) {
				t.Errorf("after %v the page says %+v, want %q", time.Since(start), notices, want)
			}
		}
		time.Sleep(journalLimit - time.Second)
		say("")
		if err := b.Alive(); err != nil {
			t.Errorf("Alive too early: %v", err)
		}
		time.Sleep(2 * time.Second)
		const stuck = "slot B has waited for the disk for 31 s"
		if err := b.Alive(); err == nil || err.Error() != stuck {
			t.Errorf("Alive: %v, want %q", err, stuck)
		}
		say(stuck)
		close(slow)
		b.await(1, Passed)
		if err := b.Health(); err != nil {
			t.Errorf("Health: %v", err)
		}
		const away = "the registry has been away for 3 days"
		outside = []Problem{{Word: "health-registry-silent", Args: []any{72 * time.Hour}, Detail: away}}
		if err := b.Health(); err == nil || err.Error() != away {
			t.Errorf("Health: %v", err)
		}
		if err := b.Alive(); err != nil {
			t.Errorf("what is outside counts for the watchdog: %v", err)
		}
	})
}

// Health is red from a record that the disk did not take to the next that it
// took. What is wrong with a board does not count.
func TestHealthOfTheDisk(t *testing.T) {
	for _, c := range []struct {
		refusal error
		want    string
	}{
		{fmt.Errorf("writing the journal: %w", syscall.ENOSPC), "disk-full: the disk of this station is full, and the last board was not written down"},
		{fmt.Errorf("writing the journal: %w", syscall.EIO), "disk-error: this station cannot write to its disk, and the last board was not written down"},
	} {
		bubble(t, c.want[:9], func(t *testing.T) {
			b := newTestStation(t, 1, nil).run()
			try := func(board *fixtures.Board, state State) {
				t.Helper()
				b.cables[0].plug(board)
				b.await(0, state)
				b.cables[0].unplug()
				b.await(0, Empty)
			}
			good := newBoard()
			try(good, Passed)
			if err := b.Health(); err != nil {
				t.Errorf("with a good disk: %v", err)
			}
			b.ledger.set(c.refusal, nil)
			try(newBoard(), Failed)
			if err := b.Health(); err == nil || err.Error() != c.want {
				t.Errorf("Health: %v, want %q", err, c.want)
			}
			if err := b.Alive(); err != nil {
				t.Errorf("Alive: %v; a restart frees no room", err)
			}
			b.ledger.set(nil, nil)
			try(newBoard(), Passed)
			if err := b.Health(); err != nil {
				t.Errorf("with room again: %v", err)
			}
			b.ledger.set(fmt.Errorf("%w (and the refusal could not be journaled: %w)", &board.Conflict{Kind: board.ErrDeviceConflict}, c.refusal), nil)
			try(newBoard(), Failed)
			if err := b.Health(); err == nil || err.Error() != c.want {
				t.Errorf("a refusal that could not be journaled: %v, want %q", err, c.want)
			}
			b.ledger.set(nil, nil)
			clone := newBoard()
			clone.Device = good.Device
			try(clone, Failed)
			if err := b.Health(); err == nil {
				t.Error("a refusal of a board turned the health of the disk green")
			}
			try(newBoard(), Passed)
			if err := b.Health(); err != nil {
				t.Errorf("with room again: %v", err)
			}
			try(clone, Failed)
			if err := b.Health(); err != nil {
				t.Errorf("a refused board turned it red: %v", err)
			}
		})
	}
}

// A transcript that hangs holds its slot, and is noticed as a journal that
// hangs is.
func TestTranscriptHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		b := newTestStation(t, 1, func(c *Config) {
			c.Transcript = func(string, *uart.Transcript) error { <-slow; return nil }
		}).run()
		b.cables[0].plug(newBoard())
		b.await(0, Passed)
		time.Sleep(journalLimit + time.Second)
		if err := b.Alive(); err == nil || !strings.Contains(err.Error(), "slot A has waited for the disk") {
			t.Errorf("Alive: %v", err)
		}
		close(slow)
	})
}

// A transcript that cannot be kept changes no verdict.
func TestTranscriptNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, func(c *Config) {
			c.Transcript = func(string, *uart.Transcript) error { return errors.New("no room for transcripts") }
		}).run()
		b.cables[0].plug(newBoard())
		b.await(0, Passed)
		if !strings.Contains(b.logged(), "no room for transcripts") {
			t.Errorf("the log does not say so:\n%s", b.logged())
		}
	})
}

func TestNewRefusals(t *testing.T) {
	slot := func(name string) SlotConfig {
		return SlotConfig{Name: name, Open: new(fakePort).await, Dialect: uart.TIAT{}}
	}
	good := Config{
		SKU: "widgiot", Station: "line3-a", Journal: &fakeJournal{}, Backlog: func() Backlog { return Backlog{} },
		Delivery: func(board.DeviceID) Delivery { return Waiting }, Slots: []SlotConfig{slot("A"), slot("B")},
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"a SKU that is no name":     {func(c *Config) { c.SKU = "Widgiot" }, `"Widgiot" is not a name`},
		"a station that is no name": {func(c *Config) { c.Station = "" }, `"" is not a name`},
		"no journal":                {func(c *Config) { c.Journal = nil }, "no Journal"},
		"no backlog":                {func(c *Config) { c.Backlog = nil }, "Backlog and Delivery"},
		"no confirmation":           {func(c *Config) { c.Delivery = nil }, "Backlog and Delivery"},
		"no slots":                  {func(c *Config) { c.Slots = nil }, "0 slots, want 1 to 64"},
		"too many slots":            {func(c *Config) { c.Slots = make([]SlotConfig, 65) }, "65 slots, want 1 to 64"},
		"a limit below zero":        {func(c *Config) { c.ReadLimit = -1 }, "ReadLimit"},
		"a slot without a name":     {func(c *Config) { c.Slots[1].Name = "" }, "slot 2"},
		"a long name":               {func(c *Config) { c.Slots[1].Name = strings.Repeat("x", 33) }, "slot 2"},
		"a name with a blank":       {func(c *Config) { c.Slots[1].Name = " B" }, "slot 2"},
		"a name with a control":     {func(c *Config) { c.Slots[1].Name = "B\n2" }, "slot 2"},
		"a name that is not ASCII":  {func(c *Config) { c.Slots[1].Name = "Bö" }, "slot 2"},
		"the same name twice":       {func(c *Config) { c.Slots[1].Name = "A" }, `two slots are named "A"`},
		"an unknown language":       {func(c *Config) { c.Page.Language = "tlh" }, `no language "tlh", only en, de, es, vi, zh`},
		"a long contact":            {func(c *Config) { c.Page.ContactIT = strings.Repeat("x", 61) }, "up to 60 printable characters"},
		"a contact of two lines":    {func(c *Config) { c.Page.ContactQuality = "Ana\n4711" }, "up to 60 printable characters"},
		"no way to open":            {func(c *Config) { c.Slots[0].Open = nil }, `slot "A" has no Open`},
		"no dialect":                {func(c *Config) { c.Slots[0].Dialect = nil }, `slot "A" has no Open or no Dialect`},
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			bad.Slots = append([]SlotConfig(nil), good.Slots...)
			c.change(&bad)
			if _, err := New(bad); err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "making a station: ") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// A board whose reading fails just after the start may have failed before it.
// A board that is pulled out was pulled out just now, and the next is another.
func TestPulledOutIsNotResumed(t *testing.T) {
	bubble(t, "pulled out", func(t *testing.T) {
		b := newTestStation(t, 1, nil).run()
		slow := newBoard()
		slow.Sign = time.Minute
		b.cables[0].plug(slow)
		b.awaitThat(0, "reading", func(s SlotStatus) bool { return s.State == Reading && !s.Searching })
		b.cables[0].set(false, nil)
		b.awaitFailed(0, ReasonUnplugged)
		b.cables[0].unplug()
		b.cables[0].set(true, nil)
		b.await(0, Empty)
		b.cables[0].plug(leaking())
		b.awaitFailed(0, ReasonPrivateKeyLeak)
		if f := b.ledger.failed; len(f) != 2 || f[0].Resumed || f[1].Resumed {
			t.Errorf("the journal was given %+v", f)
		}
		if b.began.Add(resumeWindow).Before(time.Now()) {
			t.Error("the test took too long to show anything")
		}
	})
	bubble(t, "there before", func(t *testing.T) {
		b := newTestStation(t, 1, nil)
		b.cables[0].plug(leaking())
		b.run().awaitFailed(0, ReasonPrivateKeyLeak)
		if f := b.ledger.failed; len(f) != 1 || !f[0].Resumed {
			t.Errorf("the journal was given %+v", f)
		}
	})
}

func leaking() *fixtures.Board {
	b := newBoard()
	b.Print = map[string]string{"version": leaked}
	return b
}
