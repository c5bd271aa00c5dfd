package stationd

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/station"
)

// send posts a form as the page does.
func (r *running) send(path string, form url.Values) int {
	r.t.Helper()
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, "http://"+r.Addr()+path, strings.NewReader(form.Encode()))
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// A work order and its label, scanned on the page: the wrong board fails and is
// not enrolled, the right one passes, and the count goes on after a restart.
func TestScanToPass(t *testing.T) {
	f := newFactory(t)
	f.extra = "[policy]\nlabel = \"required\"\n"
	d := f.start()
	if code := d.send("/scan", url.Values{"text": {"WO-1;20"}}); code != http.StatusNoContent {
		t.Fatalf("scanning a work order: %d", code)
	}
	one, other := newBoard(), newBoard()
	try := func(put *fixtures.Board, reason station.Reason) {
		t.Helper()
		unplug := f.plug(f.ports[0], put)
		slot := d.await("a verdict", func(s station.Status) bool {
			return s.Slots[0].State == station.Passed || s.Slots[0].State == station.Failed
		}).Slots[0]
		if slot.Reason != reason || slot.Device != put.ID() {
			t.Errorf("the slot shows %+v, want %q", slot, reason)
		}
		unplug()
		d.awaitSlot(0, station.Absent)
	}
	try(one, station.ReasonLabelMissing)
	if code := d.send("/scan", url.Values{"text": {strings.ToUpper(other.ID())}, "slot": {"A"}}); code != http.StatusNoContent {
		t.Fatalf("scanning a label: %d", code)
	}
	try(one, station.ReasonLabelMismatch)
	try(other, station.ReasonLabelMissing) // its label was used up
	if code := d.send("/scan", url.Values{"text": {other.ID()}}); code != http.StatusNoContent {
		t.Fatalf("scanning a label: %d", code)
	}
	try(other, "")
	if status := d.Status(); status.Lot.Passed != 1 || status.Lot.Failed != 3 || len(status.Recent) != 4 || status.Scan != nil {
		t.Errorf("%+v, the last %+v, %+v waits", status.Lot, status.Recent, status.Scan)
	}
	want := *d.Status().Lot
	d.stop()
	if report := f.verify(); report.Records != 1 {
		t.Errorf("the journal holds %+v", report)
	}
	d = f.start()
	if got := *d.Status().Lot; got != want || got.Name != "WO-1" || got.Planned != 20 {
		t.Errorf("after a restart the lot is %+v, it was %+v", got, want)
	}
	if code := d.send("/lot", url.Values{"name": {"WO-2"}}); code != http.StatusNoContent {
		t.Errorf("another lot: %d", code)
	}
	if got := *d.Status().Lot; got.Name != "WO-2" || got.Passed != 0 {
		t.Errorf("the lot is %+v", got)
	}
	d.stop()
	d = f.start()
	if code := d.send("/scan", url.Values{"text": {"WO-1"}}); code != http.StatusNoContent {
		t.Errorf("the lot of before: %d", code)
	}
	if got := *d.Status().Lot; got != want {
		t.Errorf("the lot of before is %+v, it was %+v", got, want)
	}
}

// A file that is damaged is told, and begun anew; it stops nothing.
func TestCountedIsDamaged(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"cut short":    {`{"name":"WO-1","plan`, "unexpected end of JSON"},
		"empty":        {"", "unexpected end of JSON"},
		"zeros":        {"\x00\x00\x00", "invalid character"},
		"a bad name":   {`{"name":"a\nb","since":"2026-01-02T03:04:05Z"}`, "printable characters"},
		"a bad number": {`{"planned":"many","since":"2026-01-02T03:04:05Z"}`, "cannot unmarshal"},
		"no time":      {`{"name":"WO-1"}`, "since when"},
		"large":        {`{"name":"` + strings.Repeat(" ", maxCounted) + `"}`, "larger than 16384 bytes"},
		"before it":    {`{"name":"WO-1","since":"2026-01-02T03:04:05Z","earlier":[{"name":"WO-0","planned":-1,"since":"2026-01-02T03:04:05Z"}]}`, "0 to 10000000"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFactory(t)
			path := filepath.Join(f.state, countedName)
			if err := os.Mkdir(f.state, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if lot, earlier, err := openWorkOrders(f.state).load(); lot != nil || earlier != nil || err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%+v, %v, want %q", lot, err, c.says)
			}
			d := f.start()
			if text := d.log.String(); !strings.Contains(text, "the name of the work order is lost") || !strings.Contains(text, c.says) {
				t.Errorf("the log does not tell of it:\n%s", text)
			}
			if code := d.send("/lot", url.Values{"name": {"WO-3"}}); code != http.StatusNoContent {
				t.Errorf("another lot: %d", code)
			}
			d.stop()
			if lot, _, err := openWorkOrders(f.state).load(); err != nil || lot == nil || lot.Name != "WO-3" {
				t.Errorf("then %+v is kept, %v", lot, err)
			}
		})
	}
}

func TestCountedIsNotThere(t *testing.T) {
	c := openWorkOrders(t.TempDir())
	if lot, earlier, err := c.load(); lot != nil || earlier != nil || err != nil {
		t.Errorf("%+v, %+v, %v", lot, earlier, err)
	}
	want := station.Lot{Name: "WO-1", Planned: 9, Since: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)}
	for _, before := range [][]station.Lot{nil, {{Name: strings.Repeat("<", 64), Planned: 7, Since: want.Since}, {Name: "WO-0", Since: want.Since}}} {
		if err := c.keep(want, before); err != nil {
			t.Fatal(err)
		}
		if lot, earlier, err := c.load(); err != nil || lot == nil || *lot != want || !slices.Equal(earlier, before) {
			t.Errorf("%+v, %+v, %v, want %+v", lot, earlier, err, before)
		}
	}
	if err := openWorkOrders("/nonexistent").keep(want, nil); err == nil || !strings.Contains(err.Error(), "keeping the work order") {
		t.Errorf("where nothing can be written: %v", err)
	}
	if left, err := filepath.Glob(c.path + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
