package station

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

func (l Lot) counts() [3]int { return [3]int{l.Passed, l.Repeated, l.Failed} }

// The lot counts verdicts, goes on under the same name, and begins anew under
// another.
func TestLotCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listed := 0
		b := newTestStation(t, 1, func(c *Config) { c.Policy.Listed = func() int { return listed } }).run()
		try := func(put func(), state State) {
			t.Helper()
			put()
			b.await(0, state)
			b.cables[0].unplug()
			b.await(0, Empty)
		}
		earlier := func(d time.Duration) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.lot.Since = b.lot.Since.Add(-d)
		}
		one, clone := newBoard(), newBoard()
		clone.Device = one.Device
		plug := func() { b.cables[0].plug(one) }
		try(plug, Passed)
		try(plug, Passed)
		try(func() { b.cables[0].plug(clone) }, Failed)
		lot := b.Status().Lot
		if lot.counts() != [3]int{1, 1, 1} || lot.Name != "" || lot.Planned != 0 {
			t.Errorf("the lot is %+v", lot)
		}
		if listed = 12; b.Status().Lot.Planned != 12 {
			t.Errorf("12 boards are on the list, and planned are %d", b.Status().Lot.Planned)
		}
		time.Sleep(time.Minute)
		if err := b.BeginLot("WO-1", 0); err != nil {
			t.Fatal(err)
		}
		if got := b.Status().Lot; *got != (Lot{Name: "WO-1", Planned: 12, Since: time.Now().UTC()}) {
			t.Errorf("the lot begins as %+v", got)
		}
		try(plug, Passed)
		time.Sleep(time.Minute)
		if err := b.BeginLot("WO-1", 30); err != nil { // scanned twice
			t.Fatal(err)
		}
		if got := b.Status().Lot; got.counts() != [3]int{0, 1, 0} || got.Planned != 30 || time.Since(got.Since) < time.Minute {
			t.Errorf("the lot goes on as %+v", got)
		}
		if err := b.BeginLot("WO-1", 0); err != nil || b.Status().Lot.Planned != 30 {
			t.Errorf("%v; planned are %d", err, b.Status().Lot.Planned)
		}
		// Days later it still counts; one without a name ends with its day.
		earlier(100 * time.Hour)
		try(plug, Passed)
		if got := b.Status().Lot; got.counts() != [3]int{0, 2, 0} {
			t.Errorf("days later the lot is %+v", got)
		}
		if err := b.BeginLot("", 0); err != nil {
			t.Fatal(err)
		}
		try(plug, Passed)
		if got := b.Status().Lot; got.counts() != [3]int{0, 1, 0} || got.Name != "" {
			t.Errorf("without a name the lot is %+v", got)
		}
		earlier(24 * time.Hour)
		if got := b.Status().Lot; got.counts() != [3]int{} || !got.Since.Equal(time.Now().UTC().Truncate(time.Millisecond)) {
			t.Errorf("on the next day the lot is %+v", got)
		}
		try(plug, Passed)
		if got := b.Status().Lot; got.counts() != [3]int{0, 1, 0} {
			t.Errorf("on the next day the lot is %+v", got)
		}
	})
}

