package spool

import (
	"fmt"
	"secretfree/spool/journal"
	"time"
)

// clock watches the machine's clock, whose time goes into records that are kept
// for ever.
type clock struct {
	last  time.Time // of the last look, with its monotonic reading; at first that of the newest entry, without one
	fault string    // what is wrong with it; empty if nothing is
}

const (
	clockStep = time.Minute // a change that a clock makes by itself is smaller
	// clockYear is past. A machine without a battery, and without a network,
	// starts in 1970.
	clockYear = 2025
)

// now takes the time. It tells of a clock that was set or that cannot be
// right; the latter once, and again only after it was right.
func (c *clock) now(notify func(string)) time.Time {
	now := time.Now()
	c.check(now, now.Sub(c.last), notify)
	return journal.Milliseconds(now)
}

// check compares what the clock says with how much time has passed since the
// last look, as far as that is known: of two times of one process, Sub knows
// it.
func (c *clock) check(now time.Time, passed time.Duration, notify func(string)) {
	text := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	fault := ""
	wall := now.Round(0).Sub(c.last.Round(0))
	switch {
	case now.UTC().Year() < clockYear:
		fault = fmt.Sprintf("the clock says %s: set it, or let the machine set it from the network", text(now))
	case c.last.IsZero():
	case wall < -clockStep:
		notify(fmt.Sprintf("the clock was set back: it says %s, the time before was %s; records are kept in the order in which they came", text(now), text(c.last)))
	case wall-passed > clockStep:
		notify(fmt.Sprintf("the clock was set forward by %v, to %s", (wall - passed).Round(time.Second), text(now)))
	case passed-wall > clockStep:
		notify(fmt.Sprintf("the clock was set back by %v, to %s", (passed - wall).Round(time.Second), text(now)))
	}
	if fault != "" && c.fault == "" {
		notify(fault)
	}
	c.last, c.fault = now, fault
}
