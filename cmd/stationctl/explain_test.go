package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

const transcripts = "../../fixtures/transcripts"

func load(t *testing.T, name string) *uart.Transcript {
	t.Helper()
	transcript, err := loadTranscript(filepath.Join(transcripts, name))
	if err != nil {
		t.Fatal(err)
	}
	return transcript
}

// observe replays a transcript without a port, and returns how the dialect
// understood it.
func observe(t *testing.T, transcript *uart.Transcript) (seen *observer, report uart.Report, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		dialect, dialectErr := uart.DialectByName(transcript.Header["dialect"])
		if dialectErr != nil {
			t.Fatal(dialectErr)
		}
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		conn, until := fixtures.Watch(ours)
		played := make(chan struct{})
		go func() {
			defer close(played)
			if err := fixtures.Replay(ctx, transcript, theirs, fixtures.ReplayOptions{Speed: 1, Until: until, Stay: patience}); err != nil {
				cancel(err)
			}
		}()
		seen = &observer{Dialect: dialect}
		l := uart.NewLine(conn, uart.LineOptions{Nonce: fixtures.ReplayNonces(transcript)})
		if err = seen.Detect(ctx, l); err == nil {
			report, err = seen.Read(ctx, l)
		}
		cancel(nil)
		ours.Close()
		theirs.Close()
		<-played
	})
	return seen, report, err
}

// Each line of a good board has its meaning, at its place: the same text can
// mean another thing elsewhere.
func TestLinesOfGoodBoards(t *testing.T) {
	for file, want := range map[string][]understoodLine{
		"ti-csr-stock-words.uart": {
			{18, "NWP:  4.4.1.3", "banner: fact nwp-version"},
			{24, "Unique device ID = 6e 3e 0a 00", "serial number"},
			{30, "-Enter validity period (days):", "question: validity"},
			{33, "3650", "echo"},
			{34, "ERROR: Invalid validity period", "error: the answer is refused, the question comes again"},
			{71, "Default subject common name", "default: serial number, second reading"},
			{77, "-----BEGIN", "request (PEM)"},
			{95, "-----END", "request (PEM)"},
		},
		"ti-csr-serial-of-15.uart":    {{23, "Unique device ID = 4d 1f", "serial number; WRONG at \"\", expected 16 bytes in hex; there are 15"}},
		"ti-at-serial-of-15.uart":     {{0, "+get:", "expected a comma after byte 15 of 16"}},
		"ti-csr-event-in-prompt.uart": {{30, "-Enter validity per[NETAPP EVENT]", "question: validity; event, skipped"}, {33, "iod (days):x", "question: validity"}},
		"ti-csr-more-questions.uart":  {{0, "", "question of no known subject: answered with Enter"}},
		"auto-ti-csr.uart":            {{25, "Unique device ID", "auto recognises ti-csr; serial number"}},
		"ti-csr-met-late.uart":        {{6, "-Enter validity period", "the serial number was printed before"}},
		"auto-ti-at.uart": {
			{11, "AT Commands Example Ver: 1.1.2", "auto recognises ti-at; banner: fact build"},
			{15, "CHIP: 0x31000019", "banner, skipped"},
			{23, "Enter AT Command:", "prompt"},
			{24, "at+test;secretfr", "echo of a probe"},
			{30, "at+test", "echo of the command"},
			{31, "OK", "end of the answer"},
			{34, "+get:0x50", "serial number"},
			{41, "+get:0x31000019", "answer to at+get=general,version"},
			{52, "ERROR: process command", "refusal of the command"},
			{59, "+netutilcmd:", "signature over the nonce"},
		},
		"ti-at-111.uart":           {{29, "Enter AT Command:at+get=iot,udid", "prompt; echo of the command"}},
		"report-log-around.uart":   {{8, "production test 1.0", "not an answer, skipped"}, {10, "secretfree 1 ready", "answer: serial number"}},
		"ti-at-event-in-echo.uart": {{28, "at+get=i+eventnetapp:", "echo of the command; event, skipped"}, {30, "ot,udid", "echo of the command"}},
	} {
		t.Run(file, func(t *testing.T) {
			transcript := load(t, file)
			seen, _, _ := observe(t, transcript)
			lines := seen.lines(transcript)
			for _, w := range want {
				if !slices.ContainsFunc(lines, func(l understoodLine) bool {
					return (w.Line == 0 || l.Line == w.Line) && strings.HasPrefix(l.Text, w.Text) && strings.Contains(l.Meaning, w.Meaning)
				}) {
					t.Errorf("no line %d %q %q in\n%s", w.Line, w.Text, w.Meaning, linesText(lines))
				}
			}
		})
	}
}

