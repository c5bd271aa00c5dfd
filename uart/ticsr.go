package uart

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"secretfree/station/board/certreq"
)

// TICSR is the dialect of TI's "CSR - Certificate Signing Request" example.
// After a reset the board prints its serial number, asks for the parts of a
// subject, and prints a request signed with key 0. The organizational unit
// carries a fresh nonce, so the request's signature proves possession. No
// certificate is pasted: the board is left at the question for a file name.
//
// The wording may vary: csrPrompt recognises a question by its subject and by
// its unterminated end. An unknown question is answered with its default. Three
// parts are strict: the serial number line, the request's signature over the
// nonce, and the key.
//
// The firmware prints the serial number once per reset: for a board that was
// connected later Detect returns ErrNeedsReset. The second reading is the run
// of the number's digits in the text after Enter at the common name, or else
// the common name in the request; the fact second-reading says which (default
// or request). Digits of another serial number there fail the board. TI's code
// may cut the name short, and other firmware may not repeat the number: then
// the fact serial-readings is 1.
type TICSR struct{}

// Name implements Dialect.
func (TICSR) Name() string { return "ti-csr" }

const (
	// csrProbe is a letter without a line end: a board that waits for an answer
	// echoes it. An empty answer to the first question would end the firmware;
	// after a wrong answer the firmware only repeats the question.
	csrProbe = "x"
	csrLook  = tiPing
	csrEcho  = 20 * time.Millisecond   // of what the UART held; a USB adapter may sit on it for 16 ms
	csrStart = 3 * time.Second         // silence within a start: the network processor starts as well
	csrWait  = 5 * time.Second         // for the next question
	csrMake  = 15 * time.Second        // a signature and a file
	csrQuiet = 50 * time.Millisecond   // after a question that is not in TI's form
	csrPause = 2500 * time.Millisecond // after what may be a question
	csrAsks  = 48                      // questions in all: some are asked again
	csrAgain = 4                       // times that one question is asked
	csrNonce = 21
	csrTyped = 32            // characters of probes that a board may have in its line
	csrGone  = 2 * watchEcho // a board that was read and does not echo for so long is gone
)

var (
	csrBuild = regexp.MustCompile(`(?i)\bver(?:sion)?[.:]* ?([0-9]{1,3}(?:\.[0-9]{1,3}){1,3})[ \t]*(?:[\r\n]|$)`)
	csrMAC   = regexp.MustCompile(`(?i)\bMAC addr(?:ess)?\W*((?:[0-9a-f]{2}[:-]?){5}[0-9a-f]{2})[ \t]*(?:[\r\n]|$)`)
	csrTitle = regexp.MustCompile(`(?i)\bexample\W+ver(?:sion)?\b`)
	csrChip  = regexp.MustCompile(`(?i)\b(CHIP|NWP)\W*\b([0-9a-fx.]{1,24})[ \t]*(?:[\r\n]|$)`)
)

// csrAnswers are the answers to the questions. An unknown question gets an
// empty one, which takes the default.
var csrAnswers = map[string]string{
	csrValidity: "3650", csrCA: "0", csrCountry: "US", csrState: "none", csrLocality: "none", csrSurname: "none",
	csrOrganization: "none", csrUnit: csrFresh, csrCommonName: "", csrEmail: "none",
}

const csrFresh = "?" // stands for the nonce

var (
	// errRestarted: the start of the board is on the line.
	errRestarted   = fmt.Errorf("%w: the board restarted during the dialogue", ErrGarbled)
	errOtherSerial = fmt.Errorf("%w: the board repeated another serial number", ErrGarbled)
	errAborted     = fmt.Errorf("%w: the CSR example gave up; reset the board", ErrGarbled)
	errDead        = fmt.Errorf("%w: the network processor of the board stopped; reset the board", ErrGarbled)
)

