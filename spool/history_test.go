package spool

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// withMAC is a new record that says what its MAC address is.
func withMAC(t *testing.T, address string) board.Record {
	r := newRecord(t)
	r.Facts = map[string]string{"dialect": "ti-at", "build": `a "mac":"ff:ff:ff:ff:ff:ff" of a quoting board`, "mac": address, "nwp": "3.1"}
	return r
}

// What was appended is found by whatever stands on a label, at once and after
// the index was built anew.
func TestFind(t *testing.T) {
	k := newKit(t)
	r := withMAC(t, "08:00:28:5b:55:e0")
	r.Device = board.DeviceID{0x4d, 0x1f, 0x8e, 0x27, 0xb3, 0xc0, 0x5a, 0x9e, 0x61, 0xf2, 0xd4, 0x77, 0x88, 0xaa, 0xbb, 0xcc}
	if _, err := k.append(r); err != nil {
		t.Fatal(err)
	}
	other := withMAC(t, "08:00:28:5B:55:E1") // no dialect writes it so
	if _, err := k.append(other); err != nil {
		t.Fatal(err)
	}
	print := r.Fingerprint().String()
	for _, again := range []string{"at once", "after a restart", "after a rebuild"} {
		for text, want := range map[string]bool{
			"4d1f8e27b3c05a9e61f2d47788aabbcc": true, "4D1F8E27 B3C05A9E 61F2D477 88AABBCC": true, "4d1f": true, "aabbcc": true, "f8e2": true,
			"08:00:28:5b:55:e0": true, "08-00-28-5B-55-E0": true, "0800285b55e0": true, "55:e0": true,
			print: true, print[:33]: true, print[:40]: true, "4d1f8e27b3c05a9e61f2d47788aabbcd": false, "08:00:28:5b:55:e1": false,
			strings.Repeat("0", 33): false, "ff:ff:ff:ff:ff:ff": false, print[:63] + "x": false,
		} {
			found, more, err := k.spool.Find(t.Context(), text, 10)
			if strings.HasSuffix(text, "x") {
				if !errors.Is(err, ErrFind) {
					t.Errorf("%s: %q: %v", again, text, err)
				}
				continue
			}
			if has := len(found) == 1; err != nil || more || has != want && !(len(found) > 1 && len(text) < 6) {
				t.Errorf("%s: %q: %+v, %v, %v", again, text, found, more, err)
			}
			if want && !slices.ContainsFunc(found, func(s DeviceEntry) bool {
				return s.Device == r.Device && s.Fingerprint == r.Fingerprint() && s.MAC == "08:00:28:5b:55:e0" && s.Seq == 1 && time.Since(s.Time) < time.Hour
			}) {
				t.Errorf("%s: %q: %+v", again, text, found)
			}
		}
		k.spool.Close()
		if again == "after a restart" {
			os.Remove(indexPath(k.dir))
		}
		k.mustOpen()
	}
	for _, text := range []string{"", "4d1", "xyzw", "%%%%", strings.Repeat("0", 65), "4d:1f:"[:3]} {
		if _, _, err := k.spool.Find(t.Context(), text, 10); !errors.Is(err, ErrFind) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for range 30 {
		k.mustAppend()
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := k.spool.Find(stopped, "4d1f", 10); !errors.Is(err, context.Canceled) {
		t.Errorf("for nobody: %v", err)
	}
	// More than are wanted.
	twin := withMAC(t, "08:00:28:5b:55:e0")
	if _, err := k.append(twin); err != nil {
		t.Fatal(err)
	}
	if found, more, err := k.spool.Find(t.Context(), "08:00:28:5b:55:e0", 1); len(found) != 1 || !more || err != nil {
		t.Errorf("one of two: %+v, %v, %v", found, more, err)
	}
	if found, more, err := k.spool.Find(t.Context(), "08:00:28:5b:55:e0", 2); len(found) != 2 || more || err != nil {
		t.Errorf("two of two: %+v, %v, %v", found, more, err)
	}
	k.spool.Close()
	if _, _, err := k.spool.Find(t.Context(), "4d1f", 10); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// All that the journal has of a device is there, at once, after a restart and a
// rebuild.
func TestHistory(t *testing.T) {
	k, _ := archiveKit(t)
	r := k.mustAppend()
	if _, err := k.append(r); err != nil {
		t.Fatal(err)
	}
	otherKey, otherID := newRecord(t), newRecord(t)
	otherKey.Device, otherID.Key = r.Device, r.Key
	if _, err := k.append(otherKey); !errors.Is(err, board.ErrDeviceConflict) {
		t.Fatal(err)
	}
	if _, err := k.append(otherID); !errors.Is(err, board.ErrKeyConflict) {
		t.Fatal(err)
	}
	look := func(when string) {
		t.Helper()
		h, err := k.spool.History(r.Device)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		var kinds []string
		for _, e := range h.Events {
			kinds = append(kinds, cmp.Or(e.Verdict.Reason, string(e.Verdict.Result)))
		}
		if !h.Enrolled || h.Seq != 1 || h.Fingerprint != r.Fingerprint() || strings.Join(kinds, " ") != "key-conflict device-conflict repeated" || h.Older != 0 || h.Dead != nil {
			t.Errorf("%s: %+v, %v", when, h, kinds)
		}
		sealed, err := board.ParseEnvelope(h.Record.Record())
		if err != nil || sealed.Record().Device != r.Device {
			t.Errorf("%s: the record is %+v, %v", when, h.Record, err)
		}
		if e := h.Events[0]; e.Verdict.Device != otherID.Device || e.Verdict.Known.Device != r.Device.String() {
			t.Errorf("%s: the refusal of another that named this key: %+v", when, e)
		}
		// Of a board that was only refused.
		refused, err := k.spool.History(otherID.Device)
		if err != nil || refused.Enrolled || len(refused.Events) != 1 || refused.Device != otherID.Device {
			t.Errorf("%s: of a refused board: %+v, %v", when, refused, err)
		}
	}
	look("at once")
	k.reopen()
	look("after a restart")
	k.spool.Close()
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	look("after a rebuild")
	if _, err := k.spool.History(newRecord(t).Device); !errors.Is(err, journal.ErrNoRecord) {
		t.Errorf("of nobody: %v", err)
	}
}

// A board that is inserted all day has a history of which the newest is told.
func TestHistoryIsBounded(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	for range maxEvents + 20 {
		if _, err := k.append(r); err != nil {
			t.Fatal(err)
		}
	}
	h, err := k.spool.History(r.Device)
	if err != nil || len(h.Events) != maxEvents || h.Older != 20 || h.Events[0].Seq != uint64(maxEvents+21) {
		t.Errorf("%d events, %d older, %v", len(h.Events), h.Older, err)
	}
}

// A record that the registry refused says so.
func TestHistoryOfDeadLetter(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	if err := k.spool.update(func(tx *bolt.Tx) error {
		return putDead(tx, DeadLetter{Seq: 1, Device: r.Device, Reason: "device-conflict"})
	}); err != nil {
		t.Fatal(err)
	}
	h, err := k.spool.History(r.Device)
	if err != nil || h.Dead == nil || h.Dead.Reason != "device-conflict" {
		t.Errorf("%+v, %v", h, err)
	}
	if err := k.spool.update(func(tx *bolt.Tx) error { return tableOf(tx, bucketDead).Delete(encodeSeq(1)) }); err != nil {
		t.Fatal(err)
	}
}

// The newest come first, over the edges of segments, and between two times are
// those of between, at once and after a rebuild.
func TestRecentAndRange(t *testing.T) {
	k, _ := archiveKit(t)
	var all []board.DeviceID
	for i := range 40 {
		if i%4 == 3 { // a board that failed
			device := newRecord(t).Device
			if _, err := k.spool.Append(t.Context(), Reading{Reason: "bad-key", Device: device, Slot: "B"}); err != nil {
				t.Fatal(err)
			}
			all = append(all, device)
			continue
		}
		all = append(all, k.mustAppend().Device)
	}
	check := func(when string) {
		t.Helper()
		for _, n := range []int{0, 1, 7, 39, 40, 1000} {
			got, err := k.spool.Recent(t.Context(), n)
			if err != nil || len(got) != min(n, len(all)) {
				t.Fatalf("%s: %d of %d: %v", when, len(got), n, err)
			}
			for i, e := range got {
				if want := all[len(all)-1-i]; e.Verdict.Device != want {
					t.Fatalf("%s: %d of %d is %v, want %v", when, i, n, e.Verdict.Device, want)
				}
				if want := map[journal.Result]Delivery{journal.Passed: Waiting}[e.Verdict.Result]; e.Delivery != want {
					t.Errorf("%s: %d of %d is %q, want %q", when, i, n, e.Delivery, want)
				}
			}
		}
		read := func(from, to time.Time) (out []Item) {
			t.Helper()
			if err := k.spool.Range(t.Context(), from, to, func(i Item) { out = append(out, i) }); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			return out
		}
		got := read(time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
		if len(got) != len(all) {
			t.Fatalf("%s: %d between", when, len(got))
		}
		for i, item := range got {
			if item.Verdict.Device != all[i] || (item.Verdict.Result == journal.Failed) != (i%4 == 3) {
				t.Errorf("%s: %d is %+v", when, i, item)
			}
		}
		middle, end := got[13].Time, got[27].Time
		want := slices.DeleteFunc(slices.Clone(got), func(i Item) bool { return i.Time.Before(middle) || !i.Time.Before(end) })
		if part := read(middle, end); len(part) != len(want) || len(part) > 0 && part[0].Seq != want[0].Seq {
			t.Errorf("%s: %d of the middle, want %d", when, len(part), len(want))
		}
		if early, late := read(time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)), read(time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)); len(early)+len(late) > 0 {
			t.Errorf("%s: %d before, %d after", when, len(early), len(late))
		}
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		if err := k.spool.Range(stopped, middle, end, func(Item) {}); !errors.Is(err, context.Canceled) {
			t.Errorf("for nobody: %v", err)
		}
		count, err := k.spool.Count()
		if err != nil || count.Passed != 30 || count.Failed["bad-key"] != 10 || count.Repeated != 0 {
			t.Errorf("%s: counted %+v, %v", when, count, err)
		}
	}
	check("at once")
	k.reopen()
	check("after a restart")
	k.spool.Close()
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	check("after a rebuild")
}

// What a running station proves is what the journal proves, in every place of
// the tree, and is refused for the same causes.
func TestProveWhileItRuns(t *testing.T) {
	k, _ := archiveKit(t)
	var all []board.Record
	for range 70 {
		all = append(all, k.mustAppend())
	}
	fresh := newKit(t)
	if _, err := fresh.spool.Prove(t.Context(), fresh.mustAppend().Device); !errors.Is(err, journal.ErrUnsigned) {
		t.Errorf("before a checkpoint: %v", err)
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	late := k.mustAppend()
	same := func(when string) {
		t.Helper()
		for i, r := range all {
			got, err := k.spool.Prove(t.Context(), r.Device)
			want, wantErr := journal.Prove(k.dir, r.Device)
			if err != nil || wantErr != nil || string(got) != string(want) {
				t.Fatalf("%s: record %d: %v, %v; the same: %v", when, i, err, wantErr, string(got) == string(want))
			}
			if _, err := journal.VerifyProof(got, k.id.Verifier); err != nil && i == 0 && !errors.Is(err, journal.ErrProof) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	same("whole")
	if _, err := k.spool.Prove(t.Context(), late.Device); !errors.Is(err, journal.ErrUnsigned) {
		t.Errorf("of a record after the checkpoint: %v", err)
	}
	if _, err := k.spool.Prove(t.Context(), newRecord(t).Device); !errors.Is(err, journal.ErrNoRecord) {
		t.Errorf("of nobody: %v", err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.spool.Prove(stopped, all[0].Device); !errors.Is(err, context.Canceled) {
		t.Errorf("for nobody: %v", err)
	}
	segments, err := journal.ListSegments(k.dir)
	if err != nil || len(segments) < 3 {
		t.Fatalf("%d segments, %v", len(segments), err)
	}
	if err := os.Remove(journal.LeavesPath(k.dir, segments[1].First)); err != nil {
		t.Fatal(err)
	}
	same("without the hashes beside a segment")
}
