package uart

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// TIAT is the dialect of TI's "AT Commands" example for the CC3220 and CC3235,
// in all its builds: 1.1.2, 1.1.1 with a prompt before every command, and those
// whose terminal is in text mode. The identity is the key in index 0 of the
// network processor. No command prints that key, so the reader recovers it from
// signatures over fresh nonces, which also proves possession. The command
// public_key reads index 1, which is never the identity; its fingerprint is
// recorded as the fact "key-1".
type TIAT struct{}

// Name implements Dialect.
func (TIAT) Name() string { return "ti-at" }

const (
	tiSilence  = 200 * time.Millisecond // an AT board that was cut off in mid-command has said all by then
	tiFlush    = 2 * time.Second        // but a board that never stops is not waited for
	tiReady    = 100 * time.Millisecond // from an answer to the prompt after it, if there is one
	tiEcho     = 300 * time.Millisecond // echo of a CR, from a live board
	tiPing     = 700 * time.Millisecond // between looks at an empty slot
	tiAnswer   = 3 * time.Second        // to any command but sign_msg
	tiSign     = 10 * time.Second
	tiSettle   = 2  // times to bring a board back to order: its start may fall into the first
	tiLines    = 64 // lines of one answer, events and all
	tiNonceLen = 21 // no padding in base64, and not a multiple of 8: the firmware's decoder writes one byte too many there
	tiNonces   = 3

	// The silence after a line in other words than the documented ones. Then
	// the line is the whole answer: a refusal.
	tiRefusedNo   = 100 * time.Millisecond // the line begins like an error
	tiRefused     = 300 * time.Millisecond // any other line
	tiSignRefused = 600 * time.Millisecond // any other line, while the board may be signing

	tiPromptLen = 40 // characters of a prompt in other words
)

const (
	tiPrompt  = "Enter AT Command:"
	tiGetUDID = "at+get=iot,udid"
)

var (
	tiBuild  = regexp.MustCompile(`(?i)\bAT[ _-]?Commands?\b[^\r\n]{0,24}\bver(?:sion)?[:.= \t]*v?([0-9]{1,3}(?:\.[0-9]{1,3}){1,3})[ \t]*[\r\n]`)
	tiOK     = regexp.MustCompile(`(?i)[\r\n](?:[A-Za-z: ]*)OK[ \t]*([\r\n]+)`)
	tiSpeaks = guard(`(?i)enter at command:|[\r\n][ \t]*OK[ \t]*[\r\n]|ERROR[ \t]*:[ \t]*(?:command not exist|number of parameters|parse parameters)[ \t]*,[ \t]*-?[0-9]|\+event[a-z]+:`,
		"at command:", "ok", "o\u212a", "error", "+event")
	// What a board says that was waiting for a command: to a carriage return,
	// and to at+test; and how that begins.
	tiIdle       = regexp.MustCompile(`(?i)^(?:\r(?:\n\r|\n\n\r\r|\r\n|\n\r\n)|at\+test\r\n?[\r\n]*OK[ \t]*[\r\n]+)(?:Enter AT Command:)?$`)
	tiIdlePrefix = regexp.MustCompile(`(?i)^(?:at\+test)?\r[\r\n]*(?:OK?[ \t]*)?[\r\n]*(?:E[A-Za-z ]*)?$`)
	tiEvents     = regexp.MustCompile(`(?i)\+event[^\r\n]*[\r\n]+`) // wherever they are; they end their line
)

// Detect implements Dialect. It sends only carriage returns, which every build
// ignores, until the device answers. Every few looks it sends a command: a
// modem without echo answers nothing else.
func (d TIAT) Detect(ctx context.Context, l *Line) error {
	looks := 0
	return search(ctx, l, []string{d.Name()}, func(ctx context.Context) error {
		if looks++; looks%wakeEvery == 0 {
			if err := l.sendWakeLine(ctx, "at+test\r"); err != nil {
				return err
			}
		}
		if err := l.send(ctx, "\r"); err != nil {
			return err
		}
		here, err := l.awaitBytes(ctx, roundToTick(tiPing)) // an echo, or it starts just now
		if err != nil {
			return err
		}
		if !here {
			return errNothingHeard
		}
		sure, err := d.skipSilence(ctx, l)
		if err == nil && !sure {
			err = d.test(ctx, l)
		}
		return err
	})
}

// Gone implements Dialect.
func (TIAT) Gone(ctx context.Context, l *Line) error {
	return watch(ctx, l, presenceWatch{probes: []string{"\r"}, starts: TIAT{}.starts, identifyCommand: tiGetUDID + "\r", parseDevice: tiDevice})
}

