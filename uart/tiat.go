package uart

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// TIAT is the dialect of TI's "AT Commands" example for the CC3220 and CC3235, in all its builds: 1.1.2, 1.1.1
// with a prompt before every command, and those whose terminal is in text mode. The identity is
// the key in index 0 of the network processor. No command prints it, so it is recovered from its signatures
// over fresh nonces, which proves possession as well. The command public_key reads index 1, which
// is never the identity; it is noted as the fact "key-1".
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
	tiBabble   = 8  // looks at a board that says something, but never OK
	tiLines    = 64 // lines of one answer, events and all
	tiNonceLen = 21 // no padding in base64, and not a multiple of 8: the firmware's decoder writes one byte too many there
	tiNonces   = 3
)

const (
	tiBanner = "AT Commands Example Ver:" // only a fresh start prints it
	tiPrompt = "Enter AT Command:"
	tiWho    = "at+get=iot,udid"
	tiEvent  = "+event"
	tiFatal  = "+eventfatalerror"
)

var (
	tiUDID     = regexp.MustCompile(`^(?:0x[0-9a-f]{1,2},){15}0x[0-9a-f]{1,2}$`)
	tiTold     = regexp.MustCompile(`\+get:((?:0x[0-9a-f]{1,2},){15}0x[0-9a-f]{1,2})[\r\n]+OK[\r\n]`)
	tiVersion  = regexp.MustCompile(`^0x[0-9a-f]{1,8}(?:,[0-9]{1,5}(?:\.[0-9]{1,5}){0,3}){4}$`)
	tiMAC      = regexp.MustCompile(`^(?:0x[0-9a-f]{1,2}:){5}0x[0-9a-f]{1,2}$`)
	tiSigned   = regexp.MustCompile(`^1,([0-9]{1,3}),([A-Za-z0-9+/]+={0,2})$`)
	tiKey1     = regexp.MustCompile(`^1,([0-9]{1,3}),([A-Za-z0-9+/]+={0,2})$`)
	tiBuild    = regexp.MustCompile(`AT Commands Example Ver: ([0-9]{1,3}(?:\.[0-9]{1,3}){1,3})[ \t]*[\r\n]`)
	tiOK       = regexp.MustCompile(`[\r\n](?:[A-Za-z: ]*)OK([\r\n]+)`)
	tiSpeaks   = regexp.MustCompile(`[\r\n]OK[\r\n]|ERROR: (?:command not exist|number of parameters|parse parameters),-?[0-9]|\+event[a-z]+:`)
	tiPrompted = regexp.MustCompile(`^Enter AT Command: *at\+`)
	// What a board says that was waiting for a command: to a carriage return, and to at+test; and how that begins.
	tiQuick   = regexp.MustCompile(`^(?:\r(?:\n\r|\n\n\r\r)|at\+test\r\n[\r\n]*OK[\r\n]+)(?:Enter AT Command:)?$`)
	tiQuickly = regexp.MustCompile(`^(?:at\+test)?\r[\r\n]*(?:OK?)?[\r\n]*(?:E[A-Za-z ]*)?$`)
	tiEvents  = regexp.MustCompile(`\+event[^\r\n]*[\r\n]+`) // wherever they are; they end their line
	// A prompt that some builds print can stand before an error, on the same line.
	tiError = regexp.MustCompile(`ERROR: ((?:command not exist|number of parameters|parse parameters|process command|allocate),-?[0-9]{1,6}|length smaller than payload)$`)
)

// Detect implements Dialect. It sends nothing but carriage returns, which every build ignores, until
// something comes back.
func (d TIAT) Detect(ctx context.Context, l *Line) error {
	l.device = nil
	for babble := 0; ; {
		l.Mark()
		if err := l.Send(ctx, "\r"); err != nil {
			return err
		}
		here, err := l.Heard(ctx, aboutOne(tiPing)) // an echo, or it starts just now
		if err != nil {
			return err
		}
		if here {
			sure, err := d.quick(ctx, l)
			if err == nil && !sure {
				err = d.test(ctx, l)
			}
			switch {
			case err == nil:
				return nil
			case errors.Is(err, ErrTimeout), errors.Is(err, ErrGarbled):
				if babble++; babble >= tiBabble {
					return fmt.Errorf("%w: it says something, but does not answer at+test with OK", ErrGarbled)
				}
			default:
				return err
			}
			continue
		}
		babble = 0
	}
}

// Gone implements Dialect.
func (TIAT) Gone(ctx context.Context, l *Line) error {
	return watch(ctx, l, vigil{probes: []string{"\r"}, starts: []string{tiBanner}, ask: tiWho + "\r", told: tiDevice})
}

