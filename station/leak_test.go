package station

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// A board that prints a private key when it has its verdict fails after all, in
// its own name.
func TestLeakAfterVerdict(t *testing.T) {
	for name, c := range map[string]struct{ dialect, mute string }{
		"after PASS": {"ti-at", ""}, "after a failure": {"ti-at", "udid"}, "found by auto": {"auto", ""},
	} {
		bubble(t, name, func(t *testing.T) {
			dialect, err := uart.DialectByName(c.dialect)
			if err != nil {
				t.Fatal(err)
			}
			b := newTestStation(t, 1, func(c *Config) { c.Slots[0].Dialect = dialect }).run()
			leaky := newBoard()
			leaky.Mute = c.mute
			b.cables[0].plug(leaky)
			before := b.awaitThat(0, "judged", func(s SlotStatus) bool { return s.State == Passed || s.State == Failed })
			time.Sleep(10 * time.Second)
			b.cables[0].say([]byte(leaked))
			slot := b.awaitThat(0, "a leak", func(s SlotStatus) bool { return s.Reason == ReasonPrivateKeyLeak })
			if slot.State != Failed || slot.Device != before.Device || slot.Advice != sentences["private-key-leak"] {
				t.Errorf("before the leak %+v, after it %+v", before, slot)
			}
			b.cables[0].say([]byte(leaked))
			time.Sleep(10 * time.Minute) // it stays, and so does the verdict
			if now := b.Status().Slots[0]; now != slot {
				t.Errorf("the leak became %+v", now)
			}
			b.mustNotLeak()
			kept := b.transcripts()
			if len(kept) != 2 || kept[1].Header["expect"] != "failed private-key-leak" || kept[1].Header["slot"] != "A" {
				t.Fatalf("transcripts %+v, want one of the verdict and one of the leak", kept)
			}
			if device := slot.Device; device != "" && !strings.Contains(kept[1].Header["note"], device) {
				t.Errorf("the transcript is of %q, the board is %s", kept[1].Header["note"], device)
			}
			mustLeakAgain(t, kept[1])
			b.cables[0].unplug()
			mustHold(t, b, slot)
		})
	}
}

// mustHold takes another board to a slot whose board has leaked a key and is
// gone: nothing of it is shown before somebody acknowledges the leak.
func mustHold(t *testing.T, b *testStation, slot SlotStatus) {
	t.Helper()
	if err := b.Acknowledge("no slot"); !errors.Is(err, ErrNoSlot) {
		t.Errorf("acknowledged in a slot that is not there: %v", err)
	}
	other := newBoard()
	b.cables[0].plug(other)
	passed := b.Stats().Passed
	time.Sleep(time.Minute)
	if now := b.Status().Slots[0]; now != slot || !now.Acknowledge || b.Stats().Passed != passed {
		t.Errorf("the leak became %+v, and %d boards passed", now, b.Stats().Passed-passed)
	}
	if err := b.Acknowledge(slot.Name); err != nil {
		t.Fatal(err)
	}
	now := b.await(0, Passed)
	if now.Device != other.ID() || now.Acknowledge {
		t.Errorf("after the leak was acknowledged: %+v", now)
	}
	if err := b.Acknowledge(slot.Name); err != nil || b.Status().Slots[0] != now {
		t.Errorf("acknowledged twice: %v, %+v", err, b.Status().Slots[0])
	}
	b.cables[0].unplug()
	b.await(0, Empty)
}

// A leak from before the start is shown, and no board is read, until somebody
// acknowledges it; whether its port is there or not.
func TestLeakFromBeforeTheStart(t *testing.T) {
	for name, there := range map[string]bool{"with its port": true, "without its port": false} {
		bubble(t, name, func(t *testing.T) {
			before := Verdict{Time: time.Now().Add(-48 * time.Hour), Slot: "A", State: Failed, Reason: ReasonPrivateKeyLeak, Device: deviceOne}
			b := newTestStation(t, 2, func(c *Config) { c.Slots[0].Leak = &before })
			b.cables[0].set(there, nil)
			b.run()
			other := newBoard()
			b.cables[1].plug(other)
			b.await(1, Passed) // the other slots go on
			if there {
				b.cables[0].plug(newBoard())
			}
			time.Sleep(time.Minute)
			slot := b.Status().Slots[0]
			if slot.State != Failed || slot.Reason != before.Reason || slot.Device != deviceOne.String() || !slot.Acknowledge || !slot.Since.Equal(before.Time.Truncate(time.Millisecond)) {
				t.Errorf("after the start: %+v", slot)
			}
			if stats := b.Stats(); stats.Failed[ReasonPrivateKeyLeak] != 0 {
				t.Errorf("it is counted once more: %+v", stats)
			}
			if err := b.Acknowledge("A"); err != nil {
				t.Fatal(err)
			}
			if there {
				b.await(0, Passed)
			} else {
				b.await(0, Absent)
			}
		})
	}
}

// A leak in the text of a start, before anybody knows which board it is, stays
// as well: after the board has gone, and after the port has.
func TestLeakBeforeTheDialectIsKnown(t *testing.T) {
	for _, name := range []string{"auto", "ti-at", "ti-csr", "report"} {
		bubble(t, name, func(t *testing.T) {
			dialect, err := uart.DialectByName(name)
			if err != nil {
				t.Fatal(err)
			}
			b := newTestStation(t, 1, func(c *Config) { c.Slots[0].Dialect = dialect }).run()
			b.await(0, Empty)
			b.cables[0].say([]byte("boot 1.0\r\n" + leaked + "\r\nUnique device ID = \r\nAT Commands Example Ver: 1.1.2\r\n"))
			slot := b.awaitThat(0, "a leak", func(s SlotStatus) bool { return s.Reason == ReasonPrivateKeyLeak })
			time.Sleep(time.Minute)
			if now := b.Status().Slots[0]; now != slot || !now.Acknowledge {
				t.Errorf("the leak became %+v", now)
			}
			b.mustNotLeak()
			if name == "auto" || name == "ti-at" {
				mustHold(t, b, slot)
			}
		})
	}
}

// mustLeakAgain replays what was kept of a leak: the verdict is the same.
func mustLeakAgain(t *testing.T, kept *uart.Transcript) {
	t.Helper()
	dialect, err := uart.DialectByName(kept.Header["dialect"])
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	replayed := make(chan error, 1)
	go func() { replayed <- fixtures.Replay(t.Context(), kept, theirs) }()
	if err := dialect.Detect(t.Context(), uart.NewLine(ours, uart.LineOptions{})); !errors.Is(err, uart.ErrPrivateKey) {
		t.Errorf("the recording of a leak replays as %v", err)
	}
	if err := <-replayed; err != nil {
		t.Errorf("replaying a leak: %v", err)
	}
	ours.Close()
	theirs.Close()
}
