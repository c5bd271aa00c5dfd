package station

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

// past is a history in memory.
type past struct {
	found    []Verdict
	more     bool
	board    BoardHistory
	between  []Verdict
	counts   Counts
	proof    []byte
	err      error
	wait     chan struct{} // if set, every call waits for it or for its context
	asked    []string
	under    atomic.Int32
	together atomic.Int32 // the most calls at once
}

func (p *past) enter(ctx context.Context, what string) error {
	n := p.under.Add(1)
	defer p.under.Add(-1)
	for most := p.together.Load(); n > most && !p.together.CompareAndSwap(most, n); most = p.together.Load() {
	}
	p.asked = append(p.asked, what)
	if p.wait != nil {
		select {
		case <-p.wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return p.err
}

func (p *past) Find(ctx context.Context, text string) ([]Verdict, bool, error) {
	return p.found, p.more, p.enter(ctx, "find "+text)
}

func (p *past) Board(ctx context.Context, device board.DeviceID) (BoardHistory, error) {
	return p.board, p.enter(ctx, "board "+device.String())
}

func (p *past) Recent(context.Context, int) ([]Verdict, error) { return p.found, p.err }

func (p *past) Count(context.Context) (Counts, error) { return p.counts, p.err }

func (p *past) CountLot(context.Context, string, time.Time) (Counts, error) { return p.counts, p.err }

func (p *past) Between(ctx context.Context, from, to time.Time) ([]Verdict, error) {
	return p.between, p.enter(ctx, from.UTC().Format(time.RFC3339)+" "+to.UTC().Format(time.RFC3339))
}

func (p *past) Proof(ctx context.Context, device board.DeviceID) ([]byte, error) {
	return p.proof, p.enter(ctx, "proof "+device.String())
}

func (p *past) Transcript(name string) ([]byte, error) {
	if name != "20260102T030405.000000000Z-A-passed.uart" {
		return nil, ErrNoTranscript
	}
	return []byte("transcript: 1\nexpect: <script>\n"), nil
}

func lookingBack(t *testing.T, p *past) *testStation {
	t.Helper()
	b := shown(t, func(c *Config) { c.History, c.Evidence = p, p }, slotState{state: Empty, advice: adviceEmpty})
	b.zone = time.FixedZone("CET", 3600)
	return b
}

func id(n byte) board.DeviceID { return board.DeviceID{0x4d, 0x1f, 0x8e, 15: n} }

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// hostile is what a board or a registry may say.
const hostile = "</dd><script>alert(1)</script>\"'><img src=x onerror=x>\u202egnp.exe\x1b[31m\x00\u200b\ufeff"

func hostileBoard(t *testing.T) BoardHistory {
	t.Helper()
	b := newBoard()
	key, err := board.NewKey(b.Key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	record := board.Record{SKU: "widgiot", Station: "line3-a", Device: id(1), Key: key, ReadAt: noon, Generation: 1, Facts: map[string]string{"build": hostile, "mac": "08:00:28:5b:55:e0"}}
	return BoardHistory{
		Device: id(1), Enrolled: noon, Entry: 7, Fingerprint: record.Fingerprint(), Record: &record, Refused: hostile, Slot: hostile, Older: 3,
		Verdicts:    []Verdict{{Time: noon, Slot: hostile, State: Passed, Repeat: true, Device: id(1)}, {Time: noon, State: Failed, Reason: Reason(hostile), Device: id(2), Other: id(1)}},
		Transcripts: []TranscriptName{{Name: "20260102T030405.000000000Z-A-passed.uart", Time: noon, Slot: hostile, Passed: false, Reason: Reason(hostile)}},
	}
}

// Whatever others said stays text, in every page that looks back, and what
// would turn or hide the text around it is shown as what it is.
func TestBoardPagesEscape(t *testing.T) {
	p := &past{board: hostileBoard(t), between: []Verdict{{Time: noon, Slot: hostile, State: Failed, Reason: Reason(hostile), Device: id(1)}}, found: []Verdict{{Time: noon, State: Failed, Reason: Reason(hostile), Device: id(1)}}}
	p.found = append(p.found, p.found[0])
	h := lookingBack(t, p).Handler()
	for _, path := range []string{"/boards", "/boards?q=" + "%3Cscript%3E%22%27%E2%80%AE%00abc", "/boards/" + id(1).String(), "/report?day=2026-11-29", "/report?day=%3Cscript%3E", "/boards/%3Cscript%3E", "/transcripts/%3Cscript%3E"} {
		w := ask(h, http.MethodGet, path)
		body := w.Body.String()
		for _, raw := range []string{"<script", "<img", "\"'>", "\u202e", "\x1b", "\x00", "\u200b", "\ufeff"} {
			if strings.Contains(body, raw) {
				t.Errorf("%s holds %q", path, raw)
			}
		}
		if got := w.Header().Get("Content-Security-Policy"); got != strictPolicy {
			t.Errorf("%s: the policy is %q", path, got)
		}
		if regexp.MustCompile(`<style|\sstyle=|\son[a-z]+=|javascript:`).MatchString(strings.ReplaceAll(body, " onerror=x&gt;", "")) {
			t.Errorf("%s has style or script in it:\n%s", path, body)
		}
		if strings.Contains(body, "ZgotmplZ") {
			t.Errorf("%s: the template refuses something:\n%s", path, body)
		}
	}
	if body := ask(h, http.MethodGet, "/boards/"+id(1).String()).Body.String(); !strings.Contains(body, "&lt;script&gt;alert(1)&lt;/script&gt;") || !strings.Contains(body, "\uFFFDgnp.exe\uFFFD[31m") {
		t.Errorf("what the board said is not shown:\n%s", body)
	}
}

// A board's page says all there is of it, in each language.
func TestBoardPage(t *testing.T) {
	full := hostileBoard(t)
	full.Record.Facts["build"], full.Refused, full.Slot = "1.1.2", "", "A"
	for name, c := range map[string]struct {
		change func(*BoardHistory)
		want   []string
		not    []string
	}{
		"waiting":   {func(b *BoardHistory) {}, []string{"Waiting for the cloud", "2026-11-29 13:00:00", "UTC&#43;01:00", "08:00:28:5b:55:e0", "/proof", "widgiot/line3-a", "There are 3 older entries.", full.Fingerprint.String(), "P-256", "none"}, []string{"Rejected", "In the cloud"}},
		"confirmed": {func(b *BoardHistory) { b.Delivery = Confirmed }, []string{"In the cloud"}, []string{"Waiting"}},
		"dead":      {func(b *BoardHistory) { b.Refused, b.Delivery = "device-conflict", Rejected }, []string{"Rejected by the registry: call quality", "The cloud said: device-conflict"}, []string{"Waiting"}},
		"refused":   {func(b *BoardHistory) { *b = BoardHistory{Device: id(1), Verdicts: b.Verdicts} }, []string{"Never enrolled"}, []string{"/proof", "Enrolled</span>"}},
	} {
		b := full
		c.change(&b)
		w := ask(lookingBack(t, &past{board: b}).Handler(), http.MethodGet, "/boards/"+id(1).String())
		if w.Code != 200 {
			t.Errorf("%s: %d", name, w.Code)
		}
		for _, want := range c.want {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, w.Body)
			}
		}
		for _, not := range c.not {
			if strings.Contains(w.Body.String(), not) {
				t.Errorf("%s: %q in\n%s", name, not, w.Body)
			}
		}
	}
	p := &past{board: full, found: []Verdict{{Time: noon, State: Passed, Device: id(1)}, {Time: noon, State: Failed, Reason: ReasonKeyConflict, Device: id(2)}}, between: someShift()}
	h := lookingBack(t, p).Handler()
	seen := map[string]string{}
	for _, path := range []string{"/boards", "/boards?q=abcd", "/boards/" + id(1).String(), "/report", "/login"} {
		for _, language := range Languages() {
			join := "?"
			if strings.Contains(path, "?") {
				join = "&"
			}
			body := ask(h, http.MethodGet, path+join+"lang="+language).Body.String()
			if path != "/login" && !strings.Contains(body, `<html lang="`+language+`">`) || strings.Contains(body, "%!") {
				t.Errorf("%s in %s:\n%s", path, language, body)
			}
			if other, ok := seen[path+body]; ok && path != "/login" {
				t.Errorf("%s is the same in %s and %s", path, language, other)
			}
			seen[path+body] = language
		}
	}
}

// What is looked for is handed on as it was written; one board that is found is
// shown at once.
func TestFindBoards(t *testing.T) {
	p := &past{found: []Verdict{{Time: noon, State: Passed, Device: id(1)}}}
	h := lookingBack(t, p).Handler()
	w := ask(h, http.MethodGet, "/boards?q=4D1F+8e")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/boards/"+id(1).String() || p.asked[0] != "find 4D1F 8e" {
		t.Errorf("one board: %d to %q, asked %q", w.Code, w.Header().Get("Location"), p.asked)
	}
	if w := ask(h, http.MethodGet, "/boards"); w.Code != 200 || !strings.Contains(w.Body.String(), "The newest boards.") {
		t.Errorf("the newest: %d %s", w.Code, w.Body)
	}
	p.found = nil
	if w := ask(h, http.MethodGet, "/boards?q=abcd"); !strings.Contains(w.Body.String(), "No board of this station has that.") {
		t.Errorf("none: %s", w.Body)
	}
	p.err = ErrUnfindable
	if w := ask(h, http.MethodGet, "/boards?q=xy"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "Write at least four digits") || !strings.Contains(w.Body.String(), `value="xy"`) {
		t.Errorf("nonsense: %d %s", w.Code, w.Body)
	}
	for path, c := range map[string]struct {
		err  error
		code int
		said string
	}{
		"/boards/" + id(1).String():                {ErrNoBoard, 404, "This station knows nothing of that board."},
		"/boards/nonsense":                         {nil, 404, "This station knows nothing of that board."},
		"/boards/nonsense/proof":                   {nil, 404, "This station knows nothing of that board."},
		"/boards/" + id(1).String() + "/proof":     {ErrUnsigned, 503, "This record is not signed yet."},
		"/boards?q=abcd":                           {errors.New("read /var/lib: input/output error"), 500, "Call IT: this cannot be read."},
		"/transcripts/..%2F..%2Fstation.key":       {nil, 404, "That transcript is not kept any more."},
		"/transcripts/%2Fetc%2Fpasswd":             {nil, 404, "That transcript is not kept any more."},
		"/report?day=2026-13-01":                   {nil, 400, "Write a day as 2026-11-29"},
		"/report.csv?day=2026-11-29&from=25:00":    {nil, 400, "Write a day as 2026-11-29"},
		"/report?day=" + strings.Repeat("9", 5000): {nil, 400, "Write a day as 2026-11-29"},
	} {
		p.err = c.err
		if w := ask(h, http.MethodGet, path); w.Code != c.code || !strings.Contains(w.Body.String(), c.said) || strings.Contains(w.Body.String(), "input/output") {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, c.code)
		}
	}
}

