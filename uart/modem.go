package uart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Level is what a modem output (DTR or RTS) is to be while a port is open. The
// zero value leaves the output as the kernel makes it: raised at the open,
// dropped at the close.
type Level string

// The levels. The kernel raises both outputs for some milliseconds at each
// open, whatever the level; no program can prevent that.
const (
	LevelOn   Level = "on"
	LevelOff  Level = "off"
	LevelKeep Level = "keep" // not touched after the open, and not dropped at the close
)

// ParseLevel reads a level as a configuration has it. Empty is the zero value.
func ParseLevel(text string) (Level, error) {
	switch l := Level(text); l {
	case "", LevelOn, LevelOff, LevelKeep:
		return l, nil
	}
	return "", fmt.Errorf("%q is not a level: want %q, %q or %q", text, LevelOn, LevelOff, LevelKeep)
}

// fixed reports the level that is set, if one is.
func (l Level) fixed() (on, ok bool) { return l == LevelOn, l == LevelOn || l == LevelOff }

// Modem is the state of the modem inputs of a port.
type Modem struct{ CTS, DSR, DCD bool }

// Presence is a modem input that reports whether the fixture is closed, such
// as the switch of a lid. The zero value is no input.
type Presence struct {
	line     string
	inverted bool
}

// ParsePresence reads "cts", "dsr" or "dcd", with "!" in front for an input
// that is on while the fixture is open. Empty is the zero value.
func ParsePresence(text string) (Presence, error) {
	line, inverted := strings.CutPrefix(text, "!")
	switch {
	case text == "":
		return Presence{}, nil
	case slices.Contains([]string{"cts", "dsr", "dcd"}, line):
		return Presence{line: line, inverted: inverted}, nil
	}
	return Presence{}, fmt.Errorf(`%q is not a modem input: want "cts", "dsr" or "dcd", with "!" in front if the input is on while the fixture is open`, text)
}

// IsZero reports whether no input is named.
func (p Presence) IsZero() bool { return p == Presence{} }

// String is what ParsePresence reads.
func (p Presence) String() string {
	if p.inverted {
		return "!" + p.line
	}
	return p.line
}

// In reports whether the inputs say that the fixture is closed.
func (p Presence) In(m Modem) bool {
	on := m.CTS
	switch p.line {
	case "dsr":
		on = m.DSR
	case "dcd":
		on = m.DCD
	}
	return on != p.inverted
}

const (
	maxSequence  = 5 * time.Second
	maxSteps     = 32
	maxBreak     = time.Second
	defaultBreak = 250 * time.Millisecond
)

// Sequence is how a board is reset over the modem outputs: levels, pauses and
// breaks, in order. The zero value is no sequence. It never changes.
type Sequence struct{ steps []step }

// step is one word of a sequence.
type step struct {
	text string
	line string // "dtr", "rts" or "break"; empty for a pause
	on   bool
	wait time.Duration // of a pause and a break
}

// ParseSequence reads the words of a sequence: "dtr=on", "dtr=off", "rts=on",
// "rts=off", a pause such as "100ms", "break" (250 ms) and "break=100ms". A
// sequence lasts up to 5 s, a break up to 1 s. No words are the zero value.
func ParseSequence(words []string) (Sequence, error) {
	if len(words) == 0 {
		return Sequence{}, nil
	}
	if len(words) > maxSteps {
		return Sequence{}, fmt.Errorf("%d steps, want up to %d", len(words), maxSteps)
	}
	var s Sequence
	acts := false
	for i, word := range words {
		next, err := parseStep(word)
		if err != nil {
			return Sequence{}, fmt.Errorf("step %d: %w", i+1, err)
		}
		s.steps = append(s.steps, next)
		acts = acts || next.line != ""
	}
	switch {
	case !acts:
		return Sequence{}, errors.New("the sequence has pauses alone, and moves no line")
	case s.Length() > maxSequence:
		return Sequence{}, fmt.Errorf("the sequence lasts %v, want up to %v", s.Length(), maxSequence)
	}
	return s, nil
}