// tiDevice finds the whole answer to tiWho in what a board says, with the OK after it.
func tiDevice(text string) (device [16]byte, ok bool) {
	m := tiTold.FindStringSubmatch(tiEvents.ReplaceAllString(text, ""))
	if m == nil {
		return device, false
	}
	return [16]byte(unpadded(m[1], ",")), true
}

// For auto.

func (TIAT) probe() string    { return "at+test" }
func (TIAT) starts() []string { return []string{tiBanner} }

func (TIAT) recognises(text string) bool {
	return strings.Contains(text, tiBanner) || strings.Contains(text, tiPrompt) || tiSpeaks.MatchString(text)
}

// leave asks for the serial number in a line of its own, after one that is never empty: see Auto.
func (TIAT) leave(ctx context.Context, l *Line, v vigil) error {
	v.clear, v.ask, v.told = autoProbe+"\r", tiWho+"\r", tiDevice
	return watch(ctx, l, v)
}

// settle brings the board to where it waits for a command, whatever was typed before.
func (d TIAT) settle(ctx context.Context, l *Line, _ bool) error {
	if sure, err := d.quick(ctx, l); sure || err != nil {
		return err
	}
	return d.restore(ctx, l)
}

// quick spares a board the silence that waited for it: one that has answered a carriage return with a line end and nothing else, or at+test
// with OK, had nothing half typed and listens. at+test fits into what its UART holds, should a prompt still come. False
// means that it takes more than this to be sure.
func (d TIAT) quick(ctx context.Context, l *Line) (bool, error) {
	for end := time.Now().Add(tiReady); !tiQuick.Match(l.in); {
		if !tiQuickly.Match(l.in) {
			return false, nil
		}
		more, err := l.more(ctx, time.Until(end))
		if err != nil || !more {
			return false, err
		}
	}
	l.keep(0)
	l.prompts = false
	_, err := d.ask(ctx, l, "at+test", "", tiPing)
	var refused *refusal
	if errors.As(err, &refused) || errors.Is(err, ErrTimeout) && ctx.Err() == nil || errors.Is(err, ErrGarbled) {
		return false, nil
	}
	return err == nil, err
}

// test asks for an OK when all is quiet.
func (d TIAT) test(ctx context.Context, l *Line) error {
	said, err := l.Discard(ctx, tiSilence, tiFlush)
	if err != nil {
		return err
	}
	// A prompt that comes once has a line end; one before every command has none.
	l.prompts = strings.HasSuffix(tiEvents.ReplaceAllString(said, ""), tiPrompt)
	_, err = d.ask(ctx, l, "at+test", "", tiAnswer)
	return hide(err)
}

