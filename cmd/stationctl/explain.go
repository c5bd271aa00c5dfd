package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"secretfree/fixtures"
	"secretfree/uart"
)

// observer is a dialect that notes how it understands a board, and where it
// gives up.
type observer struct {
	uart.Dialect

	mu       sync.Mutex
	meanings map[string][]string // by the text of a line
	err      error               // of the last reading; nil: it was good
	received []byte              // up to err
	consumed int                 // of that
}

// Detect implements uart.Dialect.
func (o *observer) Detect(ctx context.Context, l *uart.Line) error {
	l.Explain(o.note)
	return o.end(l, o.Dialect.Detect(ctx, l))
}

// Read implements uart.Dialect.
func (o *observer) Read(ctx context.Context, l *uart.Line) (uart.Report, error) {
	report, err := o.Dialect.Read(ctx, l)
	return report, o.end(l, err)
}

func (o *observer) note(text, meaning string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.meanings == nil {
		o.meanings = map[string][]string{}
	}
	for line := range strings.FieldsFuncSeq(text, isLineEnd) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(o.meanings[line], meaning) {
			o.meanings[line] = append(o.meanings[line], meaning)
		}
	}
}

func isLineEnd(r rune) bool { return r == '\r' || r == '\n' }

func (o *observer) end(l *uart.Line, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err = err; err == nil {
		return nil
	}
	o.received = received(l.Transcript())
	o.consumed = min(l.Consumed(), len(o.received))
	return err
}

func received(t *uart.Transcript) []byte {
	var all []byte
	for _, chunk := range t.Chunks {
		if chunk.Direction == uart.Received {
			all = append(all, chunk.Bytes...)
		}
	}
	return all
}

// where names the place of the recording at which the reader gave up: the
// beginning of the line that it used last, or the end of what it got, where it
// waited in vain. It is empty if the reader did not give up.
func (o *observer) where(t *uart.Transcript) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	skipped := bytes.Index(received(t), o.received)
	if o.err == nil || skipped < 0 {
		return ""
	}
	if errors.Is(o.err, uart.ErrTimeout) {
		line, at := placeOf(t, skipped+len(o.received))
		if line == 0 {
			return fmt.Sprintf(": the recording ends at line %d, and the reader waits for more (%v); the file may be cut", t.Line(len(t.Chunks)), o.err)
		}
		return fmt.Sprintf(": the reader waited in vain for what should stand before byte %d of line %d (%v)", at, line, o.err)
	}
	used := bytes.TrimRight(o.received[:o.consumed], "\r\n")
	begin := bytes.LastIndexAny(used, "\r\n") + 1
	line, at := placeOf(t, skipped+begin)
	if errors.Is(o.err, fixtures.ErrDeparts) {
		return fmt.Sprintf("; it follows from byte %d of line %d, %.80q, or from what came after", at, line, used[begin:])
	}
	return fmt.Sprintf(": the reader left the good path at byte %d of line %d, %.80q (%v)", at, line, used[begin:], o.err)
}

// placeOf is the line of the file and the byte of its text at which byte n of
// what was received stands, both as DepartsError counts; line 0 is after the
// end.
func placeOf(t *uart.Transcript, n int) (line, at int) {
	for i, chunk := range t.Chunks {
		if chunk.Direction != uart.Received {
			continue
		}
		if n < len(chunk.Bytes) {
			return t.Line(i + 1), n
		}
		n -= len(chunk.Bytes)
	}
	return 0, 0
}

// understoodLine is a line that the board printed.
type understoodLine struct {
	Line    int    `json:"line"` // of the file, where the text begins
	Text    string `json:"text"`
	Meaning string `json:"meaning"`
}

const notUnderstood = "not understood, skipped"

// lines lists what the board said, a line each, with its meaning. A prompt ends
// where the reader answers.
func (o *observer) lines(t *uart.Transcript) []understoodLine {
	o.mu.Lock()
	defer o.mu.Unlock()
	var (
		all  []understoodLine
		text []byte
		at   int
		sent string
	)
	end := func() {
		if trimmed := strings.TrimSpace(string(text)); trimmed != "" {
			all = append(all, understoodLine{at, trimmed, o.meaning(trimmed, sent)})
		}
		text = nil
	}
	for i, chunk := range t.Chunks {
		switch chunk.Direction {
		case uart.Sent:
			end()
			sent = strings.TrimSpace(string(chunk.Bytes))
		case uart.Received:
			for _, b := range chunk.Bytes {
				if isLineEnd(rune(b)) {
					end()
					continue
				}
				if len(text) == 0 {
					at = t.Line(i + 1)
				}
				text = append(text, b)
			}
		}
	}
	end()
	return all
}

func (o *observer) meaning(line, sent string) string {
	found := slices.Clone(o.meanings[line])
	if found == nil {
		for text, meanings := range o.meanings {
			if len(text) > 3 && strings.Contains(line, text) {
				found = append(found, meanings...)
			}
		}
		slices.Sort(found)
		found = slices.Compact(found)
	}
	switch {
	case len(found) > 0:
		return strings.Join(found, "; ")
	case line == sent:
		return "echo"
	}
	return notUnderstood
}

func linesText(lines []understoodLine) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "  line %-4d %-48s %s\n", l.Line, fmt.Sprintf("%.44q", l.Text), l.Meaning)
	}
	return b.String()
}
