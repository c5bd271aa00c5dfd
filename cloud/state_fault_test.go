package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"secretfree/station/board"
)

// TestChangeLostAnswers fails each remote call of a change both ways. Lost
// once, it is settled within the call. Lost for its whole time, it ends with an
// error that passes, and the same change later is made, and made once.
func TestChangeLostAnswers(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		n := 0
		for _, operation := range []string{"GetItem", "UpdateItem"} {
			for kind, kindName := range map[fate]string{notApplied: "not applied", lostAnswer: "answer lost"} {
				for times, timesName := range map[int]string{1: "once", -1: "for a while"} {
					t.Run(operation+"/"+kindName+"/"+timesName, func(t *testing.T) {
						n++
						r, c := b.open(t, ""), changeN(n, Transfer, 1)
						must(t, r.Put(t.Context(), sealed(t, n, n)))
						before := b.dynamo.count(operation)
						b.dynamo.lose(operation, kind, times)
						_, err := r.ChangeState(t.Context(), deviceN(n), c)
						b.dynamo.decide(nil)
						if b.dynamo.count(operation) == before {
							t.Fatal("the call was not made")
						}
						done := times == 1 || operation == "UpdateItem" && kind == lostAnswer // which is read back
						if done {
							must(t, err)
						} else if _, refused := errors.AsType[*Refused](err); err == nil || refused || !strings.Contains(err.Error(), "no answer from AWS") {
							t.Errorf("got %v, want an error that passes", err)
						}
						if history, err := r.History(t.Context(), deviceN(n)); err != nil || (len(history) == 1) != done {
							t.Errorf("the history is %v, %v; want the change there: %v", history, err, done)
						}
						e, err := r.ChangeState(t.Context(), deviceN(n), c)
						if err != nil || e.Epoch != 1 {
							t.Errorf("the same again: %+v, %v", e, err)
						}
						wantHistory(t, r, deviceN(n), []Event{eventOf(c, board.Active, board.Active, 1)})
					})
				}
			}
		}
		check(t, b)
	})
}

// Neither the answer of the write nor what it did is known; before the same
// change comes again, others are made.
func TestChangeLostThenOthers(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		r, c := b.open(t, ""), changeN(1, Hold, 0)
		must(t, r.Put(t.Context(), sealed(t, 1, 1)))
		reads := 0
		b.dynamo.decide(func(r *http.Request) fate {
			if operation(r) == "GetItem" {
				if reads++; reads == 1 {
					return passed
				}
			}
			return lostAnswer
		})
		if _, err := r.ChangeState(t.Context(), deviceN(1), c); err == nil || !strings.Contains(err.Error(), "no answer from AWS") {
			t.Fatalf("got %v, want a lost answer", err)
		}
		b.dynamo.decide(nil)
		release := changeN(2, Release, 0)
		_, err := r.ChangeState(t.Context(), deviceN(1), release)
		must(t, err)
		e, err := r.ChangeState(t.Context(), deviceN(1), c)
		if err != nil || e.State != board.Active {
			t.Errorf("the first change again: %s, %v; want what is there now", e.State, err)
		}
		wantHistory(t, r, deviceN(1), []Event{eventOf(c, board.Active, board.Held, 0), eventOf(release, board.Held, board.Active, 0)})
		check(t, b)
	})
}

