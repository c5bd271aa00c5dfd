package stationd

import (
	"context"
	"time"

	"secretfree/cmd/internal/stationconf"
	"secretfree/station"
)

// leakDays is how far back the verdicts of a slot are looked at for a leak.
const leakDays = 31

// leaks returns the leaks of private keys that are the newest verdict of their
// slot: nobody is known to have acknowledged them. Verdicts hold no
// acknowledgement, so a leak that was acknowledged, and that no board followed,
// is among them.
func (h history) leaks(ctx context.Context, slots []stationconf.Slot, now time.Time) (map[string]station.Verdict, error) {
	open := map[string]bool{} // slots without a verdict so far
	for _, slot := range slots {
		open[slot.Name] = true
	}
	found := map[string]station.Verdict{}
	to := now.Add(time.Minute) // what was written just now
	for range leakDays {
		if len(open) == 0 {
			break
		}
		from := to.Add(-24 * time.Hour)
		verdicts, err := h.Between(ctx, from, to)
		if err != nil {
			return nil, err
		}
		for i := range verdicts {
			v := verdicts[len(verdicts)-1-i] // the newest first
			if open[v.Slot] && v.Reason == station.ReasonPrivateKeyLeak {
				found[v.Slot] = v
			}
			delete(open, v.Slot)
		}
		to = from
	}
	return found, nil
}
