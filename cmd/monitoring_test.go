package cmd_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	issuermetrics "secretfree/cmd/internal/issuerd/metrics"
	"secretfree/cmd/internal/metric"
	"secretfree/cmd/internal/stationd"
	"secretfree/station"
)

const monitoring = "../systemd/monitoring"

// shown are the metrics that there are, by name.
func shown() map[string]metric.Metric {
	all := map[string]metric.Metric{}
	for _, m := range slices.Concat(stationd.Metrics(), issuermetrics.Metrics()) {
		all[m.Name] = m
	}
	return all
}

// some is a collector that shows each metric once.
type some map[string]metric.Metric

func (s some) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range s {
		ch <- m.Desc()
	}
}

func (s some) Collect(ch chan<- prometheus.Metric) {
	for _, m := range s {
		labels := make([]string, len(m.Labels))
		if m.Kind == metric.Histogram {
			m.SendDurations(ch, 0, 0, station.DurationBounds(), nil, labels...)
		} else {
			m.Send(ch, 1, labels...)
		}
	}
}

// Names and kinds are as Prometheus wants them.
func TestMetricNames(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(some(shown()))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != len(shown()) || len(families) < 40 {
		t.Fatalf("%d of %d metrics: this test looks at too few", len(families), len(shown()))
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Each metric has its row in the table, with its kind and its labels, and each
// row its metric.
func TestMetricTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(monitoring, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:stationd|issuerd)_[a-z_]+)` .*$").FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = m[0]
	}
	var want []string
	for _, m := range slices.Concat(stationd.Metrics(), issuermetrics.Metrics()) {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		row := fmt.Sprintf("| `%s` | %s | %s | %s |", m.Name, m.Kind, labels, m.Help)
		want = append(want, row)
		if rows[m.Name] != row {
			t.Errorf("the table lacks, or has otherwise:\n%s", row)
		}
		delete(rows, m.Name)
	}
	for name := range rows {
		t.Errorf("the table has %s, and there is no such metric", name)
	}
	if t.Failed() {
		t.Logf("all of them:\n%s", strings.Join(want, "\n"))
	}
}

var (
	metricPattern = regexp.MustCompile(`\b((?:stationd|issuerd)_[a-z_]+)(?:\{([^}]*)\})?`)
	labelPattern  = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)
	byPattern     = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
)

// checkQuery reports what a query asks for that is not there: metrics, their
// labels, and values of labels that are a closed list.
func checkQuery(all map[string]metric.Metric, query string) (problems []string) {
	known := map[string]bool{"instance": true, "job": true, "le": true}
	for _, m := range metricPattern.FindAllStringSubmatch(query, -1) {
		of, ok := all[m[1]]
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			if base, found := all[strings.TrimSuffix(m[1], part)]; !ok && found && base.Kind == metric.Histogram {
				of, ok = base, true
			}
		}
		if !ok {
			problems = append(problems, "there is no metric "+m[1])
			continue
		}
		if of.Kind == metric.Counter && !regexp.MustCompile(`(?:rate|increase)\(`+m[1]+`\b`).MatchString(query) {
			problems = append(problems, m[1]+" counts, and the query wants its value")
		}
		for _, label := range of.Labels {
			known[label] = true
		}
		for _, l := range labelPattern.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "instance" && l[1] != "job" && l[1] != "le" && !slices.Contains(of.Labels, l[1]) {
				problems = append(problems, fmt.Sprintf("%s has no label %s", m[1], l[1]))
			}
			if l[1] == "reason" {
				for reason := range strings.SplitSeq(l[2], "|") {
					if !slices.Contains(station.Reasons(), station.Reason(reason)) {
						problems = append(problems, "there is no reason "+reason)
					}
				}
			}
		}
	}
	for _, m := range byPattern.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			if label = strings.TrimSpace(label); !known[label] && !(strings.Contains(m[0], "without") && label == "slot") {
				problems = append(problems, "nothing in the query has the label "+label)
			}
		}
	}
	return problems
}

func TestCheckQuery(t *testing.T) {
	all := shown()
	for query, want := range map[string]string{
		`sum by (reason) (increase(stationd_boards_failed_total{instance=~"$station"}[1h]))`: "",
		`histogram_quantile(0.9, rate(stationd_delivery_delay_seconds_bucket[5m]))`:          "",
		`stationd_nothing > 1`:                                          "there is no metric stationd_nothing",
		`stationd_spool_pending_records_bucket`:                         "there is no metric stationd_spool_pending_records_bucket",
		`stationd_healthy{slot="A"}`:                                    "stationd_healthy has no label slot",
		`sum by (color) (stationd_healthy)`:                             "nothing in the query has the label color",
		`stationd_boards_passed_total`:                                  "stationd_boards_passed_total counts, and the query wants its value",
		`increase(stationd_boards_failed_total{reason="bad-mood"}[1h])`: "there is no reason bad-mood",
	} {
		if got := strings.Join(checkQuery(all, query), "; "); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

type alert struct{ name, expr string }

// alerts reads the rules, which have each value on one line.
func alerts(t *testing.T) (list []alert) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(monitoring, "secretfree.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(string(text), "- alert: ") {
		name, rest, _ := strings.Cut(part, "\n")
		if strings.HasPrefix(part, "#") {
			continue
		}
		m := regexp.MustCompile(`(?m)^ +expr: (.+)$`).FindStringSubmatch(rest)
		if m == nil {
			t.Fatalf("%s has no expr on one line", name)
		}
		for _, key := range []string{"severity: (?:critical|warning|info)$", "summary: '.{20,}'$", "action: '.{20,}'$"} {
			if !regexp.MustCompile("(?m)^ +" + key).MatchString(rest) {
				t.Errorf("%s has no %s", name, key)
			}
		}
		list = append(list, alert{name, m[1]})
	}
	if len(list) < 20 {
		t.Fatalf("%d alerts: this test looks at too few", len(list))
	}
	return list
}

// An alert asks for what there is, says what to do, is listed for people, and
// has a test in which it fires.
func TestAlerts(t *testing.T) {
	tests, err := os.ReadFile(filepath.Join(monitoring, "secretfree.test.yml"))
	if err != nil {
		t.Fatal(err)
	}
	all := shown()
	for _, a := range alerts(t) {
		for _, problem := range checkQuery(all, a.expr) {
			t.Errorf("%s: %s", a.name, problem)
		}
		if !strings.Contains(string(tests), "labels: '{alertname=\""+a.name+"\"}'") {
			t.Errorf("no test in which %s fires", a.name)
		}
	}
}

// promtool understands the rules, and they fire when they should, and only
// then. .ci/monitoring.sh gets it.
func TestRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("there is no promtool; .ci/monitoring.sh runs this with it")
	}
	for _, args := range [][]string{{"check", "rules", "secretfree.rules.yml"}, {"test", "rules", "secretfree.test.yml"}} {
		command := exec.CommandContext(t.Context(), promtool, args...)
		command.Dir = monitoring
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

type dashboard struct {
	UID           string
	Title         string
	SchemaVersion int
	Time          struct{ From, To string }
	Templating    struct {
		List []struct{ Name, Type, Definition string }
	}
	Panels []panel
}

type source struct{ Type, UID string }

type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource source
	GridPos    struct{ X, Y, W, H int }
	Targets    []struct {
		RefID        string
		Datasource   source
		Expr         string
		LegendFormat string
	}
}

// The dashboard asks for what there is, of the Prometheus that is chosen, and
// every metric of it can be seen or has an alert.
func TestDashboard(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(monitoring, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 36 || d.Time.From == "" || len(d.Panels) < 15 {
		t.Errorf("%q %q, schema %d, %d panels", d.UID, d.Title, d.SchemaVersion, len(d.Panels))
	}
	all, used := shown(), map[string]bool{}
	variables := map[string]string{}
	for _, v := range d.Templating.List {
		variables[v.Name] = v.Type
		for _, problem := range checkQuery(all, v.Definition) {
			t.Errorf("the variable %s: %s", v.Name, problem)
		}
	}
	if variables["datasource"] != "datasource" {
		t.Errorf("the variables are %v", variables)
	}
	note := func(query string) {
		for _, m := range metricPattern.FindAllStringSubmatch(query, -1) {
			used[m[1]] = true
		}
	}
	prometheusSource := source{Type: "prometheus", UID: "${datasource}"}
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" {
			t.Errorf("the panel %q has no title, or no id of its own: %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%q lies over %q, or off the page", p.Title, other)
				}
				taken[[2]int{x, y}] = cmp.Or(p.Title, "?")
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Datasource != prometheusSource || len(p.Targets) == 0 {
			t.Errorf("%q: %+v, %d queries", p.Title, p.Datasource, len(p.Targets))
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			note(q.Expr)
			if q.Datasource != prometheusSource || refs[q.RefID] || q.RefID == "" {
				t.Errorf("%q: %+v", p.Title, q)
			}
			refs[q.RefID] = true
			for _, problem := range checkQuery(all, q.Expr) {
				t.Errorf("%q: %s", p.Title, problem)
			}
			for _, m := range regexp.MustCompile(`\$(\w+)|\$\{(\w+)\}`).FindAllStringSubmatch(q.Expr, -1) {
				if name := cmp.Or(m[1], m[2]); variables[name] == "" && name != "__rate_interval" {
					t.Errorf("%q: there is no variable %s", p.Title, name)
				}
			}
		}
	}
	for _, a := range alerts(t) {
		note(a.expr)
	}
	for name, m := range all {
		seen := used[name]
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			seen = seen || m.Kind == metric.Histogram && used[name+part]
		}
		if !seen {
			t.Errorf("nobody looks at %s", name)
		}
	}
}