// A work order that is scanned again goes on with its count, as long as it is
// one of the last eight.
func TestLotsOfBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		since := time.Now().Add(-time.Hour).UTC().Truncate(time.Millisecond)
		kept := []Lot{{Name: "WO-2", Planned: 9, Failed: 2, Since: since}, {Passed: 7, Since: since}, {Name: "WO-1", Passed: 3, Since: since}}
		b := shown(t, func(c *Config) { c.Lot, c.Earlier = &Lot{Name: "WO-3", Passed: 1, Since: since}, kept }, slotState{state: Empty, advice: adviceEmpty})
		begin := func(name string, planned int, want Lot) {
			t.Helper()
			if err := b.BeginLot(name, planned); err != nil {
				t.Fatal(err)
			}
			if got := *b.Status().Lot; got != want {
				t.Errorf("%q goes on as %+v, want %+v", name, got, want)
			}
		}
		begin("WO-1", 0, Lot{Name: "WO-1", Passed: 3, Since: since})
		b.ledger.records[deviceOne] = board.Record{}
		b.apply(0, event{kind: boardFound}, nil)
		b.apply(0, event{kind: boardPassed, device: deviceOne}, nil)
		now := time.Now().UTC()
		begin("", 0, Lot{Since: now}) // what had no name was the count of a day
		begin("WO-2", 20, Lot{Name: "WO-2", Planned: 20, Failed: 2, Since: since})
		begin("WO-3", 0, Lot{Name: "WO-3", Passed: 1, Since: since})
		begin("WO-1", 0, Lot{Name: "WO-1", Passed: 4, Since: since})
		begin("WO-1", 0, Lot{Name: "WO-1", Passed: 4, Since: since}) // scanned twice
		for i := range maxEarlier - 1 {
			begin(fmt.Sprint("other ", i), 0, Lot{Name: fmt.Sprint("other ", i), Since: now})
		}
		begin("WO-1", 0, Lot{Name: "WO-1", Passed: 4, Since: since})
		for i := range maxEarlier + 1 {
			begin(fmt.Sprint("more ", i), 0, Lot{Name: fmt.Sprint("more ", i), Since: now})
		}
		begin("WO-1", 0, Lot{Name: "WO-1", Since: now})
	})
	b := newTestStation(t, 1, nil)
	c := Config{SKU: "widgiot", Station: "line3-a", Journal: b.ledger, Backlog: b.backlog, Delivery: b.delivery, Slots: b.slots, Earlier: []Lot{{Name: "a\nb"}}}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "printable") {
		t.Errorf("an earlier lot that is none: %v", err)
	}
}

func TestLotRefusals(t *testing.T) {
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	if err := b.BeginLot("WO-1", 5); err != nil {
		t.Fatal(err)
	}
	before := *b.Status().Lot
	for _, c := range []struct {
		name    string
		planned int
		says    string
	}{
		{strings.Repeat("x", 65), 0, "printable"}, {"a\nb", 0, "printable"}, {" a", 0, "printable"}, {"\xff", 0, "printable"},
		{"WO-2", -1, "0 to 10000000"}, {"WO-2", maxPlanned + 1, "0 to 10000000"},
	} {
		if err := b.BeginLot(c.name, c.planned); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q, %d: %v, want %q", c.name, c.planned, err, c.says)
		}
	}
	if got := *b.Status().Lot; got != before {
		t.Errorf("after what was refused the lot is %+v, it was %+v", got, before)
	}
	c := Config{SKU: "widgiot", Station: "line3-a", Journal: b.ledger, Backlog: b.backlog, Delivery: b.delivery, Slots: b.slots, Lot: &Lot{Failed: -1}}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "a count below 0") {
		t.Errorf("a lot that is none: %v", err)
	}
}

