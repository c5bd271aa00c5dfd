package uart

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

const (
	// maxLine caps a line of a board; the longest good one is a base64
	// signature of about 120.
	maxLine = 2048
	// maxText caps what is looked at as one text: a banner, or a request in PEM
	// with events in it.
	maxText = 8 << 10
	// maxDialogue caps what a board may print from one mark to the next.
	maxDialogue = 256 << 10
)

// Line is the serial line to a board, as a dialect uses it: it returns lines
// and sends commands. All input passes the leak detector before any caller sees
// it, and all traffic is recorded. Only one goroutine at a time may use a Line.
type Line struct {
	conn  Conn
	nonce func(n int) string

	in    []byte // arrived, not yet consumed; bounded by maxText and one read
	total int    // bytes since the last Mark
	leaks leakDetector
	// leaked: the board printed a private key. Until Forget or clearLeak all
	// input is suppressed, because more of the key may follow.
	leaked     bool
	suppressed []byte // the end of that, in which the start of another board is looked for; bounded by maxText
	err        error  // sticks: the line is of no more use
	recorder   *recorder
	// prompt, of TIAT: the board prints it when it is ready for a command, and
	// ignores input before that. Forget clears it.
	prompt string
	search *searchState // of the running Detect; nil: none
	// unknown: the connected device is not a board. It may stay silent for ever
	// while it is connected.
	unknown bool
	onHeard func()
	// explain receives the meaning of the text that dialects read; may be nil.
	explain func(Piece)
	arrived int        // bytes since NewLine; the last of them are in
	lineAt  int        // the place of the line that nextLine returned last
	answer  answerText // the value of the last answer
	// device is the serial number that Read has read, for Gone; nil from when
	// the next board is looked for until it was read.
	device *[16]byte
	// once is the serial number that Read has read a first time; known, the one
	// that a Read which failed had read twice alike. nil: none.
	once, known *[16]byte
}

// LineOptions are the settings of a Line; the zero value is right for a real
// board.
type LineOptions struct {
	// Nonce returns n fresh characters of A-Z, a-z and 0-9. It is for replays;
	// nil draws them from crypto/rand.
	Nonce func(n int) string
	// Heard, if not nil, is called in Detect when the first byte has arrived,
	// by the goroutine that runs Detect: something is connected.
	Heard func()
}

// NewLine makes a Line that reads c. The caller closes c.
func NewLine(c Conn, o LineOptions) *Line {
	l := &Line{conn: c, nonce: o.Nonce, onHeard: o.Heard, recorder: newRecorder()}
	if l.nonce == nil {
		l.nonce = randomText
	}
	return l
}

// randomText draws n letters and digits, 5.95 bits each.
func randomText(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	var b [64]byte
	for len(out) < n {
		rand.Read(b[:])
		for _, c := range b {
			if int(c) < 256/len(letters)*len(letters) && len(out) < n {
				out = append(out, letters[int(c)%len(letters)])
			}
		}
	}
	return string(out)
}

// Mark begins a new recording and a new byte budget. Input that was not
// consumed stays.
func (l *Line) Mark() {
	l.recorder = newRecorder()
	l.total = 0
	l.recorder.blank = l.leaked
	if len(l.in) > 0 {
		l.recorder.add(Received, l.in)
	}
}

// Forget discards everything that the last board has printed. It is called when
// the board is gone.
func (l *Line) Forget() {
	if l.leaked {
		l.leaks = leakDetector{} // otherwise it sees every byte from the first
	}
	l.in, l.suppressed, l.leaked, l.prompt, l.unknown = nil, nil, false, "", false
	l.Mark()
}

// clearLeak ends the suppression after a leak. The suppressed bytes from index
// i on come from another board; they pass the leak detector and are put back on
// the line.
func (l *Line) clearLeak(i int) error {
	rest := bytes.Clone(l.suppressed[i:])
	l.Forget()
	return l.take(rest)
}

// Known returns the serial number of a board whose Read failed with err, so
// that the board can be found by it. The number is not proved. If the board
// refused to sign (ErrNoProof), one reading is enough. After any other failure,
// including signatures of several keys, the board must have printed the same
// number twice: the board may have been swapped.
func (l *Line) Known(err error) (device [16]byte, ok bool) {
	known := l.known
	if errors.Is(err, ErrNoProof) && !errors.Is(err, errNoCommonKey) {
		known = l.once
	}
	if known == nil {
		return device, false
	}
	return *known, true
}

// readOnce notes a first reading of the serial number, and readTwice that a
// second one said the same.
func (l *Line) readOnce(device [16]byte) { l.once = &device }
func (l *Line) readTwice()               { l.known = l.once }

// readNone begins a reading: it discards the serial numbers of earlier ones.
func (l *Line) readNone() { l.once, l.known = nil, nil }

// drawNonce returns a fresh challenge of n letters and digits, and records it,
// so that a replay can use the same challenge.
func (l *Line) drawNonce(n int) string {
	s := l.nonce(n)
	l.recorder.add(Drawn, []byte(s))
	return s
}