// ready waits for the prompt of a board that has one before every command: until the last character of it is on the wire the
// firmware does not listen, and more than its UART holds is lost.
func (TIAT) ready(ctx context.Context, l *Line) error {
	for end := time.Now().Add(tiReady); ; {
		said := tiEvents.ReplaceAllString(string(l.in), "")
		// Its first part may have come before the answer.
		if end := said[strings.LastIndexAny(said, "\r\n")+1:]; end != "" && strings.HasSuffix(tiPrompt, end) {
			l.keep(0)
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

// restore ends whatever was typed or asked, and tests. A board that was reset may take its time to start.
func (d TIAT) restore(ctx context.Context, l *Line) error {
	for try := 1; ; try++ {
		// While it prints it does not listen.
		if _, err := l.Discard(ctx, tiSilence, tiFlush); err != nil {
			return err
		}
		if err := l.Send(ctx, "\r"); err != nil {
			return err
		}
		err := d.test(ctx, l)
		if err == nil || try == tiSettle || !(errors.Is(err, ErrTimeout) || errors.Is(err, ErrGarbled)) {
			return err
		}
	}
}

func (d TIAT) read(ctx context.Context, l *Line) (Report, error) {
	device, err := d.udid(ctx, l)
	if err != nil {
		return Report{}, err
	}
	facts := map[string]string{"dialect": d.Name()}
	if err := d.facts(ctx, l, facts); err != nil {
		return Report{}, err
	}
	var answers []signed
	for range tiNonces {
		answer, encoding, err := d.sign(ctx, l)
		if err != nil {
			return Report{}, err
		}
		answers = append(answers, answer)
		facts["signature"] = encoding
	}
	spki, proof, err := recoverKey(answers)
	if err != nil {
		return Report{}, err
	}
	// Nothing on this link has a checksum, and boards get swapped: the same answer once more.
	again, err := d.udid(ctx, l)
	if err != nil {
		return Report{}, err
	}
	if again != device && !weakened {
		return Report{}, fmt.Errorf("%w: the serial number was another one at the end of the reading", ErrGarbled)
	}
	// Whatever signed, it must not be the key that a command can make and take away.
	if print := sha256.Sum256(spki); facts["key-1"] == hex.EncodeToString(print[:]) {
		return Report{}, fmt.Errorf("%w: it signs with the key in index 1 instead of 0; its firmware is not TI's, use another route", ErrNoProof)
	}
	facts["hash"] = proof.Hash
	d.met(l.heard(), facts)
	l.device = &device
	return Report{Device: device, SPKI: spki, Facts: facts, Proof: proof}, nil
}

// met notes which of the documented forms the board has.
func (TIAT) met(heard string, facts map[string]string) {
	if m := tiBuild.FindAllStringSubmatch(heard, -1); m != nil {
		facts["build"] = m[len(m)-1][1]
	}
	start := max(0, strings.LastIndex(heard, tiBanner))
	facts["prompt"] = "once"
	if strings.Count(heard[start:], tiPrompt) > 1 {
		facts["prompt"] = "every-command"
	}
	facts["line-ends"] = "other"
	for _, m := range tiOK.FindAllStringSubmatch(heard, -1) { // the end of a late OK can be torn
		if strings.HasPrefix(m[1], "\n\r\r") {
			facts["line-ends"] = "lf-cr-cr"
			break
		}
		if strings.HasPrefix(m[1], "\n\r") {
			facts["line-ends"] = "lf-cr"
		}
	}
}

func (d TIAT) udid(ctx context.Context, l *Line) (udid [16]byte, err error) {
	value, err := d.ask(ctx, l, tiWho, "+get:", tiAnswer)
	if err != nil {
		return udid, fmt.Errorf("reading the serial number: %w", hide(err))
	}
	if !tiUDID.MatchString(value) {
		return udid, fmt.Errorf("reading the serial number: %w: not 16 bytes", ErrGarbled)
	}
	copy(udid[:], unpadded(value, ","))
	return udid, checkDevice(udid)
}

// facts asks for what is good to know; a board that refuses to tell is no worse for it.
func (d TIAT) facts(ctx context.Context, l *Line, facts map[string]string) error {
	for _, q := range []struct {
		command, prefix string
		grammar         *regexp.Regexp
		keep            func(value string) error
	}{
		{"at+get=general,version", "+get:", tiVersion, func(value string) error {
			for i, name := range []string{"chip", "mac-version", "phy-version", "nwp-version", "rom-version"} {
				facts[name] = strings.Split(value, ",")[i]
			}
			return nil
		}},
		{"at+netcfgget=get_mac_addr", "+netcfgget:", tiMAC, func(value string) error {
			facts["mac"] = fmt.Sprintf("% x", unpadded(value, ":"))
			facts["mac"] = strings.ReplaceAll(facts["mac"], " ", ":")
			return nil
		}},
		{"at+netutilget=public_key,1", "+netutilget:", tiKey1, func(value string) error {
			raw, err := counted(tiKey1.FindStringSubmatch(value))
			if err != nil {
				return err
			}
			spki, _, err := parsePoint(raw)
			if err != nil {
				return fmt.Errorf("%w: %v", ErrGarbled, err)
			}
			print := sha256.Sum256(spki)
			facts["key-1"] = hex.EncodeToString(print[:])
			return nil
		}},
	} {
		value, err := d.ask(ctx, l, q.command, q.prefix, tiAnswer)
		var refused *refusal
		if errors.As(err, &refused) {
			continue
		}
		if err != nil {
			return fmt.Errorf("asking %s: %w", q.command, err)
		}
		if !q.grammar.MatchString(value) {
			return fmt.Errorf("asking %s: %w: not of the documented form", q.command, ErrGarbled)
		}
		if err := q.keep(value); err != nil {
			return fmt.Errorf("asking %s: %w", q.command, err)
		}
	}
	return nil
}

// sign has a fresh nonce signed with key 0. Letters and digits stay letters and digits in base64, so nothing in
// the command can be taken for a delimiter.
func (d TIAT) sign(ctx context.Context, l *Line) (signed, string, error) {
	nonce := l.Nonce(tiNonceLen)
	text := base64.StdEncoding.EncodeToString([]byte(nonce))
	value, err := d.ask(ctx, l, fmt.Sprintf("at+netutilcmd=sign_msg,0,1,%d,%s", len(text), text), "+netutilcmd:", tiSign)
	var refused *refusal
	if errors.As(err, &refused) {
		return signed{}, "", fmt.Errorf("%w: it refuses to sign with key 0 (%s). Update the service pack of its network processor; "+
			"if it still refuses, this firmware cannot prove the key: use firmware of the dialect report or ti-csr", ErrNoProof, refused.text)
	}
	if err != nil {
		return signed{}, "", fmt.Errorf("having a nonce signed: %w", err)
	}
	m := tiSigned.FindStringSubmatch(value)
	if m == nil {
		return signed{}, "", fmt.Errorf("having a nonce signed: %w: not of the documented form", ErrGarbled)
	}
	raw, err := counted(m)
	if err != nil {
		return signed{}, "", fmt.Errorf("having a nonce signed: %w", err)
	}
	r, s, encoding, err := parseSignature(raw)
	if err != nil {
		return signed{}, "", fmt.Errorf("having a nonce signed: %w: %v", ErrGarbled, err)
	}
	return signed{message: []byte(nonce), r: r, s: s}, encoding, nil
}

// counted decodes a length and base64, as a grammar has found them. The number is the length of the text, not of what it
// stands for.
func counted(m []string) ([]byte, error) {
	if m[1] != strconv.Itoa(len(m[2])) {
		return nil, fmt.Errorf("%w: %s characters announced, %d came", ErrGarbled, m[1], len(m[2]))
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(m[2])
	if err != nil {
		return nil, fmt.Errorf("%w: not base64", ErrGarbled)
	}
	return raw, nil
}

// refusal is an ERROR line of the board. Its words are from the short list of the grammar.
type refusal struct{ text string }

func (r *refusal) Error() string { return "the board answers ERROR: " + r.text }

// hide turns a refusal where none can be accepted into garble.
func hide(err error) error {
	var refused *refusal
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %v", ErrGarbled, err)
	}
	return err
}

// ask sends a command and waits for OK or ERROR. With a prefix it returns what follows it, to the end of the
// line; the OK after it is what shows that the line was not cut. Echo, prompts and events are skipped: they can stand anywhere but inside an
// answer. Errors: *refusal, ErrTimeout, ErrGarbled and those of Line. None of them quotes the board.
func (d TIAT) ask(ctx context.Context, l *Line, command, prefix string, limit time.Duration) (string, error) {
	value, prompted, err := d.dialogue(ctx, l, command, prefix, limit)
	var refused *refusal
	if l.prompts && !prompted && (err == nil || errors.As(err, &refused)) {
		if err := d.ready(ctx, l); err != nil {
			return "", err
		}
	}
	return value, err
}

// dialogue is ask up to the end of the answer, and tells whether a prompt came with it.
func (TIAT) dialogue(ctx context.Context, l *Line, command, prefix string, limit time.Duration) (value string, prompted bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	if err := l.Send(ctx, command+"\r"); err != nil {
		return "", false, err
	}
	have := false
	for range tiLines {
		line, err := l.ReadLine(ctx)
		if weakened && have && errors.Is(err, ErrTimeout) {
			return value, prompted, nil
		}
		if err != nil {
			return "", false, err
		}
		if strings.Contains(line, tiFatal) {
			return "", false, fmt.Errorf("%w: its network processor has stopped; it needs a reset", ErrGarbled)
		}
		// After a cut echo an event stands on the same line. What it quotes, a network's name, is anybody's.
		line, _, _ = strings.Cut(line, tiEvent)
		before, _, _ := strings.Cut(line, "ERROR:")
		if prefix != "" {
			before, _, _ = strings.Cut(before, prefix)
		}
		prompted = prompted || strings.HasSuffix(strings.TrimSuffix(before, "OK"), ":")
		l.prompts = l.prompts || tiPrompted.MatchString(line) // and the echo on the same line
		switch before, ok := strings.CutSuffix(line, "OK"); {
		case ok && strings.Contains(tiPrompt, before): // it can come in the middle of a prompt
			if prefix != "" && !have {
				return "", false, fmt.Errorf("%w: OK without an answer", ErrGarbled)
			}
			return value, prompted, nil
		case prefix != "" && strings.Contains(line, prefix):
			if have {
				return "", false, fmt.Errorf("%w: two answers to one question", ErrGarbled)
			}
			_, value, _ = strings.Cut(line, prefix)
			have = true
		case strings.Contains(line, tiBanner):
			return "", false, fmt.Errorf("%w: the board started anew in the middle", ErrGarbled)
		default:
			if m := tiError.FindStringSubmatch(line); m != nil {
				return "", prompted, &refusal{m[1]}
			}
		}
	}
	return "", false, fmt.Errorf("%w: %d lines and no OK", ErrGarbled, tiLines)
}

// unpadded decodes fields that the grammar has checked: 0x and one or two hex digits.
func unpadded(value, separator string) []byte {
	var out []byte
	for _, field := range strings.Split(value, separator) {
		b, _ := strconv.ParseUint(strings.TrimPrefix(field, "0x"), 16, 8)
		out = append(out, byte(b))
	}
	return out
}
