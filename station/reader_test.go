package station

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

func TestGoodBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil).run()
		c := b.cables[0]
		good := newBoard()
		b.await(0, Empty)
		c.plug(good)
		slot := b.await(0, Passed)
		if slot.Device != good.ID() || slot.Advice != sentences[advicePassed] || slot.Reason != "" {
			t.Errorf("the slot shows %+v", slot)
		}
		if r := b.ledger.records[good.Device]; string(r.Key.SPKI()) != string(good.SPKI()) || r.Facts["chip"] != "0x31000019" || r.Proof == nil {
			t.Errorf("the journal holds %+v", r)
		}
		// Nothing is read again while it stays, but who it is: that, and
		// carriage returns, is all that it hears.
		asked, who := c.asked("at+"), c.asked("at+get=iot,udid\r")
		time.Sleep(10 * time.Minute)
		who = c.asked("at+get=iot,udid\r") - who
		if n := c.asked("at+"); n-who != asked || who < 100 || who > 150 || c.asked("\r") < asked+2*who {
			t.Errorf("after PASS the board was asked %d more questions and %d times who it is, and looked at %d times", n-who-asked, who, c.asked("\r")-n)
		}
		c.unplug()
		b.await(0, Empty)

		// The same board again, and one that says the same of itself in other
		// words.
		good.RawSignatures = true
		c.plug(good)
		if slot := b.await(0, Passed); slot.Advice != sentences[adviceRepeat] || slot.Device != good.ID() {
			t.Errorf("a repeat shows %+v", slot)
		}
		if first, repeats := b.ledger.given(); first != 1 || repeats != 1 {
			t.Errorf("%d receipts and %d for repeats", first, repeats)
		}
		if s := b.Stats(); s.Passed != 2 || s.Repeated != 1 {
			t.Errorf("counted %+v", s)
		}
		want := []string{"empty", "reading", "passed", "empty", "reading", "passed"}
		if got := b.showed(0); !slices.Equal(got, want) {
			t.Errorf("showed %v, want %v", got, want)
		}
	})
}

// A board that is in the place of another one before that was missed is read: a
// PASS is of one board.
func TestQuickHands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil).run()
		first, second := newBoard(), newBoard()
		first.Boot, second.Boot = 100*time.Millisecond, 100*time.Millisecond
		b.cables[0].plug(first)
		b.await(0, Passed)
		time.Sleep(5 * time.Second)
		b.cables[0].unplug()
		b.cables[0].plug(second)
		b.awaitThat(0, "the second board", func(s SlotStatus) bool { return s.State == Passed && s.Device == second.ID() })
	})
}

// The same with boards that run already when they touch, so that no start is
// heard: the board that is there now has nothing of the first one's PASS,
// however short the pause, whether the first one was there for long, or was
// still being written down.
func TestQuickHandsQuietly(t *testing.T) {
	for _, c := range []struct {
		dialect, firmware string
		blind             bool // it cannot be asked who it is: only a missing echo shows that it went
	}{
		{"ti-at", fixtures.DialectAT, false}, {"report", fixtures.DialectReport, false}, {"ti-csr", fixtures.DialectCSR, true},
		{"auto", fixtures.DialectAT, false}, {"auto", fixtures.DialectReport, false}, {"auto", fixtures.DialectCSR, true},
	} {
		for _, pause := range []time.Duration{0, 200 * time.Millisecond, 1500 * time.Millisecond} {
			for _, there := range []time.Duration{0, 4700 * time.Millisecond, 10 * time.Minute} {
				if c.blind && (pause < time.Second || there == 0 || there > time.Minute) {
					continue // nobody looked meanwhile
				}
				if testing.Short() && there > time.Minute && pause == 200*time.Millisecond {
					continue // between two others
				}
				bubble(t, fmt.Sprintf("%s %s, %v after %v", c.dialect, c.firmware, pause, there), func(t *testing.T) {
					b := newTestStation(t, 1, func(config *Config) {
						d, err := uart.DialectByName(c.dialect)
						if err != nil {
							t.Fatal(err)
						}
						config.Slots[0].Dialect = d
					}).run()
					first, second := newBoard(), newBoard()
					first.Dialect, second.Dialect = c.firmware, c.firmware
					second.Quiet, second.Boot = true, 0
					written := make(chan struct{})
					if there == 0 {
						b.ledger.set(nil, written)
					} else {
						close(written)
					}
					b.await(0, Empty)
					b.cables[0].plug(first)
					if there == 0 {
						for b.ledger.appends() == 0 {
							time.Sleep(time.Millisecond)
						}
					} else {
						b.await(0, Passed)
						time.Sleep(there)
						if s := b.Status().Slots[0]; s.Device != first.ID() {
							t.Fatalf("before the swap the slot shows %+v", s)
						}
					}
					b.cables[0].unplug()
					time.Sleep(pause)
					b.cables[0].plug(second)
					swapped := time.Now()
					if there == 0 {
						close(written)
					}
					if c.blind {
						b.awaitThat(0, "the second board, which must be reset", func(s SlotStatus) bool { return s.Reason == ReasonNeedsReset })
					} else {
						b.awaitThat(0, "the second board", func(s SlotStatus) bool { return s.State == Passed && s.Device == second.ID() })
					}
					if took := time.Since(swapped); took > 15*time.Second {
						t.Errorf("the second board was noticed after %v", took)
					}
				})
			}
		}
	}
}

