package station

import (
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"secretfree/station/board"
)

// alike are sentences that are meant to be the same as in English.
var alike = map[messageKey]string{
	"contact-it": "de vi", "contact-after": "de es vi",
	"col-cloud":     "de",
	"decimal-point": "zh",
	"span-seconds":  "de es", "span-minutes": "de es", "span-hours": "de es",
}

// Every language says all that English says, in its own words, and with its own
// word for PASS.
func TestCatalogues(t *testing.T) {
	all, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(Languages()) || len(all[English].sentences) < 50 {
		t.Fatalf("%d languages, %d sentences: this test looks at nothing", len(all), len(all[English].sentences))
	}
	folders, err := fs.ReadDir(wordFiles, "words")
	if err != nil || len(folders) != len(all) {
		t.Errorf("%d folders of words for %d languages, %v", len(folders), len(all), err)
	}
	for language, c := range all {
		if language == English {
			continue
		}
		for key, sentence := range c.sentences {
			if same := strings.Contains(alike[key], language); (sentence == sentences[key]) != same {
				t.Errorf("%s: %q is %q, and in English %q", language, key, sentence, sentences[key])
			}
			const passed messageKey = "state-passed"
			if strings.Contains(sentences[key], sentences[passed]) && !strings.Contains(sentence, c.sentences[passed]) {
				t.Errorf("%s: %q does not name %s as the tile does: %q", language, key, c.sentences[passed], sentence)
			}
		}
		// Nobody may take a FAIL for a PASS because the one word holds the
		// other.
		if passed, failed := c.sentences["state-passed"], c.sentences["state-failed"]; strings.Contains(failed, passed) || strings.Contains(passed, failed) {
			t.Errorf("%s: %q and %q look alike", language, passed, failed)
		}
	}
	for _, reason := range Reasons() {
		for language, c := range all {
			if c.Say(messageKey(reason)) == "" {
				t.Errorf("%s has no sentence for %s", language, reason)
			}
		}
	}
}

