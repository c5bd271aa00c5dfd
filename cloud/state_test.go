package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"secretfree/station/board"
)

func actions() []Action { return []Action{Hold, Release, Scrap, Revoke, Transfer} }

func states() []board.State {
	return []board.State{board.Active, board.Held, board.Scrapped, board.Revoked}
}

// changeN is a change whose texts and id depend on n.
func changeN(n int, action Action, epoch int) Change {
	return Change{
		ID: fmt.Sprintf("CHANGE%020d", n), Action: action, Who: fmt.Sprintf("operator %d", n), Why: `for a test: <"ä">`,
		At: time.Date(2026, 11, 25, 10, 20, n%60, 456e6, time.UTC), Epoch: epoch,
	}
}

func eventOf(c Change, from, to board.State, epoch int) Event {
	return Event{ID: c.ID, At: c.At, Who: c.Who, Why: c.Why, Action: c.Action, From: from, To: to, Epoch: epoch}
}

func wantHistory(t *testing.T, r registry, device board.DeviceID, want []Event) {
	t.Helper()
	got, err := whole(func() ([]Event, error) { return r.History(t.Context(), device) })
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the history (-want +got):\n%s", diff)
	}
}

func wantRefused(t *testing.T, err error, kind error, state board.State, epoch int, last *Event) {
	t.Helper()
	r, ok := errors.AsType[*Refused](err)
	if !ok || !errors.Is(err, kind) {
		t.Errorf("got %v, want a refusal of the kind %v", err, kind)
		return
	}
	if r.Now.State != state || r.Now.Epoch != epoch {
		t.Errorf("it is said to be %s in epoch %d, want %s in %d", r.Now.State, r.Now.Epoch, state, epoch)
	}
	if diff := cmp.Diff(last, r.Last); diff != "" {
		t.Errorf("the latest change (-want +got):\n%s", diff)
	}
	if last != nil && !strings.Contains(err.Error(), "by "+last.Who+": "+last.Why) {
		t.Errorf("%v does not say who and why", err)
	}
}

func testChangeState(t *testing.T, b backend) {
	r, s := b.open(t, ""), sealed(t, 1, 1)
	must(t, r.Put(t.Context(), s))
	must(t, r.Put(t.Context(), sealed(t, 2, 2)))
	enrolled := b.items(t)
	device := s.Record().Device
	wantHistory(t, r, device, nil)
	var events []Event
	state := board.Active
	for n, step := range []struct {
		action Action
		to     board.State
		epoch  int // that is asked for
		want   int
	}{
		{Hold, board.Held, 0, 0},
		{Release, board.Active, 0, 0},
		{Transfer, board.Active, 3, 3},
		{Revoke, board.Revoked, 0, 3},
		{Release, board.Active, 4, 4},
		{Hold, board.Held, 6, 6}, // which need not, but may
		{Revoke, board.Revoked, 6, 6},
		{Scrap, board.Scrapped, 0, 6},
	} {
		c := changeN(n, step.action, step.epoch)
		e, err := r.ChangeState(t.Context(), device, c)
		must(t, err)
		events = append(events, eventOf(c, state, step.to, step.want))
		state = step.to
		looked, err := r.Lookup(t.Context(), device)
		must(t, err)
		if e.State != step.to || e.Epoch != step.want {
			t.Errorf("%d: it is %s in epoch %d, want %s in %d", n, e.State, e.Epoch, step.to, step.want)
		}
		if diff := cmp.Diff(looked, e, cmp.Comparer(func(a, b board.Key) bool { return a == b })); diff != "" {
			t.Errorf("%d: (-Lookup +ChangeState):\n%s", n, diff)
		}
		wantHistory(t, r, device, events)
		for listed, err := range r.Enrolments(t.Context()) {
			must(t, err)
			if listed.Device == device && (listed.State != step.to || listed.Epoch != step.want) {
				t.Errorf("%d: it is listed as %s in epoch %d", n, listed.State, listed.Epoch)
			}
		}
		// A station that delivers again changes nothing.
		before := b.items(t)
		must(t, r.Put(t.Context(), s))
		must(t, r.Put(t.Context(), seal(t, recordOf(t, "line4", 1, 1))))
		if diff := cmp.Diff(before, b.items(t)); diff != "" {
			t.Errorf("%d: a Put changed something (-before +after):\n%s", n, diff)
		}
	}
	after := b.items(t)
	for _, name := range []string{"state", "epoch", "state-history"} {
		delete(after[device.String()], name)
		delete(enrolled[device.String()], name)
	}
	if diff := cmp.Diff(enrolled, after); diff != "" {
		t.Errorf("more than the state was changed (-before +after):\n%s", diff)
	}
	check(t, b)
}

