package stationd

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"secretfree/spool"
)

// An outage of the registry, and one of the archive alone, are logged when they
// begin and end, and while the error is another each time, once a minute.
func TestChanges(t *testing.T) {
	for name, c := range map[string]struct {
		stats        func(err string) spool.Stats
		away, better string
	}{
		"records": {func(err string) spool.Stats { return spool.Stats{LastError: err} }, "the registry does not take records", "the registry takes records again"},
		"copies":  {func(err string) spool.Stats { return spool.Stats{ArchiveError: err} }, "the registry takes no copies of the journal", "the registry takes copies of the journal again"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log strings.Builder
				told := deliveryLogger{log: zerolog.New(&log)}
				told.report(c.stats(""))
				for _, err := range []string{"no route", "no route", "not now"} {
					told.report(c.stats(err))
				}
				if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, c.away) || !strings.Contains(text, "no route") {
					t.Errorf("when it begins: %s", text)
				}
				log.Reset()
				time.Sleep(2 * time.Minute)
				told.report(c.stats("not now"))
				if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "not now") {
					t.Errorf("another error, later: %s", text)
				}
				log.Reset()
				told.report(c.stats(""))
				if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, c.better) {
					t.Errorf("when it ends: %s", text)
				}
			})
		})
	}
}

func TestArchiveNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := time.Now().Add(-2 * time.Hour)
		for name, c := range map[string]struct {
			stats spool.Stats
			want  string
		}{
			"none waits":       {spool.Stats{ArchiveError: "no route"}, ""},
			"it is new":        {spool.Stats{Unarchived: 1, UnarchivedSince: time.Now(), ArchiveError: "no route"}, ""},
			"it is being sent": {spool.Stats{Unarchived: 1, UnarchivedSince: long}, ""},
			"a fork":           {spool.Stats{Unarchived: 1, UnarchivedSince: long, ArchiveError: "fork", Forked: true}, ""},
			"it is refused":    {spool.Stats{Unarchived: 2, UnarchivedSince: long, ArchiveError: "no s3:ListBucket"}, "the registry takes no copies of the journal: 2 segments of it"},
		} {
			list := archiveNotices(c.stats)
			switch {
			case c.want == "" && len(list) > 0:
				t.Errorf("%s: %+v", name, list)
			case c.want != "" && (len(list) != 1 || list[0].Urgent || !strings.HasPrefix(list[0].Detail, c.want) || !strings.Contains(list[0].Detail, c.stats.ArchiveError)):
				t.Errorf("%s: %+v, want %q", name, list, c.want)
			case c.want != "":
				sayable(t, list[0])
			}
		}
	})
}

// An outage is one series of the metrics, whichever record it is told of.
func TestCause(t *testing.T) {
	for text, want := range map[string]string{
		"record 12, device 0123456789abcdef0123456789abcdef: no route":                        "…, device …: no route",
		"archiving segment 8421: writing s3://b/journal/00000000000000008421.jsonl: HTTP 403": "archiving …: writing s3://b/journal/….jsonl: HTTP 403",
		"": "",
	} {
		if got := cause(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
