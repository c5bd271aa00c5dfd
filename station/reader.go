package station

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"secretfree/station/board"
	"secretfree/uart"
)

const (
	lookForPort = 5 * time.Second        // then a port that is not there is shown to be absent, whatever was wrong before
	retryPort   = 2 * time.Second        // after a port could not be opened
	retryLost   = 250 * time.Millisecond // after a port was lost, or was not there
	retryReplug = 2 * time.Second        // after a port was lost, if its node is another one since
	// replugLosses is what a port counts as after that: one that comes and goes
	// is tried every retryReplug.
	replugLosses = 4
	lookForNode  = 250 * time.Millisecond // between looks at the node of a port that is not tried
	retryStuck   = 10 * time.Second       // after a port took nothing; so long the slot says so
	retryGone    = time.Second            // after a dialect failed to watch a board; doubles
	maxRetry     = time.Minute
	quickLoss    = 2 * time.Second        // a port that is lost sooner after it was opened is in trouble
	maxLost      = 30 * time.Second       // between tries at a port that is lost at each open; the pause doubles until then
	holdStep     = 250 * time.Millisecond // between looks at whether a leak was acknowledged
)

// errPanic says that a dialect panicked. The value of the panic is not told: it
// may quote the board.
var errPanic = errors.New("a bug in the dialect")

// serve owns the port of slot i until ctx ends.
func (s *Station) serve(ctx context.Context, i int) {
	losses := 0 // quick ones in a row
	for ctx.Err() == nil {
		opening, cancel := context.WithTimeoutCause(ctx, lookForPort, uart.ErrAbsent)
		conn, err := s.slots[i].Open(opening)
		cancel()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			e, pause := event{kind: portLost}, retryLost
			if errors.Is(err, uart.ErrDead) {
				pause = retryPort
			}
			if advice, detail := portAdvice(err); advice != "" {
				e, pause = event{kind: portTrouble, advice: advice, detail: detail}, retryPort
			}
			s.apply(i, e, err)
			sleep(ctx, pause)
			continue
		}
		s.setServing(i, true)
		s.apply(i, event{kind: portOpened}, nil)
		opened, node := time.Now(), s.node(i)
		lost := s.servePort(ctx, i, conn)
		conn.Close()
		if ctx.Err() != nil {
			return
		}
		s.apply(i, event{kind: portLost}, lost)
		if errors.Is(lost, uart.ErrStuck) {
			s.apply(i, event{kind: portTrouble, advice: adviceStuck}, lost)
			s.sleepUntilReplug(ctx, i, node, retryStuck)
			continue
		}
		losses++
		if time.Since(opened) >= quickLoss {
			losses = 0
		}
		if s.sleepUntilReplug(ctx, i, node, lostPause(losses)) {
			losses = replugLosses
		}
	}
}

// lostPause is the time until the next try at a port, so that one that is lost
// at each open neither floods the log nor uses the processor.
func lostPause(losses int) time.Duration {
	pause := retryLost
	for range losses - 1 {
		pause = min(2*pause, maxLost)
	}
	return pause
}

// sleepUntilReplug waits for so long, or for retryReplug if the port is not
// there any more or was plugged in anew since node was behind it. It reports
// whether the pause was cut short.
func (s *Station) sleepUntilReplug(ctx context.Context, i int, node string, pause time.Duration) bool {
	if s.slots[i].Node == nil || pause <= retryReplug {
		sleep(ctx, pause)
		return false
	}
	start := time.Now()
	for ctx.Err() == nil {
		waited := time.Since(start)
		switch {
		case waited >= pause:
			return false
		case waited >= retryReplug && s.node(i) != node:
			return true
		}
		sleep(ctx, min(lookForNode, pause-waited))
	}
	return false
}

func (s *Station) node(i int) string {
	if s.slots[i].Node == nil {
		return ""
	}
	return s.slots[i].Node()
}

// servePort reads one board after the other until the port is lost, and returns
// how; or until ctx ends.
func (s *Station) servePort(ctx context.Context, i int, conn uart.Conn) error {
	// Ends a Write that waits for room; a Read ends by the context itself.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer s.setServing(i, false)
	line := uart.NewLine(conn, uart.LineOptions{
		Nonce: s.slots[i].Nonce,
		Heard: func() { s.apply(i, event{kind: boardHeard}, nil) },
	})
	for {
		if err := s.awaitAcknowledged(ctx, i, line); err != nil {
			return err
		}
		err := s.oneBoard(ctx, i, conn, line)
		if errors.Is(err, uart.ErrRemoved) {
			err = nil
		}
		for errors.Is(err, errResetAsked) && ctx.Err() == nil {
			err = s.reset(ctx, i, conn, line, "on demand")
			s.answerReset(i, err)
			if reason, ok := boardReason(err); ok { // it printed a key at the last moment
				s.apply(i, event{kind: boardFailed, reason: reason}, err)
				err = s.awaitGone(ctx, i, line)
			}
		}
		if err != nil {
			return err
		}
		s.apply(i, event{kind: boardGone, next: line.Pending()}, nil)
	}
}

