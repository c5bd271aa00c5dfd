package stationd

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretfree/cmd/internal/stationconf"
	"secretfree/spool"
	"secretfree/station"
)

func TestDiskNotices(t *testing.T) {
	for _, c := range []struct {
		disk   spool.Disk
		urgent bool
		word   string
		want   string // the detail
	}{
		{spool.Disk{}, false, "", ""},
		{spool.Disk{Free: 50, Size: 100, Level: spool.DiskOK}, false, "", ""},
		{spool.Disk{Used: 1_234_000_000, Free: 19_000_000_000, Size: 105_555_000_000, Level: spool.DiskLow}, false, "disk-low",
			"the disk of this station is 81 % full; 19 GB are left, room for about 10000000 boards. The station's own files take 1.2 GB: it needs a larger disk: the guide for IT says how many years fit on which."},
		{spool.Disk{Used: 999, Free: 1_900_000, Size: 100_000_000, Level: spool.DiskCritical}, true, "disk-critical",
			"the disk of this station is 98 % full; 1.9 MB are left, room for about 1000 boards. The station's own files take 999 bytes: it needs a larger disk: the guide for IT says how many years fit on which."},
	} {
		list := diskNotices(c.disk)
		if c.want == "" {
			if len(list) != 0 {
				t.Errorf("%+v: %+v", c.disk, list)
			}
			continue
		}
		if len(list) != 1 || list[0].Urgent != c.urgent || list[0].Word != c.word || list[0].Detail != c.want || list[0].Call != station.CallIT {
			t.Errorf("%+v: %+v", c.disk, list)
			continue
		}
		sayable(t, list[0])
	}
}

// A disk that fills is shown on the page, in the status and in the metrics
// before boards fail; the health stays green, as all work moves.
func TestDiskWarns(t *testing.T) {
	f := newFactory(t)
	smallDisk(t, f.state, "4m")
	fill(t, filepath.Join(f.state, "ballast"))
	f.extra = "[disk]\nwarn_percent = 30\ncritical_percent = 60\n"
	if err := os.Truncate(filepath.Join(f.state, "ballast"), 2<<20); err != nil {
		t.Fatal(err)
	}
	d := f.start()
	d.await("the warning", func(s station.Status) bool {
		return len(s.Notices) > 0 && strings.HasPrefix(s.Notices[0].Text, "Tell IT: the disk of this station is ") && !s.Notices[0].Urgent
	})
	if _, page := d.get("/"); !strings.Contains(page, "the disk of this station is ") {
		t.Errorf("the page says nothing of the disk:\n%s", page)
	}
	_, metrics := d.get("/metrics")
	for _, want := range []string{`stationd_disk_level{level="low"} 1`, `stationd_disk_level{level="ok"} 0`, "stationd_disk_size_bytes 4.194304e+06", "stationd_disk_free_bytes ", "stationd_disk_used_bytes "} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s:\n%s", want, metrics)
		}
	}
	if code, body := d.get("/healthz"); code != http.StatusOK {
		t.Errorf("the health: %d %s", code, body)
	}
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for limit := time.Now().Add(30 * time.Second); !strings.Contains(d.log.String(), "the disk of this station is "); <-ticker.C {
		if time.Now().After(limit) {
			t.Fatalf("the log says nothing of the disk:\n%s", d.log)
		}
	}
	d.stop()
}

func TestDiskConfiguration(t *testing.T) {
	for extra, key := range map[string]string{
		"warn_percent = 0":                             "disk.warn_percent is 0",
		"warn_percent = 100":                           "disk.warn_percent is 100",
		"warn_percent = 95":                            "disk.critical_percent is 95, disk.warn_percent 95",
		"warn_percent = 90\ncritical_percent = 85":     "disk.critical_percent is 85",
		"critical_percent = 100":                       "disk.critical_percent is 100",
		"warn_percent = 20\ncritical_percent = 20\n":   "disk.critical_percent is 20",
		"warn = 20":                                    `unknown key "disk.warn"`,
		"warn_percent = 50\ncritical_percent = \"60\"": "disk.critical_percent takes a whole number, and this is a text",
	} {
		if err := loadWith(t, "[disk]\n"+extra+"\n"); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%q: %v, want %q", extra, err, key)
		}
	}
}

// loadWith loads a good configuration with something more at its end.
func loadWith(t *testing.T, more string) error {
	t.Helper()
	f := newFactory(t)
	f.config()
	name := filepath.Join(f.dir, "stationd.toml")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(text, more...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = stationconf.Load(name)
	return err
}
