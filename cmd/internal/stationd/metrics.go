package stationd

import (
	"net/http"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/metric"
	"secretfree/spool"
	"secretfree/station"
)

// metrics serves GET /metrics from the snapshots of the rooms, with what Go and
// the kernel say of the process.
func (d *Daemon) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d, newMetrics()}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 5 * time.Second})
}

// metrics are all that there are; systemd/monitoring/README.md lists them.
type metrics struct {
	passed, repeated, failed, reading, slot                   metric.Metric
	appends, entries, signed, checkpoint, damaged             metric.Metric
	pending, dead, oldest, delivered, delay, calls, success   metric.Metric
	deliveryError, unarchived, oldestUnarchived, archiveError metric.Metric
	forked, clock, broken, unsigned, scrubbed                 metric.Metric
	diskUsed, diskFree, diskSize, diskLevel, diskStalled      metric.Metric
	healthy, tlsEnds, tlsStale, build                         metric.Metric
}

func newMetrics() metrics {
	counter := func(name, help string, labels ...string) metric.Metric {
		return metric.New(metric.Counter, "stationd_"+name, help, labels...)
	}
	gauge := func(name, help string, labels ...string) metric.Metric {
		return metric.New(metric.Gauge, "stationd_"+name, help, labels...)
	}
	histogram := func(name, help string, labels ...string) metric.Metric {
		return metric.New(metric.Histogram, "stationd_"+name, help, labels...)
	}
	return metrics{
		passed:   counter("boards_passed_total", "Boards that passed, repeats included."),
		repeated: counter("boards_repeated_total", "Boards that passed and were enrolled before."),
		failed:   counter("boards_failed_total", "Boards that failed, by reason.", "reason"),
		reading:  histogram("board_duration_seconds", "From finding a board to its verdict, by slot and verdict (passed, failed).", "slot", "verdict"),
		slot:     gauge("slot_state", "1 for the state that a slot is in, 0 for the others.", "slot", "state"),

		appends:    histogram("journal_append_duration_seconds", "Until a record was on disk, synced and read back."),
		entries:    gauge("spool_entries", "Entries in the journal."),
		signed:     gauge("spool_signed_entries", "Entries of the journal under the newest signed checkpoint."),
		checkpoint: gauge("spool_last_checkpoint_timestamp_seconds", "When the newest checkpoint was signed, in Unix time; nothing if there is none."),
		damaged:    gauge("spool_damaged_entries", "Entries of the journal that cannot be read and are kept aside."),

		pending:       gauge("spool_pending_records", "Records that the registry has not confirmed."),
		dead:          gauge("spool_dead_records", "Records that the registry refused for good."),
		oldest:        gauge("spool_oldest_pending_seconds", "Age of the oldest record that the registry has not confirmed; 0 if there is none."),
		delivered:     counter("spool_delivered_records_total", "Records that the registry confirmed since the start."),
		delay:         histogram("delivery_delay_seconds", "From the reading of a board to the registry's confirmation."),
		calls:         histogram("registry_call_duration_seconds", "One delivery to the registry, of one or many records, by result: ok, or error if one of them was not confirmed.", "result"),
		success:       gauge("spool_last_delivery_timestamp_seconds", "When the registry confirmed a record last, in Unix time; nothing if it has not since the start."),
		deliveryError: gauge("spool_delivery_error", "1 for why the registry does not take records; nothing while it does.", "cause"),

		unarchived:       gauge("spool_unarchived_segments", "Sealed segments of the journal that the registry does not have a copy of."),
		oldestUnarchived: gauge("spool_oldest_unarchived_seconds", "For how long the oldest of those has waited; 0 if there is none."),
		archiveError:     gauge("spool_archive_error", "1 for why the registry does not take copies of the journal; nothing while it does.", "cause"),

		forked:   gauge("forked", "1 if two journals have the name of this station."),
		clock:    gauge("clock_fault", "1 if the clock of this machine is wrong."),
		broken:   gauge("disk_untrusted", "1 if the disk failed a write, until a board was written again."),
		scrubbed: gauge("scrub_timestamp_seconds", "When all sealed segments and the index were read through and compared last, in Unix time; nothing if they were not since the start."),
		unsigned: gauge("journal_unsigned", "1 if no checkpoint of the journal can be signed."),

		diskUsed:    gauge("disk_used_bytes", "Bytes that the state directory takes."),
		diskFree:    gauge("disk_free_bytes", "Bytes that are left on the file system of the state directory."),
		diskSize:    gauge("disk_size_bytes", "Bytes that the file system of the state directory holds."),
		diskLevel:   gauge("disk_level", "1 for how full the disk is (ok, low, critical), 0 for the others.", "level"),
		diskStalled: gauge("disk_stalled_seconds", "For how long a call to the disk has not returned; 0 if none is under way."),

		healthy:  gauge("healthy", "1 if no work is due that does not move, as /healthz has it."),
		tlsEnds:  gauge("tls_not_after_timestamp_seconds", "When the TLS certificate in use expires, in Unix time; nothing without TLS."),
		tlsStale: gauge("tls_reload_failed", "1 if the files of the TLS certificate have changed and cannot be used; nothing without TLS."),
		build:    gauge("build_info", "1; the label says what runs.", "version"),
	}
}