// Proofs and transcripts are files, and nothing that a browser runs.
func TestEvidence(t *testing.T) {
	h := lookingBack(t, &past{proof: []byte("c2sp.org/tlog-proof@v1\n<script>")}).Handler()
	w := ask(h, http.MethodGet, "/boards/"+id(1).String()+"/proof")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/octet-stream" || w.Header().Get("Content-Disposition") != `attachment; filename="`+id(1).String()+`.tlog-proof"` {
		t.Errorf("the proof: %d %v", w.Code, w.Header())
	}
	w = ask(h, http.MethodGet, "/transcripts/20260102T030405.000000000Z-A-passed.uart")
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || w.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(w.Header().Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("the transcript: %d %v", w.Code, w.Header())
	}
}

// However many pages look back, one does so at a time, and who waits too long
// is told.
func TestLookingBackIsBounded(t *testing.T) { synctest.Test(t, testLookingBackIsBounded) }

func testLookingBackIsBounded(t *testing.T) {
	p := &past{wait: make(chan struct{}), between: someShift()}
	b := lookingBack(t, p)
	h := b.Handler()
	start := time.Now()
	var under sync.WaitGroup
	var busy atomic.Int32
	for range 10 {
		under.Go(func() {
			w := ask(h, http.MethodGet, "/report")
			if w.Code == http.StatusServiceUnavailable && strings.Contains(w.Body.String(), "The station is busy.") && w.Header().Get("Retry-After") != "" {
				busy.Add(1)
			}
		})
	}
	under.Wait()
	if took := time.Since(start); busy.Load() != 10 || took != queryLimit {
		t.Errorf("%d of 10 were told that it is busy, after %v", busy.Load(), took)
	}
	close(p.wait)
	for range 10 {
		under.Go(func() {
			if w := ask(h, http.MethodGet, "/report"); w.Code != 200 {
				t.Errorf("afterwards: %d", w.Code)
			}
		})
	}
	under.Wait()
	if n := p.together.Load(); n != 1 {
		t.Errorf("%d looked back at once", n)
	}
}