// What is wrong with a catalogue is found, and named.
func TestCataloguesSpoiled(t *testing.T) {
	for name, c := range map[string]struct {
		file, old, new string
		says           string // empty: it is no mistake
	}{
		"as it is":             {file: "de/slots.json"},
		"a key is missing":     {"de/slots.json", `"timeout"`, `"time-out"`, `words, de: "timeout" is missing`},
		"a key too many":       {"de/slots.json", `"timeout"`, `"time-out"`, `words, de: "time-out" is not in English`},
		"missing in English":   {"en/slots.json", `"timeout"`, `"time-out"`, `words, zh: "time-out" is missing`},
		"a key twice":          {"vi/slots.json", `"timeout"`, `"garbled"`, `words/vi/slots.json: "garbled" is there twice`},
		"a key in two files":   {"vi/notices.json", `"cloud-clear"`, `"garbled"`, `words/vi/slots.json: "garbled" is there twice`},
		"a verb is missing":    {"es/notices.json", `Nube: %d placas`, `Nube: unas placas`, `words, es: "cloud-many" has the verbs [], and ["%d"]`},
		"a verb too many":      {"es/notices.json", `Nube: 1 placa`, `Nube: %d placa`, `words, es: "cloud-one" has the verbs ["%d"], and []`},
		"another verb":         {"zh/slots.json", `IT：%s`, `IT：%d`, `words, zh: "contact-it" has the verbs ["%d"], and ["%s"]`},
		"another order":        {"de/notices.json", `%d Platinen warten, die älteste seit %s`, `seit %s warten %d Platinen`, `"backlog-many" has the verbs ["%s" "%d"], and ["%d" "%s"]`},
		"a bare percent sign":  {"de/notices.json", `Cloud: alles`, `Cloud: 100 % alles`, `"cloud-clear" has the verbs ["% a"], and []`},
		"an empty sentence":    {"de/slots.json", `"GUT"`, `""`, `"state-passed" is empty`},
		"white space around":   {"de/slots.json", `"GUT"`, `"GUT "`, `"state-passed" is empty, or has white space around it: "GUT "`},
		"no sentence":          {"de/slots.json", `"GUT"`, `7`, `words/de/slots.json: "state-passed": want a sentence`},
		"an object":            {"de/slots.json", `"GUT"`, `{}`, `words/de/slots.json: "state-passed": want a sentence`},
		"no object":            {"de/slots.json", `{`, `[`, `words/de/slots.json: want one JSON object`},
		"cut short":            {"de/slots.json", "}\n", ``, `words/de/slots.json: `},
		"two objects":          {"de/slots.json", "}\n", `}{}`, `words/de/slots.json: want one JSON object`},
		"a language is absent": {"vi", "", "", "there are no words in the language vi"},
	} {
		t.Run(name, func(t *testing.T) {
			files := fstest.MapFS{}
			err := fs.WalkDir(wordFiles, "words", func(name string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				text, err := fs.ReadFile(wordFiles, name)
				name = strings.TrimPrefix(name, "words/")
				if c.file == name && c.old != "" {
					spoiled := strings.Replace(string(text), c.old, c.new, 1)
					if spoiled == string(text) {
						return fmt.Errorf("%s has no %q", name, c.old)
					}
					text = []byte(spoiled)
				}
				if !strings.HasPrefix(name, c.file+"/") {
					files[name] = &fstest.MapFile{Data: text}
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = readCatalogues(files)
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

// Whom a sentence says to call is whom the status names.
func TestCalls(t *testing.T) {
	used, _ := spoken(t)
	called := map[Call]int{}
	for key := range used {
		want := CallNobody
		switch sentence := sentences[key]; {
		case key == "lost-advice": // of the page, not of a slot
		case strings.Contains(strings.ToLower(sentence), "call it"):
			want = CallIT
		case strings.Contains(strings.ToLower(sentence), "call quality"):
			want = CallQuality
		}
		if got := key.call(); got != want {
			t.Errorf("%q says %q, and the call is for %q", key, sentences[key], got)
		}
		called[want]++
	}
	if called[CallIT] < 10 || called[CallQuality] < 5 {
		t.Errorf("this test looks at nothing: %v", called)
	}
}

// The language is the query's, else the cookie's, else the station's; what
// nobody speaks is passed over.
func TestLanguageOfARequest(t *testing.T) {
	b := shown(t, func(c *Config) { c.Page.Language = "de" }, slotState{state: Empty, advice: adviceEmpty})
	h := b.Handler()
	for _, c := range []struct{ query, cookie, want string }{
		{"", "", "de"}, {"?lang=es", "", "es"}, {"", "vi", "vi"}, {"?lang=zh", "vi", "zh"}, {"?lang=en", "vi", "en"},
		{"?lang=tlh", "", "de"}, {"?lang=tlh", "vi", "vi"}, {"", "tlh", "de"}, {"?lang=", "", "de"}, {"?lang=EN", "", "de"}, {"?lang=../en", "", "de"},
	} {
		set := func(r *http.Request) {
			if c.cookie != "" {
				r.AddCookie(&http.Cookie{Name: "lang", Value: c.cookie})
			}
		}
		advice := b.languages[c.want].Say(adviceEmpty)
		for _, path := range []string{"/", "/status"} {
			if body := ask(h, http.MethodGet, path+c.query, set).Body.String(); !strings.Contains(body, advice) {
				t.Errorf("%s%s with the cookie %q does not say %q:\n%s", path, c.query, c.cookie, advice, body)
			}
		}
	}
	if got := b.Status().Slots[0].Advice; got != b.languages["de"].Say(adviceEmpty) {
		t.Errorf("the station itself says %q", got)
	}
}

func TestEventsInALanguage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shown(t, nil, slotState{state: Passed, advice: advicePassed, device: deviceOne})
		s := b.site()
		for _, language := range Languages() {
			events := s.events("?lang=" + language)
			status, _, err := events.next()
			if want := b.languages[language].Say(advicePassed); err != nil || status.Slots[0].Advice != want {
				t.Errorf("%s: %+v, %v, want %q", language, status, err, want)
			}
			events.conn.Close()
		}
	})
}

// Who is meant stands beside what says to call somebody, in every language, and
// nowhere else.
func TestContacts(t *testing.T) {
	device, _ := board.ParseDeviceID("0123456789abcdef00112233445566aa")
	b := shown(t, func(c *Config) {
		c.Page = Page{ContactIT: "Ana, ext. 4711", ContactQuality: "Bo 12"}
		c.Backlog = func() Backlog { return Backlog{Dead: 1, Pending: 1, OldestSeconds: 60} }
	},
		slotState{state: Absent, advice: adviceAbsent}, slotState{state: Failed, reason: ReasonNoProof, advice: messageKey(ReasonNoProof), device: device},
		slotState{state: Failed, reason: ReasonNotInLot, advice: messageKey(ReasonNotInLot), device: device})
	for language, c := range b.languages {
		status, _ := b.snapshot(c)
		for i, want := range []string{"Ana, ext. 4711", "Bo 12", ""} {
			slot := status.Slots[i]
			plain, contact := c.Say(b.states[i].advice), ""
			if want != "" {
				contact = " " + c.Say("contact-"+messageKey(slot.Call), want)
			}
			if language == "zh" { // no space follows its full stop
				contact = strings.TrimPrefix(contact, " ")
			}
			if slot.Advice != plain+contact {
				t.Errorf("%s: slot %d says %q", language, i, slot.Advice)
			}
		}
		if n := status.Notices; len(n) != 2 || !strings.HasSuffix(n[0].Text, "Bo 12") || strings.Contains(n[1].Text, "Bo 12") {
			t.Errorf("%s: the notices are %+v", language, n)
		}
	}
}

// A problem that no sentence fits is told by its detail, and Sentence says so.
func TestProblemSentence(t *testing.T) {
	for _, c := range []struct {
		p        Problem
		language string
		want     string // of an error, if it begins with "!"
	}{
		{Problem{Word: "dead", Args: []any{1}}, "en", "Call quality: the registry rejected 1 board for good."},
		{Problem{Word: "dead", Args: []any{0}}, "en", "Call quality: the registry rejected 0 boards for good."},
		{Problem{Word: "dead", Args: []any{2}}, "es", "Llame a Calidad: el repositorio rechazó 2 placas definitivamente."},
		{Problem{Word: "dead"}, "en", `!en has no sentence for "dead" with 0 arguments`},
		{Problem{Word: "dead", Args: []any{"2"}}, "en", `!no sentence for "dead"`},
		{Problem{Word: "health-clock", Args: []any{2}}, "en", `!no sentence for "health-clock" with 1`},
		{Problem{Word: "disk-low", Args: []any{2}}, "en", `!no sentence for "disk-low" with 1`},
		{Problem{Word: "nonsense", Args: []any{2}}, "en", `!no sentence for "nonsense"`},
		{Problem{Word: "dead", Args: []any{1}}, "tlh", `!no words in the language "tlh"`},
	} {
		got, err := c.p.Sentence(c.language)
		if err != nil {
			got = "!" + err.Error()
		}
		if failed := strings.HasPrefix(c.want, "!"); failed != (err != nil) || !strings.Contains(got, strings.TrimPrefix(c.want, "!")) {
			t.Errorf("%+v in %s: %q, want %q", c.p, c.language, got, c.want)
		}
	}
}
