// Package metric describes what the daemons show to Prometheus: each metric
// once, with what the documents, the alerts and the dashboard are checked
// against.
package metric

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is how a metric behaves.
type Kind string

// The kinds that there are.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Metric is one of them.
type Metric struct {
	Name, Help string
	Kind       Kind
	Labels     []string
	desc       *prometheus.Desc
}

// New describes one.
func New(kind Kind, name, help string, labels ...string) Metric {
	return Metric{Name: name, Help: help, Kind: kind, Labels: labels, desc: prometheus.NewDesc(name, help, labels, nil)}
}

// Desc is what a collector describes.
func (m Metric) Desc() *prometheus.Desc { return m.desc }

// Send gives the value of a counter or a gauge.
func (m Metric) Send(ch chan<- prometheus.Metric, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if m.Kind == Counter {
		kind = prometheus.CounterValue
	}
	ch <- prometheus.MustNewConstMetric(m.desc, kind, value, labels...)
}

// SendBool gives 1 or 0.
func (m Metric) SendBool(ch chan<- prometheus.Metric, value bool, labels ...string) {
	n := 0.0
	if value {
		n = 1
	}
	m.Send(ch, n, labels...)
}

// SendTime gives a moment in Unix time; nothing if there was none yet.
func (m Metric) SendTime(ch chan<- prometheus.Metric, at time.Time, labels ...string) {
	if !at.IsZero() {
		m.Send(ch, float64(at.UnixMilli())/1000, labels...)
	}
}

// SendDurations gives the value of a histogram: how many there were and their
// sum, and how many took up to each of the bounds. No buckets are empty ones.
func (m Metric) SendDurations(ch chan<- prometheus.Metric, count uint64, sum time.Duration, bounds []time.Duration, buckets []uint64, labels ...string) {
	upTo := map[float64]uint64{}
	for i, bound := range bounds {
		n := uint64(0)
		if buckets != nil {
			n = buckets[i]
		}
		upTo[bound.Seconds()] = n
	}
	ch <- prometheus.MustNewConstHistogram(m.desc, count, sum.Seconds(), upTo, labels...)
}
