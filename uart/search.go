package uart

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"time"
)

const (
	// searchLimit is the time from the first byte in which a board must be
	// recognised. A board that shows itself later is still read: its start, or
	// its first answer, ends Gone.
	searchLimit = 7500 * time.Millisecond
	// searchSure is the time after which what is certain is said.
	searchSure = 2500 * time.Millisecond
	// fellSilent is longer than any pause between two probes of auto.
	fellSilent = 4 * time.Second
	// knockEvery is the number of looks of a fixed dialect from one knock to
	// the next.
	knockEvery = 8
)

// errUndecided ends a search.
var errUndecided = errors.New("no board was recognised")

// errNobody: a look brought not a byte.
var errNobody = errors.New("nothing came")

// search looks for a board again and again, until a look finds one (nil), one
// that needs a reset, or an error that no further look can change. ErrRemoved
// is a board that was taken out while it printed its banner. As long as the
// port is silent it goes on for ever. From the first byte on something is
// connected, however long it is silent afterwards: then the search ends after
// searchLimit with an *UnknownError. A look returns errNobody, ErrTimeout or
// ErrGarbled for one that found nothing.
//
// The recording begins with the look that found the board; without a board it
// has all from the look that heard the first byte.
func search(ctx context.Context, l *Line, tried []string, look func(ctx context.Context) error) error {
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.device, l.stranger = nil, false
	l.readNone()
	l.search = &searching{cancel: cancel}
	defer func() {
		l.search.stop()
		l.search = nil
	}()
	l.Mark()
	if len(l.in) > 0 {
		l.search.speaks(l)
	}
	for {
		if l.search.spoke.IsZero() {
			l.Mark()
		}
		l.tape.begin(l.in)
		err := look(bounded)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil, errors.Is(err, ErrNeedsReset):
			l.total = l.tape.cut()
			return err
		case errors.Is(err, errUndecided), bounded.Err() != nil && errors.Is(err, context.Cause(bounded)):
			l.keep(0)
			silent := time.Since(l.search.last) >= fellSilent
			if silent && torn(l.heard()) {
				l.Forget()
				return ErrRemoved
			}
			l.stranger = true
			return &UnknownError{Heard: classify([]byte(l.heard())), Tried: tried, Silent: silent}
		case !errors.Is(err, errNobody) && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrGarbled):
			return err
		}
	}
}

var (
	tornRule = regexp.MustCompile(`={20}`)
	tornLine = regexp.MustCompile(`[^\r\n>:$#? \t][ \t]*$|^[\r\n\t =]*$`)
)

// torn reports whether text is the beginning of a banner of TI's, cut off in
// the middle of a line or before its first word. A board that prints it and
// then does not even echo was taken out.
func torn(heard string) bool {
	return tornLine.MatchString(heard) && (tornRule.MatchString(heard) || strings.Trim(heard, "\r\n\t =") == "")
}

// searching is what a Line knows of the search that goes on.
type searching struct {
	cancel context.CancelCauseFunc
	spoke  time.Time // when the first byte came; zero: none
	last   time.Time // when the last one came
	timer  *time.Timer
}

// speaks is called for everything that arrives.
func (s *searching) speaks(l *Line) {
	s.last = time.Now()
	switch {
	case s.spoke.IsZero():
		s.spoke = s.last
		s.timer = time.AfterFunc(searchLimit, func() { s.cancel(errUndecided) })
		if l.onSpeech != nil {
			l.onSpeech()
		}
	case l.total > maxDialogue:
		s.cancel(errUndecided)
	case time.Since(s.spoke) >= searchSure:
		if heard := []byte(l.heard()); classify(heard).sure(heard) {
			s.cancel(errUndecided)
		}
	}
}

// knock sends a line to a port that has said nothing so far. The line belongs
// to the look before, and is not recorded.
func (l *Line) knock(ctx context.Context, text string) error {
	if !l.search.spoke.IsZero() {
		return nil
	}
	if err := l.Send(ctx, text); err != nil {
		return err
	}
	l.Mark()
	l.tape.begin(nil)
	return nil
}

func (s *searching) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}