// someShift is what came in a shift: two boards at the first try, one that was
// plugged in twice, one that failed for good, a repeat.
func someShift() []Verdict {
	at := func(minute int) time.Time { return noon.Add(time.Duration(minute) * time.Minute) }
	shift := []Verdict{
		{Time: at(0), Slot: "A", State: Passed, Device: id(1), Delivery: Confirmed},
		{Time: at(1), Slot: "B", State: Failed, Reason: ReasonTimeout},
		{Time: at(2), Slot: "A", State: Passed, Device: id(2)},
		{Time: at(3), Slot: "B", State: Passed, Device: id(3)},
		{Time: at(59), Slot: "A", State: Failed, Reason: ReasonNoProof, Device: id(4)},
		{Time: at(61), Slot: "A", State: Passed, Repeat: true, Device: id(9), Delivery: Confirmed},
		{Time: at(62), Slot: "=cmd|' /C calc'!A0", State: Failed, Reason: ReasonDeviceConflict, Device: id(1)},
		{Time: at(63), Slot: "B", State: Failed, Reason: ReasonTimeout},
	}
	for i := range shift {
		shift[i].Entry = uint64(i + 1)
	}
	shift[3].After = &shift[1].Entry // board 3 was read again without being taken out
	return shift
}

func TestReportCounts(t *testing.T) {
	r := countVerdicts(someShift(), time.UTC)
	if r.Total != (tally{"", 3, 1, 4}) {
		t.Errorf("in all: %+v", r.Total)
	}
	if fmt.Sprint(r.Reasons) != "[{timeout 2} {device-conflict 1} {no-proof 1}]" {
		t.Errorf("reasons: %v", r.Reasons)
	}
	if fmt.Sprint(r.Slots) != "[{=cmd|' /C calc'!A0 0 0 1} {A 2 1 1} {B 1 0 2}]" {
		t.Errorf("slots: %v", r.Slots)
	}
	if fmt.Sprint(r.Hours) != "[{12:00 3 0 2} {13:00 0 1 2}]" {
		t.Errorf("hours: %v", r.Hours)
	}
	// 1 and 2 passed at once, 3 on its second try, 4 never, and the last in
	// slot B neither; 9 was enrolled before.
	if r.Boards != 5 || r.First != 2 || r.Yield() != "40.0 %" || r.Delivered != 1 || r.Waiting != 2 {
		t.Errorf("%d of %d at the first try (%s), %d delivered, %d waiting", r.First, r.Boards, r.Yield(), r.Delivered, r.Waiting)
	}
	var later []bool
	for _, f := range r.Failures {
		later = append(later, f.Later)
	}
	if fmt.Sprint(later) != "[true false false false]" {
		t.Errorf("passed later: %v of %+v", later, r.Failures)
	}
	again := append(someShift(), Verdict{Time: noon.Add(2 * time.Hour), Slot: "A", State: Passed, Device: id(4)})
	if r := countVerdicts(again, time.UTC); r.First != 2 || r.Boards != 5 || !r.Failures[1].Later {
		t.Errorf("with a second try of board 4: %+v", r)
	}
	if r := countVerdicts(nil, time.UTC); r.Yield() != "–" || len(r.Slots) > 0 {
		t.Errorf("of nothing: %+v", r)
	}
	// A repeat of what passed in the same period is no second board, and no
	// failure.
	twice := []Verdict{{Time: noon, Slot: "A", State: Passed, Device: id(1)}, {Time: noon, Slot: "A", State: Passed, Repeat: true, Device: id(1)}, {Time: noon, Slot: "A", State: Failed, Reason: ReasonNoProof, Device: id(1)}}
	if r := countVerdicts(twice, time.UTC); r.Boards != 1 || r.First != 1 {
		t.Errorf("of one board: %d of %d", r.First, r.Boards)
	}
	half := time.FixedZone("NPT", 5*3600+45*60)
	if r := countVerdicts(someShift(), half); r.Hours[0].Name != "17:00" {
		t.Errorf("where the hours begin elsewhere: %v", r.Hours)
	}
}