// Detect implements Dialect. It waits for a board that starts. For a board that
// has already started it returns ErrNeedsReset.
func (d TICSR) Detect(ctx context.Context, l *Line) error {
	return search(ctx, l, []string{d.Name()}, func(ctx context.Context) error {
		heard, err := l.awaitBytes(ctx, roundToTick(csrLook))
		if err == nil && !heard {
			if err = l.send(ctx, csrProbe); err == nil {
				heard, err = l.awaitBytes(ctx, tiEcho)
			}
		}
		if err != nil {
			return err
		}
		if !heard {
			return errNothingHeard
		}
		err = d.awaitSerial(ctx, l)
		if errors.Is(err, errEchoes) && saysMore(l.heard()) {
			return fmt.Errorf("%w: it prints other text than the CSR example", ErrGarbled)
		}
		return err
	})
}

// errEchoes: nothing came but the echo of the probe.
var errEchoes = fmt.Errorf("%w: it echoes, and says nothing else", ErrNeedsReset)

// csrMuch is text that is not the rest of a question.
const csrMuch = 24

// saysMore reports whether what was heard in a search has text besides echoes,
// none of it from the CSR example.
func saysMore(heard string) bool {
	text := strings.Trim(heard, csrProbe+"\r\n \t")
	switch classify([]byte(text)) {
	case HeardLogin:
		return true
	case HeardText:
		return (len(text) > csrMuch || strings.ContainsAny(text, "\r\n")) && !csrLate.MatchString(heard) && !csrEvent.MatchString(heard)
	}
	return false
}