// testTransitions is the whole table: what is not in it is refused.
func testTransitions(t *testing.T, b backend) {
	r := b.open(t, "")
	to := map[Action]map[board.State]board.State{
		Hold:     {board.Active: board.Held},
		Release:  {board.Held: board.Active, board.Revoked: board.Active},
		Scrap:    {board.Active: board.Scrapped, board.Held: board.Scrapped, board.Revoked: board.Scrapped},
		Revoke:   {board.Active: board.Revoked, board.Held: board.Revoked},
		Transfer: {board.Active: board.Active},
	}
	n := 0
	for _, action := range actions() {
		for _, from := range states() {
			for _, epoch := range []int{0, 1, 2, 3} { // the device is in epoch 2
				n++
				must(t, r.Put(t.Context(), sealed(t, n, n)))
				stored := b.items(t)[deviceN(n).String()]
				stored["state"], stored["epoch"] = string(from), "2"
				b.set(t, stored)
				c := changeN(n, action, epoch)
				e, err := r.ChangeState(t.Context(), deviceN(n), c)
				want, allowed := to[action][from]
				raises := action == Transfer || action == Release && from == board.Revoked
				switch {
				case !allowed:
					wantRefused(t, err, ErrTransition, from, 2, nil)
				case epoch == 1 || raises && epoch < 3:
					wantRefused(t, err, errEpoch, from, 2, nil)
				case err != nil || e.State != want || e.Epoch != max(2, epoch):
					t.Errorf("%s of %s in epoch %d: got %s in %d, %v", action, from, epoch, e.State, e.Epoch, err)
				default:
					wantHistory(t, r, deviceN(n), []Event{eventOf(c, from, want, max(2, epoch))})
					continue
				}
				if err == nil {
					t.Errorf("%s of %s to epoch %d was done", action, from, epoch)
				}
				if diff := cmp.Diff(stored, b.items(t)[deviceN(n).String()]); diff != "" {
					t.Errorf("%s of %s: a refused change changed something (-before +after):\n%s", action, from, diff)
				}
			}
		}
	}
	check(t, b)
}

func testChangeRefusals(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	before := b.items(t)
	for name, spoil := range map[string]func(*Change){
		"no action":             func(c *Change) { c.Action = "" },
		"unknown action":        func(c *Change) { c.Action = "Hold" },
		"short id":              func(c *Change) { c.ID = strings.Repeat("A", 15) },
		"long id":               func(c *Change) { c.ID = strings.Repeat("A", 33) },
		"id of other letters":   func(c *Change) { c.ID = strings.Repeat("A", 15) + "-" },
		"nobody":                func(c *Change) { c.Who = "" },
		"blank":                 func(c *Change) { c.Who = "  " },
		"long name":             func(c *Change) { c.Who = strings.Repeat("ä", maxWho/2) + "x" },
		"no reason":             func(c *Change) { c.Why = "" },
		"long reason":           func(c *Change) { c.Why = strings.Repeat("x", maxWhy+1) },
		"line break":            func(c *Change) { c.Why = "one\ntwo" },
		"escape":                func(c *Change) { c.Why = "\x1b[31m" },
		"right to left":         func(c *Change) { c.Who = "a\u202eb" },
		"no UTF-8":              func(c *Change) { c.Who = "\xff" },
		"no time":               func(c *Change) { c.At = time.Time{} },
		"time of another place": func(c *Change) { c.At = c.At.In(time.FixedZone("x", 60)) },
		"microseconds":          func(c *Change) { c.At = c.At.Add(time.Microsecond) },
		"negative epoch":        func(c *Change) { c.Epoch = -1 },
		"huge epoch":            func(c *Change) { c.Epoch = maxEpoch + 1 },
	} {
		c := changeN(1, Hold, 0)
		spoil(&c)
		if _, err := r.ChangeState(t.Context(), deviceN(1), c); !errors.Is(err, ErrChange) {
			t.Errorf("%s: got %v, want ErrChange", name, err)
		}
	}
	if _, err := r.ChangeState(t.Context(), deviceN(2), changeN(1, Hold, 0)); !errors.Is(err, board.ErrNotEnrolled) {
		t.Errorf("no such device: got %v, want ErrNotEnrolled", err)
	}
	if _, err := r.History(t.Context(), deviceN(2)); !errors.Is(err, board.ErrNotEnrolled) {
		t.Errorf("the history of no device: got %v, want ErrNotEnrolled", err)
	}
	if diff := cmp.Diff(before, b.items(t)); diff != "" {
		t.Errorf("a refused change changed something (-before +after):\n%s", diff)
	}
	check(t, b)
	for _, state := range []string{"", "active"} {
		loaded := map[string]string{"device-id": deviceN(3).String(), "pubkey": string(keyN(t, 3).PEM()), "state": state}
		if state == "" {
			delete(loaded, "state")
		}
		b.set(t, loaded)
		if _, err := r.ChangeState(t.Context(), deviceN(3), changeN(1, Hold, 0)); !errors.Is(err, ErrUnsigned) {
			t.Errorf("an item that no station wrote, state %q: got %v, want ErrUnsigned", state, err)
		}
		if diff := cmp.Diff(loaded, b.items(t)[deviceN(3).String()]); diff != "" {
			t.Errorf("it was changed (-before +after):\n%s", diff)
		}
	}
	b.remove(t, deviceN(3).String())
	check(t, b)
}

