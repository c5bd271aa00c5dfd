package doctor

import (
	"context"
	"time"
)

const (
	// clockYear is past: a machine without a battery starts in 1970.
	clockYear = 2025
	clockStep = time.Minute

	// AWS refuses requests that are 5 minutes off.
	driftFail = 5 * time.Minute
	driftWarn = 30 * time.Second

	setClock = "Set the clock, and let the machine set it from the network: timedatectl set-ntp true; timedatectl timesync-status. A machine that starts without a network needs a battery for its clock."
)

func (e *exam) checkClock(context.Context) (found []Result) {
	now := e.Now()
	stamp := now.UTC().Format(time.RFC3339)
	switch {
	case now.UTC().Year() < clockYear:
		return []Result{fail("clock", setClock, "the clock says %s, which is long past; times of records are kept for ever", stamp)}
	case !e.Built.IsZero() && now.Before(e.Built.Add(-clockStep)):
		return []Result{fail("clock", setClock, "the clock says %s, and this program was built on %s", stamp, e.Built.UTC().Format(time.RFC3339))}
	}
	synced, err := e.Synchronised()
	switch {
	case err != nil:
		found = append(found, good("clock", "the clock says %s; whether it follows a server could not be seen: %v", stamp, err))
	case !synced:
		found = append(found, warn("clock", setClock, "the clock says %s, and follows no server: it will drift, and AWS refuses what is 5 minutes off", stamp))
	default:
		found = append(found, good("clock", "the clock says %s, and follows a server", stamp))
	}
	return found
}

// judgeNewest compares the clock with the newest entry of the journal.
func judgeNewest(now, newest time.Time) (Result, bool) {
	if newest.IsZero() || newest.Sub(now) <= clockStep {
		return Result{}, false
	}
	return fail("clock.journal", setClock, "the clock says %s, and the newest entry of the journal is of %s", now.UTC().Format(time.RFC3339), newest.UTC().Format(time.RFC3339)), true
}

// judgeDrift compares the clock with the registry's, which is to the second,
// and which the answer took a while to bring.
func judgeDrift(local, remote time.Time, took time.Duration) Result {
	drift := local.Sub(remote)
	slack := time.Second + took
	text := drift.Abs().Round(time.Second)
	where := "ahead of"
	if drift < 0 {
		where = "behind"
	}
	switch {
	case drift.Abs() > driftFail+slack:
		return fail("clock.registry", setClock, "the clock is %v %s the registry's, which refuses what is more than 5 minutes off", text, where)
	case drift.Abs() > driftWarn+slack:
		return warn("clock.registry", setClock, "the clock is %v %s the registry's", text, where)
	}
	return good("clock.registry", "the clock and the registry's are less than %v apart", (drift.Abs() + slack).Round(time.Second))
}