func TestReportPeriods(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("this machine has no time zones:", err)
	}
	now := time.Date(2026, 11, 28, 23, 30, 0, 0, time.UTC) // it is the 29th in Berlin
	b := lookingBack(t, &past{})
	b.zone = berlin
	for query, want := range map[string]string{
		"":                                   "2026-11-28T23:00:00Z 2026-11-29T23:00:00Z",
		"day=2026-03-29":                     "2026-03-28T23:00:00Z 2026-03-29T22:00:00Z", // 23 hours
		"day=2026-10-25":                     "2026-10-24T22:00:00Z 2026-10-25T23:00:00Z", // 25 hours
		"day=2026-11-29&from=06:00&to=14:00": "2026-11-29T05:00:00Z 2026-11-29T13:00:00Z",
		"day=2026-11-29&from=22:00&to=06:00": "2026-11-29T21:00:00Z 2026-11-30T05:00:00Z",
		"day=2026-11-29&from=9:00&to=14:00":  "2026-11-29T08:00:00Z 2026-11-29T13:00:00Z",
		"day=2026-11-29&from=22:00&to=6:00":  "2026-11-29T21:00:00Z 2026-11-30T05:00:00Z",
		"day=2026-11-29&from=22:00":          "2026-11-29T21:00:00Z 2026-11-29T23:00:00Z",
		"day=2026-11-29&to=06:00":            "2026-11-28T23:00:00Z 2026-11-29T05:00:00Z",
		"day=2026-11-29&from=06:00&to=06:00": "2026-11-29T05:00:00Z 2026-11-30T05:00:00Z",
	} {
		r, _ := http.NewRequest(http.MethodGet, "/report?"+query, nil)
		p, err := readPeriod(r.URL.Query(), now, berlin)
		if got := p.from.UTC().Format(time.RFC3339) + " " + p.to.UTC().Format(time.RFC3339); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", query, got, err, want)
		}
		if back := p.query(0); !strings.Contains(back, "day="+p.Day) || strings.Contains(query, "from") != strings.Contains(back, "from=") {
			t.Errorf("%s: asks for %s", query, back)
		}
		if p.Start != "" && len(p.Start) != len("15:04") || p.End != "" && len(p.End) != len("15:04") {
			t.Errorf("%s: from %q to %q", query, p.Start, p.End)
		}
	}
	for _, query := range []string{"day=tomorrow", "day=2026-02-30", "day=0001-01-01", "day=9999-12-31", "from=6", "to=24:00", "from=-1:00", "from=06:00:00", "day=2026-11-29T00:00"} {
		r, _ := http.NewRequest(http.MethodGet, "/report?"+query, nil)
		if _, err := readPeriod(r.URL.Query(), now, berlin); !errors.Is(err, errPeriod) {
			t.Errorf("%s: %v", query, err)
		}
	}
	r, _ := http.NewRequest(http.MethodGet, "/report?day=2026-03-01&from=22:00&to=06:00", nil)
	p, err := readPeriod(r.URL.Query(), now, berlin)
	if err != nil || p.query(-1) != "day=2026-02-28&from=22%3A00&to=06%3A00" || p.query(1) != "day=2026-03-02&from=22%3A00&to=06%3A00" {
		t.Errorf("before and after: %s %s %v", p.query(-1), p.query(1), err)
	}
}

