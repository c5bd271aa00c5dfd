package uart

import (
	"context"
	"regexp"
	"slices"
	"time"
)

// vigil is how to see that a board goes.
type vigil struct {
	probes []string // in turn; the first makes the board echo, at least
	// starts returns the places in a text of what only a fresh start prints;
	// nil if the dialect knows none.
	starts func(text string) []int
	// patient: the firmware may fall silent for good with the board in its
	// place. Only one that echoed before and does not any more is gone, and one
	// that speaks after a silence is another one.
	patient bool
	// ask is a command that a board of the dialect answers with its serial
	// number, with its line end, and told finds the whole answer in what it
	// says; empty if it cannot be asked. clear comes first: it ends what the
	// probes have typed.
	ask, clear string
	told       func(text string) (device [16]byte, ok bool)
	gone       time.Duration // in place of watchGone, if not 0
	// here tells, of something that was not recognised, that it is a board
	// after all; nil if that is not asked.
	here func(text string) bool
}

const (
	watchEcho  = tiEcho
	watchLook  = tiPing
	watchSlow  = 5 * time.Second // between looks at a board that has been there for long
	watchQuick = 300             // looks before that: what is typed may fill the firmware's line
	// watchGone is the silence after which a board is gone, with a look in each
	// watchEcho of it. A board that is busy for a moment, or whose echo a
	// glitch ate, is still there. Whether it is that board, and not one that
	// was running when it was put there, only its serial number tells.
	watchGone  = 2400 * time.Millisecond
	watchAsk   = 5 * time.Second // a board that was read is asked for its serial number so often, and when a look at it was missed
	watchAsks  = 3               // times in a row without an answer, after which nobody can say that it is still there
	watchStart = 2 * csrStart    // a start, after a leak
	watchTail  = 256             // what is kept of a look: the beginning of a start, and a line with a serial number
)

// watch blocks until the board on l is gone, or another one has started or is
// in its place. What one that has started has printed stays on the line, for
// its Detect; otherwise nothing stays. Only a board that was read is asked who
// it is.
func watch(ctx context.Context, l *Line, v vigil) error {
	echoed, silence := false, time.Duration(0)
	missed, unsure, known := true, 0, time.Now() // it may have been swapped while its record was written down
	if v.gone == 0 {
		v.gone = watchGone
	}
	if l.stranger {
		v.patient = true // it says when another one is there, or the port does
	}
	for look := 0; ; look++ {
		if started, err := v.started(l); started || err != nil { // quick hands: before anyone looked
			return err
		}
		l.keep(watchTail)
		l.Mark()
		probe := v.probes[0]
		if !echoed { // a board of another kind may listen to another one
			probe = v.probes[look%len(v.probes)]
		}
		if err := l.Send(ctx, probe); err != nil {
			return err
		}
		heard, err := l.more(ctx, watchEcho)
		if err != nil {
			return err
		}
		if !heard {
			missed = true
			if silence += watchEcho; silence >= v.gone {
				if echoed || !v.patient {
					l.Forget()
					return nil
				}
				spoke, err := l.more(ctx, watchLook)
				if err != nil {
					return err
				}
				if spoke {
					return v.follow(ctx, l)
				}
			}
			continue
		}
		if v.patient && !echoed && silence >= v.gone {
			return v.follow(ctx, l)
		}
		echoed, silence = true, 0
		// A board with a prompt before every command does not listen before
		// that is out.
		pause := watchLook - watchEcho
		if _, err := l.Gather(ctx, pause, tiFlush+pause); err != nil {
			return err
		}
		if started, err := v.started(l); started || err != nil {
			return err
		}
		// After a leak no answer would be seen.
		if l.device != nil && v.ask != "" && !l.tainted && (missed || look >= watchQuick || time.Since(known) >= watchAsk) {
			device, told, err := v.identify(ctx, l)
			if err != nil {
				return err
			}
			if started, err := v.started(l); started || err != nil {
				return err
			}
			if unsure++; told {
				unsure = 0
			}
			if told && device != *l.device || unsure >= watchAsks {
				l.Forget()
				return nil
			}
			missed, known = !told, time.Now()
		}
		if look >= watchQuick {
			if _, err := l.Gather(ctx, watchSlow, tiFlush+watchSlow); err != nil {
				return err
			}
		}
	}
}

// identify asks the board for its serial number. Nothing is consumed: it may be
// another one that starts. Not told is no answer, or the start of a board.
func (v vigil) identify(ctx context.Context, l *Line) (device [16]byte, told bool, err error) {
	before := len(l.in)
	if v.clear != "" {
		if err := l.Send(ctx, v.clear); err != nil {
			return device, false, err
		}
		if _, err := l.Gather(ctx, tiSilence, tiFlush); err != nil || len(l.in) == before {
			return device, false, err
		}
		before = len(l.in)
	}
	if err := l.Send(ctx, v.ask); err != nil {
		return device, false, err
	}
	for end := time.Now().Add(tiAnswer); ; {
		if started, err := v.started(l); started || err != nil {
			return device, false, err
		}
		if device, told = v.told(string(l.in[before:])); told {
			return device, true, nil
		}
		more, err := l.more(ctx, time.Until(end))
		if err != nil || !more {
			return device, false, err
		}
	}
}

// started tells whether a board has started: what it printed from there on is
// on the line, after a leak as well.
func (v vigil) started(l *Line) (bool, error) {
	if v.here != nil && v.here(string(l.in)) {
		return true, nil
	}
	if v.start(string(l.in)) >= 0 {
		return true, nil
	}
	if i := v.start(string(l.unseen)); i >= 0 {
		return true, l.pardon(i)
	}
	return false, nil
}

// start returns the place of the first start in text, or -1.
func (v vigil) start(text string) int {
	if text == "" {
		return -1
	}
	at := placesOf(tiModule, text)
	if v.starts != nil {
		at = append(at, v.starts(text)...)
	}
	if len(at) == 0 {
		return -1
	}
	return slices.Min(at)
}

// tiModule is a line in the banner of all of TI's examples, and of firmware
// that was made from them.
var tiModule = regexp.MustCompile(`(?i)\bCHIP[ \t]*:[ \t]*0x[0-9a-f]{8}\b`)

// placesOf returns where a pattern matches.
func placesOf(pattern *regexp.Regexp, text string) (at []int) {
	for _, m := range pattern.FindAllStringIndex(text, -1) {
		at = append(at, m[0])
	}
	return at
}

// follow ends a watch when something speaks after a silence. After a leak its
// start is waited for: what comes before that may be more of the key.
func (v vigil) follow(ctx context.Context, l *Line) error {
	for end := time.Now().Add(watchStart); l.tainted; {
		if started, err := v.started(l); started || err != nil {
			return err
		}
		more, err := l.more(ctx, min(csrStart, time.Until(end)))
		if err != nil {
			return err
		}
		if !more {
			l.Forget()
		}
	}
	return nil
}
