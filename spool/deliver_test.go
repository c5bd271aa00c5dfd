package spool

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// memorySink is a registry that keeps to Sink's contract, and complains when
// the spool does not.
type memorySink struct {
	mu    sync.Mutex
	busy  bool
	have  map[board.DeviceID]board.Fingerprint
	order []board.DeviceID
	tries int
	fault func(s board.Sealed, try int) (apply bool, err error)
}

func newMemorySink() *memorySink {
	return &memorySink{have: map[board.DeviceID]board.Fingerprint{}}
}

func (m *memorySink) Put(ctx context.Context, s board.Sealed) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		panic("two calls at once")
	}
	m.tries++
	apply, err := true, error(nil)
	if m.fault != nil {
		apply, err = m.fault(s, m.tries)
	}
	if apply {
		f := s.Record().Fingerprint()
		if known, ok := m.have[s.Record().Device]; ok && known != f {
			return &board.Conflict{Kind: board.ErrDeviceConflict, Device: s.Record().Device, Key: f, KnownKey: known}
		} else if !ok {
			m.order = append(m.order, s.Record().Device)
		}
		m.have[s.Record().Device] = f
	}
	return err
}

func (m *memorySink) set(fault func(board.Sealed, int) (bool, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// run starts delivery and returns how to end it.
func (k *kit) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := k.spool
	go func() { ended <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			k.t.Errorf("Run: %v", err)
		}
	}
}

var errAway = errors.New("the registry is away")

func TestDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		stop := k.run()
		var want []board.DeviceID
		for range 200 {
			want = append(want, k.mustAppend().Device)
		}
		synctest.Wait()
		stop()
		if s := k.spool.Stats(); s.Pending != 0 || s.Delivered != 200 || s.LastError != "" {
			t.Errorf("stats %+v", s)
		}
		for i, device := range k.sink.order {
			if device != want[i] {
				t.Fatalf("number %d is out of order", i)
			}
			if delivered, err := k.spool.Delivered(device); err != nil || !delivered {
				t.Fatalf("Delivered: %v, %v", delivered, err)
			}
		}
		// Nothing is delivered again after a restart.
		tries := k.sink.tries
		k.reopen()
		stop = k.run()
		synctest.Wait()
		stop()
		if k.sink.tries != tries {
			t.Errorf("%d tries after a restart with nothing due", k.sink.tries-tries)
		}
		if _, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil {
			t.Error(err)
		}
		if report, err := journal.VerifyDir(k.dir, k.id.Verifier); err != nil || report.Signed != report.Entries {
			t.Errorf("Run left %d of %d entries unsigned (%v)", report.Entries-report.Signed, report.Entries, err)
		}
	})
}

// Each try fails both ways: not applied, and applied with the answer lost.
func TestDeliveryFaults(t *testing.T) {
	for name, applied := range map[string]bool{"not applied": false, "applied, the answer lost": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKit(t)
				k.sink.set(func(_ board.Sealed, try int) (bool, error) {
					if try%2 == 1 {
						return applied, errAway
					}
					return true, nil
				})
				stop := k.run()
				for range 20 {
					k.mustAppend()
				}
				time.Sleep(10 * time.Minute)
				stop()
				if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 0 || len(k.sink.have) != 20 {
					t.Errorf("stats %+v, %d in the registry", s, len(k.sink.have))
				}
			})
		})
	}
}

// An outage: tries become rare and never end, new records do not make them more
// frequent, the state says why, and when it is over all is delivered.
func TestOutage(t *testing.T) {
	hours := 8
	if testing.Short() { // the tries are at their rarest after some minutes
		hours = 2
	}
	minutes := hours * 60
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.sink.set(func(board.Sealed, int) (bool, error) { return false, errAway })
		stop := k.run()
		for range minutes {
			k.mustAppend()
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		s := k.spool.Stats()
		if s.Pending != minutes || s.Dead != 0 || s.LastError == "" || time.Since(s.Oldest) < time.Duration(hours-1)*time.Hour {
			t.Errorf("stats %+v", s)
		}
		// Every half a minute at the most, in bursts of five.
		if k.sink.tries < minutes || k.sink.tries > 5*minutes*2+60 {
			t.Errorf("%d tries in %d hours", k.sink.tries, hours)
		}
		k.sink.set(nil)
		time.Sleep(2 * time.Minute)
		stop()
		if s := k.spool.Stats(); s.Pending != 0 || s.LastError != "" || len(k.sink.have) != minutes {
			t.Errorf("after the outage: %+v, %d in the registry", s, len(k.sink.have))
		}
	})
}

