package station

import (
	"context"
	"encoding/json"
	"errors"
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

// ask has a handler answer one request, as a browser on the same machine makes it.
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
func shown(t *testing.T, change func(*Config), states ...slotState) *bench {
	t.Helper()
	b := newBench(t, len(states), change)
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
	return strings.Split(page, "<section")[1:]
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
		{slotState{state: Failed, reason: ReasonTimeout, advice: word(ReasonTimeout), gone: true}, "FAIL", false, ""},
	}
	for _, reason := range Reasons() {
		want = append(want, tile{slotState{state: Failed, reason: reason, advice: word(reason), device: device}, "FAIL", true, ""})
	}
	var states []slotState
	for _, w := range want {
		states = append(states, w.state)
	}
	b := shown(t, func(c *Config) { c.Confirmed = func(id board.DeviceID) bool { return id == device } }, states...)
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
			fmt.Sprintf(`class="tile %s" data-name="%s"`, state, b.slots[i].Name), "<h2>" + b.slots[i].Name + "</h2>",
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
		if w.mark != "" && !strings.Contains(got[i], `<use href="#icon-`+w.mark+`"></use></svg><span>`+sentences[word("cloud-"+w.mark)]+"</span>") {
			t.Errorf("the mark of %+v is not %s:\n%s", w.state, w.mark, got[i])
		}
	}
	for _, part := range []string{"<title>line3-a</title>", "<h1>line3-a</h1>", "<p>widgiot</p>", `id="cloud">Cloud: all delivered</p>`, sentences["lost-title"], sentences["lost-advice"]} {
		if !strings.Contains(page.Body.String(), part) {
			t.Errorf("the page lacks %q", part)
		}
	}
	// The script has a word for every state that may come.
	_, script, _ := strings.Cut(page.Body.String(), "var words = ")
	script, rest, _ := strings.Cut(script, ", staleAfter = ")
	var words map[string]string
	if err := json.Unmarshal([]byte(script), &words); err != nil || !strings.HasPrefix(strings.TrimSpace(rest), "8000 ;") {
		t.Fatalf("the words of the script: %v in %s", err, script)
	}
	for _, w := range want {
		if words["state-"+string(w.state.state)] != w.word {
			t.Errorf("the script calls %s %q", w.state.state, words["state-"+string(w.state.state)])
		}
	}
	if words["cloud-confirmed"] == "" || words["cloud-waiting"] == "" {
		t.Errorf("the words of the script are %v", words)
	}
}

