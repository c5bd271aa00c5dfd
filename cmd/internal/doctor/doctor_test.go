package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/control"
	"secretfree/cmd/internal/stationconf"
	"secretfree/spool"
	"secretfree/spool/journal"
)

func TestGoodStation(t *testing.T) {
	p := newPatient(t)
	p.journal(3).Close()
	onlyOK(t, p.examine(), "daemon", "journal.queue", "registry.copy")
	if Failed(p.examine()) {
		t.Error("a good station fails")
	}
	p.c.Deep = true
	want(t, p.examine(), "ok journal.deep", "the whole journal holds: 4 entries, of them 3 records")
}

func TestConfiguration(t *testing.T) {
	p := newPatient(t)
	results := met(Examine(t.Context(), p.c))
	for _, what := range []string{"warn daemon", "warn disk", "warn registry"} {
		want(t, results, what, "without a configuration")
	}
	want(t, results, "fail config", "there is no configuration")
	if !Failed(results) {
		t.Error("nothing fails without a configuration")
	}
	p.top = "lisen = 1\n"
	want(t, p.examine(), "fail config", "unknown key")
	want(t, (&exam{Config: Config{Path: "x"}, configErr: fs.ErrPermission}).checkConfig(t.Context()), "fail config", "may not be read")
	if e := p.exam(); e.stateDir != p.state {
		t.Errorf("with a slip of the pen, the state is looked for in %q", e.stateDir)
	}
	must(t, os.WriteFile(p.c.Path, []byte("nonsense"), 0o600))
	// Where the unit keeps its state it is looked at all the same.
	p.file("var/lib/stationd/lock", "")
	e := newExam(t.Context(), p.c)
	if e.stateDir != p.root+defaultState {
		t.Errorf("the state is looked for in %q", e.stateDir)
	}
}

// A check that hangs keeps nobody waiting.
func TestHangingCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		results := runAll(t.Context(), []check{
			{"disk", checkLimit, func(context.Context) []Result { <-release; return nil }},
			{"clock", checkLimit, func(context.Context) []Result { return []Result{good("clock", "right")} }},
		})
		want(t, results, "fail disk", "no answer in 5s")
		want(t, results, "ok clock", "right")
		if results[0].TookMS != (checkLimit + grace).Milliseconds() {
			t.Errorf("%+v", results[0])
		}
		close(release)
	})
	if registryLimit+checkLimit/2+grace > 15*time.Second {
		t.Error("the limits are longer than promised")
	}
}

func TestVersions(t *testing.T) {
	e := &exam{Config: newPatient(t).c}
	want(t, e.checkVersions(t.Context()), "ok version", "kernel 6.12.0, systemd none")
	e.running = &control.DaemonStatus{Version: "0.1"}
	e.unit = map[string]string{}
	e.Command = func(context.Context, string, ...string) ([]byte, error) {
		return []byte("systemd 257 (257.9)\n+PAM\n"), nil
	}
	want(t, e.checkVersions(t.Context()), "warn version", "stationd 0.1 runs")
	e.running.Version = cli.Version()
	want(t, e.checkVersions(t.Context()), "ok version", "systemd 257 (257.9)")
}

func TestUnit(t *testing.T) {
	p := newPatient(t)
	p.file("run/systemd/system/x", "")
	unit := ""
	p.c.Command = func(_ context.Context, name string, args ...string) ([]byte, error) {
		if name != "systemctl" || args[0] != "show" || args[1] != unitName {
			return nil, errors.New("not found")
		}
		return []byte(unit), nil
	}
	for _, test := range []struct{ unit, want, text string }{
		{"LoadState=not-found\nActiveState=inactive", "warn unit", "there is no unit"},
		{"LoadState=bad-setting\nActiveState=inactive\nUnitFileState=enabled", "fail unit", "is bad-setting"},
		{"LoadState=loaded\nActiveState=active\nUnitFileState=disabled", "warn unit.enabled", "not started when"},
		{"LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNRestarts=0", "ok unit", "is active"},
		{"LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNRestarts=7", "warn unit.restarts", "7 times"},
		{"LoadState=loaded\nActiveState=failed\nResult=exit-code\nUnitFileState=enabled", "fail unit", "does not start: failed (exit-code)"},
		{"LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nUnitFileState=enabled", "fail unit", "does not start"},
		{"LoadState=loaded\nActiveState=inactive\nUnitFileState=enabled", "warn unit", "is inactive"},
	} {
		unit = test.unit
		want(t, p.exam().checkUnit(t.Context()), test.want, test.text)
	}
	want(t, (&exam{}).checkUnit(t.Context()), "ok unit", "not looked at")
}

