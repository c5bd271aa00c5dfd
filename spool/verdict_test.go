package spool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// bucketsOf reads all of an index; where the registry's answers stand is left out: to deliver again finds that out.
func bucketsOf(t *testing.T, k *kit) map[string]map[string]string {
	t.Helper()
	out := map[string]map[string]string{}
	if err := k.spool.view(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			entries := map[string]string{}
			if err := tableOf(tx, name).ForEach(func(key, value []byte) error {
				entries[string(key)] = string(value)
				return nil
			}); err != nil {
				return err
			}
			out[string(name)] = entries
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// readings appends one verdict of each kind, in several slots and work orders.
func (k *kit) readings() {
	k.t.Helper()
	for i := range 12 {
		r, other := newRecord(k.t), newRecord(k.t)
		other.Device = r.Device
		order := []string{"", "WO-1", "WO-2"}[i%3]
		for _, v := range []Reading{
			{Record: &r, Slot: "A", WorkOrder: order, Label: `a "label"`, Operator: "Kim", Transcript: "t.uart", Took: time.Second},
			{Record: &r, Slot: "B", WorkOrder: order},
			{Record: &other, Slot: "B", WorkOrder: order},
			{Reason: "timeout", Slot: fmt.Sprint("C", i), WorkOrder: order},
			{Reason: "private-key-leak", Device: newRecord(k.t).Device, Slot: "D"},
			{Reason: "garbled", Slot: "D"},
		} {
			if _, err := k.spool.Append(k.t.Context(), v); err != nil && !errors.Is(err, board.ErrDeviceConflict) {
				k.t.Fatal(err)
			} else if v.Record == &r {
				k.receipts[r.Device] = board.Receipt{Seq: k.receiptOf(r)}
			}
		}
	}
}

func (k *kit) receiptOf(r board.Record) (seq uint64) {
	k.t.Helper()
	h, err := k.spool.History(r.Device)
	if err != nil {
		k.t.Fatal(err)
	}
	return h.Seq
}

// An index that grew entry by entry and one that is built of the whole journal are the same, bucket by bucket.
func TestRebuiltIndexEqualsTheGrownOne(t *testing.T) {
	k, archive := archiveKit(t)
	archive.set(func(int) error { return errAway })
	k.readings()
	refused := k.mustAppend()
	seq := k.receiptOf(refused)
	k.spool.mu.Lock()
	err := k.spool.settleLocked([]*item{{outcome: outcome{seq: seq, dev: refused.Device, key: refused.Fingerprint(), dead: board.ErrUntrusted}, tried: true}})
	k.spool.unlock()
	if err != nil || k.spool.Stats().Dead != 1 {
		t.Fatalf("%v, %+v", err, k.spool.Stats())
	}
	grown, stats := bucketsOf(t, k), k.spool.Stats()
	k.spool.Close()
	if err := os.Remove(indexPath(k.dir)); err != nil {
		t.Fatal(err)
	}
	k.mustOpen()
	if again := k.spool.Stats(); again.Pending != stats.Pending || again.Dead != stats.Dead || again.Entries != stats.Entries {
		t.Errorf("%+v, before %+v", again, stats)
	}
	rebuilt := bucketsOf(t, k)
	for name, entries := range grown {
		if len(entries) != len(rebuilt[name]) {
			t.Errorf("bucket %s has %d entries, grown %d", name, len(rebuilt[name]), len(entries))
		}
		for key, value := range entries {
			if rebuilt[name][key] != value {
				t.Errorf("bucket %s: %x is %q, grown %q", name, key, rebuilt[name][key], value)
			}
		}
		if len(entries) == 0 && name != string(bucketDamage) && name != string(bucketArchive) {
			t.Errorf("bucket %s is empty: this test looks at little", name)
		}
	}
}

// Work orders are counted apart, and all together.
func TestCounts(t *testing.T) {
	k := newKit(t)
	k.readings()
	for order, want := range map[string]Counts{
		"WO-1": {4, 4, map[string]uint64{journal.ReasonDeviceConflict: 4, "timeout": 4}},
		"":     {4, 4, map[string]uint64{journal.ReasonDeviceConflict: 4, "timeout": 4, "private-key-leak": 12, "garbled": 1}},
		"WO-":  {0, 0, map[string]uint64{}},
	} {
		got, err := k.spool.CountOf(order)
		if err != nil || got.Passed != want.Passed || got.Repeated != want.Repeated || fmt.Sprint(got.Failed) != fmt.Sprint(want.Failed) {
			t.Errorf("%q: %+v, %v, want %+v", order, got, err, want)
		}
	}
	if all, err := k.spool.Count(); err != nil || all.Passed != 12 || all.Repeated != 12 || all.AllFailed() != 12+12+12+1 {
		t.Errorf("all: %+v, %v", all, err)
	}
}

// A flapping port or a noisy line does not fill the disk: one failure without a device id in 10 s is journaled, and what is left out is counted.
func TestNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		fail := func(slot string) board.Receipt {
			t.Helper()
			receipt, err := k.spool.Append(t.Context(), Reading{Reason: "garbled", Slot: slot})
			if err != nil {
				t.Fatal(err)
			}
			return receipt
		}
		left := func() (out []uint64) {
			t.Helper()
			items, err := k.spool.Recent(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				out = append(out, i.Verdict.LeftOut)
			}
			return out
		}
		if r := fail("A"); r.LeftOut || r.Entry != 1 {
			t.Fatalf("the first: %+v", r)
		}
		for range 5 {
			time.Sleep(time.Second)
			if r := fail("A"); !r.LeftOut || r.Entry != 0 {
				t.Fatalf("within 10 s: %+v", r)
			}
		}
		if r := fail("B"); r.LeftOut {
			t.Errorf("another slot: %+v", r)
		}
		// A failure with a device id is always journaled, and carries the number.
		if r, err := k.spool.Append(t.Context(), Reading{Reason: "no-proof", Slot: "A", Device: newRecord(t).Device}); err != nil || r.LeftOut {
			t.Errorf("with an id: %+v, %v", r, err)
		}
		if r := fail("A"); !r.LeftOut {
			t.Errorf("still within 10 s: %+v", r)
		}
		time.Sleep(5 * time.Second)
		if r := fail("A"); r.LeftOut {
			t.Errorf("after 10 s: %+v", r)
		}
		if got := fmt.Sprint(left()); got != "[1 5 0 0]" {
			t.Errorf("left out, the newest first: %s", got)
		}
	})
}

