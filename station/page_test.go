package station

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

// ask has a handler answer one request, as a browser on the same machine makes
// it.
func ask(h http.Handler, method, path string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "127.0.0.1:8080"
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// shown is a bench whose slots show these states. It does not run.
func shown(t *testing.T, change func(*Config), states ...slotState) *testStation {
	t.Helper()
	b := newTestStation(t, len(states), change)
	for i := range states {
		states[i].since = time.Now()
	}
	copy(b.states, states)
	return b
}

// tiles cuts a page into what it shows of each slot.
func tiles(page string) []string {
	_, page, _ = strings.Cut(page, "<main")
	page, _, _ = strings.Cut(page, "</main>")
	return strings.Split(page, "<article")[1:]
}

func TestPageShowsEveryState(t *testing.T) {
	device, _ := board.ParseDeviceID("0123456789abcdef00112233445566aa")
	const groups = "<span>0123</span><span>4567</span><span>89ab</span><span>cdef</span><span>0011</span><span>2233</span><span>4455</span><span>66aa</span>"
	type tile struct {
		state  slotState
		word   string
		device bool
		mark   string
	}
	want := []tile{
		{slotState{state: Absent, advice: adviceAbsent}, "NO PORT", false, ""},
		{slotState{state: Absent, advice: adviceBusy}, "NO PORT", false, ""},
		{slotState{state: Absent, advice: advicePermission}, "NO PORT", false, ""},
		{slotState{state: Absent, advice: adviceNotAPort}, "NO PORT", false, ""},
		{slotState{state: Absent, advice: advicePortError}, "NO PORT", false, ""},
		{slotState{state: Empty, advice: adviceEmpty}, "INSERT BOARD", false, ""},
		{slotState{state: Reading, advice: adviceReading}, "READING", false, ""},
		{slotState{state: Passed, advice: advicePassed, device: deviceOne}, "PASS", true, "waiting"},
		{slotState{state: Passed, advice: adviceRepeat, device: device}, "PASS", true, "confirmed"},
		{slotState{state: Failed, reason: ReasonTimeout, advice: messageKey(ReasonTimeout), gone: true}, "FAIL", false, ""},
	}
	for _, reason := range Reasons() {
		want = append(want, tile{slotState{state: Failed, reason: reason, advice: messageKey(reason), device: device}, "FAIL", true, ""})
	}
	var states []slotState
	for _, w := range want {
		states = append(states, w.state)
	}
	b := shown(t, func(c *Config) { c.Delivery = func(id board.DeviceID) Delivery { return state(id == device) } }, states...)
	page := ask(b.Handler(), http.MethodGet, "/")
	if page.Code != http.StatusOK || page.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", page.Code, page.Header())
	}
	got := tiles(page.Body.String())
	if len(got) != len(want) {
		t.Fatalf("%d tiles, want %d", len(got), len(want))
	}
	unescape := strings.NewReplacer("&#39;", "'", "&#34;", `"`)
	for i, w := range want {
		state := string(w.state.state)
		for _, part := range []string{
			fmt.Sprintf(`class="tile %s" data-name="%s"`, state, b.slots[i].Name), ">" + b.slots[i].Name + "</h3>",
			`<use href="#icon-` + state + `"></use></svg><span>` + w.word + "</span>",
			`<p class="advice">` + sentences[w.state.advice] + "</p>",
		} {
			if !strings.Contains(unescape.Replace(got[i]), part) {
				t.Errorf("the tile of %+v lacks %q:\n%s", w.state, part, got[i])
			}
		}
		if !strings.Contains(page.Body.String(), `<symbol id="icon-`+state+`"`) {
			t.Errorf("the page has no icon for %s", state)
		}
		hidden := func(class string) bool { return strings.Contains(got[i], `<p class="`+class+`" hidden>`) }
		if hidden("device") == w.device || w.state.device == device && !strings.Contains(got[i], groups) {
			t.Errorf("the tile of %+v shows the device as\n%s", w.state, got[i])
		}
		if hidden("mark") == (state == "passed") || hidden("port") == (state == "absent") {
			t.Errorf("the tile of %+v hides the wrong things:\n%s", w.state, got[i])
		}
		if w.mark != "" && !strings.Contains(got[i], `<use href="#icon-`+w.mark+`"></use></svg><span>`+sentences[messageKey("cloud-"+w.mark)]+"</span>") {
			t.Errorf("the mark of %+v is not %s:\n%s", w.state, w.mark, got[i])
		}
	}
	for _, part := range []string{"<title>line3-a</title>", "<h1>line3-a</h1>", `<p class="sku">widgiot</p>`, `id="cloud">Cloud: all delivered</p>`, sentences["lost-title"], sentences["lost-advice"]} {
		if !strings.Contains(page.Body.String(), part) {
			t.Errorf("the page lacks %q", part)
		}
	}
	// The script has a word for every state that may come.
	_, script, _ := strings.Cut(page.Body.String(), `id="setup">`)
	script, _, _ = strings.Cut(script, "</script>")
	var start setup
	if err := json.Unmarshal([]byte(script), &start); err != nil || start.StaleAfter != 8000 || start.Build == "" || start.Lang != "en" || start.Sound {
		t.Fatalf("the script starts from %v in %s", err, script)
	}
	words := start.Words
	for _, w := range want {
		if words["state-"+string(w.state.state)] != w.word {
			t.Errorf("the script calls %s %q", w.state.state, words["state-"+string(w.state.state)])
		}
	}
	if words["cloud-confirmed"] == "" || words["cloud-waiting"] == "" {
		t.Errorf("the words of the script are %v", words)
	}
}