// A board that was read and does not say any more who it is has no PASS any
// more either.
func TestPassedBoardFallsDumb(t *testing.T) {
	for _, c := range []struct{ dialect, next string }{
		{"ti-at", "udid"}, {"auto", "udid"}, {"report", fixtures.DialectAT}, {"auto", fixtures.DialectCSR},
	} {
		bubble(t, c.dialect+" "+c.next, func(t *testing.T) {
			d, err := uart.DialectByName(c.dialect)
			if err != nil {
				t.Fatal(err)
			}
			b := newTestStation(t, 1, func(config *Config) { config.Slots[0].Dialect = d }).run()
			first, second := newBoard(), newBoard()
			second.Quiet, second.Boot = true, 0
			switch {
			case c.next == "udid":
				second.Mute = c.next
			case c.dialect == "report":
				first.Dialect, second.Dialect = c.dialect, c.next
			default:
				second.Dialect = c.next
			}
			b.await(0, Empty)
			b.cables[0].plug(first)
			b.await(0, Passed)
			time.Sleep(5 * time.Second)
			b.cables[0].unplug()
			b.cables[0].plug(second)
			swapped := time.Now()
			b.awaitThat(0, "not passed", func(s SlotStatus) bool { return s.State != Passed })
			if took := time.Since(swapped); took > 25*time.Second {
				t.Errorf("it was noticed after %v", took)
			}
			b.awaitThat(0, "judged", func(s SlotStatus) bool { return s.State == Failed })
		})
	}
}