// send writes s unchanged.
func (l *Line) send(ctx context.Context, s string) error {
	if l.err != nil {
		return l.err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l.recorder.add(Sent, []byte(s))
	if _, err := l.conn.Write([]byte(s)); err != nil {
		return l.fail(err)
	}
	return nil
}

// readLine returns the next line that is not empty and whose end has arrived,
// without its end. Any run of CR and LF is one line end.
func (l *Line) readLine(ctx context.Context) (string, error) {
	for {
		if line, ok, err := l.nextLine(); ok || err != nil {
			return line, err
		}
		if err := l.fill(ctx); err != nil {
			return "", err
		}
	}
}

// lineOrSilence is readLine with a limit on silence. After the limit, heard is
// false and err is nil.
func (l *Line) lineOrSilence(ctx context.Context, silence time.Duration) (line string, heard bool, err error) {
	for {
		if line, ok, err := l.nextLine(); ok || err != nil {
			return line, ok, err
		}
		limited, cancel := context.WithTimeoutCause(ctx, silence, errSilence)
		err := l.fill(limited)
		cancel()
		if errors.Is(err, errSilence) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
	}
}

var errSilence = errors.New("silence")

// nextLine consumes one complete line, if one has arrived.
func (l *Line) nextLine() (line string, ok bool, err error) {
	if l.err != nil {
		return "", false, l.err
	}
	l.in = bytes.TrimLeft(l.in, "\r\n")
	l.lineAt = l.Consumed()
	if i := bytes.IndexAny(l.in, "\r\n"); i > 0 {
		line, l.in = string(l.in[:i]), l.in[i:]
		return line, true, nil
	}
	if len(l.in) > maxLine {
		l.in = nil
		return "", false, fmt.Errorf("%w: a line of more than %d bytes", ErrGarbled, maxLine)
	}
	return "", false, nil
}

// awaitBytes waits up to wait for input, and reports whether there is any. It
// consumes nothing.
func (l *Line) awaitBytes(ctx context.Context, wait time.Duration) (bool, error) {
	if len(l.in) > 0 {
		return true, nil
	}
	return l.more(ctx, wait)
}

// more is awaitBytes for input beyond what has already arrived.
func (l *Line) more(ctx context.Context, wait time.Duration) (bool, error) {
	limited, cancel := context.WithTimeoutCause(ctx, wait, ErrTimeout)
	defer cancel()
	switch err := l.fill(limited); {
	case err == nil:
		return true, nil
	case errors.Is(err, ErrTimeout):
		return false, nil
	default:
		return false, err
	}
}

// gather waits until the line has been silent for that long, or limit has
// passed, and returns all input. It consumes nothing.
func (l *Line) gather(ctx context.Context, silence, limit time.Duration) (string, error) {
	end := time.Now().Add(limit)
	for len(l.in) <= maxText {
		left := min(silence, time.Until(end))
		if left <= 0 {
			break
		}
		more, err := l.more(ctx, left)
		if err != nil {
			return "", err
		}
		if !more {
			break
		}
	}
	return string(l.in), nil
}

// Discard drops input until the line has been silent for that long, or limit
// has passed. It returns the first 4 KiB of the dropped input.
func (l *Line) Discard(ctx context.Context, silence, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	var dropped strings.Builder
	for {
		if dropped.Len() < 4096 {
			dropped.Write(l.in)
		}
		l.in = nil
		heard, err := l.awaitBytes(ctx, silence)
		if err != nil || !heard {
			return dropped.String(), err
		}
		if ctx.Err() != nil {
			return dropped.String(), nil
		}
	}
}

// Pending reports whether there is input that was not consumed.
func (l *Line) Pending() bool { return len(l.in) > 0 }

// keepLast drops all input except its last n bytes.
func (l *Line) keepLast(n int) { l.in = l.in[max(0, len(l.in)-n):] }

// heard returns everything that the board has printed since the last Mark.
func (l *Line) heard() string {
	var b strings.Builder
	for _, c := range l.recorder.chunks {
		if c.Direction == Received {
			b.Write(c.Bytes)
		}
	}
	return b.String()
}

// fill reads once.
func (l *Line) fill(ctx context.Context) error {
	if l.err != nil {
		return l.err
	}
	var buf [1024]byte
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		deadline, limited := ctx.Deadline()
		if err := l.conn.SetReadDeadline(deadline); err != nil {
			return l.fail(err)
		}
		stop := context.AfterFunc(ctx, func() { l.conn.SetReadDeadline(time.Unix(1, 0)) })
		n, err := l.conn.Read(buf[:])
		stop()
		if n > 0 {
			return l.take(buf[:n])
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return l.fail(err)
		}
		// Ignore a deadline that an earlier context has set. If the deadline is
		// this context's own, the context ends now and has the cause.
		if limited && !time.Now().Before(deadline) {
			<-ctx.Done()
		}
	}
}

func (l *Line) take(b []byte) error {
	if l.leaked {
		l.suppressed = append(l.suppressed, b...)
		l.suppressed = l.suppressed[max(0, len(l.suppressed)-maxText):]
		return nil
	}
	if l.leaks.found(b) {
		l.in, l.suppressed = nil, nil
		l.leaked = true
		l.recorder.redact()
		return ErrPrivateKey
	}
	l.recorder.add(Received, b)
	l.in = append(l.in, b...)
	l.total += len(b)
	l.arrived += len(b)
	if l.search != nil {
		l.search.bytesArrived(l)
	}
	if l.total > maxDialogue {
		l.in = nil
		return fmt.Errorf("%w: more than %d bytes in one dialogue", ErrGarbled, maxDialogue)
	}
	return nil
}

func (l *Line) fail(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		err = fmt.Errorf("%w (%v)", ErrUnplugged, err)
	}
	l.recorder.note("line lost")
	l.err = err
	return err
}