// One record that never gets through does not keep the others waiting.
func TestOneBadRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		bad := k.mustAppend()
		k.sink.set(func(s board.Sealed, _ int) (bool, error) {
			if s.Record().Device == bad.Device {
				return false, errAway
			}
			return true, nil
		})
		for range 150 {
			k.mustAppend()
		}
		stop := k.run()
		time.Sleep(10 * time.Second)
		if s := k.spool.Stats(); s.Pending != 1 || s.Dead != 0 {
			t.Errorf("stats %+v", s)
		}
		stop()
	})
}

// Only a verdict that can never change sets a record aside, with its reason;
// the rest goes on.
func TestDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		verdicts := map[board.DeviceID]error{
			k.mustAppend().Device: &board.Conflict{Kind: board.ErrKeyConflict},
			k.mustAppend().Device: board.ErrRecord,
			k.mustAppend().Device: board.ErrEnvelope,
			k.mustAppend().Device: board.ErrUntrusted,
		}
		good := k.mustAppend()
		k.sink.set(func(s board.Sealed, _ int) (bool, error) {
			err := verdicts[s.Record().Device]
			return err == nil, err
		})
		stop := k.run()
		synctest.Wait()
		stop()
		k.reopen()
		if s := k.spool.Stats(); s.Pending != 0 || s.Dead != len(verdicts) {
			t.Errorf("stats %+v", s)
		}
		letters, err := k.spool.DeadLetters()
		if err != nil || len(letters) != len(verdicts) {
			t.Fatalf("dead letters %v, %v", letters, err)
		}
		for _, d := range letters {
			if verdicts[d.Device] == nil || d.Reason != verdicts[d.Device].Error() || d.Time.IsZero() {
				t.Errorf("dead letter %+v", d)
			}
			if delivered, err := k.spool.Delivered(d.Device); err != nil || delivered {
				t.Errorf("a dead letter is delivered: %v, %v", delivered, err)
			}
		}
		if delivered, err := k.spool.Delivered(good.Device); err != nil || !delivered {
			t.Errorf("the good one is not delivered: %v, %v", delivered, err)
		}
	})
}

// A Put that hangs is given up, and the record stays.
func TestHangingSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.mustAppend()
		k.spool.cfg.Sink = hanging{}
		stop := k.run()
		time.Sleep(90 * time.Second)
		if s := k.spool.Stats(); s.Pending != 1 || s.LastError == "" {
			t.Errorf("stats %+v", s)
		}
		start := time.Now()
		stop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("Run took %v to end", took)
		}
	})
}

type hanging struct{}

func (hanging) Put(ctx context.Context, _ board.Sealed) error {
	<-ctx.Done()
	return ctx.Err()
}

// batchSink is a memorySink that takes many at once.
type batchSink struct {
	*memorySink
	sizes []int
	short bool
}

func (b *batchSink) PutBatch(ctx context.Context, records []board.Sealed) []error {
	b.sizes = append(b.sizes, len(records))
	var errs []error
	for _, r := range records {
		errs = append(errs, b.Put(ctx, r))
	}
	if b.short {
		return errs[1:]
	}
	return errs
}

// A registry that takes batches gets them, in order, and answers for each
// record.
func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		sink := &batchSink{memorySink: k.sink}
		k.spool.cfg.Sink = sink
		var want []board.DeviceID
		for range 150 {
			want = append(want, k.mustAppend().Device)
		}
		bad, dead := want[3], want[5]
		k.sink.set(func(s board.Sealed, _ int) (bool, error) {
			switch s.Record().Device {
			case bad:
				return false, errAway
			case dead:
				return false, board.ErrUntrusted
			}
			return true, nil
		})
		stop := k.run()
		time.Sleep(10 * time.Second)
		if s := k.spool.Stats(); s.Pending != 1 || s.Dead != 1 || s.Delivered != 148 || !strings.Contains(s.LastError, bad.String()) {
			t.Errorf("stats %+v", s)
		}
		if len(sink.sizes) < 3 || sink.sizes[0] != 64 || sink.sizes[1] != 64 {
			t.Errorf("batches of %v", sink.sizes)
		}
		waiting := k.spool.Deferred()
		if len(waiting) != 1 || waiting[0].Device != bad || waiting[0].Seq != 4 || waiting[0].Reason == "" || !waiting[0].Next.After(time.Now()) {
			t.Errorf("deferred: %+v", waiting)
		}
		k.sink.set(nil)
		time.Sleep(2 * time.Minute)
		stop()
		if s := k.spool.Stats(); s.Pending != 0 || s.LastError != "" || len(k.spool.Deferred()) != 0 {
			t.Errorf("at the end: %+v", s)
		}
		for i, device := range slices.DeleteFunc(slices.Clone(want), func(d board.DeviceID) bool { return d == bad || d == dead }) {
			if k.sink.order[i] != device {
				t.Fatalf("number %d is out of order", i)
			}
		}
	})
}