// A restart with boards inserted adds nothing: what the slot said last still holds.
func TestResumed(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend() // in slot A
	next := newRecord(t)
	k.reopen()
	before := k.spool.Stats().Entries
	if receipt, err := k.spool.Append(t.Context(), Reading{Record: &r, Slot: "A", Resumed: true}); err != nil || !receipt.Repeat || receipt.Seq != 1 || receipt.Entry != 1 {
		t.Errorf("the same board: %+v, %v", receipt, err)
	}
	if n := k.spool.Stats().Entries; n != before {
		t.Errorf("%d entries, before %d", n, before)
	}
	for name, v := range map[string]Reading{
		"another slot":  {Record: &r, Slot: "B", Resumed: true},
		"another board": {Record: &next, Slot: "A", Resumed: true},
		"a failure":     {Reason: "no-proof", Device: r.Device, Slot: "A", Resumed: true},
		"not resumed":   {Record: &r, Slot: "A"},
	} {
		n := k.spool.Stats().Entries
		if receipt, err := k.spool.Append(t.Context(), v); err != nil || receipt.Entry != n {
			t.Errorf("%s: %+v, %v, want entry %d", name, receipt, err, n)
		}
	}
	k.receipts[next.Device] = board.Receipt{Seq: k.receiptOf(next)}
	// A failure that is still in its slot.
	fail := Reading{Reason: "no-proof", Device: newRecord(t).Device, Slot: "C"}
	first, err := k.spool.Append(t.Context(), fail)
	if err != nil {
		t.Fatal(err)
	}
	k.reopen()
	fail.Resumed = true
	if again, err := k.spool.Append(t.Context(), fail); err != nil || again.Entry != first.Entry {
		t.Errorf("the same failure: %+v, %v", again, err)
	}
	// A conflict stays one.
	clash := newRecord(t)
	clash.Key = r.Key
	one, err := k.spool.Append(t.Context(), Reading{Record: &clash, Slot: "D"})
	if !errors.Is(err, board.ErrKeyConflict) || one.Entry == 0 {
		t.Fatalf("a conflict: %+v, %v", one, err)
	}
	k.reopen()
	if again, err := k.spool.Append(t.Context(), Reading{Record: &clash, Slot: "D", Resumed: true}); !errors.Is(err, board.ErrKeyConflict) || again.Entry != one.Entry {
		t.Errorf("the same conflict: %+v, %v", again, err)
	}
}