// Without a script, too, a bar names the slots that show FAIL, and leads to
// them.
func TestPageNamesFailures(t *testing.T) {
	failed := slotState{state: Failed, reason: ReasonTimeout, advice: messageKey(ReasonTimeout)}
	passed := slotState{state: Passed, advice: advicePassed, device: deviceOne}
	for _, language := range Languages() {
		b := shown(t, nil, passed, failed, passed, failed)
		page := ask(b.Handler(), http.MethodGet, "/?lang="+language).Body.String()
		_, bar, _ := strings.Cut(page, `<nav class="failing" id="failing" aria-labelledby="failing-title">`)
		bar, _, _ = strings.Cut(bar, "</nav>")
		want := fmt.Sprintf(`<span id="failing-title">%s</span><a href="#slot-1">%s</a><a href="#slot-3">%s</a>`, b.languages[language].Say("state-failed"), b.slots[1].Name, b.slots[3].Name)
		if !strings.HasSuffix(bar, want) || !strings.Contains(page, `<h3 id="slot-3">`+b.slots[3].Name) || !strings.Contains(page, `<body class="alarm">`) {
			t.Errorf("%s: the bar is %q, want %q at its end", language, bar, want)
		}
	}
	if page := ask(shown(t, nil, passed).Handler(), http.MethodGet, "/").Body.String(); !strings.Contains(page, `id="failing" aria-labelledby="failing-title" hidden>`) || strings.Contains(page, `class="alarm"`) {
		t.Error("the bar shows without a failure")
	}
}