// A registry that does not answer for each record has confirmed none.
func TestBatchAnswersShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.spool.cfg.Sink = &batchSink{memorySink: k.sink, short: true}
		for range 10 {
			k.mustAppend()
		}
		stop := k.run()
		time.Sleep(time.Minute)
		stop()
		if s := k.spool.Stats(); s.Pending != 10 || !strings.Contains(s.LastError, "9 of 10") {
			t.Errorf("stats %+v", s)
		}
	})
}

// As many bad records as there may be in a row: the others go out all the same.
func TestManyBadRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		bad := map[board.DeviceID]bool{}
		for range 2 * outageAfter {
			bad[k.mustAppend().Device] = true
		}
		for range 100 {
			k.mustAppend()
		}
		k.sink.set(func(s board.Sealed, _ int) (bool, error) {
			if bad[s.Record().Device] {
				return false, errAway
			}
			return true, nil
		})
		stop := k.run()
		time.Sleep(5 * time.Second)
		if s := k.spool.Stats(); s.Pending != len(bad) || s.Dead != 0 {
			t.Errorf("stats %+v", s)
		}
		time.Sleep(2 * time.Hour)
		k.mustAppend()
		time.Sleep(2 * time.Minute)
		stop()
		if s := k.spool.Stats(); s.Pending != len(bad) {
			t.Errorf("a record that came later: %+v", s)
		}
	})
}

// After an outage records go out in the order in which they came.
func TestOrderAfterOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.sink.set(func(board.Sealed, int) (bool, error) { return false, errAway })
		stop := k.run()
		var want []board.DeviceID
		for range 30 {
			want = append(want, k.mustAppend().Device)
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Minute)
		k.sink.set(nil)
		time.Sleep(2 * time.Minute)
		stop()
		if !slices.Equal(k.sink.order, want) {
			t.Errorf("%d of %d delivered, not in order", len(k.sink.order), len(want))
		}
	})
}

// Someone acts on a dead letter: it is exported with its evidence, and
// delivered once more.
func TestRequeue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		r := k.mustAppend()
		other := newRecord(t)
		verdict := &board.Conflict{Kind: board.ErrKeyConflict, Device: r.Device, Key: r.Fingerprint(), KnownDevice: other.Device, KnownKey: r.Fingerprint(), KnownBy: "widgiot/line9"}
		k.sink.set(func(board.Sealed, int) (bool, error) { return false, verdict })
		stop := k.run()
		synctest.Wait()
		letters, err := k.spool.DeadLetters()
		if err != nil || len(letters) != 1 {
			t.Fatalf("%v, %v", letters, err)
		}
		known := journal.Known{Device: other.Device.String(), Key: r.Fingerprint().String(), By: "widgiot/line9"}
		if letters[0].Known == nil || *letters[0].Known != known {
			t.Errorf("known %+v, want %+v", letters[0].Known, known)
		}
		evidence, err := k.spool.Export(letters[0].Seq)
		if err != nil {
			t.Fatal(err)
		}
		e, err := journal.ParseEntry(evidence.Entry)
		if err != nil {
			t.Fatal(err)
		}
		if sealed, err := board.OpenEnvelope(e.Record(), k.id.Verifier); err != nil || sealed.Record().Device != r.Device {
			t.Errorf("the evidence holds %+v, %v", sealed.Record(), err)
		}
		if err := k.spool.Requeue(letters[0].Seq); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 1 {
			t.Errorf("with the same verdict: %+v", s)
		}
		k.sink.set(nil)
		if err := k.spool.Requeue(letters[0].Seq); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stop()
		if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 0 || s.Delivered != 1 {
			t.Errorf("with another: %+v", s)
		}
		if err := k.spool.Requeue(letters[0].Seq); !errors.Is(err, ErrNoDeadLetter) {
			t.Errorf("once more: %v", err)
		}
		if _, err := k.spool.Export(99); !errors.Is(err, ErrNoDeadLetter) {
			t.Errorf("an unknown one: %v", err)
		}
	})
}

// A dead letter whose entry moved in its file is found, and one whose entry is
// damaged is not delivered.
func TestRequeueOverDamage(t *testing.T) {
	k, _ := smallKit(t, 4)
	k.damaged = true
	k.sink.set(func(board.Sealed, int) (bool, error) { return false, board.ErrUntrusted })
	k.deliver()
	for range 10 {
		k.mustAppend()
	}
	k.spool.Close()
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { return dropLine(b, 2) })
	k.mustOpen()
	if err := k.spool.Requeue(2); err == nil || !strings.Contains(err.Error(), "repair") {
		t.Errorf("a damaged one: %v", err)
	}
	if err := k.spool.Requeue(3); err != nil {
		t.Errorf("one that moved: %v", err)
	}
	k.sink.set(nil)
	k.deliver()
	if s := k.spool.Stats(); s.Pending != 0 || s.Dead != 3 {
		t.Errorf("stats %+v", s)
	}
}
