package spool

import (
	"fmt"
	"secretfree/station/board"
	"time"

	"golang.org/x/sys/unix"
)

// clock watches the machine's clock, whose time goes into records that are kept
// for ever. A wrong clock never stops the line: the order of entries is that of
// their sequence numbers. The fault of a clock stays until the clock is right
// by what the spool knows, or until Spool.TrustClock.
type clock struct {
	last    time.Time     // of the last look, with its monotonic reading; at first the time of the newest entry, without one
	machine time.Duration // of the last look: time since the machine was switched on, suspended or not
	newest  time.Time     // the latest time that the clock said and that was believed; zero before the first look
	ahead   time.Duration // by how much the clock was set forward while the spool was open
	right   bool          // for the next look: the clock is known to be right
	fault   string        // what is wrong with the clock; empty if nothing is known to be
}

const (
	clockStep = time.Minute    // a change that a clock makes by itself is smaller
	clockLeap = 24 * time.Hour // a clock that was set forward by more is not believed
	// clockYear is past. A machine without a battery, and without a network,
	// starts in 1970.
	clockYear = 2025
	// clockEnd is a year that no board of today is made in.
	clockEnd = 2100
)

// now reads the clock. It notifies of a clock that was set, and of a fault when
// the fault begins.
func (c *clock) now(notify func(string)) time.Time {
	now, machine := time.Now(), sinceBoot()
	passed := now.Sub(c.last)
	if c.machine > 0 {
		passed = max(passed, machine-c.machine) // Go's own monotonic clock stands still in a suspended machine
	}
	c.machine = machine
	c.check(now, passed, notify)
	return board.Timestamp(now)
}

// sinceBoot is CLOCK_BOOTTIME; 0 if the system does not know it.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// check compares what the clock says with how much time has passed since the
// last look, as far as that is known: of two times of one process, Sub knows
// it.
func (c *clock) check(now time.Time, passed time.Duration, notify func(string)) {
	text := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	var was string // why the clock is believed to have been set, if it was
	wall := now.Round(0).Sub(c.last.Round(0))
	switch {
	case c.last.IsZero():
	case wall < -clockStep:
		was = fmt.Sprintf("the clock was set back: it says %s, the time before was %s; records are kept in the order in which they came", text(now), text(c.last))
	case wall-passed > clockStep:
		was = fmt.Sprintf("the clock was set forward by %v, to %s", (wall - passed).Round(time.Second), text(now))
	case passed-wall > clockStep:
		was = fmt.Sprintf("the clock was set back by %v, to %s", (passed - wall).Round(time.Second), text(now))
	}
	if c.newest.IsZero() {
		c.newest = c.last
	}
	if !c.last.IsZero() && wall-passed > clockStep || c.ahead > 0 {
		c.ahead = max(0, c.ahead+wall-passed)
	}
	fault := ""
	switch year := now.UTC().Year(); {
	case c.right:
		c.newest, c.ahead = now, 0
	case year < clockYear || year > clockEnd:
		fault = fmt.Sprintf("the clock says %s: set it, or let the machine set it from the network", text(now))
	case c.newest.Round(0).Sub(now.Round(0)) > clockStep && !c.newest.IsZero():
		fault = fmt.Sprintf("the clock says %s, and it said %s before: set it, or let the machine set it from the network. If the clock is right now, restart stationd after the next board", text(now), text(c.newest))
	case c.ahead > clockLeap:
		fault = fmt.Sprintf("the clock was set forward by %v, to %s: set it, or let the machine set it from the network. If the clock is right now, restart stationd", c.ahead.Round(time.Second), text(now))
	}
	if was != "" {
		notify(was)
	}
	if fault != "" && c.fault == "" {
		notify(fault)
	}
	c.last, c.fault = now, fault
	if c.ahead <= clockLeap && now.Round(0).After(c.newest.Round(0)) {
		c.newest = now
	}
}

// CheckClock looks at the machine's clock, as every append does. right says that
// something outside of this machine, as a registry, shows the same time: then
// Stats.Clock is empty until the clock changes again. CheckClock never waits:
// while a write is under way, it does nothing.
func (s *Spool) CheckClock(right bool) {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	before := s.clock.fault
	s.clock.right = right
	s.clock.now(s.cfg.Notify)
	s.clock.right = false
	if s.clock.fault != before {
		s.publish()
	}
}