// Between reading and writing, somebody else was there.
func TestChangeMeanwhile(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		for n, other := range []struct {
			name string
			do   func(device board.DeviceID)
			want func(t *testing.T, device board.DeviceID, err error)
		}{
			{"a change that leaves the state", func(device board.DeviceID) {
				_, err := b.raw.ChangeState(t.Context(), device, changeN(100, Transfer, 1))
				must(t, err)
			}, func(t *testing.T, _ board.DeviceID, err error) {
				last := eventOf(changeN(100, Transfer, 1), board.Active, board.Active, 1)
				wantRefused(t, err, ErrMeanwhile, board.Active, 1, &last)
			}},
			{"changes that lead back", func(device board.DeviceID) {
				_, err := b.raw.ChangeState(t.Context(), device, changeN(100, Hold, 0))
				must(t, err)
				_, err = b.raw.ChangeState(t.Context(), device, changeN(101, Release, 0))
				must(t, err)
			}, func(t *testing.T, _ board.DeviceID, err error) {
				last := eventOf(changeN(101, Release, 0), board.Held, board.Active, 0)
				wantRefused(t, err, ErrMeanwhile, board.Active, 0, &last)
			}},
			{"a change of the state", func(device board.DeviceID) {
				_, err := b.raw.ChangeState(t.Context(), device, changeN(100, Scrap, 0))
				must(t, err)
			}, func(t *testing.T, _ board.DeviceID, err error) {
				last := eventOf(changeN(100, Scrap, 0), board.Active, board.Scrapped, 0)
				wantRefused(t, err, ErrMeanwhile, board.Scrapped, 0, &last)
			}},
			{"another key", func(device board.DeviceID) {
				for id, a := range b.items(t) {
					if id == device.String() || a["device"] == device.String() {
						b.remove(t, id)
					}
				}
				must(t, b.raw.Put(t.Context(), seal(t, recordOf(t, "line4", int(device[15]), 200+int(device[15])))))
			}, func(t *testing.T, _ board.DeviceID, err error) {
				wantRefused(t, err, ErrMeanwhile, board.Active, 0, nil)
			}},
			{"the device is deleted", func(device board.DeviceID) {
				for id, a := range b.items(t) {
					if id == device.String() || a["device"] == device.String() {
						b.remove(t, id)
					}
				}
			}, func(t *testing.T, _ board.DeviceID, err error) {
				if !errors.Is(err, board.ErrNotEnrolled) {
					t.Errorf("got %v, want ErrNotEnrolled", err)
				}
			}},
		} {
			t.Run(other.name, func(t *testing.T) {
				must(t, b.raw.Put(t.Context(), sealed(t, n, n)))
				done := false
				b.dynamo.decide(func(r *http.Request) fate {
					if operation(r) == "UpdateItem" && !done {
						done = true
						other.do(deviceN(n))
					}
					return passed
				})
				_, err := b.open(t, "").ChangeState(t.Context(), deviceN(n), changeN(n, Hold, 0))
				b.dynamo.decide(nil)
				other.want(t, deviceN(n), err)
				if !done {
					t.Error("nothing was written")
				}
			})
		}
		check(t, b)
	})
}

// What AWS refuses is told as such, and nothing is read back.
func TestChangeDenied(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		must(t, b.raw.Put(t.Context(), sealed(t, 1, 1)))
		b.dynamo.lose("UpdateItem", denied, -1)
		_, err := b.open(t, "").ChangeState(t.Context(), deviceN(1), changeN(1, Hold, 0))
		if _, refused := errors.AsType[*Refused](err); err == nil || refused || !strings.Contains(err.Error(), "allow it in the IAM role") {
			t.Errorf("got %v", err)
		}
		b.dynamo.decide(nil)
		wantHistory(t, b.raw, deviceN(1), nil)
		check(t, b)
	})
}

// TestDirChangeCrash breaks a change off after each of its steps. The item is
// whole before and after, and the same change again is made once.
func TestDirChangeCrash(t *testing.T) {
	hold, c := changeN(1, Hold, 0), changeN(2, Release, 0)
	prepared := func(t *testing.T) *dirStore {
		b := newDirStore(t)
		must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)))
		_, err := b.openDir(t, "").ChangeState(t.Context(), deviceN(1), hold)
		must(t, err)
		return b
	}
	d := prepared(t).openDir(t, "")
	whole := cutAt(d, 1<<20)
	_, err := d.ChangeState(t.Context(), deviceN(1), c)
	must(t, err)
	if len(*whole) != 2 {
		t.Fatalf("a change has %d steps, want 2: %q", len(*whole), *whole)
	}
	held, released := eventOf(hold, board.Active, board.Held, 0), eventOf(c, board.Held, board.Active, 0)
	for n, step := range *whole {
		t.Run(filepath.Base(step), func(t *testing.T) {
			b := prepared(t)
			d := b.openDir(t, "")
			cutAt(d, n)
			if _, err := d.ChangeState(t.Context(), deviceN(1), c); !errors.Is(err, errCrash) {
				t.Fatalf("got %v, want the crash", err)
			}
			after := []Event{held}
			if n == 1 {
				after = append(after, released)
			}
			wantHistory(t, b.openDir(t, ""), deviceN(1), after)
			check(t, b)
			// Whatever comes next there.
			must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 2, 2)))
			must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)))
			e, err := b.openDir(t, "").ChangeState(t.Context(), deviceN(1), c)
			if err != nil || e.State != board.Active {
				t.Errorf("the same change again: %s, %v", e.State, err)
			}
			wantHistory(t, b.openDir(t, ""), deviceN(1), []Event{held, released})
			if left, err := filepath.Glob(filepath.Join(b.path, "items", newName+"*")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			tidy(t, b)
			check(t, b)
		})
	}
}