func TestDaemon(t *testing.T) {
	p := newPatient(t)
	e := p.exam()
	want(t, e.checkDaemon(t.Context()), "warn daemon", "stationd does not run")
	e.unit = map[string]string{"ActiveState": "active"}
	want(t, e.checkDaemon(t.Context()), "fail daemon", "nothing answers")
	e.unit, e.controlErr, e.UID, e.owner = nil, fs.ErrPermission, 4242, owner{name: "stationd", uid: 1, ok: true}
	want(t, e.checkDaemon(t.Context()), "warn daemon", "could not be seen")
	status, body := 200, ""
	e.Get = func(_ context.Context, listen, path string) ([]byte, int, error) {
		if listen != "127.0.0.1:1" || path != "/healthz" {
			t.Errorf("%s %s", listen, path)
		}
		return []byte(body), status, nil
	}
	want(t, e.checkDaemon(t.Context()), "ok daemon", "health is good")
	e.controlErr, e.UID = control.ErrNotRunning, 1
	want(t, e.checkDaemon(t.Context()), "fail daemon", "something else answers at")
	e.controlErr = fs.ErrPermission
	status, body = 503, `{"ok":false,"reasons":[]}`
	want(t, e.checkDaemon(t.Context()), "fail daemon", "show no token")
	body = `{"ok":false,"reasons":["a full disk","the clock"]}`
	want(t, e.checkDaemon(t.Context()), "fail daemon", "health is red: a full disk; the clock")
	status = 404
	want(t, e.checkDaemon(t.Context()), "warn daemon", "is no station")
	e.running = &control.DaemonStatus{Red: []string{"stalled"}}
	want(t, e.checkDaemon(t.Context()), "fail daemon", "stalled")
}

// To look at a station that is stopped does not start it, though systemd would
// at the first question.
func TestSocketIsNotAsked(t *testing.T) {
	p := newPatient(t)
	p.file("run/systemd/system/x", "")
	unit, socket := "inactive", "active"
	p.c.Command = func(_ context.Context, _ string, args ...string) ([]byte, error) {
		switch {
		case len(args) > 1 && args[1] == unitName:
			return []byte("LoadState=loaded\nActiveState=" + unit + "\n"), nil
		case len(args) > 1 && args[1] == socketName:
			return []byte("ActiveState=" + socket + "\n"), nil
		}
		return nil, errors.New("not found")
	}
	asked := 0
	p.c.Get = func(context.Context, string, string) ([]byte, int, error) {
		asked++
		return nil, 200, nil
	}
	want(t, p.exam().checkDaemon(t.Context()), "warn daemon", "starts it when somebody opens the page")
	b := &bundle{exam: p.exam()}
	if text := b.ask(t.Context(), "/status"); text != nil || asked > 0 || len(b.notes) != 1 || !strings.Contains(b.notes[0], "would be started") {
		t.Errorf("asked %d times; %s %q", asked, text, b.notes)
	}
	for _, c := range [][2]string{{"active", "active"}, {"inactive", "inactive"}} {
		unit, socket, asked = c[0], c[1], 0
		if p.exam().checkDaemon(t.Context()); asked != 1 {
			t.Errorf("%v: asked %d times", c, asked)
		}
	}
}

func TestClock(t *testing.T) {
	e := &exam{Config: newPatient(t).c}
	onlyOK(t, e.checkClock(t.Context()))
	e.Synchronised = func() (bool, error) { return false, nil }
	want(t, e.checkClock(t.Context()), "warn clock", "follows no server")
	e.Synchronised = func() (bool, error) { return false, errors.New("no such call") }
	want(t, e.checkClock(t.Context()), "ok clock", "could not be seen")
	e.Built = time.Now().Add(48 * time.Hour)
	want(t, e.checkClock(t.Context()), "fail clock", "was built on")
	e.Now = func() time.Time { return time.Date(1970, 1, 1, 0, 3, 0, 0, time.UTC) }
	want(t, e.checkClock(t.Context()), "fail clock", "long past")

	now := time.Now()
	for _, test := range []struct {
		off  time.Duration
		want string
	}{{0, "ok"}, {29 * time.Second, "ok"}, {-29 * time.Second, "ok"}, {40 * time.Second, "warn"}, {-4 * time.Minute, "warn"}, {6 * time.Minute, "fail"}, {-20 * time.Minute, "fail"}} {
		want(t, []Result{judgeDrift(now.Add(test.off), now, 100*time.Millisecond)}, test.want+" clock.registry", "")
	}
	if r, bad := judgeNewest(now, now.Add(2*time.Minute)); !bad {
		t.Error("a journal from the future is in order")
	} else {
		want(t, []Result{r}, "fail clock.journal", "the newest entry of the journal is of")
	}
	if _, bad := judgeNewest(now, now.Add(10*time.Second)); bad {
		t.Error("10 s are not in order")
	}
}

