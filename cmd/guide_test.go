package cmd_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"secretfree/cmd/internal/stationconf"
	"secretfree/station"
)

const guide = "../systemd/README.md"

// tables are the rows of the tables under a heading of a document, without the
// first two of each, as cells.
func tables(t *testing.T, name, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", name, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | "); strings.HasPrefix(line, "| `") {
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

// settingsOf are the keys of a configuration, those of tables with the table's
// name before.
func settingsOf(t reflect.Type, prefix string) (keys []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, settingsOf(inner, prefix+name+".")...)
			continue
		}
		keys = append(keys, prefix+name)
	}
	return keys
}

// IT's guide has a row for every setting of a station and for no other, with
// the default that the sample has.
func TestGuideSettings(t *testing.T) {
	sample, err := os.ReadFile("../systemd/stationd.toml")
	if err != nil {
		t.Fatal(err)
	}
	defaults, table := map[string]string{}, ""
	for line := range strings.Lines(string(sample)) {
		if m := regexp.MustCompile(`^\[+([a-z_]+)\]+$`).FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			table = m[1] + "."
		} else if m := regexp.MustCompile(`^# ([a-z0-9_]+) *= (.*)$`).FindStringSubmatch(strings.TrimSpace(line)); m != nil && table != "slot." {
			defaults[table+m[1]] = m[2]
		}
	}
	have := map[string]bool{}
	for _, row := range tables(t, guide, "Configuration") {
		key := strings.Trim(row[0], "`")
		if have[key] || len(row) != 4 || row[2] == "" {
			t.Errorf("%s: it is there twice, or has %d cells", key, len(row))
			continue
		}
		have[key] = true
		if value, ok := defaults[key]; ok && row[1] != "`"+value+"`" && key != "registry.region" && key != "hosts" {
			t.Errorf("%s: the default is told as %s, the sample has %s", key, row[1], value)
		}
	}
	keys := settingsOf(reflect.TypeFor[stationconf.Config](), "")
	if len(keys) < 20 || len(defaults) < 15 {
		t.Fatalf("%q, %q: this test looks at nothing", keys, defaults)
	}
	for _, key := range keys {
		if !have[key] {
			t.Errorf("there is no row for the setting %s", key)
		}
		delete(have, key)
	}
	for key := range have {
		t.Errorf("there is a row for %s, which is no setting", key)
	}
}

// IT's guide, and that of the cloud's engineers for an issuer, say what to do
// about every sentence of the page that tells of trouble, and every alert.
func TestGuideIncidents(t *testing.T) {
	told := map[string]bool{}
	for _, row := range append(tables(t, guide, "Incidents"), tables(t, "../cloud/README.md", "Operate")...) {
		for _, m := range inBackQuotes.FindAllStringSubmatch(row[0], -1) {
			told[m[1]] = true
		}
		if what := row[len(row)-1]; what == "" {
			t.Errorf("%s: what is to be done?", row[0])
		}
	}
	// What is no trouble.
	harmless := regexp.MustCompile(`^(empty|fixture-closed|searching|reading|passed|repeat|(state|cloud|contact|span|scan|lot|page|acknowledge)-.*|login-(title|token|button|help))$`)
	words := map[string]bool{}
	for _, area := range []string{"slots", "notices", "access"} {
		data, err := os.ReadFile("../station/words/en/" + area + ".json")
		if err != nil {
			t.Fatal(err)
		}
		sentences := map[string]string{}
		if err := json.Unmarshal(data, &sentences); err != nil {
			t.Fatal(err)
		}
		for word := range sentences {
			if words[word] = true; !told[word] && !harmless.MatchString(word) {
				t.Errorf("%s.json: there is no row for %s", area, word)
			}
		}
	}
	if len(words) < 50 {
		t.Fatalf("%d words: this test looks at nothing", len(words))
	}
	rules, err := filepath.Glob("../systemd/monitoring/*.y*ml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range rules {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\s*-? *alert: *"?([A-Za-z0-9_]+)`).FindAllStringSubmatch(string(data), -1) {
			if words[m[1]] = true; !told[m[1]] {
				t.Errorf("%s: there is no row for the alert %s", name, m[1])
			}
		}
	}
	if len(rules) == 0 {
		t.Error("there are no alert rules: this test looks at nothing")
	}
	for word := range told {
		if !words[word] {
			t.Errorf("there is a row for %s, which nothing says", word)
		}
	}
}

// The technician's card has the words of the page, in every language, and its
// second table a row for the beginning of every sentence that a failed board
// can show.
func TestCard(t *testing.T) {
	text, err := os.ReadFile("../station/README.md")
	if err != nil {
		t.Fatal(err)
	}
	card := string(text)
	languages, err := filepath.Glob("../station/words/*/slots.json")
	if err != nil || len(languages) < 5 {
		t.Fatalf("%q, %v", languages, err)
	}
	english := map[string]string{}
	for _, name := range languages {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sentences := map[string]string{}
		if err := json.Unmarshal(data, &sentences); err != nil {
			t.Fatal(err)
		}
		for _, state := range []string{"empty", "reading", "passed", "failed", "absent"} {
			if word := sentences["state-"+state]; word == "" || !regexp.MustCompile(`\| `+regexp.QuoteMeta(word)+` \|`).MatchString(card) {
				t.Errorf("%s: the card has no %q", name, word)
			}
		}
		if strings.Contains(name, "/en/") {
			english = sentences
		}
	}
	_, section, _ := strings.Cut(card, "| the tile begins with | then |\n")
	section, _, _ = strings.Cut(section, "\n\n")
	var beginnings []string
	for line := range strings.Lines(section) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !strings.HasPrefix(line, "| -") {
			beginnings = append(beginnings, strings.Split(cell, ", ")...)
		}
	}
	if len(beginnings) < 5 {
		t.Fatalf("%q", beginnings)
	}
	for _, reason := range station.Reasons() {
		if sentence := english[string(reason)]; !slices.ContainsFunc(beginnings, func(b string) bool { return strings.HasPrefix(sentence, b) }) {
			t.Errorf("%s: the card does not know a tile that begins as %q", reason, sentence)
		}
	}
	for _, b := range beginnings {
		used := false
		for _, sentence := range english {
			used = used || strings.HasPrefix(sentence, b)
		}
		if !used {
			t.Errorf("no tile begins with %q", b)
		}
	}
}