// A Put that a crash broke off is carried on first, so that its device can be
// held.
func TestDirChangeAfterBrokenPut(t *testing.T) {
	n := 0
	for ; ; n++ {
		b := newDirStore(t)
		d := b.openDir(t, "")
		steps := cutAt(d, n)
		if err := d.Put(t.Context(), sealed(t, 1, 1)); err == nil {
			break
		}
		_, err := b.openDir(t, "").ChangeState(t.Context(), deviceN(1), changeN(1, Hold, 0))
		if err != nil && !errors.Is(err, board.ErrNotEnrolled) {
			t.Errorf("after %q: %v", *steps, err)
		}
		must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)))
		e, lookup := b.openDir(t, "").Lookup(t.Context(), deviceN(1))
		if held := err == nil; lookup != nil || (e.State == board.Held) != held {
			t.Errorf("after %q it is %s, %v; held: %v", *steps, e.State, lookup, held)
		}
		tidy(t, b)
		check(t, b)
	}
	if n == 0 {
		t.Error("no Put was broken off")
	}
}

// A crash may bring pending.json back. That brings no former state back, and no
// history goes.
func TestDirChangePendingComesBack(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	must(t, d.Put(t.Context(), sealed(t, 1, 1)))
	pending, err := os.ReadFile(b.file(deviceN(1).String()))
	must(t, err)
	hold, revoke := changeN(1, Hold, 0), changeN(2, Revoke, 0)
	_, err = d.ChangeState(t.Context(), deviceN(1), hold)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(b.path, pendingName), pending, 0o644))
	_, err = d.ChangeState(t.Context(), deviceN(1), revoke)
	must(t, err)
	wantHistory(t, d, deviceN(1), []Event{eventOf(hold, board.Active, board.Held, 0), eventOf(revoke, board.Held, board.Revoked, 0)})
	tidy(t, b)
	check(t, b)
}

// What others wrote into an item stays.
func TestDirChangeKeepsOtherAttributes(t *testing.T) {
	b := newDirStore(t)
	must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)))
	stored := b.items(t)[deviceN(1).String()]
	stored["note"], stored["aws:rep:updateregion"] = "of the <night> shift", "us-east-1"
	b.set(t, stored)
	_, err := b.openDir(t, "").ChangeState(t.Context(), deviceN(1), changeN(1, Hold, 0))
	must(t, err)
	changed := b.items(t)[deviceN(1).String()]
	if changed["state"] != "held" || changed["note"] != stored["note"] || changed["aws:rep:updateregion"] != "us-east-1" {
		t.Errorf("got %v", changed)
	}
	check(t, b)
}

func TestDirChangeFailingDisk(t *testing.T) {
	b := newDirStore(t)
	d := b.openDir(t, "")
	must(t, d.Put(t.Context(), sealed(t, 1, 1)))
	d.cut = func(string) error { return &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC} }
	_, err := d.ChangeState(t.Context(), deviceN(1), changeN(1, Hold, 0))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("got %v", err)
	}
	d.cut = nil
	must(t, os.Rename(b.path, b.path+"-away"))
	if _, err := d.ChangeState(t.Context(), deviceN(1), changeN(1, Hold, 0)); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("the folder is away: got %v", err)
	}
	if _, err := d.History(t.Context(), deviceN(1)); !errors.Is(err, ErrNoRegistry) {
		t.Errorf("the folder is away: the history: got %v", err)
	}
	must(t, os.Rename(b.path+"-away", b.path))
	wantHistory(t, d, deviceN(1), nil)
	check(t, b)
}

const changeEnv = "SECRETFREE_TEST_CHANGES"

// TestDirChangeProcesses lets several processes change one device: what each
// was told of is there, and nothing else.
func TestDirChangeProcesses(t *testing.T) {
	b := newDirStore(t)
	must(t, b.openDir(t, "").Put(t.Context(), sealed(t, 1, 1)))
	var commands []*exec.Cmd
	var outputs []*strings.Builder
	for n := range processes {
		c := exec.Command(os.Args[0], "-test.run=^TestDirChangeProcess$", "-test.v")
		c.Env = append(os.Environ(), changeEnv+"="+b.path, fmt.Sprintf("%s_NUMBER=%d", changeEnv, n))
		out := &strings.Builder{}
		c.Stdout, c.Stderr = out, out
		must(t, c.Start())
		commands, outputs = append(commands, c), append(outputs, out)
	}
	made := 0
	for n, c := range commands {
		if err := c.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", n, err, outputs[n])
		}
		made += strings.Count(outputs[n].String(), "made change")
	}
	history, err := b.openDir(t, "").History(t.Context(), deviceN(1))
	must(t, err)
	if len(history) != made || made == 0 {
		t.Errorf("%d changes, and processes were told of %d", len(history), made)
	}
	tidy(t, b)
	check(t, b)
}