func (m metrics) all() []metric.Metric {
	return []metric.Metric{
		m.passed, m.repeated, m.failed, m.reading, m.slot,
		m.appends, m.entries, m.signed, m.checkpoint, m.damaged,
		m.pending, m.dead, m.oldest, m.delivered, m.delay, m.calls, m.success, m.deliveryError,
		m.unarchived, m.oldestUnarchived, m.archiveError,
		m.forked, m.clock, m.broken, m.unsigned, m.scrubbed,
		m.diskUsed, m.diskFree, m.diskSize, m.diskLevel, m.diskStalled,
		m.healthy, m.tlsEnds, m.tlsStale, m.build,
	}
}

// Metrics are all that a station shows of itself.
func Metrics() []metric.Metric { return newMetrics().all() }

type collector struct {
	d *Daemon
	m metrics
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.m.all() {
		ch <- m.Desc()
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	d, m := c.d, c.m
	boards, status, stats := d.station.Stats(), d.station.Status(), d.stats()

	m.passed.Send(ch, float64(boards.Passed))
	m.repeated.Send(ch, float64(boards.Repeated))
	for _, reason := range station.Reasons() {
		m.failed.Send(ch, float64(boards.Failed[reason]), string(reason))
	}
	for _, slot := range boards.ReadDurations {
		durations(ch, m.reading, slot.Passed, slot.Slot, "passed")
		durations(ch, m.reading, slot.Failed, slot.Slot, "failed")
	}
	for _, slot := range status.Slots {
		for _, state := range []station.State{station.Absent, station.Empty, station.Reading, station.Passed, station.Failed} {
			m.slot.SendBool(ch, slot.State == state, slot.Name, string(state))
		}
	}

	appends, good, bad, delivered := d.timings.snapshot()
	durations(ch, m.appends, appends)
	m.entries.Send(ch, float64(stats.Entries))
	m.signed.Send(ch, float64(stats.Signed))
	m.checkpoint.SendTime(ch, stats.SignedAt)
	m.damaged.Send(ch, float64(stats.Damaged))

	m.pending.Send(ch, float64(stats.Pending))
	m.dead.Send(ch, float64(stats.Dead))
	m.oldest.Send(ch, float64(status.Backlog.OldestSeconds))
	m.delivered.Send(ch, float64(stats.Delivered))
	durations(ch, m.delay, delivered)
	durations(ch, m.calls, good, "ok")
	durations(ch, m.calls, bad, "error")
	m.success.SendTime(ch, stats.LastSuccess)
	if stats.LastError != "" {
		m.deliveryError.Send(ch, 1, cause(stats.LastError))
	}
	m.unarchived.Send(ch, float64(stats.Unarchived))
	m.oldestUnarchived.Send(ch, age(stats.UnarchivedSince))
	if stats.ArchiveError != "" {
		m.archiveError.Send(ch, 1, cause(stats.ArchiveError))
	}

	m.forked.SendBool(ch, stats.Forked)
	m.clock.SendBool(ch, stats.Clock != "")
	m.broken.SendBool(ch, stats.Broken != "")
	m.unsigned.SendBool(ch, stats.Unsigned != "")
	m.scrubbed.SendTime(ch, stats.Scrubbed)

	if !stats.Disk.Time.IsZero() {
		m.diskUsed.Send(ch, float64(stats.Disk.Used))
		m.diskFree.Send(ch, float64(stats.Disk.Free))
		m.diskSize.Send(ch, float64(stats.Disk.Size))
		for _, level := range []spool.DiskLevel{spool.DiskOK, spool.DiskLow, spool.DiskCritical} {
			m.diskLevel.SendBool(ch, stats.Disk.Level == level, string(level))
		}
	}
	m.diskStalled.Send(ch, age(stats.WritingSince))

	m.healthy.SendBool(ch, d.station.Health() == nil)
	if d.gate != nil && d.gate.pair != nil {
		notAfter, failed := d.gate.pair.State()
		m.tlsEnds.SendTime(ch, notAfter)
		m.tlsStale.SendBool(ch, failed)
	}
	m.build.Send(ch, 1, cli.Version())
}

func durations(ch chan<- prometheus.Metric, m metric.Metric, d station.Durations, labels ...string) {
	m.SendDurations(ch, d.Count, d.Sum, station.DurationBounds(), d.Buckets, labels...)
}

// age is in seconds; 0 if since is not set.
func age(since time.Time) float64 {
	if since.IsZero() {
		return 0
	}
	return max(0, time.Since(since).Seconds())
}

// which are the parts of an error that say what it happened to.
var which = regexp.MustCompile(`\b(record|segment) [0-9]+|\b[0-9a-f]{20,}\b`)

// cause is an error without what it happened to, so that an outage is one
// series and not one for each record.
func cause(err string) string { return which.ReplaceAllString(err, "…") }