func TestBoardVerdicts(t *testing.T) {
	const event = "+eventnetapp:ipv4_acquired,192.0.2.7,192.0.2.1,192.0.2.1"
	for name, c := range map[string]struct {
		fault  func(*fixtures.Board)
		reason Reason
		words  string // in the log
	}{
		"attached late":       {fault: func(b *fixtures.Board) { b.Quiet = true }},
		"event in the echo":   {fault: func(b *fixtures.Board) { b.Event, b.EventAt = event, 8 }},
		"refuses key 0":       {func(b *fixtures.Board) { b.RefuseKey0 = -12290 }, ReasonNoProof, "-12290"},
		"wrong signatures":    {func(b *fixtures.Board) { b.WrongSignatures = true }, ReasonNoProof, "one key"},
		"silent":              {func(b *fixtures.Board) { b.Mute = "udid" }, ReasonTimeout, "serial number"},
		"silent at the proof": {func(b *fixtures.Board) { b.Mute = "sign_msg" }, ReasonTimeout, "signed"},
		"never says OK":       {func(b *fixtures.Board) { b.Mute = "test" }, ReasonNoDialect, "ti-at"},
		"garbled":             {func(b *fixtures.Board) { b.Print = map[string]string{"udid": "+get:0x4d,0x8re\n\rOK\n\r"} }, ReasonGarbled, "16 bytes"},
		"no serial number": {func(b *fixtures.Board) {
			b.Print = map[string]string{"udid": "+get:" + strings.Repeat("0x0,", 15) + "0x0\n\rOK\n\r"}
		}, ReasonGarbled, "nothing but 00"},
		"refuses its serial number": {func(b *fixtures.Board) {
			b.Forms.Refuse, b.Forms.Refusal = []string{"udid"}, "nicht erlaubt"
		}, ReasonGarbled, "nicht erlaubt"},
		"swapped twice": {func(b *fixtures.Board) {
			one, two := fixtures.NewDevice(), fixtures.NewDevice()
			b.Serials = [][16]byte{one, two, one, two}
		}, ReasonGarbled, "another one at the end"},
		"private key":         {func(b *fixtures.Board) { b.Print = map[string]string{"version": leaked} }, ReasonPrivateKeyLeak, ""},
		"private key at once": {func(b *fixtures.Board) { b.Print = map[string]string{"test": leaked} }, ReasonPrivateKeyLeak, ""},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 1, nil).run()
			bad := newBoard()
			c.fault(bad)
			b.cables[0].plug(bad)
			expect := "passed"
			if c.reason == "" {
				if slot := b.await(0, Passed); slot.Device != bad.ID() {
					t.Errorf("the slot shows %+v", slot)
				}
			} else {
				if name == "no serial number" || name == "refuses its serial number" { // to insert it again does not help
					b.awaitThat(0, "without a serial number", func(s SlotStatus) bool { return s.Advice == sentences[adviceFirmware] })
				} else {
					b.awaitFailed(0, c.reason)
				}
				expect = "failed " + string(c.reason)
				if b.ledger.appends() != 0 {
					t.Error("the journal was asked")
				}
			}
			synctest.Wait()
			if kept := b.transcripts(); len(kept) != 1 || kept[0].Header["expect"] != expect || kept[0].Header["slot"] != "A" || kept[0].Header["dialect"] != "ti-at" {
				t.Errorf("transcripts %+v, want one that expects %q", kept, expect)
			}
			log := b.logged()
			if !strings.Contains(log, c.words) {
				t.Errorf("the log does not say %q:\n%s", c.words, log)
			}
			b.mustNotLeak()

			// The verdict is of this board alone.
			b.cables[0].unplug()
			time.Sleep(time.Minute)
			if err := b.Acknowledge("A"); err != nil {
				t.Error(err)
			}
			good := newBoard()
			b.cables[0].plug(good)
			b.awaitThat(0, "the next board", func(s SlotStatus) bool { return s.State == Passed && s.Device == good.ID() })
		})
	}
}

// A board that is taken out while it prints its banner leaves a free slot, and
// the next board is read.
func TestTakenOutWhileItStarts(t *testing.T) {
	for _, dialect := range []string{"ti-at", "auto"} {
		bubble(t, dialect, func(t *testing.T) {
			b := newTestStation(t, 1, func(c *Config) {
				d, err := uart.DialectByName(dialect)
				if err != nil {
					t.Fatal(err)
				}
				c.Slots[0].Dialect = d
			}).run()
			bad := newBoard()
			bad.CutAfter = 70 // in the title of the banner
			b.cables[0].plug(bad)
			b.awaitThat(0, "something", func(s SlotStatus) bool { return s.State == Reading && s.Advice == sentences[adviceSearching] })
			start := time.Now()
			b.await(0, Empty)
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("the slot is free after %v", took)
			}
			if kept := b.transcripts(); len(kept) != 0 {
				t.Errorf("transcripts %+v", kept)
			}
			b.cables[0].unplug()
			good := newBoard()
			b.cables[0].plug(good)
			b.awaitThat(0, "the next board", func(s SlotStatus) bool { return s.State == Passed && s.Device == good.ID() })
		})
	}
}

const leaked = "-----BEGIN EC PRIVATE KEY-----\n\rMHcCAQEEIBLeakedLeakedLeaked\n\r-----END EC PRIVATE KEY-----\n\rOK\n\r"