// identity returns the places, among the received bytes, of what identifies a
// board: its serial numbers, its key, its signatures.
func identity(seen *observer) (pieces []uart.Piece) {
	for _, p := range seen.pieces {
		switch {
		case p.Serial != "", strings.HasPrefix(p.Meaning, "signature"), strings.HasPrefix(p.Meaning, "request"),
			strings.HasPrefix(p.Meaning, "default: serial number"), strings.HasPrefix(p.Meaning, "answer: serial number, key"):
			pieces = append(pieces, p)
		}
	}
	return pieces
}

// damage returns a transcript with another byte at a place of what was
// received.
func damage(transcript *uart.Transcript, n int, b byte) *uart.Transcript {
	damaged := &uart.Transcript{Header: transcript.Header}
	for _, c := range transcript.Chunks {
		c.Bytes = bytes.Clone(c.Bytes)
		if c.Direction == uart.Received {
			if n >= 0 && n < len(c.Bytes) {
				c.Bytes[n] = b
			}
			n -= len(c.Bytes)
		}
		damaged.Chunks = append(damaged.Chunks, c)
	}
	return damaged
}

// A good recording with one damaged byte of the identity: the place that is
// named is in the board's line that has the damage, and mostly the byte itself.
func TestDamagedByteIsNamed(t *testing.T) {
	step := 23
	if testing.Short() {
		step = 101
	}
	for _, file := range []string{"ti-at-good.uart", "ti-at-111.uart", "report-good.uart", "ti-csr-stock-words.uart", "ti-csr-name-whole.uart", "auto-ti-csr.uart", "auto-ti-at.uart", "auto-report.uart"} {
		t.Run(file, func(t *testing.T) {
			transcript := load(t, file)
			good, _, err := observe(t, transcript)
			if err != nil {
				t.Fatal(err)
			}
			all, tried, exact := received(transcript), 0, 0
			for _, p := range identity(good) {
				for n := p.At; n < p.At+p.Len; n += step {
					was := all[n]
					if isLineEnd(rune(was)) {
						continue
					}
					b := byte('!')
					if tried%2 == 0 && was != 'f' {
						b = 'f'
					}
					damaged := damage(transcript, n, b)
					seen, report, err := observe(t, damaged)
					if err == nil && hex.EncodeToString(report.Device[:]) == transcript.Header["device"] {
						continue // tolerated, such as a blank at the end
					}
					tried++
					got, _ := seen.place(damaged)
					first, _ := placeOf(damaged, lineStart(all, n))
					line, at := placeOf(damaged, n)
					if got.line < first || got.line > line || got.last < line && got.line != line {
						t.Errorf("byte %d of line %d, %q for %q (%s): named is %v (%v)", at, line, b, was, p.Meaning, got, err)
					}
					if got.line == line && got.at == at {
						exact++
					}
				}
			}
			t.Logf("%d damaged bytes, %d of them named exactly", tried, exact)
			if tried < 5 {
				t.Errorf("%d damaged bytes: too few to tell", tried)
			}
		})
	}
}

// lineStart is the place where the board's line begins; a request is one line.
func lineStart(all []byte, n int) int {
	if i := bytes.LastIndex(all[:n+1], []byte("-----BEGIN")); i >= 0 {
		return i
	}
	return bytes.LastIndexAny(all[:n], "\r\n") + 1
}

// A reader that waits in vain names the place before which something is
// missing; a recording that ends too early is said to be cut.
func TestWaitedInVain(t *testing.T) {
	whole := load(t, "report-good.uart")
	cut := &uart.Transcript{Header: whole.Header}
	for _, c := range whole.Chunks {
		if c.At > 600*time.Millisecond && c.Direction == uart.Received {
			break
		}
		cut.Chunks = append(cut.Chunks, c)
	}
	seen, _, err := observe(t, cut)
	if err == nil {
		t.Fatal("a cut recording passed")
	}
	departs, ok := errors.AsType[*fixtures.DeviationError](err)
	if !ok || len(departs.Recorded) > 0 || departs.Line != cut.Line(len(cut.Chunks)+1) {
		t.Errorf("%v%s, want a departure at the end", err, seen.where(cut))
	}

	// The board says its answer after the reader has given up.
	for name, c := range map[string]struct {
		received int
		want     spot
	}{
		"in the middle": {3, spot{line: 6, at: 1}},
		"at the end":    {6, spot{}},
	} {
		t.Run(name, func(t *testing.T) {
			transcript := &uart.Transcript{Header: map[string]string{"dialect": "report", "expect": "passed"}, Chunks: []uart.Chunk{
				{Direction: uart.Received, Bytes: []byte("ab")}, {Direction: uart.Received, Bytes: []byte("cdef")},
			}}
			seen := &observer{err: uart.ErrTimeout, arrived: c.received, consumed: 2}
			p, exact := seen.place(transcript)
			if exact || p.line != c.want.line || p.line != 0 && p.at != c.want.at {
				t.Errorf("got %+v, want %+v", p, c.want)
			}
			if got := seen.where(transcript); strings.Contains(got, "may be cut") != (c.want.line == 0) || got == "" {
				t.Errorf("where says %q", got)
			}
		})
	}
}
