package station

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/csv"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"secretfree/station/board"
)

//go:embed report.html
var reportHTML string

var reportPage = template.Must(template.Must(template.New("report").Parse(layoutHTML)).Parse(reportHTML))

const (
	dayLayout   = "2006-01-02"
	clockLayout = "15:04"
	maxFailures = 500 // that the page lists; the CSV has all
)

// period is what a report is about: a day in the station's zone, or a shift
// that begins on it.
type period struct {
	Day        string // as 2026-11-29
	Start, End string // as 06:00 and 14:00; empty for the whole day
	from, to   time.Time
	date       time.Time
}

var errPeriod = errors.New("not a day, or not the hours of a shift")

// readPeriod reads day, from and to of a query; what is not there is today, and
// the whole day. A shift that ends before it begins ends on the next day.
func readPeriod(q url.Values, now time.Time, zone *time.Location) (period, error) {
	p := period{Day: q.Get("day"), Start: q.Get("from"), End: q.Get("to")}
	if p.Day == "" {
		p.Day = now.In(zone).Format(dayLayout)
	}
	date, err := time.Parse(dayLayout, p.Day)
	if err != nil || date.Year() < 2000 || date.Year() > 9990 {
		return period{}, errPeriod
	}
	p.date = date
	var start, end time.Time // of which only the clock counts
	for _, clock := range []struct {
		text *string
		at   *time.Time
	}{{&p.Start, &start}, {&p.End, &end}} {
		if *clock.text == "" {
			continue
		}
		if *clock.at, err = time.Parse(clockLayout, *clock.text); err != nil {
			return period{}, errPeriod
		}
		*clock.text = clock.at.Format(clockLayout) // 9:00 is read too
	}
	at := func(days int, c time.Time) time.Time {
		return time.Date(date.Year(), date.Month(), date.Day()+days, c.Hour(), c.Minute(), 0, 0, zone)
	}
	days := 0
	if p.End == "" || p.End <= cmp.Or(p.Start, "00:00") {
		days = 1
	}
	p.from, p.to = at(0, start), at(days, end)
	return p, nil
}

// query is the part of an address that asks for the same hours, so many days
// later.
func (p period) query(days int) string {
	q := url.Values{"day": {p.date.AddDate(0, 0, days).Format(dayLayout)}}
	if p.Start != "" {
		q.Set("from", p.Start)
	}
	if p.End != "" {
		q.Set("to", p.End)
	}
	return q.Encode()
}

// tally counts verdicts.
type tally struct {
	Name                     string
	Passed, Repeated, Failed int
}

func (t *tally) add(v Verdict) {
	switch {
	case v.State == Failed:
		t.Failed++
	case v.Repeat:
		t.Repeated++
	default:
		t.Passed++
	}
}

// failure of a board, as a report lists it.
type reportFailure struct {
	Verdict
	Later bool // it passed later in the period
}

type reason struct {
	Reason Reason
	Count  int
}

// report is what comes of the verdicts of a period.
type report struct {
	Total                        tally
	Reasons                      []reason // the most frequent first
	Slots, Hours                 []tally
	Boards, First                int // boards that were tried, and of these those that passed the first time
	Delivered, Waiting, Rejected int // boards that passed
	Failures                     []reportFailure
}

// Yield is First of Boards in percent, with one digit.
func (r *report) Yield() string {
	if r.Boards == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(r.First)/float64(r.Boards))
}

// countVerdicts counts. A board is its id. A failure of which the id is not
// known is of a board only if a later verdict of the same insertion names it:
// another board that passes in the same slot says nothing about it. A board
// that was enrolled before the period is not counted among the boards.
func countVerdicts(verdicts []Verdict, zone *time.Location) *report {
	type tried struct{ failed, passed, known bool }
	r := &report{}
	reasons := map[Reason]int{}
	slots, hours := map[string]*tally{}, map[time.Time]*tally{}
	count := func(v Verdict) {
		r.Total.add(v)
		if slots[v.Slot] == nil {
			slots[v.Slot] = &tally{Name: v.Slot}
		}
		slots[v.Slot].add(v)
		at := v.Time.In(zone)
		hour := at.Add(-time.Duration(at.Minute())*time.Minute - time.Duration(at.Second())*time.Second - time.Duration(at.Nanosecond()))
		if hours[hour] == nil {
			hours[hour] = &tally{Name: hour.Format("15:04")}
		}
		hours[hour].add(v)
	}
	boards := map[board.DeviceID]*tried{}
	nameless := map[uint64][]int{} // by the entry of the insertion's newest verdict, places in Failures of boards whose id is not known
	settle := map[board.DeviceID][]int{}
	for _, v := range verdicts {
		count(v)
		if v.State == Failed {
			reasons[v.Reason]++
		}
		if !v.Device.Valid() {
			r.Failures = append(r.Failures, reportFailure{Verdict: v})
			nameless[v.Entry] = append(v.before(nameless), len(r.Failures)-1)
			continue
		}
		b := boards[v.Device]
		if b == nil {
			b = &tried{known: v.State == Passed && v.Repeat}
			boards[v.Device] = b
		}
		if waiting := v.before(nameless); len(waiting) > 0 {
			b.failed = b.failed || !b.passed
			settle[v.Device] = append(settle[v.Device], waiting...)
		}
		if v.State == Failed {
			r.Failures = append(r.Failures, reportFailure{Verdict: v})
			// A board that gives itself out for one that has passed is not that
			// one.
			if v.Reason != ReasonDeviceConflict {
				settle[v.Device] = append(settle[v.Device], len(r.Failures)-1)
				b.failed = b.failed || !b.passed
			} else if !b.passed {
				b.failed = true
			}
			continue
		}
		if !v.Repeat {
			switch v.Delivery {
			case Confirmed:
				r.Delivered++
			case Rejected:
				r.Rejected++
			default:
				r.Waiting++
			}
		}
		b.passed = true
		for _, i := range settle[v.Device] {
			r.Failures[i].Later = true
		}
		delete(settle, v.Device)
	}
	for _, b := range boards {
		if b.known {
			continue
		}
		r.Boards++
		if b.passed && !b.failed {
			r.First++
		}
	}
	unknown := map[string]bool{} // slots: nobody knows how many boards these were; they count as one in each slot
	for _, waiting := range nameless {
		for _, i := range waiting {
			unknown[r.Failures[i].Slot] = true
		}
	}
	r.Boards += len(unknown)
	for word, n := range reasons {
		r.Reasons = append(r.Reasons, reason{word, n})
	}
	slices.SortFunc(r.Reasons, func(a, b reason) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason)) })
	for _, t := range slots {
		r.Slots = append(r.Slots, *t)
	}
	slices.SortFunc(r.Slots, func(a, b tally) int { return cmp.Compare(a.Name, b.Name) })
	var order []time.Time
	for hour := range hours {
		order = append(order, hour)
	}
	slices.SortFunc(order, time.Time.Compare)
	for _, hour := range order {
		r.Hours = append(r.Hours, *hours[hour])
	}
	return r
}