func parseStep(word string) (step, error) {
	name, value, assigned := strings.Cut(word, "=")
	switch {
	case word == "break":
		return step{text: word, line: "break", wait: defaultBreak}, nil
	case name == "break":
		wait, err := parseWait(value)
		if err == nil && wait > maxBreak {
			err = fmt.Errorf("want up to %v", maxBreak)
		}
		if err != nil {
			return step{}, fmt.Errorf("%q: %w", word, err)
		}
		return step{text: word, line: "break", wait: wait}, nil
	case name == "dtr" || name == "rts":
		if value != "on" && value != "off" {
			return step{}, fmt.Errorf("%q: want %s=on or %s=off", word, name, name)
		}
		return step{text: word, line: name, on: value == "on"}, nil
	case assigned:
		return step{}, fmt.Errorf("%q: there is no line %q: want dtr, rts or break", word, name)
	}
	wait, err := parseWait(word)
	if err != nil {
		return step{}, fmt.Errorf(`%q is no step: want "dtr=on", "dtr=off", "rts=on", "rts=off", "break", or a pause such as "100ms"`, word)
	}
	return step{text: word, wait: wait}, nil
}

// parseWait reads a length of time. A single one cannot overflow the sum.
func parseWait(text string) (time.Duration, error) {
	wait, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, err
	case wait <= 0 || wait > time.Hour:
		return 0, errors.New("want a length of time above zero, such as 100ms")
	}
	return wait, nil
}

// IsZero reports whether there is no sequence.
func (s Sequence) IsZero() bool { return len(s.steps) == 0 }

// String is the words of the sequence, with blanks between them.
func (s Sequence) String() string {
	var words []string
	for _, step := range s.steps {
		words = append(words, step.text)
	}
	return strings.Join(words, " ")
}

// Length is how long the sequence takes.
func (s Sequence) Length() (d time.Duration) {
	for _, step := range s.steps {
		d += step.wait
	}
	return d
}

// MovesLines reports whether the sequence needs DTR or RTS; a break alone
// needs neither.
func (s Sequence) MovesLines() bool {
	return s.end("dtr") != "" || s.end("rts") != ""
}

// end is the level that a line has after the sequence; empty if the sequence
// does not move it.
func (s Sequence) end(line string) (l Level) {
	for _, step := range s.steps {
		switch {
		case step.line != line:
		case step.on:
			l = LevelOn
		default:
			l = LevelOff
		}
	}
	return l
}

// Outputs are the modem outputs of an open port.
type Outputs interface {
	SetDTR(on bool) error
	SetRTS(on bool) error
	// Break holds the transmit line for so long, and returns after that.
	Break(d time.Duration) error
}

// Run has the outputs follow the sequence. If the context ends, the outputs go
// to their last levels at once, so that no board stays in reset, and Run
// returns the context's cause. After the error of an output it does likewise.
func (s Sequence) Run(ctx context.Context, o Outputs) error {
	var failed error
	for _, step := range s.steps {
		if failed == nil && ctx.Err() != nil {
			failed = context.Cause(ctx)
		}
		var err error
		switch {
		case step.line == "dtr":
			err = o.SetDTR(step.on)
		case step.line == "rts":
			err = o.SetRTS(step.on)
		case failed != nil: // no pause and no break
		case step.line == "break":
			err = o.Break(step.wait)
		default:
			timer := time.NewTimer(step.wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			timer.Stop()
		}
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", step.text, err)
		}
	}
	return failed
}

// PortConfig is a port and its modem lines.
type PortConfig struct {
	Address  string // as CheckAddress has it
	DTR, RTS Level
	Reset    Sequence
	Present  Presence
}

// Check reports settings that contradict each other: a reset that leaves an
// output at another level than it has while the port is open.
func (c PortConfig) Check() error {
	for _, output := range []struct {
		name  string
		level Level
	}{{"dtr", c.DTR}, {"rts", c.RTS}} {
		end := c.Reset.end(output.name)
		if _, fixed := output.level.fixed(); fixed && end != "" && end != output.level {
			return fmt.Errorf("%s is %q while the port is open, and the reset leaves it %q", output.name, output.level, end)
		}
	}
	return nil
}

// levels are those of the outputs after the open. An output without a level of
// its own has the one that the reset leaves it at: at the level that the kernel
// gives it the board would be in reset for ever.
func (c PortConfig) levels() (dtr, rts Level) {
	dtr, rts = c.DTR, c.RTS
	if dtr == "" {
		dtr = c.Reset.end("dtr")
	}
	if rts == "" {
		rts = c.Reset.end("rts")
	}
	return dtr, rts
}

// needsLines reports whether a port without modem lines is of no use.
func (c PortConfig) needsLines() bool {
	dtr, rts := c.levels()
	_, setsDTR := dtr.fixed()
	_, setsRTS := rts.fixed()
	return setsDTR || setsRTS || c.Reset.MovesLines() || !c.Present.IsZero()
}