func TestPageNotices(t *testing.T) {
	const working = "Go on working: every PASS is safe on this station. The cloud does not confirm: "
	const dead = " [stationctl spool dead lists what the registry refused, and why]"
	disk := Problem{Word: "health-clock", Detail: "the clock: it is 1970", Urgent: true, Call: CallIT}
	bug := Problem{Word: "no-such-word", Detail: "stuck", Urgent: true}
	for name, c := range map[string]struct {
		backlog Backlog
		health  []Problem
		want    []string // urgent ones with a "!", the detail in brackets
		cloud   string
	}{
		"nothing":        {},
		"just now":       {Backlog{Pending: 1, OldestSeconds: 14}, nil, nil, "Cloud: 1 board waiting"},
		"some time":      {Backlog{Pending: 1, OldestSeconds: 15}, nil, []string{working + "1 board has waited for 15 s."}, "Cloud: 1 board waiting"},
		"many, long":     {Backlog{Pending: 12, OldestSeconds: 7200}, nil, []string{working + "12 boards wait, the oldest for 2 h."}, "Cloud: 12 boards waiting"},
		"an error":       {Backlog{Pending: 2, LastError: "no route to host"}, nil, []string{working + "2 boards wait, the oldest for 0 s. [no route to host]"}, "Cloud: 2 boards waiting"},
		"an error, over": {Backlog{LastError: "no route to host"}, nil, nil, "Cloud: all delivered"},
		"one dead":       {Backlog{Dead: 1}, nil, []string{"!Call quality: the registry rejected 1 board for good." + dead}, "Cloud: 1 board rejected"},
		"health":         {Backlog{}, []Problem{disk}, []string{"!Call IT: the clock of this station is wrong. [the clock: it is 1970]"}, "Cloud: all delivered"},
		"health, twice":  {Backlog{}, []Problem{disk, bug}, []string{"!Call IT: the clock of this station is wrong. [the clock: it is 1970]", "!stuck [stuck]"}, "Cloud: all delivered"},
		"all, worst first": {Backlog{Pending: 3, Dead: 2, OldestSeconds: 99, LastError: "%d"}, []Problem{bug}, []string{
			"!Call quality: the registry rejected 2 boards for good." + dead, "!stuck [stuck]", working + "3 boards wait, the oldest for 99 s. [%d]",
		}, "Cloud: 2 boards rejected"},
	} {
		t.Run(name, func(t *testing.T) {
			b := shown(t, func(config *Config) {
				config.Backlog = func() Backlog { return c.backlog }
				config.Health = func() []Problem { return c.health }
			}, slotState{state: Empty, advice: adviceEmpty})
			page := ask(b.Handler(), http.MethodGet, "/").Body.String()
			status := b.Status()
			if len(status.Notices) != len(c.want) {
				t.Fatalf("notices %+v, want %q", status.Notices, c.want)
			}
			html, seen := "", map[string]int{}
			for i, n := range status.Notices {
				text, class, icon, hidden := n.Text, "notice", "note", " hidden"
				if n.Urgent {
					text, class, icon = "!"+n.Text, "notice urgent", "urgent"
				}
				if n.Detail != "" {
					text += " [" + n.Detail + "]"
					hidden = ""
				}
				if text != c.want[i] {
					t.Errorf("notice %q, want %q", text, c.want[i])
				}
				seen[n.Word]++
				html += fmt.Sprintf(`<div class="%s" data-key="%s.%d"><svg aria-hidden="true" focusable="false"><use href="#icon-%s"></use></svg><div><p class="text">%s</p>`+
					`<details%s><summary>For IT</summary><p>%s</p></details></div></div>`, class, n.Word, seen[n.Word], icon, n.Text, hidden, n.Detail)
			}
			if _, box, _ := strings.Cut(page, `<div id="notices">`); !strings.HasPrefix(box, strings.ReplaceAll(html, "'", "&#39;")+"</div>\n") {
				t.Errorf("the page does not show %s", html)
			}
			if cloud := c.cloud; cloud != "" && (status.Cloud != cloud || !strings.Contains(page, `id="cloud">`+cloud+"</p>")) {
				t.Errorf("the page says %q of the cloud, want %q", status.Cloud, cloud)
			}
		})
	}
}

