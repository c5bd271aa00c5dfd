package station

import (
	"strings"
	"testing"
)

// A station without a network blames no cloud.
func TestNoticeCarried(t *testing.T) {
	b := shown(t, func(config *Config) {
		config.Backlog = func() Backlog { return Backlog{Pending: 2, OldestSeconds: 60, Carried: true} }
	}, slotState{state: Empty, advice: adviceEmpty})
	got := b.Status().Notices
	if len(got) != 1 || got[0].Urgent || !strings.HasPrefix(got[0].Text, "For the stick: 2 boards wait") || strings.Contains(got[0].Text, "loud") {
		t.Errorf("notices %+v", got)
	}
}

// What else people must know stands among the station's own notices, what is urgent first.
func TestNoticesOfOthers(t *testing.T) {
	b := shown(t, func(config *Config) {
		config.Backlog = func() Backlog { return Backlog{Pending: 1, Dead: 1, OldestSeconds: 15} }
		config.Notices = func() []Notice { return []Notice{{Urgent: true, Text: "one"}, {Text: "two"}} }
	}, slotState{state: Empty, advice: adviceEmpty})
	want := []Notice{
		{Urgent: true, Text: say("notice-dead-one")}, {Urgent: true, Text: "one"},
		{Text: say("notice-backlog", say("waiting-one", span(15e9)))}, {Text: "two"},
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
