package cloud

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func accepted(t *testing.T, r registry, origin string) string {
	t.Helper()
	text, err := whole(func() ([]byte, error) { return r.AcceptedCheckpoint(t.Context(), origin) })
	must(t, err)
	return string(text)
}

// The accepted checkpoint of a station moves forward only, and only from the
// one that its writer has read.
func testAcceptedCheckpoint(t *testing.T, b backend) {
	r := b.open(t, "")
	if got := accepted(t, r, line3); got != "" {
		t.Errorf("a checkpoint of nothing: %q", got)
	}
	c := func(size uint64, root byte) []byte { return checkpointOf(t, line3, size, root, 1) }
	for _, move := range []struct {
		name     string
		from, to []byte
		err      error // errors.ErrUnsupported: any
		then     []byte
	}{
		{"the first of another", nil, checkpointOf(t, "widgiot/line4", 10, 'A', 1), errors.ErrUnsupported, nil},
		{"nonsense", nil, []byte("10"), errors.ErrUnsupported, nil},
		{"from one that is not there", c(5, 'A'), c(10, 'A'), ErrMoved, nil},
		{"the first", nil, c(10, 'A'), nil, c(10, 'A')},
		{"the first, again", nil, c(10, 'A'), nil, c(10, 'A')},
		{"another first", nil, c(11, 'A'), ErrMoved, c(10, 'A')},
		{"another root", c(10, 'B'), c(20, 'B'), ErrMoved, c(10, 'A')},
		{"the same size", c(10, 'A'), c(10, 'B'), errors.ErrUnsupported, c(10, 'A')},
		{"back", c(10, 'A'), c(9, 'A'), errors.ErrUnsupported, c(10, 'A')},
		{"forward", c(10, 'A'), c(20, 'A'), nil, c(20, 'A')},
		{"forward, again", c(10, 'A'), c(20, 'A'), nil, c(20, 'A')},
		{"forward from the one before", c(10, 'A'), c(30, 'A'), ErrMoved, c(20, 'A')},
		{"further", c(20, 'A'), c(1<<62, 'A'), nil, c(1<<62, 'A')},
	} {
		err := r.MoveCheckpoint(t.Context(), line3, move.from, move.to)
		if move.err == errors.ErrUnsupported && (err == nil || errors.Is(err, ErrMoved)) || move.err != errors.ErrUnsupported && !errors.Is(err, move.err) {
			t.Errorf("%s: got %v, want %v", move.name, err, move.err)
		}
		if got := accepted(t, b.open(t, ""), line3); got != string(move.then) {
			t.Errorf("%s: there is %q, want %q", move.name, got, move.then)
		}
	}
	must(t, r.MoveCheckpoint(t.Context(), "widgiot/line3", nil, checkpointOf(t, "widgiot/line3", 1, 'A', 1)))
	if got := accepted(t, r, line3); got != string(c(1<<62, 'A')) {
		t.Errorf("after another station's: %q", got)
	}
	for _, origin := range []string{"", "widgiot", "widgiot/", "widgiot/../items", "widgiot/a/b", "widgiot/.new"} {
		if _, err := r.AcceptedCheckpoint(t.Context(), origin); err == nil {
			t.Errorf("station %q has an accepted checkpoint", origin)
		}
		if err := r.MoveCheckpoint(t.Context(), origin, nil, checkpointOf(t, line3, 1, 'A', 1)); err == nil {
			t.Errorf("station %q has moved a checkpoint", origin)
		}
	}
	// Who lists devices and keys meets none of it.
	must(t, r.Put(t.Context(), sealed(t, 1, 1)))
	devices := 0
	for e, err := range r.Enrolments(t.Context()) {
		must(t, err)
		if devices++; e.Device != deviceN(1) {
			t.Errorf("an enrolment of %s", e.Device)
		}
	}
	guards := 0
	for _, err := range r.Guards(t.Context()) {
		must(t, err)
		guards++
	}
	items, err := whole(func() ([]LegacyItem, error) { return r.LegacyItems(t.Context()) })
	must(t, err)
	if devices != 1 || guards != 1 || len(items) != 1 {
		t.Errorf("%d devices, %d guards, %d items", devices, guards, len(items))
	}
}

