package station

import (
	"strings"
	"testing"
	"time"
)

// A station without a network blames no cloud.
func TestNoticeCarried(t *testing.T) {
	b := shown(t, func(config *Config) {
		config.Backlog = func() Backlog { return Backlog{Pending: 2, OldestSeconds: 60, Offline: true} }
	}, slotState{state: Empty, advice: adviceEmpty})
	got := b.Status().Notices
	if len(got) != 1 || got[0].Urgent || got[0].Word != "carried" || !strings.Contains(got[0].Text, "For the stick: 2 boards wait") || strings.Contains(got[0].Text, "loud") {
		t.Errorf("notices %+v", got)
	}
}

// What else people must know stands among the station's own notices, what is
// urgent first.
func TestNoticesOfOthers(t *testing.T) {
	b := shown(t, func(config *Config) {
		config.Backlog = func() Backlog { return Backlog{Pending: 1, Dead: 1, OldestSeconds: 15} }
		config.Notices = func() []Problem {
			return []Problem{{Word: "disk-critical", Args: []any{98, 7}, Urgent: true, Detail: "one"}, {Word: "copies-stopped", Detail: "two"}}
		}
	}, slotState{state: Empty, advice: adviceEmpty})
	want := []Notice{
		{Urgent: true, Word: "dead", Text: english.Say("dead-one"), Detail: "stationctl spool dead lists what the registry refused, and why", Call: CallQuality},
		{Urgent: true, Word: "disk-critical", Text: english.Say("disk-critical", 98, 7), Detail: "one"},
		{Word: "backlog", Text: english.Say("backlog-one", 15*time.Second)}, {Word: "copies-stopped", Text: english.Say("copies-stopped"), Detail: "two"},
	}
	got := b.Status().Notices
	if len(got) != len(want) {
		t.Fatalf("notices %+v, want %+v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("notice %d is %+v, want %+v", i, got[i], want[i])
		}
	}
}
