package stationd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"secretfree/fixtures"
	"secretfree/spool"
	"secretfree/station"
	"secretfree/station/board"
)

// segments has a stopped station with small segments, delivered and archived.
func (f *factory) segments(records int) {
	f.t.Helper()
	c := f.config()
	f.start().stop()
	identity, err := spool.OpenIdentity(c.StateDir)
	if err != nil {
		f.t.Fatal(err)
	}
	sink, copies, err := Outside(f.t.Context(), c)
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := spool.Open(spool.Config{Dir: c.StateDir, Identity: identity, Sink: sink, Archive: copies, SegmentSize: 3 << 10})
	if err != nil {
		f.t.Fatal(err)
	}
	for range records {
		key, err := board.NewKey(fixtures.NewKey().Public(), nil)
		if err != nil {
			f.t.Fatal(err)
		}
		r := board.Record{SKU: c.SKU, Station: c.Station, Key: key, ReadAt: time.Now().UTC().Truncate(time.Millisecond), Generation: 1, Facts: map[string]string{"dialect": "ti-at"}}
		rand.Read(r.Device[:])
		if _, err := s.Append(f.t.Context(), r); err != nil {
			f.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { ended <- s.Run(running) }()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for stats := s.Stats(); stats.Pending > 0 || stats.Unarchived > 0 || stats.Archived < 2; stats = s.Stats() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			f.t.Fatalf("it is not delivered and archived: %+v", stats)
		}
	}
	stop()
	if err := errors.Join(<-ended, s.Close()); err != nil {
		f.t.Fatal(err)
	}
}

// Segments go one after the other, while the station is stopped and while it runs.
func TestControlPrunes(t *testing.T) {
	f := newFactory(t)
	f.segments(20)
	c := f.config()
	outside := func() (spool.Sink, spool.Archive, error) { return Outside(t.Context(), c) }
	prune := func(age time.Duration, apply bool) (list []spool.Prunable) {
		t.Helper()
		control, err := OpenControl(f.state, note.VerifierList())
		if err == nil {
			list, err = control.Prune(t.Context(), age, 0, apply, outside)
		}
		if err := errors.Join(err, control.Close()); err != nil {
			t.Fatal(err)
		}
		return list
	}
	all := prune(0, false)
	if len(all) < 3 {
		t.Fatalf("%+v", all)
	}
	for _, p := range prune(time.Hour, true) {
		if p.Pruned || !strings.Contains(p.Kept, "too young") {
			t.Errorf("%+v", p)
		}
	}
	if list := prune(0, true); !list[0].Pruned || list[1].Pruned {
		t.Errorf("one at a time: %+v", list)
	}
	d := f.start()
	if list := prune(0, false); len(list) != len(all)-1 || list[0].Kept != "" || list[0].Pruned {
		t.Errorf("a dry run while it runs: %+v", list)
	}
	for range len(all) - 1 {
		if list := prune(0, true); !list[0].Pruned {
			t.Errorf("while it runs: %+v", list)
		}
	}
	if list := prune(0, true); len(list) != 0 {
		t.Errorf("all are pruned: %+v", list)
	}
	f.plug(f.ports[0], newBoard())
	d.awaitSlot(0, station.Passed)
	d.stop()
	if report := f.verify(); report.Records != 21 || report.Pruned != all[len(all)-1].Last+1 {
		t.Errorf("the journal holds %+v", report)
	}
}

func TestRetentionConfiguration(t *testing.T) {
	for text, want := range map[string]string{"days = -1": "retention.days is -1", "days = 40000": "retention.days is 40000"} {
		if err := loadWith(t, "[retention]\n"+text+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if err := loadWith(t, "[retention]\ndays = 90\n"); err != nil {
		t.Error(err)
	}
	f := newFactory(t)
	f.config()
	name := filepath.Join(f.dir, "stationd.toml")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	head, _, _ := strings.Cut(string(text), "[registry]")
	for days, want := range map[int]string{0: "", 90: `retention.days is 90, and registry.kind is "none". Write 0`} {
		carried := fmt.Sprintf("%s[registry]\nkind = \"none\"\n[retention]\ndays = %d\n", head, days)
		if err := os.WriteFile(name, []byte(carried), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(name); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d days without a registry: %v, want %q", days, err, want)
		}
	}
	if age := (Retention{Days: 90}).Age(); age != 90*24*time.Hour {
		t.Errorf("90 days are %s", age)
	}
}
