package uart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// auto detects the dialect of a board and then speaks that dialect. It
// remembers the dialect of the last board and tries it first, so each slot
// needs a value of its own; DialectByName makes one.
//
// An empty answer to the first question of the CSR example ends that firmware.
// Therefore a probe has no line end, and auto sends a line end only after it
// has seen its own probe echoed: then the line is not empty. Gone sends line
// ends only with text before them.
type auto struct {
	dialects []autoDialect

	mu   sync.Mutex
	last string // dialect of the last board
	was  string // value of last when the current dialogue began

	current    autoDialect // the board that is there; nil if it was not recognised
	falseMatch bool        // something seemed to be a board and was none
}

// autoDialect is a dialect that auto can detect.
type autoDialect interface {
	Dialect
	// probe returns text, without a line end, that makes a board of this
	// dialect answer; empty if the board prints by itself at its start.
	probe() string
	// starts returns the positions in text of what a board of this dialect
	// prints only when it starts, in any wording.
	starts(text string) []int
	// answers reports whether text holds an answer or a question of a board of
	// this dialect.
	answers(text string) bool
	// recognises reports whether a text without any start comes from a board of
	// this dialect. The text may be incomplete.
	recognises(text string) bool
	// settle brings a recognised board to the state in which Read begins, in
	// bounded time. The text by which it was recognised is still on the line.
	// first says that no answer to a probe of an earlier round can be pending.
	settle(ctx context.Context, l *Line, first bool) error
	// leave is  Gone with probes that no firmware minds, in place of its own: a
	// board of another dialect may take the place.
	waitGone(ctx context.Context, l *Line, w presenceWatch) error
}

const (
	autoName   = "auto"
	autoLook   = 500 * time.Millisecond // for one dialect
	autoQuiet  = 60 * time.Millisecond  // between the bytes of one text
	autoFlow   = 300 * time.Millisecond // a look goes on for so long after something came
	autoAnswer = 700 * time.Millisecond // to an Enter after a probe
	autoWhole  = 5 * time.Second        // a look
	autoEcho   = 4                      // characters of a probe's echo: an event may have cut it
	autoProbe  = "x"                    // makes any firmware echo that does
)

func newAuto(last string, dialects []Dialect) *auto {
	a := &auto{last: last, was: last}
	for _, d := range dialects {
		if f, ok := d.(autoDialect); ok {
			a.dialects = append(a.dialects, f)
		}
	}
	return a
}

// Name implements Dialect. It returns "auto", or "auto/" and the dialect that
// was remembered when the current dialogue began. DialectByName turns this name
// into an auto that repeats the same dialogue.
func (a *auto) Name() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.was == "" {
		return autoName
	}
	return autoName + "/" + a.was
}

// Detect implements Dialect.
func (a *auto) Detect(ctx context.Context, l *Line) error {
	a.mu.Lock()
	a.was = a.last
	order := slices.Clone(a.dialects)
	slices.SortStableFunc(order, func(f, g autoDialect) int {
		switch a.last {
		case f.Name():
			return -1
		case g.Name():
			return 1
		}
		return 0
	})
	a.mu.Unlock()
	a.current, a.falseMatch = nil, false
	first, rounds := true, 0
	return search(ctx, l, a.known(), func(bounded context.Context) error {
		// Firmware without echo, such as a modem, answers only a complete line.
		// This line belongs to the previous round and is not recorded. An empty
		// line would end the firmware of the CSR example.
		if rounds > 0 {
			if err := l.sendWakeLine(bounded, autoProbe+"\r"); err != nil {
				return err
			}
		}
		first, rounds = rounds == 0, rounds+1
		found, err := a.round(bounded, l, order)
		switch {
		case err != nil:
			return err
		case found == nil && len(l.in) == 0:
			return errNothingHeard
		case found == nil:
			l.keepLast(0)
			return ErrGarbled
		}
		a.current = found
		settling := bounded
		if len(a.starts(string(l.in))) > 0 { // a board has started: it gets the time that it needs
			settling = ctx
		}
		err = found.settle(settling, l, first)
		if err == nil || errors.Is(err, ErrNeedsReset) {
			a.mu.Lock()
			a.last = found.Name()
			a.mu.Unlock()
			return err
		}
		a.current, a.falseMatch = nil, true // the board left, or the text was noise
		l.keepLast(0)
		return err
	})
}