// awaitSerial waits for the serial number and leaves it on the line. It returns
// ErrNeedsReset for a board that will not print the number any more, and
// ErrGarbled for text that makes no sense.
func (TICSR) awaitSerial(ctx context.Context, l *Line) error {
	end := time.Now().Add(4 * csrStart)
	for {
		text, _ := withoutEvents(string(l.in))
		text = text[max(0, startOf(text)):] // what is before may be of the board before
		lines := serialLines(text)
		line, err := chooseSerial(lines, false)
		if line != nil || err != nil { // Read says what is wrong
			return nil
		}
		if gaveUp(text) != nil {
			l.explainHeard(lateMeaning)
			l.keepLast(0)
			return ErrNeedsReset
		}
		echo := strings.Contains(text, csrProbe) && strings.Trim(text, csrProbe+"\r\n") == ""
		subject, _, asked := csrPrompt(text, true)
		late := csrLate.MatchString(text) || asked >= probably && subject != ""
		if late && (len(lines) > 0 || hasNumber(text)) {
			return nil
		}
		silence := csrStart
		if echo || late {
			silence = tiEcho
		}
		more := false
		if len(l.in) <= maxText && time.Now().Before(end) {
			if more, err = l.more(ctx, silence); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		if len(lines) > 0 && asked >= probably {
			return nil
		}
		l.explainHeard(lateMeaning)
		l.keepLast(0)
		switch {
		case echo:
			return errEchoes
		case late:
			return ErrNeedsReset
		}
		return fmt.Errorf("%w: no serial number came", ErrGarbled)
	}
}

// Read implements Dialect. Only a board that restarts can be read a second
// time.
func (d TICSR) Read(ctx context.Context, l *Line) (Report, error) {
	report, err := d.read(ctx, l)
	if errors.Is(err, errRestarted) {
		if err := d.awaitSerial(ctx, l); err != nil {
			return Report{}, err
		}
		return d.read(ctx, l)
	}
	return report, err
}

func (d TICSR) read(ctx context.Context, l *Line) (report Report, err error) {
	l.readNone()
	r := csrReading{line: l, facts: map[string]string{"dialect": d.Name()}, asked: map[string]int{}}
	if err := r.serial(ctx); err != nil {
		return Report{}, err
	}
	l.readOnce(r.device)
	defer func() {
		switch {
		case r.doubted && r.second == "", errors.Is(err, errOtherSerial):
			l.readNone()
		case r.second != "":
			l.readTwice()
		}
	}()
	r.nonce = l.drawNonce(csrNonce)
	for range csrAsks {
		turn, err := r.turn(ctx)
		if err != nil {
			return Report{}, err
		}
		r.explain(turn)
		if err := r.listen(turn); err != nil {
			r.wrongDefault(turn)
			return Report{}, err
		}
		if turn.request != nil {
			report, err := r.finish(turn.request)
			if err == nil {
				l.device = &report.Device
			} else {
				r.wrongRequest(turn)
			}
			return report, err
		}
		if len(r.asked) == 0 {
			stale, err := r.askedAgain(ctx, turn)
			if err != nil {
				return Report{}, err
			}
			if stale {
				continue
			}
		}
		if err := r.answer(ctx, turn.subject); err != nil {
			return Report{}, err
		}
	}
	return Report{}, fmt.Errorf("%w: %d questions and no request", ErrGarbled, csrAsks)
}

// csrReading is the state of one reading.
type csrReading struct {
	line   *Line
	facts  map[string]string
	device [16]byte
	kind   int // of the serial number's label
	nonce  string
	asked  map[string]int // questions that were answered, by subject
	first  string         // the subject that was asked first
	last   string         // the subject that was asked last
	enter  bool           // it was answered with Enter
	named  string         // the answer to the question for the common name; empty if that was Enter
	second string         // the form of the second reading; empty if there is none yet
	// doubted: after the serial number, something came that another board may
	// have printed. Only a second reading after it ends the doubt.
	doubted bool
}

// csrTurn is what a board printed up to its next question or its request.
type csrTurn struct {
	text    string // without events
	subject string
	rest    string // what follows the question: the echo of something that was typed before
	request *pemRequest
	raw     string // text with events
	at      int    // place of raw
}

// serial reads the start of the board up to the serial number.
func (r *csrReading) serial(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, csrWait, ErrTimeout)
	defer cancel()
	for {
		text, origin := withoutEvents(string(r.line.in))
		if err := gaveUp(text[max(0, startOf(text)):]); err != nil {
			r.wrongEnd(text, origin)
			r.line.keepLast(0)
			return fmt.Errorf("reading the serial number: %w", err)
		}
		lines := serialLines(text)
		_, _, asked := csrPrompt(text, true)
		line, err := chooseSerial(lines, len(lines) > 0 && asked >= probably)
		if err != nil {
			r.wrongSerial(text, origin, lines)
			return err
		}
		if line != nil {
			r.explainStart(text[:line.start], origin, line, text)
			r.device, r.kind, r.doubted = line.device, line.kind, line.kind == csrVague
			r.start(text[:line.start])
			r.line.in = r.line.in[min(origin(line.end), len(r.line.in)):]
			return checkDevice(r.device)
		}
		if len(lines) == 0 && asked >= probably && hasNumber(text) {
			r.line.keepLast(0)
			return fmt.Errorf("reading the serial number: %w: no line names it; print it as \"UDID: \" and 32 hex digits", ErrFirmware)
		}
		if len(r.line.in) > maxText {
			r.line.keepLast(0)
			return fmt.Errorf("reading the serial number: %w: more than %d bytes without it", ErrGarbled, maxText)
		}
		if err := r.line.fill(ctx); err != nil {
			return fmt.Errorf("reading the serial number: %w", err)
		}
	}
}

// start notes the facts of a banner.
func (r *csrReading) start(banner string) {
	for name, pattern := range map[string]*regexp.Regexp{"build": csrBuild, "mac": csrMAC} {
		if m := pattern.FindStringSubmatch(banner); m != nil {
			r.facts[name] = strings.ToLower(m[1])
		}
	}
	for _, m := range csrChip.FindAllStringSubmatch(banner, -1) {
		r.facts[map[string]string{"CHIP": "chip", "NWP": "nwp-version"}[strings.ToUpper(m[1])]] = strings.ToLower(m[2])
	}
}

// limit is how long the next question or the request may take.
func (r *csrReading) limit() time.Duration {
	if r.last == csrEmail || r.asked[csrUnit] > 0 {
		return csrMake
	}
	return csrWait
}