// tiDevice finds the complete answer to tiGetUDID in text, including its OK.
func tiDevice(text string) (device [16]byte, ok bool) {
	text = tiEvents.ReplaceAllString(text, "")
	end := strings.LastIndexAny(text, "\r\n")
	if end < 0 {
		return device, false
	}
	have := false
	for line := range strings.FieldsFuncSeq(text[:end], func(r rune) bool { return r == '\r' || r == '\n' }) {
		if _, value, reply := cutAt(line, tiGet); reply {
			device, have = parseUDID(value)
		} else if have && endsAnswer(line, tiPrompt) {
			return device, true
		}
	}
	return device, false
}

// For auto.

func (TIAT) probe() string { return "at+test" }

func (TIAT) starts(text string) []int { return tiStarts.places(text) }

func (TIAT) answers(text string) bool { return tiSpeaks.MatchString(text) }

func (d TIAT) recognises(text string) bool { return d.answers(text) }

// leave asks  for the serial number in a line of its own, after one that is
// never empty: see auto.
func (TIAT) waitGone(ctx context.Context, l *Line, w presenceWatch) error {
	w.clearCommand, w.identifyCommand, w.parseDevice = autoProbe+"\r", tiGetUDID+"\r", tiDevice
	return watch(ctx, l, w)
}

// settle brings the board to where it waits for a command, regardless of what
// was typed before.
func (d TIAT) settle(ctx context.Context, l *Line, _ bool) error {
	if sure, err := d.skipSilence(ctx, l); sure || err != nil {
		return err
	}
	return d.restore(ctx, l)
}

// skipSilence reports whether the board is idle, so that the silence of
// tiSilence can be skipped. An idle board has answered a carriage return with a
// line end and nothing else, or at+test with OK. at+test fits into the UART's
// buffer if a prompt is still being printed. False means that the board's state
// is not yet known.
func (d TIAT) skipSilence(ctx context.Context, l *Line) (bool, error) {
	for end := time.Now().Add(tiReady); !tiIdle.Match(l.in); {
		if !tiIdlePrefix.Match(l.in) {
			return false, nil
		}
		more, err := l.more(ctx, time.Until(end))
		if err != nil || !more {
			return false, err
		}
	}
	l.keepLast(0)
	l.prompt = ""
	err := d.ping(ctx, l, tiPing)
	if errors.Is(err, ErrTimeout) && ctx.Err() == nil || errors.Is(err, ErrGarbled) {
		return false, nil
	}
	return err == nil, err
}

// test waits for silence, then asks for an OK.
func (d TIAT) test(ctx context.Context, l *Line) error {
	said, err := l.Discard(ctx, tiSilence, tiFlush)
	if err != nil {
		return err
	}
	// A prompt that comes once has a line end; one before every command has
	// none.
	said = tiEvents.ReplaceAllString(said, "")
	l.prompt = promptOf(said[strings.LastIndexAny(said, "\r\n")+1:])
	return d.ping(ctx, l, tiAnswer)
}

// promptOf returns text, which precedes a command on its line, if the text can
// be a prompt.
func promptOf(text string) string {
	if strings.Trim(text, tiBlank) == "" || len(text) > tiPromptLen || strings.Contains(fold(text), "at+") {
		return ""
	}
	return text
}

// ping asks for an OK. Firmware without at+test is asked for its serial number.
func (d TIAT) ping(ctx context.Context, l *Line, limit time.Duration) error {
	_, err := d.ask(ctx, l, "at+test", nil, limit)
	var refused *refusal
	if errors.As(err, &refused) {
		_, err = d.ask(ctx, l, tiGetUDID, tiGet, tiAnswer)
	}
	return withoutRefusal(err)
}

// ready waits for the prompt of a board that prints one before every command.
// The firmware does not listen until the prompt is complete; input beyond the
// UART's buffer is lost until then.
func (TIAT) ready(ctx context.Context, l *Line) error {
	for end := time.Now().Add(tiReady); ; {
		said := tiEvents.ReplaceAllString(string(l.in), "")
		// Its first part may have come before the answer.
		if end := said[strings.LastIndexAny(said, "\r\n")+1:]; end != "" && strings.HasSuffix(l.prompt, end) {
			l.keepLast(0)
			return nil
		}
		more, err := l.more(ctx, time.Until(end))
		if err != nil || !more {
			return err
		}
	}
}

// Read implements Dialect.
func (d TIAT) Read(ctx context.Context, l *Line) (Report, error) {
	l.explainHeard(startMeaning)
	report, err := d.read(ctx, l)
	if err == nil || !(errors.Is(err, ErrTimeout) || errors.Is(err, ErrGarbled) || errors.Is(err, errNoCommonKey)) {
		return report, err
	}
	// Once more from the start; nothing of the first try is kept.
	if err := d.restore(ctx, l); err != nil {
		return Report{}, err
	}
	return d.read(ctx, l)
}

