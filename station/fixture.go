package station

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"secretfree/uart"
)

const (
	// pollFixture is how often the presence line of a slot is read.
	pollFixture = 100 * time.Millisecond
	// closedReads is how many reads in a row must say that a fixture is closed:
	// a switch bounces.
	closedReads = 2
	// answerLimit is how long a board may take to show itself once the fixture
	// is closed, and after a reset.
	answerLimit = 10 * time.Second
	// What a board says before a reset is dropped until it is silent for
	// resetSilence, for resetDiscard at most.
	resetSilence = 20 * time.Millisecond
	resetDiscard = 200 * time.Millisecond
)

// ErrNoSlot says that there is no slot of a name.
var ErrNoSlot = errors.New("there is no such slot")

// Why ResetSlot did nothing, besides ErrNoSlot.
var (
	ErrNoReset    = errors.New("no reset is configured for this slot")
	ErrPortAbsent = errors.New("the port of this slot is not open")
	// ErrLeakShown: the board in the slot printed a private key, so no reset
	// makes it a good one.
	ErrLeakShown = errors.New("the slot shows a leak of a private key; put the board aside and acknowledge the leak")
	// ErrSlotBusy: a board has one verdict, so its reading is not cut off.
	ErrSlotBusy = errors.New("the slot is busy with a board; try again after its verdict")
)

var (
	errFixtureOpened = errors.New("the fixture was opened")
	errResetAsked    = errors.New("a reset was asked for")
)

// modemInputs is what a connection offers besides uart.Conn if its port has
// modem lines.
type modemInputs interface {
	Modem() (uart.Modem, error)
}

// resetRequest is how ResetSlot reaches the goroutine of a slot. The station's
// mu guards it.
type resetRequest struct {
	serving   bool                    // the slot has an open port, and will come to a wait
	interrupt context.CancelCauseFunc // ends the wait that the slot is in; nil if it is in none
	done      chan error              // gets the result; nil if no reset is asked for
}

// ResetSlot resets the board in a slot with the sequence of its configuration,
// and has it read anew. It returns when the sequence has ended.
func (s *Station) ResetSlot(ctx context.Context, name string) error {
	done, err := s.askReset(name)
	if err != nil {
		return fmt.Errorf("resetting slot %q: %w", name, err)
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("resetting slot %q: %w", name, err)
	}
	return nil
}