func testChangeAgain(t *testing.T, b backend) {
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	first, second := changeN(1, Transfer, 1), changeN(2, Transfer, 2)
	want := []Event{eventOf(first, board.Active, board.Active, 1), eventOf(second, board.Active, board.Active, 2)}
	for _, c := range []Change{first, first, second, first, second} {
		_, err := r.ChangeState(t.Context(), deviceN(1), c)
		must(t, err)
	}
	wantHistory(t, r, deviceN(1), want)
	for name, spoil := range map[string]func(*Change){
		"action": func(c *Change) { c.Action = Hold }, "who": func(c *Change) { c.Who += "x" }, "why": func(c *Change) { c.Why += "x" },
	} {
		c := first
		spoil(&c)
		if _, err := r.ChangeState(t.Context(), deviceN(1), c); !errors.Is(err, ErrChange) {
			t.Errorf("its id with another %s: got %v, want ErrChange", name, err)
		}
	}
	wantHistory(t, r, deviceN(1), want)
	// Without an id, each is a change of its own.
	c := changeN(3, Hold, 0)
	c.ID = ""
	_, err := r.ChangeState(t.Context(), deviceN(1), c)
	must(t, err)
	history, err := r.History(t.Context(), deviceN(1))
	must(t, err)
	last := history[len(history)-1]
	_, err = r.ChangeState(t.Context(), deviceN(1), c)
	wantRefused(t, err, ErrTransition, board.Held, 2, &last)
	check(t, b)
}

// longHistory is one of maxEvents of the largest events.
func longHistory() []Event {
	var events []Event
	for n := range maxEvents {
		c := changeN(n, Transfer, maxEpoch-maxEvents+n)
		c.ID, c.Who, c.Why = fmt.Sprintf("%032d", n), strings.Repeat(`"`, maxWho), strings.Repeat(`"`, maxWhy)
		events = append(events, eventOf(c, board.Active, board.Active, c.Epoch))
	}
	return events
}

func testFullHistory(t *testing.T, b backend) {
	r := b.open(t, "")
	record := recordOf(t, "line3-a", 1, 1)
	record.Facts = map[string]string{}
	for n := range 32 {
		record.Facts[fmt.Sprintf("fact-%02d", n)] = strings.Repeat(`"`, 200)
	}
	must(t, r.Put(t.Context(), seal(t, record)))
	stored := b.items(t)[deviceN(1).String()]
	events := longHistory()
	events = events[:maxEvents-3]
	stored["state-history"], stored["epoch"] = encodeEvents(events), fmt.Sprint(events[len(events)-1].Epoch)
	b.set(t, stored)
	epoch := maxEpoch - 1
	change := func(n int, action Action, from, to board.State) Change {
		t.Helper()
		c := changeN(n, action, 0)
		if action == Transfer {
			c.Epoch = epoch
		}
		_, err := r.ChangeState(t.Context(), deviceN(1), c)
		must(t, err)
		events = append(events, eventOf(c, from, to, epoch))
		return c
	}
	full := func(state board.State, actions ...Action) {
		t.Helper()
		for _, action := range actions {
			_, err := r.ChangeState(t.Context(), deviceN(1), changeN(99, action, maxEpoch))
			wantRefused(t, err, errFull, state, epoch, &events[len(events)-1])
		}
	}
	last := change(1, Transfer, board.Active, board.Active)
	full(board.Active, Hold, Transfer)
	_, err := r.ChangeState(t.Context(), deviceN(1), last) // which is there
	must(t, err)
	// What has to be possible always.
	change(2, Revoke, board.Active, board.Revoked)
	full(board.Revoked, Release)
	change(3, Scrap, board.Revoked, board.Scrapped)
	if len(events) != maxEvents {
		t.Errorf("%d changes, want %d", len(events), maxEvents)
	}
	wantHistory(t, r, deviceN(1), events)
	check(t, b)
}

