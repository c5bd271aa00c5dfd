// Package metrics shows an issuerd to Prometheus. It is a package of its own because a function of AWS Lambda has no metrics of this
// kind, and would load the libraries at every start.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"secretfree/cloud/issuer"
	"secretfree/cmd/internal/cli"
)

// Daemon offers the snapshots; an *issuerd.Daemon does.
type Daemon interface {
	Stats() issuer.Stats
	// TLS tells when the certificate in use expires, and whether its files cannot be used. It is not ok without TLS.
	TLS() (notAfter time.Time, failed, ok bool)
}

// Handler serves GET /metrics from the daemon's snapshots.
func Handler(d Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 5 * time.Second}))
	return mux
}

var (
	descIssued   = prometheus.NewDesc("issuerd_issued_total", "Requests that were answered with a certificate, repeats included.", nil, nil)
	descEST      = prometheus.NewDesc("issuerd_est_issued_total", "Those of issuerd_issued_total that were answered over EST.", nil, nil)
	descLimited  = prometheus.NewDesc("issuerd_limited_total", "Requests of a source or a device that asked too often.", nil, nil)
	descTLSEnds  = prometheus.NewDesc("issuerd_tls_not_after_seconds", "When the TLS certificate in use expires, in Unix time.", nil, nil)
	descTLSStale = prometheus.NewDesc("issuerd_tls_reload_failed", "1 if the files of the TLS certificate have changed and cannot be used.", nil, nil)
	descTryLater = prometheus.NewDesc("issuerd_try_later_total", "Requests that could not be decided or fulfilled at the time.", nil, nil)
	descRefused  = prometheus.NewDesc("issuerd_refused_total", "Requests that were malformed or refused, by the name of the refusal.", []string{"refusal"}, nil)
	descFailing  = prometheus.NewDesc("issuerd_failing_seconds", "For how long every issuance has failed; 0 if the last one did not.", nil, nil)
	descBuild    = prometheus.NewDesc("issuerd_build_info", "1; the label says what runs.", []string{"version"}, nil)
)

type collector struct{ d Daemon }

func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c collector) Collect(ch chan<- prometheus.Metric) {
	stats := c.d.Stats()
	ch <- prometheus.MustNewConstMetric(descIssued, prometheus.CounterValue, float64(stats.Issued))
	ch <- prometheus.MustNewConstMetric(descEST, prometheus.CounterValue, float64(stats.EST))
	ch <- prometheus.MustNewConstMetric(descLimited, prometheus.CounterValue, float64(stats.Limited))
	if notAfter, failed, ok := c.d.TLS(); ok {
		stale := 0.0
		if failed {
			stale = 1
		}
		ch <- prometheus.MustNewConstMetric(descTLSEnds, prometheus.GaugeValue, float64(notAfter.Unix()))
		ch <- prometheus.MustNewConstMetric(descTLSStale, prometheus.GaugeValue, stale)
	}
	ch <- prometheus.MustNewConstMetric(descTryLater, prometheus.CounterValue, float64(stats.TryLater))
	for refusal, n := range stats.Refused {
		ch <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(n), string(refusal))
	}
	failing := 0.0
	if !stats.Failing.IsZero() {
		failing = time.Since(stats.Failing).Seconds()
	}
	ch <- prometheus.MustNewConstMetric(descFailing, prometheus.GaugeValue, failing)
	ch <- prometheus.MustNewConstMetric(descBuild, prometheus.GaugeValue, 1, cli.Version())
}