// restore ends any partial command, then tests the board. A board that was
// reset may take some time to start.
func (d TIAT) restore(ctx context.Context, l *Line) error {
	for try := 1; ; try++ {
		// While it prints it does not listen.
		if _, err := l.Discard(ctx, tiSilence, tiFlush); err != nil {
			return err
		}
		if err := l.send(ctx, "\r"); err != nil {
			return err
		}
		err := d.test(ctx, l)
		if err == nil || try == tiSettle || !(errors.Is(err, ErrTimeout) || errors.Is(err, ErrGarbled)) {
			return err
		}
	}
}

func (d TIAT) read(ctx context.Context, l *Line) (Report, error) {
	l.readNone()
	device, err := d.udid(ctx, l)
	if err != nil {
		return Report{}, err
	}
	l.readOnce(device)
	facts := map[string]string{"dialect": d.Name()}
	if err := d.facts(ctx, l, facts); err != nil {
		return Report{}, err
	}
	var answers []signed
	var values []answerText
	for range tiNonces {
		answer, encoding, err := d.sign(ctx, l)
		if err != nil {
			return Report{}, err
		}
		answers, values = append(answers, answer), append(values, l.answer)
		facts["signature"] = encoding
	}
	spki, proof, err := recoverKey(answers)
	if err != nil {
		l.explainBadSignature(answers, values)
		return Report{}, err
	}
	// The link has no checksum, and boards can be swapped: read the serial
	// number a second time.
	again, err := d.udid(ctx, l)
	if err != nil {
		return Report{}, err
	}
	if again != device {
		l.explainOtherDevice(device, again)
		return Report{}, fmt.Errorf("%w: the serial number was another one at the end of the reading", ErrGarbled)
	}
	l.readTwice()
	// The signing key must not be the key in index 1, which commands can create
	// and delete.
	if print := sha256.Sum256(spki); facts["key-1"] == hex.EncodeToString(print[:]) {
		l.explainError(values[0].at, values[0].text, 0, "signature over the nonce", "a signature with the key in index 0")
		return Report{}, fmt.Errorf("%w: it signs with the key in index 1 instead of 0; its firmware is not TI's, use another route", ErrNoProof)
	}
	facts["hash"] = proof.Hash
	d.recordForms(l, facts)
	l.device = &device
	return Report{Device: device, SPKI: spki, Facts: facts, Proof: proof}, nil
}

// recordForms records which of the documented forms the board uses.
func (TIAT) recordForms(l *Line, facts map[string]string) {
	heard := l.heard()
	if m := tiBuild.FindAllStringSubmatch(heard, -1); m != nil {
		facts["build"] = m[len(m)-1][1]
	}
	start := 0
	if all := tiStarts.FindAllStringIndex(heard, -1); all != nil {
		start = all[len(all)-1][0]
	}
	facts["prompt"] = "once"
	if strings.Count(heard[start:], cmp.Or(l.prompt, tiPrompt)) > 1 {
		facts["prompt"] = "every-command"
	}
	facts["line-ends"] = "other"
	for _, m := range tiOK.FindAllStringSubmatch(heard, -1) { // the end of a late OK can be torn
		if strings.HasPrefix(m[1], "\n\r\r") {
			facts["line-ends"] = "lf-cr-cr"
			break
		}
		switch {
		case strings.HasPrefix(m[1], "\n\r"):
			facts["line-ends"] = "lf-cr"
		case strings.HasPrefix(m[1], "\r\n"):
			facts["line-ends"] = "cr-lf"
		}
	}
}

func (d TIAT) udid(ctx context.Context, l *Line) (udid [16]byte, err error) {
	value, err := d.ask(ctx, l, tiGetUDID, tiGet, tiAnswer)
	var refused *refusal
	if errors.As(err, &refused) { // a command that was cut on its way is refused as well; Read asks again
		return udid, fmt.Errorf("reading the serial number: %w: the board refuses %s (%s)", ErrFirmware, tiGetUDID, refused.text)
	}
	if err != nil {
		return udid, fmt.Errorf("reading the serial number: %w", err)
	}
	udid, ok := parseUDID(value)
	if !ok {
		at, want := udidStop(value)
		l.explainError(l.answer.at, value, at, meaningSerial, want)
		return udid, fmt.Errorf("reading the serial number: %w: not 16 bytes", ErrGarbled)
	}
	l.explainDevice(l.answer, udid, meaningSerial)
	return udid, checkDevice(udid)
}