func testDamagedHistory(t *testing.T, b backend) {
	s, r := sealed(t, 1, 1), b.open(t, "")
	must(t, r.Put(t.Context(), s))
	for n, action := range []Action{Hold, Release, Transfer} {
		_, err := r.ChangeState(t.Context(), deviceN(1), changeN(n, action, n))
		must(t, err)
	}
	good := b.items(t)[deviceN(1).String()]
	var events []map[string]any
	edit := func(n int, name string, value any) string {
		must(t, json.Unmarshal([]byte(good["state-history"]), &events))
		if events[n][name] = value; value == nil {
			delete(events[n], name)
		}
		out, err := json.Marshal(events)
		must(t, err)
		return string(out)
	}
	tooLong := "[" + strings.TrimSuffix(strings.Repeat(strings.Trim(edit(0, "more", nil), "[]")+",", maxEvents/3+1), ",") + "]"
	for name, spoil := range map[string]struct{ attribute, value string }{
		"state of another":        {"state", "held"},
		"epoch of another":        {"epoch", "7"},
		"epoch gone":              {"epoch", ""},
		"epoch negative":          {"epoch", "-1"},
		"epoch a fraction":        {"epoch", "1.5"},
		"epoch huge":              {"epoch", fmt.Sprint(maxEpoch + 1)},
		"history of other things": {"state-history", "[1]"},
		"too long":                {"state-history", tooLong},
		"no id":                   {"state-history", edit(0, "id", nil)},
		"bad id":                  {"state-history", edit(0, "id", "x")},
		"no who":                  {"state-history", edit(0, "who", nil)},
		"empty who":               {"state-history", edit(0, "who", "")},
		"no why":                  {"state-history", edit(0, "why", nil)},
		"unprintable why":         {"state-history", edit(0, "why", "\x1b")},
		"no time":                 {"state-history", edit(0, "at", "2026-11-25")},
		"unknown action":          {"state-history", edit(0, "action", "keep")},
		"unknown from":            {"state-history", edit(0, "from", "Active")},
		"unknown to":              {"state-history", edit(0, "to", "gone")},
		"action leads elsewhere":  {"state-history", edit(0, "to", "revoked")},
		"broken chain":            {"state-history", edit(1, "from", "revoked")},
		"epoch goes back":         {"state-history", edit(0, "epoch", 2)},
		"epoch does not rise":     {"state-history", edit(1, "epoch", 2)},
		"epoch is a text":         {"state-history", edit(0, "epoch", "0")},
		"epoch below 0":           {"state-history", edit(0, "epoch", -1)},
		"unknown field":           {"state-history", edit(0, "more", "x")},
		"who is a number":         {"state-history", edit(0, "who", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			bad := maps.Clone(good)
			if bad[spoil.attribute] = spoil.value; spoil.value == "" {
				delete(bad, spoil.attribute)
			}
			b.set(t, bad)
			_, lookup := r.Lookup(t.Context(), deviceN(1))
			_, history := r.History(t.Context(), deviceN(1))
			_, change := r.ChangeState(t.Context(), deviceN(1), changeN(9, Hold, 0))
			for what, err := range map[string]error{"Lookup": lookup, "History": history, "ChangeState": change, "Put": r.Put(t.Context(), s)} {
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("%s: got %v, want ErrDamaged", what, err)
				}
			}
			if diff := cmp.Diff(bad, b.items(t)[deviceN(1).String()]); diff != "" {
				t.Errorf("it was changed (-before +after):\n%s", diff)
			}
		})
	}
	b.set(t, good)
	check(t, b)
}

