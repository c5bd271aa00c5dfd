package station

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/uart"
)

// A port that takes nothing is said to be that, long enough to be read, and is
// tried again. What was read on it has failed.
func TestStuckPort(t *testing.T) {
	stuck := func() error { return fmt.Errorf("writing: %w", uart.ErrStuck) }
	for name, c := range map[string]struct {
		fault func(*script)
		want  []string
	}{
		"no board":  {func(d *script) { d.detect = stuck }, []string{"empty", "absent", "empty"}},
		"a reading": {func(d *script) { d.read = stuck }, []string{"empty", "reading", "failed unplugged", "absent", "empty"}},
		"a PASS":    {func(d *script) { d.away = stuck }, []string{"empty", "reading", "passed", "absent", "empty"}},
	} {
		bubble(t, name, func(t *testing.T) {
			good := newBoard()
			d := newScript(newReport(good))
			c.fault(d)
			b := newTestStation(t, 1, func(c *Config) { c.Slots[0].Dialect = d }).run()
			d.come <- struct{}{}
			slot := b.awaitThat(0, "stuck", func(s SlotStatus) bool { return s.Advice == sentences[adviceStuck] })
			if slot.State != Absent {
				t.Errorf("the slot shows %+v", slot)
			}
			since := time.Now()
			b.await(0, Empty)
			if d := time.Since(since); d != retryStuck {
				t.Errorf("the port was tried again after %v, want %v", d, retryStuck)
			}
			synctest.Wait()
			if got := b.showed(0); fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("it showed %q, want %q", got, c.want)
			}
		})
	}
}
