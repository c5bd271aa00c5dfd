package stationd

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"secretfree/spool"
)

const (
	lookAtClock = 10 * time.Second
	// An answer of the registry that is older says nothing of the clock any
	// more.
	serverTimeLimit = 10 * time.Minute
	// A clock that is further behind the registry's is wrong, and one that is
	// further ahead. In between it is not known to be right; the spool then
	// compares the clock with what it said before.
	clockBehind = time.Minute
	clockAhead  = 24 * time.Hour
)

// clockCheck compares the machine's clock with that of the registry.
type clockCheck struct {
	// serverTime is cloud.AWS.ServerTime; nil if the registry has no clock.
	serverTime func() (server, at time.Time, ok bool)

	mu    sync.Mutex
	fault string // what the registry's clock shows to be wrong
}

// look returns whether the registry's clock shows that this machine's clock is
// right. What is wrong with it is in fault until the registry shows otherwise,
// or until the clock was set since.
func (c *clockCheck) look(now time.Time) (right bool) {
	if c.serverTime == nil {
		return false
	}
	server, at, ok := c.serverTime()
	if !ok {
		return false
	}
	return c.compare(server, at, now, now.Sub(at))
}

// compare takes an answer of the registry, when the clock said that it came,
// and how much time has really passed since.
func (c *clockCheck) compare(server, at, now time.Time, passed time.Duration) (right bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if set := now.Round(0).Sub(at.Round(0)) - passed; set < -clockBehind || set > clockBehind {
		c.fault = "" // the clock is another one since that answer
		return false
	}
	if passed > serverTimeLimit {
		return false
	}
	ahead := at.Round(0).Sub(server)
	c.fault = ""
	if ahead < -clockBehind || ahead > clockAhead {
		c.fault = fmt.Sprintf("the clock says %s, the registry's says %s: set it, or let the machine set it from the network",
			now.UTC().Format(time.RFC3339), server.Add(passed).UTC().Format(time.RFC3339))
	}
	return ahead >= -clockBehind && ahead <= clockBehind
}

func (c *clockCheck) problem(stats spool.Stats) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(c.fault, stats.Clock)
}

// stallTimer measures how long the delivery has had work and confirmed nothing.
// It believes no time of day: a clock that is set back hides no outage.
type stallTimer struct {
	mu      sync.Mutex
	since   time.Time // with a monotonic reading; zero: there is no work
	success time.Time
}

// look is called again and again.
func (t *stallTimer) look(now time.Time, stats spool.Stats) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case stats.Pending == 0:
		t.since = time.Time{}
	case t.since.IsZero() || !stats.LastSuccess.Equal(t.success):
		t.since = now
	}
	t.success = stats.LastSuccess
}

func (t *stallTimer) silent(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since.IsZero() {
		return 0
	}
	return now.Sub(t.since)
}
