// Package metrics shows an issuerd to Prometheus. It is a package of its own
// because a function of AWS Lambda has no metrics of this kind, and would load
// the libraries at every start.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"secretfree/cloud/issuer/server"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/metric"
)

// Daemon offers the snapshots; an *issuerd.Daemon does.
type Daemon interface {
	Stats() server.Stats
	// TLS tells when the certificate in use expires, and whether its files
	// cannot be used. It is not ok without TLS.
	TLS() (notAfter time.Time, failed, ok bool)
}

// Handler serves GET /metrics from the daemon's snapshots.
func Handler(d Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d, newMetrics()}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 5 * time.Second}))
	return mux
}

type metrics struct {
	issued, est, limited, tryLater, refused, failing, tlsEnds, tlsStale, build metric.Metric
}

func newMetrics() metrics {
	counter := func(name, help string, labels ...string) metric.Metric {
		return metric.New(metric.Counter, "issuerd_"+name, help, labels...)
	}
	gauge := func(name, help string, labels ...string) metric.Metric {
		return metric.New(metric.Gauge, "issuerd_"+name, help, labels...)
	}
	return metrics{
		issued:   counter("issued_total", "Requests that were answered with a certificate, repeats included."),
		est:      counter("est_issued_total", "Those of issuerd_issued_total that were answered over EST."),
		limited:  counter("limited_total", "Requests of a source or a device that asked too often."),
		tryLater: counter("try_later_total", "Requests that could not be decided or fulfilled at the time."),
		refused:  counter("refused_total", "Requests that were malformed or refused, by the name of the refusal.", "refusal"),
		failing:  gauge("failing_seconds", "For how long every issuance has failed; 0 if the last one did not."),
		tlsEnds:  gauge("tls_not_after_timestamp_seconds", "When the TLS certificate in use expires, in Unix time; nothing without TLS."),
		tlsStale: gauge("tls_reload_failed", "1 if the files of the TLS certificate have changed and cannot be used; nothing without TLS."),
		build:    gauge("build_info", "1; the label says what runs.", "version"),
	}
}

func (m metrics) all() []metric.Metric {
	return []metric.Metric{m.issued, m.est, m.limited, m.tryLater, m.refused, m.failing, m.tlsEnds, m.tlsStale, m.build}
}

// Metrics are all that an issuer shows of itself.
func Metrics() []metric.Metric { return newMetrics().all() }

type collector struct {
	d Daemon
	m metrics
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.m.all() {
		ch <- m.Desc()
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	m, stats := c.m, c.d.Stats()
	m.issued.Send(ch, float64(stats.Issued))
	m.est.Send(ch, float64(stats.EST))
	m.limited.Send(ch, float64(stats.Limited))
	m.tryLater.Send(ch, float64(stats.TryLater))
	for refusal, n := range stats.Refused {
		m.refused.Send(ch, float64(n), string(refusal))
	}
	failing := 0.0
	if !stats.Failing.IsZero() {
		failing = time.Since(stats.Failing).Seconds()
	}
	m.failing.Send(ch, failing)
	if notAfter, failed, ok := c.d.TLS(); ok {
		m.tlsEnds.SendTime(ch, notAfter)
		m.tlsStale.SendBool(ch, failed)
	}
	m.build.Send(ch, 1, cli.Version())
}
