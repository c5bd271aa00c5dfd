package uart

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"
)

const (
	// searchLimit is the time from the first byte within which a board must be
	// recognised. A board that is recognisable only later is still read: its
	// start, or its first answer, ends Gone.
	searchLimit = 7500 * time.Millisecond
	// decideAfter is the time after which a result that is certain is reported.
	decideAfter = 2500 * time.Millisecond
	// silentAfter is longer than any pause between two probes of auto.
	silentAfter = 4 * time.Second
	// wakeEvery is the number of looks between two wake lines of a fixed
	// dialect.
	wakeEvery = 8
)

// errUndecided ends a search without a result.
var errUndecided = errors.New("no board was recognised")

// errNothingHeard: no byte arrived during a look.
var errNothingHeard = errors.New("nothing came")

// search repeats look until it finds a board (nil), finds a board that needs a
// reset, or fails with an error that no further look can change. It returns
// ErrRemoved for a board that was taken out while it printed its banner. A
// silent port is searched for ever. The first byte shows that a device is
// connected: the search then ends after searchLimit with an *UnknownError, even
// if the device falls silent. A look that finds nothing returns
// errNothingHeard, ErrTimeout or ErrGarbled.
//
// The recording begins with the look that found the board. Without a board it
// begins with the look that received the first byte.
func search(ctx context.Context, l *Line, tried []string, look func(ctx context.Context) error) error {
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.device, l.unknown = nil, false
	l.readNone()
	l.search = &searchState{cancel: cancel}
	defer func() {
		l.search.stop()
		l.search = nil
	}()
	l.Mark()
	if len(l.in) > 0 {
		l.search.bytesArrived(l)
	}
	for {
		if l.search.firstByte.IsZero() {
			l.Mark()
		}
		l.recorder.begin(l.in)
		err := look(bounded)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil, errors.Is(err, ErrNeedsReset):
			l.total = l.recorder.cut()
			return err
		case errors.Is(err, errUndecided), bounded.Err() != nil && errors.Is(err, context.Cause(bounded)):
			l.keepLast(0)
			silent := time.Since(l.search.lastByte) >= silentAfter
			if silent && bannerCutShort(l.heard()) {
				l.Forget()
				return ErrRemoved
			}
			l.unknown = true
			return &UnknownError{Heard: classify([]byte(l.heard())), Tried: tried, Silent: silent}
		case !errors.Is(err, errNothingHeard) && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrGarbled):
			return err
		}
	}
}

var (
	tornRule = regexp.MustCompile(`={20}`)
	tornLine = regexp.MustCompile(`[^\r\n>:$#? \t][ \t]*$|^[\r\n\t =]*$`)
)

// bannerCutShort reports whether text is the beginning of a TI banner that was
// cut off in the middle of a line or before its first word. A board that prints
// such text and then does not even echo was taken out.
func bannerCutShort(heard string) bool {
	return tornLine.MatchString(heard) && (tornRule.MatchString(heard) || strings.Trim(heard, "\r\n\t =") == "")
}

// searchState is the state of a running search.
type searchState struct {
	cancel    context.CancelCauseFunc
	firstByte time.Time // when the first byte came; zero: none
	lastByte  time.Time // when the last one came
	timer     *time.Timer
}

// bytesArrived is called after each read.
func (s *searchState) bytesArrived(l *Line) {
	s.lastByte = time.Now()
	switch {
	case s.firstByte.IsZero():
		s.firstByte = s.lastByte
		s.timer = time.AfterFunc(searchLimit, func() { s.cancel(errUndecided) })
		if l.onHeard != nil {
			l.onHeard()
		}
	case l.total > maxDialogue:
		s.cancel(errUndecided)
	case time.Since(s.firstByte) >= decideAfter:
		if heard := []byte(l.heard()); classify(heard).final(heard) {
			s.cancel(errUndecided)
		}
	}
}

// sendWakeLine sends a line to a port that has been silent so far. The line
// belongs to the previous look and is not recorded.
func (l *Line) sendWakeLine(ctx context.Context, text string) error {
	if !l.search.firstByte.IsZero() {
		return nil
	}
	if err := l.send(ctx, text); err != nil {
		return err
	}
	l.Mark()
	l.recorder.begin(nil)
	return nil
}

func (s *searchState) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}