// awaitAcknowledged returns when no leak waits for its acknowledgement; an
// error as readBoard. What is said meanwhile is dropped.
func (s *Station) awaitAcknowledged(ctx context.Context, i int, line *uart.Line) error {
	for waited := false; ; waited = true {
		s.mu.Lock()
		held := s.states[i].held
		s.mu.Unlock()
		if !held {
			if waited {
				line.Forget()
			}
			return nil
		}
		_, err := line.Discard(ctx, holdStep, holdStep)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, ok := boardReason(err); err != nil && !ok {
			return err
		}
	}
}

// readBoard waits for a board and brings it to its verdict. An error means that
// the port is lost or ctx has ended. present ends, besides, when the fixture is
// opened.
func (s *Station) readBoard(ctx, present context.Context, i int, conn uart.Conn, line *uart.Line) error {
	e, cause, err := s.verdict(ctx, present, i, conn, line)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if e.kind == "" {
		return err // lost while there was no board
	}
	s.apply(i, e, cause)
	s.keep(i, line, e, cause)
	return err
}

// verdict returns the event that ends the reading of a board, and what caused
// it; err as readBoard. A board that a reset may help is reset and read once
// more.
func (s *Station) verdict(ctx, present context.Context, i int, conn uart.Conn, line *uart.Line) (e event, cause, err error) {
	var resets resetBudget
	var limit time.Time // of all readings together; zero until a board was found
	for {
		e, cause, err = s.attempt(ctx, present, i, line, !resets.none(), &limit)
		if resets.needed && e.reason == ReasonTimeout && limit.IsZero() {
			e.reason, cause = ReasonNeedsReset, uart.ErrNeedsReset // the reset did not reach the board
		}
		late := !limit.IsZero() && !time.Now().Before(limit)
		if e.kind != boardFailed || late || present.Err() != nil || s.slots[i].Reset.IsZero() || !resets.allow(e.reason) {
			return e, cause, err
		}
		s.apply(i, event{kind: boardFound}, nil)
		if err := s.reset(present, i, conn, line, string(e.reason)); err != nil {
			if reason, ok := boardReason(err); ok {
				return event{kind: boardFailed, reason: reason}, err, nil
			}
			return lostBoard(err), err, err
		}
	}
}

// attempt is one reading of a board. again says that it was reset: then it is
// there, and must show itself in time, as in a closed fixture.
func (s *Station) attempt(ctx, present context.Context, i int, line *uart.Line, again bool, limit *time.Time) (e event, cause, err error) {
	dialect := s.slots[i].Dialect
	if err := s.interruptible(present, i, func(waiting context.Context) error {
		if again || !s.slots[i].Present.IsZero() {
			var cancel context.CancelFunc
			waiting, cancel = context.WithTimeoutCause(waiting, answerLimit, uart.ErrTimeout)
			defer cancel()
		}
		return s.guarded(i, func() error { return dialect.Detect(waiting, line) })
	}); err != nil {
		reason, ok := boardReason(err)
		if !ok || present.Err() != nil {
			if again { // it was there, and is shown as such
				return lostBoard(err), err, err
			}
			return event{}, err, err
		}
		return boardFailure(reason, err), err, nil
	}
	s.apply(i, event{kind: boardFound}, nil)
	label := s.label(i)

	if limit.IsZero() {
		*limit = time.Now().Add(s.readLimit)
	}
	limited, cancel := context.WithDeadlineCause(present, *limit, uart.ErrTimeout)
	defer cancel()
	var record board.Record
	if err := s.guarded(i, func() error {
		report, err := dialect.Read(limited, line)
		if err != nil {
			return err
		}
		var refused *failure
		if record, refused = s.validate(report, label, time.Now()); refused != nil {
			return refused
		}
		return nil
	}); err != nil {
		var refused *failure
		if errors.As(err, &refused) {
			return event{kind: boardFailed, reason: refused.reason, device: refused.device}, refused.err, nil
		}
		reason, ok := boardReason(err)
		if !ok {
			return lostBoard(err), err, err
		}
		e := boardFailure(reason, err)
		if device, ok := line.Known(err); ok {
			e.device = device
		}
		return e, err, nil
	}

	s.mu.Lock()
	o := s.outcome(i, s.states[i])
	s.mu.Unlock()
	o.Record = &record
	var receipt board.Receipt
	s.trackDiskWait(i, func() { receipt, err = s.journal.Append(ctx, o) })
	if err == nil {
		s.appended("")
		e = event{kind: boardPassed, device: record.Device, repeat: receipt.Repeat}
		s.journaled(i, receipt, &e)
		return e, nil, nil
	}
	if ctx.Err() == nil {
		s.appended(diskReason(err))
	}
	e = event{kind: boardFailed, reason: journalReason(err), device: record.Device}
	switch {
	case (e.reason == ReasonDeviceConflict || e.reason == ReasonKeyConflict) && diskReason(err) == e.reason:
		s.journaled(i, receipt, &e)
	case e.reason != ReasonGarbled:
		e.unjournaled = true
	}
	return e, err, nil
}

