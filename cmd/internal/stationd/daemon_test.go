package stationd

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/durable"
	"secretfree/spool/journal"
	"secretfree/station"
	"secretfree/station/board"
)

// verify is the invariant of every state directory: its journal proves itself, with the public key alone.
func (f *factory) verify() journal.VerifyReport {
	f.t.Helper()
	key, err := os.ReadFile(filepath.Join(f.state, "station.pub"))
	if err != nil {
		f.t.Fatal(err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(key)))
	if err != nil {
		f.t.Fatal(err)
	}
	report, err := journal.VerifyDir(f.state, verifier)
	if err != nil {
		f.t.Errorf("the journal does not verify: %v", err)
	}
	return report
}

func TestBoardToRegistry(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	good := newBoard()
	f.plug(f.ports[0], good)
	slot := d.awaitSlot(0, station.Passed)
	if slot.Device != good.ID() {
		t.Errorf("the page shows %s, the board is %s", slot.Device, good.ID())
	}
	d.await("the confirmation", func(s station.Status) bool { return s.Slots[0].Confirmed && s.Backlog.Pending == 0 })

	// The other slot has no port, and that is all that is wrong with it.
	if other := d.Status().Slots[1]; other.State != station.Absent || other.Advice == "" {
		t.Errorf("the slot without a port: %+v", other)
	}

	fingerprint := sha256.Sum256(good.SPKI())
	for name, want := range map[string][]string{
		"items/" + good.ID() + ".json":                                             {`"device-id"`, good.ID(), `"record"`, `"active"`, hex.EncodeToString(fingerprint[:])},
		"guards/" + hex.EncodeToString(fingerprint[:]) + ".json":                   {`"device"`, good.ID()},
		"pubkeys/" + good.ID() + "/" + hex.EncodeToString(fingerprint[:]) + ".pem": {"BEGIN PUBLIC KEY"},
	} {
		data, err := os.ReadFile(filepath.Join(f.registry, name))
		if err != nil {
			t.Error(err)
		}
		for _, text := range want {
			if !strings.Contains(string(data), text) {
				t.Errorf("%s lacks %s:\n%s", name, text, data)
			}
		}
	}

	if code, body := d.get("/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	_, metrics := d.get("/metrics")
	for _, line := range []string{"stationd_boards_passed_total 1", `stationd_boards_failed_total{reason="disk-full"} 0`,
		`stationd_slot_state{slot="A",state="passed"} 1`, `stationd_slot_state{slot="B",state="absent"} 1`,
		"stationd_spool_delivered_records_total 1", "stationd_spool_pending_records 0", "stationd_healthy 1", "stationd_build_info{version="} {
		if !strings.Contains(metrics, line) {
			t.Errorf("/metrics lacks %s:\n%s", line, metrics)
		}
	}
	_, text := d.get("/status")
	var status station.Status
	if err := json.Unmarshal([]byte(text), &status); err != nil || status.Station != "line3-a" {
		t.Errorf("/status: %v %s", err, text)
	}
	d.stop()
	if report := f.verify(); report.Records != 1 || report.Signed != report.Entries {
		t.Errorf("after an orderly stop: %+v, want one record, and a checkpoint over all", report)
	}
	if !strings.Contains(d.log.String(), `"pending":0`) {
		t.Errorf("the log does not say how it ended:\n%s", d.log)
	}
}

func TestConflictsBothWays(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	good := newBoard()
	unplug := f.plug(f.ports[0], good)
	d.awaitSlot(0, station.Passed)
	unplug()
	d.awaitSlot(0, station.Absent)

	unplug = f.plug(f.ports[0], good)
	d.awaitSlot(0, station.Passed)
	unplug()
	d.awaitSlot(0, station.Absent)

	otherKey := newBoard()
	otherKey.Device = good.Device
	f.plug(f.ports[1], otherKey)
	if slot := d.awaitSlot(1, station.Failed); slot.Reason != station.ReasonDeviceConflict || slot.Device != good.ID() {
		t.Errorf("a known id with another key: %+v", slot)
	}
	otherID := newBoard()
	otherID.Key = good.Key
	f.plug(f.ports[0], otherID)
	if slot := d.awaitSlot(0, station.Failed); slot.Reason != station.ReasonKeyConflict {
		t.Errorf("a known key under another id: %+v", slot)
	}
	d.stop()
	if r := f.verify(); r.Records != 1 || r.Repeats != 1 || r.Failed != 2 {
		t.Errorf("the journal holds %+v, want 1 record, 1 repeat, 2 refusals", r)
	}
}

// The registry is away: PASS still comes, the page shows the backlog; then it drains.
func TestRegistryOutage(t *testing.T) {
	f := newFactory(t)
	away := f.registry + "-away"
	if err := os.Rename(f.registry, away); err != nil {
		t.Fatal(err)
	}
	d := f.start()
	unplug := f.plug(f.ports[0], newBoard())
	d.awaitSlot(0, station.Passed)
	status := d.await("the backlog", func(s station.Status) bool { return s.Backlog.LastError != "" })
	if status.Backlog.Pending != 1 || status.Slots[0].Confirmed || len(status.Notices) == 0 {
		t.Errorf("in the outage: %+v", status)
	}
	if !strings.Contains(status.Backlog.LastError, "stationctl registry init") {
		t.Errorf("the error names no remedy: %s", status.Backlog.LastError)
	}
	_, page := d.get("/")
	if !strings.Contains(page, "stationctl registry init") {
		t.Errorf("the page does not show what is wrong with the registry:\n%s", page)
	}
	_, metrics := d.get("/metrics")
	if _, cause, ok := strings.Cut(metrics, `stationd_spool_delivery_error{cause="`); !ok || !strings.Contains(strings.SplitN(cause, "\n", 2)[0], "stationctl registry init") {
		t.Errorf("/metrics do not say why nothing is delivered:\n%s", metrics)
	}
	// A restart in the outage keeps the backlog.
	d.stop()
	unplug()
	d = f.start()
	if n := d.Status().Backlog.Pending; n != 1 {
		t.Errorf("after a restart %d records are pending, want 1", n)
	}
	if err := os.Rename(away, f.registry); err != nil {
		t.Fatal(err)
	}
	d.await("the backlog to drain", func(s station.Status) bool { return s.Backlog.Pending == 0 && s.Backlog.LastError == "" })
	if _, metrics := d.get("/metrics"); strings.Contains(metrics, "stationd_spool_delivery_error{") {
		t.Errorf("after the outage:\n%s", metrics)
	}
	d.stop()
	f.verify()
}

// A board that prints a private key: none of it may be anywhere.
func TestPrivateKeyLeak(t *testing.T) {
	f := newFactory(t)
	d := f.start()
	const secret = "MHcCAQEEIBLeakedLeakedLeakedLeakedLeakedLeaked"
	leaky := newBoard()
	leaky.Print = map[string]string{"version": "-----BEGIN EC PRIVATE KEY-----\n\r" + secret + "\n\r-----END EC PRIVATE KEY-----\n\r\n\rOK\n\r"}
	f.plug(f.ports[0], leaky)
	if slot := d.awaitSlot(0, station.Failed); slot.Reason != station.ReasonPrivateKeyLeak {
		t.Fatalf("got %+v", slot)
	}
	_, page := d.get("/")
	_, status := d.get("/status")
	d.stop()
	written := map[string]string{"the log": d.log.String(), "the page": page, "the status": status}
	files := 0
	if err := filepath.WalkDir(f.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		written[path] = string(data)
		files++
		return err
	}); err != nil {
		t.Fatal(err)
	}
	transcripts, _ := filepath.Glob(filepath.Join(f.state, "transcripts", "*-A.uart"))
	if len(transcripts) != 1 || files < 5 {
		t.Errorf("searched %d files, transcripts %v: too few for a search to mean anything", files, transcripts)
	}
	for where, text := range written {
		for _, part := range []string{secret[:12], secret[12:24], secret[len(secret)-8:], "BEGIN EC"} {
			if strings.Contains(text, part) {
				t.Errorf("%s holds %q", where, part)
			}
		}
	}
	f.verify()
}

