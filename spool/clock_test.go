package spool

import (
	"os"
	"path/filepath"
	"secretfree/station/board"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A clock that was set, or that cannot be right, is noticed; what makes it wrong
// is a fault until the clock is right again.
func TestClock(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		last   time.Time
		now    time.Duration // since start
		passed time.Duration
		notice string
		fault  string
	}{
		"right":                        {start, time.Hour, time.Hour, "", ""},
		"the first look":               {time.Time{}, 0, 1 << 62, "", ""},
		"the first look after a year":  {start, 365 * 24 * time.Hour, 365 * 24 * time.Hour, "", ""},
		"set back":                     {start, -time.Hour, -time.Hour, "set back", "it said 2026-01-02T03:04:05Z before"},
		"set back, by less than went":  {start, time.Hour, 2 * time.Hour, "set back by 1h0m0s", ""},
		"set back by a moment":         {start, -time.Second, time.Second, "", ""},
		"set back by a minute":         {start, -time.Minute, 0, "", ""},
		"set back by more":             {start, -time.Minute - 1, 0, "set back", "set it"},
		"set forward":                  {start, 2 * time.Hour, time.Hour, "set forward by 1h0m0s", ""},
		"set forward by a day":         {start, 24 * time.Hour, 0, "set forward by 24h0m0s", ""},
		"set forward by more":          {start, 25 * time.Hour, 0, "set forward by 25h0m0s", "was set forward by 25h0m0s"},
		"a year before everything":     {start, -1e5 * time.Hour, time.Hour, "set it", "the clock says 2014"},
		"1970":                         {time.Time{}, -56 * 365 * 24 * time.Hour, 0, "set it", "the clock says 1970"},
		"a year after everything":      {time.Time{}, 75 * 365 * 24 * time.Hour, 0, "set it", "the clock says 2100"},
		"a year after all that, again": {start, 76 * 365 * 24 * time.Hour, 76 * 365 * 24 * time.Hour, "set it", "the clock says 2101"},
	} {
		var notices []string
		look := clock{last: c.last}
		look.check(start.Add(c.now), c.passed, func(n string) { notices = append(notices, n) })
		if c.fault == "the clock says 2100" {
			c.notice, c.fault = "", "" // the year 2100 itself is not after it
		}
		if got := strings.Join(notices, "\n"); (c.notice == "") != (got == "") || !strings.Contains(got, c.notice) ||
			(c.fault == "") != (look.fault == "") || !strings.Contains(look.fault, c.fault) {
			t.Errorf("%s: %q, %q", name, got, look.fault)
		}
	}
}

// Each step is a look at the clock: what was wrong stays so until the clock is
// right, or is known to be.
func TestClockFaultStays(t *testing.T) {
	type step struct {
		set, passed time.Duration // by how much the clock was set, after so much time
		right       bool
		fault       bool
	}
	for name, steps := range map[string][]step{
		"back, and it catches up":     {{-time.Hour, time.Minute, false, true}, {0, 30 * time.Minute, false, true}, {0, 30 * time.Minute, false, false}},
		"back, and forward":           {{-time.Hour, time.Minute, false, true}, {time.Hour, time.Minute, false, false}},
		"back, and known to be right": {{-time.Hour, time.Minute, false, true}, {0, time.Second, true, false}, {0, time.Second, false, false}, {-time.Hour, time.Second, false, true}},
		"back, and right at once":     {{-time.Hour, time.Minute, true, false}, {0, time.Minute, false, false}},
		"forward, and it stays":       {{48 * time.Hour, time.Minute, false, true}, {0, 72 * time.Hour, false, true}, {0, time.Hour, true, false}, {0, time.Hour, false, false}},
		"forward, in small steps":     {{20 * time.Hour, time.Minute, false, false}, {3 * time.Hour, time.Hour, false, false}, {2 * time.Hour, time.Hour, false, true}},
		"forward, and back":           {{48 * time.Hour, time.Minute, false, true}, {-48 * time.Hour, time.Hour, false, false}},
		"forward, back and right":     {{48 * time.Hour, time.Minute, false, true}, {-48 * time.Hour, time.Hour, true, false}, {0, time.Hour, false, false}},
	} {
		var notices []string
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		look := clock{last: now}
		for i, s := range steps {
			now = now.Add(s.passed + s.set)
			was := look.fault
			notices = nil
			look.right = s.right
			look.check(now, s.passed, func(n string) { notices = append(notices, n) })
			if (look.fault != "") != s.fault {
				t.Errorf("%s, step %d: %q", name, i, look.fault)
			}
			want := 0
			if s.set != 0 {
				want++ // that it was set
			}
			if was == "" && s.fault {
				want++
			}
			if len(notices) != want {
				t.Errorf("%s, step %d: %q, want %d notices", name, i, notices, want)
			}
		}
	}
}

// Whatever the clock says, boards are stored, in the order in which they came.
func TestClockStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		var records []board.Record
		for _, pause := range []time.Duration{0, 110 * 365 * 24 * time.Hour, 100 * 365 * 24 * time.Hour} { // 2000, 2109, 2209
			time.Sleep(pause)
			records = append(records, k.mustAppend())
			if s := k.spool.Stats(); !strings.Contains(s.Clock, "the clock says 2") {
				t.Errorf("in %v: %+v", time.Now().Year(), s)
			}
		}
		k.spool.CheckClock(true)
		if s := k.spool.Stats(); s.Clock != "" {
			t.Errorf("known to be right: %+v", s)
		}
		k.reopen()
		for i, r := range records {
			if d, err := k.spool.History(r.Device); err != nil || d.Seq != uint64(i+1) {
				t.Errorf("record %d: %+v, %v", i, d, err)
			}
		}
	})
}

// A year in which a machine without a battery starts.
func TestClockOfAnEmptyBattery(t *testing.T) {
	// In a bubble it is the year 2000, as on a machine whose battery is empty.
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.mustAppend()
		if len(k.notices) != 1 || !strings.Contains(k.notices[0], "the clock says 2000") {
			t.Errorf("notices %q, want one of the clock", k.notices)
		}
		if s := k.spool.Stats(); !strings.Contains(s.Clock, "2000") {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestLockNamesItsHolder(t *testing.T) {
	k := newKit(t)
	_, err := Open(k.config())
	host, herr := os.Hostname()
	if herr != nil {
		t.Fatal(herr)
	}
	for _, want := range []string{host, filepath.Base(os.Args[0]), "since 20"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a second Open: %v, want %q in it", err, want)
		}
	}
}

// A folder that another machine used last is a copy of its folder, or its disk.
func TestAnotherHost(t *testing.T) {
	k := newKit(t)
	k.spool.Close()
	path := filepath.Join(k.dir, "lock")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), `"`+host+`"`, `"line9-host"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	k.notices = nil
	k.mustOpen()
	if len(k.notices) != 1 || !strings.Contains(k.notices[0], "line9-host") {
		t.Errorf("notices %q", k.notices)
	}
	k.reopen()
	if len(k.notices) != 0 {
		t.Errorf("once more: %q", k.notices)
	}
}