// starts returns the positions in text where boards have started.
func (a *auto) starts(text string) (places []int) {
	for _, f := range a.dialects {
		places = append(places, f.starts(text)...)
	}
	return places
}

func (a *auto) known() (names []string) {
	for _, f := range a.dialects {
		names = append(names, f.Name())
	}
	return names
}

// round tries the dialects in order, each for a short time. All input stays on
// the line.
func (a *auto) round(ctx context.Context, l *Line, order []autoDialect) (found autoDialect, err error) {
	for _, f := range order {
		if found, err = a.look(ctx, l, f.probe()); found != nil || err != nil {
			if found != nil {
				l.explainFound(found.Name(), func(text string) bool { return a.recognise(text) == found })
			}
			return found, err
		}
	}
	return nil, nil
}

func (a *auto) look(ctx context.Context, l *Line, probe string) (autoDialect, error) {
	begin, before := time.Now(), len(l.in)
	if f := a.recognise(string(l.in)); f != nil {
		return f, nil
	}
	if probe != "" {
		if err := l.send(ctx, probe); err != nil {
			return nil, err
		}
	}
	end, entered := begin.Add(roundToTick(autoLook)), false
	for len(l.in) <= maxText && time.Since(begin) < autoWhole {
		text := string(l.in)
		if f := a.recognise(text); f != nil {
			return f, nil
		}
		wait := autoQuiet
		switch {
		case len(text) == before: // an empty slot
			wait = time.Until(end)
		case text == probe && !entered: // the whole echo, and nothing but that
			wait = 0
		}
		more, err := l.more(ctx, wait)
		if err != nil {
			return nil, err
		}
		if !more {
			// The probe was echoed: a device listens and has it in its line.
			if !entered && probe != "" && strings.HasSuffix(text[before:], probe[len(probe)-autoEcho:]) {
				if err := l.send(ctx, "\r"); err != nil {
					return nil, err
				}
				entered, end = true, time.Now().Add(autoAnswer)
			}
			left := time.Until(end)
			if left <= 0 {
				return nil, nil
			}
			if more, err = l.more(ctx, left); err != nil {
				return nil, err
			}
		}
		if more {
			end = maxTime(end, time.Now().Add(autoFlow))
		}
		if limit := begin.Add(autoWhole); end.After(limit) {
			end = limit
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return nil, nil
}

// recognise returns the dialect of a text, or nil. The last start in the text
// decides: earlier text may come from another board. An answer after that start
// overrides it, because any firmware may print its serial number.
func (a *auto) recognise(text string) (found autoDialect) {
	last, banners := -1, 0
	for _, f := range a.dialects {
		starts := f.starts(text)
		if len(starts) == 0 {
			continue
		}
		banners++
		if at := slices.Max(starts); at > last {
			last, found = at, f
		}
	}
	if found != nil {
		for _, f := range a.dialects {
			if f.answers(text[last:]) {
				return f
			}
		}
		if banners > 1 { // one board with both, or two boards: its answer decides
			return nil
		}
		return found
	}
	for _, f := range a.dialects {
		if f.recognises(text) {
			return f
		}
	}
	return nil
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Read implements Dialect.
func (a *auto) Read(ctx context.Context, l *Line) (Report, error) {
	if a.current == nil {
		return Report{}, fmt.Errorf("%w: no board was detected", ErrGarbled)
	}
	report, err := a.current.Read(ctx, l)
	if err == nil {
		report.Facts["found-by"] = autoName
	}
	return report, err
}

// Gone implements Dialect.
func (a *auto) Gone(ctx context.Context, l *Line) error {
	w := presenceWatch{probes: []string{autoProbe}}
	w.starts = a.starts
	for _, f := range a.dialects {
		if probe := f.probe(); probe != "" {
			w.probes = append(w.probes, probe)
		}
	}
	if a.current == nil {
		if !a.falseMatch {
			w.isBoard = func(text string) bool { return a.recognise(text) != nil }
		}
		return watch(ctx, l, w)
	}
	return a.current.waitGone(ctx, l, w)
}