// What the registry refuses for good is journaled, survives the index, and ends when the registry takes the record.
func TestRejection(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	k.sink.set(func(board.Sealed, int) (bool, error) {
		return false, fmt.Errorf("item: %w", &board.Conflict{Kind: board.ErrDeviceConflict, Device: r.Device, Key: r.Fingerprint(), KnownKey: board.Fingerprint{7}, KnownBy: "widgiot/line9"})
	})
	k.spool.pass(t.Context())
	check := func(when string, want Delivery) {
		t.Helper()
		h, err := k.spool.History(r.Device)
		if err != nil || h.Delivery != want || (h.Dead != nil) != (want == Rejected) {
			t.Fatalf("%s: %+v, %v, want %q", when, h, err, want)
		}
		if want == Rejected && (h.Dead.Cause != journal.ReasonDeviceConflict || h.Dead.Known.By != "widgiot/line9" || h.Dead.Known.Key != (board.Fingerprint{7}).String()) {
			t.Errorf("%s: %+v", when, h.Dead)
		}
		recent, err := k.spool.Recent(t.Context(), 1)
		if err != nil || len(recent) != 1 || recent[0].Delivery != want {
			t.Errorf("%s: recent %+v, %v", when, recent, err)
		}
		if s := k.spool.Stats(); s.Dead != btoi(want == Rejected) || s.Pending != btoi(want == Waiting) {
			t.Errorf("%s: %+v", when, s)
		}
	}
	check("refused", Rejected)
	for range 3 { // it is told once
		k.spool.pass(t.Context())
	}
	if report, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil || report.Rejections != 1 {
		t.Fatalf("the journal holds %+v, %v", report, err)
	}
	k.reopen()
	check("after a restart", Rejected)
	k.spool.Close()
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	check("after a rebuild", Rejected)
	// Somebody clears it up.
	k.sink.set(nil)
	if err := k.spool.Requeue(1); err != nil {
		t.Fatal(err)
	}
	check("requeued", Waiting)
	k.deliver()
	check("taken", Confirmed)
	if report, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil || report.Rejections != 2 {
		t.Fatalf("the journal holds %+v, %v", report, err)
	}
	k.spool.Close()
	os.Remove(indexPath(k.dir))
	k.mustOpen()
	check("after another rebuild", Waiting) // and not rejected
	k.deliver()
	check("delivered again", Confirmed)
	h, err := k.spool.History(r.Device)
	if err != nil || len(h.Events) != 2 || h.Events[0].Rejection.Reason != journal.Resolved || h.Events[1].Rejection.Reason != journal.ReasonDeviceConflict {
		t.Errorf("%+v, %v", h.Events, err)
	}
}

// Whatever people scan or type, the verdict is journaled.
func TestTextsOfVerdicts(t *testing.T) {
	k := newKit(t)
	long := strings.Repeat("é", journal.MaxText)
	for _, text := range []string{"plain", "a\x00b\x1b[31m", string([]byte{0xff, 0xfe}), long, `",“"record":{`, "\u2028"} {
		r := Reading{Reason: "label-mismatch", Device: newRecord(t).Device, Slot: "A", WorkOrder: text, Label: text, Operator: text, Transcript: text}
		if _, err := k.spool.Append(t.Context(), r); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	items, err := k.spool.Recent(t.Context(), 10)
	if err != nil || len(items) != 6 {
		t.Fatalf("%d, %v", len(items), err)
	}
	if v := items[5].Verdict; v.Label != "plain" {
		t.Errorf("%+v", v)
	}
	if v := items[2].Verdict; len(v.Label) > journal.MaxText || !strings.HasPrefix(long, v.Label) || v.Label == "" {
		t.Errorf("%d bytes: %q", len(v.Label), v.Label)
	}
	if _, err := k.spool.Append(t.Context(), Reading{Reason: "Not A Reason", Slot: "A"}); !errors.Is(err, journal.ErrEntry) {
		t.Errorf("a reason that is none: %v", err)
	}
	if !bytes.Contains([]byte(items[4].Verdict.Label), []byte("a\uFFFDb")) {
		t.Errorf("%q", items[4].Verdict.Label)
	}
}
