package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
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
	line     *uart.Line // the first one; what a later one receives has other places
	pieces   []uart.Piece
	present  *uart.Piece // the last wrong one of the present Detect or Read
	wrong    *uart.Piece // the same, of the last Detect or Read
	err      error       // of the last Detect or Read; nil: it was good
	arrived  int         // bytes, up to err
	consumed int         // of these
}

// Detect implements uart.Dialect.
func (o *observer) Detect(ctx context.Context, l *uart.Line) error {
	o.begin(l)
	return o.end(l, o.Dialect.Detect(ctx, l))
}

// Read implements uart.Dialect.
func (o *observer) Read(ctx context.Context, l *uart.Line) (uart.Report, error) {
	o.begin(l)
	report, err := o.Dialect.Read(ctx, l)
	return report, o.end(l, err)
}

func (o *observer) begin(l *uart.Line) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.line == nil {
		o.line = l
		l.Explain(o.note)
	}
	o.present = nil
}

func (o *observer) note(p uart.Piece) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pieces = append(o.pieces, p)
	if p.Want != "" {
		o.present = &p
	}
}

func isLineEnd(r rune) bool { return r == '\r' || r == '\n' }

func (o *observer) end(l *uart.Line, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l == o.line && !errors.Is(err, errEnough) { // after the verdict it looks for the next board
		o.wrong = o.present
		o.err, o.arrived, o.consumed = err, l.Received(), l.Consumed()
	}
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

// spot is a place in a recording.
type spot struct {
	line, at int    // of the file, and the byte of its text as DeviationError counts; line 0 is after the end
	last     int    // the line where the piece ends
	text     string // from there to the end of the board's line
	what     string // what stands there, and what was expected; may be empty
}

func (p spot) String() string {
	to := ""
	if p.last > p.line {
		to = fmt.Sprintf(" (up to line %d)", p.last)
	}
	if p.what != "" {
		return fmt.Sprintf("byte %d of line %d%s, %.60q: %s", p.at, p.line, to, p.text, p.what)
	}
	return fmt.Sprintf("byte %d of line %d%s, %.60q", p.at, p.line, to, p.text)
}

// where says in words at which place of the recording the reader gave up. It is
// empty if the reader did not give up.
func (o *observer) where(t *uart.Transcript) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	p, exact := o.place(t)
	switch {
	case exact && errors.Is(o.err, fixtures.ErrDeviation):
		return "; it follows from " + p.String()
	case exact && o.err == nil:
		return ": see " + p.String()
	case exact:
		return fmt.Sprintf(": the reader left the good path at %v (%v)", p, o.err)
	case o.err == nil:
		return ""
	case errors.Is(o.err, uart.ErrTimeout) && p.line == 0:
		return fmt.Sprintf(": the recording ends at line %d, and the reader waits for more (%v); the file may be cut", t.Line(len(t.Chunks)), o.err)
	case errors.Is(o.err, uart.ErrTimeout):
		return fmt.Sprintf(": the reader waited in vain for what should stand before byte %d of line %d (%v)", p.at, p.line, o.err)
	case errors.Is(o.err, fixtures.ErrDeviation):
		return fmt.Sprintf("; it follows from %v, or from what came after", p)
	}
	return fmt.Sprintf(": the reader left the good path at %v (%v)", p, o.err)
}

// place is where the reader left the good path. exact says that the dialect
// named the place. Otherwise it is the end of what arrived, after a time-out,
// or the beginning of the line that was used last.
func (o *observer) place(t *uart.Transcript) (p spot, exact bool) {
	all := received(t)
	if piece, i := o.otherSerial(t.Header["device"]); piece != nil {
		right := t.Header["device"]
		p := placeAt(t, all, piece.Byte(i), piece.At+piece.Len)
		p.what = fmt.Sprintf("%s, expected %s as its byte %d (%s, says the header of the file)", piece.Meaning, right[2*i:2*i+2], i+1, right)
		return p, true
	}
	if o.wrong != nil {
		p := placeAt(t, all, o.wrong.At, o.wrong.At+o.wrong.Len)
		p.what = fmt.Sprintf("%s, expected %s", o.wrong.Meaning, o.wrong.Want)
		return p, true
	}
	if errors.Is(o.err, uart.ErrTimeout) {
		return placeAt(t, all, o.arrived, o.arrived), false
	}
	used := bytes.TrimRight(all[:min(o.consumed, len(all))], "\r\n")
	begin := bytes.LastIndexAny(used, "\r\n") + 1
	return placeAt(t, all, begin, len(used)), false
}

// otherSerial returns the first serial number that is not the one of the
// recording's header, and the first byte in which it differs. It is nil if a
// serial number is not what the reading failed for.
func (o *observer) otherSerial(device string) (*uart.Piece, int) {
	right, err := hex.DecodeString(device)
	compared := o.wrong == nil && o.err == nil || o.wrong != nil && strings.HasSuffix(o.wrong.Meaning, "serial number")
	if err != nil || len(right) != 16 || !compared {
		return nil, 0
	}
	for _, p := range o.pieces {
		if serial, err := hex.DecodeString(p.Serial); err == nil && len(serial) == len(right) && p.Serial != device {
			i := 0
			for serial[i] == right[i] {
				i++
			}
			return &p, i
		}
	}
	return nil, 0
}

// placeAt is the place of the received bytes from n to end.
func placeAt(t *uart.Transcript, all []byte, n, end int) spot {
	line, at := placeOf(t, n)
	p := spot{line: line, at: at}
	if p.last, _ = placeOf(t, max(n, end-1)); line == 0 || n > len(all) {
		return p
	}
	text := all[n:]
	if i := bytes.IndexFunc(text, isLineEnd); i > 0 {
		text = text[:i]
	}
	p.text = string(text)
	return p
}

// placeOf is the line of the file and the byte of its text at which byte n of
// what was received stands; line 0 is after the end.
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

const notUnderstood = "other text, skipped"

// lines lists what the board said, a line each, with its meaning. A prompt ends
// where the reader answers.
func (o *observer) lines(t *uart.Transcript) []understoodLine {
	o.mu.Lock()
	defer o.mu.Unlock()
	var (
		all      []understoodLine
		text     []byte
		line     int
		from, at int // among the bytes received
		sent     string
	)
	end := func() {
		if trimmed := strings.TrimSpace(string(text)); trimmed != "" {
			from += bytes.Index(text, []byte(trimmed))
			all = append(all, understoodLine{line, trimmed, o.meaning(from, trimmed, sent)})
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
				} else {
					if len(text) == 0 {
						line, from = t.Line(i+1), at
					}
					text = append(text, b)
				}
				at++
			}
		}
	}
	end()
	return all
}

// meaning joins what the dialect said of a line that begins at a place.
func (o *observer) meaning(from int, line, sent string) string {
	var found []string
	add := func(meaning string) {
		if !slices.Contains(found, meaning) {
			found = append(found, meaning)
		}
	}
	var pieces []uart.Piece
	for _, p := range o.pieces {
		// What is missing is expected at the end of a line.
		if p.At < from+len(line) && p.At+p.Len > from || p.Want != "" && p.At >= from && p.At <= from+len(line)+1 {
			pieces = append(pieces, p)
		}
	}
	slices.SortStableFunc(pieces, func(p, q uart.Piece) int { return cmp.Compare(max(from, p.At), max(from, q.At)) })
	for _, p := range pieces {
		add(p.Meaning)
		if p.Want != "" && p.At >= from {
			add(fmt.Sprintf("WRONG at %.16q, expected %s", line[min(len(line), p.At-from):], p.Want))
		}
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