func (s *Station) askReset(name string) (<-chan error, error) {
	i := slices.IndexFunc(s.slots, func(c SlotConfig) bool { return c.Name == name })
	if i < 0 {
		return nil, ErrNoSlot
	}
	if s.slots[i].Reset.IsZero() {
		return nil, ErrNoReset
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, now := &s.resets[i], s.states[i]
	switch {
	case now.state == Absent:
		return nil, ErrPortAbsent
	case now.reason == ReasonPrivateKeyLeak: // also without a port: it is shown until it is acknowledged
		return nil, ErrLeakShown
	case !r.serving:
		return nil, ErrPortAbsent
	case r.done != nil, now.state == Reading && !now.searching:
		return nil, ErrSlotBusy
	}
	r.done = make(chan error, 1)
	if r.interrupt != nil { // else the next wait sees it: a verdict is shown a moment before one
		r.interrupt(errResetAsked)
	}
	return r.done, nil
}

// setServing says whether slot i has an open port. Whoever waits for a reset
// without one is answered.
func (s *Station) setServing(i int, serving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.resets[i]
	if r.serving = serving; !serving {
		r.answer(ErrPortAbsent)
	}
}

// answerReset gives the result to whoever asked for a reset, if anybody did.
func (s *Station) answerReset(i int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resets[i].answer(err)
}

func (r *resetRequest) answer(err error) {
	if r.done != nil {
		r.done <- err
		r.done = nil
	}
}

// interruptible runs a wait of slot i, which a reset on demand ends with
// errResetAsked. A result that came first stands, and the reset follows it.
func (s *Station) interruptible(ctx context.Context, i int, wait func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.setInterrupt(i, cancel)
	defer s.setInterrupt(i, nil)
	return wait(ctx)
}

func (s *Station) setInterrupt(i int, cancel context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resets[i].interrupt = cancel
	if cancel != nil && s.resets[i].done != nil {
		cancel(errResetAsked)
	}
}

// reset runs the sequence of slot i. What the board said before that is
// dropped. The error of a board is one that boardReason knows.
func (s *Station) reset(ctx context.Context, i int, conn uart.Conn, line *uart.Line, why string) error {
	outputs, ok := conn.(uart.Outputs)
	if !ok {
		return uart.ErrNoLines
	}
	if _, err := line.Discard(ctx, resetSilence, resetDiscard); err != nil && !errors.Is(err, uart.ErrTimeout) {
		return err
	}
	line.Mark()
	if err := s.slots[i].Reset.Run(ctx, outputs); err != nil {
		return err
	}
	s.log.Info().Str("slot", s.slots[i].Name).Str("why", why).Stringer("sequence", s.slots[i].Reset).Msg("the board was reset")
	return nil
}

// oneBoard brings one board to its verdict, and waits until it is gone. An
// error as readBoard; besides those errResetAsked.
func (s *Station) oneBoard(ctx context.Context, i int, conn uart.Conn, line *uart.Line) error {
	present := ctx
	if !s.slots[i].Present.IsZero() {
		inputs, ok := conn.(modemInputs)
		if !ok {
			return uart.ErrNoLines
		}
		if err := s.interruptible(ctx, i, func(ctx context.Context) error { return s.awaitClosed(ctx, i, inputs) }); err != nil {
			return err
		}
		s.apply(i, event{kind: fixtureClosed}, nil)
		closed, stop := s.whileClosed(ctx, i, inputs)
		defer stop()
		present = closed
	}
	err := s.readBoard(ctx, present, i, conn, line)
	if err == nil {
		err = s.awaitGone(present, i, line)
	}
	if !errors.Is(err, errFixtureOpened) || ctx.Err() != nil {
		return err
	}
	// Nothing of this board stays on the line; it may be printing still.
	_, err = line.Discard(ctx, 10*resetSilence, 10*resetDiscard)
	if reason, ok := boardReason(err); ok && reason == ReasonPrivateKeyLeak {
		s.apply(i, event{kind: boardFailed, reason: reason}, err)
	} else if err != nil && !errors.Is(err, uart.ErrTimeout) {
		return err
	}
	line.Forget()
	return nil
}

// awaitClosed returns when the presence line says that the fixture is closed.
func (s *Station) awaitClosed(ctx context.Context, i int, inputs modemInputs) error {
	for reads := 0; ; {
		m, err := inputs.Modem()
		if err != nil {
			return err
		}
		if reads++; !s.slots[i].Present.In(m) {
			reads = 0
		}
		if reads >= closedReads {
			return nil
		}
		if sleepUntilPoll(ctx); ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// whileClosed returns a context that ends when the fixture is opened, with
// errFixtureOpened, or when its line cannot be read, with that error. The
// caller calls stop, which waits for the end of the watch.
func (s *Station) whileClosed(ctx context.Context, i int, inputs modemInputs) (closed context.Context, stop func()) {
	closed, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if sleepUntilPoll(closed); closed.Err() != nil {
				return
			}
			m, err := inputs.Modem()
			if err == nil && !s.slots[i].Present.In(m) {
				err = errFixtureOpened
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	}()
	return closed, func() { cancel(nil); <-ended }
}

// sleepUntilPoll waits for the next beat of a clock that all slots share, so
// that many slots wake the processor once.
func sleepUntilPoll(ctx context.Context) {
	now := time.Now()
	sleep(ctx, now.Truncate(pollFixture).Add(pollFixture).Sub(now))
}

// resetBudget is which resets a board has had: one when it needs it, and one
// more before a verdict of time-out.
type resetBudget struct{ needed, silent bool }

// allow reports whether a board that failed for this reason is reset and read
// once more, and counts it.
func (b *resetBudget) allow(reason Reason) bool {
	switch {
	case reason == ReasonNeedsReset && !b.needed:
		b.needed = true
	case reason == ReasonTimeout && !b.silent:
		b.silent = true
	default:
		return false
	}
	return true
}

// none reports whether the board was not reset so far.
func (b *resetBudget) none() bool { return !b.needed && !b.silent }