// TestDirChangeProcess is one of the processes of TestDirChangeProcesses, and
// nothing by itself.
func TestDirChangeProcess(t *testing.T) {
	path := os.Getenv(changeEnv)
	if path == "" {
		return
	}
	var number int
	must(t, json.Unmarshal([]byte(os.Getenv(changeEnv+"_NUMBER")), &number))
	d := (&dirStore{path}).openDir(t, "")
	for n := range 20 {
		action := Hold
		if n%2 == 1 {
			action = Release
		}
		_, err := d.ChangeState(t.Context(), deviceN(1), changeN(100*number+n, action, 0))
		if err == nil {
			fmt.Println("made change", n)
		} else if _, refused := errors.AsType[*Refused](err); !refused {
			t.Errorf("change %d: %v", n, err)
		}
	}
}

// testChangeModel makes many changes, old ones again among them, and compares
// each verdict with a plain model. Over AWS every other call loses a request or
// an answer.
func testChangeModel(t *testing.T, b backend) {
	random := rand.New(rand.NewPCG(3, 4))
	r := b.open(t, "")
	const boards = 3
	type device struct {
		state   board.State
		epoch   int
		changes []Change
		events  []Event
	}
	devices := make([]device, boards)
	for n := range devices {
		must(t, r.Put(t.Context(), sealed(t, n, n)))
		devices[n].state = board.Active
	}
	for step := range 120 {
		n := random.IntN(boards)
		d := &devices[n]
		if d.state == board.Scrapped && random.IntN(4) > 0 {
			continue
		}
		action := []Action{Hold, Release, Revoke, Transfer, Hold, Release, Release}[random.IntN(7)]
		if step > 90 && random.IntN(8) == 0 {
			action = Scrap
		}
		c := changeN(step, action, max(0, min(1, random.IntN(4))*(d.epoch+random.IntN(3)-1)))
		again := len(d.changes) > 0 && random.IntN(5) == 0
		if again {
			c = d.changes[random.IntN(len(d.changes))]
		}
		if a, ok := b.(*awsStore); ok && step%2 == 0 {
			a.dynamo.lose([]string{"GetItem", "UpdateItem"}[random.IntN(2)], []fate{notApplied, lostAnswer}[random.IntN(2)], 1)
		}
		e, err := r.ChangeState(t.Context(), deviceN(n), c)
		if a, ok := b.(*awsStore); ok {
			a.dynamo.decide(nil)
		}
		to := map[Action]map[board.State]board.State{
			Hold:     {board.Active: board.Held},
			Release:  {board.Held: board.Active, board.Revoked: board.Active},
			Scrap:    {board.Active: board.Scrapped, board.Held: board.Scrapped, board.Revoked: board.Scrapped},
			Revoke:   {board.Active: board.Revoked, board.Held: board.Revoked},
			Transfer: {board.Active: board.Active},
		}[c.Action][d.state]
		rises := c.Action == Transfer || d.state == board.Revoked && c.Action == Release
		var want error
		switch {
		case again:
		case to == "":
			want = ErrTransition
		case c.Epoch != 0 && c.Epoch < d.epoch, rises && c.Epoch <= d.epoch:
			want = errEpoch
		default:
			epoch := max(d.epoch, c.Epoch)
			d.events = append(d.events, eventOf(c, d.state, to, epoch))
			d.changes = append(d.changes, c)
			d.state, d.epoch = to, epoch
		}
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Fatalf("step %d: %s of device %d, which is %s: got %v, want %v", step, c.Action, n, d.state, err, want)
		}
		if err == nil && (e.State != d.state || e.Epoch != d.epoch) {
			t.Errorf("step %d: it is %s in epoch %d, want %s in %d", step, e.State, e.Epoch, d.state, d.epoch)
		}
		if random.IntN(10) == 0 {
			must(t, r.Put(t.Context(), sealed(t, n, n)))
		}
	}
	made := 0
	for n, d := range devices {
		wantHistory(t, r, deviceN(n), d.events)
		made += len(d.events)
	}
	if made < 20 {
		t.Errorf("only %d changes were made: this looks at nothing", made)
	}
	check(t, b)
}
