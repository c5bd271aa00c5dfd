package stationd

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"secretfree/cmd/internal/stationconf"
	"secretfree/fixtures"
	"secretfree/spool/journal"
	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// views are all that a station shows of what was.
func views(d *running, passed, failed, day string) map[string]string {
	d.t.Helper()
	out := map[string]string{}
	for _, path := range []string{"/boards", "/boards/" + passed, "/boards/" + failed, "/boards?q=" + failed[5:15], "/report?day=" + day, "/report.csv?day=" + day} {
		code, text := d.get(path)
		out[path] = fmt.Sprint(code, " ", text)
	}
	status := d.Status()
	out["/status"] = fmt.Sprintf("%q %v %+v %s", status.Lot.Name, []int{status.Lot.Passed, status.Lot.Repeated, status.Lot.Failed}, status.Recent, status.Cloud)
	_, metrics := d.get("/metrics")
	for _, line := range strings.Split(metrics, "\n") {
		if strings.HasPrefix(line, "stationd_boards_") {
			out["/metrics"] += line + "\n"
		}
	}
	return out
}

// A shift from its boards to its pages: passes, a repeat, a conflict, a board
// that could not be read; found by id, address and key, with transcript and
// proof; and all of it again after a restart.
func TestLookingBack(t *testing.T) {
	f := newFactory(t)
	one, other := newBoard(), newBoard()
	list := filepath.Join(f.dir, "lot.txt")
	if err := os.WriteFile(list, []byte(one.ID()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.extra = "[transcripts]\nfailed = 10\npassed = 10\n[policy]\nlot = \"" + list + "\"\n"
	d := f.start()
	other.Device = one.Device
	for _, b := range []*fixtures.Board{one, one, other} {
		unplug := f.plug(f.ports[0], b)
		want := station.Passed
		if b == other {
			want = station.Failed
		}
		d.awaitSlot(0, want)
		unplug()
		d.awaitSlot(0, station.Absent)
	}
	d.await("the cloud", func(s station.Status) bool { return s.Backlog.Pending == 0 })
	if err := d.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	device, err := board.NewDeviceID(one.Device)
	if err != nil {
		t.Fatal(err)
	}
	id := device.String()
	day := time.Now().Format("2006-01-02")
	look := func(when string) {
		t.Helper()
		code, page := d.get("/boards/" + id)
		if code != 200 {
			t.Fatalf("%s: %d %s", when, code, page)
		}
		for _, want := range []string{"In the cloud", "widgiot/line3-a", "Read again", "Id known with another key", "Repeated", "sign-msg", `<dd class="said">A</dd>`, `href="/boards/` + id + `/proof"`} {
			if !strings.Contains(page, want) {
				t.Errorf("%s: no %q in\n%s", when, want, page)
			}
		}
		if n := strings.Count(page, `href="/transcripts/`); n != 3 {
			t.Errorf("%s: %d transcripts in\n%s", when, n, page)
		}
		_, name, _ := strings.Cut(page, `href="/transcripts/`)
		name, _, _ = strings.Cut(name, `"`)
		if code, text := d.get("/transcripts/" + name); code != 200 || !strings.HasPrefix(text, "transcript: 1\n") || !strings.Contains(text, "device: "+id) {
			t.Errorf("%s: the transcript %s: %d %.100s", when, name, code, text)
		}
		_, proof := d.get("/boards/" + id + "/proof")
		identity, err := journal.LoadIdentity(f.state, "widgiot/line3-a")
		if err != nil {
			t.Fatal(err)
		}
		if proven, err := journal.VerifyProof([]byte(proof), identity.Verifier); err != nil || proven.Sealed.Record().Device != device {
			t.Errorf("%s: the proof: %v", when, err)
		}
		for _, q := range []string{id, id[3:9], strings.ToUpper(id[28:]), "08%3A00%3A28"} {
			if code, page := d.get("/boards?q=" + q); code != 200 || !strings.Contains(page, id) {
				t.Errorf("%s: looking for %s: %d %s", when, q, code, page)
			}
		}
		if code, page := d.get("/boards"); code != 200 || strings.Count(page, `<a href="/boards/`+id) != 3 {
			t.Errorf("%s: the newest: %d %s", when, code, page)
		}
		code, text := d.get("/report.csv?day=" + day)
		rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
		if code != 200 || err != nil || len(rows) != 5 {
			t.Fatalf("%s: the CSV: %d %v %s", when, code, err, text)
		}
		for i, want := range []string{"A,passed,," + id + ",,confirmed,", "A,repeated,," + id + ",,confirmed,", "A,failed,device-conflict," + id + ",,,"} {
			if got := strings.Join(rows[i+1][2:], ","); got != want {
				t.Errorf("%s: row %d is %s, want %s", when, i, got, want)
			}
		}
		if code, page := d.get("/report?day=" + day); code != 200 || !strings.Contains(page, "50.0 % (1 of 2 boards)") {
			t.Errorf("%s: the report: %d %s", when, code, page)
		}
	}
	// A board that fails has a page of its own, whatever the reason.
	odd := newBoard() // it is not in the lot
	unplug := f.plug(f.ports[1], odd)
	d.awaitSlot(1, station.Failed)
	unplug()
	d.awaitSlot(1, station.Absent)
	look("at once")
	before := views(d, id, odd.ID(), day)
	if page := before["/boards/"+odd.ID()]; !strings.Contains(page, "Not in this lot") && !strings.Contains(page, "Failed") || !strings.HasPrefix(page, "200") {
		t.Errorf("the board that failed:\n%s", page)
	}
	same := func(when string) {
		t.Helper()
		d.await("the cloud", func(s station.Status) bool { return s.Backlog.Pending == 0 })
		for path, text := range views(d, id, odd.ID(), day) {
			if text != before[path] {
				t.Errorf("%s: %s says\n%s\nbefore\n%s", when, path, text, before[path])
			}
		}
	}
	d.stop()
	d = f.start()
	look("after a restart")
	same("after a restart")
	d.stop()
	if err := os.Remove(filepath.Join(f.state, "index.bbolt")); err != nil {
		t.Fatal(err)
	}
	d = f.start()
	same("without the index")
	for _, path := range []string{"/transcripts/..%2Fstation.key", "/transcripts/..%2F..%2Fstationd.toml", "/transcripts/%2Fetc%2Fpasswd", "/transcripts/.", "/transcripts/x.uart", "/transcripts/..%2Ftranscripts%2Fx", "/transcripts/station.key"} {
		if code, body := d.get(path); code == 200 || strings.Contains(body, "PRIVATE") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for path, code := range map[string]int{"/boards/" + strings.Repeat("0", 31) + "1": 404, "/boards/x": 404, "/boards?q=zz": 400, "/report?day=x": 400} {
		if got, body := d.get(path); got != code {
			t.Errorf("%s: %d %s, want %d", path, got, body, code)
		}
	}
}

// On the shelf, only what it knows can be read, whatever else lies in its
// folder or is named.
func TestShelfReads(t *testing.T) {
	dir := t.TempDir()
	s, err := openTranscripts(filepath.Join(dir, "transcripts"), stationconf.Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"20260102T030405.000000000Z-line_3-a.uart", "20260102T030406.000000000Z-B-2.uart"}
	for i, kept := range []*uart.Transcript{transcript("line 3-a", "failed private-key-leak", 10), transcript("B-2", "passed", 10)} {
		if err := s.keep(names[i], kept); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "secret.uart")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(s.dir, "20260102T030405.000000000Z-A-passed.uart")); err != nil {
		t.Fatal(err)
	}
	again, err := openTranscripts(s.dir, stationconf.Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	for when, s := range map[string]*transcriptStore{"at once": s, "after a restart": again} {
		for _, name := range names {
			if text, err := s.read(name); err != nil || !bytes.HasPrefix(text, []byte("transcript: 1\n")) {
				t.Errorf("%s: %s: %.20q, %v", when, name, text, err)
			}
		}
		for _, name := range []string{"", ".", "..", "../secret.uart", secret, "20260102T030405.000000000Z-A-passed.uart", "./" + names[0], names[0] + "\x00", "x/../" + names[0], strings.ToUpper(names[0])} {
			if text, err := s.read(name); err != station.ErrNoTranscript {
				t.Errorf("%s: %q: %.20q, %v", when, name, text, err)
			}
		}
	}
	if err := os.Remove(filepath.Join(s.dir, names[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(names[0]); err != station.ErrNoTranscript {
		t.Errorf("one that went meanwhile: %v", err)
	}
}

func FuzzShelfRead(f *testing.F) {
	dir := f.TempDir()
	s, err := openTranscripts(filepath.Join(dir, "transcripts"), stationconf.Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.keep("20260102T030405.000000000Z-A.uart", transcript("A", "passed", 10)); err != nil {
		f.Fatal(err)
	}
	name := s.files[0].name
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{name, "../secret", "", "..", "/etc/passwd"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, asked string) {
		if _, err := s.read(asked); (err == nil) != (asked == name) {
			t.Errorf("%q: %v", asked, err)
		}
	})
}