// turn waits for what needs the reader next: a question or the request.
func (r *csrReading) turn(ctx context.Context) (csrTurn, error) {
	l, end, seen := r.line, time.Now().Add(r.limit()), 0
	var restarts int // place of a restart that only the question after it confirms
	restarts = -1
	for {
		text, origin := withoutEvents(string(l.in))
		fresh := text[min(seen, len(text)):]
		if err := gaveUp(fresh); err != nil {
			r.wrongEnd(text, origin)
			l.keepLast(0)
			return csrTurn{}, r.whyGivenUp(text, err)
		}
		if at := r.restart(fresh); at >= 0 {
			at += min(seen, len(text))
			if !r.enter {
				l.in = l.in[min(origin(at), len(l.in)):]
				return csrTurn{}, errRestarted
			}
			restarts = at
		}
		if strings.Contains(fresh, "--") {
			if request := findPEM(text); request != nil {
				turn := csrTurn{text: text, request: request, raw: string(l.in), at: l.Consumed()}
				l.keepLast(0)
				return turn, nil
			}
		}
		seen = strings.LastIndexAny(text, "\r\n") + 1
		subject, rest, asked := csrPrompt(text, len(r.asked) == 0)
		more, wait := false, time.Until(end)
		switch asked {
		case surely:
			wait = 0
		case probably:
			wait = min(wait, csrQuiet)
		case perhaps:
			wait = min(wait, csrPause)
		}
		if len(l.in) > maxText {
			l.keepLast(0)
			return csrTurn{}, fmt.Errorf("%w: more than %d bytes and no prompt", ErrGarbled, maxText)
		}
		if wait > 0 {
			var err error
			if more, err = l.more(ctx, wait); err != nil {
				return csrTurn{}, fmt.Errorf("waiting for the next question: %w", err)
			}
		}
		switch {
		case more:
			continue
		case asked == noQuestion:
			r.wrongMarker(text, origin)
			return csrTurn{}, fmt.Errorf("waiting for the next question: %w", ErrTimeout)
		case subject == csrCertificate:
			return csrTurn{}, fmt.Errorf("%w: the board asks for the certificate, but no request came; reset the board", ErrGarbled)
		case restarts >= 0 && subject == r.first:
			l.in = l.in[min(origin(restarts), len(l.in)):]
			return csrTurn{}, errRestarted
		}
		turn := csrTurn{text: text, subject: subject, rest: rest, raw: string(l.in), at: l.Consumed()}
		l.keepLast(0)
		return turn, nil
	}
}

// restart returns the position of a serial number line in text that is at least
// as certain as the line that was read, or -1. Before the first question the
// line counts only if its number is another one.
func (r *csrReading) restart(text string) int {
	if !strings.ContainsAny(text, "\r\n") {
		return -1
	}
	for _, line := range serialLines(text) {
		if line.kind <= r.kind && (line.valid || line.kind == 0) && (len(r.asked) > 0 || line.device != r.device) {
			return line.start
		}
	}
	return -1
}

// whyGivenUp distinguishes a board that cannot make a request from a board that
// needs a reset.
func (r *csrReading) whyGivenUp(text string, err error) error {
	if errors.Is(err, errAborted) && (r.last == csrEmail || csrNoKey.MatchString(text)) {
		return fmt.Errorf("%w: the board cannot make a request with key 0. Update the service pack of its network processor; "+
			"if that does not help, use firmware of the dialect report", ErrNoProof)
	}
	return err
}

// listen looks for the second reading of the serial number in the text after an
// Enter, and for output of another board in all text.
func (r *csrReading) listen(t csrTurn) error {
	words := t.text
	if t.request != nil {
		if m := csrBegin.FindStringIndex(words); m != nil {
			words = words[:m[0]]
		}
	}
	form, other := repeats(r.device, words)
	switch {
	case other && r.enter && r.last == csrCommonName:
		return errOtherSerial
	case other, csrBanner(words), t.subject != "" && t.subject != r.last && r.asked[t.subject] > 0:
		r.doubted, r.second = true, ""
	case form != "" && r.enter:
		r.second = form
	}
	return nil
}