// lostBoard is the event of a reading that is cut off, by an opened fixture or
// a lost port.
func lostBoard(err error) event {
	if errors.Is(err, errFixtureOpened) {
		return event{kind: boardGone}
	}
	return event{kind: portLost}
}

// awaitGone returns nil when the board is gone; an error as readBoard, or
// errResetAsked. Where a presence line says whether the board is there, silence
// and a fresh start are no reason to read it again.
func (s *Station) awaitGone(ctx context.Context, i int, line *uart.Line) error {
	for pause := retryGone; ; pause = min(2*pause, maxRetry) {
		err := s.interruptible(ctx, i, func(ctx context.Context) error {
			for {
				err := s.guarded(i, func() error { return s.slots[i].Dialect.Gone(ctx, line) })
				if err != nil || s.slots[i].Present.IsZero() {
					return err
				}
				if _, err := line.Discard(ctx, resetSilence, resetDiscard); err != nil && !errors.Is(err, uart.ErrTimeout) {
					return err
				}
				if sleep(ctx, retryGone); ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		})
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		reason, ok := boardReason(err)
		if !ok {
			return err
		}
		if e := (event{kind: boardFailed, reason: reason}); s.apply(i, e, err) {
			s.keepLater(i, line, e, err)
		}
		if err := s.interruptible(ctx, i, func(ctx context.Context) error { sleep(ctx, pause); return context.Cause(ctx) }); err != nil {
			return err
		}
	}
}

// guarded runs code of a dialect: its bug fails one board, not the station.
func (s *Station) guarded(i int, f func() error) (err error) {
	defer func() {
		bug := recover()
		if bug == nil {
			return
		}
		err = fmt.Errorf("%w: %w", uart.ErrGarbled, errPanic)
		pcs := make([]uintptr, 16)
		frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
		var at []string
		for more := true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			at = append(at, fmt.Sprintf("%s:%d", f.Function, f.Line))
		}
		s.log.Error().Str("slot", s.slots[i].Name).Str("dialect", s.slots[i].Dialect.Name()).
			Type("panic", bug).Strs("at", at).Msg("the dialect panicked")
	}()
	return f()
}

// keep hands over the recording of a dialogue that has its verdict.
func (s *Station) keep(i int, line *uart.Line, e event, cause error) {
	s.saveTranscript(i, line.Transcript(), e, cause)
}

// keepLater hands over the recording of what took the place of a verdict. In a
// replay the same is a verdict of its own: what was sent only to see whether
// the board is still there is left out, since a reader that looks for a board
// sends something else.
func (s *Station) keepLater(i int, line *uart.Line, e event, cause error) {
	t := line.Transcript()
	t.Chunks = slices.DeleteFunc(t.Chunks, func(c uart.Chunk) bool { return c.Direction == uart.Sent })
	s.mu.Lock()
	device := s.states[i].device
	s.mu.Unlock()
	t.Header["note"] = "after the verdict"
	if device.Valid() {
		t.Header["note"] += " over the board " + device.String()
	}
	s.saveTranscript(i, t, e, cause)
}

func (s *Station) saveTranscript(i int, t *uart.Transcript, e event, cause error) {
	if s.transcript == nil {
		return
	}
	for key, value := range map[string]string{
		"dialect": s.slots[i].Dialect.Name(), "slot": s.slots[i].Name,
		"recorded": time.Now().UTC().Format(time.RFC3339),
	} {
		t.Header[key] = value
	}
	reason := e.reason
	switch e.kind {
	case boardPassed:
		t.Header["expect"] = "passed"
		if e.repeat {
			t.Header["given"] = GivenRepeat
		}
	case portLost, boardGone:
		reason = ReasonUnplugged
		fallthrough
	case boardFailed:
		t.Header["expect"] = "failed " + string(reason)
		if given := preconditionOf(reason, cause); given != "" {
			t.Header["given"] = given
		}
	}
	if e.device.Valid() {
		t.Header["device"] = e.device.String()
	}
	s.mu.Lock()
	name := s.runs[i].transcript
	s.mu.Unlock()
	var err error
	s.trackDiskWait(i, func() { err = s.transcript(name, t) })
	if err != nil {
		line := s.log.Warn().Str("slot", s.slots[i].Name)
		if e.device.Valid() {
			line = line.Stringer("device", e.device)
		}
		if reason != "" {
			line = line.Str("reason", string(reason))
		}
		line.Err(err).Msg("the transcript was not kept")
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