// Whatever others named or said stays text.
func TestPageEscapes(t *testing.T) {
	const script, tag = `</script><b>1`, `"'><img src=x onerror=x>`
	b := shown(t, func(c *Config) {
		c.Slots[0].Name, c.Slots[0].Port = tag, script+tag
		c.Backlog = func() Backlog { return Backlog{Pending: 1, OldestSeconds: 60, LastError: script + tag} }
		c.Health = func() []Problem { return []Problem{{Word: "health-clock", Detail: tag + script}} }
	}, slotState{state: Absent, advice: adviceAbsent})
	page := ask(b.Handler(), http.MethodGet, "/").Body.String()
	for _, raw := range []string{"<b>1", "<img", "'>", "</script><b"} {
		if strings.Contains(page, raw) {
			t.Errorf("the page holds %s", raw)
		}
	}
	const escaped = `&#34;&#39;&gt;&lt;img src=x onerror=x&gt;`
	if n := strings.Count(page, escaped); n != 6 { // name, three times; port; two notices
		t.Errorf("the escaped text is there %d times:\n%s", n, page)
	}
	if n := strings.Count(page, "</script>"); n != 2 {
		t.Errorf("%d scripts end", n)
	}
	if status := ask(b.Handler(), http.MethodGet, "/status").Body.String(); strings.ContainsAny(status, "<>") {
		t.Errorf("/status holds %s", status)
	}
}

func TestPageHeaders(t *testing.T) {
	h := shown(t, nil, slotState{state: Empty, advice: adviceEmpty}).Handler()
	page := ask(h, http.MethodGet, "/")
	const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
	if got := page.Header().Get("Content-Security-Policy"); got != policy {
		t.Errorf("the policy is %q", got)
	}
	// The policy forbids what is not there: styles and scripts in the page
	// itself.
	if inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|<script>|javascript:|https?://`).FindAllString(strings.ReplaceAll(page.Body.String(), "http://www.w3.org/2000/svg", ""), -1); inline != nil {
		t.Errorf("the page holds %q", inline)
	}
	for _, path := range []string{"/", "/status", "/healthz", "/nothing"} {
		got := ask(h, http.MethodGet, path).Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
		} {
			if got.Get(name) != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got.Get(name), want)
			}
		}
	}
}

func TestPageMethods(t *testing.T) { synctest.Test(t, testPageMethods) }

func testPageMethods(t *testing.T) {
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	h := b.Handler()
	for _, path := range []string{"/", "/status", "/healthz", "/events", "/nothing"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions, "BREW"} {
			w := ask(h, method, path)
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d, Allow %q", method, path, w.Code, w.Header().Get("Allow"))
			}
		}
	}
	// HEAD is GET without the body; the server leaves that out.
	for path, code := range map[string]int{"/": 200, "/status": 200, "/healthz": 200, "/events": 200, "/nothing": 404, "/index.html": 404} {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		w := ask(h, http.MethodHead, path, func(r *http.Request) { *r = *r.WithContext(ctx) })
		cancel()
		if took := time.Since(start); w.Code != code || took > 0 {
			t.Errorf("HEAD %s: %d after %v, want %d", path, w.Code, took, code)
		}
	}
	if n := len(b.streams); n != 0 {
		t.Errorf("HEAD /events holds %d streams", n)
	}
}

func TestPageHosts(t *testing.T) {
	h := shown(t, func(c *Config) { c.Hosts = []string{"Station-3.Factory.example"} }, slotState{state: Empty, advice: adviceEmpty}).Handler()
	for host, want := range map[string]int{
		"localhost": 200, "localhost:8080": 200, "LOCALHOST:8080": 200, "127.0.0.1": 200, "127.0.0.1:8080": 200, "192.0.2.7:80": 200,
		"[::1]": 200, "[::1]:8080": 200, "[fe80::1%eth0]:8080": 200,
		"station-3.factory.example": 200, "station-3.factory.example:8080": 200, "STATION-3.factory.EXAMPLE": 200,
		"evil.example": 421, "evil.example:8080": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421,
		"station-3.factory.example.evil.example": 421, "x.station-3.factory.example": 421, "": 421, ":8080": 421, "[": 421,
	} {
		for _, path := range []string{"/", "/status", "/healthz", "/nothing"} {
			want := want
			if path == "/nothing" && want == 200 {
				want = 404
			}
			if w := ask(h, http.MethodGet, path, func(r *http.Request) { r.Host = host }); w.Code != want {
				t.Errorf("%s from %q: %d, want %d", path, host, w.Code, want)
			} else if want == 421 && (!strings.Contains(w.Body.String(), "hosts of the station") || strings.Contains(w.Body.String(), "line3-a")) {
				t.Errorf("the refusal of %q: %s", host, w.Body)
			}
		}
	}
}