// before takes from the failures of unknown boards those of the same insertion.
func (v Verdict) before(nameless map[uint64][]int) []int {
	if v.After == nil {
		return nil
	}
	waiting := nameless[*v.After]
	delete(nameless, *v.After)
	return waiting
}

type reportView struct {
	pageData
	period
	*report
	Before, After, CSV string // addresses
	Hidden             int    // failures that are not listed
}

// From and To are the ends of the period, for the page.
func (v reportView) From() time.Time { return v.from }
func (v reportView) To() time.Time   { return v.to }

// Yield is written as numbers are in the language.
func (v reportView) Yield() string {
	return strings.Replace(v.report.Yield(), ".", v.Say("decimal-point"), 1)
}

func (s *Station) serveReport(w http.ResponseWriter, r *http.Request) {
	s.report(w, r, func(w http.ResponseWriter, p period, verdicts []Verdict) {
		v := reportView{pageData: s.pageData(w, r, "report"), period: p, report: countVerdicts(verdicts, s.zone),
			Before: "/report?" + p.query(-1), After: "/report?" + p.query(1), CSV: "/report.csv?" + p.query(0)}
		if n := len(v.Failures); n > maxFailures {
			v.Failures, v.Hidden = v.Failures[:maxFailures], n-maxFailures
		}
		// Slots stand as on the page; those that it does not have any more come
		// last.
		place := func(t tally) int {
			if i := slices.IndexFunc(s.slots, func(c SlotConfig) bool { return c.Name == t.Name }); i >= 0 {
				return i
			}
			return len(s.slots)
		}
		slices.SortStableFunc(v.Slots, func(a, b tally) int { return cmp.Compare(place(a), place(b)) })
		s.render(w, http.StatusOK, reportPage, v)
	})
}

func (s *Station) report(w http.ResponseWriter, r *http.Request, show func(http.ResponseWriter, period, []Verdict)) {
	p, err := readPeriod(r.URL.Query(), time.Now(), s.zone)
	if err != nil {
		s.problem(w, r, http.StatusBadRequest, "report-period")
		return
	}
	s.lookBack(w, r, func(ctx context.Context, w http.ResponseWriter) error {
		verdicts, err := s.history.Between(ctx, p.from, p.to)
		if err != nil {
			return err
		}
		show(w, p, verdicts)
		return nil
	})
}

// serveReportCSV gives each verdict as a line of RFC 4180. Its keys are stable.
func (s *Station) serveReportCSV(w http.ResponseWriter, r *http.Request) {
	s.report(w, r, func(w http.ResponseWriter, p period, verdicts []Verdict) {
		var b bytes.Buffer
		out := csv.NewWriter(&b)
		out.UseCRLF = true
		out.Write([]string{"time", "station", "slot", "result", "reason", "device", "other_device", "delivery", "work_order"})
		for _, v := range verdicts {
			result, reason := string(v.State), string(v.Reason)
			if v.Repeat {
				result = "repeated"
			}
			device, other := "", ""
			if v.Device.Valid() {
				device = v.Device.String()
			}
			if v.Other.Valid() {
				other = v.Other.String()
			}
			cells := []string{v.Time.In(s.zone).Format("2006-01-02T15:04:05.000Z07:00"), s.name, v.Slot, result, reason, device, other, string(v.Delivery), v.Lot}
			for i := range cells {
				cells[i] = cell(cells[i])
			}
			out.Write(cells)
		}
		out.Flush() // into memory: it cannot fail
		name := s.name + "-" + p.Day
		if p.Start != "" || p.End != "" {
			name += "-" + strings.ReplaceAll(cmp.Or(p.Start, "00:00")+"-"+cmp.Or(p.End, "24:00"), ":", "")
		}
		w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
		w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", name+".csv"))
		w.Write(b.Bytes())
	})
}

// cell is text that no spreadsheet takes for a formula.
func cell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r\n", rune(text[0])) {
		return "'" + text
	}
	return text
}
