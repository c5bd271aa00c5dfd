package uart

import (
	"context"
	"slices"
	"time"
)

// presenceWatch describes how to find out that a board is gone.
type presenceWatch struct {
	probes []string // used in turn; the first one makes the board at least echo
	// starts returns the positions in a text of what a board prints only when
	// it starts; nil if the dialect knows no such text.
	starts func(text string) []int
	// patient: the firmware may fall silent for good while the board is still
	// there. Only a board that echoed before and stopped echoing is gone. A
	// board that speaks after a silence is another board.
	patient bool
	// identifyCommand, with its line end, makes a board of the dialect print
	// its serial number; parseDevice finds the complete answer. Empty if the
	// dialect has no such command. clearCommand is sent first: it ends the line
	// that the probes have typed.
	identifyCommand, clearCommand string
	parseDevice                   func(text string) (device [16]byte, ok bool)
	silenceLimit                  time.Duration // replaces watchGone if not 0
	// isBoard reports that an unknown device is a board after all; nil if that
	// is not checked.
	isBoard func(text string) bool
}

const (
	watchEcho  = tiEcho
	watchLook  = tiPing
	watchSlow  = 5 * time.Second // between looks at a board that has been there for a long time
	watchQuick = 300             // looks before that: the typed probes may fill the firmware's line
	// watchGone is the silence after which a board is gone; one look is made
	// per watchEcho. A busy board, or one whose echo was lost to a glitch, is
	// still there. Only the serial number reports whether the same board is
	// there, and not another running board that replaced it.
	watchGone  = 2400 * time.Millisecond
	watchAsk   = 5 * time.Second // between requests for the serial number of a board that was read; a missed look also causes one
	watchAsks  = 3               // unanswered requests in a row after which the board counts as gone
	watchStart = 2 * csrStart    // a start, after a leak
	watchTail  = 256             // bytes kept of a look: the beginning of a start, and a line with a serial number
)

// watch blocks until the board on l is gone, or another board has started or
// has replaced it. The output of a board that has started stays on the line for
// the next Detect; otherwise the line is emptied. Only a board that was read is
// asked for its serial number.
func watch(ctx context.Context, l *Line, w presenceWatch) error {
	echoed, silence := false, time.Duration(0)
	missed, unanswered, lastKnown := true, 0, time.Now() // the board may have been swapped while its record was written
	if w.silenceLimit == 0 {
		w.silenceLimit = watchGone
	}
	if l.unknown {
		w.patient = true // its output, or the port, shows when another device is there
	}
	for look := 0; ; look++ {
		if started, err := w.started(l); started || err != nil { // the board was swapped before the first look
			return err
		}
		l.keepLast(watchTail)
		l.Mark()
		probe := w.probes[0]
		if !echoed { // a board of another dialect may answer another probe
			probe = w.probes[look%len(w.probes)]
		}
		if err := l.send(ctx, probe); err != nil {
			return err
		}
		heard, err := l.more(ctx, watchEcho)
		if err != nil {
			return err
		}
		if !heard {
			missed = true
			if silence += watchEcho; silence >= w.silenceLimit {
				if echoed || !w.patient {
					l.Forget()
					return nil
				}
				spoke, err := l.more(ctx, watchLook)
				if err != nil {
					return err
				}
				if spoke {
					return w.spokeAfterSilence(ctx, l)
				}
			}
			continue
		}
		if w.patient && !echoed && silence >= w.silenceLimit {
			return w.spokeAfterSilence(ctx, l)
		}
		echoed, silence = true, 0
		// A board that prints a prompt before every command does not listen
		// until the prompt is complete.
		pause := watchLook - watchEcho
		if _, err := l.gather(ctx, pause, tiFlush+pause); err != nil {
			return err
		}
		if started, err := w.started(l); started || err != nil {
			return err
		}
		// After a leak every answer is suppressed.
		if l.device != nil && w.identifyCommand != "" && !l.leaked && (missed || look >= watchQuick || time.Since(lastKnown) >= watchAsk) {
			device, ok, err := w.identify(ctx, l)
			if err != nil {
				return err
			}
			if started, err := w.started(l); started || err != nil {
				return err
			}
			if unanswered++; ok {
				unanswered = 0
			}
			if ok && device != *l.device || unanswered >= watchAsks {
				l.Forget()
				return nil
			}
			missed, lastKnown = !ok, time.Now()
		}
		if look >= watchQuick {
			if _, err := l.gather(ctx, watchSlow, tiFlush+watchSlow); err != nil {
				return err
			}
		}
	}
}

// identify asks the board for its serial number. It consumes nothing, because
// the bytes may be the start of another board. ok is false if there was no
// answer, or a board started.
func (w presenceWatch) identify(ctx context.Context, l *Line) (device [16]byte, ok bool, err error) {
	before := len(l.in)
	if w.clearCommand != "" {
		if err := l.send(ctx, w.clearCommand); err != nil {
			return device, false, err
		}
		if _, err := l.gather(ctx, tiSilence, tiFlush); err != nil || len(l.in) == before {
			return device, false, err
		}
		before = len(l.in)
	}
	if err := l.send(ctx, w.identifyCommand); err != nil {
		return device, false, err
	}
	for end := time.Now().Add(tiAnswer); ; {
		if started, err := w.started(l); started || err != nil {
			return device, false, err
		}
		if device, ok = w.parseDevice(string(l.in[before:])); ok {
			return device, true, nil
		}
		more, err := l.more(ctx, time.Until(end))
		if err != nil || !more {
			return device, false, err
		}
	}
}

// started reports whether a board has started. Its output from the start on is
// then on the line, also after a leak.
func (w presenceWatch) started(l *Line) (bool, error) {
	if w.isBoard != nil && w.isBoard(string(l.in)) {
		return true, nil
	}
	if w.start(string(l.in)) >= 0 {
		return true, nil
	}
	if i := w.start(string(l.suppressed)); i >= 0 {
		return true, l.clearLeak(i)
	}
	return false, nil
}

// start returns the position of the first start in text, or -1.
func (w presenceWatch) start(text string) int {
	if text == "" {
		return -1
	}
	at := tiModule.places(text)
	if w.starts != nil {
		at = append(at, w.starts(text)...)
	}
	if len(at) == 0 {
		return -1
	}
	return slices.Min(at)
}

// tiModule is a line in the banner of all TI examples and of firmware that is
// derived from them.
var tiModule = guard(`(?i)\bCHIP[ \t]*:[ \t]*0x[0-9a-f]{8}\b`, "chip")

// spokeAfterSilence ends a watch when the port speaks after a silence. After a
// leak it first waits for the start of a board: bytes before the start may be
// more of the key.
func (w presenceWatch) spokeAfterSilence(ctx context.Context, l *Line) error {
	for end := time.Now().Add(watchStart); l.leaked; {
		if started, err := w.started(l); started || err != nil {
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