func TestJournal(t *testing.T) {
	p := newPatient(t)
	e := p.exam()
	onlyOK(t, e.checkJournal(t.Context()))
	s := p.journal(3)
	want(t, e.checkJournal(t.Context()), "ok journal", "4 entries in 1 segment")
	want(t, e.checkJournal(t.Context()), "warn journal.queue", "could not be asked")
	s.Close()
	want(t, e.checkJournal(t.Context()), "warn journal.queue", "3 records wait for the registry")
	e.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	want(t, e.checkJournal(t.Context()), "fail clock.journal", "")
	e.Now = time.Now

	// The key's file is looked at from outside.
	key := p.state + "/station.key"
	must(t, os.Chmod(key, 0o640))
	want(t, e.checkJournal(t.Context()), "fail journal.key", "others may read")
	must(t, os.Chmod(key, 0o600))
	e.owner = owner{name: "somebody", uid: 4242, ok: true}
	want(t, e.checkJournal(t.Context()), "fail journal.key", "does not belong to the station's user somebody")
	e = p.exam()
	e.station.Station = "line4"
	want(t, e.checkJournal(t.Context()), "fail journal.key", "the configuration says widgiot/line4")
	must(t, os.Rename(key, key+".away"))
	want(t, e.checkJournal(t.Context()), "fail journal.key", "is missing")
	must(t, os.Rename(key+".away", key))

	// The index may be lost, the journal may not.
	must(t, os.Rename(p.state+"/index.bbolt", p.state+"/away"))
	want(t, e.checkJournal(t.Context()), "ok journal.queue", "there is no index")
	segment := p.state + "/journal/00000000000000000000.jsonl"
	whole, err := os.ReadFile(segment)
	must(t, err)
	write := func(data string) { t.Helper(); must(t, os.WriteFile(segment, []byte(data), 0o600)) }
	write(string(whole) + `{"seq":`)
	want(t, e.checkJournal(t.Context()), "warn journal.torn", "7 bytes")
	write(strings.Replace(string(whole), `"result":"passed"`, `"result":"PASSED"`, 1))
	want(t, e.checkJournal(t.Context()), "fail journal.damage", "the newest segment is damaged")
	want(t, e.checkDeep(t.Context()), "fail journal.deep", "does not hold")
	write(string(whole[:len(whole)/2]))
	want(t, e.checkJournal(t.Context()), "fail journal.damage", "the newest segment is damaged")
	write(strings.Join(strings.SplitAfter(string(whole), "\n")[:2], ""))
	want(t, e.checkJournal(t.Context()), "fail journal", "does not fit what was signed")
	write(string(whole))
	checkpoint := p.state + "/journal/checkpoint"
	signed, err := os.ReadFile(checkpoint)
	must(t, err)
	must(t, os.WriteFile(checkpoint, signed[:len(signed)-9], 0o600))
	want(t, e.checkJournal(t.Context()), "fail journal.checkpoint", "is damaged")
	// Without a checkpoint the index shows that the last line was an entry.
	must(t, os.Remove(checkpoint))
	must(t, os.Rename(p.state+"/away", p.state+"/index.bbolt"))
	write(string(whole[:len(whole)-3]) + "zz\n")
	want(t, e.checkDeep(t.Context()), "fail journal.deep", "does not hold")
	write(string(whole))
	want(t, e.checkDeep(t.Context()), "ok journal.deep", "the whole journal holds")
	must(t, os.Remove(p.state+"/index.bbolt"))
	must(t, os.WriteFile(checkpoint, signed, 0o600))
	must(t, os.Rename(segment, segment+".away"))
	must(t, os.Mkdir(segment, 0o700))
	want(t, e.checkJournal(t.Context()), "fail journal", "")
	must(t, os.Remove(segment))
	must(t, os.Rename(segment+".away", segment))
	newer(t, segment)
	want(t, e.checkJournal(t.Context()), "fail journal", "journal format 99")
	must(t, os.WriteFile(p.state+"/station.pub", []byte("nonsense\n"), 0o600))
	want(t, e.checkJournal(t.Context()), "fail journal.key", "cannot be used")
	want(t, e.checkDeep(t.Context()), "warn journal.deep", "could not be checked")
	must(t, os.Remove(p.state+"/station.pub"))
	want(t, e.checkJournal(t.Context()), "fail journal.key", "has a journal, and no station.pub")
	must(t, os.WriteFile(p.state+"/index.bbolt", nil, 0o600))

	// Who may not look is told so.
	blind := &exam{Config: p.c, stateDir: "/proc/1/nothing", owner: owner{name: "stationd", uid: 1, ok: true}}
	blind.UID = 4242
	want(t, blind.checkJournal(t.Context()), "warn journal", "could not be looked at")
	if got := blind.asOwner(); !strings.Contains(got, "sudo -u 'stationd'") {
		t.Error(got)
	}
}

