package station

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// post has a handler take a form, as the page of this station sends it.
func post(h http.Handler, path, form string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(form))
	r.Host = "127.0.0.1:8080"
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "http://127.0.0.1:8080")
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		if r.Header.Del(name); value != "" {
			r.Header.Set(name, value)
		}
	}
}

func TestPosts(t *testing.T) {
	const id = "4d1f8e27b3c05a9e61f2d47788aabbcc"
	json := header("Accept", "application/json")
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	h := b.Handler()
	for _, c := range []struct {
		path, form string
		lot        Lot
		scan       *Scanned
	}{
		{"/scan", "text=" + id, Lot{}, &Scanned{id, ScanDevice, ""}},
		{"/scan", "text=" + id + "&slot=A", Lot{}, &Scanned{id, ScanDevice, "A"}},
		{"/scan", "text=&slot=A", Lot{}, &Scanned{id, ScanDevice, ""}},
		{"/scan", "", Lot{}, nil},
		{"/scan", "text=WO+7%3B20", Lot{Name: "WO 7", Planned: 20}, nil},
		{"/lot", "name=WO-8&planned=30", Lot{Name: "WO-8", Planned: 30}, nil},
		{"/lot", "name=WO-9&planned=", Lot{Name: "WO-9"}, nil},
		{"/lot", "name=+%C3%84+&planned=+5+", Lot{Name: "Ä", Planned: 5}, nil},
		{"/lot", "", Lot{}, nil},
	} {
		for _, scripted := range []bool{false, true} {
			want := http.StatusSeeOther
			if scripted {
				want = http.StatusNoContent
			}
			w := post(h, c.path, c.form, func(r *http.Request) {
				if scripted {
					json(r)
				}
			})
			if w.Code != want || w.Body.Len() > 0 || (w.Header().Get("Location") == "/") == scripted {
				t.Errorf("%s %s: %d %v %s, want %d", c.path, c.form, w.Code, w.Header(), w.Body, want)
			}
		}
		status := b.Status()
		got := *status.Lot
		got.Since = c.lot.Since
		if got != c.lot || (status.Scan == nil) != (c.scan == nil) || c.scan != nil && *status.Scan != *c.scan {
			t.Errorf("after %s %s: %+v, %+v", c.path, c.form, status.Lot, status.Scan)
		}
	}
}

// A leak is acknowledged by the form of its tile, with and without a script,
// and by nobody else.
func TestAcknowledge(t *testing.T) {
	leak := slotState{state: Failed, reason: ReasonPrivateKeyLeak, advice: messageKey(ReasonPrivateKeyLeak), held: true}
	gone := leak
	gone.gone = true
	b := shown(t, nil, leak, gone)
	h := b.Handler()
	const button = `<form class="acknowledge" method="post" action="/acknowledge?lang=en"><button type="submit" name="slot" value="`
	page := ask(h, http.MethodGet, "/").Body.String()
	for _, slot := range b.Status().Slots {
		if !slot.Acknowledge || !strings.Contains(page, button+slot.Name+`">Acknowledged</button>`) {
			t.Errorf("slot %s has no button: %+v", slot.Name, slot)
		}
	}
	for name, c := range map[string]struct {
		form   string
		change []func(*http.Request)
		code   int
	}{
		"another origin": {"slot=A", []func(*http.Request){header("Origin", "http://evil.example")}, http.StatusForbidden},
		"no such slot":   {"slot=Z", nil, http.StatusUnprocessableEntity},
		"no slot":        {"", nil, http.StatusUnprocessableEntity},
		"in the address": {"", []func(*http.Request){func(r *http.Request) { r.URL.RawQuery = "slot=A" }}, http.StatusUnprocessableEntity},
		"GET":            {"slot=A", []func(*http.Request){func(r *http.Request) { r.Method = http.MethodGet }}, http.StatusNotFound},
	} {
		if w := post(h, "/acknowledge", c.form, c.change...); w.Code != c.code {
			t.Errorf("%s: %d, want %d", name, w.Code, c.code)
		}
	}
	if slots := b.Status().Slots; !slots[0].Acknowledge || !slots[1].Acknowledge {
		t.Fatalf("a refused form has acknowledged a leak: %+v", slots)
	}
	names := []string{b.Status().Slots[0].Name, b.Status().Slots[1].Name}
	if w := post(h, "/acknowledge", "slot="+names[0]); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
		t.Errorf("without a script: %d %v", w.Code, w.Header())
	}
	if w := post(h, "/acknowledge", "slot="+names[1], header("Accept", "application/json")); w.Code != http.StatusNoContent {
		t.Errorf("with a script: %d", w.Code)
	}
	slots := b.Status().Slots
	if slots[0].State != Failed || slots[0].Acknowledge || slots[1].State != Empty || slots[1].Acknowledge {
		t.Errorf("after the leaks were acknowledged: %+v", slots)
	}
	if strings.Contains(ask(h, http.MethodGet, "/").Body.String(), button) {
		t.Error("a button is left")
	}
}

