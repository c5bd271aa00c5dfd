package stationd

import (
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/spool"
	"secretfree/station"
)

// sayable complains about a problem that a language has no sentence for.
func sayable(t *testing.T, p station.Problem) {
	t.Helper()
	for _, language := range station.Languages() {
		if text, err := p.Sentence(language); err != nil || strings.Contains(text, "%!") {
			t.Errorf("%q, %v", text, err)
		}
	}
	if p.Detail == "" || strings.Contains(p.Detail, "\n") {
		t.Errorf("what %s tells IT is %q", p.Word, p.Detail)
	}
}

// All that can be wrong at once is told, each in a line of its own, to people
// in their language and to IT in detail.
func TestHealthProblems(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	stats := spool.Stats{
		Broken: "fsync: input/output error\nagain", WritingSince: long, Damaged: 2, Unsigned: "no key", Clock: "it went back", Forked: true, ArchiveError: "two heads",
		Pending: 3, Oldest: long,
	}
	d := &Daemon{diskLimit: diskLimit}
	list := d.red(stats)
	var words []string
	for _, p := range list {
		words = append(words, p.Word)
		sayable(t, p)
		want := station.CallIT
		if p.Word == "health-forked" {
			want = station.CallQuality
		}
		if !p.Urgent || p.Call != want {
			t.Errorf("%+v is red, and does not call %s", p, want)
		}
	}
	want := []string{"health-disk-untrusted", "health-disk-stalled", "health-journal-damaged", "health-unsigned", "health-clock", "health-forked", "health-registry-silent"}
	if !slices.Equal(words, want) {
		t.Errorf("red for %q, want %q", words, want)
	}
	if text, err := list[6].Sentence("de"); err != nil || !strings.Contains(text, "60 min") {
		t.Errorf("%q, %v", text, err)
	}
	d.offline = true
	if n := len(d.red(stats)); n != len(want)-1 {
		t.Errorf("%d problems where records are carried", n)
	}
	if list := d.red(spool.Stats{}); len(list) > 0 {
		t.Errorf("red for %+v", list)
	}
}
