package stationd

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"secretfree/fixtures"
	"secretfree/spool"
	"secretfree/station"
	"secretfree/station/board"
	"secretfree/uart"
)

// A shift from its boards to its pages: passes, a repeat, a conflict, a board that could not be read; found by id, address and key, with
// transcript and proof; and all of it again after a restart.
func TestLookingBack(t *testing.T) {
	f := newFactory(t)
	f.extra = "[transcripts]\nfailed = 10\npassed = 10\n"
	d := f.start()
	one, other := newBoard(), newBoard()
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
		identity, err := spool.LoadIdentity(f.state, "widgiot/line3-a")
		if err != nil {
			t.Fatal(err)
		}
		if proven, err := spool.VerifyProof([]byte(proof), identity.Verifier); err != nil || proven.Sealed.Record.Device != device {
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
		if code != 200 || err != nil || len(rows) != 4 {
			t.Fatalf("%s: the CSV: %d %v %s", when, code, err, text)
		}
		for i, want := range []string{"A,passed,," + id + ",,true", "A,repeated,," + id + ",,true", "A,failed,device-conflict," + id + ",,"} {
			if got := strings.Join(rows[i+1][2:], ","); got != want {
				t.Errorf("%s: row %d is %s, want %s", when, i, got, want)
			}
		}
		if code, page := d.get("/report?day=" + day); code != 200 || !strings.Contains(page, "100.0 % (1 of 1 boards)") || strings.Contains(page, "may be missing") {
			t.Errorf("%s: the report: %d %s", when, code, page)
		}
	}
	look("at once")
	d.stop()
	d = f.start()
	look("after a restart")
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

// On the shelf, only what it knows can be read, whatever else lies in its folder or is named.
func TestShelfReads(t *testing.T) {
	dir := t.TempDir()
	s, err := openShelf(filepath.Join(dir, "transcripts"), Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	device := board.DeviceID{1, 15: 2}
	first := transcript("line 3-a", "failed private-key-leak", 10)
	first.Header["device"] = device.String()
	second := transcript("B-2", "passed", 10)
	second.Header["note"] = "after the verdict over the board " + device.String()
	for _, kept := range []*uart.Transcript{first, second} {
		if err := s.keep(kept); err != nil {
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
	again, err := openShelf(s.dir, Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	for when, s := range map[string]*shelf{"at once": s, "after a restart": again} {
		names, err := s.of(t.Context(), device)
		if err != nil || len(names) != 2 {
			t.Fatalf("%s: %+v, %v", when, names, err)
		}
		if n := names[1]; n.Slot != "line_3-a" || n.Passed || n.Reason != station.ReasonPrivateKeyLeak || time.Since(n.Time) > time.Hour {
			t.Errorf("%s: %+v", when, n)
		}
		if n := names[0]; n.Slot != "B-2" || !n.Passed || n.Reason != "" {
			t.Errorf("%s: %+v", when, n)
		}
		for _, n := range names {
			if text, err := s.read(n.Name); err != nil || !bytes.HasPrefix(text, []byte("transcript: 1\n")) {
				t.Errorf("%s: %s: %.20q, %v", when, n.Name, text, err)
			}
		}
		for _, name := range []string{"", ".", "..", "../secret.uart", secret, "20260102T030405.000000000Z-A-passed.uart", "./" + names[0].Name, names[0].Name + "\x00", "x/../" + names[0].Name, strings.ToUpper(names[0].Name)} {
			if text, err := s.read(name); err != station.ErrNoTranscript {
				t.Errorf("%s: %q: %.20q, %v", when, name, text, err)
			}
		}
		if names, err := s.of(t.Context(), board.DeviceID{9}); err != nil || len(names) != 0 {
			t.Errorf("%s: of another board: %+v, %v", when, names, err)
		}
	}
	names, _ := s.of(t.Context(), device)
	if err := os.Remove(filepath.Join(s.dir, names[0].Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(names[0].Name); err != station.ErrNoTranscript {
		t.Errorf("one that went meanwhile: %v", err)
	}
}

// A look that has no time left keeps what it has read: the next one goes on from there.
func TestShelfReadsInParts(t *testing.T) {
	dir := t.TempDir()
	limits := Transcripts{Failed: 99, Passed: 9, MaxMiB: 1}
	s, err := openShelf(dir, limits)
	if err != nil {
		t.Fatal(err)
	}
	device := board.DeviceID{1, 15: 2}
	for range 20 {
		kept := transcript("A", "failed timeout", 10)
		kept.Header["device"] = device.String()
		if err := s.keep(kept); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = openShelf(dir, limits); err != nil {
		t.Fatal(err)
	}
	looks := 0
	for {
		looks++
		names, err := s.of(&hurried{Context: t.Context(), left: 3}, device)
		if err == nil {
			if len(names) != 20 {
				t.Errorf("%d transcripts", len(names))
			}
			break
		}
		if !errors.Is(err, context.DeadlineExceeded) || looks > 20 {
			t.Fatalf("look %d: %v", looks, err)
		}
	}
	if looks < 5 {
		t.Errorf("%d looks", looks)
	}
}

// hurried is a context that ends after it was asked a few times.
type hurried struct {
	context.Context
	left int
}

func (s *hurried) Err() error {
	if s.left--; s.left < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// A failure whose board is not known leads to what was said: by slot, reason and time, and each transcript once.
func TestShelfFindsNameless(t *testing.T) {
	s, err := openShelf(t.TempDir(), Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().UTC().Add(-time.Second)
	for _, kept := range []*uart.Transcript{transcript("A 1", "failed timeout", 10), transcript("A 1", "failed timeout", 10), transcript("A 1", "passed", 10), transcript("B", "failed garbled", 10)} {
		if err := s.keep(kept); err != nil {
			t.Fatal(err)
		}
	}
	known := failed(before, "B", station.ReasonGarbled)
	known.Device = board.DeviceID{1}
	verdicts := []station.Verdict{
		failed(before.Add(-soon), "A 1", station.ReasonTimeout), known, failed(before, "A 1", station.ReasonGarbled), failed(before, "A 1", station.ReasonTimeout),
		failed(before, "A 1", station.ReasonTimeout), failed(before, "A 1", station.ReasonTimeout), failed(before, "B", station.ReasonGarbled), failed(before.Add(soon), "B", station.ReasonGarbled),
	}
	s.nameless(verdicts)
	want := []string{"", "", "", s.files[0].name, s.files[1].name, "", s.files[3].name, ""}
	for i, v := range verdicts {
		if v.Transcript != want[i] {
			t.Errorf("verdict %d: %q, want %q", i, v.Transcript, want[i])
		}
		if v.Transcript == "" {
			continue
		}
		if _, err := s.read(v.Transcript); err != nil {
			t.Errorf("verdict %d: %v", i, err)
		}
	}
}

func FuzzShelfRead(f *testing.F) {
	dir := f.TempDir()
	s, err := openShelf(filepath.Join(dir, "transcripts"), Transcripts{Failed: 9, Passed: 9, MaxMiB: 1})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.keep(transcript("A", "passed", 10)); err != nil {
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

func failed(at time.Time, slot string, why station.Reason) station.Verdict {
	return station.Verdict{Time: at, Slot: slot, State: station.Failed, Reason: why}
}

// What is noted of a day is there after a restart, whatever damage came to the file, and the files stay small and few.
func TestDaybook(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "verdicts")
	d, err := openDaybook(dir)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 29, 23, 59, 59, 0, time.UTC)
	all := []station.Verdict{
		failed(at, "A", station.ReasonTimeout),
		{Time: at, Slot: "line 3 b", State: station.Passed, Device: board.DeviceID{1}},
		{Time: at.Add(time.Second), Slot: "B", State: station.Passed, Repeat: true, Device: board.DeviceID{1}},
	}
	for _, v := range all {
		if err := d.note(v); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want []station.Verdict, whole bool) {
		t.Helper()
		again, err := openDaybook(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, days, err := again.between(at.Add(-time.Hour), at.Add(time.Hour))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		for day, w := range days {
			if w != whole && day == "2026-11-29" {
				t.Errorf("%s is whole: %v", day, w)
			}
		}
	}
	read(all, true)
	if got, _, err := d.between(at.Add(time.Millisecond), at.Add(time.Hour)); err != nil || len(got) != 1 {
		t.Errorf("the end of the day: %+v, %v", got, err)
	}
	// A write that was cut short, and rubbish in the middle.
	d.close()
	path := filepath.Join(dir, "2026-11-29.log")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rubbish := append(bytes.Repeat([]byte{0}, 5000), []byte("\nx\n\n2026-11-29T12:00:00.000Z failed timeout - A\xff\n")...)
	if err := os.WriteFile(path, append(append(slices.Clone(text), rubbish...), text[:20]...), 0o600); err != nil {
		t.Fatal(err)
	}
	read(all, false)
	d, err = openDaybook(dir)
	if err != nil {
		t.Fatal(err)
	}
	late := failed(at.Add(time.Millisecond), "A", station.ReasonGarbled)
	if err := d.note(late); err != nil {
		t.Fatal(err)
	}
	read([]station.Verdict{all[0], all[1], late, all[2]}, false)

	// Full: the report of that day says that something is missing; the next day goes on.
	d.perDay = 1000
	day := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 100 {
		if err := d.note(failed(day.Add(time.Duration(i)*time.Second), "A", station.ReasonTimeout)); err != nil {
			t.Fatal(err)
		}
	}
	got, days, err := d.between(day, day.Add(24*time.Hour))
	if err != nil || len(got) == 0 || len(got) > 25 || days["2027-01-01"] {
		t.Errorf("%d verdicts of a day that is full, whole %v, %v", len(got), days, err)
	}
	d.days, d.total = 5, 1<<20
	for i := range 20 {
		if err := d.note(failed(day.AddDate(0, 1, i), "A", station.ReasonTimeout)); err != nil {
			t.Fatal(err)
		}
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*.log")); err != nil || len(files) != 5 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.total = 100
	if err := d.note(failed(day.AddDate(0, 2, 0), "A", station.ReasonTimeout)); err != nil {
		t.Fatal(err)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(files) > 4 || !slices.ContainsFunc(files, func(f string) bool { return strings.HasSuffix(f, "notes.txt") }) {
		t.Errorf("%q, %v", files, err)
	}
	// A folder that cannot be written fails and goes on when it can again.
	d.close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.note(late); err == nil {
		t.Error("it was written nowhere")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.note(late); err != nil {
		t.Error(err)
	}
}

func FuzzDayLine(f *testing.F) {
	f.Add(strings.TrimSpace(dayLine(failed(time.Now(), "line 3", station.ReasonTimeout))))
	f.Add(strings.TrimSpace(dayLine(station.Verdict{Time: time.Now(), Slot: "A", State: station.Passed, Repeat: true, Device: board.DeviceID{1}})))
	f.Fuzz(func(t *testing.T, line string) {
		v, ok := parseDayLine(line)
		if ok && dayLine(v) != line+"\n" {
			t.Errorf("%q is read as %+v", line, v)
		}
	})
}

// Failures that no journal holds are in the report after a restart; those that it holds are not there twice; without the daybook the
// passes are all there, and the report says that it is not whole.
func TestReportJoinsJournalAndDaybook(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	one := newBoard()
	unplug := f.plug(f.ports[1], one)
	d.awaitSlot(1, station.Passed)
	unplug()
	d.awaitSlot(1, station.Absent)
	d.stop()
	book, err := openDaybook(filepath.Join(f.state, "verdicts"))
	if err != nil {
		t.Fatal(err)
	}
	if err := book.note(failed(time.Now(), "B", station.ReasonTimeout)); err != nil {
		t.Fatal(err)
	}
	// One whose refusal the journal does not have, as of a disk that was full.
	lost := failed(time.Now(), "A", station.ReasonDeviceConflict)
	lost.Device = board.DeviceID{1, 15: 2}
	if err := book.note(lost); err != nil {
		t.Fatal(err)
	}
	book.close()
	d = f.start()
	day := time.Now().Format("2006-01-02")
	rows := func() []string {
		_, text := d.get("/report.csv?day=" + day)
		var out []string
		for _, line := range strings.Split(strings.TrimSpace(text), "\r\n")[1:] {
			fields := strings.Split(line, ",")
			out = append(out, fmt.Sprint(fields[2:5]))
		}
		return out
	}
	if got := fmt.Sprint(rows()); got != "[[B passed ] [B failed timeout] [A failed device-conflict]]" {
		t.Errorf("the report has %s", got)
	}
	if err := os.RemoveAll(book.dir); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(rows()); got != "[[ passed ]]" {
		t.Errorf("without the daybook it has %s", got)
	}
	if _, page := d.get("/report?day=" + day); !strings.Contains(page, "Some failures may be missing") {
		t.Errorf("it does not say that it is not whole:\n%s", page)
	}
}
