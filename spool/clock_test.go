package spool

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A clock that was set, or that cannot be right, is noticed.
func TestClock(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		last   time.Time
		now    time.Duration // since start
		passed time.Duration
		notice string
	}{
		"right":                       {start, time.Hour, time.Hour, ""},
		"the first look":              {time.Time{}, 0, 1 << 62, ""},
		"set back":                    {start, -time.Hour, -time.Hour, "set back"},
		"set back, by less than went": {start, time.Hour, 2 * time.Hour, "set back by 1h0m0s"},
		"set back by a moment":        {start, -time.Second, time.Second, ""},
		"set forward":                 {start, 2 * time.Hour, time.Hour, "set forward by 1h0m0s"},
		"a year before everything":    {start, -1e5 * time.Hour, time.Hour, "set it"},
	} {
		var notices []string
		look := clock{last: c.last}
		look.check(start.Add(c.now), c.passed, func(n string) { notices = append(notices, n) })
		if got := strings.Join(notices, "\n"); (c.notice == "") != (got == "") || !strings.Contains(got, c.notice) || (look.fault != "") != (c.notice == "set it") {
			t.Errorf("%s: %q, %q", name, got, look.fault)
		}
	}
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