// hasNumber reports whether text has a number that may be a serial number.
func hasNumber(text string) bool {
	_, other := repeats([16]byte{}, text)
	return other
}

// csrBanner reports whether text has lines of a banner: a board has started.
func csrBanner(text string) bool {
	return tiModule.MatchString(text) || csrTitle.MatchString(text)
}

// askedAgain waits, after the first question, for the echo of text that was
// typed before. The firmware may take that text as an answer and repeat the
// question; the echo shows it at once.
func (r *csrReading) askedAgain(ctx context.Context, t csrTurn) (bool, error) {
	more, err := r.line.gather(ctx, csrEcho, tiFlush)
	if err == nil && strings.ContainsAny(t.rest+more, "\r\n") {
		more, err = r.line.gather(ctx, tiSilence, tiFlush)
	}
	if err != nil {
		return false, err
	}
	_, _, asked := csrPrompt(more, true)
	return asked >= probably, nil
}

// answer answers a question. The first answer is never empty, because an empty
// one may end the firmware.
func (r *csrReading) answer(ctx context.Context, subject string) error {
	begins := len(r.asked) == 0
	r.asked[subject]++
	times := r.asked[subject]
	if times > csrAgain && subject != "" {
		return fmt.Errorf("%w: the board refuses every answer to the question for the %s", ErrGarbled, subject)
	}
	answer := csrAnswers[subject]
	switch {
	case begins:
		if r.first = subject; answer == "" {
			answer = csrAnswers[csrCA] // "0" is the least: no, or the first of something
		}
	case subject == r.first && subject == "" && times == 2 && len(r.asked) == 1:
		answer = csrAnswers[csrValidity] // it was not taken
	case times == 3 && subject != r.first:
		answer = "" // it takes no other
	}
	if answer == csrFresh {
		answer = r.nonce
	}
	if r.last, r.enter = subject, answer == ""; subject == csrCommonName {
		r.named = answer
	}
	return r.line.send(ctx, answer+"\r")
}

// pemRequest is a request as it came, and the words of its marker lines.
type pemRequest struct{ label, base64 string }

// der decodes the request. Its PEM has CRs where no decoder takes them.
func (p *pemRequest) der() ([]byte, error) {
	text := strings.Map(func(r rune) rune {
		if (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '+' && r != '/' && r != '=' {
			return -1
		}
		return r
	}, p.base64)
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: not base64", ErrGarbled)
	}
	return der, nil
}

// finish verifies the request: it must be for this board, over this nonce, and
// signed by the key that it holds.
func (r *csrReading) finish(p *pemRequest) (Report, error) {
	der, err := p.der()
	if err != nil {
		return Report{}, fmt.Errorf("reading the request: %w", err)
	}
	request, err := certreq.Parse(der)
	if err != nil {
		return Report{}, fmt.Errorf("reading the request: %w: not a certificate signing request", ErrGarbled)
	}
	hash := map[x509.SignatureAlgorithm]string{x509.ECDSAWithSHA1: "sha1", x509.ECDSAWithSHA256: "sha256"}[request.SignatureAlgorithm]
	key, ok := request.Key.(*ecdsa.PublicKey)
	if hash == "" || !ok || key.Curve != elliptic.P256() {
		return Report{}, fmt.Errorf("%w: the request is not signed with ECDSA on P-256 and SHA-1 or SHA-256", ErrNoProof)
	}
	if err := request.CheckSignature(); err != nil {
		return Report{}, fmt.Errorf("%w: the request's signature does not hold", ErrNoProof)
	}
	unit, n := request.SubjectText("2.5.4.11")
	if n != 1 || !r.fresh(unit) {
		if r.asked[csrUnit] == 0 {
			return Report{}, fmt.Errorf("%w: the firmware asks for no organizational unit, so its request holds nothing fresh; "+
				"use firmware that asks for one, or of the dialect report", ErrNoProof)
		}
		return Report{}, fmt.Errorf("%w: the request's organizational unit is not the nonce of this reading", ErrNoProof)
	}
	name, names := request.SubjectText("2.5.4.3")
	if names > 1 {
		return Report{}, fmt.Errorf("%w: the request has %d common names", ErrNoProof, names)
	}
	if err := r.confirm(name); err != nil {
		return Report{}, err
	}
	r.facts["hash"], r.facts["signature"], r.facts["key-form"] = hash, "der", "spki"
	r.facts["csr-label"] = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, p.label)
	return Report{
		Device: r.device, SPKI: request.SPKI, Facts: r.facts,
		Proof: &Proof{
			Method: "csr", Hash: hash, Nonces: [][]byte{[]byte(unit)}, Signatures: [][]byte{request.Signature}, Request: der,
		},
	}, nil
}