// The fields are a contract with the outside.
func TestStatusJSON(t *testing.T) { synctest.Test(t, testStatusJSON) }

func testStatusJSON(t *testing.T) {
	time.Sleep(123456 * time.Microsecond)
	device, _ := board.ParseDeviceID("0123456789abcdef00112233445566aa")
	b := shown(t, func(c *Config) {
		c.Delivery = func(board.DeviceID) Delivery { return Confirmed }
		c.Backlog = func() Backlog { return Backlog{Pending: 3, Dead: 1, OldestSeconds: 7, LastError: "no route"} }
	},
		slotState{state: Absent, advice: adviceAbsent}, slotState{state: Empty, advice: adviceEmpty}, slotState{state: Reading, advice: adviceReading},
		slotState{state: Passed, advice: advicePassed, device: device}, slotState{state: Failed, reason: ReasonDeviceConflict, advice: "device-conflict", device: device})
	w := ask(b.Handler(), http.MethodGet, "/status")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" || !strings.HasSuffix(w.Body.String(), "}\n") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	slot := func(name, port, state, device, reason string, advice messageKey, confirmed string) string {
		call := map[State]string{Absent: "it", Failed: "quality"}[State(state)]
		return fmt.Sprintf(`{"name":%q,"state":%q,"device":%q,"reason":%q,"advice":%q,"call":%q,"confirmed":%s,"since":"2000-01-01T00:00:00.123Z","port":%q,"heard":"","searching":false,"acknowledge":false,"delivery":%q}`,
			name, state, device, reason, sentences[advice], call, confirmed, port, map[string]string{"true": "confirmed"}[confirmed])
	}
	id := device.String()
	want := `{"station":"line3-a","slots":[` + strings.Join([]string{
		slot("A", "/dev/port-0", "absent", "", "", adviceAbsent, "false"),
		slot("B", "/dev/port-1", "empty", "", "", adviceEmpty, "false"),
		slot("C", "/dev/port-2", "reading", "", "", adviceReading, "false"),
		slot("D", "/dev/port-3", "passed", id, "", advicePassed, "true"),
		slot("E", "/dev/port-4", "failed", id, "device-conflict", "device-conflict", "false"),
	}, ",") + `],"backlog":{"pending":3,"dead":1,"oldest_seconds":7,"last_error":"no route"},"notices":[` +
		`{"urgent":true,"word":"dead","text":"Call quality: the registry rejected 1 board for good.","detail":"stationctl spool dead lists what the registry refused, and why","call":"quality"},` +
		`{"urgent":false,"word":"backlog","text":"Go on working: every PASS is safe on this station. The cloud does not confirm: 3 boards wait, the oldest for 7 s.",` +
		`"detail":"no route","call":""}],"cloud":"Cloud: 1 board rejected",` +
		`"lot":{"name":"","planned":0,"passed":0,"repeated":0,"failed":0,"since":"2000-01-01T00:00:00.123Z"},"recent":[],"scan":null,"version":"","signed":0}` + "\n"
	if w.Body.String() != want {
		t.Errorf("got  %swant %s", w.Body, want)
	}
	// What a scanner and the slots did adds to it.
	if err := b.Scan("0123-4567-89AB-CDEF-0011-2233-4455-66AA", "B"); err != nil {
		t.Fatal(err)
	}
	if err := b.Scan("WO 7;20", ""); err != nil {
		t.Fatal(err)
	}
	b.states[2].since = time.Now()
	b.ledger.records[device] = board.Record{}
	b.apply(2, event{kind: boardPassed, device: device}, nil)
	want = `"lot":{"name":"WO 7","planned":20,"passed":1,"repeated":0,"failed":0,"since":"2000-01-01T00:00:00.123Z"},` +
		`"recent":[{"time":"2000-01-01T00:00:00.123Z","slot":"C","device":"` + id + `","state":"passed","reason":"","confirmed":true,"delivery":"confirmed"}],` +
		`"scan":{"text":"` + id + `","kind":"device","slot":"B"},"version":"","signed":0}` + "\n"
	if got := ask(b.Handler(), http.MethodGet, "/status").Body.String(); !strings.HasSuffix(got, want) {
		t.Errorf("got  %swant … %s", got, want)
	}
	// Nothing is null where a list is promised.
	quiet := ask(shown(t, nil, slotState{state: Empty, advice: adviceEmpty}).Handler(), http.MethodGet, "/status").Body.String()
	if strings.Count(quiet, "null") != 1 || !strings.Contains(quiet, `"notices":[]`) {
		t.Errorf("a quiet station says %s", quiet)
	}
}