// The report lists slots as the page does, and those of yesterday after them;
// numbers and zones are written as people do.
func TestReportReads(t *testing.T) {
	p := &past{}
	for _, slot := range []string{"10", "old", "2", "1"} {
		p.between = append(p.between, Verdict{Time: noon, Slot: slot, State: Failed, Reason: ReasonTimeout, Device: id(byte(len(p.between)))})
	}
	p.between = append(p.between, Verdict{Time: noon, Slot: "1", State: Passed, Device: id(9)})
	b := lookingBack(t, p)
	b.slots = []SlotConfig{{Name: "1"}, {Name: "2"}, {Name: "10"}}
	p.between = append(p.between, Verdict{Time: noon, Slot: "1", State: Failed, Reason: ReasonTimeout, Transcript: "20261129T120000.000000000Z-1-timeout.uart"})
	body := ask(b.Handler(), http.MethodGet, "/report?day=2026-11-29&lang=de").Body.String()
	if want := `<a href="/transcripts/20261129T120000.000000000Z-1-timeout.uart">` + b.languages["de"].Say("report-unread") + "</a>"; !strings.Contains(body, want) {
		t.Errorf("no %s in\n%s", want, body)
	}
	_, slots, _ := strings.Cut(body, b.languages["de"].Say("report-slots"))
	slots, _, _ = strings.Cut(slots, "</table>")
	var got []string
	for _, m := range regexp.MustCompile(`<td class="said">([^<]*)</td>`).FindAllStringSubmatch(slots, -1) {
		got = append(got, m[1])
	}
	if strings.Join(got, " ") != "1 2 10 old" {
		t.Errorf("the slots are %q", got)
	}
	if !strings.Contains(body, "16,7 %") {
		t.Errorf("no 16,7 %% in\n%s", body)
	}
	for zone, want := range map[*time.Location]string{time.UTC: "UTC", time.FixedZone("+07", 7*3600): "UTC+07:00", time.FixedZone("CET", 3600): "CET, UTC+01:00"} {
		if got := (pageData{Zone: zone}).ZoneName(noon); got != want {
			t.Errorf("the zone %s is %q, want %q", zone, got, want)
		}
	}
}

