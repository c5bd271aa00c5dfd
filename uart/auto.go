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

// auto finds out which dialect a board speaks, and then speaks it. It remembers
// what it met last and tries that first. Unlike the others it has a memory, so
// each slot needs one of its own; make them with DialectByName.
//
// It never sends a line end before it knows the board, but after it has seen
// its own probe echoed: then the line is not empty, and an Enter does no harm.
// (An empty answer to the first question of the CSR example ends that
// firmware.) So a probe has no line end of its own. Gone sends line ends only
// with something before them.
type auto struct {
	dialects []autoDialect

	mu   sync.Mutex
	last string // what was met last
	was  string // what was remembered when the present dialogue began

	current    autoDialect // the board that is there; nil if it was not recognised
	falseMatch bool        // something seemed to be a board and was none
}

// autoDialect is a dialect that takes part in auto.
type autoDialect interface {
	Dialect
	// probe makes a board of this dialect speak, without a line end; empty if
	// it speaks for itself at its start.
	probe() string
	// starts returns the places in text of what a board of this dialect prints
	// only when it starts, in any words.
	starts(text string) []int
	// answers reports whether a board of this dialect has answered, or asked,
	// in text.
	answers(text string) bool
	// recognises tells whether what has arrived is of a board of this dialect.
	// It sees text that is not complete.
	recognises(text string) bool
	// settle brings a board that was recognised to where Read begins, in
	// bounded time. What made it recognised is still on the line. first says
	// that nothing that was sent in an earlier round may still be answered.
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

// Name implements Dialect. It is "auto", or "auto/" and the dialect that was
// remembered when the present dialogue began: DialectByName makes of it an Auto
// that has the same dialogue again.
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
		// Firmware without echo, as a modem, answers only to a whole line. It
		// is of the round before, and not recorded. An Enter alone would end
		// the firmware of the CSR example.
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
		if len(a.starts(string(l.in))) > 0 { // it is a board: it is given its time
			settling = ctx
		}
		err = found.settle(settling, l, first)
		if err == nil || errors.Is(err, ErrNeedsReset) {
			a.mu.Lock()
			a.last = found.Name()
			a.mu.Unlock()
			return err
		}
		a.current, a.falseMatch = nil, true // gone again, or noise
		l.keepLast(0)
		return err
	})
}

// starts returns the places in text where boards have started.
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

// round tries one dialect after the other, each for a short time. What came is
// left on the line.
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
			// The end of our own probe: somebody listens, and has it in its
			// line.
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

// recognise names the dialect of what has arrived. The last start says which
// board speaks: the board before it may have left its words. An answer after it
// says more than the start, because any firmware may print its serial number.
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
