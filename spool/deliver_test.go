package spool

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/station/board"
)

// memorySink is a registry that keeps to Sink's contract, and complains when the spool does not.
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
		f := s.Record.Fingerprint()
		if known, ok := m.have[s.Record.Device]; ok && known != f {
			return &board.Conflict{Kind: board.ErrDeviceConflict, Device: s.Record.Device, Key: f, KnownKey: known}
		} else if !ok {
			m.order = append(m.order, s.Record.Device)
		}
		m.have[s.Record.Device] = f
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
		if _, err := VerifyDir(k.dir, k.id.Verifier); err != nil {
			t.Error(err)
		}
		if report, err := VerifyDir(k.dir, k.id.Verifier); err != nil || report.Signed != report.Entries {
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

// An outage: tries become rare and never end, new records do not make them more frequent, the state says why, and when it
// is over all is delivered.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.sink.set(func(board.Sealed, int) (bool, error) { return false, errAway })
		stop := k.run()
		for range 8 * 60 {
			k.mustAppend()
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		s := k.spool.Stats()
		if s.Pending != 480 || s.Dead != 0 || s.LastError == "" || time.Since(s.Oldest) < 7*time.Hour {
			t.Errorf("stats %+v", s)
		}
		// Once a minute at the most, in bursts of three.
		if k.sink.tries < 8*60 || k.sink.tries > 3*8*60*2+60 {
			t.Errorf("%d tries in 8 hours", k.sink.tries)
		}
		k.sink.set(nil)
		time.Sleep(2 * time.Minute)
		stop()
		if s := k.spool.Stats(); s.Pending != 0 || s.LastError != "" || len(k.sink.have) != 480 {
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
			if s.Record.Device == bad.Device {
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

// Only a verdict that can never change sets a record aside, with its reason; the rest goes on.
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
			err := verdicts[s.Record.Device]
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