// fresh reports whether an organizational unit holds the nonce of this reading.
// If it was asked for first, what was typed while the board started stands
// before the nonce.
func (r *csrReading) fresh(unit string) bool {
	if r.first == csrUnit && r.asked[csrUnit] == 1 && len(unit) <= len(r.nonce)+csrTyped {
		return strings.HasSuffix(unit, r.nonce)
	}
	return unit == r.nonce
}

// confirm compares the common name of the request with the serial number, and
// records where the number was read a second time.
func (r *csrReading) confirm(name string) error {
	form, other := nameForm(r.device, name)
	if r.named != "" && name == r.named {
		form, other = "", false
	}
	if other || r.doubted && r.second == "" && form != formPadded && form != formJoined {
		return errOtherSerial
	}
	if form != "" {
		r.facts["common-name"] = form
	}
	r.facts["serial-readings"] = "2"
	switch {
	case r.second != "":
		r.facts["second-reading"] = "default"
	case form == formPadded || form == formJoined:
		r.facts["second-reading"] = "request"
	default:
		r.facts["serial-readings"] = "1"
	}
	return nil
}

// Gone implements Dialect. The firmware does not end its dialogue by itself, so
// a letter without a line end shows whether it still echoes. If a board has
// fallen silent, Gone waits until another board starts or the port is lost.
//
// This firmware prints its serial number only at its start, so a board that was
// read cannot be asked for it. Another board is detected by its start, or by an
// echo that is missing for csrGone. A running board that replaces the first one
// between two looks, up to watchSlow apart, is not detected. It has printed its
// serial number elsewhere and needs a reset before it can be read; that start
// is detected.
func (d TICSR) Gone(ctx context.Context, l *Line) error {
	return d.waitGone(ctx, l, presenceWatch{probes: []string{csrProbe}, starts: TICSR{}.starts})
}

// For auto.

func (TICSR) probe() string { return "" }

func (TICSR) starts(text string) []int { return startsOf(text) }

func (TICSR) answers(text string) bool {
	subject, _, asked := csrPrompt(text, true)
	return csrLate.MatchString(text) || asked >= probably && subject != ""
}

func (d TICSR) recognises(text string) bool {
	return csrLate.MatchString(text) || csrEvent.MatchString(text)
}

// settle waits for the first question as well: firmware of another dialect may
// print its serial number when it starts.
func (d TICSR) settle(ctx context.Context, l *Line, _ bool) error {
	if err := d.awaitSerial(ctx, l); err != nil {
		return err
	}
	for end := time.Now().Add(csrWait); ; {
		text, _ := withoutEvents(string(l.in))
		if csrFirst(text[slices.Max(append(startsOf(text), 0)):]) || gaveUp(text) != nil || len(l.in) > maxText {
			return nil
		}
		more, err := l.more(ctx, min(csrStart, time.Until(end)))
		if err != nil {
			return err
		}
		if !more {
			return fmt.Errorf("%w: no question came after the serial number", ErrGarbled)
		}
	}
}

func (TICSR) waitGone(ctx context.Context, l *Line, w presenceWatch) error {
	w.patient = true
	if l.device != nil {
		w.silenceLimit = csrGone
	}
	return watch(ctx, l, w)
}
