package stationd

import (
	"net/http"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"secretfree/cmd/internal/cli"
	"secretfree/spool"
	"secretfree/station"
)

// metrics serves GET /metrics from the snapshots of the rooms.
func (d *Daemon) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 5 * time.Second})
}

var (
	descPassed    = prometheus.NewDesc("stationd_boards_passed_total", "Boards that passed, repeats included.", nil, nil)
	descRepeated  = prometheus.NewDesc("stationd_boards_repeated_total", "Boards that passed and were enrolled before.", nil, nil)
	descFailed    = prometheus.NewDesc("stationd_boards_failed_total", "Boards that failed, by reason.", []string{"reason"}, nil)
	descSlot      = prometheus.NewDesc("stationd_slot_state", "1 for the state that a slot is in, 0 for the others.", []string{"slot", "state"}, nil)
	descEntries   = prometheus.NewDesc("stationd_spool_entries", "Entries in the journal.", nil, nil)
	descPending   = prometheus.NewDesc("stationd_spool_pending_records", "Records that the registry has not confirmed.", nil, nil)
	descDead      = prometheus.NewDesc("stationd_spool_dead_records", "Records that the registry refused for good.", nil, nil)
	descOldest    = prometheus.NewDesc("stationd_spool_oldest_pending_seconds", "Age of the oldest record that the registry has not confirmed.", nil, nil)
	descDelivered = prometheus.NewDesc("stationd_spool_delivered_records_total", "Records that the registry confirmed since the start.", nil, nil)
	descDamaged   = prometheus.NewDesc("stationd_spool_damaged_entries", "Entries of the journal that cannot be read and are kept aside.", nil, nil)
	descSigned    = prometheus.NewDesc("stationd_spool_signed_entries", "Entries of the journal under the newest signed checkpoint.", nil, nil)
	descUnarchive = prometheus.NewDesc("stationd_spool_unarchived_segments", "Sealed segments of the journal that the registry does not have a copy of.", nil, nil)
	descDeliverEr = prometheus.NewDesc("stationd_spool_delivery_error", "1 for why the registry does not take records; nothing while it does.", []string{"cause"}, nil)
	descArchiveEr = prometheus.NewDesc("stationd_spool_archive_error", "1 for why the registry does not take copies of the journal; nothing while it does.", []string{"cause"}, nil)
	descDiskUsed  = prometheus.NewDesc("stationd_disk_used_bytes", "Bytes that the state directory takes.", nil, nil)
	descDiskFree  = prometheus.NewDesc("stationd_disk_free_bytes", "Bytes that are left on the file system of the state directory.", nil, nil)
	descDiskSize  = prometheus.NewDesc("stationd_disk_size_bytes", "Bytes that the file system of the state directory holds.", nil, nil)
	descDiskLevel = prometheus.NewDesc("stationd_disk_level", "1 for how full the disk is, 0 for the others.", []string{"level"}, nil)
	descHealthy   = prometheus.NewDesc("stationd_healthy", "1 if no work is due that does not move, as /healthz has it.", nil, nil)
	descBuild     = prometheus.NewDesc("stationd_build_info", "1; the label says what runs.", []string{"version"}, nil)
)

type collector struct{ d *Daemon }

func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	boards := c.d.station.Stats()
	counter(descPassed, boards.Passed)
	counter(descRepeated, boards.Repeated)
	for _, reason := range station.Reasons() {
		counter(descFailed, boards.Failed[reason], string(reason))
	}
	status := c.d.station.Status()
	for _, slot := range status.Slots {
		for _, state := range []station.State{station.Absent, station.Empty, station.Reading, station.Passed, station.Failed} {
			gauge(descSlot, truth(slot.State == state), slot.Name, string(state))
		}
	}
	stats := c.d.stats()
	gauge(descEntries, float64(stats.Entries))
	gauge(descPending, float64(stats.Pending))
	gauge(descDead, float64(stats.Dead))
	gauge(descDamaged, float64(stats.Damaged))
	gauge(descSigned, float64(stats.Signed))
	gauge(descUnarchive, float64(stats.Unarchived))
	if stats.LastError != "" {
		gauge(descDeliverEr, 1, cause(stats.LastError))
	}
	if stats.ArchiveError != "" {
		gauge(descArchiveEr, 1, cause(stats.ArchiveError))
	}
	gauge(descOldest, float64(status.Backlog.OldestSeconds))
	counter(descDelivered, stats.Delivered)
	if !stats.Disk.Time.IsZero() {
		gauge(descDiskUsed, float64(stats.Disk.Used))
		gauge(descDiskFree, float64(stats.Disk.Free))
		gauge(descDiskSize, float64(stats.Disk.Size))
		for _, level := range []spool.DiskLevel{spool.DiskOK, spool.DiskLow, spool.DiskCritical} {
			gauge(descDiskLevel, truth(stats.Disk.Level == level), string(level))
		}
	}
	gauge(descHealthy, truth(c.d.station.Health() == nil))
	gauge(descBuild, 1, cli.Version())
}

// which are the parts of an error that say what it happened to.
var which = regexp.MustCompile(`\b(record|segment) [0-9]+|\b[0-9a-f]{20,}\b`)

// cause is an error without what it happened to, so that an outage is one series and not one for each record.
func cause(err string) string { return which.ReplaceAllString(err, "…") }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