func FuzzReportPeriod(f *testing.F) {
	f.Add("2026-11-29", "06:00", "14:00")
	f.Add("2026-10-25", "", "")
	f.Add("", "23:59", "00:00")
	f.Add("", "9:00", "14:00")
	f.Fuzz(func(t *testing.T, day, from, to string) {
		p, err := readPeriod(map[string][]string{"day": {day}, "from": {from}, "to": {to}}, noon, time.UTC)
		if err != nil {
			return
		}
		if d := p.to.Sub(p.from); d <= 0 || d > 24*time.Hour {
			t.Errorf("%q %q %q: %v", day, from, to, d)
		}
	})
}

// The page and the CSV say what happened, in the zone of the station; no cell
// is a formula.
func TestReport(t *testing.T) {
	p := &past{between: someShift()}
	h := lookingBack(t, p).Handler()
	w := ask(h, http.MethodGet, "/report?day=2026-11-29&from=06:00&to=22:00")
	body := w.Body.String()
	if p.asked[0] != "2026-11-29T05:00:00Z 2026-11-29T21:00:00Z" {
		t.Errorf("asked for %s", p.asked[0])
	}
	for _, want := range []string{"40.0 % (2 of 5 boards)", "From 2026-11-29 06:00 to 2026-11-29 22:00.", "CET, UTC&#43;01:00", "Stopped answering", "passed later", "did not pass", "id not read",
		`href="/report?day=2026-11-28&amp;from=06%3A00&amp;to=22%3A00"`, `href="/report?day=2026-11-30&amp;from=06%3A00&amp;to=22%3A00"`, `href="/report.csv?day=2026-11-29&amp;from=06%3A00&amp;to=22%3A00"`, "<td>13:00</td>"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	w = ask(h, http.MethodGet, "/report.csv?day=2026-11-29&from=06:00&to=22:00")
	if w.Header().Get("Content-Type") != "text/csv; charset=utf-8; header=present" || w.Header().Get("Content-Disposition") != `attachment; filename="line3-a-2026-11-29-0600-2200.csv"` || w.Header().Get("Warning") != "" {
		t.Errorf("%v", w.Header())
	}
	text := w.Body.String()
	if strings.Count(text, "\r\n") != 9 || strings.Count(text, "\n") != 9 {
		t.Errorf("the lines do not end as RFC 4180 says:\n%q", text)
	}
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(rows) != 9 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if got := strings.Join(rows[0], ","); got != "time,station,slot,result,reason,device,other_device,delivery,work_order" {
		t.Errorf("the header is %s", got)
	}
	if got := strings.Join(rows[1], ","); got != "2026-11-29T13:00:00.000+01:00,line3-a,A,passed,,"+id(1).String()+",,confirmed," {
		t.Errorf("the first row is %s", got)
	}
	if rows[2][4] != "timeout" || rows[2][5] != "" || rows[6][3] != "repeated" || rows[7][2] != "'=cmd|' /C calc'!A0" {
		t.Errorf("%q", rows)
	}
	for text, want := range map[string]string{"": "", "A": "A", "=1": "'=1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "\tx": "'\tx", "a=1": "a=1"} {
		if got := cell(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	p.between = nil
	if body := ask(h, http.MethodGet, "/report").Body.String(); !strings.Contains(body, "Nothing happened") {
		t.Errorf("an empty report: %s", body)
	}
	for range maxFailures + 1 {
		p.between = append(p.between, Verdict{Time: noon, Slot: "A", State: Failed, Reason: ReasonTimeout})
	}
	if body := ask(h, http.MethodGet, "/report").Body.String(); !strings.Contains(body, "One more is in the CSV.") || strings.Count(body, "id not read") != maxFailures {
		t.Error("a very long report is not cut")
	}
}

// Every verdict against a board is journaled once, with its slot, reason,
// duration and label, and before it is shown.
func TestFailuresAreJournaled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestStation(t, 1, func(c *Config) { c.Policy.NeedsLabel = true }).run()
		if err := b.BeginLot("WO-7", 0); err != nil {
			t.Fatal(err)
		}
		b.await(0, Empty)
		b.cables[0].plug(newBoard())
		b.awaitFailed(0, ReasonLabelMissing)
		b.cables[0].unplug()
		b.await(0, Empty)
		b.stop()
		b.ledger.mu.Lock()
		defer b.ledger.mu.Unlock()
		if len(b.ledger.failed) != 1 {
			t.Fatalf("journaled: %+v", b.ledger.failed)
		}
		o := b.ledger.failed[0]
		if o.Reason != ReasonLabelMissing || o.Slot != "A" || o.Lot != "WO-7" || !o.Device.Valid() || o.Took <= 0 || o.Transcript == "" || o.After != nil {
			t.Errorf("%+v", o)
		}
	})
}