// testHistoryGolden pins names, forms and bytes of what a change adds.
func testHistoryGolden(t *testing.T, b backend) {
	const name = "testdata/item-history.json"
	r := b.open(t, "")
	must(t, r.Put(t.Context(), sealed(t, 0, 0)))
	for n, action := range []Action{Hold, Release, Transfer} {
		_, err := r.ChangeState(t.Context(), deviceN(0), changeN(n, action, n))
		must(t, err)
	}
	if d, ok := b.(*dirStore); ok {
		got, err := os.ReadFile(d.file(deviceN(0).String()))
		must(t, err)
		if *update {
			must(t, os.WriteFile(name, got, 0o644))
		}
		want, err := os.ReadFile(name)
		must(t, err)
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	golden, err := os.ReadFile(name)
	must(t, err)
	want := attributesOf(t, golden)
	if b.bucket() != "" {
		want["pubkey-bucket"] = b.bucket()
	}
	if diff := cmp.Diff(want, b.items(t)[deviceN(0).String()]); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
	check(t, b)
}

// raceChanges lets everyone change at once. Errors that pass are tried again.
func raceChanges(t *testing.T, b backend, changes []Change) []error {
	t.Helper()
	verdicts := make([]error, len(changes))
	var group sync.WaitGroup
	for n, c := range changes {
		r := b.open(t, "")
		group.Go(func() {
			for range 100 {
				_, verdicts[n] = r.ChangeState(context.Background(), deviceN(1), c)
				if _, refused := errors.AsType[*Refused](verdicts[n]); verdicts[n] == nil || refused {
					return
				}
			}
		})
	}
	group.Wait()
	return verdicts
}

func testRaceOperators(t *testing.T, b backend) {
	must(t, b.open(t, "").Put(t.Context(), sealed(t, 1, 1)))
	var changes []Change
	for n := range racers {
		changes = append(changes, changeN(n, Hold, 0))
	}
	verdicts := raceChanges(t, b, changes)
	winner := slices.Index(verdicts, nil)
	if winner < 0 {
		t.Fatalf("nobody won: %v", errors.Join(verdicts...))
	}
	won := eventOf(changes[winner], board.Active, board.Held, 0)
	for n, err := range verdicts {
		if n == winner {
			continue
		}
		kind := ErrTransition
		if errors.Is(err, ErrMeanwhile) {
			kind = ErrMeanwhile
		}
		wantRefused(t, err, kind, board.Held, 0, &won)
	}
	wantHistory(t, b.open(t, ""), deviceN(1), []Event{won})
	check(t, b)
}

// Each that is told that its change was made finds it in the history, and
// nobody else does.
func testRaceTransfers(t *testing.T, b backend) {
	must(t, b.open(t, "").Put(t.Context(), sealed(t, 1, 1)))
	var changes []Change
	for n := range racers {
		changes = append(changes, changeN(n, Transfer, n+1))
	}
	verdicts := raceChanges(t, b, changes)
	history, err := b.open(t, "").History(t.Context(), deviceN(1))
	must(t, err)
	for n, err := range verdicts {
		there := slices.ContainsFunc(history, func(e Event) bool { return e.ID == changes[n].ID })
		if there != (err == nil) {
			t.Errorf("%d: it is there: %v, and the verdict was %v", n, there, err)
		}
	}
	if len(history) == 0 {
		t.Error("nobody won")
	}
	check(t, b)
}

func TestHistoryLength(t *testing.T) {
	if _, err := parseEvents([]byte("[]")); err == nil {
		t.Error("a file may hold an empty history")
	}
	if _, err := eventsFromDynamo(&types.AttributeValueMemberL{}); err == nil {
		t.Error("an item of DynamoDB may hold an empty history")
	}
	events := longHistory()
	if _, err := parseEvents([]byte(encodeEvents(events))); err != nil {
		t.Error(err)
	}
	last := events[maxEvents-1]
	last.Epoch++
	if _, err := parseEvents([]byte(encodeEvents(append(events, last)))); err == nil || !strings.Contains(err.Error(), "257 changes, want 1 to 256") {
		t.Errorf("got %v, want a refusal", err)
	}
}

// What is read as a history encodes and reads back to the same, in both
// encodings.
func FuzzEvents(f *testing.F) {
	golden, err := os.ReadFile("testdata/item-history.json")
	must(f, err)
	var object map[string]json.RawMessage
	must(f, json.Unmarshal(golden, &object))
	f.Add([]byte(object["state-history"]))
	f.Add([]byte(`[{}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		events, err := parseEvents(data)
		if err != nil {
			return
		}
		text := encodeEvents(events)
		again, err := parseEvents([]byte(text))
		must(t, err)
		if diff := cmp.Diff(events, again); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
		stored := (&item{history: text}).dynamo()
		read, err := itemFromDynamo(deviceN(1), stored)
		must(t, err)
		if read.history != text {
			t.Errorf("DynamoDB: got %s, want %s", read.history, text)
		}
	})
}
