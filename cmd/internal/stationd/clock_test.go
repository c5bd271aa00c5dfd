package stationd

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/spool"
	"secretfree/station"
)

// The registry's clock shows whether this machine's clock is right, unless its
// answer is too old or the clock was set since.
func TestClockCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		for name, c := range map[string]struct {
			server time.Duration // the registry's clock against this one
			age    time.Duration // of the answer
			set    time.Duration // by how much the clock was set since
			right  bool
			fault  bool
		}{
			"right":             {0, time.Second, 0, true, false},
			"half a minute":     {-30 * time.Second, time.Second, 0, true, false},
			"behind":            {61 * time.Second, time.Second, 0, false, true},
			"far behind":        {10000 * time.Hour, time.Second, 0, false, true},
			"ahead by an hour":  {-time.Hour, time.Second, 0, false, false},
			"ahead by two days": {-48 * time.Hour, time.Second, 0, false, true},
			"an old answer":     {61 * time.Second, 11 * time.Minute, 0, false, false},
			"set since":         {61 * time.Second, time.Second, 5 * time.Minute, false, false},
			"set back since":    {0, time.Second, -5 * time.Minute, false, false},
		} {
			at := now.Add(-c.age)
			var check clockCheck
			if right := check.compare(at.Add(c.server), at, now.Add(c.set), c.age); right != c.right {
				t.Errorf("%s: right is %v", name, right)
			}
			if got := check.problem(spool.Stats{}); (got != "") != c.fault || c.fault && !strings.Contains(got, "the registry's says") {
				t.Errorf("%s: %q", name, got)
			}
			if got := check.problem(spool.Stats{Clock: "known"}); !c.fault && got != "known" {
				t.Errorf("%s: %q hides what the spool knows", name, got)
			}
		}
		for name, check := range map[string]*clockCheck{
			"no registry": {}, "no answer yet": {serverTime: func() (time.Time, time.Time, bool) { return time.Time{}, time.Time{}, false }},
		} {
			if check.look(now) || check.problem(spool.Stats{}) != "" {
				t.Errorf("%s says something of the clock", name)
			}
		}
		// What an answer showed holds until another shows otherwise.
		server, at := now.Add(time.Hour), now
		check := clockCheck{serverTime: func() (time.Time, time.Time, bool) { return server, at, true }}
		check.look(now)
		if check.look(now.Add(time.Hour)); check.problem(spool.Stats{}) == "" {
			t.Error("an outage of the registry makes the clock right")
		}
		server, at = now.Add(time.Hour), now.Add(time.Hour)
		if !check.look(at) || check.problem(spool.Stats{}) != "" {
			t.Error("a clock that was set right stays wrong")
		}
	})
}

// A clock that is set hides no outage: that nothing is delivered is measured by
// how much time passes.
func TestStallBelievesNoClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{diskLimit: diskLimit}
		stats := spool.Stats{Pending: 1, Oldest: time.Now().Add(1000 * time.Hour)} // the clock was set back since
		silent := func() bool {
			d.stall.look(time.Now(), stats)
			list := d.red(stats)
			return len(list) == 1 && list[0].Word == "health-registry-silent"
		}
		if silent() {
			t.Error("red at once")
		}
		time.Sleep(stalled)
		if silent() {
			t.Error("red too early")
		}
		time.Sleep(time.Second)
		if !silent() {
			t.Error("an outage is hidden by a clock that was set back")
		}
		stats.LastSuccess = time.Now()
		if silent() {
			t.Error("red after a success")
		}
		time.Sleep(stalled + time.Second)
		if !silent() {
			t.Error("a second outage is hidden")
		}
		stats.Pending = 0
		if silent() {
			t.Error("red without work")
		}
	})
}

// A clock that was set is red, in the health and in words, and boards pass.
func TestClockIsRed(t *testing.T) {
	f := newFactory(t)
	r := f.start()
	r.clock.compare(time.Now().Add(time.Hour), time.Now(), time.Now(), 0)
	f.plug(f.ports[0], newBoard())
	r.awaitSlot(0, station.Passed)
	if code, body := r.get("/healthz"); code != 503 || !strings.Contains(body, "the registry's says") {
		t.Errorf("%d %s", code, body)
	}
	if _, body := r.get("/status"); !strings.Contains(body, `"health-clock"`) {
		t.Errorf("%s", body)
	}
}
