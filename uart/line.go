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

// Line is a board's serial line as a dialect sees it: lines in, commands out.
// Everything that arrives passes the guard against private keys before anyone
// sees it, and everything is recorded. One goroutine at a time may use it.
type Line struct {
	conn  Conn
	nonce func(n int) string

	in    []byte // arrived, not yet consumed; bounded by maxText and one read
	total int    // bytes since the last Mark
	leaks leakDetector
	// leaked: the board printed a private key. Until Forget or clearLeak, nobody
	// sees what it says, for more of the key may follow.
	leaked     bool
	suppressed []byte // the end of that, in which the start of another board is looked for; bounded by maxText
	err        error  // sticks: the line is of no more use
	recorder   *recorder
	// prompt, of TIAT: the board prints it when it is ready for a command, and
	// hears nothing before. Until Forget.
	prompt string
	search *searchState // what goes on in Detect; nil: nothing
	// unknown: what is connected is no board. It may be silent for ever and is
	// still there.
	unknown bool
	onHeard func()
	// explain gets the meaning of what dialects read; nil: nobody asks.
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

// NewLine takes over the reading of c; the caller still closes it.
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

// Mark begins a new recording and a new budget of bytes; what arrived and was
// not consumed stays.
func (l *Line) Mark() {
	l.recorder = newRecorder()
	l.total = 0
	l.recorder.blank = l.leaked
	if len(l.in) > 0 {
		l.recorder.add(Received, l.in)
	}
}

// Forget is called when a board is gone: nothing of it stays on the line.
func (l *Line) Forget() {
	if l.leaked {
		l.leaks = leakDetector{} // otherwise it sees every byte from the first
	}
	l.in, l.suppressed, l.leaked, l.prompt, l.unknown = nil, nil, false, "", false
	l.Mark()
}

// clearLeak ends a taint: of what was dropped unseen, what begins at byte i is of
// another board, and is on the line again. The guard looks at it.
func (l *Line) clearLeak(i int) error {
	rest := bytes.Clone(l.suppressed[i:])
	l.Forget()
	return l.take(rest)
}

// Known returns the serial number of a board whose Read failed with err, so
// that the board can be found by it. It proves nothing. A board that refused to
// sign (ErrNoProof) has said who it is. After any other failure, signatures of
// several keys included, the board must have printed the number twice alike: it
// may have been swapped.
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

// readNone begins a reading: what an earlier one read does not count.
func (l *Line) readNone() { l.once, l.known = nil, nil }

// drawNonce draws a fresh challenge of n letters and digits, and notes it in the
// recording, so that a replay can use the same.
func (l *Line) drawNonce(n int) string {
	s := l.nonce(n)
	l.recorder.add(Drawn, []byte(s))
	return s
}

// send writes s as it is.
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

// lineOrSilence is readLine that stops when nothing arrives for so long: heard
// is false then, and not the error of an ended context.
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

// nextLine takes a whole line off what has arrived.
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

// awaitBytes waits up to wait for anything to arrive, and reports whether it did. It
// consumes nothing.
func (l *Line) awaitBytes(ctx context.Context, wait time.Duration) (bool, error) {
	if len(l.in) > 0 {
		return true, nil
	}
	return l.more(ctx, wait)
}

// more is awaitBytes for what comes on top of what is there.
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

// gather waits until there was silence for so long, or limit has passed, and
// returns all that has arrived. It consumes nothing.
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

// Discard drops what arrives until there was silence for so long, or limit has
// passed. It returns what it dropped, capped at 4 KiB.
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

// Pending tells whether something arrived that nobody has looked at.
func (l *Line) Pending() bool { return len(l.in) > 0 }

// keepLast drops what has arrived but its last n bytes.
func (l *Line) keepLast(n int) { l.in = l.in[max(0, len(l.in)-n):] }

// heard returns all that the recording has of the board since the last Mark.
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
		// A deadline that an earlier context set late is no reason to give up;
		// one of our own is, and the context's end, which says why, is at hand.
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
