package station

import (
	"slices"
	"testing"
	"time"
)

func TestDurations(t *testing.T) {
	bounds := DurationBounds()
	if !slices.IsSorted(bounds) {
		t.Fatal("the bounds are out of order")
	}
	var d Durations
	for _, took := range []time.Duration{-time.Second, bounds[0], bounds[0] + 1, 3 * time.Hour} {
		d.Add(took)
	}
	copied := d.Clone()
	d.Add(0)
	if copied.Count != 4 || copied.Buckets[0] != 2 || copied.Buckets[1] != 3 || copied.Buckets[len(bounds)-1] != 3 || copied.Sum != 2*bounds[0]+1+3*time.Hour {
		t.Errorf("%+v", copied)
	}
	if d.Count != 5 || d.Buckets[0] != 3 {
		t.Errorf("%+v", d)
	}
}