func TestHealthz(t *testing.T) {
	var health []Problem
	b := shown(t, func(c *Config) { c.Health = func() []Problem { return health } }, slotState{state: Empty, advice: adviceEmpty}, slotState{state: Reading, advice: adviceReading})
	b.states[1].since = time.Now()
	h := b.Handler()
	for _, c := range []struct {
		health []Problem
		since  time.Duration
		code   int
		body   string
	}{
		{nil, 0, 200, `{"ok":true,"reasons":[]}`},
		{[]Problem{{Detail: "the disk is full"}}, 0, 503, `{"ok":false,"reasons":["the disk is full"]}`},
		{nil, 3 * time.Hour, 503, `{"ok":false,"reasons":["slot B has been reading one board for 3 h"]}`},
		{[]Problem{{Detail: "one\nof two causes"}, {Detail: "two"}}, 3 * time.Hour, 503, `{"ok":false,"reasons":["slot B has been reading one board for 3 h","one; of two causes","two"]}`},
	} {
		health = c.health
		b.states[1].since = time.Now().Add(-c.since)
		if w := ask(h, http.MethodGet, "/healthz"); w.Code != c.code || w.Body.String() != c.body+"\n" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("got %d %s, want %d %s", w.Code, w.Body, c.code, c.body)
		}
	}
}

// Beside the slots: the lot, the label that waits, and a page of the form alone
// for a browser without script, which does not load itself.
func TestPageBeside(t *testing.T) {
	const id = "0123456789abcdef00112233445566aa"
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	for _, text := range []string{"WO-1;20", id} {
		if err := b.Scan(text, ""); err != nil {
			t.Fatal(err)
		}
	}
	h := b.Handler()
	page, typing := ask(h, http.MethodGet, "/").Body.String(), ask(h, http.MethodGet, "/?type=1").Body.String()
	const refresh, script, form = `http-equiv="refresh"`, `<script defer`, `<form id="scan" method="post" action="/scan?lang=en"`
	for part, want := range map[string][2]bool{
		"<h2>Work order WO-1</h2>": {true, true}, "<b>0 / 20</b> passed": {true, true}, "with the label " + strings.Join(groups(id), " ") + ".": {true, true}, form: {true, true},
		`<ol id="recent">`: {true, true}, `href="?lang=zh"`: {true, true},
		refresh: {true, false}, script: {true, false}, `class="tile`: {true, false}, `id="lost"`: {true, false}, ` autofocus`: {false, true},
	} {
		if got := [2]bool{strings.Contains(page, part), strings.Contains(typing, part)}; got != want {
			t.Errorf("the page and the form have %q: %v, want %v", part, got, want)
		}
	}
}
