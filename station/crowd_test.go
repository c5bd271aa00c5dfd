package station

import (
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// Sixteen slots read sixteen boards of all dialects at once, each in the time
// that it takes alone: one that says nothing to what it is asked and one that
// is slow keep nobody waiting.
func TestSlotsDoNotWaitForEachOther(t *testing.T) {
	const mute, slow = 3, 9
	kinds := []struct{ dialect, firmware string }{
		{"ti-at", fixtures.DialectAT}, {"report", fixtures.DialectReport}, {"ti-csr", fixtures.DialectCSR},
		{"auto", fixtures.DialectAT}, {"auto", fixtures.DialectReport}, {"auto", fixtures.DialectCSR},
	}
	kind := func(i int) struct{ dialect, firmware string } {
		if i == mute || i == slow {
			return kinds[0]
		}
		return kinds[i%len(kinds)]
	}
	// read has those slots read a board each, which is put there after the same
	// time, and returns how long each took.
	read := func(t *testing.T, slots ...int) (took []time.Duration) {
		b := newTestStation(t, len(slots), func(c *Config) {
			for i, slot := range slots {
				d, err := uart.DialectByName(kind(slot).dialect)
				if err != nil {
					t.Fatal(err)
				}
				c.Slots[i].Dialect = d
			}
		}).run()
		time.Sleep(time.Second)
		start := time.Now()
		for i, slot := range slots {
			board := newBoard()
			board.Dialect, board.Baud, board.Sign = kind(slot).firmware, 115200, 120*time.Millisecond
			switch slot {
			case mute:
				board.Mute = "udid"
			case slow:
				board.Think, board.Sign = 900*time.Millisecond, 8*time.Second
			}
			b.cables[i].plug(board)
		}
		took = make([]time.Duration, len(slots))
		for left := len(slots); left > 0; {
			status, changed := b.snapshot(b.settings.words)
			for i, s := range status.Slots {
				if took[i] == 0 && (s.State == Passed || s.State == Failed) {
					took[i], left = time.Since(start), left-1
					if want := slots[i] != mute; (s.State == Passed) != want {
						t.Errorf("slot %d shows %+v", slots[i], s)
					}
				}
			}
			if left > 0 {
				select {
				case <-changed:
				case <-time.After(2 * time.Minute):
					t.Fatalf("%d slots have no verdict: %+v", left, status.Slots)
				}
			}
		}
		b.stop()
		return took
	}
	var alone, together []time.Duration
	for slot := range 16 {
		if same := slot - len(kinds); same > mute && same != slow && slot != slow { // a board of the same kind
			alone = append(alone, alone[same])
			continue
		}
		synctest.Test(t, func(t *testing.T) { alone = append(alone, read(t, slot)...) })
	}
	synctest.Test(t, func(t *testing.T) { together = read(t, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) })
	for slot := range 16 {
		if slack := 50 * time.Millisecond; together[slot] > alone[slot]+slack {
			t.Errorf("slot %d, %s: %v alone, %v with the others", slot, kind(slot), alone[slot], together[slot])
		}
		if slot != mute && slot != slow && together[slot] >= min(together[mute], together[slow])/2 {
			t.Errorf("slot %d took %v; the mute one %v, the slow one %v", slot, together[slot], together[mute], together[slow])
		}
	}
	t.Logf("alone %v, together %v", alone, together)
}