// mustNotLeak searches all that leaves the station for the key in leaked.
func (b *testStation) mustNotLeak() {
	b.t.Helper()
	written := b.logged() + fmt.Sprint(b.Status())
	for _, transcript := range b.transcripts() {
		text, err := transcript.Encode()
		if err != nil {
			b.t.Error(err)
		}
		written += string(text)
	}
	for _, part := range []string{"MHcCAQ", "BEGIN EC", "Leaked"} {
		if strings.Contains(written, part) {
			b.t.Errorf("%q was kept:\n%s", part, written)
		}
	}
}

// Of a leak nothing is repeated, not even the words of a dialect.
func TestLeakQuoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newScript(newReport(newBoard()))
		d.read = func() error { return fmt.Errorf("after %q: %w", leaked, uart.ErrPrivateKey) }
		b := newTestStation(t, 1, func(c *Config) { c.Slots[0].Dialect = d }).run()
		d.come <- struct{}{}
		b.awaitFailed(0, ReasonPrivateKeyLeak)
		b.mustNotLeak()
	})
}

func TestConflicts(t *testing.T) {
	for name, c := range map[string]struct {
		second func(first, second *fixtures.Board)
		reason Reason
	}{
		"another key": {func(first, second *fixtures.Board) { second.Device = first.Device }, ReasonDeviceConflict},
		"another id":  {func(first, second *fixtures.Board) { second.Key = first.Key }, ReasonKeyConflict},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 2, nil).run()
			first, second := newBoard(), newBoard()
			c.second(first, second)
			b.cables[0].plug(first)
			b.await(0, Passed)
			b.cables[1].plug(second)
			if slot := b.awaitFailed(1, c.reason); slot.Device != second.ID() {
				t.Errorf("the slot shows %+v, the board is %s", slot, second.ID())
			}
			if slot := b.Status().Slots[0]; slot.State != Passed {
				t.Errorf("the first board shows %+v", slot)
			}
			if first, _ := b.ledger.given(); first != 1 {
				t.Errorf("%d receipts", first)
			}
		})
	}
}

// The dialogue is cut after every byte. Only a whole one passes; whatever was
// in the middle is seen to have failed until the next board comes.
func TestUnpluggedAtEveryByte(t *testing.T) {
	steady := newBoard() // says as many bytes each time
	steady.RawSignatures = true
	whole := 0
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, nil)
		slow := make(chan struct{})
		b.ledger.set(nil, slow)
		b.run()
		good := plugLater(b, steady, 0)
		time.Sleep(2 * time.Minute) // the journal is asked, and the board is not any more
		whole, _ = good.Spent()
		close(slow)
		b.await(0, Passed)
	})
	if whole < 1000 {
		t.Fatalf("a dialogue of %d bytes", whole)
	}
	step := 1
	if testing.Short() {
		step = 41
	}
	for name, usb := range map[string]bool{"the port goes too": true, "the port stays": false} {
		t.Run(name, func(t *testing.T) {
			want := "failed timeout"
			if usb {
				want = "failed unplugged"
			}
			verdicts := map[string]int{}
			for cut := 1; cut < whole-1; cut += step {
				synctest.Test(t, func(t *testing.T) {
					verdict := cutAt(t, steady, cut, usb, cut%50 == 0)
					if verdict == "failed no-dialect" && !usb { // it said something, and nobody could tell what it was
						verdict = ""
					}
					if verdict != want && verdict != "" {
						t.Errorf("cut after %d bytes of %d it was %q", cut, whole, verdict)
					}
					verdicts[verdict]++
				})
			}
			// A board that was never asked anything has no verdict; the banner
			// is not a third of the dialogue.
			if verdicts[""] == 0 || verdicts[want] < 2*verdicts[""] {
				t.Errorf("the verdicts are %v", verdicts)
			}
			synctest.Test(t, func(t *testing.T) {
				if last := cutAt(t, steady, whole, usb, true); last != "passed" {
					t.Errorf("cut after the last of %d bytes: %s", whole, last)
				}
			})
		})
	}
}