// A board that was put aside did not pass because another one passed in its
// slot.
func TestReportPutAside(t *testing.T) {
	for _, reason := range []Reason{ReasonDeviceConflict, ReasonKeyConflict, ReasonPrivateKeyLeak, ReasonNoProof, ReasonLabelMismatch, ReasonNotInLot, ReasonTimeout} {
		for _, device := range []board.DeviceID{{}, id(1)} {
			r := countVerdicts([]Verdict{
				{Time: noon, Slot: "A", State: Failed, Reason: reason, Device: device, Entry: 1},
				{Time: noon.Add(time.Minute), Slot: "A", State: Passed, Device: id(2), Entry: 2},
			}, time.UTC)
			if r.Failures[0].Later || r.Boards != 2 || r.First != 1 {
				t.Errorf("%s, %v: %+v", reason, device.Valid(), r)
			}
		}
	}
	one := uint64(1)
	again := []Verdict{
		{Time: noon, Slot: "A", State: Failed, Reason: ReasonTimeout, Entry: 1},
		{Time: noon, Slot: "B", State: Passed, Device: id(3), Entry: 2},
		{Time: noon, Slot: "A", State: Passed, Device: id(2), Entry: 3, After: &one},
	}
	if r := countVerdicts(again, time.UTC); !r.Failures[0].Later || r.Boards != 2 || r.First != 1 {
		t.Errorf("the same insertion: %+v", r)
	}
}

// Who asks for much and reads nothing keeps nobody from looking back; and not
// more of that is in memory than a few can have.
func TestLooksPastASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &past{board: BoardHistory{Device: id(1)}}
		for range 10_000 {
			p.between = append(p.between, Verdict{Time: time.Now(), Slot: "A", State: Failed, Reason: ReasonDeviceConflict, Device: id(1)})
		}
		b := lookingBack(t, p)
		site := b.site()
		get := func(path string) *http.Response {
			t.Helper()
			conn := site.dial()
			t.Cleanup(func() { conn.Close() })
			if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil) // and of the body no more than came with it
			if err != nil {
				t.Fatal(err)
			}
			return answer
		}
		began := time.Now()
		for i := range maxLarge {
			if answer := get("/report.csv"); answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Disposition") == "" {
				t.Fatalf("report %d: %s %v", i, answer.Status, answer.Header)
			}
		}
		if answer := get("/boards/" + id(1).String()); answer.StatusCode != http.StatusOK || time.Since(began) > 0 {
			t.Errorf("a board meanwhile: %s after %v", answer.Status, time.Since(began))
		}
		answer := get("/report.csv")
		if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Content-Disposition") != "" || answer.Header.Get("Retry-After") == "" ||
			!strings.HasPrefix(answer.Header.Get("Content-Type"), "text/html") {
			t.Errorf("one report too many: %s %v", answer.Status, answer.Header)
		}
	})
}