// Nothing changes but by a form that this station's own page sends, and a
// stranger learns nothing.
func TestPostsAreGuarded(t *testing.T) {
	const lot, kind = "name=evil&planned=5", "application/x-www-form-urlencoded"
	b := shown(t, func(c *Config) { c.Hosts = []string{"line3.example"} }, slotState{state: Empty, advice: adviceEmpty})
	h := b.Handler()
	fetched := func(site string) func(*http.Request) { return header("Sec-Fetch-Site", site) }
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	method := func(name string) func(*http.Request) { return func(r *http.Request) { r.Method = name } }
	large := "text=" + strings.Repeat("x", maxForm)
	for name, c := range map[string]struct {
		path, form string
		change     []func(*http.Request)
		code       int
		says       string
	}{
		"another origin":          {"/lot", lot, []func(*http.Request){header("Origin", "http://evil.example")}, 403, "only pages of this station may change something\n"},
		"another port":            {"/lot", lot, []func(*http.Request){header("Origin", "http://127.0.0.1:9090")}, 403, "only pages of this station may change something\n"},
		"no origin to name":       {"/lot", lot, []func(*http.Request){header("Origin", "null")}, 403, "only pages of this station may change something\n"},
		"cross-site":              {"/scan", "text=evil", []func(*http.Request){fetched("cross-site")}, 403, "only pages of this station may change something\n"},
		"same-site":               {"/scan", "text=evil", []func(*http.Request){fetched("same-site")}, 403, "only pages of this station may change something\n"},
		"a name made to point":    {"/lot", lot, []func(*http.Request){host("evil.example"), header("Origin", "http://evil.example"), fetched("same-origin")}, 421, "open this page"},
		"GET":                     {"/lot?" + lot, "", []func(*http.Request){method("GET")}, 404, "not found"},
		"GET, scan":               {"/scan?text=evil", "", []func(*http.Request){method("GET")}, 404, "not found"},
		"HEAD":                    {"/scan?text=evil", "", []func(*http.Request){method("HEAD")}, 404, "not found"},
		"PUT":                     {"/lot", lot, []func(*http.Request){method("PUT")}, 405, "only GET and HEAD\n"},
		"DELETE":                  {"/lot", lot, []func(*http.Request){method("DELETE")}, 405, "only GET and HEAD\n"},
		"POST elsewhere":          {"/", lot, nil, 405, "only GET and HEAD\n"},
		"POST beside":             {"/lot/", lot, nil, 405, "only GET and HEAD\n"},
		"JSON":                    {"/lot", `{"name":"evil"}`, []func(*http.Request){header("Content-Type", "application/json")}, 415, "send a form"},
		"text, as a stranger can": {"/lot", lot, []func(*http.Request){header("Content-Type", "text/plain")}, 415, "send a form"},
		"no type":                 {"/lot", lot, []func(*http.Request){header("Content-Type", "")}, 415, "send a form"},
		"parts":                   {"/lot", lot, []func(*http.Request){header("Content-Type", "multipart/form-data; boundary=x")}, 415, "send a form"},
		"too large":               {"/scan", large, nil, 413, "cannot be read"},
		"no form":                 {"/scan", "text=%zz", nil, 400, "cannot be read"},
		"in the address":          {"/scan?text=evil", "slot=A", nil, 303, ""},
		"no label":                {"/scan", "text=WO%3Bx", nil, 422, "Scan again. This is neither a label nor a work order.\n"},
		"a part of a label":       {"/scan", "text=" + strings.Repeat("4d", 15), nil, 422, "Scan again: the label was not read whole."},
		"a part, by a script":     {"/scan", "text=0x" + strings.Repeat("4d", 16), []func(*http.Request){header("Accept", "application/json")}, 422, `{"word":"scan-partial","text":"Scan again:`},
		"no slot":                 {"/scan", "text=WO&slot=Z", nil, 422, "Scan again. This is neither a label nor a work order.\n"},
		"no number":               {"/lot", "name=WO&planned=five", nil, 422, "Enter the work order again: a name of up to 64 characters and a number of boards.\n"},
		"a long name":             {"/lot", "name=" + strings.Repeat("x", 65), nil, 422, "Enter the work order again"},
		"in German":               {"/lot?lang=de", "name=WO&planned=five", nil, 422, "Geben Sie den Auftrag noch einmal ein"},
		"by a script":             {"/scan", "text=WO%3Bx", []func(*http.Request){header("Accept", "application/json")}, 422, `{"word":"scan-refused","text":"Scan again.`},
	} {
		w := post(h, c.path, c.form, c.change...)
		if w.Code != c.code || !strings.HasPrefix(w.Body.String(), c.says) && !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s: %d %s, want %d %s", name, w.Code, w.Body, c.code, c.says)
		}
		if status := b.Status(); status.Lot.Name != "" || status.Lot.Planned != 0 || status.Scan != nil {
			t.Fatalf("%s changed something: %+v, %+v", name, status.Lot, status.Scan)
		}
	}
	// Its own page under each of its names, a program, and a browser that sends
	// one header or the other.
	for name, change := range map[string][]func(*http.Request){
		"a name":                      {host("line3.example:8080"), header("Origin", "http://line3.example:8080")},
		"a form without a script":     {fetched("same-origin"), header("Origin", "null")},
		"typed in":                    {fetched("none"), header("Origin", "")},
		"a program":                   {header("Origin", "")},
		"a type with a character set": {header("Content-Type", kind+"; charset=UTF-8")},
	} {
		if w := post(h, "/scan", "text="+url.QueryEscape("WO "+name), change...); w.Code != http.StatusSeeOther || b.Status().Lot.Name != "WO "+name {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}
