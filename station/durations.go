package station

import "time"

// DurationBounds are the upper ends of the buckets of Durations, but for the
// last one, which has none.
func DurationBounds() []time.Duration {
	return []time.Duration{
		5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2 * time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 10 * time.Minute, time.Hour,
	}
}

// Durations counts how long something took. The zero value counts nothing yet.
type Durations struct {
	Count uint64
	Sum   time.Duration
	// Buckets are how many took up to each of DurationBounds, those of the
	// buckets before included. nil if nothing was counted.
	Buckets []uint64
}

// Add counts one; less than nothing, as after a clock was set, is nothing.
func (d *Durations) Add(took time.Duration) {
	took = max(took, 0)
	bounds := DurationBounds()
	if d.Buckets == nil {
		d.Buckets = make([]uint64, len(bounds))
	}
	for i, bound := range bounds {
		if took <= bound {
			d.Buckets[i]++
		}
	}
	d.Count++
	d.Sum += took
}

// Clone is a copy that shares nothing.
func (d Durations) Clone() Durations {
	d.Buckets = append([]uint64(nil), d.Buckets...)
	return d
}

// ReadDurations tells how long the boards of a slot took, from being found to
// the verdict.
type ReadDurations struct {
	Slot           string
	Passed, Failed Durations
}