// What is kept is what a restart goes on with: soon, seldom, and at the end.
func TestLotIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var kept []Lot
		var at []time.Time
		var refusal error
		var others []Lot
		keep := func(l Lot, earlier []Lot) error {
			mu.Lock()
			defer mu.Unlock()
			kept, at, others = append(kept, l), append(at, time.Now()), earlier
			return refusal
		}
		refuse := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			refusal = err
		}
		old := Lot{Name: "WO-1", Planned: 9, Passed: 4, Failed: 1, Since: time.Now().Add(-time.Hour).UTC()}
		b := newTestStation(t, 1, func(c *Config) { c.Lot, c.KeepLot = &old, keep }).run()
		good := newBoard()
		b.cables[0].plug(good)
		b.await(0, Passed)
		synctest.Wait()
		if len(kept) != 0 {
			t.Fatalf("kept %+v at %v, and only the count has changed", kept, at)
		}
		for i := range 100 {
			if err := b.BeginLot(fmt.Sprint("WO-", i), i); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(kept); n < 3 || n > 6 || kept[n-1].Name != "WO-99" {
			t.Errorf("kept %d times, in the end %+v", n, kept[n-1])
		}
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < lotPause {
				t.Errorf("kept again after %v", d)
			}
		}
		if len(others) != maxEarlier || others[0].Name != "WO-98" || others[0].Planned != 98 || others[maxEarlier-1].Name != "WO-91" {
			t.Errorf("beside it %+v are kept", others)
		}
		// An error is told once, changes nothing else, and the end of Run keeps
		// what was not kept yet.
		refuse(errors.New("no room"))
		for i := range 3 {
			if err := b.BeginLot(fmt.Sprint("lot ", i), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if n := strings.Count(b.logged(), "the work order is not kept"); n != 1 {
			t.Errorf("the log tells %d times of it:\n%s", n, b.logged())
		}
		// When there is room again, what was not kept is: without another
		// verdict, and at the end too.
		refuse(nil)
		time.Sleep(lotPause)
		synctest.Wait()
		if n := len(kept); kept[n-1].Name != "lot 2" || kept[n-2].Name != "lot 2" {
			t.Errorf("after room was made, %+v is kept", kept[n-1])
		}
		n := len(kept)
		time.Sleep(time.Minute)
		if len(kept) != n {
			t.Errorf("what is kept is kept %d times more", len(kept)-n)
		}
		if err := b.BeginLot("almost", 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := b.BeginLot("last", 0); err != nil {
			t.Fatal(err)
		}
		b.stop()
		if got := kept[len(kept)-1]; got.Name != "last" {
			t.Errorf("in the end %+v is kept", got)
		}
	})
}

// What could not be kept is tried once more when Run ends.
func TestLotIsKeptAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept []string
		refusal := errors.New("no room")
		b := newTestStation(t, 1, func(c *Config) {
			c.KeepLot = func(l Lot, _ []Lot) error {
				kept = append(kept, l.Name)
				return refusal
			}
		}).run()
		if err := b.BeginLot("WO-1", 0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		refusal = nil
		b.stop()
		if len(kept) != 2 || kept[1] != "WO-1" {
			t.Errorf("kept: %q", kept)
		}
	})
}

// The last ten verdicts are shown, the newest first, and turn to confirmed with
// the cloud.
func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		delivered := false
		b := shown(t, func(c *Config) { c.Delivery = func(board.DeviceID) Delivery { return state(delivered) } }, slotState{state: Empty, advice: adviceEmpty})
		var want []Recent
		for i := range 12 {
			time.Sleep(time.Second)
			device := board.DeviceID{1, byte(i)}
			b.ledger.records[device] = board.Record{}
			b.apply(0, event{kind: boardFound}, nil)
			v := Recent{Time: time.Now().UTC(), Slot: "A", Device: device.String(), State: Passed}
			if i%3 == 0 {
				v.State, v.Reason = Failed, ReasonNoProof
				b.apply(0, event{kind: boardFailed, reason: ReasonNoProof, device: device}, nil)
			} else {
				v.Delivery = Waiting
				b.apply(0, event{kind: boardPassed, device: device}, nil)
			}
			want = append([]Recent{v}, want...)
			if i == 11 {
				break // the last board stays
			}
			b.apply(0, event{kind: boardGone}, nil)
		}
		if got := b.Status().Recent; !slices.Equal(got, want[:10]) {
			t.Errorf("got  %+v\nwant %+v", got, want[:10])
		}
		delivered = true
		for i, v := range b.Status().Recent {
			if v.Confirmed != (v.State == Passed) {
				t.Errorf("verdict %d, which is delivered if it passed, is %+v", i, v)
			}
		}
		// A leak after PASS is another verdict, in the name of the same board.
		b.apply(0, event{kind: boardFailed, reason: ReasonPrivateKeyLeak}, nil)
		got := b.Status().Recent
		if len(got) != 10 || got[0].Reason != ReasonPrivateKeyLeak || got[0].Device != want[0].Device || got[0].Confirmed || got[1].Device != want[0].Device {
			t.Errorf("after a leak the last are %+v", got[:2])
		}
	})
}
