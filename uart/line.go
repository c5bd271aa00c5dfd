package uart

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
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
	guard guard
	// tainted: the board printed a private key. Until Forget or pardon, nobody
	// sees what it says, for more of the key may follow.
	tainted bool
	unseen  []byte // the end of that, in which the start of another board is looked for; bounded by maxText
	err     error  // sticks: the line is of no more use
	tape    *tape
	// prompt, of TIAT: the board prints it when it is ready for a command, and
	// hears nothing before. Until Forget.
	prompt string
	search *searching // what goes on in Detect; nil: nothing
	// stranger: what is connected is no board. It may be silent for ever and is
	// still there.
	stranger bool
	onSpeech func()
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
	l := &Line{conn: c, nonce: o.Nonce, onSpeech: o.Heard, tape: newTape()}
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
	l.tape = newTape()
	l.total = 0
	l.tape.blank = l.tainted
	if len(l.in) > 0 {
		l.tape.add(received, l.in)
	}
}

// Forget is called when a board is gone: nothing of it stays on the line.
func (l *Line) Forget() {
	if l.tainted {
		l.guard = guard{} // otherwise it sees every byte from the first
	}
	l.in, l.unseen, l.tainted, l.prompt, l.stranger = nil, nil, false, "", false
	l.Mark()
}

// pardon ends a taint: of what was dropped unseen, what begins at byte i is of
// another board, and is on the line again. The guard looks at it.
func (l *Line) pardon(i int) error {
	rest := bytes.Clone(l.unseen[i:])
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

// Nonce draws a fresh challenge of n letters and digits, and notes it in the
// recording, so that a replay can use the same.
func (l *Line) Nonce(n int) string {
	s := l.nonce(n)
	l.tape.add(drawn, []byte(s))
	return s
}

// Send writes s as it is.
func (l *Line) Send(ctx context.Context, s string) error {
	if l.err != nil {
		return l.err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l.tape.add(sent, []byte(s))
	if _, err := l.conn.Write([]byte(s)); err != nil {
		return l.fail(err)
	}
	return nil
}

// ReadLine returns the next line that is not empty and whose end has arrived,
// without its end. Any run of CR and LF is one line end.
func (l *Line) ReadLine(ctx context.Context) (string, error) {
	for {
		if line, ok, err := l.nextLine(); ok || err != nil {
			return line, err
		}
		if err := l.fill(ctx); err != nil {
			return "", err
		}
	}
}

// lineOrSilence is ReadLine that stops when nothing arrives for so long: heard
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

// Heard waits up to wait for anything to arrive, and reports whether it did. It
// consumes nothing.
func (l *Line) Heard(ctx context.Context, wait time.Duration) (bool, error) {
	if len(l.in) > 0 {
		return true, nil
	}
	return l.more(ctx, wait)
}

// more is Heard for what comes on top of what is there.
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

// ReadPrompt returns what has arrived up to where end says, as soon as it says
// so: a prompt has no line end to wait for. end gets all that was not consumed,
// line ends and all, and returns how many bytes of it to consume; negative is
// not yet.
func (l *Line) ReadPrompt(ctx context.Context, end func(text string) int) (string, error) {
	for {
		if l.err != nil {
			return "", l.err
		}
		if n := end(string(l.in)); n >= 0 {
			text := string(l.in[:n])
			l.in = l.in[n:]
			return text, nil
		}
		if len(l.in) > maxText {
			l.in = nil
			return "", fmt.Errorf("%w: more than %d bytes and no prompt", ErrGarbled, maxText)
		}
		if err := l.fill(ctx); err != nil {
			return "", err
		}
	}
}

// Gather waits until there was silence for so long, or limit has passed, and
// returns all that has arrived. It consumes nothing.
func (l *Line) Gather(ctx context.Context, silence, limit time.Duration) (string, error) {
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
		heard, err := l.Heard(ctx, silence)
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

// keep drops what has arrived but its last n bytes.
func (l *Line) keep(n int) { l.in = l.in[max(0, len(l.in)-n):] }

// heard returns all that the recording has of the board since the last Mark.
func (l *Line) heard() string {
	var b strings.Builder
	for _, c := range l.tape.chunks {
		if c.Direction == received {
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
	if l.tainted {
		l.unseen = append(l.unseen, b...)
		l.unseen = l.unseen[max(0, len(l.unseen)-maxText):]
		return nil
	}
	if l.guard.leak(b) {
		l.in, l.unseen = nil, nil
		l.tainted = true
		l.tape.redact()
		return ErrPrivateKey
	}
	l.tape.add(received, b)
	l.in = append(l.in, b...)
	l.total += len(b)
	l.arrived += len(b)
	if l.search != nil {
		l.search.speaks(l)
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
	l.tape.note("line lost")
	l.err = err
	return err
}

// guard looks for private keys in a stream. It folds case, and takes any run of
// blanks, dashes, underscores and line ends for one blank, so that neither a
// wrapped nor an odd spelling passes.
type guard struct {
	words  string // the folded end of the stream
	base64 string // the end of the stream without blanks
}

// The words, and how private keys begin in base64, whatever their curve or
// size: a board attached in the middle of a dump may show no header. Each needs
// what no public structure has in its place: after the length, a version and
// then key material or the name of an algorithm. (In a CSR the version 0 is
// followed by a subject.)
const leakWords = "PRIVATE KEY"

var leakBase64 = regexp.MustCompile(strings.Join([]string{
	`M[A-H].CAQEE[F-R]`,        // SEC 1: 30 len, 02 01 01, 04 len
	`MI[GH].AgEBB[A-H]`,        // the same, 30 81 len
	`M[A-H].CAQAw.[AQgw]Y`,     // PKCS #8: 30 len, 02 01 00, 30 len, 06 len
	`MI[GH].AgEAM[A-H].G`,      // the same, 30 81 len
	`MI[I-L]..[AQgw]IBADA.Bg`,  // the same, 30 82 len len
	`MI[I-L]..[AQgw]IBAAK[BC]`, // PKCS #1: 30 82 len len, 02 01 00, 02 81 or 82
}, "|"))

const guardTail = 32

func (g *guard) leak(b []byte) bool {
	words := []byte(g.words)
	for _, c := range bytes.ToUpper(b) {
		if strings.IndexByte(" -_\t\r\n", c) >= 0 {
			c = ' '
			if len(words) > 0 && words[len(words)-1] == ' ' {
				continue
			}
		}
		words = append(words, c)
	}
	raw := g.base64 + blanks.Replace(string(b))
	g.words = string(words[max(0, len(words)-guardTail):])
	g.base64 = raw[max(0, len(raw)-guardTail):]
	if bytes.Contains(words, []byte(leakWords)) {
		return true
	}
	return leakBase64.MatchString(raw)
}

// blanks may be anywhere in base64 that was wrapped.
var blanks = strings.NewReplacer(" ", "", "\t", "", "\r", "", "\n", "")
