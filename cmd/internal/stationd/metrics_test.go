package stationd

import (
	"errors"
	"math"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"secretfree/station"
)

// gather takes the metrics as Prometheus does, and checks that what is shown
// was described.
func (r *running) gather() map[string]*dto.MetricFamily {
	r.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{r.Daemon, newMetrics()})
	list, err := registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range list {
		byName[f.GetName()] = f
	}
	return byName
}

// What the station waited for is measured where it waits; and all metrics but
// those of a trouble, or of what has not happened yet, are there from the start.
func TestMetrics(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	troubles := map[string]bool{"stationd_spool_delivery_error": true, "stationd_spool_archive_error": true, "stationd_tls_not_after_timestamp_seconds": true,
		"stationd_tls_reload_failed": true, "stationd_spool_last_delivery_timestamp_seconds": true, "stationd_spool_last_checkpoint_timestamp_seconds": true, "stationd_scrub_timestamp_seconds": true}
	d.await("a look at the disk", func(station.Status) bool { return !d.spool.Stats().Disk.Time.IsZero() })
	first := d.gather()
	for _, m := range Metrics() {
		if first[m.Name] == nil && !troubles[m.Name] {
			t.Errorf("%s is not there", m.Name)
		}
	}
	histogram := func(name string, labels ...string) *dto.Histogram {
		t.Helper()
	next:
		for _, m := range d.gather()[name].GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue next
				}
			}
			return m.GetHistogram()
		}
		t.Fatalf("%s has nothing of %v", name, labels)
		return nil
	}
	unplug := f.plug(f.ports[0], newBoard())
	d.await("the confirmation", func(s station.Status) bool { return s.Slots[0].Confirmed })
	unplug()
	for name, labels := range map[string][]string{"stationd_board_duration_seconds": {"slot", "A", "verdict", "passed"}, "stationd_journal_append_duration_seconds": nil,
		"stationd_delivery_delay_seconds": nil, "stationd_registry_call_duration_seconds": {"result", "ok"}} {
		if h := histogram(name, labels...); h.GetSampleCount() != 1 || h.GetSampleSum() <= 0 || h.GetSampleSum() > 60 || len(h.GetBucket()) != len(station.DurationBounds()) {
			t.Errorf("%s: %+v", name, h)
		}
	}
	if h := histogram("stationd_board_duration_seconds", "slot", "A", "verdict", "failed"); h.GetSampleCount() != 0 {
		t.Errorf("failed: %+v", h)
	}
	// The registry is away.
	if err := os.Rename(f.registry, f.registry+".away"); err != nil {
		t.Fatal(err)
	}
	f.plug(f.ports[1], newBoard())
	d.await("the outage", func(s station.Status) bool { return s.Backlog.LastError != "" })
	if h := histogram("stationd_registry_call_duration_seconds", "result", "error"); h.GetSampleCount() == 0 {
		t.Errorf("the outage: %+v", h)
	}
	after := d.gather()
	if after["stationd_spool_delivery_error"] == nil || after["stationd_spool_last_delivery_timestamp_seconds"] == nil {
		t.Errorf("after the outage: %+v", after)
	}
	d.stop()
}

// Of a batch, what was confirmed counts, and one error makes the call one that
// failed.
func TestTimings(t *testing.T) {
	var times timings
	read := func(ago time.Duration) time.Time { return time.Now().Add(-ago) }
	began := time.Now().Add(-time.Second)
	times.put(began, []time.Time{read(3 * time.Second), read(time.Hour)}, []error{nil, errors.New("no")})
	times.put(began, []time.Time{read(-time.Hour)}, []error{nil}) // the clock was set
	_, good, bad, delivered := times.snapshot()
	if good.Count != 1 || bad.Count != 1 || delivered.Count != 2 || math.Abs(delivered.Sum.Seconds()-3) > 1 {
		t.Errorf("%+v %+v %+v", good, bad, delivered)
	}
}