func TestPageNotices(t *testing.T) {
	for name, c := range map[string]struct {
		backlog Backlog
		health  error
		want    []string // urgent ones with a "!"
		cloud   string
	}{
		"nothing":        {},
		"just now":       {Backlog{Pending: 1, OldestSeconds: 14}, nil, nil, "Cloud: 1 board waiting"},
		"some time":      {Backlog{Pending: 1, OldestSeconds: 15}, nil, []string{"The cloud does not confirm: 1 board has waited for 15 s. Go on working: every PASS is safe on this station."}, "Cloud: 1 board waiting"},
		"many, long":     {Backlog{Pending: 12, OldestSeconds: 7200}, nil, []string{"The cloud does not confirm: 12 boards wait, the oldest for 2 h. Go on working: every PASS is safe on this station."}, "Cloud: 12 boards waiting"},
		"an error":       {Backlog{Pending: 2, LastError: "no route to host"}, nil, []string{"The cloud does not confirm: 2 boards wait, the oldest for 0 s. Go on working: every PASS is safe on this station. Last error: no route to host"}, "Cloud: 2 boards waiting"},
		"an error, over": {Backlog{LastError: "no route to host"}, nil, nil, "Cloud: all delivered"},
		"one dead":       {Backlog{Dead: 1}, nil, []string{"!Call IT: the cloud refused 1 board for good."}, "Cloud: all delivered"},
		"health":         {Backlog{}, errors.New("the disk is 99 % full"), []string{"!Call IT: the disk is 99 % full"}, "Cloud: all delivered"},
		"health, twice":  {Backlog{}, errors.Join(errors.New("one"), errors.New("two")), []string{"!Call IT: one", "!Call IT: two"}, "Cloud: all delivered"},
		"all, worst first": {Backlog{Pending: 3, Dead: 2, OldestSeconds: 99, LastError: "%d"}, errors.New("stuck"), []string{
			"!Call IT: the cloud refused 2 boards for good.", "!Call IT: stuck",
			"The cloud does not confirm: 3 boards wait, the oldest for 99 s. Go on working: every PASS is safe on this station. Last error: %d",
		}, "Cloud: 3 boards waiting"},
	} {
		t.Run(name, func(t *testing.T) {
			b := shown(t, func(config *Config) {
				config.Backlog = func() Backlog { return c.backlog }
				config.Health = func() error { return c.health }
			}, slotState{state: Empty, advice: adviceEmpty})
			page := ask(b.Handler(), http.MethodGet, "/").Body.String()
			status := b.Status()
			if len(status.Notices) != len(c.want) {
				t.Fatalf("notices %+v, want %q", status.Notices, c.want)
			}
			html := ""
			for i, n := range status.Notices {
				text, class := n.Text, "notice"
				if n.Urgent {
					text, class = "!"+n.Text, "notice urgent"
				}
				if text != c.want[i] {
					t.Errorf("notice %q, want %q", text, c.want[i])
				}
				html += `<p class="` + class + `">` + n.Text + "</p>"
			}
			if !strings.Contains(page, `<div id="notices" role="status">`+html+"</div>") {
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
		c.Health = func() error { return errors.New(tag + script) }
	}, slotState{state: Absent, advice: adviceAbsent})
	page := ask(b.Handler(), http.MethodGet, "/").Body.String()
	for _, raw := range []string{"<b>1", "<img", "'>", "</script><b"} {
		if strings.Contains(page, raw) {
			t.Errorf("the page holds %s", raw)
		}
	}
	const escaped = `&#34;&#39;&gt;&lt;img src=x onerror=x&gt;`
	if n := strings.Count(page, escaped); n != 5 { // name, twice; port; two notices
		t.Errorf("the escaped text is there %d times:\n%s", n, page)
	}
	if n := strings.Count(page, "</script>"); n != 1 {
		t.Errorf("%d scripts end", n)
	}
	if status := ask(b.Handler(), http.MethodGet, "/status").Body.String(); strings.ContainsAny(status, "<>") {
		t.Errorf("/status holds %s", status)
	}
}

func TestPageHeaders(t *testing.T) {
	h := shown(t, nil, slotState{state: Empty, advice: adviceEmpty}).Handler()
	nonces := map[string]bool{}
	policy := regexp.MustCompile(`^default-src 'none'; style-src 'nonce-(\w{16,})'; script-src 'nonce-(\w{16,})'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$`)
	for range 100 {
		page := ask(h, http.MethodGet, "/")
		m := policy.FindStringSubmatch(page.Header().Get("Content-Security-Policy"))
		if m == nil || m[1] != m[2] || nonces[m[1]] {
			t.Fatalf("the policy is %q; nonces so far %v", page.Header().Get("Content-Security-Policy"), nonces)
		}
		nonces[m[1]] = true
		for _, tag := range []string{`<style nonce="` + m[1] + `">`, `<script nonce="` + m[1] + `">`} {
			if !strings.Contains(page.Body.String(), tag) {
				t.Fatalf("the page lacks %s", tag)
			}
		}
		if n := strings.Count(page.Body.String(), "<script") + strings.Count(page.Body.String(), "<style"); n != 2 {
			t.Fatalf("%d scripts and styles, and 2 of them have the nonce", n)
		}
	}
	for _, path := range []string{"/", "/status", "/healthz", "/nothing"} {
		got := ask(h, http.MethodGet, path).Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
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
		c.Confirmed = func(board.DeviceID) bool { return true }
		c.Backlog = func() Backlog { return Backlog{Pending: 3, Dead: 1, OldestSeconds: 7, LastError: "no route"} }
	},
		slotState{state: Absent, advice: adviceAbsent}, slotState{state: Empty, advice: adviceEmpty}, slotState{state: Reading, advice: adviceReading},
		slotState{state: Passed, advice: advicePassed, device: device}, slotState{state: Failed, reason: ReasonDeviceConflict, advice: "device-conflict", device: device})
	w := ask(b.Handler(), http.MethodGet, "/status")
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" || !strings.HasSuffix(w.Body.String(), "}\n") {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	slot := func(name, port, state, device, reason string, advice word, confirmed string) string {
		return fmt.Sprintf(`{"name":%q,"state":%q,"device":%q,"reason":%q,"advice":%q,"confirmed":%s,"since":"2000-01-01T00:00:00.123Z","port":%q}`,
			name, state, device, reason, sentences[advice], confirmed, port)
	}
	id := device.String()
	want := `{"station":"line3-a","slots":[` + strings.Join([]string{
		slot("A", "/dev/port-0", "absent", "", "", adviceAbsent, "false"),
		slot("B", "/dev/port-1", "empty", "", "", adviceEmpty, "false"),
		slot("C", "/dev/port-2", "reading", "", "", adviceReading, "false"),
		slot("D", "/dev/port-3", "passed", id, "", advicePassed, "true"),
		slot("E", "/dev/port-4", "failed", id, "device-conflict", "device-conflict", "false"),
	}, ",") + `],"backlog":{"pending":3,"dead":1,"oldest_seconds":7,"last_error":"no route"},"notices":[` +
		`{"urgent":true,"text":"Call IT: the cloud refused 1 board for good."},{"urgent":false,"text":"The cloud does not confirm: ` +
		`3 boards wait, the oldest for 7 s. Go on working: every PASS is safe on this station. Last error: no route"}],"cloud":"Cloud: 3 boards waiting"}` + "\n"
	if w.Body.String() != want {
		t.Errorf("got  %swant %s", w.Body, want)
	}
	// Nothing is null where a list is promised.
	quiet := ask(shown(t, nil, slotState{state: Empty, advice: adviceEmpty}).Handler(), http.MethodGet, "/status").Body.String()
	if strings.Contains(quiet, "null") || !strings.Contains(quiet, `"notices":[]`) {
		t.Errorf("a quiet station says %s", quiet)
	}
}

func TestHealthz(t *testing.T) {
	var health error
	b := shown(t, func(c *Config) { c.Health = func() error { return health } }, slotState{state: Empty, advice: adviceEmpty}, slotState{state: Reading, advice: adviceReading})
	b.states[1].since = time.Now()
	h := b.Handler()
	for _, c := range []struct {
		health error
		since  time.Duration
		code   int
		body   string
	}{
		{nil, 0, 200, `{"ok":true,"reasons":[]}`},
		{errors.New("the disk is full"), 0, 503, `{"ok":false,"reasons":["the disk is full"]}`},
		{nil, 3 * time.Hour, 503, `{"ok":false,"reasons":["slot B has been reading one board for 3 h"]}`},
		{errors.Join(errors.New("one"), errors.New("two")), 3 * time.Hour, 503, `{"ok":false,"reasons":["slot B has been reading one board for 3 h","one","two"]}`},
	} {
		health = c.health
		b.states[1].since = time.Now().Add(-c.since)
		if w := ask(h, http.MethodGet, "/healthz"); w.Code != c.code || w.Body.String() != c.body+"\n" || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("got %d %s, want %d %s", w.Code, w.Body, c.code, c.body)
		}
	}
}