// plugLater plugs in a copy of a board between two looks at the empty slot, so
// that it hears the same each time.
func plugLater(b *testStation, like *fixtures.Board, cut int) *fixtures.Board {
	b.await(0, Empty)
	time.Sleep(100 * time.Millisecond)
	fresh := &fixtures.Board{Device: like.Device, Key: like.Key, RawSignatures: true, Boot: like.Boot, Think: like.Think, Sign: like.Sign, CutAfter: cut}
	b.cables[0].plug(fresh)
	return fresh
}

// cutAt returns the verdict over a board that is gone after so many bytes;
// empty if it was gone before it was noticed.
func cutAt(t *testing.T, like *fixtures.Board, cut int, usb, next bool) string {
	b := newTestStation(t, 1, nil)
	c := b.cables[0]
	c.usb = usb
	b.run()
	bad := plugLater(b, like, cut)
	time.Sleep(30 * time.Second) // the longest wait for an answer is 10 s, and one try more
	verdict := ""
	for _, step := range b.showed(0) {
		if strings.HasPrefix(step, "failed") || step == "passed" {
			if verdict != "" {
				t.Errorf("two verdicts: %v", b.showed(0))
			}
			verdict = step
		}
	}
	slot := b.Status().Slots[0]
	if strings.HasPrefix(verdict, "failed") && string(slot.State+" ")+string(slot.Reason) != verdict {
		t.Errorf("cut after %d bytes it was %s; later the slot shows %+v", cut, verdict, slot)
	}
	if b.ledger.holds(board.DeviceID(bad.Device)) != (verdict == "passed") {
		t.Errorf("cut after %d bytes it was %s, and the journal does not agree", cut, verdict)
	}
	if next {
		c.set(true, nil)
		good := newBoard()
		c.plug(good)
		b.awaitThat(0, "the next board", func(s SlotStatus) bool { return s.State == Passed && s.Device == good.ID() })
	}
	return verdict
}

// A board that failed is found by its id, if it has said who it is. One that
// may have been two boards has not.
func TestFailedBoardIsKnown(t *testing.T) {
	tiCSR := func(c *Config) { c.Slots[0].Dialect = uart.TICSR{} }
	for name, c := range map[string]struct {
		config func(c *Config)
		spoil  func(b *fixtures.Board)
		reason Reason
		known  bool
	}{
		"ti-at, sign_msg refused":  {nil, func(b *fixtures.Board) { b.RefuseKey0 = -12294 }, ReasonNoProof, true},
		"ti-at, key 1 signs":       {nil, func(b *fixtures.Board) { b.Key1, b.SignWithKey1 = fixtures.NewKey(), true }, ReasonNoProof, true},
		"ti-at, wrong signatures":  {nil, func(b *fixtures.Board) { b.WrongSignatures = true }, ReasonNoProof, false},
		"ti-at, a leak at the end": {nil, func(b *fixtures.Board) { b.Print = map[string]string{"version": leaked} }, ReasonPrivateKeyLeak, false},
		"ti-csr, no request":       {tiCSR, func(b *fixtures.Board) { b.Dialect, b.RefuseKey0 = fixtures.DialectCSR, -12294 }, ReasonNoProof, true},
		"ti-csr, another unit":     {tiCSR, func(b *fixtures.Board) { b.Dialect, b.Unit = fixtures.DialectCSR, "factory" }, ReasonNoProof, true},
		"ti-csr, two numbers": {tiCSR, func(b *fixtures.Board) {
			b.Dialect, b.CommonName = fixtures.DialectCSR, "00112233445566778899aabbccddeeff"
		}, ReasonGarbled, false},
		"the label is missing": {func(c *Config) { c.Policy.NeedsLabel = true }, nil, ReasonLabelMissing, true},
	} {
		bubble(t, name, func(t *testing.T) {
			b := newTestStation(t, 1, c.config).run()
			bad := newBoard()
			if c.spoil != nil {
				c.spoil(bad)
			}
			b.cables[0].plug(bad)
			s := b.awaitFailed(0, c.reason)
			want := board.DeviceID{}
			if c.known {
				want = board.DeviceID(bad.Device)
			}
			if journaled := b.ledger.failed[0].Device; s.Device != want.String() && c.known || s.Device != "" && !c.known || journaled != want {
				t.Errorf("the slot shows %s, the journal got %s, want %s", s.Device, journaled, want)
			}
		})
	}
}