// facts reads the optional facts. A refusal, or an answer in an unknown form,
// does not fail the board.
func (d TIAT) facts(ctx context.Context, l *Line, facts map[string]string) error {
	for _, q := range []struct {
		command string
		reply   *regexp.Regexp
		keep    func(value string, facts map[string]string)
	}{
		{"at+get=general,version", tiGet, parseVersion},
		{"at+netcfgget=get_mac_addr", tiNetCfgGet, parseMAC},
		{"at+netutilget=public_key,1", tiNetUtilGet, parseKey1},
	} {
		value, err := d.ask(ctx, l, q.command, q.reply, tiAnswer)
		var refused *refusal
		switch {
		case err == nil:
			q.keep(value, facts)
		case errors.As(err, &refused):
		case errors.Is(err, errStopped), errors.Is(err, errAnew), ctx.Err() != nil:
			return fmt.Errorf("asking %s: %w", q.command, err)
		case errors.Is(err, ErrTimeout), errors.Is(err, ErrGarbled):
			// A late answer must not be taken for that to the next command.
			if err := d.test(ctx, l); err != nil {
				return fmt.Errorf("after %s: %w", q.command, err)
			}
		default:
			return fmt.Errorf("asking %s: %w", q.command, err)
		}
	}
	return nil
}

// parseKey1 reads the key in index 1, which is never the identity.
func parseKey1(value string, facts map[string]string) {
	raw, err := parseBase64(value)
	if err == nil {
		var spki []byte
		if spki, _, err = parsePoint(raw); err == nil {
			print := sha256.Sum256(spki)
			facts["key-1"] = hex.EncodeToString(print[:])
		}
	}
	if err != nil {
		keepRaw(facts, "key-1-raw", value)
	}
}

// sign makes the board sign a fresh nonce with key 0. The base64 of letters and
// digits has no delimiter characters.
func (d TIAT) sign(ctx context.Context, l *Line) (signed, string, error) {
	nonce := l.drawNonce(tiNonceLen)
	text := base64.StdEncoding.EncodeToString([]byte(nonce))
	value, err := d.ask(ctx, l, fmt.Sprintf("at+netutilcmd=sign_msg,0,1,%d,%s", len(text), text), tiNetUtilCmd, tiSign)
	var refused *refusal
	if errors.As(err, &refused) {
		return signed{}, "", fmt.Errorf("%w: it refuses to sign with key 0 (%s). Update the service pack of its network processor; "+
			"if it still refuses, this firmware cannot prove the key: use firmware of the dialect report or ti-csr", ErrNoProof, refused.text)
	}
	if err != nil {
		return signed{}, "", fmt.Errorf("having a nonce signed: %w", err)
	}
	raw, err := parseBase64(value)
	if err != nil {
		at, want := codedStop(value)
		l.explainError(l.answer.at, value, at, "signature over the nonce", want)
		return signed{}, "", fmt.Errorf("having a nonce signed: %w", err)
	}
	r, s, encoding, err := parseSignature(raw)
	if err != nil {
		l.explainError(l.answer.at, value, 0, "signature over the nonce", "an ECDSA signature, DER or 64 bytes")
		return signed{}, "", fmt.Errorf("having a nonce signed: %w: %v", ErrGarbled, err)
	}
	return signed{message: []byte(nonce), r: r, s: s}, encoding, nil
}

// refusal is the error for a command that the board refuses. The text is
// printable and its length is limited.
type refusal struct{ text string }

func (r *refusal) Error() string { return "the board refuses: " + r.text }

// withoutRefusal turns a refusal into ErrGarbled, where no refusal is expected.
func withoutRefusal(err error) error {
	var refused *refusal
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %v", ErrGarbled, err)
	}
	return err
}

// The dialogue cannot go on.
var (
	errStopped = fmt.Errorf("%w: its network processor has stopped; it needs a reset", ErrGarbled)
	errAnew    = fmt.Errorf("%w: the board started anew in the middle", ErrGarbled)
)

// ask sends a command and waits for OK or a refusal. If reply is not nil, ask
// returns the text after the reply's name, to the end of the line; the OK shows
// that the line is complete. Echo, prompts and events are skipped; they can be
// anywhere except inside an answer. Any other line that is followed by silence
// is a refusal in the firmware's own words. Errors: *refusal, ErrTimeout,
// ErrGarbled and those of Line.
func (d TIAT) ask(ctx context.Context, l *Line, command string, reply *regexp.Regexp, limit time.Duration) (string, error) {
	value, prompted, err := d.dialogue(ctx, l, command, reply, limit)
	var refused *refusal
	if l.prompt != "" && !prompted && (err == nil || errors.As(err, &refused)) {
		if err := d.ready(ctx, l); err != nil {
			return "", err
		}
	}
	return value, err
}