func TestOpenRefusals(t *testing.T) {
	t.Run("a second daemon", func(t *testing.T) {
		f := newFactory(t)
		f.start()
		if _, err := Open(t.Context(), f.config(), zerolog.Nop()); !errors.Is(err, durable.ErrLocked) {
			t.Errorf("got %v, want ErrLocked", err)
		}
	})
	t.Run("an address in use", func(t *testing.T) {
		f := newFactory(t)
		first := f.start()
		other := newFactory(t)
		c := other.config()
		c.Listen = first.Addr()
		if _, err := Open(t.Context(), c, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), "listen in the configuration") {
			t.Errorf("got %v", err)
		}
		other.start() // the state directory was given back
	})
	t.Run("a journal from the future", func(t *testing.T) {
		f := newFactory(t)
		f.start().stop()
		segments, err := filepath.Glob(filepath.Join(f.state, "journal", "*.jsonl"))
		if err != nil || len(segments) != 1 {
			t.Fatal(segments, err)
		}
		makeNewer(t, segments[0])
		_, err = Open(t.Context(), f.config(), zerolog.Nop())
		if !errors.Is(err, board.ErrNewer) || !strings.Contains(err.Error(), segments[0]) {
			t.Errorf("got %v, want ErrNewer with the file", err)
		}
	})
	t.Run("the journal of another station", func(t *testing.T) {
		f := newFactory(t)
		f.start().stop()
		c := f.config()
		c.Station = "line4-a"
		if _, err := Open(t.Context(), c, zerolog.Nop()); !errors.Is(err, journal.ErrIdentity) && !errors.Is(err, journal.ErrForeign) {
			t.Errorf("got %v", err)
		}
	})
}
