package station

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// translators reads the two tables that translators are given, as cells; their
// heads are checked to name a column for every language.
func translators(t *testing.T) (verdicts, glossary [][]string) {
	t.Helper()
	text, err := os.ReadFile("words/README.md")
	if err != nil {
		t.Fatal(err)
	}
	all, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	read := func(heading string, before int) (rows [][]string) {
		_, section, _ := strings.Cut(string(text), "\n## "+heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		for line := range strings.Lines(section) {
			cells := strings.Split(strings.TrimSpace(line), "|")
			if len(cells) < 3 || strings.HasPrefix(line, "| -") {
				continue
			}
			for i, cell := range cells {
				cells[i] = strings.TrimSpace(cell)
			}
			rows = append(rows, cells[1:len(cells)-1])
		}
		if len(rows) < 10 {
			t.Fatalf("the table under %q has %d rows", heading, len(rows))
		}
		for i, language := range Languages() {
			if name := all[language].Say("page-native"); len(rows[0]) <= before+i || rows[0][before+i] != name {
				t.Fatalf("the table under %q has no column %q for %s in its place: %q", heading, name, language, rows[0])
			}
		}
		for _, row := range rows[1:] {
			if len(row) < before+len(Languages()) {
				t.Fatalf("a row under %q is too short: %q", heading, row)
			}
		}
		return rows[1:]
	}
	return read("The verdicts", 2), read("The glossary", 0)
}

// A verdict has one name: on the tile, in the counter, in the lists and in the
// report; no other word names it, and it names nothing else.
func TestVerdicts(t *testing.T) {
	all, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	table, _ := translators(t)
	told := map[messageKey]bool{}
	for _, row := range table {
		key := messageKey(strings.Trim(row[0], "`"))
		told[key] = true
		for i, language := range Languages() {
			if want := all[language].Say(key); row[2+i] != want {
				t.Errorf("the translators' table has %q for %s in %s, and the catalogue %q", row[2+i], key, language, want)
			}
		}
	}
	same := map[messageKey][]messageKey{
		"state-passed": {"result-passed", "page-lot-passed", "report-later"},
		"state-failed": {"result-failed", "page-lot-failed", "report-failures", "report-reasons", "board-later"},
	}
	// Without the ending, where a language has one for it.
	stems := map[string]string{"es APTO": "apt", "en FAIL": "fail"}
	for language, c := range all {
		for state, keys := range same {
			verdict := c.Say(state)
			stem := strings.ToLower(verdict)
			if short, ok := stems[language+" "+verdict]; ok {
				stem = short
			}
			for _, key := range append(keys, state) {
				if sentence := c.Say(key); !begins(sentence, stem) && (language != English || key != "report-reasons") { // "Failures"
					t.Errorf("%s: %s is %q, and the tile says %s", language, key, sentence, verdict)
				}
			}
			if sentence := c.Say("cloud-rejected"); begins(sentence, stem) {
				t.Errorf("%s: what the cloud refuses is called as a verdict is: %q", language, sentence)
			}
		}
	}
	for _, key := range slices.Concat([]messageKey{"result-repeat", "page-lot-repeated"}, same["state-passed"][:2], same["state-failed"][:2]) {
		if !told[key] {
			t.Errorf("the translators' table has no row for %s", key)
		}
	}
	for _, state := range []State{Absent, Empty, Reading, Passed, Failed} {
		if !told["state-"+messageKey(state)] {
			t.Errorf("the translators' table has no row for the state %s", state)
		}
	}
}

// begins tells whether a word of a sentence begins with a text, in capitals or
// not. Chinese has no space between words.
func begins(sentence, text string) bool {
	sentence, text = strings.ToLower(sentence), strings.ToLower(text)
	return regexp.MustCompile(`(^|\P{L}|\p{Han})` + regexp.QuoteMeta(text)).MatchString(sentence)
}

// One thing has one word in each language, that of the translators' glossary.
func TestGlossary(t *testing.T) {
	all, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	_, table := translators(t)
	// Where the English word is another one that looks alike.
	other := map[messageKey]string{"login-title": "log", "login-button": "log", "logout": "log", "page-keys": "key"}
	for key, term := range other {
		if !strings.Contains(strings.ToLower(sentences[key]), term) {
			t.Errorf("%q has no %q in it: no exception is needed", key, term)
		}
	}
	taken := map[string]string{}
	for _, row := range table {
		term := row[0]
		pattern := `(?i)\b` + term + `s?\b`
		if term == "IT" {
			pattern = `\bIT\b` // not the pronoun
		}
		meant := regexp.MustCompile(pattern)
		said := 0
		for key, sentence := range sentences {
			if !meant.MatchString(sentence) || other[key] == term {
				continue
			}
			said++
			for i, language := range Languages()[1:] {
				translated := all[language].Say(key)
				if forms := strings.Split(row[1+i], ", "); !slices.ContainsFunc(forms, func(form string) bool { return begins(translated, form) }) {
					t.Errorf("%s: %s has no %q for %q: %q", language, key, row[1+i], term, translated)
				}
			}
		}
		if said == 0 {
			t.Errorf("no sentence has the word %q: its row is of no use", term)
		}
		for i, language := range Languages()[1:] {
			for _, form := range strings.Split(row[1+i], ", ") {
				form = language + " " + strings.ToLower(form)
				if first, ok := taken[form]; ok {
					t.Errorf("%s stands for %q and for %q", form, first, term)
				}
				taken[form] = term
			}
		}
	}
}