// dialogue is ask up to the end of the answer. prompted reports whether a
// prompt came with it.
func (TIAT) dialogue(ctx context.Context, l *Line, command string, reply *regexp.Regexp, limit time.Duration) (value string, prompted bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	if err := l.send(ctx, command+"\r"); err != nil {
		return "", false, err
	}
	have, echoed := false, false
	other, silence := "", 2*limit // the last line in other words, and what ends the wait after it
	otherAt := 0
	for range tiLines {
		line, heard, err := l.lineOrSilence(ctx, silence)
		if err != nil {
			return "", false, err
		}
		if !heard {
			l.explainText(otherAt, other, "refusal in other words")
			return "", prompted, &refusal{fmt.Sprintf("%q", printable(other, tiQuote))}
		}
		raw, at := line, l.lineAt
		if tiFatal.MatchString(line) {
			l.explainError(at, raw, 0, "the network processor stopped", "an answer")
			return "", false, errStopped
		}
		// An event can follow a cut echo on the same line. It can quote text
		// from outside, such as the name of a network.
		var event bool
		if line, _, event = cutAt(line, tiEvent); event {
			l.explainText(at+len(line), raw[len(line):], meaningEvent)
		}
		if strings.Trim(line, tiBlank) == "" {
			continue
		}
		if before, ok := strings.CutSuffix(strings.TrimRight(line, tiBlank), command); ok && !echoed && promptOf(before) != "" {
			l.prompt = before
		}
		echo, whole := echoes(line, command, l.prompt)
		if echo = echo && !(whole && echoed); echo {
			echoed = echoed || whole
			l.explainEcho(at, line, command)
			continue
		}
		before, after, replied := line, "", false
		if reply != nil {
			before, after, replied = cutAt(line, reply)
		}
		ok := !replied && endsAnswer(line, l.prompt)
		prompted = prompted || promptIn(before, ok, l.prompt)
		switch {
		case ok:
			l.explainText(at, line, "end of the answer")
			if reply != nil && !have {
				if other == "" {
					otherAt, other = at, line
				}
				l.explainError(otherAt, other, 0, "not an answer", commandMeaning(command)+" before the OK")
				return "", false, fmt.Errorf("%w: OK without an answer", ErrGarbled)
			}
			return value, prompted, nil
		case replied:
			if have {
				l.explainError(at, line, 0, "second answer", "OK")
				return "", false, fmt.Errorf("%w: two answers to one question", ErrGarbled)
			}
			l.explainText(at, line, commandMeaning(command))
			l.answer = answerText{at + len(line) - len(after), after}
			value, have = after, true
			silence = 2 * limit // its OK is missing, and nothing else
		case tiStarts.MatchString(line):
			l.explainError(at, line, 0, "start of the board", "an answer")
			return "", false, errAnew
		default:
			if m := tiError.FindStringSubmatch(line); m != nil {
				l.explainText(at, line, "refusal of the command")
				return "", prompted, &refusal{m[1]}
			}
			if have || isPrompt(line, l.prompt) {
				if isPrompt(line, l.prompt) {
					l.explainText(at, line, meaningPrompt)
				}
				continue
			}
			switch other, otherAt = line, at; {
			case tiNo.MatchString(line), tiNo.MatchString(strings.TrimPrefix(line, l.prompt)):
				silence = tiRefusedNo
			case limit == tiSign:
				silence = tiSignRefused
			default:
				silence = tiRefused
			}
		}
	}
	return "", false, fmt.Errorf("%w: %d lines and no OK", ErrGarbled, tiLines)
}

// commandMeaning says what the answer to a command is.
func commandMeaning(command string) string {
	switch name, _, _ := strings.Cut(command, ","); {
	case command == tiGetUDID:
		return meaningSerial
	case strings.HasSuffix(name, "=sign_msg"):
		return "signature over the nonce"
	default:
		return "answer to " + command
	}
}

// promptIn reports whether a prompt precedes the answer on a line.
func promptIn(before string, ok bool, prompt string) bool {
	before, _, _ = cutAt(before, tiErrorAt)
	before = strings.TrimRight(before, tiBlank)
	if ok {
		before = strings.TrimRight(before[:max(0, len(before)-len("OK"))], tiBlank)
	}
	last := strings.TrimRight(cmp.Or(prompt, tiPrompt), tiBlank)
	return before != "" && strings.HasSuffix(before, last[len(last)-1:])
}