// What a station that runs says is judged as its own health judges it.
func TestStats(t *testing.T) {
	e := &exam{Config: newPatient(t).c}
	now := time.Now()
	for _, test := range []struct {
		stats      spool.Stats
		runs       bool
		want, text string
	}{
		{spool.Stats{}, true, "ok journal.queue", "nothing waits"},
		{spool.Stats{Broken: "no space"}, true, "fail journal.disk", "does not trust its disk: no space"},
		{spool.Stats{WritingSince: now.Add(-time.Minute)}, true, "fail journal.disk", "has not answered since"},
		{spool.Stats{Damaged: 2}, true, "fail journal.damage", "2 entries of the journal cannot be read and are kept aside"},
		{spool.Stats{Damaged: 1}, true, "fail journal.damage", "1 entry of the journal cannot be read and is kept aside"},
		{spool.Stats{Unsigned: "no checkpoint is signed"}, true, "fail journal.signed", "no checkpoint is signed"},
		{spool.Stats{Clock: "it says 1970"}, true, "fail clock.station", "1970"},
		{spool.Stats{Forked: true, ArchiveError: "another one"}, true, "fail journal.forked", "two journals"},
		{spool.Stats{Dead: 3}, true, "fail journal.dead", "has refused 3 records for good"},
		{spool.Stats{ArchiveError: "denied", UnarchivedSince: now.Add(-2 * time.Hour)}, true, "warn journal.archive", "denied"},
		{spool.Stats{Pending: 1, Oldest: now.Add(-time.Minute)}, true, "ok journal.queue", "are being delivered"},
		{spool.Stats{Pending: 1, Oldest: now.Add(-time.Minute), LastError: "away"}, true, "warn journal.queue", "the last try failed: away"},
		{spool.Stats{Pending: 9, Oldest: now.Add(-time.Hour), LastError: "away"}, true, "fail journal.queue", "none was confirmed in the last 5 minutes: away"},
		{spool.Stats{Pending: 9, Oldest: now.Add(-time.Hour), LastSuccess: now}, true, "ok journal.queue", "are being delivered"},
		{spool.Stats{Pending: 9, Oldest: now.Add(-time.Hour)}, false, "warn journal.queue", "nobody delivers them"},
	} {
		want(t, e.judgeStats(test.stats, test.runs), test.want, test.text)
	}
	e.station.Registry.Kind = stationconf.NoRegistry
	want(t, e.judgeStats(spool.Stats{Pending: 9, Oldest: now.Add(-time.Hour)}, true), "ok journal.queue", "leave on a removable medium")
	want(t, e.judgeStats(spool.Stats{Pending: 9, Oldest: now.Add(-8 * 24 * time.Hour)}, true), "warn journal.queue", "9 records wait")
	want(t, e.judgeStopped(spool.Stats{}, fs.ErrPermission), "warn journal.queue", "the index could not be read")
	e.running = &control.DaemonStatus{}
	want(t, e.judgeGlance(journal.Info{Entries: 9, Signed: 4, Newest: now.Add(-time.Hour)}), "warn journal.signed", "5 entries are under no signed checkpoint")
}

func TestRealMachine(t *testing.T) {
	m := ThisMachine()
	if _, err := m.Synchronised(); err != nil && !errors.Is(err, fs.ErrPermission) { // a container may forbid it
		t.Error(err)
	}
	if out, err := m.Command(t.Context(), "echo", "x"); err != nil || string(out) != "x\n" {
		t.Errorf("%q, %v", out, err)
	}
	dir := t.TempDir()
	l, err := m.Sync(t.Context(), dir, time.Second)
	left, _ := os.ReadDir(dir)
	if err != nil || l.N == 0 || l.P50 > l.P99 || l.P99 > l.Max || len(left) != 0 {
		t.Errorf("%+v, %v, left %v", l, err, left)
	}
	if _, err := m.Sync(t.Context(), dir+"/none", time.Second); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, ok := mountOf(parseMounts(m.read("proc/self/mountinfo")), "/"); !ok {
		t.Error("this machine has no mounts")
	}
	if fmt.Sprint(latencyOf(nil)) != fmt.Sprint(Latency{}) {
		t.Error("nothing has a latency")
	}
}