// Of machines that move a checkpoint at once, one does.
func testAcceptedRace(t *testing.T, b backend) {
	before := []byte(nil)
	for round := range uint64(5) {
		const machines = 4
		var results [machines]error
		var group sync.WaitGroup
		to := func(n int) []byte { return checkpointOf(t, line3, 10*(round+1)+uint64(n), byte('A'+n), 1) }
		for n := range results {
			r, next := b.open(t, ""), to(n)
			group.Go(func() { results[n] = r.MoveCheckpoint(t.Context(), line3, before, next) })
		}
		group.Wait()
		winner := -1
		for n, err := range results {
			switch {
			case err == nil && winner < 0:
				winner = n
			case err == nil:
				t.Errorf("round %d: %d and %d have both moved it", round, winner, n)
			case !errors.Is(err, ErrMoved):
				t.Errorf("round %d, machine %d: %v", round, n, err)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody has moved it", round)
		}
		if before = to(winner); accepted(t, b.open(t, ""), line3) != string(before) {
			t.Errorf("round %d: what is there is not the winner's", round)
		}
	}
}

// Each call fails in each way; the same call again brings it to its end.
func TestAcceptedFaults(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		r := once(b.open(t, "").(*AWS))
		var before []byte
		size := uint64(0)
		for _, operation := range []string{"PutItem", "GetItem"} {
			for f, want := range map[fate]string{
				notApplied: "no answer", lostAnswer: "no answer", serverFault: "fault of its own", serverLies: "fault of its own",
				throttled: "slow down", denied: "allow it in the IAM role", cutAnswer: "", emptyAnswer: "",
			} {
				size++
				next := checkpointOf(t, line3, size, 'A', 1)
				b.dynamo.lose(operation, f, -1)
				err := r.MoveCheckpoint(t.Context(), line3, before, next)
				b.dynamo.decide(nil)
				name := fmt.Sprintf("%s, fate %d", operation, f)
				if f != cutAnswer && f != emptyAnswer && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: got %v, want %q", name, err, want)
				}
				if errors.Is(err, ErrMoved) && f != emptyAnswer {
					t.Errorf("%s: got a verdict: %v", name, err)
				}
				if err == nil && accepted(t, r, line3) != string(next) {
					t.Errorf("%s: it is said to be there, and is not", name)
				}
				if err := r.MoveCheckpoint(t.Context(), line3, before, next); err != nil {
					t.Errorf("%s, again: %v", name, err)
				}
				before = next
			}
		}
	})
}

// A crash after any step leaves the one checkpoint or the other.
func TestDirAcceptedCrash(t *testing.T) {
	d := newDirStore(t).openDir(t, "")
	before, next := checkpointOf(t, line3, 1, 'A', 1), checkpointOf(t, line3, 2, 'A', 1)
	must(t, d.MoveCheckpoint(t.Context(), line3, nil, before))
	for step := 0; ; step++ {
		cutAt(d, step)
		err := d.MoveCheckpoint(t.Context(), line3, before, next)
		d.cut = nil
		got := accepted(t, d, line3)
		if got != string(before) && got != string(next) {
			t.Fatalf("after step %d: %q", step, got)
		}
		must(t, d.MoveCheckpoint(t.Context(), line3, before, next))
		if accepted(t, d, line3) != string(next) {
			t.Errorf("after step %d it cannot be moved", step)
		}
		if err == nil {
			if step == 0 {
				t.Error("nothing was cut off")
			}
			return
		}
		before, next = next, checkpointOf(t, line3, uint64(step+3), 'A', 1)
	}
}
